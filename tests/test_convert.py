"""The convert command: files and workdirs in, torchvision's layout out."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from imagenet_jax import convert, models
from imagenet_jax.config.fields import defaults
from imagenet_jax.errors import UserError
from imagenet_jax.training.checkpoint import Checkpoints, Position
from imagenet_jax.weights import state_dicts, weight_file


def state_dict_of(name, classes=7, width=1 / 8, **fields):
    """A state dict of random values with the keys and shapes of the model."""
    from flax import nnx

    config = defaults(name).model
    config.update({"num_classes": classes, "width": width, **fields})
    model = nnx.eval_shape(lambda: models.build(config, rngs=nnx.Rngs(0)))
    _, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    rng = np.random.default_rng(0)
    trees = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32),
        (nnx.to_pure_dict(params), nnx.to_pure_dict(stats)),
    )
    return state_dicts.to_torch(*trees, config)


def keys_of(name, width):
    """The keys and shapes of the model, with zeros of one byte, and its config."""
    config = defaults(name).model
    config.update(num_classes=7, width=width)
    trees = jax.tree.map(lambda x: np.zeros(x.shape, bool), models.outline(config)[1:])
    return state_dicts.to_torch(*trees, config), config


# In `make test`: the smallest of each family, and those whose shapes a wider model has too.
IN_CI = {family.variants[0] for family in models.families()} | {"convnext_base", "vit_b16"}


@pytest.mark.parametrize(
    "name",
    [
        name if name in IN_CI else pytest.param(name, marks=pytest.mark.full)
        for name in models.names()
        if not name.startswith("bit")
    ],
)
def test_every_model_is_identified_by_its_keys(name):
    arrays, config = keys_of(name, 1.0)
    has_twin = "conv_stem.weight" in arrays  # in timm, with other padding
    found = state_dicts.identify(arrays, name if has_twin else "")
    assert found["name"] == name
    assert found.items() <= dict(config).items()


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "convnext_base", "vit_s16"])
def test_widths_are_identified_given_the_name(name):
    """The last two have the shapes of a wider convnext_small and vit_ti16."""
    arrays, config = keys_of(name, 1 / 8)
    assert state_dicts.identify(arrays, name).items() <= dict(config).items()


@pytest.mark.parametrize("name", [n for n in models.names() if n.startswith("bit")])
def test_bit_is_identified_by_its_keys_and_its_stem(name):
    depths, factor = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)}, name[-1]
    keys = {
        f"stages.{stage}.blocks.{block}.conv1.weight": np.zeros((1, 1, 1, 1))
        for stage, depth in enumerate(depths[name[5:-2]])
        for block in range(depth)
    }
    keys["stem.conv.weight"] = np.zeros((64 * int(factor), 3, 7, 7))
    keys["head.fc.weight"] = np.zeros((7, 1, 1, 1))  # timm's names, and its convolution as head
    assert state_dicts.identify(keys) == {"name": name, "num_classes": 7, "width": 1}


def test_a_small_stem_is_identified_by_its_kernel():
    fields = {"stem": "small"}
    assert (
        state_dicts.identify(state_dict_of("resnet18", width=1.0, **fields)).items()
        >= fields.items()
    )


def test_a_file_comes_out_as_it_went_in(tmp_path, capsys):
    given = state_dict_of("resnet34")
    save_file(given, tmp_path / "in.safetensors")
    args = [f"--from={tmp_path}/in.safetensors", f"--to={tmp_path}/out.safetensors"]
    assert convert.main(args) == 0
    written = load_file(tmp_path / "out.safetensors")
    assert written.keys() == given.keys()
    for key, array in given.items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(written[key], array)
    trained = sum(v.size for k, v in given.items() if "running" not in k and "num_b" not in k)
    out = capsys.readouterr().out
    assert f"out.safetensors: resnet34, width 0.125, 7 classes, {trained:,} parameters" in out


def test_a_workdir_comes_out_with_its_average_and_its_class_names(saved_run, tmp_path):
    target = tmp_path / "w.safetensors"
    workdir, config, state = saved_run
    assert convert.main([f"--from={workdir}", f"--to={target}", "--model=resnet18"]) == 0
    written = load_file(target)
    assert len(written) == 122  # torchvision's entries
    kernel = state.ema["params"]["layer3"][1]["conv2"]["kernel"]
    np.testing.assert_array_equal(
        written["layer3.1.conv2.weight"], np.einsum("hwio->oihw", np.asarray(kernel))
    )
    state_dicts.from_torch(written, config.model)
    with safe_open(target, framework="numpy") as file:
        names = json.loads(file.metadata()["class_names"])
    assert names == [str(digit) for digit in range(10)]
    again = tmp_path / "again.safetensors"  # a conversion of the conversion keeps them
    convert.main([f"--from={target}", f"--to={again}"])
    assert weight_file.load_class_names(again) == tuple(names)


@pytest.fixture(scope="module")
def several(saved_run, tmp_path_factory):
    """(workdir, {step: EMA kernel of the stem}) of four checkpoints, the last not evaluated."""
    workdir = tmp_path_factory.mktemp("several") / "run"
    shutil.copytree(saved_run.workdir, workdir, ignore=shutil.ignore_patterns("checkpoints"))
    checkpoints, kernels = Checkpoints(workdir / "checkpoints", keep=9), {}
    saved = jax.device_get(saved_run.state)
    for step, top1 in ((10, 0.3), (20, 0.1), (30, 0.2), (40, None)):
        ema = jax.tree.map(lambda x, step=step: x * step + step / 7, saved.ema)
        state = saved.replace(step=np.int32(step), ema=ema)
        state = jax.device_put(state, jax.devices()[0])  # saving replicas compiles programs
        metrics = None if top1 is None else {"top1": top1}
        position = Position(data={}, interval={})
        checkpoints.save(state, position, config={}, provenance={}, metrics=metrics)
        kernels[step] = np.asarray(ema["params"]["conv1"]["kernel"], np.float64)
    checkpoints.close()
    assert not checkpoints.failures()
    return workdir, kernels


@pytest.mark.parametrize(
    ("args", "steps"),
    [
        (["--average=3"], [20, 30, 40]),
        (["--average=2", "--checkpoint=best"], [10, 30]),
        (["--average=1", "--checkpoint=best"], [10]),
    ],
)
def test_the_mean_of_checkpoints(args, steps, several, tmp_path):
    workdir, kernels = several
    target = tmp_path / "w.safetensors"
    assert convert.main([f"--from={workdir}", f"--to={target}", *args]) == 0
    want = np.mean([kernels[step] for step in steps], axis=0)
    got = load_file(target)["conv1.weight"]
    np.testing.assert_allclose(got, np.einsum("hwio->oihw", want), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--average=5"], "has 4 checkpoints, fewer than 5"),
        (["--average=4", "--checkpoint=best"], "has 3 checkpoints with a finite top1"),
        (["--average=2", "--checkpoint=20"], "'latest' or 'best'"),
        (["--average=0"], "--average=0 must be 1 or more"),
    ],
)
def test_checkpoints_that_cannot_be_averaged(args, words, several, tmp_path):
    with pytest.raises(UserError, match=words):
        convert.main([f"--from={several[0]}", f"--to={tmp_path}/w.safetensors", *args])


def test_metadata_of_other_programs_is_not_used_as_class_names(tmp_path):
    for i, text in enumerate(("ant, bee", '{"0": "ant"}')):
        path = tmp_path / f"{i}.safetensors"
        save_file({"x": np.zeros(1)}, path, {"class_names": text})
        assert weight_file.load_class_names(path) == ()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--from=nope.safetensors", "--to=x.safetensors"], ["nope.safetensors", "not exist"]),
        (["--from=18.safetensors", "--to=x.pth"], [".safetensors, not x.pth"]),
        (["--from=18.safetensors", "--to=no/x.safetensors"], ["folder no does not exist"]),
        (
            ["--from=18.safetensors", "--to=x.safetensors", "--model=resnet50"],
            [
                "18.safetensors does not fit resnet50",
                "it holds resnet18, width 0.125, stem imagenet, 7 classes",
            ],
        ),
        (
            ["--from=18.safetensors", "--to=x.safetensors", "--model=vgg16"],
            [
                "18.safetensors does not fit vgg16",
                "it holds resnet18, width 0.125, stem imagenet, 7 classes",
            ],
        ),
        (
            ["--from=18.safetensors", "--to=x.safetensors", "--model=resnet19"],
            ["'resnet19'", "did you mean"],
        ),
        (
            ["--from=other.safetensors", "--to=x.safetensors"],
            ["other.safetensors is not a state dict of ", "encoder.weight"],
        ),
        (["--from=text.safetensors", "--to=x.safetensors"], ["text.safetensors cannot be read"]),
        (["--from=.", "--to=x.safetensors"], ["no config.json"]),
        (
            ["--from=.", "--to=x.safetensors", "--weights_key=ema"],
            ["--weights_key goes with a file"],
        ),
        (
            ["--from=18.safetensors", "--to=x.safetensors", "--weights_key=model_ema"],
            ["18.safetensors has no state dict 'model_ema'"],
        ),
        (
            ["--from=backbone.safetensors", "--to=x.safetensors"],
            [
                "holds resnet18, width 0.125, stem imagenet, without a classifier",
                "imagenet_jax.main --weights=FILE",
            ],
        ),
        (["--from=18.safetensors", "--to=x.safetensors", "--checkpoint=best"], ["a workdir"]),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(args, words, tmp_path, monkeypatch, fails):
    monkeypatch.chdir(tmp_path)
    save_file(state_dict_of("resnet18"), "18.safetensors")
    backbone = {k: v for k, v in state_dict_of("resnet18").items() if not k.startswith("fc.")}
    save_file(backbone, "backbone.safetensors")
    save_file({"encoder.weight": np.zeros((3, 3))}, "other.safetensors")
    (tmp_path / "text.safetensors").write_text("weights, allegedly")
    fails(convert, args, *words)
    assert not list(tmp_path.glob("x.*"))


def test_a_workdir_of_another_model_is_refused(saved_run, tmp_path):
    with pytest.raises(UserError, match=r"--model=vgg11, but checkpoint .* is of resnet18"):
        convert.main(
            [f"--from={saved_run.workdir}", f"--to={tmp_path}/w.safetensors", "--model=vgg11"]
        )
