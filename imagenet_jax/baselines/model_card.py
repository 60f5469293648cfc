"""The model card of a baseline: what it is, how good, how to have it again, what it is not for.

The sections are those of Mitchell et al. 2019, "Model Cards for Model Reporting",
arXiv:1810.03993, as far as a training run knows them.
"""

import math
from collections.abc import Sequence
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

_CLASSES = 10  # shown; results.json has all
_Z = 1.959964  # of a 95 % interval


def markdown(
    baseline: Baseline, folder: Path, recipe: list[tuple[str, str]], *, with_weights: bool
) -> str:
    """The card of a baseline that will lie in `folder`."""
    results = baseline.results
    first = results["results"][0]
    low, high = wilson(first["top1"], first["count"])
    name = _escape(folder.resolve().name)
    model, start = baseline.config.model, baseline.config.init.weights
    width = "" if model.width == 1 else f" of width {model.width:g}"
    begun = f"started from `{_escape(Path(start).name)}`" if start else "trained from scratch"
    summary = (
        f"{_escape(model.name)}{width}, {begun}: **{first['top1']:.2%} top-1** on the "
        f"{first['count']:,} images of `{_escape(results['split'])}`, once each "
        f"({_kind(first['weights'])} weights of step {results['checkpoint']:,}). With so many "
        f"images the 95 % interval is {low:.2%} to {high:.2%} (Wilson)."
    )
    lines = [f"# {name}", "", summary, "", "## Results", ""]
    lines += _table(
        ("weights", "images", "top-1", "top-5", "loss"),
        [
            (
                _kind(row["weights"]), f"{row['count']:,}", f"{row['top1']:.2%}",
                f"{row['top5']:.2%}", f"{row['loss']:.4f}",
            )
            for row in results["results"]
        ],
    )  # fmt: skip
    lines += ["", *_by_class(results["by_class"], first["weights"])]
    lines += ["", "## Recipe", "", *_table(("", ""), recipe)]
    lines += ["", f"[`{CONFIG}`]({CONFIG}) has every field, [`{METRICS}`]({METRICS}) the curves."]
    lines += ["", "## Reproduce", "", *_reproduce(baseline, folder)]
    lines += ["", "## Weights", "", *_weights(baseline, folder, with_weights)]
    lines += ["", "## Intended use and limits", "", *_limits(baseline)]
    return "\n".join(lines) + "\n"


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of `count` images (Wilson 1927, J. Am. Stat. Assoc. 22, 209)."""
    shrink = 1 + _Z**2 / count
    centre = share + _Z**2 / (2 * count)
    half = _Z * math.sqrt(share * (1 - share) / count + (_Z / (2 * count)) ** 2)
    return (centre - half) / shrink, (centre + half) / shrink


def _by_class(report: dict[str, Any], kind: str) -> list[str]:
    hardest = sorted(report["classes"], key=lambda row: row["f1"])[:_CLASSES]
    of_all = f"the hardest {len(hardest)} of {len(report['classes']):,} classes"
    if len(hardest) == len(report["classes"]):
        of_all = "classes, the hardest first"
    return [
        f"By class ({_kind(kind)} weights): means of precision {report['precision']:.2%}, recall "
        f"{report['recall']:.2%} and F1 {report['f1']:.2%}; expected calibration error "
        f"{report['calibration_error']:.2%}. Here {of_all}; [`{RESULTS}`]({RESULTS}) has all, and "
        "what was taken for what.",
        "",
        *_table(
            ("class", "precision", "recall", "F1", "images"),
            [
                (
                    row["name"], f"{row['precision']:.1%}", f"{row['recall']:.1%}",
                    f"{row['f1']:.1%}", f"{row['images']:,}",
                )
                for row in hardest
            ],
        ),
    ]  # fmt: skip


def _reproduce(baseline: Baseline, folder: Path) -> list[str]:
    made_by, where = baseline.provenance, _place(folder)
    steps = len(baseline.fingerprint["first_steps"])
    starts = [made_by, *made_by.get("resumed", [])]
    dirty = any(start["git_dirty"] for start in starts)
    revisions = dict.fromkeys(describe_code(start) or "unknown" for start in starts)
    code = ", ".join(f"`{_escape(revision)}`" for revision in revisions)
    cpu = made_by.get("machine", {}).get("cpu", {})
    devices = made_by["devices"]
    versions = ", ".join(f"{k} {v}" for k, v in made_by["packages"].items())
    rows = [
        ("code", f"revision {code}" + ", **with changes that were not committed**" * dirty),
        ("Python", made_by["python"]),
        ("packages", versions),
        ("devices", f"{len(devices)} x {', '.join(sorted(set(devices)))}"),
        ("processor", f"{cpu.get('model name', cpu.get('architecture', 'unknown'))}, "
                      f"{cpu.get('cores', '?')} cores"),
        ("data", "; ".join(f"{k}: fingerprint {v}" for k, v in made_by["data"].items())),
        ("seed", str(baseline.config.seed)),
    ]  # fmt: skip
    return [
        "```sh",
        f"python -m imagenet_jax.reproduce {where}          # the first steps",
        f"python -m imagenet_jax.reproduce {where} --full   # to the published checkpoint",
        "```",
        "",
        f"It compares loss and gradient norm of the first {steps} steps with "
        f"[`{FINGERPRINT}`]({FINGERPRINT}), bit for bit where versions and hardware are those of "
        f"[`{PROVENANCE}`]({PROVENANCE}), else within a tolerance. In short they are:",
        "",
        *_table(("", ""), rows),
    ]


def _weights(baseline: Baseline, folder: Path, there: bool) -> list[str]:
    sums = baseline.fingerprint["weights"]
    total = f"SHA-256 over all {len(sums['tensors'])} tensors: `{sums['all']}`."
    if not there:
        return [f"Not in this folder; `reproduce --full` compares with their checksums. {total}"]
    return [
        f"[`{WEIGHTS}`]({WEIGHTS}): torchvision's keys and layouts, float32, class names in the "
        f"metadata. {total}",
        "",
        "```sh",
        f"python -m imagenet_jax.predict IMAGE --weights={_place(folder)}/{WEIGHTS} "
        f"--config={_place(folder)}/{CONFIG}",
        "```",
    ]


def _limits(baseline: Baseline) -> list[str]:
    classes = baseline.config.model.num_classes
    return [
        "- For comparing ways of training: same data, same evaluation, one change at a time. It "
        "was made for research and tested for nothing else; in particular not for decisions about "
        "people, and not where safety depends on it.",
        "- One run with one seed. Another seed gives another number; a difference within the "
        "interval above says nothing.",
        f"- Measured on one split that comes from where the training images come from. It knows "
        f"{classes:,} classes and names one of them for any image; on other images, cameras or "
        "places expect less.",
        "- Checkpoints chosen as the best on this split, and recipes tuned on it, read high.",
        "- The terms of the training images apply to what may be done with the weights.",
    ]


def _place(folder: Path) -> str:
    """The folder as one types it at the root of the repository, where it is usual."""
    return (
        f"baselines/{folder.resolve().name}"
        if folder.resolve().parent.name == "baselines"
        else str(folder)
    )


def _kind(weights: str) -> str:
    return {"ema": "EMA"}.get(weights, weights)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = [header, ("---",) * len(header), *rows]
    return [
        "| " + " | ".join(_escape(str(cell)) if i != 1 else cell for cell in row) + " |"
        for i, row in enumerate(lines)
    ]


def _escape(text: str) -> str:
    """Text in a cell of a Markdown table, as it is."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")
