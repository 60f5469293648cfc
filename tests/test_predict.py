"""The predict command: files, folders and standard input in; a table, JSON or a page out."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import REPOSITORY
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file

from imagenet_jax import config as config_io
from imagenet_jax import convert, models, predict, progress
from imagenet_jax.data.classes import imagenet_names
from imagenet_jax.data.image_files import find_images
from imagenet_jax.training.load_weights import load_weights_file
from imagenet_jax.weights import state_dicts, weight_file


@pytest.fixture
def run(call_command, monkeypatch):
    """(exit code, standard output, standard error) of the command, on a machine that is fast."""
    monkeypatch.setattr(progress, "_SLOW_SECONDS", 1e6)
    monkeypatch.setattr(progress, "_FIRST_LINE", 1e6)
    return lambda *args: call_command(predict, args)


def photograph(seed, size=(16, 16)):
    """Smooth random colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Nineteen images, in a folder and two below it, beside a file that is none."""
    root = tmp_path_factory.mktemp("photos")
    for folder in ("b", "a/deep"):
        (root / folder).mkdir(parents=True)
    for i in range(19):
        photograph(i).save(root / ("", "b", "a/deep")[i % 3] / f"{i:02}.png")
    (root / "notes.txt").write_text("not an image, and not taken for one")
    return root


def probabilities_of(saved_run, images):
    """By the model as it was built, from the average weights, without any of our step."""
    config, state = saved_run.config, saved_run.state
    graph, params, stats = nnx.split(
        nnx.eval_shape(lambda: models.build(config.model, rngs=nnx.Rngs(0))),
        nnx.Param,
        nnx.BatchStat,
    )
    nnx.replace_by_pure_dict(params, jax.device_get(state.ema["params"]))
    nnx.replace_by_pure_dict(stats, jax.device_get(state.ema["batch_stats"]))
    pixels = (np.stack(images).astype(np.float64) / 255 - config.data.mean) / config.data.std
    logits = jax.jit(lambda x: nnx.merge(graph, params, stats)(x, train=False))(np.float32(pixels))
    powers = np.exp(np.asarray(logits, np.float64))
    return powers / powers.sum(axis=1, keepdims=True)


def test_every_file_below_a_folder_by_the_average_weights(saved_run, photos, run):
    # Batches of 8, the last one partly filled.
    args = [photos, f"--workdir={saved_run.workdir}", "--json", "--config.eval.batch_size=8"]
    code, out, err = run(*args)
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    found = sorted(photos.rglob("*.png"))
    assert [line["image"] for line in lines] == [str(path) for path in found]
    by_hand = probabilities_of(saved_run, [np.asarray(Image.open(path)) for path in found])
    for line, wanted in zip(lines, by_hand, strict=True):
        top = line["predictions"]
        assert len(top) == 5
        for one in top:
            assert one["class"] == str(one["label"])  # of the digits, from classes.json
            assert one["probability"] == pytest.approx(wanted[one["label"]], rel=1e-3, abs=1e-6)
        shown = [one["probability"] for one in top]
        assert shown == sorted(shown, reverse=True)
        assert shown[-1] >= np.sort(wanted)[-6] - 1e-6  # none that is left out is likelier


def test_table_names_each_image_once(saved_run, photos, run):
    files = [photos / "00.png", photos / "b" / "01.png"]
    code, out, err = run(*files, f"--workdir={saved_run.workdir}", "--top=2")
    assert (code, err) == (0, "")
    for file in files:
        assert out.count(str(file)) == 1  # whole, although standard output is no terminal
    assert len(re.findall(r"\d+\.\d\d%", out)) == 4


def test_standard_input(saved_run, photos, run, monkeypatch):
    path = photos / "00.png"
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(path.read_bytes())))
    code, out, _ = run("-", path, f"--workdir={saved_run.workdir}", "--json", "--top=99")
    assert code == 0
    stdin, file = (json.loads(line) for line in out.splitlines())
    assert stdin["image"] == "-"
    assert stdin["predictions"] == file["predictions"]
    assert len(stdin["predictions"]) == 10  # --top is at most all


def test_bad_files_are_reported_and_the_rest_are_done(saved_run, photos, tmp_path, run):
    good = photos / "00.png"
    cut, text, empty, folder = (tmp_path / n for n in ("cut.png", "text.jpg", "empty.gif", "none"))
    cut.write_bytes(good.read_bytes()[:60])
    text.write_text("an image, allegedly")
    empty.touch()
    folder.mkdir()
    gone = tmp_path / "[gone] & lost.png"
    page = tmp_path / "page.html"
    names = [gone, good, cut, text, empty, folder, photos / "b"]
    code, out, err = run(*names, f"--workdir={saved_run.workdir}", "--json", f"--html={page}")
    assert code == 1
    below = sorted((photos / "b").iterdir())
    assert [json.loads(x)["image"] for x in out.splitlines()] == [str(good), *map(str, below)]
    lines = err.splitlines()
    assert len(lines) == 5
    assert all(line.startswith("error: ") for line in lines)
    for path, word in (
        (gone, "No such file"),
        (cut, "cannot be decoded"),
        (text, "cannot be decoded"),
        (empty, "is empty"),
        (folder, "has no images"),
    ):
        assert sum(str(path) in line and word in line for line in lines) == 1, err
    assert "[gone] &amp; lost.png" in page.read_text()


class Page(HTMLParser):
    """Images, captions, bars and whatever refers to something outside."""

    def __init__(self, text):
        super().__init__()
        self.images, self.bars, self.values = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "img":
            self.images.append(attrs)
        if tag == "i":
            self.bars.append(float(attrs["style"].removeprefix("width:").removesuffix("%")) / 100)
        if tag == "data":
            self.values.append(float(attrs["value"]))
        assert tag not in ("script", "link", "iframe")
        assert "href" not in attrs


def test_page_is_self_contained(saved_run, photos, tmp_path, run):
    odd = tmp_path / '<b>"x"&.png'
    photograph(5).save(odd)
    page = tmp_path / "page.html"
    args = [odd, photos / "b", f"--workdir={saved_run.workdir}", "--top=3", f"--html={page}"]
    code, out, _ = run(*args, "--json")
    assert code == 0
    text = page.read_text("utf-8")
    assert "http" not in text
    shown = Page(text)
    predicted = [json.loads(line) for line in out.splitlines()]
    assert [image["alt"] for image in shown.images] == [line["image"] for line in predicted]
    values = [one["probability"] for line in predicted for one in line["predictions"]]
    assert shown.values == pytest.approx(values, rel=1e-5)
    assert shown.bars == pytest.approx(values, abs=1e-4)
    encoded = shown.images[0]["src"].partition(";base64,")[2]
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as thumbnail:
        difference = np.abs(np.asarray(thumbnail, int) - np.asarray(photograph(5), int))
    assert difference.mean() < 10  # JPEG's own


def test_weights_of_a_file_carry_their_class_names(saved_run, photos, tmp_path, run, monkeypatch):
    file = tmp_path / "w.safetensors"
    convert.main([f"--from={saved_run.workdir}", f"--to={file}"])
    monkeypatch.setattr(config_io, "load", lambda spec, overrides: saved_run.config)
    args = [photos / "00.png", "--json"]
    by_file = run(*args, f"--weights={file}", "--config=tiny.py")
    assert by_file == run(*args, f"--workdir={saved_run.workdir}")
    assert by_file[0] == 0


def test_class_names_by_the_number_of_classes(tiny, tmp_path, digits_path):
    def names(classes):
        tiny.model.num_classes = classes
        model = nnx.eval_shape(lambda: models.build(tiny.model, rngs=nnx.Rngs(0)))
        trees = [
            jax.tree.map(
                lambda x: np.zeros(x.shape, np.float32), nnx.to_pure_dict(nnx.state(model, kind))
            )
            for kind in (nnx.Param, nnx.BatchStat)
        ]
        path = tmp_path / "w.safetensors"
        weight_file.save(state_dicts.to_torch(*trees, tiny.model), path)
        return load_weights_file(path, tiny).class_names

    assert names(1000)[281] == "tabby"
    assert names(1000) == imagenet_names()
    assert names(7) == ()  # nobody knows
    tiny.data.source = "tfds"
    assert names(10) == tuple(map(str, range(10)))  # of the data, which is there
    tiny.data.path = str(tmp_path / "nowhere")
    assert names(10) == ()


def test_an_output_that_is_not_finite_is_an_error(saved_run, photos, tmp_path, run, monkeypatch):
    file = tmp_path / "w.safetensors"
    convert.main([f"--from={saved_run.workdir}", f"--to={file}"])
    broken = load_file(file)
    broken["fc.weight"][3] = 3e38  # finite, but the sum over features is not
    weight_file.save({f"net.{key}": array for key, array in broken.items()}, file)
    monkeypatch.setattr(config_io, "load", lambda spec, overrides: saved_run.config)
    code, out, err = run(photos / "00.png", f"--weights={file}", "--config=tiny.py", "--json")
    assert (code, out) == (1, "")
    assert "00.png: the model's output is not finite" in err
    assert f"weights file {file}: renamed 122, such as net." in err


def test_a_folder_is_read_in_the_order_of_paths(photos):
    images, problems = find_images([str(photos), "x.tmp", "-"])
    assert problems == []
    assert [i.name for i in images] == [*map(str, sorted(photos.rglob("*.png"))), "x.tmp", "-"]


CONFIG = f"--config={REPOSITORY}/configs/quickstart.py"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["x.png"], ["--workdir=DIR", "--weights=FILE with --config=FILE"]),
        (["x.png", "--weights=w.pth"], ["with --config=FILE"]),
        (["x.png", "--workdir=r", "--weights=w.pth", CONFIG], ["either"]),
        (["x.png", "--weights=w.pth", CONFIG, "--checkpoint=3"], ["--checkpoint", "--workdir"]),
        (["x.png", "--workdir=r", "--top=0"], ["--top=0"]),
        (["x.png", "--workdir=r", "--html=no/page.html"], ["--html=no/page.html", "folder no"]),
        (["x.png", "--workdir=r"], ["no config.json in r"]),
        (["x.png", "--weights=w.pth", CONFIG], ["w.pth does not exist"]),
        (["x.png", "--workdir={workdir}", "--checkpoint=4"], ["--checkpoint=4", "has 3"]),
        (["x.png", "--workdir={workdir}", "--config.eval.size=4"], ["config.eval.size"]),
    ],
)
def test_bad_arguments_are_one_line(args, words, saved_run, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*(arg.format(workdir=saved_run.workdir) for arg in args))
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    for word in words:
        assert word in err


def test_weights_of_another_model_are_refused(saved_run, photos, tmp_path, run):
    file = tmp_path / "w.safetensors"
    convert.main([f"--from={saved_run.workdir}", f"--to={file}"])
    code, _, err = run(photos, f"--weights={file}", CONFIG)
    assert code == 1
    assert "does not fit config.model: it holds resnet18, width 0.0625" in err
    assert "config.model has width=0.125: set --config.model.width=0.0625" in err
