"""Class names of weights and data, through the commands: refused, mapped, or only some."""

import json

import numpy as np
import pytest
from flax import nnx

from imagenet_jax import config as config_io
from imagenet_jax import convert
from imagenet_jax import eval as eval_command
from imagenet_jax import main as main_command
from imagenet_jax import predict as predict_command
from imagenet_jax.data import builtin, pipeline, sources
from imagenet_jax.data.augment import normalize
from imagenet_jax.explain.explain import build_model
from imagenet_jax.training.load_weights import (
    load_run_weights,
    read_initial_weights,
    require_its_classes,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """folder(names, wanted): validation images of the digits in `wanted`, under other names."""
    records = builtin.make_digits()["validation"]

    def make(names, wanted=range(10)):
        root = tmp_path_factory.mktemp("folder")
        for label in wanted:
            for split in ("train", "val"):
                (root / split / names[label]).mkdir(parents=True)
            images = [r["image"] for r in records if r["label"] == label][:12]
            for i, image in enumerate(images):
                for split in ("train", "val"):
                    (root / split / names[label] / f"{i}.png").write_bytes(image)
        return root

    return make


@pytest.fixture(scope="module")
def file(saved_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    convert.main([f"--from={saved_run.workdir}", f"--to={path}"])
    return path


def on(root, *more):
    return ["--config.data.source=folder", f"--config.data.path={root}", *more]


@pytest.fixture
def load_tiny(saved_run, monkeypatch):
    """--config=tiny.py is the config of the saved run."""

    def load(spec, overrides):
        config = config_io.ConfigDict(saved_run.config.to_dict())
        for field, text in overrides:
            config_io.override(config, field, text)
        return config_io.check(config)

    monkeypatch.setattr(config_io, "load", load)


def evaluated(call_command, args):
    code, out, err = call_command(eval_command, [*args, "--json"])
    assert code == 0, err
    return json.loads(out)


def test_a_renamed_class_is_refused_and_the_file_that_the_error_asks_for_gives_the_same_result(
    saved_run, file, folder, load_tiny, fails, call_command, tmp_path
):
    names = list(map(str, range(10)))
    right = evaluated(call_command, [f"--workdir={saved_run.workdir}", *on(folder(names))])
    assert right["count"] == 120
    names[0] = "10"
    renamed = folder(names)
    words = ("class 0 is '1'", "but '0' in", "--config.data.class_order=FILE")
    for args in (
        [eval_command, [f"--workdir={saved_run.workdir}"]],
        [eval_command, [f"--weights={file}", "--config=tiny.py"]],
        [eval_command, [f"--weights={file}", "--config=tiny.py", f"--by_class={tmp_path}"]],
        [predict_command, ["x.png", f"--weights={file}", "--config=tiny.py"]],
        [predict_command, ["x.png", f"--workdir={saved_run.workdir}"]],
        [main_command, [f"--weights={file}", "--config=tiny.py", f"--workdir={tmp_path / 'new'}"]],
    ):
        fails(args[0], [*args[1], *on(renamed)], *words)
    assert not (tmp_path / "new").exists()

    (tmp_path / "order.txt").write_text("\n".join(names))
    order = f"--config.data.class_order={tmp_path / 'order.txt'}"
    mapped = evaluated(call_command, [f"--workdir={saved_run.workdir}", *on(renamed, order)])
    for field in ("count", "top1", "top5"):
        assert mapped[field] == right[field]
    assert mapped["loss"] == pytest.approx(right["loss"], rel=1e-6)


SOME = (0, 1, 2, 4, 5, 6, 9)


def test_some_of_the_classes_are_measured_by_their_logits_alone(
    saved_run, file, folder, load_tiny, call_command, tmp_path
):
    root = folder(list(map(str, range(10))), SOME)
    weights = load_run_weights(saved_run.workdir, "latest", [("data.source", "folder")])
    config = config_io.ConfigDict(saved_run.config.to_dict())
    config.data.source, config.data.path = "folder", str(root)
    # In NumPy, from all ten logits.
    (batch,) = pipeline.eval_batches(sources.open_source(config.data, "validation"), config)
    there, labels = batch["mask"] > 0, batch["label"][batch["mask"] > 0]
    images = normalize(batch["image"], config.data.mean, config.data.std, "float32")
    forward = nnx.jit(lambda model, images: model(images, train=False))
    logits = np.asarray(forward(build_model(weights), images), np.float64)[there]
    assert not set(logits.argmax(1)) <= set(SOME)  # the others would win
    logits = logits[:, SOME]
    own = logits[np.arange(len(labels)), labels]
    rank = (logits > own[:, None]).sum(1)
    loss = np.log(np.exp(logits - own[:, None]).sum(1)).mean()

    args = [f"--weights={file}", "--config=tiny.py", *on(root)]
    by_class = [f"--json={tmp_path / 'result.json'}", f"--by_class={tmp_path / 'by_class'}"]
    code, out, _ = call_command(eval_command, [*args, *by_class])
    assert code == 0
    assert "classes: 7 of 10" in out
    result = json.loads((tmp_path / "result.json").read_text())
    of_run = evaluated(call_command, [f"--workdir={saved_run.workdir}", *on(root)])
    for one in (result, of_run):
        assert (one["classes"], one["of_classes"]) == (7, 10)
        assert one["count"] == len(labels) == 84
        assert one["top1"] == pytest.approx((rank < 1).mean())
        assert one["top5"] == pytest.approx((rank < 5).mean())
        assert 0.1 < one["top5"] < 1
        assert one["loss"] == pytest.approx(loss, rel=1e-4)
    (table,) = (tmp_path / "by_class").glob("*_by_class.json")
    table = json.loads(table.read_text())
    assert [row["name"] for row in table["classes"]] == list(map(str, SOME))
    assert table["accuracy"] == pytest.approx((rank < 1).mean())


def test_a_head_of_other_classes_starts_anew_where_that_is_asked_for(
    file, folder, load_tiny, fails, tmp_path
):
    root = folder([f"kind {i}" for i in range(10)])
    args = [f"--weights={file}", "--config=tiny.py", f"--workdir={tmp_path / 'run'}", *on(root)]
    fails(main_command, args, "class 0 is 'kind 0'", "but '0' in", "--config.init.new_head=true")
    config = config_io.load("tiny.py", [("init.weights", str(file)), ("init.new_head", "true")])
    initial = read_initial_weights(config)
    assert "fc" not in initial.params
    assert "except for the head" in initial.summary
    config = config_io.ConfigDict(config.to_dict())
    config.data.source, config.data.path = "folder", str(root)
    require_its_classes(initial, sources.open_source(config.data, "train"))
    flags = ["--config=tiny.py", "--config.init.new_head=true", "--workdir=x"]
    fails(main_command, flags, "new_head")
