"""Extreme values, and configs in unusual places: they load, or a one-line error says why not."""

import functools
import json
import math
import sys
from pathlib import Path

import jax
import pytest
from conftest import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_jax import config as config_io
from imagenet_jax import models
from imagenet_jax.config import fields as defaults
from imagenet_jax.config import python_files
from imagenet_jax.config.rules import warnings
from imagenet_jax.data.pipeline import Resolution
from imagenet_jax.data.sampler import steps_per_epoch
from imagenet_jax.data.sources import open_source
from imagenet_jax.debug.recipe import describe_recipe
from imagenet_jax.errors import UserError, expand_user
from imagenet_jax.logs import recorder
from imagenet_jax.training import losses, optim, schedules
from imagenet_jax.training.experiment import make_experiment
from imagenet_jax.training.layer_groups import make_fine_tuning
from imagenet_jax.training.state import make_ema_step_size

CONFIGS = Path(__file__).parents[2] / "configs"
# One model of each family, with batch norm if there is one.
FAMILIES = tuple(
    "vgg11_bn" if "vgg11_bn" in family.variants else family.variants[0]
    for family in models.families()
)
EXTREMES = ["inf", "-inf", "nan", "-1", "0", "1e400", "-1e400", str(10**20), "1e38", "1e-320"]
EXTREMES += [f"({text})," for text in EXTREMES] + ["1" * 5000, f"({10**400},)", "(" * 500]


def numeric_fields(model):
    flat = config_io.flatten(defaults.defaults(model))
    return [name for name, value in flat.items() if not isinstance(value, str | bool)]


FIELDS = sorted({(model, field) for model in FAMILIES for field in numeric_fields(model)})


def use(config):
    """Compute what a run computes from the numbers of a config before it reads data."""
    per_epoch = steps_per_epoch(1000, config.batch_size)
    schedule = schedules.make_schedule(
        config.optim, batch_size=config.batch_size, steps_per_epoch=per_epoch,
        total_steps=min(max(1, math.ceil(config.epochs * per_epoch)), 2**31 - 1),
    )  # fmt: skip
    rate = jax.eval_shape(schedule, jax.ShapeDtypeStruct((), "int32"))
    assert rate.shape == ()
    make_fine_tuning(config, per_epoch)
    Resolution.from_config(config.augment, per_epoch).at(7)
    make_ema_step_size(config, 1)
    assert 0 <= config.seed < 2**32  # all that jax.random.key looks at
    json.loads(config_io.to_json(config), parse_constant=pytest.fail)


@settings(max_examples=300)
@given(st.sampled_from(FIELDS), st.sampled_from(EXTREMES))
def test_an_extreme_number_loads_or_is_refused_in_one_line(model_field, text):
    model, field = model_field
    config = defaults.defaults(model)
    try:
        config_io.apply_overrides(config, [(field, text)])
        config_io.check(config)
    except UserError as e:
        assert field.rpartition(".")[2] in str(e) and "\n" not in str(e)
        assert len(str(e)) < 6000
        return
    use(config)


@settings(max_examples=200)
@given(
    st.sampled_from(FIELDS),
    st.sampled_from([math.inf, math.nan, -1.0, 10**20, -(10**20), 10**400, 2**31, 0, []]),
)
def test_an_extreme_number_in_a_json_config_does_too(model_field, value):
    model, field = model_field
    tree = json.loads(config_io.to_json(defaults.defaults(model)))
    *groups, leaf = field.split(".")
    group = functools.reduce(dict.__getitem__, groups, tree)
    group[leaf] = [value] if isinstance(group[leaf], list) else value
    try:
        config = config_io.from_json(json.dumps(tree))
    except UserError as e:
        assert leaf in str(e) and "\n" not in str(e)
        return
    use(config)


def test_json_that_python_refuses():
    for text in ('{"seed": ' + "1" * 5000 + "}", "[" * 100_000):
        with pytest.raises(UserError, match="not valid JSON"):
            config_io.from_json(text)


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("epochs", "inf", r"config\.epochs = inf must be a number of at most"),
        ("epochs", "nan", r"config\.epochs = nan must be"),
        ("optim.milestones", "(1e400,)", r"config\.optim\.milestones = inf must be"),
        ("optim.milestones", "(-1,)", r"config\.optim\.milestones .* at least 0"),
        ("seed", "9" * 20, r"config\.seed = 9{20} must be a number of at most 4294967295"),
        ("seed", str(2**32), r"config\.seed = 4294967296 must be"),
        ("data.std", "(0.2,0,0.2)", r"config\.data\.std = .* above 0"),
        ("optim.power", "-1", r"config\.optim\.power = -1\.0 must be at least 0"),
        ("model.width", "1e9", r"config\.model\.width = 1000000000\.0"),
        ("log.watchdog_seconds", "1e30", r"config\.log\.watchdog_seconds = 1e\+30 must be"),
    ],
)
def test_a_number_out_of_range_is_named(field, text, message):
    with pytest.raises(UserError, match=message):
        config_io.load(str(CONFIGS / "resnet50.py"), [(field, text)])


def test_a_config_imports_its_neighbors_and_not_those_of_another_folder(tmp_path):
    for name, batch in (("a", 32), ("b", 64)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "common.py").write_text(f"BATCH = {batch}\n")
        (tmp_path / name / "late.py").write_text("WIDTH = 0.5\n")
        (tmp_path / name / "mine.py").write_text(
            "from imagenet_jax.config.fields import defaults\n"
            "import common\n"
            "def get_config(arg=''):\n"
            "  from late import WIDTH\n"
            "  c = defaults()\n  c.batch_size, c.model.width = common.BATCH, WIDTH\n  return c\n"
        )
    path = list(sys.path)
    loaded = [config_io.load(str(tmp_path / name / "mine.py")).batch_size for name in "ab"]
    assert loaded == [32, 64]
    assert sys.path == path and not {"common", "late"} & set(sys.modules)


def test_a_config_at_the_root_of_the_file_system():
    with python_files.importing_beside("/x.py"):
        assert sys.path[:2] == ["/", "/"]
    with pytest.raises(UserError, match=r"'/no_such_config\.py' does not exist"):
        config_io.load("/no_such_config.py")


def test_a_config_that_returns_something_else(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config(arg=''):\n  return {'seed': 1}\n")
    with pytest.raises(UserError, match="get_config returns dict; return the ConfigDict"):
        config_io.load(str(tmp_path / "mine.py"))


@pytest.mark.parametrize("new", FAMILIES)
@pytest.mark.parametrize("old", FAMILIES)
def test_another_family_brings_its_own_fields(old, new):
    config = defaults.defaults(old)
    config.model.num_classes = 7
    config_io.apply_overrides(config, [("batch_size", "8"), ("model.name", new)])
    want = defaults.defaults(new)
    want.batch_size, want.model.num_classes = 8, 7
    assert config_io.check(config) == config_io.check(want)


def test_a_field_of_the_new_family_may_be_set_before_or_after_its_name():
    for order in (1, -1):
        overrides = [("model.dropout", "0.25"), ("model.name", "vgg11")][::order]
        config = config_io.load(str(CONFIGS / "resnet50.py"), overrides)
        assert (config.model.name, config.model.dropout) == ("vgg11", 0.25)


def test_a_changed_field_of_the_old_family_is_refused_until_the_advice_is_taken():
    overrides = [("model.name", "vgg11"), ("model.bn_group", "0")]
    spec = f"{CONFIGS / 'resnet50.py'}:goyal8k"
    with pytest.raises(UserError, match=r"model\.zero_init_residual = True does not belong") as e:
        config_io.load(spec, overrides)
    field, _, text = str(e.value).partition("set --config.")[2].partition(" ")[0].partition("=")
    assert config_io.load(spec, [*overrides, (field, text)]).model.name == "vgg11"


@pytest.mark.parametrize(
    ("name", "rule"),
    [("sgd", "linear"), ("lars", "linear"), ("adam", "none"), ("adamw", "none"), ("lamb", "none")],
)
def test_learning_rates_of_adam_are_not_scaled(name, rule):
    config = defaults.defaults()
    config.optim.update({"name": name, "base_lr": 0.001})
    assert config_io.check(config).optim.lr_scaling == rule
    factor = 32 / 256 if rule == "linear" else 1
    assert schedules.peak_learning_rate(config.optim, 32) == 0.001 * factor
    config.optim.lr_scaling = "sqrt"
    assert config_io.check(config).optim.lr_scaling == "sqrt"


@pytest.mark.parametrize("by", ["step", "epoch"])
def test_a_run_of_too_many_steps_is_refused_before_its_schedule_is_made(digits_path, by):
    config = tiny_config(digits_path)
    config.epochs, config.optim.schedule_by = 1e9, by
    with pytest.raises(UserError, match="takes more than 2,147,483,647 steps"):
        make_experiment(config)


def test_a_schedule_by_epoch_has_a_largest_length():
    config = defaults.defaults()
    config.epochs, config.optim.schedule_by = 1e5 + 1, "epoch"
    with pytest.raises(UserError, match=r"100,000 epochs.*optim\.schedule_by=step"):
        config_io.check(config)


@pytest.mark.parametrize(
    ("before", "overrides", "after"),
    [
        ({}, {"name": "adamw"}, "none"),
        ({"name": "adam"}, {"name": "sgd"}, "linear"),
        ({"lr_scaling": "sqrt"}, {"name": "adamw"}, "sqrt"),
        ({}, {"name": "adamw", "lr_scaling": "linear"}, "linear"),
        ({}, {"name": "sgd"}, "linear"),
    ],
)
def test_an_optimizer_by_name_brings_its_scaling_to_a_written_config(
    tmp_path, before, overrides, after
):
    config = defaults.defaults()
    config.optim.update(before)
    path = tmp_path / "config.json"
    path.write_text(config_io.to_json(config_io.check(config)))
    fields = [(f"optim.{name}", value) for name, value in overrides.items()]
    assert config_io.load(str(path), fields).optim.lr_scaling == after


def test_the_learning_rate_of_adam_is_shown_when_a_run_starts(digits_path):
    config = tiny_config(digits_path)
    config.optim.update({"name": "adam", "lr_scaling": "auto", "base_lr": 0.003})
    config.optim.base_batch_size = 256
    headline = recorder.headline(make_experiment(config), {}, 0)
    assert "steps of 48 on" in headline and headline.endswith("; peak learning rate 0.003")
    rows = dict(describe_recipe(config_io.check(config), None, None))
    assert rows["learning rate"] == "0.003 (at any batch size), cosine"


@pytest.mark.parametrize(
    "change", [("augment.image_size", "32"), ("optim.name", "schedule_free_sgd")]
)
def test_a_warning_ends_if_its_advice_is_taken(change):
    resnet = str(CONFIGS / "resnet50.py")
    (warning,) = warnings(config_io.load(resnet, [change]))
    advice = [word.removeprefix("--config.").split("=") for word in warning.split() if "--" in word]
    assert warnings(config_io.load(resnet, [change, *map(tuple, advice)])) == []


def test_recipes_have_no_warning():
    for spec in ("resnet50.py:a3", "resnet50.py:ffcv16", "resnet50.py:v2", "quickstart.py"):
        assert warnings(config_io.load(str(CONFIGS / spec))) == []


@pytest.mark.parametrize(
    ("group", "change", "call"),
    [
        ("loss", {"name": "softmx"}, lambda c: losses.per_image(None, None, c.loss)),
        ("ema", {"form": "tim"}, lambda c: make_ema_step_size(c, 1)),
        ("optim", {"name": "sdg"}, lambda c: optim.make_optimizer(c.optim, lambda t: 0.1)),
        ("optim", {"schedule": "cos"}, lambda c: schedules.make_schedule(
            c.optim, batch_size=1, steps_per_epoch=1, total_steps=1)),
    ],
)  # fmt: skip
def test_an_unknown_name_is_an_error_in_the_functions_that_read_it(group, change, call):
    config = defaults.defaults()
    config[group].update(change)
    with pytest.raises(UserError, match=next(iter(change.values()))):
        call(config)


def test_every_model_has_a_family_here():
    assert {models.family(name) for name in FAMILIES} == set(models.families())


def test_an_unknown_user_in_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_user("~/x") == tmp_path / "x"
    config = tiny_config("~no_such_user/images")
    for read in (lambda: expand_user("~no_such_user/x"), lambda: open_source(config.data, "train")):
        with pytest.raises(UserError, match="there is no user 'no_such_user'; write the path"):
            read()
    package = Path(config_io.__file__).parents[1]
    bypassing = [p.name for p in package.rglob("*.py") if ".expanduser(" in p.read_text()]
    assert bypassing == ["errors.py"]
