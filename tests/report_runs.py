"""Runs for tests of the report, made of random numbers without training or data."""

import numpy as np

from imagenet_jax.classify.by_class import by_class, reliability
from imagenet_jax.report.predictions import Explained, LayerImages, Pair, Predicted, Sample
from imagenet_jax.report.read import Run

STEPS_PER_EPOCH = 22.5


def metrics_of(rng, lines=40, every=10):
    """Return lines of metrics.jsonl: training, and some evaluations of both kinds of weights."""
    found = []
    for i in range(1, lines + 1):
        step = i * every
        values = {
            "epoch": step / STEPS_PER_EPOCH,
            "loss": 2 / i + 0.01 * rng.random(),
            "top1": 1 - 0.9 / i,
            "learning_rate": 0.1 * (1 - i / (lines + 1)),
            "grad_norm": rng.uniform(0.5, 2),
            "images_per_second": rng.uniform(200, 300),
            "input_wait": 0.1 * rng.random(),
        }
        found.append({"step": step, "split": "train", **values})
        if i % 10 == 0:
            for weights in ("ema", "raw"):
                top1 = (0.6, 0.9, 0.8, 0.7)[i // 10 - 1] + 0.05 * rng.random()
                measured = {"count": 200, "top1": top1, "top5": 0.99, "loss": 1 - top1}
                found.append({"step": step, "split": "validation", "weights": weights, **measured})
    return found


def probabilities_of(rng, images, classes):
    """Return labels i[N] and probabilities f[N, C] that are often right."""
    labels = np.arange(images) % classes
    logits = rng.normal(0, 1, (images, classes))
    logits[np.arange(images), labels] += rng.uniform(0, 6, images)
    weights = np.exp(logits)
    return labels, weights / weights.sum(axis=1, keepdims=True)


def sample_of(rng, names, true, predicted, side=16):
    pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    name = f"{names[true]}/{predicted}.png"
    return Sample(pixels, name, names[true], names[predicted], float(rng.random()))


def run_of(name="runs/a", seed=0, classes=10, class_names=None, **changes):
    """Return a finished run with predictions and explanations; `changes` replace its fields.

    "best_metric" is a field of its config.
    """
    rng = np.random.default_rng(seed)
    names = class_names or tuple(f"kind {i}" for i in range(classes))
    labels, probabilities = probabilities_of(
        rng, (20 if len(names) <= 100 else 2) * len(names), len(names)
    )
    metrics = metrics_of(rng)
    samples = [sample_of(rng, names, i % len(names), (i + i % 2) % len(names)) for i in range(6)]
    mistakes = tuple(s for s in samples if not s.is_right)
    predicted = Predicted(
        step=400,
        weights="ema",
        split="validation",
        images=len(labels),
        top1=float((probabilities.argmax(1) == labels).mean()),
        top5=0.99,
        by_class=by_class(labels, probabilities, names),
        reliability=reliability(labels, probabilities),
        pairs=tuple(Pair(s.true, s.predicted, 3, 0.15, (s,)) for s in mistakes),
        mistakes=mistakes,
        wrong=len(mistakes),
    )
    explained = Explained(
        filters=LayerImages("conv1", rng.integers(0, 256, (8, 3, 3, 3), dtype=np.uint8), 8),
        maps=(
            LayerImages("conv1", rng.integers(0, 256, (8, 16, 16), dtype=np.uint8), 8),
            LayerImages("layer4.1.conv2", rng.integers(0, 256, (6, 4, 4), dtype=np.uint8), 64),
        ),
        cam_layer="layer4.1.conv2",
        cams=tuple((s, rng.integers(0, 256, s.pixels.shape, dtype=np.uint8)) for s in samples),
    )
    fields = {
        "name": name,
        "workdir": name,
        "status": "finished, 400 steps",
        "config": {"seed": seed, "optim.base_lr": 0.1, "loss.label_smoothing": 0.1}
        | {"augment.mixup": 0.0, "augment.cutmix": 0.0, "model.num_classes": len(names)}
        | {"checkpoint.best_metric": changes.pop("best_metric", "top1")},
        "recipe": [("model", "resnet18, 100 parameters, float32"), ("length", "18 epochs")],
        "provenance": {"git_revision": f"{seed:040x}", "devices": ["cpu"], "resumed": [{}]},
        "metrics": metrics,
        "evaluations": [line for line in metrics if "weights" in line],
        "steps_per_epoch": STEPS_PER_EPOCH,
        "predicted": predicted,
        "explained": explained,
        "missing": "",
    }
    return Run(**(fields | changes))
