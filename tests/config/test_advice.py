"""Advice in messages: every field and flag that it names exists, and following it helps."""

import ast
import re
from pathlib import Path

import pytest
from conftest import tiny_config

from imagenet_jax import config as config_io
from imagenet_jax import models
from imagenet_jax.config import fields as defaults
from imagenet_jax.errors import UserError
from imagenet_jax.training.experiment import make_experiment
from imagenet_jax.training.sharding import check_batch_size, make_mesh

PACKAGE = Path(__file__).parents[2] / "imagenet_jax"
SOURCES = sorted(PACKAGE.rglob("*.py"))
CONFIGS = PACKAGE.parent / "configs"
# Of git, tfds, argcomplete, our launchers' inner command, TensorBoard, XLA and CSS.
FOREIGN = {
    "--porcelain", "--dataset_version_dir", "--out_file_format", "--out_dir", "--muted",
    "--cells", "--logdir", "--parsable", "--user", "--xla_gpu_deterministic_ops",
}  # fmt: skip


def texts(path):
    """Yield the string literals of a file, with "{}" for what an f-string fills in."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = (v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
            yield "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def known_fields():
    fields = {"json"}  # config.json
    for name in models.names():
        for field in config_io.flatten(defaults.defaults(name)):
            parts = field.split(".")
            fields |= {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
    return fields


def known_flags():
    found = FOREIGN | {"--config", "--help"}
    for path in SOURCES:
        source = path.read_text()
        if "add_argument" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                found |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    return found


FIELDS, FLAGS, NAME = known_fields(), known_flags(), "[a-z][a-z_0-9]*"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_field_and_flag_in_a_text_exists(path):
    for text in texts(path):
        if path.name == "submit.py" and text.startswith("--"):
            continue  # an argument of sbatch
        for field in re.findall(rf"(?<![\w.])(?:--)?config\.({NAME}(?:\.{NAME})*)", text):
            assert field in FIELDS, text
        for flag in re.findall(rf"(?<![\w-])--{NAME}(?![\w.-])", text):
            assert flag in FLAGS, text


def test_a_wrong_name_would_be_found():
    assert "optim.base_lr" in FIELDS and "optim.rate" not in FIELDS and "optim" in FIELDS
    assert "--workdir" in FLAGS and "--work_dir" not in FLAGS and "--layer" in FLAGS


def remedies_in(message):
    """Return each remedy that a message names, as (field, text) pairs."""
    ways = []
    for part in message.split(" or "):
        pairs = re.findall(r"--config\.([\w.]+)=('[^']*'|[^\s;,]+)", part)
        ways += [pairs] if pairs else []
    for pattern in (
        r"config\.([\w.]+) = .*: leave it at (.+?), or",
        r"config\.([\w.]+) = .*did you mean '(\w+)'",
        r"config\.([\w.]+) = .*: use (\w+)",
        r"does nothing with config\.([\w.]+) = .*, or use (\w+)",
    ):
        if found := re.search(pattern, message):
            ways.append([found.groups()])
    return [[(field, text.strip("'")) for field, text in pairs] for pairs in ways]


def follow(spec, overrides, taken=()):
    """Follow every remedy until the config loads; return how many there were."""
    try:
        config_io.load(str(CONFIGS / spec), overrides)
        return 0
    except UserError as e:
        # Without those that set again what an earlier remedy set.
        ways = [way for way in remedies_in(str(e)) if way[0][0] not in dict(taken)]
        assert ways and len(taken) < 8, f"{overrides}: {e}"
        return sum(1 + follow(spec, [*overrides, *way], (*taken, *way)) for way in ways)


REFUSED = [
    ("resnet50.py", [("optim.trust_coefficient", "0.01")]),
    ("resnet50.py", [("optim.b1", "0.8")]),
    ("resnet50.py", [("optim.b1", "0"), ("optim.name", "schedule_free_sgd")]),
    ("resnet50.py", [("optim.decay_from", "0")]),
    ("resnet50.py", [("optim.name", "lamb"), ("optim.weight_decay_form", "decoupled")]),
    ("resnet50.py", [("loss.bce_reduction", "sum")]),
    ("resnet50.py", [("ema.every_steps", "2")]),
    ("resnet50.py", [("ema.form", "timm")]),
    ("resnet50.py", [("ema.power", "0.5")]),
    ("resnet50.py", [("nonfinite.skip_steps", "5")]),
    ("resnet50.py", [("optim.schedule", "cosin")]),
    ("resnet50.py", [("model.name", "resnet5")]),
    ("resnet50.py", [("model.dtype", "float16")]),
    ("resnet50.py", [("model.stem", "tiny")]),
    ("resnet50.py", [("model.blur_pool", "zang")]),
    ("resnet50.py", [("data.balance", "ovre")]),
    ("resnet50.py", [("optim.grad_accum_steps", "3")]),
    ("resnet50.py", [("model.bn_group", "24")]),
    ("resnet50.py", [("eval.image_size", "300")]),
    ("resnet50.py", [("optim.warmup_epochs", "90")]),
    ("resnet50.py", [("optim.decay_from", "95"), ("optim.schedule", "cosine")]),
    ("resnet50.py", [("optim.freeze_epochs", "1")]),
    ("resnet50.py", [("augment.mixup", "0.2"), ("augment.mix_prob", "0")]),
    ("resnet50.py", [("augment.auto_num_ops", "0"), ("augment.auto_augment", "randaugment")]),
    ("resnet50.py", [("augment.random_erase_fill", "noise")]),
    ("resnet50.py", [("augment.auto_magnitude", "5")]),
    ("resnet50.py", [("augment.size_ramp", "(1,2)")]),
    ("resnet50.py", [("debug.nans", "true"), ("nonfinite.policy", "rewind")]),
    ("resnet50.py", [("log.histograms_every_epochs", "1"), ("log.tensorboard", "false")]),
    ("resnet50.py", [("loss.name", "bce"), ("loss.bce_threshold", "0.2")]),
    ("resnet50.py:goyal8k", [("init.weights", "x.pth")]),
    ("resnet50.py:goyal8k", [("model.name", "vgg16_bn")]),
    ("resnet50.py:ffcv16", [("model.name", "vgg16_bn")]),
    ("resnet50.py:a3", [("optim.name", "sgd")]),
    ("resnet50.py:a3", [("optim.schedule", "step")]),
    ("resnet50.py:a3", [("loss.name", "softmax")]),
    ("resnet50.py:a1", [("augment.auto_augment", "none")]),
    ("resnet50.py:v2", [("ema.decay", "0")]),
    ("quickstart.py", [("optim.name", "adam")]),
    ("quickstart.py", [("ema.decay", "0"), ("ema.form", "timm")]),
    ("transfer.py", [("optim.name", "lars")]),
    ("vgg.py:vgg11", [("model.bn_group", "32")]),
]


@pytest.mark.parametrize(("spec", "overrides"), REFUSED, ids=lambda x: str(x)[:60])
def test_a_refused_config_loads_once_the_advice_is_followed(spec, overrides):
    assert follow(spec, overrides) >= 1


@pytest.mark.parametrize("size", [1, 4, 100, 252])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("group", [1, 12, 32])
def test_the_batch_sizes_that_a_message_proposes_work(size, parts, group):
    mesh = make_mesh()
    with pytest.raises(UserError) as e:
        check_batch_size("batch_size", size, mesh, parts, group)
    ways = remedies_in(str(e.value))
    assert ways
    for ((field, text),) in ways:
        config = defaults.defaults("resnet50")
        config.batch_size, config.optim.grad_accum_steps, config.model.bn_group = 24, parts, group
        config_io.apply_overrides(config, [(field, text)])
        config_io.check(config)
        check_batch_size("batch_size", config.batch_size, mesh, parts, group)


def test_the_shards_that_a_message_proposes_work():
    with pytest.raises(UserError, match="does not divide the 8 devices; use 1, 2, 4, 8") as e:
        make_mesh(3)
    for size in re.findall(r"\d", str(e.value).partition("use ")[2]):
        assert make_mesh(int(size)).shape["fsdp"] == int(size)


def test_the_number_of_classes_that_a_message_proposes_works(digits_path):
    config = tiny_config(digits_path)
    config.model.num_classes = 7
    with pytest.raises(UserError) as e:
        make_experiment(config)
    ((pair,),) = remedies_in(str(e.value))
    config_io.apply_overrides(config, [pair])
    assert make_experiment(config).config.model.num_classes == 10
