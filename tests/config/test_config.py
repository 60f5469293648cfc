"""Loading, overriding, checking and comparing configs, and their JSON form."""

import functools
import importlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_jax import config as config_io
from imagenet_jax import models
from imagenet_jax.config import fields as defaults
from imagenet_jax.errors import UserError

CONFIGS = sorted(Path(__file__).parents[2].glob("configs/*.py"))
RESNET50 = str(Path(__file__).parents[2] / "configs/resnet50.py")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_no_config_is_longer_than_60_lines_and_20_for_each_further_variant(path):
    module = importlib.import_module(f"configs.{path.stem}")
    variants = len(getattr(module, "VARIANTS", "1"))
    assert len(path.read_text().splitlines()) <= 60 + 20 * (variants - 1)


def test_published_recipe_of_resnet50():
    c = config_io.load(RESNET50)
    assert (c.batch_size, c.epochs, c.optim.base_lr, c.optim.momentum) == (256, 90, 0.1, 0.9)
    assert (c.optim.weight_decay, c.optim.decay_bias_and_norm) == (1e-4, True)
    assert (c.optim.milestones, c.optim.decay_factor) == ((30, 60), 0.1)


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("optim.base_lr", "1", 1.0),
        ("optim.base_lr", "1e-3", 0.001),
        ("optim.nesterov", "true", True),
        ("batch_size", "512", 512),
        ("model.name", "resnet18", "resnet18"),
        ("optim.milestones", "(10,20.5)", (10.0, 20.5)),
        ("optim.milestones", "10,20", (10.0, 20.0)),
        ("optim.milestones", "15", (15.0,)),
        ("optim.milestones", "", ()),
    ],
)
def test_override_takes_the_type_of_the_field(field, text, value):
    config = config_io.load(RESNET50, [(field, text)])
    got = config_io.flatten(config)[field]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("optim.bass_lr", "1", r"config\.optim\.bass_lr .* did you mean config\.optim\.base_lr\?"),
        ("base_lr", "1", r"did you mean config\.optim\.base_lr\?"),
        ("optm.base_lr", "1", r"did you mean config\.optim\.base_lr\?"),
        ("nonsense", "1", r"config\.nonsense is not a field; --help_config lists them"),
        ("batch_size", "12.5", r"config\.batch_size = '12\.5' should be an integer"),
        ("batch_size", "many", r"config\.batch_size = 'many' should be an integer"),
        ("optim.base_lr", "high", r"config\.optim\.base_lr = 'high' should be a number"),
        ("optim.nesterov", "maybe", r"should be true or false"),
        ("optim.milestones", "(a,b)", r"should be a list of numbers"),
        ("optim", "3", r"config\.optim is a group; set one of its fields: "),
        ("optim.base_lr.x", "3", r"'base_lr' is a value and has no fields"),
        ("model.name", "resnet5", r"did you mean 'resnet50'\?"),
        ("model.dtype", "float16", r"config\.model\.dtype = 'float16': use float32 \| bfloat16"),
        ("optim.schedule", "cosin", r"did you mean 'cosine'\?"),
        ("batch_size", "0", r"config\.batch_size = 0 must be above 0"),
        ("optim.weight_decay", "-1", r"weight_decay = -1\.0 must be at least 0"),
        ("ema.decay", "1", r"must be at least 0 and below 1"),
        (
            "optim.grad_accum_steps",
            "3",
            r"config\.batch_size = 256 is not divisible by .*grad_accum_steps = 3",
        ),
        ("eval.image_size", "300", r"larger than config\.eval\.resize = 256"),
        ("optim.warmup_epochs", "100", r"must be less than config\.epochs"),
        ("augment.crop_scale", "(0.5,0.1)", r"must be \(low, high\)"),
        ("data.mean", "(0.5,)", r"must have 3 values"),
        ("model.stem", "tiny", r"config\.model\.stem = 'tiny'"),
    ],
)
def test_bad_override_is_one_line_that_names_the_field(field, text, message):
    with pytest.raises(UserError, match=message) as e:
        config_io.load(RESNET50, [(field, text)])
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def get_config(arg=''):\n  return 1 / 0", r"get_config fails: ZeroDivisionError"),
        ("import nothing_like_it", r"fails: ModuleNotFoundError"),
        ("x = 1", r"defines no get_config"),
        (
            "from imagenet_jax.config.fields import defaults\n"
            "def get_config(arg=''):\n  c = defaults()\n  c.optim.rate = 1.0\n  return c",
            r"config\.optim\.rate is not a field",
        ),
        (
            "from imagenet_jax.config.fields import defaults\n"
            "def get_config(arg=''):\n  c = defaults()\n  del c.ema\n  return c",
            r"config\.ema\.decay is missing",
        ),
    ],
)
def test_bad_config_file_is_one_line(tmp_path, source, message):
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(UserError, match=message) as e:
        config_io.load(str(path))
    assert "\n" not in str(e.value)


def test_missing_config_file_is_named():
    with pytest.raises(UserError, match=r"'configs/resnet51\.py' does not exist"):
        config_io.load("configs/resnet51.py")


def test_a_config_elsewhere_may_import_the_shipped_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_io.load(str(Path(RESNET50).with_name("resnet.py"))).model.name == "resnet18"


def test_argument_reaches_get_config(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from imagenet_jax.config.fields import defaults\n"
        "def get_config(arg=''):\n  c = defaults(arg or 'resnet50')\n  return c\n"
    )
    assert config_io.load(f"{path}:vgg11_bn").model.name == "vgg11_bn"


@pytest.mark.parametrize("name", models.names())
def test_json_and_back_is_the_same_config(name):
    config = config_io.check(defaults.defaults(name))
    again = config_io.from_json(config_io.to_json(config))
    assert config_io.flatten(again) == config_io.flatten(config)


def test_a_config_json_is_loaded_like_a_config_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(config_io.to_json(config_io.load(RESNET50, [("batch_size", "64")])))
    config = config_io.load(str(path), [("optim.base_lr", "0.5")])
    assert (config.batch_size, config.optim.base_lr) == (64, 0.5)
    path.write_text("{")
    for bad in (path, tmp_path / "none.json"):
        with pytest.raises(UserError, match=bad.name):
            config_io.load(str(bad))


@settings(max_examples=30)
@given(st.data())
def test_a_json_written_before_a_field_existed_has_its_default(data):
    config = defaults.defaults("resnet18")
    config.batch_size, config.optim.base_lr = 64, 0.5
    tree = json.loads(config_io.to_json(config_io.check(config)))
    usual = config_io.flatten(config_io.check(defaults.defaults("resnet18")))
    removable = sorted(usual.keys() - {"model.name"})
    gone = data.draw(st.lists(st.sampled_from(removable), unique=True, min_size=1))
    for field in gone:
        *groups, leaf = field.split(".")
        group = functools.reduce(dict.__getitem__, groups, tree)
        del group[leaf]
    tree = {k: v for k, v in tree.items() if v != {}}  # a group that did not exist either
    want = config_io.flatten(config) | {field: usual[field] for field in gone}
    assert config_io.flatten(config_io.from_json(json.dumps(tree))) == want


@settings(max_examples=30)
@given(lr=st.floats(0, 10), batch=st.integers(1, 4096), note=st.sampled_from(["resnet18", "vgg16"]))
def test_differences_name_exactly_what_differs(lr, batch, note):
    a = defaults.defaults("resnet50")
    b = defaults.defaults("resnet50")
    b.optim.base_lr, b.batch_size, b.data.threads = lr, batch, 7
    named = {line.split(":")[0] for line in config_io.differences(a, b)}
    want = {f for f, x, y in (("optim.base_lr", 0.1, lr), ("batch_size", 256, batch)) if x != y}
    assert named == want


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "does not hold a config"),
        ('{"seed": 0}', r"config\.model\.name = ''"),
        ('{"model": {"name": "resnet51"}}', r"did you mean 'resnet50'\?"),
        ('{"model": {"name": ["resnet50"]}}', r"config\.model\.name"),
        ('{"model": "resnet50"}', r"config\.model"),
        ('{"model": {"name": "vgg16", "stem": "small"}}', "does not belong to vgg16"),
        ('{"model": {"name": "vgg16"}, "speed": 1}', r"config\.speed is not a field"),
        ('{"model": {"name": "vgg16"}, "optim": 3}', r"config\.optim"),
        ('{"model": {"name": "vgg16"}, "seed": "1"}', r"config\.seed .* should be an integer"),
    ],
)
def test_damaged_config_json_is_a_user_error(text, message):
    with pytest.raises(UserError, match=message):
        config_io.from_json(text)
