"""The report by class of some weights: measured, printed, written."""

from pathlib import Path

from imagenet_jax.classify.by_class import by_class, draw_confusion, print_by_class
from imagenet_jax.classify.images import predict_split
from imagenet_jax.errors import writing
from imagenet_jax.files import write_atomically, write_json
from imagenet_jax.runtime.processes import run_on_first
from imagenet_jax.training.load_weights import Weights


def write_by_class(weights: Weights, directory: Path, stem: str) -> None:
    """Print the report; write STEM_by_class.json and STEM_confusion.png in `directory`.

    Every process must call it; the first one prints and writes. Raises UserError if it cannot.
    """
    found = predict_split(weights)
    report = by_class(found.labels, found.probabilities, found.class_names)

    def write() -> None:
        print_by_class(report)
        table = directory / f"{stem}_by_class.json"
        picture = directory / f"{stem}_confusion.png"
        with writing(f"--by_class={directory}"):
            directory.mkdir(parents=True, exist_ok=True)
            write_json(table, report.as_json())
            write_atomically(picture, lambda part: draw_confusion(report, part))
        print(f"by class: {table}  confusions: {picture}", flush=True)

    run_on_first(write)
