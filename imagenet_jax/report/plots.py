"""Pictures of a run."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from imagenet_jax import strict_json

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

_TRAIN, _EVAL = "tab:blue", "tab:orange"


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [
        strict_json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()
    ]


def plot_run(
    history: list[dict[str, Any]],
    images: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    class_names: tuple[str, ...],
    out: Path,
) -> None:
    """Loss, accuracy and learning rate over steps, and some predictions, as one PNG.

    Args:
      history: lines of metrics.jsonl.
      images: u8[N, H, W, 3] with labels i32[N] and class probabilities f32[N, C].
    """
    figure = plt.figure(figsize=(12, 5.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.25, 1))[:, 0]
    loss, accuracy, rate = top.subplots(1, 3)
    train = [line for line in history if line["split"] == "train"]
    evaluated: dict[str, list] = {}
    for line in history:
        if "weights" in line:
            evaluated.setdefault(f"{line['split']}, {line['weights']} weights", []).append(line)
    for axis, name, scale in ((loss, "loss", 1), (accuracy, "top1", 100)):
        steps = [line["step"] for line in train]
        axis.plot(steps, [scale * line[name] for line in train], color=_TRAIN, label="train")
        for (label, lines), style in zip(evaluated.items(), ("o-", "x--"), strict=False):
            points = [scale * line[name] for line in lines]
            axis.plot([line["step"] for line in lines], points, style, color=_EVAL, label=label)
        axis.set_xlabel("step")
        axis.legend()
    loss.set_yscale("log")
    loss.set_title("loss (nats)")
    accuracy.set_title("top-1 (%)")
    rate.plot([line["step"] for line in train], [line["learning_rate"] for line in train])
    rate.set_title("learning rate")
    rate.set_xlabel("step")

    for axis, image, label, p in zip(
        bottom.subplots(2, 12).flat, images, labels, probabilities, strict=False
    ):
        guess = int(p.argmax())
        axis.imshow(image)
        axis.set_title(
            f"{class_names[guess]} {p[guess]:.0%}"
            + ("" if guess == label else f" (is {class_names[label]})"),
            fontsize=8,
            color="black" if guess == label else "red",
        )
        axis.axis("off")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=80)
    plt.close(figure)
