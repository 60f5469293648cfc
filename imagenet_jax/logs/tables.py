"""Tables for the terminal."""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from imagenet_jax import files, strict_json
from imagenet_jax.errors import expand_user, writing
from imagenet_jax.training.metrics import WEIGHTS_LABELS, shown_metrics


def write_json(result: dict[str, Any], target: str) -> None:
    """One JSON object, on standard output where `target` is "-", else in that file.

    Raises UserError where the file cannot be written.
    """
    if target == "-":
        print(strict_json.dumps(result), flush=True)
        return
    with writing(f"--json={target}"):
        files.write_json(expand_user(target), result)


def print_result(
    result: dict[str, Any], num_classes: int, workdir: Path | None = None, stem: str = ""
) -> None:
    """Print an evaluation as a table and, if it is of a run, where its files are.

    Args:
      num_classes: of the data.
      stem: name of the result's file in eval/ of the workdir, without suffix.
    """
    metrics = shown_metrics(num_classes)
    table = Table(title=f"checkpoint {stem}" if workdir else Path(result["file"]).name)
    table.add_column("split")
    table.add_column("weights")
    for column in ("images", *(metric.label for metric in metrics)):
        table.add_column(column, justify="right")
    for row in (result, *result["also"]):
        table.add_row(
            result["split"],
            WEIGHTS_LABELS[row["weights"]],
            f"{row['count']:,}",
            *(metric.text(row[metric.name]) for metric in metrics),
        )
    Console(file=sys.stdout).print(table)
    if "note" in result:
        print(result["note"])
    if "classes" in result:
        print(f"classes: {result['classes']:,} of {result['of_classes']:,}")
    if "skipped" in result:
        print(f"undecodable and not counted: {', '.join(result['skipped'])}")
    if not workdir:
        return
    print(
        f"TensorBoard: {workdir / 'tensorboard'}  metrics: {workdir / 'metrics.jsonl'}  "
        f"checkpoints: {workdir / 'checkpoints'}  this result: "
        f"{workdir / 'eval' / stem}.json",
        flush=True,
    )
