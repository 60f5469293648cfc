"""Tables for the terminal."""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from imagenet_jax import files, strict_json
from imagenet_jax.errors import expand_user, writing


def write_json(result: dict[str, Any], target: str) -> None:
    """One JSON object, on standard output where `target` is "-", else in that file.

    Raises UserError where the file cannot be written.
    """
    if target == "-":
        print(strict_json.dumps(result), flush=True)
        return
    with writing(f"--json={target}"):
        files.write_json(expand_user(target), result)


def print_result(result: dict[str, Any], workdir: Path | None = None, stem: str = "") -> None:
    """Print an evaluation as a table and, if it is of a run, where its files are.

    `stem` is the name of the result's file in eval/ of the workdir, without suffix.
    """
    table = Table(title=f"checkpoint {stem}" if workdir else Path(result["file"]).name)
    for column in ("split", "weights", "images", "top-1", "top-5", "loss"):
        table.add_column(column, justify="left" if column in ("split", "weights") else "right")
    for row in (result, *result["also"]):
        table.add_row(
            result["split"],
            row["weights"],
            f"{row['count']:,}",
            f"{row['top1']:.2%}",
            f"{row['top5']:.2%}",
            f"{row['loss']:.4f}",
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
