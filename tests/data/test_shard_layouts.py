"""Tars as webdataset writes them and parquet files, against tarfile and pyarrow."""

import hashlib
import io
import json
import pickle
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from conftest import tiny_config
from miniatures import jpeg, read_records, tar
from shards import open_shards, read_shards, shard_of, table_of

from imagenet_jax.data import shard_files, sources
from imagenet_jax.data.classes import imagenet_wnids
from imagenet_jax.doctor.diagnosis import diagnose
from imagenet_jax.errors import UserError
from imagenet_jax.prepare import __main__ as prepare
from imagenet_jax.prepare import folder as prepare_folder


@pytest.fixture
def tars(tmp_path):
    root = tmp_path / "wds"
    root.mkdir()
    (root / "things-train-0000.tar").write_bytes(shard_of(0, [2, 0, 1]))
    (root / "things-train-0001.tar").write_bytes(shard_of(3, [1, 2], "dir/{}", as_json=True))
    (root / "things-validation-0000.tar").write_bytes(shard_of(7, [0, 1, 1]))
    (root / "README.md").write_text("x")
    return root


def test_tars_in_folders_of_splits_and_an_archive_beside_class_folders(tmp_path):
    for split, labels in (("train", [0, 1]), ("valid", [1, 0])):
        (tmp_path / "wds" / split).mkdir(parents=True)
        (tmp_path / "wds" / split / "00000.tar").write_bytes(shard_of(0, labels))
    assert [label for _, label in read_shards(tmp_path / "wds")] == [0, 1]
    assert [label for _, label in read_shards(tmp_path / "wds", "validation")] == [1, 0]
    for name in ("ant", "bee"):
        (tmp_path / "flowers" / name).mkdir(parents=True)
        (tmp_path / "flowers" / name / "0.jpg").write_bytes(jpeg(0))
    (tmp_path / "flowers" / "flowers.tar").write_bytes(shard_of(0, [0, 1]))
    assert open_shards(tmp_path / "flowers", "validation").class_names == ("ant", "bee")


def _by_tarfile(root, pattern):
    found = []
    for path in sorted(root.glob(pattern)):
        with tarfile.open(path) as archive:
            names = archive.getnames()
            read = {name: archive.extractfile(name).read() for name in names}
        for name in names:
            if name.endswith(".jpg"):
                label = json.loads(read[name.replace(".jpg", ".json")])["label"]
                found.append((read[name], label))
    return found


def test_tars_are_read_in_their_order(tars):
    for split in ("train", "validation"):
        assert read_shards(tars, split) == _by_tarfile(tars, f"things-{split}-*.tar")
    source = open_shards(tars)
    assert source.class_names == open_shards(tars, "validation").class_names == ("0", "1", "2")
    assert source[4]["id"] == "things-train-0001.tar/dir/0004.jpg"
    (tars / "classes.txt").write_text("\ufeffant\nbee\ncat\n")
    assert open_shards(tars).class_names == ("ant", "bee", "cat")
    diagnosis = diagnose(tars, 1, quiet=True)
    assert diagnosis.data.layout == "webdataset"
    assert [(f.kind, f.name, f.detail) for f in diagnosis.findings] == [
        ("ignored_file", "README.md", "no .tar file"),
        ("empty_class", "cat", ""),
    ]


def test_imagenets_tars_have_wordnet_ids_and_names_that_agree(tmp_path):
    root = tmp_path / "wds"
    root.mkdir()
    labels = list(range(1000))
    files = {}
    for label in labels:
        files[f"{imagenet_wnids()[label]}_{label}.jpg"] = b"x"
        files[f"{imagenet_wnids()[label]}_{label}.cls"] = str(label).encode()
    (root / "imagenet1k-train-0000.tar").write_bytes(tar(files))
    assert open_shards(root).class_names == imagenet_wnids()
    files[f"{imagenet_wnids()[3]}_3.cls"] = b"4"
    (root / "imagenet1k-train-0000.tar").write_bytes(tar(files))
    with pytest.raises(UserError, match=r"n01491361_3\.jpg has label 4, which is n01494475"):
        open_shards(root)


@pytest.mark.parametrize("layout", ["tars", "parquet"])
def test_shards_pickle_and_are_read_from_threads(layout, request):
    path = request.getfixturevalue(layout)
    source = open_shards(path)
    want = [source[i] for i in range(len(source))]
    again = pickle.loads(pickle.dumps(source))
    indices = np.random.default_rng(0).integers(0, len(source), 200).tolist()
    with ThreadPoolExecutor(8) as pool:
        for i, record in zip(indices, pool.map(again.__getitem__, indices), strict=True):
            assert record == want[i]
    assert again.fingerprint == source.fingerprint == open_shards(path).fingerprint


def test_fingerprint_of_tars_changes_with_labels_and_order(tars):
    prints = {open_shards(tars).fingerprint, open_shards(tars, "validation").fingerprint}
    for labels in ([2, 0, 0], [0, 2, 1]):
        (tars / "things-train-0000.tar").write_bytes(shard_of(0, labels))
        prints.add(open_shards(tars).fingerprint)
    one, two = (tars / f"things-train-000{i}.tar" for i in range(2))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    prints.add(open_shards(tars).fingerprint)
    assert len(prints) == 5


def test_bad_tars(tars):
    shard = tars / "things-train-0000.tar"
    whole = shard.read_bytes()
    for size in (len(whole) // 2 // 512 * 512, 1536):
        shard.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"things-train-0000\.tar is cut off"):
            open_shards(tars)
    shard.write_bytes(b"no tar" * 500)
    with pytest.raises(UserError, match=r"things-train-0000\.tar is not a tar archive"):
        open_shards(tars)
    shard.write_bytes(tar({"a.jpg": b"x", "b.jpg": b"x", "b.cls": b"0", "._b.jpg": b"x"}))
    with pytest.raises(UserError, match=r"a\.jpg has no class: neither a number in a\.cls"):
        open_shards(tars)


@pytest.fixture
def parquet(tmp_path):
    root = tmp_path / "hf"
    (root / "data").mkdir(parents=True)
    for name, table in (
        ("train-00000-of-00002", table_of(0, [2, 0, 1, 1, 0])),
        ("train-00001-of-00002", table_of(5, [1, 2, 2], paths=False)),
        ("validation-00000-of-00001", table_of(8, [0, 1, 2])),
        ("test-00000-of-00001", table_of(11, [-1, -1])),
    ):
        pyarrow.parquet.write_table(table, root / "data" / f"{name}.parquet", row_group_size=2)
    (root / "README.md").write_text("x")
    return root


def test_parquet_is_read_in_its_order_with_its_class_names(parquet):
    for split in ("train", "validation"):
        want = []
        for path in sorted(parquet.glob(f"data/{split}-*.parquet")):
            for row in pyarrow.parquet.read_table(path).to_pylist():
                want.append((row["image"]["bytes"], row["label"]))
        assert read_shards(parquet, split) == want
    source = open_shards(parquet)
    assert source.class_names == ("ant", "bee", "cat")
    assert source[4]["id"] == "data/train-00000-of-00002.parquet/4.JPEG"
    assert source[6]["id"] == "data/train-00001-of-00002.parquet/1"
    with pytest.raises(UserError, match=r"test has 2 images whose label is not a class.* with -1"):
        open_shards(parquet, "test")
    diagnosis = diagnose(parquet, 1, quiet=True)
    assert diagnosis.data.layout == "Hugging Face parquet"
    assert [(f.kind, f.name) for f in diagnosis.findings] == [("ignored_file", "README.md")]


def test_parquet_without_names_has_numbers_and_missing_files_are_named(parquet):
    for i, labels in enumerate(([0, 1], [5, 0])):
        path = parquet / "data" / f"train-0000{i}-of-00002.parquet"
        pyarrow.parquet.write_table(table_of(i, labels, names=()), path)
    path = parquet / "data" / "validation-00000-of-00001.parquet"
    pyarrow.parquet.write_table(table_of(8, [0, 1], names=()), path)
    for split in ("train", "validation"):
        assert open_shards(parquet, split).class_names == tuple("012345")
    (parquet / "data" / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(UserError, match=r"train-00000-of-00002\.parquet is missing"):
        open_shards(parquet)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"validation-00000\S+ is not a parquet file, or is trunc"):
        open_shards(parquet, "validation")


@pytest.mark.parametrize("layout", ["tars", "parquet"])
def test_prepared_shards_have_the_same_records(layout, request, tmp_path):
    path = request.getfixturevalue(layout)
    prepare.main(
        [f"--folder={path}", "--name=x", f"--out={tmp_path}/out", "--workers=1", "--shard_mb=0.003"]
    )
    target = tmp_path / "out" / "x" / "1.0.0"
    assert len(list(target.glob("*train.array_record*"))) > 1
    for split in ("train", "validation"):
        source = open_shards(path, split)
        want = [source[i] for i in range(len(source))]
        if layout == "tars":  # in tfds's order
            want.sort(key=lambda r: hashlib.md5(f"{split}{r['id']}".encode()).digest())
        assert read_records(target, split) == want


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_hold_out_of_sorted_shards_has_every_class_and_slices_are_refused(tmp_path, kind, capsys):
    labels, root = [0] * 20 + [1] * 20 + [2] * 20, tmp_path / "in"
    root.mkdir()
    if kind == "tar":
        (root / "0.tar").write_bytes(shard_of(0, labels))
    else:
        pyarrow.parquet.write_table(table_of(0, labels), root / "0.parquet")
    with pytest.raises(UserError, match="has no validation split") as error:
        open_shards(root, "validation")
    share = float(re.search(r"--config\.data\.holdout=(\S+) keeps", str(error.value))[1])
    data = tiny_config(root).data
    data.source, data.holdout = "auto", share
    train, held = (sources.open_source(data, split) for split in ("train", "validation"))
    assert np.bincount(train.labels()).tolist() == [19] * 3
    assert np.bincount(held.labels()).tolist() == [1] * 3
    names = {source[i]["id"] for source in (train, held) for i in range(len(source))}
    assert len(names) == 60
    data.holdout, data.train_split, data.eval_split = 0.0, "train[:95%]", "train[95%:]"
    for split in (data.train_split, data.eval_split):
        with pytest.raises(UserError, match=r"2 classes of \S+ are in only one of .*holdout"):
            sources.open_source(data, split)
    prepare_folder.open_folder(root, "x")
    assert ("last 5% lack some classes" in capsys.readouterr().out) == (kind == "parquet")


def test_threads_in_as_many_row_groups_read_each_once_within_the_bound(tmp_path, monkeypatch):
    path, read = tmp_path / "0.parquet", []
    pyarrow.parquet.write_table(table_of(0, [0, 1] * 16), path, row_group_size=4)
    original = shard_files._read_row_group
    monkeypatch.setattr(
        shard_files, "_read_row_group", lambda *key: read.append(key) or original(*key)
    )
    rows, _ = shard_files.read_parquet_rows(path)
    for turn in range(4):  # eight threads, each in a row group of its own
        for row in rows[turn::4]:
            shard_files.read_parquet_image(path, row.offset)
    assert sorted(read) == [(str(path), group) for group in range(8)]
    bound = 3 * original(str(path), 0).nbytes
    monkeypatch.setattr(shard_files, "_CACHE_BYTES", bound)
    shard_files._cache.pop((str(path), 0))
    shard_files.read_parquet_image(path, rows[0].offset)
    assert 0 < sum(column.nbytes for column in shard_files._cache.values()) <= bound


@pytest.mark.parametrize("layout", ["tars", "parquet"])
def test_shards_beside_a_folder_of_pictures(layout, request):
    path = request.getfixturevalue(layout)
    want = read_shards(path, "validation")
    (path / "assets").mkdir()
    (path / "assets" / "teaser.png").write_bytes(jpeg(0, kind="PNG"))
    assert read_shards(path, "validation") == want
    ignored = {f.name for f in diagnose(path, 1, quiet=True).findings if f.kind == "ignored_file"}
    assert ignored >= {"assets", "README.md"}


def test_prepare_names_what_it_leaves_out_and_refuses_classes_in_another_order(
    parquet, tmp_path, capsys
):
    args = [f"--folder={parquet}", "--name=x", f"--out={tmp_path}/out", "--workers=1"]
    prepare.main(args)
    assert "the test split is left out; prepare takes only train" in capsys.readouterr().out
    table = table_of(8, [0, 1, 2], names=("bee", "ant", "cat"))
    pyarrow.parquet.write_table(table, parquet / "data" / "validation-00000-of-00001.parquet")
    with pytest.raises(UserError, match="train and validation differ in their classes: the same"):
        prepare.main([*args[:1], "--name=y", *args[2:]])


def test_the_official_archives_are_no_shards(tmp_path):
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar({"n01440764.tar": b"x"}))
    with pytest.raises(UserError, match="no data in config.data.path"):
        open_shards(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_where_tarfile_finds_them(tmp_path, kind):
    names = ["a.jpg", "d/" * 60 + "b.jpg", "long" * 30 + ".jpg", "é.jpg", "x" * 99 + "/c.jpg"]
    if kind == tarfile.USTAR_FORMAT:
        names = [name for name in names if "long" not in name]
    with tarfile.open(tmp_path / "x.tar", "w", format=kind) as archive:
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for i, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 500 * i, 1.5  # a fraction takes an extended header of pax
            archive.addfile(info, io.BytesIO(b"x" * info.size))
    with tarfile.open(tmp_path / "x.tar") as archive:
        want = [(m.name, m.offset_data, m.size) for m in archive if m.isreg()]
    found = shard_files.read_tar_members(tmp_path / "x.tar")
    assert list(found) == [(*member, True) for member in want]
    assert len(want) == len(names)
