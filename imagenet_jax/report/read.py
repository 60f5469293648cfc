"""Read a workdir for the report, as far as it has come."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imagenet_jax import strict_json
from imagenet_jax.config import flatten
from imagenet_jax.data.sampler import in_steps
from imagenet_jax.data.sources import open_source
from imagenet_jax.debug.recipe_rows import recipe_of
from imagenet_jax.errors import UserError, one_line
from imagenet_jax.files import read_json_lines
from imagenet_jax.report.images import look
from imagenet_jax.report.records import Run
from imagenet_jax.runtime.eval_variants import is_variant, require_run_settings, run_settings
from imagenet_jax.runtime.lock import is_training
from imagenet_jax.runtime.workdir import has_checkpoint, read_config
from imagenet_jax.training.checkpoint import open_to_read
from imagenet_jax.training.experiment import Experiment, make_experiment
from imagenet_jax.training.load_weights import of_workdir

_EVALUATION = ("step", "split", "weights", "count", "top1", "top5", "loss")


def read_run(
    workdir: Path, name: str, checkpoint: str, overrides: Iterable[tuple[str, str]]
) -> Run:
    """The run as the report shows it; the data is read once, where it is there.

    Args:
      name: of the run in the report.
      checkpoint: "latest", "best" or a step: what is predicted with.
      overrides: (field, text), to say where the data is here, say.

    Raises UserError where `workdir` is not one, or its files are damaged.
    """
    overrides = list(overrides)
    require_run_settings(workdir, overrides, "report")
    config = read_config(workdir)
    metrics = _read_metrics(workdir / "metrics.jsonl")
    evaluations = _evaluations(workdir, metrics)
    here = read_config(workdir, overrides)
    images, per_epoch, total = _lengths(here, metrics)
    predicted, explained, missing = None, None, ""
    try:
        if not has_checkpoint(workdir):
            raise UserError(f"no checkpoint in {workdir} yet: train on, then make the report again")
        step = open_to_read(workdir, here).find(checkpoint)
        weights = of_workdir(workdir, str(step), overrides)
        predicted, explained = look(weights, step, run_settings(workdir)["data"])
    except UserError as e:
        missing = _with_way_out(one_line(e, length=None))
        if checkpoint not in ("latest", "best") and "--checkpoint=" in missing:
            raise
    return Run(
        name=name,
        workdir=str(workdir),
        status=_status(workdir, metrics, total),
        config=flatten(config),
        recipe=recipe_of(config, images, total),
        provenance=_read_object(workdir / "provenance.json"),
        metrics=metrics,
        evaluations=evaluations,
        best_metric=config.checkpoint.best_metric,
        steps_per_epoch=per_epoch,
        predicted=predicted,
        explained=explained,
        missing=missing,
    )


def _lengths(
    config: ConfigDict, metrics: list[dict[str, Any]]
) -> tuple[int | None, float | None, int | None]:
    """(training images, steps per epoch, steps of the run), without the data as far as the metrics
    tell them."""
    try:
        run = make_experiment(config)
        per_epoch, total = float(run.steps_per_epoch), run.total_steps
        trained = [line for line in metrics if "epoch" in line]
        if trained:
            total = total_steps(trained[-1], config.epochs, run)
        return len(run.source), per_epoch, total
    except UserError:
        pass
    try:
        images = len(open_source(config.data, config.data.train_split))
    except UserError:
        images = None
    for line in reversed(metrics):
        if line.get("epoch"):
            per_epoch = line["step"] / line["epoch"]
            return images, per_epoch, math.ceil(in_steps(config.epochs, per_epoch))
    return images, None, None


def total_steps(line: dict[str, Any], epochs: float, run: Experiment) -> int:
    """Return the last step of a run of `epochs` that the `line` of metrics.jsonl is from.

    Another batch size before that line puts the line's step at another epoch than `run` does.
    """
    if math.isclose(line["epoch"], run.epoch_at(line["step"]), rel_tol=1e-9):
        return run.total_steps
    left = (epochs - line["epoch"]) * float(run.steps_per_epoch)
    return line["step"] + max(0, math.ceil(round(left, 6)))


def _status(workdir: Path, metrics: list[dict[str, Any]], total: int | None) -> str:
    step = max((line["step"] for line in metrics), default=0)
    of = f"step {step:,}" + (f" of {total:,}" if total else "")
    if is_training(workdir):
        return f"training now, {of}"
    if total and step >= total:
        return f"finished, {total:,} steps"
    return f"stopped at {of}" if step else "nothing logged yet"


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; [] where there is none yet. A last line that is being written is
    left out."""
    try:
        lines = read_json_lines(path)
        for number, values in enumerate(lines, 1):
            if not (isinstance(values, dict) and {"step", "split"} <= values.keys()):
                raise ValueError(f"line {number} has no step and split")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path} cannot be read: {e}") from e
    except ValueError as e:
        raise UserError(f"{path}, {e}; remove the line") from e
    return lines


def _evaluations(workdir: Path, metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of training and those of `imagenet_jax.eval`, one of each step and weights.

    Evaluations with other settings or other data than the run's are left out.
    """
    found = {(e["step"], e["weights"]): e for e in metrics if "weights" in e}
    for path in sorted((workdir / "eval").glob("*.json")):
        if not path.stem.isdecimal():
            continue  # a variant, or by class
        record = _read_object(path)
        if is_variant(workdir, record):
            continue
        for one in (record, *record.get("also", [])):
            whole = {name: one.get(name, record.get(name)) for name in _EVALUATION}
            if None in whole.values():
                raise UserError(f"{path} is not what imagenet_jax.eval writes; move it away")
            found[whole["step"], whole["weights"]] = whole
    return [found[key] for key in sorted(found)]


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = strict_json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read ({e}); move it away or mend it") from e
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object; move it away or mend it")
    return value


def _with_way_out(reason: str) -> str:
    if "--config.data.path" in reason or "no checkpoint" in reason or "data" not in reason:
        return reason
    return f"{reason}; where the data is elsewhere, say --config.data.path=..."
