"""The doctor's diagnosis as a table and lists for the terminal."""

import math
from collections import defaultdict

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from imagenet_jax.doctor.diagnosis import Diagnosis
from imagenet_jax.doctor.findings import ERRORS, WARNINGS, Finding
from imagenet_jax.doctor.survey import Survey
from imagenet_jax.formatting import counted, format_bytes

_SHOWN = 5  # of each kind; --json has all
_BINS = 8  # of the histogram of class sizes, at most
_BARS = " ▁▂▃▄▅▆▇█"


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """Print a table of the splits, the findings, and a line with the result."""
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{escape(diagnosis.data.name)} ({diagnosis.data.layout}, {diagnosis.data.path})")
    console.print(_make_table(diagnosis.surveys))
    by_kind: dict[str, list[Finding]] = defaultdict(list)
    for finding in diagnosis.findings:
        by_kind[finding.kind].append(finding)
    for title, kinds in (("error", ERRORS), ("warning", WARNINGS)):
        for kind in kinds:
            if kind in by_kind:
                mark = "allowed" if kind in diagnosis.allowed else title
                _print_kind(console, mark, kind, kinds[kind], by_kind[kind])
    errors = diagnosis.errors
    warnings = len(diagnosis.findings) - errors
    console.print(
        f"{counted(errors, 'error') if errors else 'no errors'}, "
        f"{counted(warnings, 'warning') if warnings else 'no warnings'}; "
        f"fingerprint {diagnosis.fingerprint}"
    )


def _make_table(surveys: list[Survey]) -> Table:
    table = Table()
    for column in ("split", "images", "classes", "per class", "bytes", "median size", "formats"):
        numeric = column in ("images", "classes", "bytes")
        table.add_column(
            column, justify="right" if numeric else "left", no_wrap=column != "formats"
        )
    for survey in surveys:
        rows = survey.rows[survey.rows["height"] > 0]
        width, height = (int(np.median(rows[a])) if len(rows) else 0 for a in ("width", "height"))
        table.add_row(
            survey.name,
            f"{len(survey.rows):,}",
            f"{len(survey.source.class_names):,}",
            _format_class_sizes(survey.class_counts()),
            format_bytes(int(survey.rows["size"].sum())),
            f"{width} x {height}",
            ", ".join(f"{kind} {count:,}" for kind, count in survey.formats.most_common(4)),
        )
    return table


def _format_class_sizes(counts: list[int]) -> str:
    """Return the sizes of the smallest and the largest class, and a histogram between them."""
    low, high = min(counts, default=0), max(counts, default=0)
    if low == high:
        return f"{low:,} each"
    bins = np.histogram(counts, min(_BINS, high - low + 1), (low, high))[0].tolist()
    bars = "".join(_BARS[math.ceil(n / max(bins) * (len(_BARS) - 1))] for n in bins)
    return f"{low:,} {bars} {high:,}"


def _print_kind(console: Console, mark: str, kind: str, meaning: str, found: list[Finding]) -> None:
    color = "red" if mark == "error" else "yellow"
    console.print(f"[{color}]{mark}[/] {kind}: {len(found):,} ({meaning})")
    for finding in found[:_SHOWN]:
        where = " ".join(part for part in (finding.split, finding.name) if part)
        detail = f": {finding.detail}" if finding.detail else ""
        console.print(escape(f"    {where}{detail}"))
    if len(found) > _SHOWN:
        console.print(f"    and {len(found) - _SHOWN:,} more (--json=FILE lists them)")
