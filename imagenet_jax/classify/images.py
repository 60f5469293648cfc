"""Predicts image files, and shows the predictions as a table, JSON lines or an HTML page."""

import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from imagenet_jax.data import decode
from imagenet_jax.data.image_files import LooseImage
from imagenet_jax.errors import UserError, printable, writing
from imagenet_jax.files import dump_json, write_atomically
from imagenet_jax.formatting import counted, data_uri, escape
from imagenet_jax.progress import announce, track
from imagenet_jax.runtime import xla
from imagenet_jax.runtime.processes import is_first
from imagenet_jax.training.evaluate import Batches, predict
from imagenet_jax.training.experiment import Evaluation
from imagenet_jax.training.load_weights import Weights
from imagenet_jax.training.sharding import batch_sharding, get_shardings, replicated
from imagenet_jax.training.state import inference_graph

_NOT_FINITE = (
    "the model's output is not finite; the weights are damaged, or overflow in bfloat16 "
    "(--config.model.dtype=float32)"
)
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


class Prediction(NamedTuple):
    """The most likely classes of one image.

    Attributes:
      name: name of the image.
      pixels: u8[S, S, 3], the input of the model.
      labels: i64[K], most likely first.
      classes: their names; "class 7" if the names are unknown.
      probabilities: f32[K].
    """

    name: str
    pixels: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    probabilities: np.ndarray


class Failure(NamedTuple):
    """An image without a prediction, and a line with its name and the reason."""

    name: str
    reason: str


def predict_images(
    weights: Weights, images: Sequence[LooseImage], top: int
) -> Iterator[Prediction | Failure]:
    """Yield a Prediction of each image in order, and a Failure, possibly earlier, for a bad one.

    Images are decoded as in evaluation and run in batches of at most config.eval.batch_size.

    Args:
      top: number of classes in a Prediction; all classes if there are fewer.
    """
    config, step = weights.config, compile_model(weights)
    rows = weights.mesh.size
    while rows < len(images) and 2 * rows <= config.eval.batch_size:  # no larger than needed
        rows *= 2
    remaining = iter(images)
    done: Iterator[Prediction | Failure] = iter(())
    with ThreadPoolExecutor(config.data.threads or os.cpu_count()) as pool:
        while chunk := list(itertools.islice(remaining, rows)):
            decoded = list(pool.map(lambda image: _decode(image, weights), chunk))
            yield from done  # the previous chunk, which ran on the devices during decoding
            good = [item for item in decoded if not isinstance(item, Failure)]
            yield from (item for item in decoded if isinstance(item, Failure))
            done = iter(())
            if good:
                batch = np.zeros((rows, *good[0][1].shape), np.uint8)
                batch[: len(good)] = [pixels for _, pixels in good]
                with announce("compiling the model"):
                    outputs = step(weights.tree, {"image": batch})
                done = _read_predictions(weights, good, outputs["probabilities"], top)
        yield from done


def _decode(image: LooseImage, weights: Weights) -> tuple[str, np.ndarray] | Failure:
    config = weights.config
    side = config.eval.image_size
    pixels = np.empty((side, side, 3), np.uint8)
    try:
        encoded = image.read()
    except UserError as e:
        return Failure(image.name, str(e))
    try:
        decode.eval_image(
            encoded, pixels, resize=config.eval.resize,
            interpolation=config.data.interpolation, resampling=config.data.resampling,
        )  # fmt: skip
    except UserError as e:
        return Failure(image.name, f"image {image.name} cannot be decoded: {e}; replace the file")
    return image.name, pixels


def _read_predictions(
    weights: Weights, images: Sequence[tuple[str, np.ndarray]], probabilities: jax.Array, top: int
) -> Iterator[Prediction | Failure]:
    names = weights.class_names or [f"class {i}" for i in range(probabilities.shape[1])]
    for (name, pixels), row in zip(images, np.asarray(probabilities), strict=False):
        if np.isfinite(row).all():
            labels = np.argsort(-row, kind="stable")[:top]
            yield Prediction(name, pixels, labels, tuple(names[i] for i in labels), row[labels])
        else:
            yield Failure(name, f"image {name}: {_NOT_FINITE}")


def watch(batches: Batches, evaluation: Evaluation, work: str) -> Batches:
    """Yield the batches of an evaluation, and show the progress of `work` on standard error."""
    config, quiet = evaluation.config, not is_first()
    with announce("compiling the model", quiet=quiet):
        yield next(batches)
    size, total = config.eval.batch_size, len(evaluation.source)
    stage = f"{work} {config.data.eval_split}"
    yield from track(batches, stage, total, size=size, already=size, quiet=quiet)


def compile_model(weights: Weights, outputs: np.ndarray | None = None) -> jax.stages.Wrapped:
    """Return a program: (tree, batch) -> the batch without images, with "probabilities".

    They are f32[B, C], or f32[B, K] for K `outputs`. All results are replicated on every device.
    """
    config, graph = weights.config, inference_graph(weights.config.model)

    def run(tree: dict, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        rest = {name: value for name, value in batch.items() if name != "image"}
        found = predict(tree, batch["image"], graph=graph, config=config, outputs=outputs)
        return rest | {"probabilities": found}

    shardings = get_shardings(weights.tree), batch_sharding(weights.mesh)
    return jax.jit(
        run, in_shardings=shardings, out_shardings=replicated(weights.mesh),
        compiler_options=xla.options(),
    )  # fmt: skip


def show_predictions(
    results: Iterable[Prediction | Failure],
    problems: Sequence[str],
    *,
    title: str,
    json_lines: bool,
    page: Path | None,
) -> int:
    """Print predictions on standard output and failures on standard error. Write the page.

    Args:
      problems: messages of other failures, such as folders without images.
      title: the model, for the page.
      json_lines: print each prediction immediately as a JSON object, instead of a table at the end.
      page: path of the HTML page, a single file; None: no page.

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
    classes = [{"label": int(i), "class": name, "probability": float(p)} for i, name, p in rows]
    return dump_json({"image": prediction.name, "predictions": classes})


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
