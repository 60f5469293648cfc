"""Predictions for people and programs: a table, JSON lines, a page with pictures and bars."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from imagenet_jax import strict_json
from imagenet_jax.errors import writing
from imagenet_jax.files import write_atomically
from imagenet_jax.markup import data_uri, escape, printable

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: 0; }
p { color: gray; margin-top: .2rem; }
figure { display: flex; gap: 1.2rem; margin: 0; padding: 1rem 0; border-top: 1px solid #8884; }
figure img { width: 9rem; height: 9rem; border-radius: 4px; flex: none; }
figcaption { flex: 1; min-width: 0; }
figcaption b { overflow-wrap: anywhere; }
.row { display: grid; grid-template-columns: 12rem 1fr 4.5rem; gap: .8rem; align-items: center; }
.row span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.row data { text-align: right; font-variant-numeric: tabular-nums; }
.bar { background: #8883; border-radius: 3px; }
.bar i { display: block; height: .8rem; border-radius: 3px; background: #3b76c4; }
li { overflow-wrap: anywhere; }
"""


class Prediction(NamedTuple):
    """The most likely classes of one image.

    Attributes:
      name: of the image.
      pixels: u8[S, S, 3], what the model saw.
      labels: i64[K], most likely first.
      classes: their names; "class 7" where the names are not known.
      probabilities: f32[K].
    """

    name: str
    pixels: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    probabilities: np.ndarray


class Failure(NamedTuple):
    """An image that cannot be predicted, and why, in one line that names it."""

    name: str
    reason: str


def report(
    results: Iterable[Prediction | Failure],
    problems: Sequence[str],
    *,
    title: str,
    json_lines: bool,
    page: Path | None,
) -> int:
    """Show each prediction on standard output, and on `page`; each failure on standard error.

    Args:
      problems: what is wrong beside the images.
      title: of the page: which model.
      json_lines: one object a line as predictions come, rather than a table at the end.
      page: where to write one self-contained HTML file.

    Returns the exit code: 1 where anything failed. Raises UserError where `page` cannot be written.
    """
    failures, figures, rows = list(problems), [], []
    for problem in problems:
        print(f"error: {printable(problem)}", file=sys.stderr)
    for result in results:
        if isinstance(result, Failure):
            failures.append(result.reason)
            print(f"error: {printable(result.reason)}", file=sys.stderr)
            continue
        if json_lines:
            print(_json_line(result), flush=True)
        else:
            rows.append((result.name, result.classes, result.probabilities))
        if page:
            figures.append(_figure(result))
    if rows:
        _print_table(rows)
    if page:
        _write_html(page, title, figures, failures)
    return 1 if failures else 0


def _json_line(prediction: Prediction) -> str:
    rows = zip(prediction.labels, prediction.classes, prediction.probabilities, strict=True)
    return strict_json.dumps(
        {
            "image": prediction.name,
            "predictions": [
                {"label": int(label), "class": name, "probability": float(p)}
                for label, name, p in rows
            ],
        }
    )


def _print_table(rows: Sequence[tuple[str, Sequence[str], np.ndarray]]) -> None:
    table = Table()
    table.add_column("image", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("probability", justify="right")
    for name, classes, probabilities in rows:
        for i, (class_name, p) in enumerate(zip(classes, probabilities, strict=True)):
            shown = Text("" if i else printable(name))
            last = i == len(classes) - 1
            table.add_row(shown, Text(class_name), f"{p:.2%}", end_section=last)
    console = Console(file=sys.stdout)
    if not console.is_terminal:  # for a pipe, each row on one line
        wide = Console(file=sys.stdout, width=100_000)
        console = Console(file=sys.stdout, width=wide.measure(table).maximum)
    console.print(table)


def _write_html(path: Path, title: str, figures: Sequence[str], failures: Sequence[str]) -> None:
    count = f"{len(figures):,} image{'' if len(figures) == 1 else 's'}"
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Predictions</title><style>{_STYLE}</style></head><body>",
        f"<h1>Predictions</h1><p>{count}, {escape(title)}</p>",
        *figures,
    ]
    if failures:
        items = "".join(f"<li>{escape(failure)}</li>" for failure in failures)
        parts.append(f"<h2>Not predicted</h2><ul>{items}</ul>")
    parts.append("</body></html>\n")
    with writing(f"--html={path}"):
        write_atomically(path, "\n".join(parts))


def _figure(prediction: Prediction) -> str:
    rows = "".join(
        f'<div class="row"><span title="{escape(name)}">{escape(name)}</span>'
        f'<div class="bar"><i style="width:{p:.2%}"></i></div>'
        f'<data value="{p:.6g}">{p:.2%}</data></div>'
        for name, p in zip(prediction.classes, prediction.probabilities, strict=True)
    )
    name = escape(prediction.name)
    return (
        f'<figure><img alt="{name}" src="{data_uri(prediction.pixels)}">'
        f"<figcaption><b>{name}</b>{rows}</figcaption></figure>"
    )
