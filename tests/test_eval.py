"""The eval binary: exact counts, checkpoints by name, following a run."""

import json
import shutil
import threading
import time

import jax
import pytest
from conftest import random_state

from imagenet_jax import train as loop
from imagenet_jax.classify import evaluate_weights
from imagenet_jax.classify.evaluate_weights import evaluate_workdir
from imagenet_jax.data import sources
from imagenet_jax.errors import UserError
from imagenet_jax.training import checkpoint_errors
from imagenet_jax.training.evaluate import Evaluator
from imagenet_jax.training.experiment import make_evaluation


@pytest.mark.parametrize("batch_size", [8, 40, 120, 360, 368])
@pytest.mark.parametrize("split", ["validation", "validation[:1]", "validation[3:44]"])
def test_every_image_is_counted_once_whatever_the_batch(quick, batch_size, split):
    quick.eval.batch_size = batch_size
    quick.data.eval_split, quick.ema.decay = split, 0.0
    evaluate = make_evaluation(quick)
    state = random_state(evaluate.abstract)
    (result,) = Evaluator(evaluate)(state)
    assert result["count"] == len(sources.open_source(quick.data, split))
    right = result["top1"] * result["count"]
    assert right == pytest.approx(round(right))  # a whole number of images


def test_metrics_do_not_depend_on_the_batch(tiny):
    results, tiny.ema.decay = [], 0.0
    for batch_size in (8, 368):  # an image on each device; more than the split has
        tiny.eval.batch_size = batch_size
        evaluate = make_evaluation(tiny)
        state = random_state(evaluate.abstract)
        results.append(Evaluator(evaluate)(state)[0])
    for result in results[1:]:
        assert result["top1"] == results[0]["top1"]
        assert result["top5"] == results[0]["top5"]
        assert result["loss"] == pytest.approx(results[0]["loss"], rel=1e-5)


def test_writes_json_for_latest_best_and_a_step(quick, tmp_path):
    quick.checkpoint.every_epochs = quick.eval.every_epochs = 4 * 48 / 1437
    loop.train(quick, tmp_path)
    history = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = {(h["step"], h["weights"]): h for h in history if "weights" in h}
    for which in ("latest", "best", "4"):
        (result,) = evaluate_workdir(tmp_path, which)
        on_disk = json.loads((tmp_path / "eval" / f"{result['step']}.json").read_text())
        assert on_disk == result
        assert (result["split"], result["weights"], result["count"]) == ("validation", "ema", 360)
        assert result["also"][0]["weights"] == "raw"
        for one in (result, *result["also"]):
            same = logged[result["step"], one["weights"]]
            for name in ("top1", "top5", "loss"):
                assert one[name] == pytest.approx(same[name], rel=1e-6)
    best = max(("top1", h["top1"], s) for (s, w), h in logged.items() if w == "ema")[2]
    assert next(evaluate_workdir(tmp_path, "best"))["step"] == best


def test_data_may_lie_elsewhere(quick, tmp_path, digits_path):
    quick.eval.every_epochs = 0.0
    loop.train(quick, tmp_path / "run")
    moved = tmp_path / "moved" / "1.0.0"
    moved.parent.mkdir()
    moved.symlink_to(digits_path)
    (result,) = evaluate_workdir(tmp_path / "run", "latest", [("data.path", str(moved))])
    assert result["count"] == 360


def _vanish(directory, leave=()):
    """Remove files as a run does with a checkpoint that it no longer keeps."""
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_file() and path.name not in leave:
            path.unlink()
    if not leave:
        shutil.rmtree(directory)


@pytest.fixture
def removing(saved_run, tmp_path, monkeypatch):
    """removing(step, leave): the checkpoint vanishes after its checksums were looked at.

    Returns the workdir, with checkpoints 3, 5 and 7.
    """
    workdir = tmp_path / "run"
    shutil.copytree(saved_run.workdir, workdir)
    for step in (5, 7):
        shutil.copytree(workdir / "checkpoints" / "3", workdir / "checkpoints" / str(step))
    require_same = checkpoint_errors.require_same_arrays
    monkeypatch.setattr(
        evaluate_weights, "Evaluator", lambda _: lambda *_: [{"weights": "ema", "top1": 0.5}]
    )

    def start(step, leave=()):
        directory = workdir / "checkpoints" / str(step)

        def vanish_first(path, expected):
            if path.parent == directory and directory.exists():
                _vanish(directory, leave)
                if leave:  # the rest goes while it is watched
                    threading.Timer(0.2, shutil.rmtree, [directory]).start()
            require_same(path, expected)

        monkeypatch.setattr(checkpoint_errors, "require_same_arrays", vanish_first)
        return workdir

    return start


@pytest.mark.parametrize("leave", [(), ("manifest.ocdbt",)])
def test_follow_continues_if_a_checkpoint_is_removed_while_it_is_read(removing, capsys, leave):
    workdir = removing(5, leave)
    results = evaluate_workdir(workdir, "3", follow=True)
    assert [result["step"] for result in results] == [3, 7]
    assert "checkpoint 5 was removed" in capsys.readouterr().err


def test_latest_is_chosen_again_and_a_number_is_not(removing):
    assert [r["step"] for r in evaluate_workdir(removing(7), "latest")] == [5]
    with pytest.raises(UserError, match="checkpoint 5 was removed while it was read"):
        list(evaluate_workdir(removing(5), "5"))


@pytest.mark.slow
def test_follow_evaluates_the_checkpoints_of_a_running_training_and_ends_with_it(
    tiny, tmp_path, run_module
):
    from imagenet_jax.config import to_json

    (tmp_path / "mine.py").write_text(
        "import json\nfrom ml_collections import ConfigDict\n"
        "def tuples(t):\n"
        "  return {k: tuples(v) if isinstance(v, dict) else tuple(v) if isinstance(v, list) else v"
        " for k, v in t.items()}\n"
        f"def get_config(arg=''):\n  return ConfigDict(tuples(json.loads('''{to_json(tiny)}''')))\n"
    )
    run = tmp_path / "run"
    training = run_module(
        "imagenet_jax.main",
        f"--config={tmp_path}/mine.py",
        f"--workdir={run}",
        "--config.epochs=4",
        "--config.checkpoint.every_epochs=1",
        "--config.checkpoint.keep=9",
    )
    deadline = time.time() + 120
    while not (run / "running.json").exists():
        assert time.time() < deadline, training.stderr.read()
        assert training.poll() is None, training.stderr.read()
        time.sleep(0.1)
    follower = run_module("imagenet_jax.eval", f"--workdir={run}", "--follow")
    out, err = follower.communicate(timeout=180)
    assert training.wait(timeout=10) == 0
    assert follower.returncode == 0, err
    last = jax.numpy.ceil(4 * 1437 / 48)
    assert (run / "eval" / f"{int(last)}.json").exists()
    assert "120" in out
    assert "TensorBoard: " in out
