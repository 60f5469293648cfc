"""Publishes a finished run as a baseline."""

import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imagenet_jax import config as config_io
from imagenet_jax.baselines import folder as baseline
from imagenet_jax.baselines.markdown import write_card
from imagenet_jax.classify.by_class import by_class, predict_split
from imagenet_jax.classify.evaluate_weights import evaluate_workdir
from imagenet_jax.debug.recipe import describe_recipe
from imagenet_jax.errors import UserError, writing
from imagenet_jax.files import dump_json
from imagenet_jax.logs.recorder import FIRST_STEPS
from imagenet_jax.runtime import workdir as workdirs
from imagenet_jax.runtime.lock import is_training
from imagenet_jax.runtime.provenance import ROOT, collect_provenance, find_revision
from imagenet_jax.training.experiment import Experiment, make_experiment
from imagenet_jax.training.load_weights import Weights, load_run_weights, open_to_read
from imagenet_jax.training.metrics import METRICS, WEIGHTS_LABELS
from imagenet_jax.weights import state_dicts, weight_file

CHECKOUT = ROOT
# Fraction of the images that another machine may classify differently, because their two most
# likely classes are equal up to rounding.
_NEAR_TIES = 0.001


def publish(
    workdir: Path,
    out: Path,
    *,
    checkpoint: str = "latest",
    allow_dirty: bool = False,
    with_weights: bool = True,
    overrides: Iterable[tuple[str, str]] = (),
) -> str:
    """Write the folder `out` from a finished run, completely or not at all. Return a summary line.

    Args:
      checkpoint: "latest", "best" or a step.
      allow_dirty: publish even if the code cannot be identified by a revision.
      with_weights: include the weights; their checksums are always included.
      overrides: (field, text) changes for the evaluation on this machine, such as data.path.

    Raises UserError, with a way to fix it, if the run or the code cannot be published.
    """
    overrides = list(overrides)
    if out.exists():
        raise UserError(f"--out={out} already exists: use another name, or remove it")
    if not out.resolve().name:
        raise UserError(f"--out={out} has no name; use baselines/NAME")
    workdirs.require_run_settings(workdir, overrides, "publish")
    config = workdirs.read_config(workdir)
    provenance = workdirs.read_provenance(workdir)
    if is_training(workdir):
        raise UserError(f"{workdir} is being trained: publish it when it has finished")
    if not allow_dirty:
        _require_known_code(workdir, provenance)
    run = make_experiment(workdirs.read_config(workdir, overrides))
    _require_same_data(workdir, provenance, run)
    _require_one_batch_size(workdir, run)
    checkpoints = open_to_read(workdir, config)
    latest, step = checkpoints.find("latest"), checkpoints.find(checkpoint)
    if latest < run.total_steps:
        raise UserError(
            f"{workdir} is not finished: step {latest} of {run.total_steps}; the same training "
            "command continues it"
        )
    first_steps = _read_first_steps(workdir, run.total_steps)
    weights = load_run_weights(workdir, str(step), overrides)
    results = _make_results(workdir, step, weights, overrides)
    result = results["results"][0]
    params, stats = jax.device_get((weights.tree["params"], weights.tree["batch_stats"]))
    tensors = state_dicts.to_torch(params, stats, config.model)
    sums = baseline.checksums(tensors)
    fingerprint = {
        "data": run.fingerprints,
        "total_steps": run.total_steps,
        "first_steps": first_steps,
        "weights": {"checkpoint": step, "weights": result["weights"]} | sums,
    }
    provenance |= {"published_with": collect_provenance(run.fingerprints)}
    files = {
        baseline.CONFIG: config_io.to_json(config),
        baseline.PROVENANCE: dump_json(provenance, indent=2) + "\n",
        baseline.METRICS: (workdir / "metrics.jsonl").read_text(),
        baseline.RESULTS: baseline.format_json(results) + "\n",
        baseline.FINGERPRINT: baseline.format_json(fingerprint) + "\n",
    }
    part = out.with_name(f".{out.name}.part")
    try:
        with writing(f"--out={out}"):
            shutil.rmtree(part, ignore_errors=True)  # left by a killed process
            part.mkdir(parents=True)
            for name, text in files.items():
                (part / name).write_text(text)
            if with_weights:
                weight_file.save(tensors, part / baseline.WEIGHTS, weights.class_names)
            recipe = describe_recipe(config, len(run.source), run.total_steps)
            card = write_card(baseline.read(part), out, recipe, with_weights=with_weights)
            (part / baseline.CARD).write_text(card)
            part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    kind = WEIGHTS_LABELS[result["weights"]]
    return (
        f"{out}: checkpoint {step}, {kind} weights, top-1 {result['top1']:.2%} of "
        f"{result['count']:,} images; python -m imagenet_jax.publish --table adds it to the README"
    )


def _require_known_code(workdir: Path, provenance: dict[str, Any]) -> None:
    """Raise UserError unless a single committed revision trained the run, and is unchanged here."""
    hint = "or publish with --allow_dirty, which the model card will state"
    here = find_revision(CHECKOUT)
    if here.get("git_untracked"):
        raise UserError(f"{here['git_untracked'][0]} is not tracked by git: commit it, {hint}")
    if here["git_dirty"]:
        raise UserError(f"the code has uncommitted changes: commit them, {hint}")
    starts = [provenance, *provenance.get("resumed", [])]
    revisions = list(dict.fromkeys(start["git_revision"] for start in starts))
    if None in revisions:
        raise UserError(f"{workdir} was trained outside a git checkout: train in one, {hint}")
    unknown = [name for start in starts for name in start.get("git_untracked", [])]
    problem = ""
    if unknown:
        problem = f"with {unknown[0]}, which is not tracked by git: commit it and train again"
    elif any(start["git_dirty"] for start in starts):
        problem = "with uncommitted changes: train again with committed code"
    elif len(revisions) > 1:
        names = ", ".join(revision[:7] for revision in revisions)
        problem = f"with several revisions, {names}: train again with one"
    if problem:
        raise UserError(f"{workdir} was trained {problem}, {hint}")


def _require_same_data(workdir: Path, provenance: dict[str, Any], run: Experiment) -> None:
    for split, fingerprint in run.fingerprints.items():
        trained = provenance["data"].get(split)
        if trained != fingerprint:
            raise UserError(
                f"split {split!r} of {run.config.data.path} has fingerprint {fingerprint}, but "
                f"{workdir} was trained with {trained}: the images differ, or are stored "
                "differently; use --config.data.path=DIR for the original ones"
            )


def _require_one_batch_size(workdir: Path, run: Experiment) -> None:
    """Raise UserError if config.json does not determine the records of each step."""
    for line in baseline.read_lines(workdir / "metrics.jsonl"):
        here = run.epoch_at(line["step"])
        if "epoch" in line and not math.isclose(line["epoch"], here, rel_tol=1e-9):
            raise UserError(
                f"{workdir} changed its batch size during training: step {line['step']} is at "
                f"epoch {line['epoch']:.6g}, not {here:.6g} as with config.batch_size = "
                f"{run.config.batch_size} from the start. The published config cannot reproduce "
                "such a run: train it again in another --workdir"
            )


def _read_first_steps(workdir: Path, total_steps: int) -> list[dict[str, Any]]:
    path, wanted = workdir / "first_steps.jsonl", min(FIRST_STEPS, total_steps)
    lines = baseline.read_lines(path) if path.is_file() else []
    if [line["step"] for line in lines] != list(range(1, wanted + 1)):
        raise UserError(
            f"{path} does not have the first {wanted} steps, which the fingerprint needs: an older "
            "version trained this run; train it again"
        )
    return [{name: line[name] for name in ("step", "loss", "grad_norm")} for line in lines]


def _make_results(
    workdir: Path, step: int, weights: Weights, overrides: list[tuple[str, str]]
) -> dict[str, Any]:
    """Return the content of results.json. Evaluates a checkpoint without a recorded result."""
    split = weights.config.data.eval_split
    history = baseline.read_lines(workdir / "metrics.jsonl")
    wanted = (step, split)
    found = [x for x in history if (x["step"], x["split"]) == wanted and "weights" in x]
    if not found:
        record = next(iter(evaluate_workdir(workdir, str(step), overrides)))
        found = [record, *record["also"]]
    names = ("weights", "count", *METRICS)
    results = [{name: line[name] for name in names if name in line} for line in found]
    predicted = predict_split(weights)
    report = by_class(predicted.labels, predicted.probabilities, predicted.class_names)
    _require_same_accuracy(results[0], report.accuracy, len(predicted.labels))
    wrong = report.confusion - np.diag(np.diag(report.confusion))
    # [true class, predicted class, number of images] of each confusion
    confusion = [[i, j, int(wrong[i, j])] for i, j in np.argwhere(wrong).tolist()]
    table = report.as_json() | {"confusion": confusion}
    return {"checkpoint": step, "split": split, "results": results, "by_class": table}


def _require_same_accuracy(result: dict[str, Any], accuracy: float, count: int) -> None:
    """Raise UserError if the accuracy measured here differs from the recorded one."""
    allowed = max(2, _NEAR_TIES * count)
    if count != result["count"] or abs(accuracy - result["top1"]) * count > allowed:
        raise UserError(
            f"metrics.jsonl has top-1 {result['top1']:.4f} on {result['count']:,} images, but "
            f"this machine measures {accuracy:.4f} on {count:,}: publish where the run was trained"
        )
