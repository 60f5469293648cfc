"""From a finished workdir to a published baseline."""

import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imagenet_jax import config as config_io
from imagenet_jax import strict_json
from imagenet_jax.baselines import folder as baseline
from imagenet_jax.baselines import model_card
from imagenet_jax.baselines.checksums import checksums
from imagenet_jax.classify.by_class import by_class
from imagenet_jax.classify.images import predict_split
from imagenet_jax.debug.recipe import describe_recipe
from imagenet_jax.errors import UserError
from imagenet_jax.logs.recorder import FIRST_STEPS
from imagenet_jax.runtime import workdir as workdirs
from imagenet_jax.runtime.eval_variants import require_run_settings
from imagenet_jax.runtime.lock import is_training
from imagenet_jax.runtime.provenance import ROOT, collect_provenance, find_revision
from imagenet_jax.training.checkpoint_reader import open_to_read
from imagenet_jax.training.evaluate import evaluate_workdir
from imagenet_jax.training.experiment import Experiment, make_experiment
from imagenet_jax.training.load_weights import Weights, of_workdir
from imagenet_jax.weights import torch_names

CHECKOUT = ROOT
_RESULT = ("weights", "count", "top1", "top5", "loss")
# Of the images, that another machine may classify otherwise: their two best classes are equal but
# for rounding.
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
    """Write the folder `out` from a finished run, whole or not at all.

    Args:
      checkpoint: "latest", "best" or a step.
      allow_dirty: publish although nobody can know the code from its revision.
      with_weights: write them too; their checksums are written in any case.
      overrides: (field, text) changes for the evaluation on this machine, such as data.path.

    Returns:
      One line that says what was written. Raises UserError, naming the way out, where the run or
      the code is not fit to be published.
    """
    overrides = list(overrides)
    if out.exists():
        raise UserError(f"--out={out} is there already: publish under another name, or remove it")
    if not out.resolve().name:
        raise UserError(f"--out={out} has no name; use baselines/NAME")
    require_run_settings(workdir, overrides, "publish")
    config = workdirs.read_config(workdir)
    provenance = workdirs.read_provenance(workdir)
    if is_training(workdir):
        raise UserError(f"a process trains in {workdir}: publish when it has finished")
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
            "command continues"
        )
    first_steps = _first_steps(workdir, run.total_steps)
    weights = of_workdir(workdir, str(step), overrides)
    results = _results(workdir, step, weights, overrides)
    params, stats = jax.device_get((weights.tree["params"], weights.tree["batch_stats"]))
    tensors = torch_names.to_torch(params, stats, config.model)
    fingerprint = {
        "data": run.fingerprints,
        "total_steps": run.total_steps,
        "first_steps": first_steps,
        "weights": {"checkpoint": step, "weights": results["results"][0]["weights"]}
        | checksums(tensors),
    }
    here = collect_provenance(run.fingerprints)
    files = {
        baseline.CONFIG: config_io.to_json(config),
        baseline.PROVENANCE: strict_json.dumps(provenance | {"published_with": here}, indent=2)
        + "\n",
        baseline.METRICS: (workdir / "metrics.jsonl").read_text(),
        baseline.RESULTS: baseline.dumps(results) + "\n",
        baseline.FINGERPRINT: baseline.dumps(fingerprint) + "\n",
    }
    part = out.with_name(f".{out.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)  # what a killed one left
        part.mkdir(parents=True)
        for name, text in files.items():
            (part / name).write_text(text)
        if with_weights:
            torch_names.save(tensors, part / baseline.WEIGHTS, weights.class_names)
        recipe = describe_recipe(config, len(run.source), run.total_steps)
        card = model_card.markdown(baseline.read(part), out, recipe, with_weights=with_weights)
        (part / baseline.CARD).write_text(card)
        part.rename(out)
    except OSError as e:
        raise UserError(f"--out={out} cannot be written: {e.strerror}") from e
    finally:
        shutil.rmtree(part, ignore_errors=True)
    first = results["results"][0]
    return (
        f"{out}: checkpoint {step}, {first['weights']} weights, top-1 {first['top1']:.2%} of "
        f"{first['count']:,} images; python -m imagenet_jax.publish --table puts it in the README"
    )


def _require_known_code(workdir: Path, provenance: dict[str, Any]) -> None:
    """UserError unless one committed revision trained the run, and none is changed here."""
    way_out = "or publish with --allow_dirty, which the model card will say"
    here = find_revision(CHECKOUT)
    if here.get("git_untracked"):
        raise UserError(f"git does not know {here['git_untracked'][0]}: commit it, {way_out}")
    if here["git_dirty"]:
        raise UserError(f"the code has changes that are not committed: commit them, {way_out}")
    starts = [provenance, *provenance.get("resumed", [])]
    revisions = list(dict.fromkeys(start["git_revision"] for start in starts))
    if None in revisions:
        raise UserError(f"{workdir} was trained outside a git checkout: train in one, {way_out}")
    unknown = [name for start in starts for name in start.get("git_untracked", [])]
    if unknown:
        raise UserError(
            f"{workdir} was trained with {unknown[0]}, which git does not know: commit it and "
            f"train again, {way_out}"
        )
    if any(start["git_dirty"] for start in starts):
        raise UserError(
            f"{workdir} was trained with changes that were not committed: train again with "
            f"committed code, {way_out}"
        )
    if len(revisions) > 1:
        names = ", ".join(revision[:7] for revision in revisions)
        raise UserError(
            f"{workdir} was trained with several revisions, {names}: train again with one, "
            f"{way_out}"
        )


def _require_same_data(workdir: Path, provenance: dict[str, Any], run: Experiment) -> None:
    for split, fingerprint in run.fingerprints.items():
        if provenance["data"].get(split) != fingerprint:
            raise UserError(
                f"split {split!r} of {run.config.data.path} has other images than {workdir} was "
                f"trained with, or the same stored otherwise ({fingerprint}, not "
                f"{provenance['data'].get(split)}): say where those are with "
                "--config.data.path=DIR"
            )


def _require_one_batch_size(workdir: Path, run: Experiment) -> None:
    """UserError if config.json alone does not say which records each step trained on."""
    for line in baseline.read_lines(workdir / "metrics.jsonl"):
        here = run.epoch_at(line["step"])
        if "epoch" in line and not math.isclose(line["epoch"], here, rel_tol=1e-9):
            raise UserError(
                f"{workdir} changed its batch size in mid-run: step {line['step']} is at epoch "
                f"{line['epoch']:.6g}, not {here:.6g} as with config.batch_size = "
                f"{run.config.batch_size} from the start. Nobody can reproduce such a run from its "
                "config: train it again in another --workdir"
            )


def _first_steps(workdir: Path, total_steps: int) -> list[dict[str, Any]]:
    path, wanted = workdir / "first_steps.jsonl", min(FIRST_STEPS, total_steps)
    lines = baseline.read_lines(path) if path.is_file() else []
    if [line["step"] for line in lines] != list(range(1, wanted + 1)):
        raise UserError(
            f"{path} does not have the first {wanted} steps, to know the run again by: an older "
            "version trained it; train it again"
        )
    return [{name: line[name] for name in ("step", "loss", "grad_norm")} for line in lines]


def _results(
    workdir: Path, step: int, weights: Weights, overrides: list[tuple[str, str]]
) -> dict[str, Any]:
    """What the training measured at `step`, or what is measured now, and the report by class."""
    split = weights.config.data.eval_split
    history = baseline.read_lines(workdir / "metrics.jsonl")
    found = [
        line
        for line in history
        if (line["step"], line["split"]) == (step, split) and "weights" in line
    ]
    if not found:  # that checkpoint was not evaluated
        record = next(iter(evaluate_workdir(workdir, str(step), overrides)))
        found = [record, *record["also"]]
    results = [{name: line[name] for name in _RESULT} for line in found]
    predictions = predict_split(weights)
    report = by_class(predictions.labels, predictions.probabilities, predictions.class_names)
    _require_same_accuracy(results[0], report.accuracy, len(predictions.labels))
    table = report.as_json()
    table["confusion"] = _pairs(report.confusion)
    return {"checkpoint": step, "split": split, "results": results, "by_class": table}


def _require_same_accuracy(result: dict[str, Any], accuracy: float, count: int) -> None:
    """UserError where the split, evaluated now, does not say what the training wrote."""
    allowed = max(2, _NEAR_TIES * count)
    if count != result["count"] or abs(accuracy - result["top1"]) * count > allowed:
        raise UserError(
            f"metrics.jsonl says top-1 {result['top1']:.4f} of {result['count']:,} images, but "
            f"this machine finds {accuracy:.4f} of {count:,}: publish where the run was trained"
        )


def _pairs(confusion: np.ndarray) -> list[list[int]]:
    """[[true class, predicted class, images]] of all that were confused."""
    wrong = confusion - np.diag(np.diag(confusion))
    return [[i, j, int(wrong[i, j])] for i, j in np.argwhere(wrong).tolist()]
