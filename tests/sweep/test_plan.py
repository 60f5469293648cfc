"""Sweep plans: grids, names, checks before anything starts, and adding to a sweep."""

import itertools
import re

import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_jax.errors import UserError
from imagenet_jax.sweep import folder
from imagenet_jax.sweep.plan import (
    Sweep,
    make_plan,
    parse_grid,
    plan_from_flags,
    read_sweep,
    short_name,
)

QUICKSTART = str(REPOSITORY / "configs/quickstart.py")


def plan(overrides=(), **fields):
    return make_plan(Sweep(config=QUICKSTART, **fields), list(overrides))


def test_grid_has_every_combination_with_every_seed():
    p = plan(grid={"optim.base_lr": (0.1, 0.2), "augment.mixup": (0.0, 0.2)}, seeds=3)
    assert len(p.trials) == 12
    assert p.trials[0].name == "base_lr=0.1,mixup=0,seed=0"
    assert p.trials[-1].name == "base_lr=0.2,mixup=0.2,seed=2"
    found = [(c.config.optim.base_lr, c.config.augment.mixup, c.config.seed) for c in p.trials]
    assert found == list(itertools.product((0.1, 0.2), (0.0, 0.2), (0, 1, 2)))
    assert p.baseline == "base_lr=0.1,mixup=0"


def test_listed_settings_with_and_without_a_grid():
    cells = [{}, {"optim.name": "lars", "optim.base_lr": 1e-3}]
    assert [c.name for c in plan(cells=cells).trials] == [
        "base,seed=0",
        "name=lars,base_lr=0.001,seed=0",
    ]
    p = plan(grid={"ema.decay": (0.0, 0.5)}, cells=cells, seeds=(7,), baseline={"ema.decay": 0.5})
    assert [c.setting.name for c in p.trials] == [
        "decay=0", "decay=0.5", "base", "name=lars,base_lr=0.001"
    ]  # fmt: skip
    assert {c.config.seed for c in p.trials} == {7}
    assert p.baseline == "decay=0.5"


def test_flags_and_file_give_the_same_plan(tmp_path):
    file = tmp_path / "s.py"
    file.write_text(
        "from imagenet_jax.sweep.plan import Sweep\n"
        "def get_sweep():\n"
        "    return Sweep(base={'epochs': 2.0}, grid={'augment.crop_scale': [(0.5, 1.0)],\n"
        "                 'augment.flip': [True, False]}, seeds=2)\n"
    )
    one = plan_from_flags(QUICKSTART, str(file), None, None, [("batch_size", "32")])
    grid = "augment.crop_scale=(0.5,1) augment.flip=true,false"
    overrides = [("epochs", "2"), ("batch_size", "32")]
    two = plan_from_flags(QUICKSTART, None, grid, 2, overrides)
    assert [c.name for c in one.trials] == [c.name for c in two.trials]
    assert [c.config.to_dict() for c in one.trials] == [c.config.to_dict() for c in two.trials]
    assert one.trials[0].name == "crop_scale=0.5_1,flip=true,seed=0"


def test_example_sweep_has_two_by_three_settings_and_three_seeds():
    sweep = read_sweep(str(REPOSITORY / "sweeps/quickstart_ablation.py"))
    assert sorted(map(len, sweep.grid.values())) == [2, 3]
    assert len(make_plan(Sweep(**(vars(sweep) | {"config": QUICKSTART})), []).trials) == 18


FIELDS = (
    "ema.decay",
    "ema.power",
    "optim.power",
    "optim.name",
    "model.name",
    "data.synthetic.images",
)


@given(st.permutations(FIELDS), st.integers(1, 6))
def test_short_names_are_unambiguous(fields, count):
    fields = fields[:count]
    names = [short_name(field, fields) for field in fields]
    for field, name in zip(fields, names, strict=True):
        assert [f for f in fields if f"x.{f}".endswith(f".{name}")] == [field]
        # With one part less it would be ambiguous or empty.
        rest = name.partition(".")[2]
        assert not rest or sum(f".{f}".endswith(f".{rest}") for f in fields) > 1


@settings(max_examples=15)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=4, unique=True), st.integers(1, 3))
def test_trial_names_are_safe_and_distinct(values, seeds):
    p = plan(grid={"augment.mixup": values}, seeds=seeds)
    names = [trial.name for trial in p.trials]
    assert len(set(names)) == len(values) * seeds
    for trial in p.trials:
        assert re.fullmatch(r"[A-Za-z0-9_.,=+-]+", trial.name)
        mixup, seed = re.fullmatch(r"mixup=(.+),seed=(\d+)", trial.name).groups()
        assert (float(mixup), int(seed)) == (trial.config.augment.mixup, trial.config.seed)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"grid": {"optim.base_rl": (1,)}}, ["optim.base_rl", "optim.base_lr"]),
        ({"grid": {"optim.base_lr": ("fast",)}}, ["optim.base_lr", "fast", "a number"]),
        ({"grid": {"optim.name": ("sgd", "sdg")}}, ["optim.name", "sdg"]),
        ({"grid": {"ema.decay": (0.1, 0.10)}}, ["decay=0.1", "same run"]),
        ({"grid": {"ema.decay": (0.1,)}, "cells": [{"ema.decay": 0.1}]}, ["same run"]),
        ({"grid": {"ema.decay": ()}}, ["ema.decay", "list of values"]),
        ({"grid": {"ema.decay": 0.1}}, ["ema.decay", "list of values"]),
        ({"grid": {"optim.name": "sgd"}}, ["optim.name", "list of values"]),
        ({"grid": {"seed": (0, 1)}}, ["--seeds"]),
        ({"base": {"seed": 1}}, ["--seeds"]),
        ({"grid": {"ema.decay": (0.1,)}, "base": {"ema.decay": 0.2}}, ["ema.decay", "swept"]),
        ({"grid": {"data.threads": (1, 2)}}, ["data.threads", "does not change the results"]),
        ({"seeds": 0}, ["seeds", "at least one"]),
        ({"seeds": (1, 1)}, ["seeds", "each once"]),
        ({"grid": {"ema.decay": (0.1,)}, "baseline": {}}, ["baseline", "not a setting"]),
    ],
)
def test_invalid_sweeps_are_refused(fields, words):
    with pytest.raises(UserError) as caught:
        plan(**fields)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("text", ["", "ema.decay", "ema.decay=", "=1", "a=1 a=2"])
def test_invalid_grid_is_refused(text):
    with pytest.raises(UserError, match="--grid"):
        parse_grid(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "defines no get_sweep"),
        ("def get_sweep(): return {}", "returns dict"),
        ("def get_sweep(): return 1 / 0", "ZeroDivisionError"),
        ("import nothing_of_this_name", "ModuleNotFoundError"),
    ],
)
def test_invalid_sweep_file_is_refused(tmp_path, text, words):
    file = tmp_path / "s.py"
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        read_sweep(str(file))


def test_sweep_json_restores_the_plan(tmp_path):
    grid = {"augment.crop_scale": [(0.5, 1.0), (1.0, 1.0)], "augment.flip": [True, False]}
    p = plan(grid=grid, seeds=2, base={"epochs": 2.0})
    folder.write_plan(tmp_path, p)
    back = folder.read_plan(tmp_path)
    assert [c.name for c in back.trials] == [c.name for c in p.trials]
    assert [c.config.to_dict() for c in back.trials] == [c.config.to_dict() for c in p.trials]
    assert (back.spec, back.baseline, back.overrides) == (p.spec, p.baseline, p.overrides)


@pytest.mark.parametrize("rule", ["auto", "linear"])
def test_sweep_json_restores_a_sweep_over_optimizers(tmp_path, rule):
    base = {"optim.nesterov": False}
    base |= {} if rule == "auto" else {"optim.lr_scaling": rule}
    p = plan(grid={"optim.name": ["sgd", "adam"]}, base=base)
    rules = ["linear", "none" if rule == "auto" else rule]
    assert [c.config.optim.lr_scaling for c in p.trials] == rules
    folder.write_plan(tmp_path, p)
    back = folder.read_plan(tmp_path)
    assert [c.config.to_dict() for c in back.trials] == [c.config.to_dict() for c in p.trials]
    folder.extend_plan(tmp_path, p)


def test_settings_added_to_a_folder_keep_the_known_names(tmp_path):
    folder.write_plan(tmp_path, plan(grid={"ema.decay": (0.0, 0.5)}, seeds=2))
    # The quickstart's mixup is 0: two of the new settings are the old ones.
    more = plan(grid={"ema.decay": (0.0, 0.5), "augment.mixup": (0.0, 0.2)}, seeds=1)
    wanted, recorded = folder.extend_plan(tmp_path, more)
    assert [c.name for c in wanted.trials] == [
        "decay=0,seed=0",
        "decay=0,mixup=0.2,seed=0",
        "decay=0.5,seed=0",
        "decay=0.5,mixup=0.2,seed=0",
    ]
    assert {c.name for c in recorded.trials} == {
        *(c.name for c in wanted.trials), "decay=0,seed=1", "decay=0.5,seed=1"
    }  # fmt: skip
    for trial in wanted.trials:
        assert trial.config.augment.mixup == (0.2 if "mixup" in trial.name else 0.0)


def test_another_base_config_is_refused(tmp_path):
    folder.write_plan(tmp_path, plan(grid={"ema.decay": (0.0, 0.5)}))
    with pytest.raises(UserError, match=r"epochs: 16\.0 -> 2\.0.*another --out"):
        folder.extend_plan(tmp_path, plan(grid={"ema.decay": (0.0,)}, base={"epochs": 2.0}))
    # Fields that do not change the results may differ.
    folder.extend_plan(tmp_path, plan(grid={"ema.decay": (0.0,)}, base={"data.threads": 1}))


def test_sweep_over_several_model_families():
    names = ["resnet18", "vgg11", "bit_r50x1"]
    sweep = Sweep(config=f"{REPOSITORY}/configs/resnet50.py", grid={"model.name": names})
    trials = make_plan(sweep, [("batch_size", "64")]).trials
    assert [trial.config.model.name for trial in trials] == names
    assert "dropout" in trials[1].config.model and "stem" not in trials[1].config.model
