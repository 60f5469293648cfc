"""Pictures of a run: the exact pixels of its first step, and its worst mistakes."""

import io
import json

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from imagenet_jax import train as loop
from imagenet_jax.data import augment, pipeline
from imagenet_jax.debug import pictures
from imagenet_jax.logs.throughput import MEASURED
from imagenet_jax.training.evaluate import predict
from imagenet_jax.training.experiment import make_evaluation, make_experiment
from imagenet_jax.training.sharding import prefetch_to_device
from imagenet_jax.training.state import create_state
from imagenet_jax.training.step import train_step


def _first_batch(run):
    config = run.config
    batches = pipeline.train_batches(run.source, run.sampler, config, start_step=0, total_steps=1)
    return next(iter(prefetch_to_device(batches, run.mesh)))


class _Seen(Exception):
    """Ends a step once its pixels are computed."""


def test_inputs_are_the_pixels_of_the_first_step(quick, monkeypatch):
    quick.augment.update({"mixup": 0.4, "cutmix": 1.0, "lighting": 0.5, "random_erase": 0.5})
    run = make_experiment(quick)
    batch = _first_batch(run)
    augment_apply = augment.apply

    def spy(*args, **kwargs):
        raise _Seen(jax.jit(lambda: augment_apply(*args, **kwargs)[0])())  # one program

    with monkeypatch.context() as patch, pytest.raises(_Seen) as seen:
        patch.setattr(augment, "apply", spy)
        state = create_state(quick.model, run.parts.tx, True, run.mesh, quick.seed)
        train_step(state, batch, run.parts)
    pixels = np.asarray(seen.value.args[0])[:9]
    expected = np.clip(pixels * np.array(quick.data.std) + np.array(quick.data.mean), 0, 1) * 255
    shown = pictures.augment_first_batch(batch, quick, run.mesh, 9)
    assert shown.dtype == np.uint8
    assert np.abs(shown - expected).max() <= 0.51  # rounded to bytes
    plain = np.asarray(batch["image"])[:9]
    assert (np.abs(shown.astype(int) - plain).max(axis=(1, 2, 3)) > 10).all()


def test_without_augmentation_the_inputs_are_the_batch(quick):
    quick.augment.flip = False
    run = make_experiment(quick)
    batch = _first_batch(run)
    shown = pictures.augment_first_batch(batch, quick, run.mesh, 5)
    np.testing.assert_array_equal(shown, np.asarray(batch["image"])[:5])


def test_mistakes_are_the_most_confident_wrong_predictions(saved_run):
    config, state = saved_run.config, saved_run.state
    evaluation = make_evaluation(config)
    worst = pictures.find_mistakes(evaluation, state, 7)
    images, labels = [], []
    for batch in pipeline.eval_batches(evaluation.source, config):
        kept = batch["mask"] > 0
        images.append(batch["image"][kept])
        labels.append(batch["label"][kept])
    images, labels = np.concatenate(images), np.concatenate(labels)
    said = np.asarray(predict(state.weights("ema"), images, graph=evaluation.graph, config=config))
    confidence = np.where(said.argmax(-1) != labels, said.max(-1), -1)
    order = np.argsort(-confidence, kind="stable")[:7]
    np.testing.assert_allclose(worst.confidence, confidence[order], rtol=1e-5)
    assert (np.diff(worst.confidence) <= 0).all()
    for pixels, label, predicted, p in zip(*worst, strict=True):
        (same,) = np.nonzero((images == pixels).all(axis=(1, 2, 3)) & (labels == label))
        assert np.isclose(confidence[same], p, rtol=1e-5).any()
        assert predicted in said.argmax(-1)[same]
        assert predicted != label


def test_count_may_exceed_the_number_of_mistakes(saved_run):
    worst = pictures.find_mistakes(make_evaluation(saved_run.config), saved_run.state, 400)
    evaluated = [len(x) for x in worst]
    assert len(set(evaluated)) == 1
    assert 0 < evaluated[0] <= 360


@pytest.fixture(scope="module")
def shown_run(tmp_path_factory, digits_path):
    from conftest import tiny_config

    workdir = tmp_path_factory.mktemp("shown") / "run"
    config = tiny_config(digits_path, "small_cnn")
    config.log.tensorboard, config.log.images = True, 5
    assert loop.train(config, workdir) == 0
    return config, workdir


@pytest.mark.slow
def test_tensorboard_has_inputs_and_mistakes(shown_run):
    config, workdir = shown_run
    events = EventAccumulator(str(workdir / "tensorboard"), {"images": 0}).Reload()
    shown = {}
    for name, step in (("inputs", 1), ("mistakes", 8)):
        (image,) = events.Images(name)
        assert image.step == step
        shown[name] = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    run = make_experiment(config)
    batch = _first_batch(run)
    expected = pictures.augment_first_batch(batch, config, run.mesh, 5)
    # 3 columns, 2 rows, 2 white pixels between: the fourth picture is the first of row 2.
    assert shown["inputs"].shape == (2 * 18 + 2, 3 * 18 + 2, 3)
    np.testing.assert_array_equal(shown["inputs"][2:18, 2:18], expected[0])
    np.testing.assert_array_equal(shown["inputs"][20:36, 2:18], expected[3])
    assert (shown["inputs"][20:36, 38:] == 255).all()


def test_restart_writes_no_picture_twice(shown_run):
    config, workdir = shown_run
    assert loop.train(config, workdir) == 0
    events = EventAccumulator(str(workdir / "tensorboard"), {"images": 0}).Reload()
    assert [len(events.Images(name)) for name in ("inputs", "mistakes")] == [1, 1]


def test_pictures_do_not_change_the_numbers(shown_run, tmp_path):
    config, workdir = shown_run
    config = config.copy_and_resolve_references()
    config.log.images, config.log.tensorboard = 0, False
    assert loop.train(config, tmp_path / "plain") == 0

    def numbers(directory):
        lines = (directory / "first_steps.jsonl").read_text().splitlines()
        last = [json.loads(x) for x in (directory / "metrics.jsonl").read_text().splitlines()][-2:]
        return lines, [{k: v for k, v in line.items() if k not in MEASURED} for line in last]

    assert numbers(tmp_path / "plain") == numbers(workdir)
