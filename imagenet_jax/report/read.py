"""Reads the runs of a report from their workdirs, whether they are finished or not."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from imagenet_jax.config import flatten
from imagenet_jax.data.sampler import in_steps
from imagenet_jax.data.sources import open_source
from imagenet_jax.debug.recipe import describe_recipe
from imagenet_jax.errors import UserError, one_line
from imagenet_jax.files import read_json, read_json_lines
from imagenet_jax.progress import announce
from imagenet_jax.report.predictions import Explained, Predicted, predict_and_explain
from imagenet_jax.runtime.lock import is_training
from imagenet_jax.runtime.workdir import (
    has_checkpoint,
    is_variant,
    read_config,
    require_run_settings,
    run_settings,
)
from imagenet_jax.training.experiment import Experiment, make_experiment
from imagenet_jax.training.load_weights import load_run_weights, open_to_read
from imagenet_jax.training.metrics import METRICS

_EVALUATION = ("step", "split", "weights", "count")  # fields beside the metrics
_REQUIRED = (*_EVALUATION, "top1", "loss")


@dataclasses.dataclass(frozen=True)
class Run:
    """The content of a workdir.

    Attributes:
      name: a name that is unique in the report.
      workdir: path as given by the user.
      status: for example "finished, 8 steps".
      config: {"optim.base_lr": 0.1, ...}.
      recipe: (name, value), as in the tables of papers.
      provenance: content of provenance.json.
      metrics: lines of metrics.jsonl, in order.
      evaluations: {"step", "split", "weights", "count" and metrics}, by step.
      steps_per_epoch: None if unknown.
      predicted, explained: None if they are not available.
      missing: one line that says why, or "".
    """

    name: str
    workdir: str
    status: str
    config: dict[str, Any]
    recipe: list[tuple[str, str]]
    provenance: dict[str, Any]
    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    steps_per_epoch: float | None
    predicted: Predicted | None
    explained: Explained | None
    missing: str

    @property
    def best_metric(self) -> str:
        return self.config["checkpoint.best_metric"]

    @property
    def num_classes(self) -> int:
        return self.config["model.num_classes"]


def read_run(
    workdir: Path, name: str, checkpoint: str, overrides: Sequence[tuple[str, str]]
) -> Run:
    """Read a workdir, and predict the evaluation split if there are data and a checkpoint.

    Args:
      name: name of the run in the report.
      checkpoint: "latest", "best" or a step, for the predictions.
      overrides: (field, text) changes of the config, such as where the data is on this machine.

    Raises UserError if `workdir` is not the workdir of a run, or its files are damaged.
    """
    require_run_settings(workdir, overrides, "report")
    config, here = read_config(workdir), read_config(workdir, overrides)
    metrics = _read_metrics(workdir / "metrics.jsonl")
    evaluations = _read_evaluations(workdir, metrics)
    with announce("opening the training data"):
        lengths = _find_lengths(here, metrics)
        recipe = describe_recipe(config, lengths.images, lengths.steps)
    predicted, explained, missing = None, None, ""
    try:
        if not has_checkpoint(workdir):
            raise UserError(f"no checkpoint in {workdir} yet; continue training, then report again")
        step = open_to_read(workdir, here).find(checkpoint)
        with announce("loading the weights"):
            weights = load_run_weights(workdir, str(step), overrides)
        fingerprint = run_settings(workdir)["data"]
        predicted, explained = predict_and_explain(weights, step, fingerprint)
    except UserError as e:
        missing = _add_way_out(one_line(e, length=None))
        if checkpoint not in ("latest", "best") and "--checkpoint=" in missing:
            raise
    return Run(
        name=name,
        workdir=str(workdir),
        status=_describe_status(workdir, metrics, lengths.steps),
        config=flatten(config),
        recipe=recipe,
        provenance=_read_object(workdir / "provenance.json"),
        metrics=metrics,
        evaluations=evaluations,
        steps_per_epoch=lengths.steps_per_epoch,
        predicted=predicted,
        explained=explained,
        missing=missing,
    )


class _Lengths(NamedTuple):
    """Number of training images, steps per epoch and steps of the run; None if unknown."""

    images: int | None
    steps_per_epoch: float | None
    steps: int | None


def _find_lengths(config: ConfigDict, metrics: list[dict[str, Any]]) -> _Lengths:
    """Return the lengths of a run, based on its metrics if the data is missing."""
    trained = [line for line in metrics if line.get("epoch")]
    try:
        run = make_experiment(config)
    except UserError:
        pass
    else:
        steps = find_last_step(trained[-1], config.epochs, run) if trained else run.total_steps
        return _Lengths(len(run.source), float(run.steps_per_epoch), steps)
    try:
        images = len(open_source(config.data, config.data.train_split))
    except UserError:
        images = None
    if not trained:
        return _Lengths(images, None, None)
    per_epoch = trained[-1]["step"] / trained[-1]["epoch"]
    return _Lengths(images, per_epoch, math.ceil(in_steps(config.epochs, per_epoch)))


def find_last_step(line: dict[str, Any], epochs: float, run: Experiment) -> int:
    """Return the last step of a run of `epochs` epochs that wrote `line` to metrics.jsonl.

    If the batch size changed before that line, its step is in a different epoch than in `run`.
    """
    if math.isclose(line["epoch"], run.epoch_at(line["step"]), rel_tol=1e-9):
        return run.total_steps
    left = (epochs - line["epoch"]) * float(run.steps_per_epoch)
    return line["step"] + max(0, math.ceil(round(left, 6)))


def _describe_status(workdir: Path, metrics: list[dict[str, Any]], steps: int | None) -> str:
    step = max((line["step"] for line in metrics), default=0)
    position = f"step {step:,}" + (f" of {steps:,}" if steps else "")
    if is_training(workdir):
        return f"training now, {position}"
    if steps and step >= steps:
        return f"finished, {steps:,} steps"
    return f"stopped at {position}" if step else "nothing logged yet"


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, [] if there is none yet."""
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


def _read_evaluations(workdir: Path, metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the evaluations of training and of `imagenet_jax.eval`, sorted by step and weights.

    Evaluations whose settings or data differ from the run's are left out.
    """
    found = {(e["step"], e["weights"]): e for e in metrics if "weights" in e}
    for path in sorted((workdir / "eval").glob("*.json")):
        if not path.stem.isdecimal():
            continue  # a variant, or metrics of each class
        record = _read_object(path)
        if is_variant(workdir, record):
            continue
        for one in (record, *record.get("also", [])):
            values = {"step": record.get("step"), "split": record.get("split"), **one}
            if any(values.get(field) is None for field in _REQUIRED):
                raise UserError(f"{path} is not a file of imagenet_jax.eval; move it away")
            kept = {k: v for k, v in values.items() if k in _EVALUATION or k in METRICS}
            found[kept["step"], kept["weights"]] = kept
    return [found[key] for key in sorted(found)]


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read ({e}); move it away or repair it") from e
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object; move it away or repair it")
    return value


def _add_way_out(reason: str) -> str:
    if "--config.data.path" in reason or "no checkpoint" in reason or "data" not in reason:
        return reason
    return f"{reason}; if the data is elsewhere, add --config.data.path=..."
