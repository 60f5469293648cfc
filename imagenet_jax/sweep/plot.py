"""The picture of an ablation: every run, the means, and the differences to the baseline."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)
from matplotlib.axes import Axes  # noqa: E402

from imagenet_jax.errors import UserError  # noqa: E402
from imagenet_jax.sweep.compare import Line  # noqa: E402
from imagenet_jax.sweep.table import label_of, missing, scale_of  # noqa: E402

_RUN, _MEAN, _BASE, _CLEAR = "0.6", "tab:blue", "0.2", "tab:orange"


def plot_ablation(lines: Sequence[Line], metric: str, out: Path) -> None:
    """Two panels, a row per setting: the runs with their mean, and the paired difference.

    Bars are 95 % confidence intervals; a difference that stays significant after Holm's correction
    is in another colour. UserError where nothing has finished, or the file cannot be written.
    """
    if not any(line.summary for line in lines):
        raise UserError("--plot: no run has finished, there is nothing to draw")
    has_differences = any(line.difference for line in lines)
    figure, axes = plt.subplots(
        1,
        2 if has_differences else 1,
        figsize=(10 if has_differences else 6, 1.2 + 0.42 * len(lines)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    left = axes[0, 0]
    _runs(left, lines, metric)
    left.set_yticks(range(len(lines)), [_label(line) for line in lines])
    for tick, line in zip(left.get_yticklabels(), lines, strict=True):
        tick.set_fontweight("bold" if line.is_baseline else "normal")
    left.set_ylim(len(lines) - 0.5, -0.5)  # the first setting at the top, as in the table
    if has_differences:
        _differences(axes[0, 1], lines, metric)
    for axis in axes[0]:
        axis.grid(axis="x", alpha=0.3)
        axis.tick_params(axis="y", length=0)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=100)
    except (OSError, ValueError) as e:
        raise UserError(f"--plot={out} cannot be written: {e}") from e
    finally:
        plt.close(figure)


def _runs(axis: Axes, lines: Sequence[Line], metric: str) -> None:
    scale = scale_of(metric)
    for y, line in enumerate(lines):
        values = [scale * value for value in line.outcome.metric.values()]
        axis.plot(values, [y + 0.22] * len(values), "o", color=_RUN, markersize=6, alpha=0.7, mew=0)
        if line.summary is None:
            axis.annotate(
                missing(line), (0.02, y), xycoords=("axes fraction", "data"), va="center",
                color="tab:red", style="italic",
            )  # fmt: skip
            continue
        color = _BASE if line.is_baseline else _MEAN
        half = scale * (line.summary.half_width or 0.0)
        mean = scale * line.summary.mean
        axis.errorbar(mean, y, xerr=half or None, fmt="D", color=color, markersize=6, capsize=3)
        if line.is_baseline:
            axis.axvline(mean, color=_BASE, linewidth=0.8, linestyle=":")
    for style, color, text in (("o", _RUN, "run"), ("D", _MEAN, "mean, 95 % interval")):
        axis.plot([], [], style, color=color, markersize=6, mew=0, label=text)
    axis.plot([], [], "D", color=_BASE, markersize=6, label="baseline")
    axis.legend(
        frameon=False, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3
    )
    axis.set_xlabel(label_of(metric))


def _differences(axis: Axes, lines: Sequence[Line], metric: str) -> None:
    scale = scale_of(metric)
    axis.axvline(0.0, color=_BASE, linewidth=0.8, linestyle=":")
    for y, line in enumerate(lines):
        if line.difference is None:
            continue
        s = line.difference.summary
        half = scale * (s.half_width or 0.0)
        color = _CLEAR if line.is_significant else _MEAN
        axis.errorbar(
            scale * s.mean, y, xerr=half or None, fmt="D", color=color, markersize=6, capsize=3
        )
    for color, text in ((_CLEAR, "p < 0.05 (Holm)"), (_MEAN, "p ≥ 0.05")):
        axis.plot([], [], "D", color=color, markersize=6, label=text)
    axis.legend(
        frameon=False, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2
    )
    points = " (points)" if scale > 1 else ""
    axis.set_xlabel(f"paired difference to the baseline{points}")


def _label(line: Line) -> str:
    pairs = [f"{field} = {value}" for field, value in line.outcome.values.items()]
    return ", ".join(pairs)
