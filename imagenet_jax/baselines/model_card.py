"""The model card of a baseline: results, recipe, how to reproduce it, and its limits.

The sections follow Mitchell et al. 2019, "Model Cards for Model Reporting", arXiv:1810.03993, as
far as a training run has the information.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from imagenet_jax.baselines.folder import (
    CONFIG,
    FINGERPRINT,
    METRICS,
    PROVENANCE,
    RESULTS,
    WEIGHTS,
    Baseline,
)
from imagenet_jax.runtime.provenance import describe_code
from imagenet_jax.training.metrics import WEIGHTS_LABELS, shown_metrics

_CLASSES = 10  # rows of the table by class; results.json has all classes
_Z = 1.959964  # quantile of the normal distribution for a 95 % interval


def write_card(
    baseline: Baseline, folder: Path, recipe: Sequence[tuple[str, str]], *, with_weights: bool
) -> str:
    """Return the Markdown of the card of a baseline that will be in `folder`."""
    config, results, first = baseline.config, baseline.results, baseline.result
    low, high = wilson_interval(first["top1"], first["count"])
    name, kind = _escape(folder.resolve().name), WEIGHTS_LABELS[first["weights"]]
    width = "" if config.model.width == 1 else f" of width {config.model.width:g}"
    start = config.init.weights
    begin = f"started from `{_escape(Path(start).name)}`" if start else "trained from scratch"
    metrics = shown_metrics(config.model.num_classes)
    columns = ("weights", "images", *(metric.label for metric in metrics))
    rows = [
        (
            WEIGHTS_LABELS[row["weights"]],
            f"{row['count']:,}",
            *(metric.text(row.get(metric.name)) for metric in metrics),
        )
        for row in results["results"]
    ]
    path = f"baselines/{name}" if folder.resolve().parent.name == "baselines" else str(folder)
    return f"""# {name}

{_escape(config.model.name)}{width}, {begin}: **{first["top1"]:.2%} top-1** on the \
{first["count"]:,} images of `{_escape(results["split"])}`, each counted once ({kind} weights of \
step {results["checkpoint"]:,}). For this number of images the 95 % interval is {low:.2%} to \
{high:.2%} (Wilson).

## Results

{_table(columns, rows)}

{_by_class(results["by_class"], kind)}

## Recipe

{_table(("", ""), recipe)}

[`{CONFIG}`]({CONFIG}) has every field, [`{METRICS}`]({METRICS}) the curves.

## Reproduce

```sh
python -m imagenet_jax.reproduce {path}          # the first steps
python -m imagenet_jax.reproduce {path} --full   # to the published checkpoint
```

The loss and gradient norm of the first {len(baseline.fingerprint["first_steps"])} steps are \
compared with [`{FINGERPRINT}`]({FINGERPRINT}): bit for bit if versions and hardware are those of \
[`{PROVENANCE}`]({PROVENANCE}), otherwise within a tolerance. In short they are:

{_table(("", ""), _environment(baseline))}

## Weights

{_weights(baseline, path, with_weights)}

## Intended use and limits

{_LIMITS.format(classes=config.model.num_classes)}
"""


_LIMITS = """\
- For comparing training methods: same data, same evaluation, one change at a time. It was made \
for research and not tested for anything else. Do not use it for decisions about people or where \
safety depends on it.
- One run with one seed. Another seed gives another number, and a difference within the interval \
above is not evidence.
- Measured on one split from the same source as the training images. The model assigns one of \
{classes:,} classes to any image; expect a lower accuracy for other images, cameras or places.
- Accuracies are optimistic if the checkpoint was chosen, or the recipe tuned, on this split.
- The license terms of the training images apply to the use of the weights."""


def wilson_interval(proportion: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion (Wilson 1927, J. Am. Stat. Assoc. 22, 209)."""
    shrink = 1 + _Z**2 / count
    center = proportion + _Z**2 / (2 * count)
    half = _Z * math.sqrt(proportion * (1 - proportion) / count + (_Z / (2 * count)) ** 2)
    return (center - half) / shrink, (center + half) / shrink


def _by_class(report: dict[str, Any], kind: str) -> str:
    hardest = sorted(report["classes"], key=lambda row: row["f1"])[:_CLASSES]
    shown = f"the hardest {len(hardest)} of {len(report['classes']):,} classes"
    if len(hardest) == len(report["classes"]):
        shown = "all classes, the hardest first"
    rows = (
        (
            row["name"],
            *(f"{row[k]:.1%}" for k in ("precision", "recall", "f1")),
            f"{row['images']:,}",
        )
        for row in hardest
    )
    return f"""\
By class ({kind} weights): mean precision {report["precision"]:.2%}, recall {report["recall"]:.2%} \
and F1 {report["f1"]:.2%}; expected calibration error {report["calibration_error"]:.2%}. The table \
has {shown}; [`{RESULTS}`]({RESULTS}) has every class and the confusions.

{_table(("class", "precision", "recall", "F1", "images"), rows)}"""


def _environment(baseline: Baseline) -> list[tuple[str, str]]:
    provenance, cpu = baseline.provenance, baseline.cpu
    revisions = dict.fromkeys(describe_code(start) or "unknown" for start in baseline.starts)
    code = ", ".join(f"`{_escape(revision)}`" for revision in revisions)
    devices = provenance["devices"]
    processor = cpu.get("model name", cpu.get("architecture", "unknown"))
    return [
        ("code", f"revision {code}" + ", **with uncommitted changes**" * baseline.is_dirty),
        ("Python", provenance["python"]),
        ("packages", ", ".join(f"{k} {v}" for k, v in provenance["packages"].items())),
        ("devices", f"{len(devices)} x {', '.join(sorted(set(devices)))}"),
        ("processor", f"{processor}, {cpu.get('cores', '?')} cores"),
        ("data", "; ".join(f"{k}: fingerprint {v}" for k, v in provenance["data"].items())),
        ("seed", str(baseline.config.seed)),
    ]


def _weights(baseline: Baseline, path: str, included: bool) -> str:
    sums = baseline.fingerprint["weights"]
    total = f"SHA-256 over all {len(sums['tensors'])} tensors: `{sums['all']}`."
    if not included:
        return f"Not in this folder; `reproduce --full` compares their checksums. {total}"
    return f"""\
[`{WEIGHTS}`]({WEIGHTS}): torchvision's keys and layouts, float32, class names in the metadata. \
{total}

```sh
python -m imagenet_jax.predict IMAGE --weights={path}/{WEIGHTS} --config={path}/{CONFIG}
```"""


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a Markdown table; the second column is Markdown already."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(c if i == 1 else _escape(str(c)) for i, c in enumerate(line)) + " |"
        for line in lines
    )


def _escape(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")
