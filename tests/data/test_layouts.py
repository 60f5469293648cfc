"""Data sets as people have them, against plain readers; tests/parity has ImageFolder."""

import csv
import io
import os
import re

import numpy as np
import pytest
from conftest import tiny_config
from miniatures import read_records
from PIL import Image

from imagenet_jax import config as config_io
from imagenet_jax.data import sources
from imagenet_jax.data.image_files import find_images
from imagenet_jax.data.sources import recognize
from imagenet_jax.doctor import __main__ as doctor_command
from imagenet_jax.doctor.diagnosis import diagnose
from imagenet_jax.errors import UserError
from imagenet_jax.prepare import __main__ as prepare
from imagenet_jax.prepare.imagenet import read_label_file

WNIDS = ("n01440764", "n01443537", "n02012849")


def _png(*value):
    file = io.BytesIO()
    Image.fromarray(np.array([[value]], np.uint8).repeat(40, 0).repeat(40, 1)).save(file, "PNG")
    return file.getvalue()


def _write(root, *names):
    """A small image of its own for every name."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(_png(i, len(name), 7))


def _open(path, split="train", **changes):
    data = tiny_config(path).data
    data.source = "auto"
    data.update(changes)
    return sources.open_source(data, split)


def _read(path, split="train"):
    source = _open(path, split)
    records = [source[i] for i in range(len(source))]
    return [(r["image"], source.class_names[r["label"]]) for r in records]


def _ignored(path):
    findings = diagnose(path, 1, quiet=True).findings
    return {(f.split, f.name): f.detail for f in findings if f.kind == "ignored_file"}


NESTED = (
    "b/2.png", "b/a/1.png", "b/a/x/0.png", "b/a-b/3.png", "a/z/deep/er/9.png", "a/10.png",
    "a/9.PNG", "c/z.png", "c/B.jpg", "c/é.png",
)  # fmt: skip


@pytest.fixture
def nested(tmp_path):
    """Class folders with folders in them, one of them linked, one of them a cycle."""
    _write(tmp_path / "x" / "train", *NESTED)
    _write(tmp_path, "elsewhere/linked.png", "elsewhere/in/linked.png")
    (tmp_path / "x" / "train" / "b" / "link").symlink_to(tmp_path / "elsewhere")
    return tmp_path / "x"


def test_nested_class_folders_with_links(nested):
    """The order is that of sorted(os.walk(...)), each folder's files sorted."""
    want = []
    for label, name in enumerate("abc"):
        for root, _, files in sorted(os.walk(nested / "train" / name, followlinks=True)):
            want += [(os.path.relpath(f"{root}/{f}", nested), label) for f in sorted(files)]
    source = _open(nested)
    assert [(source[i]["id"], source[i]["label"]) for i in range(len(source))] == want
    assert len(want) == len(NESTED) + 2
    (nested / "train" / "b" / "a" / "up").symlink_to(nested / "train" / "b")
    assert len(_open(nested)) == len(want)
    assert _ignored(nested) == {("train", "b/a/up"): "a link to a folder that contains it"}


@pytest.mark.parametrize("names", ["train val", "train valid", "Train Val", "TRAIN Validation"])
def test_folders_of_splits_by_their_usual_names(tmp_path, names):
    train, validation = names.split()
    _write(tmp_path / train, "ant/0.png", "bee/1.png")
    _write(tmp_path / validation, "ant/2.png", "bee/3.png", "bee/4.png")
    assert [name for _, name in _read(tmp_path)] == ["ant", "bee"]
    assert [name for _, name in _read(tmp_path, "validation")] == ["ant", "bee", "bee"]
    assert len(_open(tmp_path, validation)) == 3
    assert list(diagnose(tmp_path, 1, quiet=True).data.splits) == ["train", "validation"]


HIDDEN = ("._0.png", ".ipynb_checkpoints/0-checkpoint.png", "@eaDir/0.png", "__MACOSX/._0.png")


def test_hidden_entries_are_never_classes_or_images(tmp_path):
    _write(tmp_path / "train", "ant/0.png", "bee/1.png", *HIDDEN, *(f"ant/{h}" for h in HIDDEN))
    _write(tmp_path / "val", "ant/0.png", "bee/1.png", *HIDDEN)
    _write(tmp_path, ".Trash/train/x.png", "README.png")
    source = _open(tmp_path)
    assert source.class_names == ("ant", "bee")
    assert [source[i]["id"] for i in range(2)] == ["train/ant/0.png", "train/bee/1.png"]
    why = "hidden, or created by the system"
    tops = [name.partition("/")[0] for name in HIDDEN]
    assert _ignored(tmp_path) == {
        ("", ".Trash"): why,
        ("", "README.png"): "in no split",
        **{("train", f"ant/{top}"): why for top in tops},
        **{(split, top): why for split in ("train", "validation") for top in tops},
    }
    prepare.main([f"--folder={tmp_path}", "--name=x", f"--out={tmp_path}/out", "--workers=1"])
    records = read_records(tmp_path / "out" / "x" / "1.0.0", "train")
    assert {r["id"] for r in records} == {"ant/0.png", "bee/1.png"}


def test_hidden_folders_are_no_classes_of_a_hold_out(tmp_path):
    _write(tmp_path, *(f"{c}/{i}.png" for c in ("ant", "bee") for i in range(5)), *HIDDEN)
    assert _open(tmp_path, holdout=0.2).class_names == ("ant", "bee")
    assert len(_open(tmp_path, "validation")) == 10


def _cls_loc(tmp_path, bom=False):
    """Kaggle's ILSVRC; image i of validation is of class 2, 1, 0, 2, ..."""
    root = tmp_path / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC"
    _write(root / "train", *(f"{wnid}/{wnid}_{i}.JPEG" for wnid in WNIDS for i in range(3)))
    stems = [f"ILSVRC2012_val_{i:08d}" for i in range(1, 9)]
    _write(root / "val", *(f"{stem}.JPEG" for stem in stems))
    _write(root / "test", "ILSVRC2012_test_00000001.JPEG")
    (tmp_path / "kaggle" / "ILSVRC" / "Annotations").mkdir()
    with (tmp_path / "kaggle" / "LOC_val_solution.csv").open(
        "w", newline="", encoding="utf-8-sig" if bom else "utf-8"
    ) as file:
        rows = csv.writer(file)
        rows.writerow(["ImageId", "PredictionString"])
        for i, stem in reversed(list(enumerate(stems))):
            box = f"{WNIDS[2 - i % 3]} 85 1 499 272 "
            rows.writerow([stem, box * (1 + i % 2)])
    return tmp_path / "kaggle"


def _as_class_folders(files, target):
    """The same images where the usual script puts them, and what ImageFolder makes of them."""
    for path, wnid in files:
        (target / wnid).mkdir(parents=True, exist_ok=True)
        (target / wnid / path.name).write_bytes(path.read_bytes())
    return [(p.read_bytes(), p.parent.name) for p in sorted(target.glob("*/*"))]


@pytest.mark.parametrize("below", ["", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"])
@pytest.mark.parametrize("bom", [False, True])
def test_kaggles_cls_loc_from_any_folder_of_its_path(tmp_path, below, bom):
    kaggle = _cls_loc(tmp_path, bom)
    root = kaggle / "ILSVRC/Data/CLS-LOC"
    with (kaggle / "LOC_val_solution.csv").open(encoding="utf-8-sig") as file:
        truth = {row["ImageId"]: row["PredictionString"][:9] for row in csv.DictReader(file)}
    files = [(path, truth[path.stem]) for path in (root / "val").iterdir()]
    assert _read(kaggle / below, "validation") == _as_class_folders(files, tmp_path / "sorted")
    source = _open(kaggle / below)
    assert source.class_names == WNIDS == _open(kaggle / below, "val").class_names
    assert len(source) == 9
    assert recognize(kaggle / below).name == "Kaggle's ILSVRC/Data/CLS-LOC"


def test_kaggles_left_out_files_and_missing_labels(tmp_path, capsys):
    kaggle = _cls_loc(tmp_path)
    val = kaggle / "ILSVRC/Data/CLS-LOC/val"
    assert _ignored(kaggle) == {
        ("", "ILSVRC/Annotations"): "in no split",
        ("", "ILSVRC/Data/CLS-LOC/test"): "images without labels: it has no class folders",
    }
    assert doctor_command.main([str(kaggle), "--workers=1"]) == 0
    assert "Kaggle's ILSVRC/Data/CLS-LOC" in capsys.readouterr().out
    before = _open(kaggle, "validation").fingerprint
    text = (kaggle / "LOC_val_solution.csv").read_text()
    (kaggle / "LOC_val_solution.csv").write_text(text.replace(WNIDS[0], WNIDS[1], 1))
    assert _open(kaggle, "validation").fingerprint != before
    _write(val, "ILSVRC2012_val_00000009.JPEG")
    with pytest.raises(UserError, match=r"val_00000009\.JPEG is not in LOC_val_solution\.csv$"):
        _open(kaggle, "validation")
    (val / "ILSVRC2012_val_00000009.JPEG").unlink()
    (val / "ILSVRC2012_val_00000008.JPEG").unlink()
    with pytest.raises(UserError, match=r"val_00000008 is listed in LOC_val_solution"):
        _open(kaggle, "validation")
    (kaggle / "LOC_val_solution.csv").unlink()
    with pytest.raises(UserError, match=r"no validation split.*val is left out.*LOC_val_solution"):
        _open(kaggle, "validation")


def _tiny(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    _write(root / "train", *(f"{w}/images/{w}_{i}.JPEG" for w in WNIDS for i in range(4)))
    _write(root / "val" / "images", *(f"val_{i}.JPEG" for i in range(12)))
    _write(root / "test" / "images", "test_0.JPEG")
    for wnid in WNIDS:
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("x")
    rows = [f"val_{i}.JPEG\t{WNIDS[i * i % 3]}\t0\t32\t44\t62\n" for i in range(12)]
    (root / "val" / "val_annotations.txt").write_text("\ufeff" + "".join(rows))
    (root / "wnids.txt").write_text("\n".join(reversed(WNIDS)))
    return root


def test_tiny_imagenet(tmp_path):
    root = _tiny(tmp_path)
    files = [(root / "val" / "images" / f"val_{i}.JPEG", WNIDS[i * i % 3]) for i in range(12)]
    (root / "val" / "val_annotations.txt").write_text(
        (root / "val" / "val_annotations.txt").read_text().replace(WNIDS[2], WNIDS[1])
    )
    files = [(path, wnid.replace(WNIDS[2], WNIDS[1])) for path, wnid in files]
    assert _read(root, "validation") == _as_class_folders(files, tmp_path / "sorted")
    source = _open(root)
    assert source.class_names == WNIDS
    assert source[0]["id"] == f"train/{WNIDS[0]}/images/{WNIDS[0]}_0.JPEG"
    assert len(source) == 12
    diagnosis = diagnose(root, 1, quiet=True)
    assert diagnosis.data.layout == "tiny-imagenet"
    assert _ignored(root) == {
        ("", "test"): "images without labels: it has no class folders",
        ("", "wnids.txt"): "in no split",
        **{("train", f"{w}/{w}_boxes.txt"): "no image suffix" for w in WNIDS},
    }
    assert "different_classes" in {f.kind for f in diagnosis.findings}


@pytest.mark.parametrize("emptied", [False, True])
def test_tiny_imagenet_in_class_folders_with_its_annotations_left_behind(tmp_path, emptied):
    root = _tiny(tmp_path)
    lines = (root / "val" / "val_annotations.txt").read_text("utf-8-sig").splitlines()
    files = [(root / "val" / "images" / line.split()[0], line.split()[1]) for line in lines]
    want = _as_class_folders(files, tmp_path / "sorted")
    for path, wnid in files:
        (root / "val" / wnid).mkdir(exist_ok=True)
        path.rename(root / "val" / wnid / path.name)
    if not emptied:  # the empty folder stays otherwise
        (root / "val" / "images").rmdir()
    assert _read(root, "validation") == want
    assert _open(root, "validation").class_names == tuple(sorted({name for _, name in want}))


def test_a_missing_validation_split_is_said_with_advice_that_works(tmp_path, capsys):
    _write(tmp_path / "x" / "train", *(f"{c}/{i}.png" for c in ("a", "b") for i in range(9)))
    with pytest.raises(UserError, match="x has no validation split") as error:
        _open(tmp_path / "x", "validation")
    advice = re.search(r"data\.path=(\S+) --config\.data\.holdout=(\S+)", str(error.value))
    path, share = advice.groups()
    assert len(_open(path, "train", holdout=float(share))) == 16
    assert len(_open(path, "validation", holdout=float(share))) == 2
    findings = diagnose(tmp_path / "x", 1, quiet=True).findings
    assert [(f.kind, f.name) for f in findings] == [("no_validation", "validation")]
    args = [f"--folder={tmp_path / 'x'}", "--name=x", f"--out={tmp_path}/out", "--workers=1"]
    prepare.main(args)
    assert "has no validation split; it has train" in capsys.readouterr().out


def test_imagenetv2s_numeric_folders_keep_their_names(tmp_path):
    root = tmp_path / "imagenetv2-matched-frequency-format-val"
    _write(root, *(f"{i}/{i}.jpeg" for i in range(12)))
    source = _open(root, "validation")
    assert source.class_names == tuple(sorted(map(str, range(12))))
    assert [source[i]["id"] for i in range(3)] == [
        f"{root.name}/{name}/{name}.jpeg" for name in ("0", "1", "10")
    ]
    with pytest.raises(UserError, match="class folders without splits.*holdout=0.2"):
        _open(root, "train")


def test_loose_images_behind_links_are_found_once(nested):
    (nested / "train" / "b" / "up").symlink_to(nested)
    images, problems = find_images([str(nested)])
    want = [
        f"{root}/{file}"
        for root, folders, files in os.walk(nested, followlinks=True)
        if not (folders.remove("up") if "up" in folders else None)
        for file in files
    ]
    assert problems == []
    assert [image.name for image in images] == sorted(want)
    assert len(want) == len(NESTED) + 2


@pytest.mark.parametrize("text", ["n01440764\nn01443537\n", "a n01440764\nb n01443537\n"])
def test_a_byte_order_mark_is_no_part_of_the_first_label(tmp_path, text):
    path = tmp_path / "labels.txt"
    path.write_text(text, "utf-8-sig")
    assert read_label_file(path, ["a", "b"]) == {"a": 0, "b": 1}
    path.write_text(text, "utf-16")
    with pytest.raises(UserError, match=r"labels\.txt is not text in UTF-8"):
        read_label_file(path, ["a", "b"])


def test_a_byte_order_mark_in_config_json(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(config_io.to_json(tiny_config(tmp_path)), "utf-8-sig")
    plain = tmp_path / "plain.json"
    plain.write_text(path.read_text("utf-8-sig"))
    assert config_io.load(str(path)) == config_io.load(str(plain))
