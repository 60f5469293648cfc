"""What a sweep is: a base config, settings that differ from it, and seeds, all checked.

    Sweep (what the user wrote)  ->  Plan (settings, cells and their configs)

A setting is a choice of values; a cell is a setting with a seed: one run, in a folder of its name.
"""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ml_collections import ConfigDict

from imagenet_jax import config as config_io
from imagenet_jax.cli import Overrides
from imagenet_jax.errors import UserError

Values = Mapping[str, Any]  # {"optim.base_lr": 0.1, ...}

_LONGEST_NAME = 200  # bytes; file systems take 255, and the seed is added


@dataclass(frozen=True)
class Sweep:
    """What a sweep file's `get_sweep()` returns.

    Attributes:
      config: FILE[:ARG] of the config that everything starts from; --config replaces it.
      base: values that all cells share, beside those of the config.
      grid: {field: values}; every combination is a setting, the last field changes fastest.
      cells: further settings, each {field: value}; {} is the base config itself.
      seeds: so many, from 0, or a list of them.
      baseline: the setting that others are compared with; None: the first one.
    """

    config: str = ""
    base: Values = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    cells: Sequence[Values] = ()
    seeds: int | Sequence[int] = 1
    baseline: Values | None = None


@dataclass(frozen=True)
class Setting:
    """Values beside those of the base config, as the command line writes them."""

    name: str
    overrides: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Cell:
    """One run: `name` is its folder, `config` what it trains."""

    name: str
    setting: Setting
    seed: int
    config: ConfigDict


@dataclass(frozen=True)
class Plan:
    """A checked sweep.

    Attributes:
      spec: FILE[:ARG] of the config.
      overrides: of all cells.
      base: the resolved config with these.
      baseline: name of a setting.
    """

    spec: str
    overrides: tuple[tuple[str, str], ...]
    base: ConfigDict
    cells: tuple[Cell, ...]
    baseline: str

    @property
    def settings(self) -> list[Setting]:
        """Each once, in the order of the cells."""
        return list(dict.fromkeys(cell.setting for cell in self.cells))


def read_sweep(path: str) -> Sweep:
    """What `get_sweep()` of a sweep file returns; UserError where it is not a Sweep."""
    module = config_io.run_file(path, "sweep file", "sweeps/quickstart_ablation.py is an example")
    if not hasattr(module, "get_sweep"):
        raise UserError(f"sweep file {path!r} defines no get_sweep()")
    try:
        sweep = module.get_sweep()
    except Exception as e:
        raise UserError(f"sweep file {path!r}: get_sweep fails: {type(e).__name__}: {e}") from e
    if not isinstance(sweep, Sweep):
        raise UserError(
            f"sweep file {path!r}: get_sweep() returns {type(sweep).__name__}, it should be an "
            "imagenet_jax.sweep.plan.Sweep"
        )
    return sweep


def parse_grid(text: str) -> dict[str, list[str]]:
    """{field: texts} of "optim.base_lr=0.1,0.2 augment.color_jitter=(0,0,0,0),(0.4,0.4,0.4,0.1)".

    Raises UserError where it reads otherwise.
    """
    grid: dict[str, list[str]] = {}
    for word in text.split():
        name, equals, values = word.removeprefix("--config.").partition("=")
        if not equals or not name:
            raise UserError(f"--grid: {word!r} should be FIELD=VALUE,VALUE,...")
        if name in grid:
            raise UserError(f"--grid has {name} twice; write {name}=VALUE,VALUE,...")
        # Commas within brackets belong to one value.
        grid[name] = re.findall(r"(?:\([^()]*\)|\[[^\[\]]*\]|[^,])+", values)
        if not grid[name]:
            raise UserError(f"--grid: {name} has no values")
    if not grid:
        raise UserError("--grid is empty; write 'FIELD=VALUE,VALUE ...'")
    return grid


def plan_from(
    config: str | None,
    file: str | None,
    grid: str | None,
    seeds: int | None,
    overrides: Overrides,
) -> Plan:
    """The plan of the command line's --config, --sweep or --grid, --seeds and --config.FIELD."""
    if file and grid:
        raise UserError("--sweep has a grid of its own; leave --grid out")
    sweep = read_sweep(file) if file else Sweep(grid=parse_grid(grid) if grid else {})
    if config:
        sweep = replace(sweep, config=config)
    if seeds is not None:
        sweep = replace(sweep, seeds=seeds)
    return plan_of(sweep, overrides)


def plan_of(sweep: Sweep, overrides: Overrides) -> Plan:
    """Every cell with its config, loaded and checked.

    Args:
      overrides: (field, text) of the command line, after `sweep.base`.

    Raises UserError for a config, field, value, seed or baseline that cannot be meant, for a cell
    that is there twice, and for a value that would change nothing.
    """
    if not sweep.config:
        raise UserError("--config=FILE says what the sweep starts from; the sweep file names none")
    settings = [dict(values) for values in _settings(sweep)]
    swept = list(dict.fromkeys(name for values in settings for name in values))
    shared = (*((name, _text(value)) for name, value in sweep.base.items()), *overrides)
    _check_fields(swept, [name for name, _ in shared])
    base = config_io.load(sweep.config, shared)

    found: dict[tuple, Setting] = {}
    for values in settings:
        texts = tuple((name, _text(value)) for name, value in values.items())
        config = config_of(base, shared, texts)
        setting = Setting(_name(values, config, swept), texts)
        key = identity(config)
        if key in found:
            raise UserError(
                f"the settings {found[key].name} and {setting.name} are the same run; leave one out"
            )
        if any(setting.name == other.name for other in found.values()):
            raise UserError(
                f"two settings would be named {setting.name}; use values that differ in letters "
                "and digits"
            )
        found[key] = setting
    cells = tuple(
        cell_of(setting, seed, config_of(base, shared, setting.overrides))
        for setting in found.values()
        for seed in _seeds(sweep.seeds)
    )
    baseline = cells[0].setting.name
    if sweep.baseline is not None:
        texts = tuple((name, _text(value)) for name, value in sweep.baseline.items())
        key = identity(config_of(base, shared, texts))
        if key not in found:
            raise UserError(f"the baseline {dict(sweep.baseline)} is not a setting of the sweep")
        baseline = found[key].name
    return Plan(sweep.config, shared, base, cells, baseline)


def config_of(
    base: ConfigDict, shared: Iterable[tuple[str, str]], overrides: Iterable[tuple[str, str]]
) -> ConfigDict:
    """Return the checked config of a setting with its `overrides` of `base`, which has `shared`."""
    config = ConfigDict(base.to_dict())
    config_io.apply_overrides(config, (*shared, *overrides))
    return config_io.check(config)


def cell_of(setting: Setting, seed: int, config: ConfigDict) -> Cell:
    """The cell of a setting's `config` with another seed."""
    seeded = ConfigDict(config.to_dict())
    seeded.seed = seed
    return Cell(f"{setting.name},seed={seed}", setting, seed, config_io.check(seeded))


def identity(config: ConfigDict) -> tuple:
    """What tells settings apart: every field that changes a result, but the seed."""
    return tuple(
        (name, value)
        for name, value in sorted(config_io.flatten(config).items())
        if name not in (*config_io.OPERATIONAL, "seed")
    )


def _settings(sweep: Sweep) -> list[Values]:
    for name, values in sweep.grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise UserError(f"the grid's {name} = {values!r} should be a list of values")
    combinations = itertools.product(*sweep.grid.values())
    grid = [dict(zip(sweep.grid, chosen, strict=True)) for chosen in combinations]
    # A product of nothing is the base config once; where cells are listed, they are meant alone.
    return [*(grid if sweep.grid or not sweep.cells else []), *sweep.cells]


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    if isinstance(seeds, int):
        seeds = range(seeds)
    chosen = list(seeds)
    if not chosen or len(set(chosen)) < len(chosen):
        raise UserError(f"seeds = {chosen}: at least one, and each once")
    return chosen


def _check_fields(swept: Sequence[str], shared: Sequence[str]) -> None:
    for name in (*swept, *shared):
        if name == "seed":
            raise UserError("config.seed is set by the seeds of the sweep: --seeds=N")
    for name in swept:
        if name in shared:
            raise UserError(f"config.{name} is swept: it cannot be set for all cells too")
        if name in config_io.OPERATIONAL:
            raise UserError(f"config.{name} changes no result: set it for all cells, as --config.")


def _text(value: Any) -> str:
    """A value as the command line writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else repr(value).replace(" ", "")


def _name(values: Values, config: ConfigDict, swept: Sequence[str]) -> str:
    """ "base_lr=0.1,mixup=0": the values as the config read them, safe as a folder's name."""
    flat = config_io.flatten(config)
    name = ",".join(f"{short(f, swept)}={_word(flat[f])}" for f in values) or "base"
    if len(name.encode()) > _LONGEST_NAME:
        raise UserError(f"the name {name[:60]}... is too long for a folder; sweep fewer fields")
    return name


def short(name: str, fields: Sequence[str]) -> str:
    """The shortest end of a dotted field that no other one of `fields` has."""
    parts = name.split(".")
    ends = (".".join(parts[i:]) for i in reversed(range(len(parts))))
    others = [f".{other}" for other in fields if other != name]
    return next(
        (end for end in ends if not any(other.endswith(f".{end}") for other in others)), name
    )


def shown(value: Any) -> str:
    """A value as people write it: "0.1", "(0.7, 1)", "true"."""
    if isinstance(value, tuple):
        return f"({', '.join(map(shown, value))})"
    if isinstance(value, float):
        brief = f"{value:g}"
        return brief if float(brief) == value else repr(value)
    return _text(value)


def _word(value: Any) -> str:
    """A value in letters, digits and ._+-; (0.4, 0.1) becomes 0.4_0.1."""
    if isinstance(value, tuple):
        return "_".join(map(_word, value)) or "none"
    return re.sub(r"[^\w.+-]", "-", shown(value)) or "none"
