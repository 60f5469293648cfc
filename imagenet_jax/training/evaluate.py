"""Evaluation: every image of a split counted once."""

import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from imagenet_jax.data import pipeline
from imagenet_jax.errors import UserError
from imagenet_jax.files import write_json
from imagenet_jax.runtime.eval_variants import evaluation_settings, name_variant, result_stem
from imagenet_jax.runtime.integrity import RemovedCheckpoint
from imagenet_jax.runtime.lock import is_training
from imagenet_jax.runtime.processes import (
    gather_names,
    is_first,
    require_same,
    run_on_first,
)
from imagenet_jax.runtime.workdir import read_config
from imagenet_jax.training.checkpoint_reader import open_to_read
from imagenet_jax.training.experiment import Evaluation, make_evaluation
from imagenet_jax.training.load_weights import known_to_file, known_to_run, place, read_file
from imagenet_jax.training.metrics import METRICS, finish_means
from imagenet_jax.training.sharding import prefetch_to_device
from imagenet_jax.training.state import TrainState
from imagenet_jax.training.step import compile_eval_step

Result = dict[str, Any]
Watched = Callable[[Iterator[dict[str, Any]]], Iterator[dict[str, Any]]]


class Evaluator:
    """Evaluates states of one shape; the program is compiled once."""

    def __init__(self, evaluation: Evaluation):
        self._evaluation = evaluation
        self._step = compile_eval_step(
            evaluation.abstract,
            evaluation.mesh,
            evaluation.graph,
            evaluation.config,
            evaluation.outputs,
        )

    def __call__(self, state: TrainState, watched: Watched = iter) -> list[Result]:
        """{weights, count, and each of METRICS} for the EMA weights, if kept, then the raw ones.

        Where the data has only some of the classes, also how many ("classes") of how many
        ("of_classes"): the others are left out of every logit vector.

        `watched` wraps the batches; what it raises ends the evaluation.

        Where images could not be decoded and config.data.undecodable says "skip", also "skipped":
        their names; the means are over the others.
        """
        kinds = ["raw"] if state.ema is None else ["ema", "raw"]
        return [{"weights": kind} | self._measure(state.weights(kind), watched) for kind in kinds]

    def _measure(self, weights: dict[str, Any], watched: Watched) -> Result:
        config, source = self._evaluation.config, self._evaluation.source
        batches = pipeline.eval_batches(
            source,
            config.data,
            config.eval,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        per_batch, skipped = [], []
        for batch in watched(prefetch_to_device(batches, self._evaluation.mesh)):
            skipped += batch.pop("skipped", [])
            per_batch.append(self._step(weights, batch))
        if config.data.undecodable == "skip":
            skipped = gather_names(skipped)
        # Python's float and int: sums over a split would round in float32.
        sums = dict.fromkeys(per_batch[0], 0.0)
        for batch in jax.device_get(per_batch):
            for name, value in batch.items():
                sums[name] += float(value)
        count = round(sums["count"])
        if count + len(skipped) != len(source):
            raise AssertionError(f"{count} images evaluated of the {len(source)} in {source.name}")
        if not count:
            raise UserError(f"none of the {len(source)} images of {source.name} can be decoded")
        means = finish_means({name: sums[name] / count for name in METRICS})
        classes = {"classes": len(source.class_names), "of_classes": config.model.num_classes}
        some = classes if classes["classes"] < classes["of_classes"] else {}
        return {"count": count} | means | some | ({"skipped": skipped} if skipped else {})


def write_result(workdir: Path, step: int, evaluation: Evaluation, results: list[Result]) -> Result:
    """Write the first result to `eval/STEP.json`, with the others under "also".

    "measured" says on which data and by which settings. Where these are not the run's own, the
    file is `eval/STEP-VARIANT.json`, and "variant" says in which way.
    """
    config = evaluation.config
    what = evaluation_settings(config, evaluation.source.fingerprint)
    variant = run_on_first(lambda: name_variant(workdir, what))
    record = {"step": step, "split": config.data.eval_split, **results[0], "also": results[1:]}
    record |= {"measured": what} | ({"variant": variant} if variant else {})

    def write() -> None:
        directory = workdir / "eval"
        directory.mkdir(exist_ok=True)
        path = directory / f"{result_stem(record)}.json"
        write_json(path, record)

    run_on_first(write)
    return record


def evaluate_workdir(
    workdir: Path,
    which: str,
    overrides: Iterable[tuple[str, str]] = (),
    *,
    follow: bool = False,
    poll_seconds: float = 2.0,
) -> Iterator[Result]:
    """Evaluate a checkpoint ("latest", "best" or a step) of `workdir`; with `follow`, each one.

    Following starts with `which`, waits for newer checkpoints while a training runs, and ends with
    the last one it left; one that is removed before it was read is passed over. `overrides` are
    (field, text) changes to the config that trained, to say where the data is here, say.

    Yields what `write_result` wrote, in every process. Raises UserError if there is nothing to
    evaluate.
    """
    config = read_config(workdir, overrides)
    evaluation = make_evaluation(config, known=known_to_run(workdir, config))
    require_same({"config": config.to_dict(), "data": evaluation.source.fingerprint})
    checkpoints = open_to_read(workdir, config)
    evaluate = Evaluator(evaluation)

    def measure(state: TrainState, step: int) -> Result:
        return write_result(workdir, step, evaluation, evaluate(state))

    while follow and run_on_first(lambda: is_training(workdir) and not checkpoints.steps()):
        time.sleep(poll_seconds)
    state, last = checkpoints.restore_chosen(evaluation.abstract, which)
    yield measure(state, last)

    def find_next() -> tuple[int | None, bool]:
        # Asked before looking: what a run leaves in its last moments is still seen.
        running = is_training(workdir)
        return next((step for step in checkpoints.steps() if step > last), None), running

    while follow:
        step, running = run_on_first(find_next)
        if step is not None:
            last = step
            try:
                state = checkpoints.restore_weights(evaluation.abstract, step)
            except RemovedCheckpoint:
                if is_first():
                    print(f"checkpoint {step} was removed before it was read", file=sys.stderr)
                continue
            yield measure(state, step)
        elif running:
            time.sleep(poll_seconds)
        else:
            return


def evaluate_file(file: Path, config: ConfigDict, key: str = "") -> Result:
    """The weights of a file, in torchvision's layout, over the evaluation split of `config`.

    `key` is the entry of the file that holds them, as for `weight_file.read`.

    Returns what `write_result` writes, with step 0, the file's name under "file" and, under "note",
    what was chosen, renamed and skipped in it, if anything was. Raises UserError where the file
    does not fit the model, or the data not the config.
    """
    tree, content = read_file(file, config, key)
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
    (result,) = Evaluator(evaluation)(state)
    result["weights"] = "ema" if content.is_ema else "raw"
    note = {"note": content.note} if content.note else {}
    what = {"measured": evaluation_settings(config, evaluation.source.fingerprint)}
    split = config.data.eval_split
    return {"step": 0, "split": split, **result, "also": [], **what, "file": str(file), **note}
