"""Shards that are damaged or contradict themselves are refused in one line, and by name."""

import subprocess

import pyarrow
import pyarrow.parquet
import pytest
from miniatures import jpeg, tar
from shards import open_shards, read_shards, shard_of, table_of

from imagenet_jax.doctor.diagnosis import diagnose
from imagenet_jax.errors import UserError


@pytest.mark.parametrize("joined", ["tar", "names differ", "one sample each"])
def test_a_key_that_starts_again_never_gets_another_label(tmp_path, joined):
    """As GNU tar's `tar -A` joins two tars, whose keys both start at 0000."""
    second = {"0000.png": jpeg(9), "0000.cls": b"1", "0001.png": jpeg(8), "0001.cls": b"0"}
    first, again = shard_of(0, [0, 1]), shard_of(0, [1, 0])
    if joined != "tar":
        again = tar(second)
    if joined == "one sample each":
        first = tar({"0000.jpg": jpeg(0), "0000.cls": b"0"})
    (tmp_path / "train-0000.tar").write_bytes(first)
    assert len(open_shards(tmp_path)) == (1 if joined == "one sample each" else 2)
    (tmp_path / "more.tar").write_bytes(again)
    subprocess.run(["tar", "-Af", "train-0000.tar", "more.tar"], cwd=tmp_path, check=True)
    (tmp_path / "more.tar").unlink()
    with pytest.raises(UserError, match=r"train-0000\.tar/0000\.jpg appears twice; write the tar"):
        open_shards(tmp_path)
    findings = diagnose(tmp_path, 1, quiet=True).findings
    assert "appears twice" in {f.detail.partition(";")[0] for f in findings}


def test_members_of_a_sample_may_lie_apart(tmp_path):
    files = {"a.jpg": jpeg(0), "b.jpg": jpeg(1), "b.cls": b"0", "a.cls": b"1", "a.png": jpeg(2)}
    (tmp_path / "0.tar").write_bytes(tar({k: files[k] for k in list(files)[:4]}))
    assert read_shards(tmp_path) == [(files["a.jpg"], 1), (files["b.jpg"], 0)]
    adjacent = ("b.jpg", "b.cls", "a.jpg", "a.cls", "a.png")  # a second picture of one sample
    (tmp_path / "0.tar").write_bytes(tar({k: files[k] for k in adjacent}))
    assert read_shards(tmp_path) == [(files["b.jpg"], 0), (files["a.jpg"], 1)]


def test_names_in_a_tar_that_are_not_utf8(tmp_path, capsys):
    files = {"a.jpg": jpeg(0), "a.cls": b"0", "\udce9.jpg": jpeg(1), "\udce9.cls": b"0"}
    (tmp_path / "train.tar").write_bytes(tar(files))
    with pytest.raises(UserError, match=r"the name b'\S+train\.tar/\\xe9\.jpg' is not UTF-8"):
        open_shards(tmp_path)
    findings = diagnose(tmp_path, 1, quiet=True).findings
    assert ("unreadable", r"train.tar/\udce9.jpg") in {(f.kind, f.name) for f in findings}


def test_a_label_that_no_integer_of_32_bits_holds(tmp_path):
    (tmp_path / "0.tar").write_bytes(tar({"a.jpg": jpeg(0), "a.cls": b"9" * 20}))
    with pytest.raises(UserError, match=r"a\.jpg has no class"):
        open_shards(tmp_path)
    (tmp_path / "0.tar").unlink()
    pyarrow.parquet.write_table(table_of(0, [0, 2**40]), tmp_path / "0.parquet")
    with pytest.raises(UserError, match=r"1\.JPEG has label 1099511627776, which is not a class"):
        open_shards(tmp_path)


@pytest.mark.parametrize("label", [3, 7, -2])
def test_the_doctor_reports_labels_beyond_the_names(tmp_path, label):
    prints = set()
    for odd in (label, label + 10):
        pyarrow.parquet.write_table(table_of(0, [0, 1, 2, odd]), tmp_path / "0.parquet")
        diagnosis = diagnose(tmp_path, 1, quiet=True)
        found = [(f.kind, f.name, f.detail) for f in diagnosis.findings if f.kind == "bad_label"]
        assert found == [("bad_label", "0.parquet/3.JPEG", f"label {odd}")]
        prints.add(diagnosis.fingerprint)
    assert len(prints) == 2


@pytest.mark.parametrize("names", [("bee", "ant", "cat"), ()])
def test_parquet_files_with_other_class_names_are_refused(tmp_path, names):
    path = tmp_path / "data" / "train-00001-of-00002.parquet"
    path.parent.mkdir()
    first = tmp_path / "data" / "train-00000-of-00002.parquet"
    pyarrow.parquet.write_table(table_of(0, [0, 1]), first)
    pyarrow.parquet.write_table(table_of(5, [1, 2, 2], names=names), path)
    with pytest.raises(UserError) as error:
        open_shards(tmp_path)
    said = "the class names bee, ant, cat" if names else "no class names"
    assert str(error.value).endswith(
        "data/train-00000-of-00002.parquet has the class names ant, bee, cat, but "
        f"data/train-00001-of-00002.parquet has {said}; write both with the same class names"
    )


@pytest.mark.parametrize(
    ("labels", "kind"),
    [(["a", "b"], "string"), ([[0], [1]], "list"), ([0.0, 1.0], "double"), ([True, False], "bool")],
)
def test_a_label_column_that_is_not_of_integers(tmp_path, labels, kind):
    images = pyarrow.array([jpeg(0), jpeg(1)])
    table = pyarrow.table({"image": images, "label": labels})
    pyarrow.parquet.write_table(table, tmp_path / "0.parquet")
    with pytest.raises(UserError, match=rf"0\.parquet: column label has type {kind}.*convert it$"):
        open_shards(tmp_path)
