"""The explain command: images and weights in, PNG files out."""

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image

from imagenet_jax import config as config_io
from imagenet_jax import convert, progress
from imagenet_jax.explain import __main__ as explain

METHODS = ("gradcam", "occlusion", "guided", "features")


@pytest.fixture(autouse=True)
def no_progress(monkeypatch):
    """Let slow machines print no progress on standard error."""
    monkeypatch.setattr(progress, "_SLOW_SECONDS", 1e6)
    monkeypatch.setattr(progress, "_FIRST_LINE", 1e6)


@pytest.fixture
def run(call_command):
    return lambda *args: call_command(explain, args)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two images with the same name in two folders, of the size of the model's input."""
    root = tmp_path_factory.mktemp("explained")
    for i, folder in enumerate(("a", "b")):
        (root / folder).mkdir()
        coarse = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((16, 16), Image.Resampling.BICUBIC)
        image.save(root / folder / "photo.png")
    return root


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_a_folder_receives_a_picture_for_each_method(run, saved_run, photos, tmp_path):
    out = tmp_path / "maps"
    code, printed, err = run(photos, f"--workdir={saved_run.workdir}", f"--out={out}")
    assert (code, err) == (0, "")
    kinds = [
        f"{stem}{end}" for stem in ("photo", "photo_2") for end in ("", *map("_{}".format, METHODS))
    ]
    assert {path.name for path in out.iterdir()} == {"filters.png", *(f"{k}.png" for k in kinds)}
    assert set(printed.split()) == {str(path) for path in out.iterdir()}
    for stem, folder in (("photo", "a"), ("photo_2", "b")):
        # Evaluation neither resizes nor crops 16x16 pixels; pictures are 14 times as large.
        given = pixels(photos / folder / "photo.png")
        np.testing.assert_array_equal(
            pixels(out / f"{stem}.png"), given.repeat(14, 0).repeat(14, 1)
        )
        for method in ("gradcam", "occlusion", "guided"):
            shown = pixels(out / f"{stem}_{method}.png")
            assert shown.shape == (224, 224, 3)
            assert shown.std() > 1


def test_class_and_layer_change_the_map(run, saved_run, photos, tmp_path):
    def map_of(*flags):
        flags = ("--methods=gradcam", f"--workdir={saved_run.workdir}", f"--out={tmp_path}", *flags)
        code, _, err = run(photos / "a", *flags)
        assert (code, err) == (0, "")
        return pixels(tmp_path / "photo_gradcam.png")

    one, other = map_of("--class=3"), map_of("--class=4")
    assert (one != other).any()
    assert (map_of("--class=3", "--layer=layer1.0.conv1") != one).any()
    np.testing.assert_array_equal(map_of("--class=3", "--layer=layer4.1.conv2"), one)


def test_weights_and_a_config_make_one_sheet(run, call_command, saved_run, photos, tmp_path):
    weights, sheet = tmp_path / "weights.safetensors", tmp_path / "sheet.png"
    config = tmp_path / "config.py"
    fields = config_io.to_json(saved_run.config)
    config.write_text(
        "import json\nfrom ml_collections import ConfigDict\n"
        f"def get_config(arg=''):\n    return ConfigDict(json.loads({fields!r}))\n"
    )
    assert call_command(convert, (f"--from={saved_run.workdir}", f"--to={weights}"))[0] == 0
    flags = (f"--weights={weights}", f"--config={config}", "--methods=guided,filters")
    code, printed, err = run(photos / "a" / "photo.png", *flags, f"--out={sheet}")
    assert (code, printed, err) == (0, f"{sheet}\n", "")
    height, width = pixels(sheet).shape[:2]
    assert width > 2 * height  # image, gradient and filters side by side
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.py",
        "sheet.png",
        "weights.safetensors",
    ]


def test_a_bad_image_does_not_stop_the_others(run, saved_run, photos, tmp_path):
    images = (REPOSITORY / "README.md", photos / "b", tmp_path / "none.png")
    flags = (f"--workdir={saved_run.workdir}", "--methods=guided", f"--out={tmp_path / 'out'}")
    code, _, err = run(*images, *flags)
    assert code == 1
    lines = err.splitlines()
    assert len(lines) == 2
    assert "README.md cannot be decoded" in lines[0]
    assert "none.png cannot be read" in lines[1]
    assert (tmp_path / "out" / "photo_guided.png").exists()


def test_layers_are_listed(run, saved_run):
    code, printed, _ = run(f"--workdir={saved_run.workdir}", "--layer=?")
    assert code == 0
    names = printed.split()
    assert (names[0], names[-1], len(names)) == ("conv1", "layer4.1.conv2", 20)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--layer=layer4.1.conv3",), ("layer4.1.conv3", "did you mean layer4.1.conv")),
        (("--layer=layer4.1.bn2",), ("no convolution", "--layer=?")),
        (("--class=10",), ("--class=10", "0 to 9")),
        (("--class=cat",), ("--class=cat", "0 to 9")),
        (("--square=17",), ("17 pixels", "16 pixels")),
        (("--square=0",), ("--square=0",)),
        (("--methods=gradcam,lime",), ("'lime'", "occlusion")),
        (("--methods=filters",), ("need an IMAGE",)),
        (("--methods=guided", "--layer=conv1"), ("--layer does nothing",)),
        (("--methods=features", "--class=1"), ("--class does nothing",)),
        (("--methods=gradcam", "--square=3"), ("--square does nothing",)),
        (("--weights=x.safetensors",), ("either --workdir", "--weights")),
    ],
)
def test_bad_flags(fails, saved_run, photos, tmp_path, flags, words):
    given = (photos / "a", f"--workdir={saved_run.workdir}", f"--out={tmp_path / 'x'}", *flags)
    fails(explain, given, *words)
    assert not (tmp_path / "x").exists()


def test_unwritable_output(fails, saved_run, photos, tmp_path):
    given = (photos / "a", f"--workdir={saved_run.workdir}", "--methods=guided")
    fails(explain, given, "--out=DIR")
    (tmp_path / "file").write_text("")
    for name in ("file", "file/sheet.png"):
        fails(explain, (*given, f"--out={tmp_path / name}"), "--out=", "cannot be written")


def test_progress_is_shown(run, saved_run, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "_SLOW_SECONDS", 0)
    monkeypatch.setattr(progress, "_FIRST_LINE", 0)
    given = (photos, f"--workdir={saved_run.workdir}", "--methods=gradcam", f"--out={tmp_path}")
    code, printed, err = run(*given)
    assert code == 0
    assert "explaining" not in printed
    for line in ("loading the weights ...", "compiling the explanations ..."):
        assert line in err.splitlines()
    assert "explaining images: 2 of 2 in" in err
