"""Append the results of benchmarks/accelerator.sh to benchmarks/RESULTS.md, as a table row."""

import argparse
import datetime
from pathlib import Path
from typing import Any

import jax

from imagenet_jax import cli
from imagenet_jax.errors import UserError
from imagenet_jax.files import read_json_lines, write_atomically
from imagenet_jax.runtime.provenance import describe_code, find_revision

TITLE = "## Accelerators"
_COLUMNS = (
    "date", "device", "versions", "train step, img/s", "evaluation step, img/s", "input, img/s",
    "loop / step", "stall of a save", "cold start and restart", "command",
)  # fmt: skip
_INTRODUCTION = f"""{TITLE}

Rows that `benchmarks/accelerator.sh` appended. Steps are in bfloat16, of data on the device.
Input is the fastest pipeline of synthetic JPEGs; start, restart and loop are of the quickstart.

| {" | ".join(_COLUMNS)} |
|{" --- |" * len(_COLUMNS)}
"""


def make_row(measured: dict[str, dict[str, Any]], command: str) -> str:
    """Return a row of the table, given {label: figures} of the benchmarks."""
    steps = {label: f for label, f in measured.items() if "eval_images_per_second" in f}
    found = {name: measured.get(name, {}) for name in ("input", "loop", "checkpoint", "restart")}
    pipelines = [
        rate
        for stage, rate in found["input"].get("images_per_second", {}).items()
        if stage.startswith("pipeline")
    ]
    devices = jax.devices()
    cells = (
        datetime.date.today().isoformat(),
        f"{len(devices)} x {devices[0].device_kind}",
        f"jax {jax.__version__}, {describe_code(find_revision(), 7)}",
        _list(steps, "images_per_second"),
        _list(steps, "eval_images_per_second"),
        f"{max(pipelines):,.0f}" if pipelines else "",
        _format(found["loop"], "{ratio:.2f}"),
        _format(found["checkpoint"], "{stall_ms:,.0f} ms"),
        _format(found["restart"], "{cold_seconds:.1f} s, {warm_seconds:.1f} s"),
        f"`{command}`",
    )
    return f"| {' | '.join(cells)} |"


def _list(steps: dict[str, dict[str, Any]], figure: str) -> str:
    return "; ".join(
        f"{label} {_round(f[figure])}"
        + f" ({f['batch_size']} of {f['image_size']} px)" * (figure == "images_per_second")
        for label, f in steps.items()
    )


def _round(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _format(figures: dict[str, Any], template: str) -> str:
    return template.format(**figures) if figures else ""


def append_row(page: str, row: str) -> str:
    """Return the Markdown `page` with `row` at the end of its table, which is added if needed."""
    if TITLE not in page:
        return f"{page.rstrip()}\n\n{_INTRODUCTION}{row}\n"
    before, after = page.split(TITLE, 1)
    section, heading, rest = after.partition("\n## ")
    rows, last, text = section.rpartition("\n|")
    end, _, text = text.partition("\n")
    return f"{before}{TITLE}{rows}{last}{end}\n{row}\n{text}{heading}{rest}"


def main(argv: Any) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figures", required=True, metavar="FILE", help="JSON lines")
    parser.add_argument("--command", required=True, help="command to show in the row")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="a Markdown page")
    args = parser.parse_args(argv)
    measured = {line["label"]: line["figures"] for line in read_json_lines(Path(args.figures))}
    if not measured:
        raise UserError("nothing was measured: see the errors above")
    row = make_row(measured, args.command)
    page = args.out.read_text() if args.out.exists() else "# Results\n"
    write_atomically(args.out, append_row(page, row))
    print(f"{args.out}:", row, sep="\n")


if __name__ == "__main__":
    cli.run(main)
