"""Sweep plans: a base config, the settings that differ from it, and their seeds.

    Sweep (what the user wrote)  ->  Plan (checked settings, trials and their configs)

A setting is a choice of values. A trial is a setting with a seed: one run, in its own folder.
"""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ml_collections import ConfigDict

from imagenet_jax import config as config_io
from imagenet_jax.cli import Overrides
from imagenet_jax.config import python_files
from imagenet_jax.errors import UserError

Values = Mapping[str, Any]  # {"optim.base_lr": 0.1, ...}
Texts = tuple[tuple[str, str], ...]  # (("optim.base_lr", "0.1"), ...), as on the command line

_LONGEST_NAME = 200  # bytes; file systems allow 255, and the seed is appended


@dataclass(frozen=True)
class Sweep:
    """The return value of a sweep file's `get_sweep()`.

    Attributes:
      config: FILE[:VARIANT] of the base config; --config replaces it.
      base: values that all trials share, applied to the config.
      grid: {field: values}; every combination is a setting, and the last field changes fastest.
      cells: additional settings, each {field: value}; {} is the base config itself.
      seeds: the number of seeds, starting at 0, or a list of seeds.
      baseline: the setting that the others are compared with; None: the first setting.
    """

    config: str = ""
    base: Values = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    cells: Sequence[Values] = ()
    seeds: int | Sequence[int] = 1
    baseline: Values | None = None


@dataclass(frozen=True)
class Setting:
    """A name, values that replace those of the base config, and the resulting config."""

    name: str
    overrides: Texts
    config: ConfigDict = field(compare=False)


@dataclass(frozen=True)
class Trial:
    """One run: `name` is its folder, and `config` includes the seed."""

    name: str
    setting: Setting
    seed: int
    config: ConfigDict


@dataclass(frozen=True)
class Plan:
    """A checked sweep.

    Attributes:
      spec: FILE[:VARIANT] of the config.
      overrides: changes to that config in every trial.
      base: the resolved config with these changes.
      trials: in the order of settings, then seeds.
      baseline: name of a setting.
    """

    spec: str
    overrides: Texts
    base: ConfigDict
    trials: tuple[Trial, ...]
    baseline: str

    @property
    def settings(self) -> list[Setting]:
        """Each setting once, in the order of the trials."""
        return list(dict.fromkeys(trial.setting for trial in self.trials))


def read_sweep(path: str) -> Sweep:
    """Run a sweep file and return the result of its `get_sweep()`. Raises UserError if it fails."""
    module = python_files.run_file(path, "sweep file")
    if not hasattr(module, "get_sweep"):
        raise UserError(f"sweep file {path!r} defines no get_sweep()")
    try:
        sweep = module.get_sweep()
    except Exception as e:
        raise UserError(f"sweep file {path!r}: get_sweep fails: {type(e).__name__}: {e}") from e
    if not isinstance(sweep, Sweep):
        raise UserError(
            f"sweep file {path!r}: get_sweep() returns {type(sweep).__name__}; return an "
            "imagenet_jax.sweep.plan.Sweep"
        )
    return sweep


def parse_grid(text: str) -> dict[str, list[str]]:
    """Parse "optim.base_lr=0.1,0.2 augment.crop_scale=(0.5,1),(1,1)" into {field: texts}.

    Raises UserError for text of any other form.
    """
    grid: dict[str, list[str]] = {}
    for word in text.split():
        name, equals, values = word.removeprefix("--config.").partition("=")
        if not equals or not name:
            raise UserError(f"--grid: {word!r} should be FIELD=VALUE,VALUE,...")
        if name in grid:
            raise UserError(f"--grid has {name} twice; write {name}=VALUE,VALUE,...")
        # A comma inside brackets is part of a value.
        grid[name] = re.findall(r"(?:\([^()]*\)|\[[^\[\]]*\]|[^,])+", values)
        if not grid[name]:
            raise UserError(f"--grid: {name} has no values")
    if not grid:
        raise UserError("--grid is empty; write 'FIELD=VALUE,VALUE ...'")
    return grid


def plan_from_flags(
    config: str | None, file: str | None, grid: str | None, seeds: int | None, overrides: Overrides
) -> Plan:
    """Return the plan that --config, --sweep or --grid, --seeds and --config.FIELD describe."""
    if file and grid:
        raise UserError("--sweep has its own grid; leave out --grid")
    sweep = read_sweep(file) if file else Sweep(grid=parse_grid(grid) if grid else {})
    chosen = sweep.seeds if seeds is None else seeds
    return make_plan(replace(sweep, config=config or sweep.config, seeds=chosen), overrides)


def make_plan(sweep: Sweep, overrides: Overrides) -> Plan:
    """Return every trial of `sweep` with its config, loaded and checked.

    Args:
      overrides: (field, text) of the command line, applied after `sweep.base`.

    Raises UserError for an invalid config, field, value, seed or baseline, and if two settings are
    the same run.
    """
    if not sweep.config:
        raise UserError("the sweep has no base config; add --config=FILE")
    settings = _list_settings(sweep)
    swept = list(dict.fromkeys(name for values in settings for name in values))
    shared = (*_texts(sweep.base), *overrides)
    _check_fields(swept, [name for name, _ in shared])
    base = config_io.load(sweep.config, shared)

    found: dict[tuple, Setting] = {}  # by identity
    for values in settings:
        config = make_config(base, shared, _texts(values))
        setting = Setting(_make_name(values, config, swept), _texts(values), config)
        key = identity(config)
        if key in found:
            raise UserError(
                f"the settings {found[key].name} and {setting.name} are the same run; remove one"
            )
        if any(setting.name == other.name for other in found.values()):
            raise UserError(
                f"two settings would be named {setting.name}; use values that differ in letters "
                "and digits"
            )
        found[key] = setting
    seeds = list(range(sweep.seeds) if isinstance(sweep.seeds, int) else sweep.seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds = {seeds}: give at least one, and each once")
    trials = tuple(make_trial(setting, seed) for setting in found.values() for seed in seeds)
    baseline = trials[0].setting
    if sweep.baseline is not None:
        key = identity(make_config(base, shared, _texts(sweep.baseline)))
        if key not in found:
            raise UserError(f"the baseline {dict(sweep.baseline)} is not a setting of the sweep")
        baseline = found[key]
    return Plan(sweep.config, shared, base, trials, baseline.name)


def make_config(base: ConfigDict, shared: Texts, overrides: Texts) -> ConfigDict:
    """Return the checked config of a setting.

    `shared` is already applied to `base`. It is applied again, because `overrides` may choose
    another model family, whose defaults it has to replace.
    """
    config = config_io.copy_config(base)
    config_io.apply_overrides(config, (*shared, *overrides))
    return config_io.check(config)


def make_trial(setting: Setting, seed: int) -> Trial:
    """Return the trial of `setting` with `seed`."""
    seeded = config_io.copy_config(setting.config, {"seed": seed})
    return Trial(f"{setting.name},seed={seed}", setting, seed, config_io.check(seeded))


def identity(config: ConfigDict) -> tuple:
    """Return all fields that change a result, except the seed. Equal settings have equal ones."""
    ignored = (*config_io.OPERATIONAL, "seed")
    fields = sorted(config_io.flatten(config).items())
    return tuple((name, value) for name, value in fields if name not in ignored)


def short_name(name: str, fields: Iterable[str]) -> str:
    """Return the shortest suffix of a dotted field name that is unique among `fields`."""
    parts = name.split(".")
    suffixes = (".".join(parts[i:]) for i in reversed(range(len(parts))))
    others = [f".{other}" for other in fields if other != name]
    return next((s for s in suffixes if not any(o.endswith(f".{s}") for o in others)), name)


def format_value(value: Any) -> str:
    """Format a value for people: "0.1", "(0.7, 1)", "true"."""
    if isinstance(value, tuple):
        return f"({', '.join(map(format_value, value))})"
    if isinstance(value, float):
        brief = f"{value:g}"
        return brief if float(brief) == value else repr(value)
    return _text(value)


def _list_settings(sweep: Sweep) -> list[Values]:
    for name, values in sweep.grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise UserError(f"the grid's {name} = {values!r} should be a list of values")
    # An empty grid means the base config, unless other settings are listed.
    products = itertools.product(*sweep.grid.values()) if sweep.grid or not sweep.cells else ()
    return [*(dict(zip(sweep.grid, chosen, strict=True)) for chosen in products), *sweep.cells]


def _check_fields(swept: Sequence[str], shared: Sequence[str]) -> None:
    if "seed" in (*swept, *shared):
        raise UserError("config.seed is set by the seeds of the sweep; use --seeds=N")
    for name in swept:
        if name in shared:
            raise UserError(f"config.{name} is swept, so it cannot also be set for all trials")
        if name in config_io.OPERATIONAL:
            raise UserError(
                f"config.{name} does not change the results; set it for all trials with "
                "--config.FIELD=VALUE"
            )


def _texts(values: Values) -> Texts:
    return tuple((name, _text(value)) for name, value in values.items())


def _text(value: Any) -> str:
    """Format a value as on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else repr(value).replace(" ", "")


def _make_name(values: Values, config: ConfigDict, swept: Sequence[str]) -> str:
    """Return a folder name with the values as parsed by the config: "base_lr=0.1,mixup=0"."""
    flat = config_io.flatten(config)
    name = ",".join(f"{short_name(f, swept)}={_word(flat[f])}" for f in values) or "base"
    if len(name.encode()) > _LONGEST_NAME:
        raise UserError(f"the folder name {name[:60]}... is too long; sweep fewer fields")
    return name


def _word(value: Any) -> str:
    """Format a value in letters, digits and ._+-; (0.4, 0.1) becomes 0.4_0.1."""
    if isinstance(value, tuple):
        return "_".join(map(_word, value)) or "none"
    return re.sub(r"[^\w.+-]", "-", format_value(value)) or "none"
