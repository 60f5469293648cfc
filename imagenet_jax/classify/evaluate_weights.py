"""Evaluates the checkpoints of a run, or a weights file; prints and writes the results."""

import hashlib
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from imagenet_jax.classify.by_class import write_by_class
from imagenet_jax.classify.images import watch
from imagenet_jax.cli import load_weights_config
from imagenet_jax.errors import expand_user, writing
from imagenet_jax.files import dump_json, write_json
from imagenet_jax.progress import announce
from imagenet_jax.runtime.integrity import RemovedCheckpoint
from imagenet_jax.runtime.lock import is_training
from imagenet_jax.runtime.processes import is_first, require_same, run_on_first
from imagenet_jax.runtime.workdir import (
    evaluation_settings,
    explain_variant,
    name_variant,
    read_config,
    result_stem,
)
from imagenet_jax.training.evaluate import Evaluator, Result
from imagenet_jax.training.experiment import Evaluation, make_evaluation
from imagenet_jax.training.load_weights import (
    known_to_file,
    known_to_run,
    load_run_weights,
    load_weights_file,
    open_to_read,
    place,
    read_file,
)
from imagenet_jax.training.metrics import WEIGHTS_LABELS, shown_metrics
from imagenet_jax.training.state import TrainState
from imagenet_jax.weights import catalog

_POLL_SECONDS = 2.0


def evaluate_and_report(args: Namespace, overrides: list[tuple[str, str]]) -> None:
    """Evaluate the weights that the flags of `eval` name. Print and write each result."""
    workdir = expand_user(args.workdir) if args.workdir else None
    records: Iterable[Result]
    if workdir:
        checkpoint = args.checkpoint or "latest"
        records = evaluate_workdir(workdir, checkpoint, overrides, follow=args.follow)
    else:
        config = load_weights_config(args, overrides)
        file, key = catalog.locate(args.weights), args.weights_key or ""
        record = evaluate_file(file, config, key)
        if entry := catalog.find(args.weights):
            record["published"] = catalog.compare_with_published(entry, record)
        records = [record]

    def report(record: Result) -> None:
        if args.json == "-":
            print(dump_json(record), flush=True)
            return
        print_result(record, workdir)
        if args.json:
            with writing(f"--json={args.json}"):
                write_json(expand_user(args.json), record)

    for record in records:
        run_on_first(partial(report, record))
        if args.by_class is not None:
            if workdir:
                weights = load_run_weights(workdir, str(record["step"]), overrides)
            else:
                weights = load_weights_file(file, config, key)
            directory = expand_user(args.by_class) if args.by_class else Path(args.workdir, "eval")
            write_by_class(weights, directory, result_stem(record))


def evaluate_workdir(
    workdir: Path,
    checkpoint: str,
    overrides: Iterable[tuple[str, str]] = (),
    *,
    follow: bool = False,
) -> Iterator[Result]:
    """Evaluate a checkpoint of `workdir` ("latest", "best" or a step), and yield its result.

    Args:
      overrides: (field, text) changes to the run's config, such as where the data is.
      follow: continue with each newer checkpoint until training ends, and wait for the first one if
        there is none yet. Checkpoints that are removed before they are read are skipped.

    Yields the records of `write_result`, in every process. Raises UserError if there is nothing to
    evaluate.
    """
    config = read_config(workdir, overrides)
    with announce("opening the data", quiet=not is_first()):
        evaluation = make_evaluation(config, known=known_to_run(workdir, config))
    require_same({"config": config.to_dict(), "data": evaluation.source.fingerprint})
    checkpoints = open_to_read(workdir, config)
    evaluator = Evaluator(evaluation)

    def evaluate(state: TrainState, step: int) -> Result:
        results = evaluator(state, lambda batches: watch(batches, evaluation, "evaluating"))
        return write_result(workdir, step, evaluation, results)

    with announce("waiting for the first checkpoint", quiet=not is_first()):
        while follow and run_on_first(lambda: is_training(workdir) and not checkpoints.steps()):
            time.sleep(_POLL_SECONDS)
    with announce("reading the checkpoint", quiet=not is_first()):
        state, last = checkpoints.restore_chosen(evaluation.abstract, checkpoint)
    yield evaluate(state, last)

    def find_next() -> tuple[int | None, bool]:
        running = is_training(workdir)  # check this first, so as not to miss the last checkpoint
        return next((step for step in checkpoints.steps() if step > last), None), running

    while follow:
        with announce("waiting for the next checkpoint", quiet=not is_first()):
            step, running = run_on_first(find_next)
            while step is None and running:
                time.sleep(_POLL_SECONDS)
                step, running = run_on_first(find_next)
        if step is not None:
            last = step
            try:
                state = checkpoints.restore_weights(evaluation.abstract, step)
            except RemovedCheckpoint:
                if is_first():
                    print(f"checkpoint {step} was removed before it was read", file=sys.stderr)
                continue
            yield evaluate(state, step)
        else:
            return


def evaluate_file(file: Path, config: ConfigDict, key: str = "") -> Result:
    """Evaluate a weights file on the evaluation split of `config`.

    Args:
      key: the entry of the file that has the weights, as for `weight_file.read`.

    Returns a record like that of `write_result`, with step 0, "file", and a "note" if entries of
    the file were chosen, renamed or skipped. Raises UserError if the file does not fit the model,
    or the data does not fit the config.
    """
    with announce("reading the weights", quiet=not is_first()):
        tree, content = read_file(file, config, key)
    with announce("opening the data", quiet=not is_first()):
        evaluation = make_evaluation(config, known=known_to_file(file, config))
    require_same(
        {
            "config": config.to_dict(),
            "data": evaluation.source.fingerprint,
            "weights file": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
    )
    placed = place(tree, config, evaluation.mesh)
    state = TrainState(step=jax.numpy.int32(0), opt_state=None, ema=None, **placed)
    (result,) = Evaluator(evaluation)(
        state, lambda batches: watch(batches, evaluation, "evaluating")
    )
    result["weights"] = "ema" if content.is_ema else "raw"
    record = _make_record(0, evaluation, [result]) | {"file": str(file)}
    return record | ({"note": content.note} if content.note else {})


def write_result(workdir: Path, step: int, evaluation: Evaluation, results: list[Result]) -> Result:
    """Write the results of a checkpoint to `eval/STEP.json`, and return what was written.

    The record has the first result, the others under "also", and the data and settings under
    "measured". If those differ from the run's, the file is `eval/STEP-VARIANT.json`, and "variant"
    names the differences.
    """
    record = _make_record(step, evaluation, results)

    def write() -> str:
        variant = name_variant(workdir, record["measured"])
        if variant:
            record["variant"] = variant
        (workdir / "eval").mkdir(exist_ok=True)
        write_json(workdir / "eval" / f"{result_stem(record)}.json", record)
        return variant

    variant = run_on_first(write)
    return record | ({"variant": variant} if variant else {})


def _make_record(step: int, evaluation: Evaluation, results: list[Result]) -> Result:
    config = evaluation.config
    return {
        "step": step,
        "split": config.data.eval_split,
        **results[0],
        "also": results[1:],
        "measured": evaluation_settings(config, evaluation.source.fingerprint),
    }


def print_result(record: dict[str, Any], workdir: Path | None = None) -> None:
    """Print an evaluation as a table and, for a run, the paths of its files."""
    stem = result_stem(record)
    num_classes = record.get("classes", record["measured"]["model.num_classes"])
    metrics = shown_metrics(num_classes)
    table = Table(title=f"checkpoint {stem}" if workdir else Path(record["file"]).name)
    table.add_column("split")
    table.add_column("weights")
    for column in ("images", *(metric.label for metric in metrics)):
        table.add_column(column, justify="right")
    for row in (record, *record["also"]):
        table.add_row(
            record["split"],
            WEIGHTS_LABELS[row["weights"]],
            f"{row['count']:,}",
            *(metric.text(row[metric.name]) for metric in metrics),
        )
    Console(file=sys.stdout).print(table)
    if "note" in record:
        print(record["note"])
    if "published" in record:
        print(catalog.describe_comparison(record))
    if "classes" in record:
        print(f"classes: {record['classes']:,} of {record['of_classes']:,}")
    if "skipped" in record:
        print(f"undecodable and not counted: {', '.join(record['skipped'])}")
    if not workdir:
        return
    print(
        f"TensorBoard: {workdir / 'tensorboard'}  metrics: {workdir / 'metrics.jsonl'}  "
        f"checkpoints: {workdir / 'checkpoints'}  this result: {workdir / 'eval' / stem}.json"
    )
    if "variant" in record:
        print(explain_variant(workdir, record["measured"]))
    sys.stdout.flush()
