"""The plot of a sweep: every trial, the means, and the differences from the baseline."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)
from matplotlib.axes import Axes  # noqa: E402

from imagenet_jax.errors import UserError  # noqa: E402
from imagenet_jax.sweep.statistics import SIGNIFICANT, Row, Summary  # noqa: E402
from imagenet_jax.sweep.table import axis_label, find_scale, missing  # noqa: E402

_TRIAL, _MEAN, _BASE, _SIGNIFICANT = "0.6", "tab:blue", "0.2", "tab:orange"


def plot_sweep(rows: Sequence[Row], metric: str, out: Path) -> None:
    """Draw one line per setting: its trials with their mean, and its paired difference.

    Bars are 95 % confidence intervals. Differences that are significant after Holm's correction
    have their own color. Raises UserError if no trial has finished or the file cannot be written.
    """
    if not any(row.summary for row in rows):
        raise UserError("--plot: no run has finished, so there is nothing to draw")
    panels = 2 if any(row.difference for row in rows) else 1
    size = (10 if panels == 2 else 6, 1.2 + 0.42 * len(rows))
    figure, axes = plt.subplots(
        1, panels, figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    left = axes[0, 0]
    _draw_trials(left, rows, metric)
    names = [", ".join(f"{k} = {v}" for k, v in row.result.values.items()) for row in rows]
    left.set_yticks(range(len(rows)), names)
    for tick, row in zip(left.get_yticklabels(), rows, strict=True):
        tick.set_fontweight("bold" if row.is_baseline else "normal")
    left.set_ylim(len(rows) - 0.5, -0.5)  # the first setting at the top, as in the table
    if panels == 2:
        _draw_differences(axes[0, 1], rows, metric)
    for axis in axes[0]:
        axis.legend(
            frameon=False, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3
        )
        axis.grid(axis="x", alpha=0.3)
        axis.tick_params(axis="y", length=0)
        axis.spines[["top", "right", "left"]].set_visible(False)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=100)
    except (OSError, ValueError) as e:
        raise UserError(f"--plot={out} cannot be written: {e}") from e
    finally:
        plt.close(figure)


def _draw_trials(axis: Axes, rows: Sequence[Row], metric: str) -> None:
    scale = find_scale(metric)
    for y, row in enumerate(rows):
        values = [scale * value for value in row.result.metric.values()]
        axis.plot(values, [y + 0.22] * len(values), "o", color=_TRIAL, alpha=0.7, mew=0)
        if row.summary:
            _draw_interval(axis, y, row.summary, scale, _BASE if row.is_baseline else _MEAN)
            if row.is_baseline:
                axis.axvline(scale * row.summary.mean, color=_BASE, linewidth=0.8, linestyle=":")
        else:
            axis.annotate(
                missing(row.result), (0.02, y), xycoords=("axes fraction", "data"), va="center",
                color="tab:red", style="italic",
            )  # fmt: skip
    axis.plot([], [], "o", color=_TRIAL, mew=0, label="run")
    axis.plot([], [], "D", color=_MEAN, mew=0, label="mean, 95 % interval")
    axis.plot([], [], "D", color=_BASE, label="baseline")
    axis.set_xlabel(axis_label(metric))


def _draw_differences(axis: Axes, rows: Sequence[Row], metric: str) -> None:
    scale = find_scale(metric)
    axis.axvline(0.0, color=_BASE, linewidth=0.8, linestyle=":")
    for y, row in enumerate(rows):
        if row.difference:
            color = _SIGNIFICANT if row.is_significant else _MEAN
            _draw_interval(axis, y, row.difference, scale, color)
    axis.plot([], [], "D", color=_SIGNIFICANT, label=f"p < {SIGNIFICANT} (Holm)")
    axis.plot([], [], "D", color=_MEAN, label=f"p ≥ {SIGNIFICANT}")
    points = " (percentage points)" if scale > 1 else ""
    axis.set_xlabel(f"paired difference from the baseline{points}")


def _draw_interval(axis: Axes, y: int, summary: Summary, scale: float, color: str) -> None:
    half = scale * (summary.half_width or 0.0)
    axis.errorbar(scale * summary.mean, y, xerr=half or None, fmt="D", color=color, capsize=3)
