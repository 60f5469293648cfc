"""Flags and output that the benchmarks share."""

import argparse
from collections.abc import Mapping
from typing import Any

from imagenet_jax.files import dump_json


def make_parser(description: str | None, config: str = "") -> argparse.ArgumentParser:
    """Return a parser with --json and, if `config` is given, --config with that default."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if config:
        parser.add_argument("--config", default=config, metavar="FILE[:VARIANT]")
        parser.add_argument("--config.FIELD", metavar="VALUE", help="set one field of the config")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    return parser


def print_result(result: Mapping[str, Any], as_json: bool) -> None:
    """Print the figures as a JSON object, or one per line."""
    if as_json:
        print(dump_json(dict(result)), flush=True)
        return
    for name, value in result.items():
        text = f"{value:,.3f}" if isinstance(value, float) else str(value)
        print(f"{name:28} {text:>12}", flush=True)
