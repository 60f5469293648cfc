"""The README's table of results, made from the published baselines."""

from pathlib import Path
from statistics import median

from imagenet_jax.baselines import folder as baseline
from imagenet_jax.baselines.folder import Baseline
from imagenet_jax.errors import UserError, writing
from imagenet_jax.files import write_atomically
from imagenet_jax.runtime.provenance import describe_code
from imagenet_jax.training import optim
from imagenet_jax.training.metrics import METRICS, WEIGHTS_LABELS

BEGIN = "<!-- results: python -m imagenet_jax.publish --table -->"
END = "<!-- end of results -->"
_COLUMNS = (
    "baseline", "model", "recipe", "epochs", *(metric.label for metric in METRICS.values()),
    "images", "weights", "device", "img/s", "revision",
)  # fmt: skip


def update(readme: Path, baselines: Path, *, check: bool = False) -> str:
    """Write the table of `baselines`/* between the markers in `readme`; return a line about it.

    With `check` nothing is written. Raises UserError if the file has no markers, cannot be read or
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
    published = find(baselines)
    new = f"{before}{BEGIN}\n{format_table(published, baselines.name)}{END}{after}"
    count = f"{len(published)} baseline{'s' * (len(published) != 1)}"
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


def find(folder: Path) -> list[Baseline]:
    """Return every published baseline in `folder`, by name; UserError if one is damaged."""
    paths = sorted(path.parent for path in folder.glob(f"[!.]*/{baseline.FINGERPRINT}"))
    return [baseline.read(path) for path in paths]


def format_table(baselines: list[Baseline], folder: str) -> str:
    """Return a Markdown table with links to `folder`/NAME."""
    rows = [_COLUMNS, ("---",) * len(_COLUMNS), *(_row(b, folder) for b in baselines)]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _row(published: Baseline, folder: str) -> tuple[str, ...]:
    config, result = published.config, published.result
    rate = optim.peak_learning_rate(config.optim, config.batch_size)
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
        _device(published),
        _speed(published),
        f"`{revision}`{' + changes' * published.is_dirty}",
    )


def _device(published: Baseline) -> str:
    devices = published.provenance["devices"]
    kinds = ", ".join(sorted(set(devices)))
    if kinds != "cpu":
        return f"{len(devices)} x {kinds}"
    cpu = published.cpu
    return f"{cpu.get('model name', kinds)}, {cpu.get('cores', len(devices))} cores"


def _speed(published: Baseline) -> str:
    """Return the median rate of the run; "" on a CPU, where it depends on what else was running."""
    if "cpu" in published.provenance["devices"]:
        return ""
    rates = [line["images_per_second"] for line in published.metrics if "images_per_second" in line]
    return f"{median(rates):,.0f}" if rates else ""
