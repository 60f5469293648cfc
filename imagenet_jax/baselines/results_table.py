"""The README's table of what was measured with this code, from the published baselines."""

from pathlib import Path
from statistics import median

from imagenet_jax.baselines import folder as baseline
from imagenet_jax.baselines.folder import Baseline
from imagenet_jax.errors import UserError, writing
from imagenet_jax.files import write_atomically
from imagenet_jax.runtime.provenance import describe_code
from imagenet_jax.training import optim

BEGIN = "<!-- results: python -m imagenet_jax.publish --table -->"
END = "<!-- end of results -->"
_COLUMNS = (
    "baseline", "model", "recipe", "epochs", "top-1", "top-5", "images", "loss", "weights",
    "device", "img/s", "revision",
)  # fmt: skip


def update(readme: Path, baselines: Path, *, check: bool = False) -> str:
    """Put the table of `baselines`/* between the markers of `readme`; with `check` compare only.

    Returns one line that says what was done. Raises UserError where the file has no markers or
    cannot be written, and, with `check`, where its table is another.
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
    new = f"{before}{BEGIN}\n{table(published, baselines.name)}{END}{after}"
    count = f"{len(published)} baseline{'s' * (len(published) != 1)}"
    if new == text:
        return f"{readme} has the results of {count}"
    if check:
        raise UserError(
            f"the results in {readme} are not those of {baselines}: run python -m "
            "imagenet_jax.publish --table, and commit what it changes"
        )
    with writing(f"--table={readme}"):
        write_atomically(readme, new)
    return f"{readme}: results of {count} written"


def find(folder: Path) -> list[Baseline]:
    """Every published baseline in `folder`, by name; UserError where one is damaged."""
    places = sorted(path.parent for path in folder.glob(f"[!.]*/{baseline.FINGERPRINT}"))
    return [baseline.read(place) for place in places]


def table(baselines: list[Baseline], folder: str) -> str:
    """Lines of a Markdown table, linking to `folder`/NAME."""
    rows = [_COLUMNS, ("---",) * len(_COLUMNS), *(_row(b, folder) for b in baselines)]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _row(published: Baseline, folder: str) -> tuple[str, ...]:
    config, made_by = published.config, published.provenance
    first = published.results["results"][0]
    rate = optim.peak_learning_rate(config.optim, config.batch_size)
    width = "" if config.model.width == 1 else f", width {config.model.width:g}"
    dirty = any(start["git_dirty"] for start in (made_by, *made_by.get("resumed", [])))
    return (
        f"[{published.name}]({folder}/{published.name}/)",
        f"{config.model.name}{width}",
        f"{config.optim.name}, {config.optim.schedule}, peak {rate:.4g}, batch "
        f"{config.batch_size:,}",
        f"{config.epochs:g}",
        f"{first['top1']:.2%}",
        f"{first['top5']:.2%}",
        f"{first['count']:,}",
        f"{first['loss']:.4f}",
        first["weights"],
        _device(published),
        _speed(published),
        f"`{describe_code(made_by, 7) or 'unknown'}`{' + changes' * dirty}",
    )


def _device(published: Baseline) -> str:
    devices = published.provenance["devices"]
    kind = ", ".join(sorted(set(devices)))
    if kind != "cpu":
        return f"{len(devices)} x {kind}"
    cpu = published.provenance.get("machine", {}).get("cpu", {})
    return f"{cpu.get('model name', kind)}, {cpu.get('cores', len(devices))} cores"


def _speed(published: Baseline) -> str:
    """Median over the intervals of the run; empty where none was timed, and on a CPU.

    There it says how busy the machine was.
    """
    if "cpu" in published.provenance["devices"]:
        return ""
    rates = [line["images_per_second"] for line in published.metrics if "images_per_second" in line]
    return f"{median(rates):,.0f}" if rates else ""
