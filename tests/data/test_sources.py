"""Sources: tfds and we read alike, folders, digits, slices, fingerprints, errors."""

import io
import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import tiny_config
from PIL import Image

from imagenet_jax.data import builtin, sources, tfds_format
from imagenet_jax.data.decode import decode
from imagenet_jax.errors import UserError


def _data(path, source="auto", **changes):
    data = tiny_config(path).data
    data.source = source
    data.update(changes)
    return data


def _record(i):
    return {"image": bytes([i % 256]) * (i + 1), "label": i % 3, "id": f"name {i}"}


def _write(path, **splits):
    tfds_format.write_dataset(path, splits, ("a", "b", "c"), description="test")


@pytest.fixture
def things(tmp_path):
    path = tmp_path / "things" / "1.0.0"
    _write(path, train=map(_record, range(20)), validation=map(_record, range(5)))
    return path


def test_what_we_write_tfds_reads_as_we_do(things):
    import tensorflow_datasets as tfds

    ours = sources.open_source(_data(things), "train")
    theirs = tfds.builder_from_directory(str(things)).as_data_source(
        "train", decoders={"image": tfds.decode.SkipDecoding()}
    )
    assert len(ours) == len(theirs) == 20
    for i in range(20):
        record = ours[i]
        assert record == _record(i)
        assert record["image"] == theirs[i]["image"]
        assert record["label"] == theirs[i]["label"]
        assert record["id"] == theirs[i]["file_name"].decode()


def test_what_tfds_writes_we_read(tmp_path):
    """A data set that tfds's own builder prepared: its shuffle, shard names and features."""
    import tensorflow_datasets as tfds

    pixels = [np.full((4, 5, 3), 10 * i, np.uint8) for i in range(6)]

    class Theirs(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("2.0.0")
        pkg_dir_path = tmp_path

        def _info(self):
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(encoding_format="png"),
                        "label": tfds.features.ClassLabel(names=["x", "y"]),
                    }
                )
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, p in enumerate(pixels):
                file = io.BytesIO()
                Image.fromarray(p).save(file, "PNG")
                yield i, {"image": io.BytesIO(file.getvalue()), "label": i % 2}

    builder = Theirs(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    source = sources.open_source(_data(builder.data_dir), "train")
    assert source.class_names == ("x", "y")
    got = {}
    for i in range(6):
        image = decode(source[i]["image"])
        got[int(image[0, 0, 0]) // 10] = source[i]["label"]
        np.testing.assert_array_equal(image, np.full((4, 5, 3), image[0, 0, 0]))
        assert source[i]["id"].endswith(f"record {i}")
    assert got == {i: i % 2 for i in range(6)}


def test_tensorflow_is_never_imported(digits_path):
    code = (
        "import sys; from imagenet_jax.data import sources, builtin\n"
        "from imagenet_jax import train as loop\n"
        f"s = sources.open_tfds(__import__('pathlib').Path({str(digits_path)!r}), 'train')\n"
        "s[0]; assert not {'tensorflow', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_failed_write_leaves_nothing(tmp_path):
    def broken():
        yield _record(0)
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        _write(tmp_path / "things" / "1.0.0", train=broken())
    assert list((tmp_path / "things").iterdir()) == []


def test_digits_are_scikit_learns_in_a_fixed_stratified_split(digits_path):
    from sklearn.datasets import load_digits

    reference = load_digits()
    counts = {}
    seen = set()
    for split in ("train", "validation"):
        source = sources.open_source(_data(digits_path, "digits"), split)
        for i in range(len(source)):
            record = source[i]
            number = int(record["id"].removeprefix("digit_").removesuffix(".png"))
            assert record["label"] == reference.target[number]
            grey = decode(record["image"])[..., 0]
            np.testing.assert_allclose(grey / 255 * 16, reference.images[number], atol=0.04)
            seen.add(number)
            counts[split, record["label"]] = counts.get((split, record["label"]), 0) + 1
    assert seen == set(range(1797))
    assert sum(n for (split, _), n in counts.items() if split == "validation") == 360
    for label in range(10):
        share = counts["validation", label] / (reference.target == label).sum()
        assert abs(share - 0.2) < 0.006


def test_two_processes_may_prepare_at_once(tmp_path):
    path = tmp_path / "digits" / "1.0.0"
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=builtin.write_digits, args=(path,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert len(sources.open_tfds(path, "train")) == 1437
    assert [p.name for p in path.parent.iterdir()] == ["1.0.0"]


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        for name in ("n02", "n01"):
            directory = tmp_path / "images" / split / name
            directory.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 6), (i, 0, 0)).save(directory / f"{name}_{i}.JPEG")
            (directory / "notes.txt").write_text("not an image")
    return tmp_path / "images"


def test_folder_has_sorted_classes_and_val_stands_for_validation(folder):
    source = sources.open_source(_data(folder), "train")
    assert source.class_names == ("n01", "n02")
    assert [source[i]["id"] for i in range(6)] == [
        f"train/{name}/{name}_{i}.JPEG" for name in ("n01", "n02") for i in range(3)
    ]
    assert [source[i]["label"] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    assert len(sources.open_source(_data(folder), "validation")) == 4


@pytest.mark.parametrize("kind", ["tfds", "folder", "synthetic"])
def test_sources_pickle_and_read_the_same(kind, things, folder):
    path = things if kind == "tfds" else folder
    data = _data(path, kind)
    data.synthetic.update({"images": 40, "classes": 4, "height": 30, "width": 40})
    source = sources.open_source(data, "train")
    again = pickle.loads(pickle.dumps(source))
    assert [again[i] for i in range(5)] == [source[i] for i in range(5)]
    assert again.fingerprint == source.fingerprint


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("train", range(20)),
        ("train[:50%]", range(10)),
        ("train[50%:]", range(10, 20)),
        ("train[:99%]", range(19)),
        ("train[3:7]", range(3, 7)),
        ("train[18:100]", range(18, 20)),
        ("train[:]", range(20)),
    ],
)
def test_parts_of_a_split(things, text, want):
    source = sources.open_source(_data(things), text)
    assert [source[i] for i in range(len(source))] == [_record(i) for i in want]


def test_fingerprints_tell_splits_parts_and_contents_apart(things, folder, tmp_path):
    names = ("train", "validation", "train[:5]", "train[5:10]")
    prints = [sources.open_source(_data(things), name).fingerprint for name in names]
    assert len(set(prints)) == 4
    assert prints[0] == sources.open_source(_data(things), "train").fingerprint
    moved = tmp_path / "elsewhere"
    shutil.copytree(things, moved)
    assert sources.open_source(_data(moved), "train").fingerprint == prints[0]

    before = sources.open_source(_data(folder), "train").fingerprint
    (folder / "train" / "n01" / "n01_0.JPEG").write_bytes(b"longer or shorter")
    assert sources.open_source(_data(folder), "train").fingerprint != before


def _tfrecord(things):
    info = json.loads((things / "dataset_info.json").read_text())
    (things / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))


def _lose_shard(things):
    next(things.glob("*train*")).unlink()


def _cut_shard(things):
    shard = next(things.glob("*train*"))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])


def _break_json(things):
    (things / "dataset_info.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "split", "message"),
    [
        (None, "test", r"has no split 'test'; it has train, validation"),
        (None, "train[50", r"split 'train\[50': use NAME"),
        (None, "train[20:]", r"has no images"),
        (
            _tfrecord,
            "train",
            r"tfrecord.*tfds convert_format --dataset_version_dir=/.*=array_record --out_dir=",
        ),
        (_lose_shard, "train", r"lacks 1 of 1 shards"),
        (_cut_shard, "train", r"shard"),
        (_break_json, "train", r"not a readable tfds directory"),
    ],
)
def test_damaged_directories_are_one_line_errors(things, damage, split, message):
    if damage:
        damage(things)
    with pytest.raises(UserError, match=message) as e:
        sources.open_source(_data(things), split)
    assert len(str(e.value).splitlines()) == 1
    assert str(things) in str(e.value) or "split" in str(e.value)


def test_missing_path_says_what_was_looked_for(tmp_path):
    with pytest.raises(UserError, match=r"dataset_info\.json.*train/CLASS.*--config\.data\.path"):
        sources.open_source(_data(tmp_path / "nothing"), "train")


def test_the_folder_above_a_tfds_directory_is_no_folder_of_classes(things):
    with pytest.raises(UserError, match=rf"did you mean {things}\?"):
        sources.open_source(_data(things.parent), "train")
