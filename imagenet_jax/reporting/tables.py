"""Tables for the terminal."""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def print_result(result: dict[str, Any], workdir: Path) -> None:
    """An evaluation as a table, and where the run's files are."""
    table = Table(title=f"checkpoint {result['step']}")
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
    if "skipped" in result:
        print(f"undecodable and not counted: {', '.join(result['skipped'])}")
    print(
        f"TensorBoard: {workdir / 'tensorboard'}  metrics: {workdir / 'metrics.jsonl'}  "
        f"checkpoints: {workdir / 'checkpoints'}  this result: "
        f"{workdir / 'eval' / str(result['step'])}.json",
        flush=True,
    )
