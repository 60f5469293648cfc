"""Predictions on images as a table, JSON lines, and an HTML page with pictures and bars."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from imagenet_jax.classify.images import Failure, Prediction
from imagenet_jax.errors import printable, writing
from imagenet_jax.files import dump_json, write_atomically
from imagenet_jax.formatting import counted, data_uri, escape

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: 0; }
p { color: gray; margin-top: .2rem; overflow-wrap: anywhere; }
figure { display: flex; flex-wrap: wrap; gap: 1.2rem; margin: 0; padding: 1rem 0;
  border-top: 1px solid #8884; }
figure img { width: 9rem; height: 9rem; border-radius: 4px; }
figcaption { flex: 1 1 16rem; min-width: 0; }
figcaption b { overflow-wrap: anywhere; }
.row { display: grid; grid-template-columns: minmax(0, 12rem) minmax(3rem, 1fr) 4.5rem; gap: .8rem;
  align-items: center; }
.row span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.row data { text-align: right; font-variant-numeric: tabular-nums; }
.bar { background: #8883; border-radius: 3px; }
.bar i { display: block; height: .8rem; border-radius: 3px; background: #3b76c4; }
li { overflow-wrap: anywhere; }
"""


def show_predictions(
    results: Iterable[Prediction | Failure],
    problems: Sequence[str],
    *,
    title: str,
    json_lines: bool,
    page: Path | None,
) -> int:
    """Print predictions on standard output and failures on standard error; write the page.

    Args:
      problems: other failures, such as names that are no images.
      title: the model, for the page.
      json_lines: print each prediction as a JSON object at once, instead of a table at the end.
      page: path of the HTML page, a single file.

    Returns the exit code: 1 if anything failed. Raises UserError if `page` cannot be written.
    """
    failures = list(problems)
    predictions: list[Prediction] = []
    figures: list[str] = []
    for problem in problems:
        print(f"error: {printable(problem)}", file=sys.stderr)
    for result in results:
        if isinstance(result, Failure):
            failures.append(result.reason)
            print(f"error: {printable(result.reason)}", file=sys.stderr)
            continue
        if page:
            figures.append(_make_figure(result))
        if json_lines:
            print(_json_line(result), flush=True)
        else:
            predictions.append(result._replace(pixels=result.pixels[:0]))  # keep no images
    if predictions:
        _print_table(predictions)
    if page:
        with writing(f"--html={page}"):
            write_atomically(page, _make_page(title, figures, failures))
    return 1 if failures else 0


def _json_line(prediction: Prediction) -> str:
    rows = zip(prediction.labels, prediction.classes, prediction.probabilities, strict=True)
    return dump_json(
        {
            "image": prediction.name,
            "predictions": [
                {"label": int(label), "class": name, "probability": float(p)}
                for label, name, p in rows
            ],
        }
    )


def _print_table(predictions: Sequence[Prediction]) -> None:
    table = Table()
    table.add_column("image", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("probability", justify="right")
    for prediction in predictions:
        rows = zip(prediction.classes, prediction.probabilities, strict=True)
        for i, (class_name, p) in enumerate(rows):
            image = Text("" if i else printable(prediction.name))
            last = i == len(prediction.classes) - 1
            table.add_row(image, Text(class_name), f"{p:.2%}", end_section=last)
    console = Console(file=sys.stdout)
    if not console.is_terminal:  # for a pipe, each row on one line
        wide = Console(file=sys.stdout, width=100_000)
        console = Console(file=sys.stdout, width=wide.measure(table).maximum)
    console.print(table)


def _make_page(title: str, figures: Sequence[str], failures: Sequence[str]) -> str:
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Predictions</title><style>{_STYLE}</style></head><body>",
        f"<h1>Predictions</h1><p>{counted(len(figures), 'image')}, {escape(title)}</p>",
        *figures,
    ]
    if failures:
        items = "".join(f"<li>{escape(failure)}</li>" for failure in failures)
        parts.append(f"<h2>Not predicted</h2><ul>{items}</ul>")
    return "\n".join([*parts, "</body></html>\n"])


def _make_figure(prediction: Prediction) -> str:
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
