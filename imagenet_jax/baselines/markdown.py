"""Markdown of published baselines: model cards, and the README's table of results.

The sections of a card are those of Mitchell et al. 2019, "Model Cards for Model Reporting",
arXiv:1810.03993, if a training run has the information.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from imagenet_jax.baselines import folder as files
from imagenet_jax.baselines.folder import CONFIG, FINGERPRINT, RESULTS, WEIGHTS, Baseline
from imagenet_jax.errors import UserError, writing
from imagenet_jax.files import write_atomically
from imagenet_jax.formatting import counted
from imagenet_jax.runtime.provenance import describe_code
from imagenet_jax.training import schedules
from imagenet_jax.training.metrics import METRICS, WEIGHTS_LABELS, shown_metrics

BEGIN = "<!-- results: python -m imagenet_jax.publish --table -->"
END = "<!-- end of results -->"
_COLUMNS = (
    "baseline", "model", "recipe", "epochs", *(metric.label for metric in METRICS.values()),
    "images", "weights", "device", "img/s", "revision",
)  # fmt: skip
_CLASSES = 10  # rows of the table by class; results.json has all classes
_Z = 1.959964  # quantile of the normal distribution for a 95 % interval


def write_card(
    baseline: Baseline, folder: Path, recipe: Sequence[tuple[str, str]], *, with_weights: bool
) -> str:
    """Return the model card of a baseline that will be in `folder`, in Markdown."""
    config, results, first = baseline.config, baseline.results, baseline.result
    low, high = wilson_interval(first["top1"], first["count"])
    name, kind = _escape(folder.resolve().name), WEIGHTS_LABELS[first["weights"]]
    width = "" if config.model.width == 1 else f" of width {config.model.width:g}"
    start = config.init.weights
    begin = f"started from `{_escape(Path(start).name)}`" if start else "trained from scratch"
    shown = shown_metrics(config.model.num_classes)
    columns = ("weights", "images", *(metric.label for metric in shown))
    rows = [
        (
            WEIGHTS_LABELS[row["weights"]],
            f"{row['count']:,}",
            *(m.text(row.get(m.name)) for m in shown),
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

{_describe_classes(results["by_class"], kind)}

## Recipe

{_table(("", ""), recipe)}

[`{CONFIG}`]({CONFIG}) has every field, [`{files.METRICS}`]({files.METRICS}) the curves.

## Reproduce

```sh
python -m imagenet_jax.reproduce {path}          # the first steps
python -m imagenet_jax.reproduce {path} --full   # to the published checkpoint
```

The loss and gradient norm of the first {len(baseline.fingerprint["first_steps"])} steps are \
compared with [`{FINGERPRINT}`]({FINGERPRINT}): bit for bit if versions and hardware are those of \
[`{files.PROVENANCE}`]({files.PROVENANCE}), otherwise within a tolerance. In short they are:

{_table(("", ""), _describe_environment(baseline))}

## Weights

{_describe_weights(baseline, path, with_weights)}

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


def _describe_classes(report: dict[str, Any], kind: str) -> str:
    hardest = sorted(report["classes"], key=lambda row: row["f1"])[:_CLASSES]
    shown = f"the hardest {len(hardest)} of {len(report['classes']):,} classes"
    if len(hardest) == len(report["classes"]):
        shown = "all classes, the hardest first"
    rows = (
        (
            _escape(row["name"]), f"{row['precision']:.1%}", f"{row['recall']:.1%}",
            f"{row['f1']:.1%}", f"{row['images']:,}",
        )
        for row in hardest
    )  # fmt: skip
    return f"""\
By class ({kind} weights): mean precision {report["precision"]:.2%}, recall {report["recall"]:.2%} \
and F1 {report["f1"]:.2%}; expected calibration error {report["calibration_error"]:.2%}. The table \
has {shown}; [`{RESULTS}`]({RESULTS}) has every class and the confusions.

{_table(("class", "precision", "recall", "F1", "images"), rows)}"""


def _describe_environment(baseline: Baseline) -> list[tuple[str, str]]:
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


def _describe_weights(baseline: Baseline, path: str, included: bool) -> str:
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


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table. The cells are already Markdown."""
    lines = (header, ["---"] * len(header), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


def update_table(readme: Path, baselines: Path, *, check: bool = False) -> str:
    """Write the table of `baselines`/* between the markers in `readme`. Return a line about it.

    With `check`, nothing is written. Raises UserError if the file has no markers, cannot be read or
    written, or, with `check`, has a different table.
    """
    try:
        text = readme.read_text()
    except OSError as e:
        raise UserError(f"--table={readme} cannot be read: {e.strerror}") from e
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{readme} has no table to replace: add the lines {BEGIN} and {END}")
    published = find_baselines(baselines)
    table = _table(_COLUMNS, (_row(each, baselines.name) for each in published))
    new = f"{before}{BEGIN}\n{table}\n{END}{after}"
    count = counted(len(published), "baseline")
    if new == text:
        return f"{readme} has the results of {count}"
    if check:
        raise UserError(
            f"the results in {readme} differ from {baselines}: run python -m "
            "imagenet_jax.publish --table and commit the change"
        )
    with writing(f"--table={readme}"):
        write_atomically(readme, new)
    return f"{readme}: results of {count} written"


def find_baselines(folder: Path) -> list[Baseline]:
    """Return the published baselines in `folder`, sorted by name. UserError if one is damaged."""
    return [files.read(path.parent) for path in sorted(folder.glob(f"[!.]*/{FINGERPRINT}"))]


def _row(published: Baseline, folder: str) -> tuple[str, ...]:
    config, result = published.config, published.result
    rate = schedules.peak_learning_rate(config.optim, config.batch_size)
    width = "" if config.model.width == 1 else f", width {config.model.width:g}"
    revision = describe_code(published.provenance, 7) or "unknown"
    return (
        f"[{published.name}]({folder}/{published.name}/)",
        f"{config.model.name}{width}",
        f"{config.optim.name}, {config.optim.schedule}, peak {rate:.4g}, batch "
        f"{config.batch_size:,}",
        f"{config.epochs:g}",
        *(metric.text(result.get(metric.name)) for metric in METRICS.values()),
        f"{result['count']:,}",
        WEIGHTS_LABELS[result["weights"]],
        _describe_device(published),
        _find_speed(published),
        f"`{revision}`{' + changes' * published.is_dirty}",
    )


def _describe_device(published: Baseline) -> str:
    devices = published.provenance["devices"]
    kinds = ", ".join(sorted(set(devices)))
    if kinds != "cpu":
        return f"{len(devices)} x {kinds}"
    cpu = published.cpu
    return f"{cpu.get('model name', kinds)}, {cpu.get('cores', len(devices))} cores"


def _find_speed(published: Baseline) -> str:
    """Return the median speed of the run, or "" on a CPU, where other programs affect it."""
    if "cpu" in published.provenance["devices"]:
        return ""
    rates = [line["images_per_second"] for line in published.metrics if "images_per_second" in line]
    return f"{median(rates):,.0f}" if rates else ""
