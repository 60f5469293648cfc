"""What the doors share: config overrides on the command line, and how errors reach the user."""

import argparse
import io
import logging
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from imagenet_jax.errors import UserError, expand_user, one_line
from imagenet_jax.output import safe_streams
from imagenet_jax.runtime.watchdog import exit_soon

if TYPE_CHECKING:
    from imagenet_jax.training.load_weights import Weights

Overrides = list[tuple[str, str]]


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Descriptions as written; options in one column."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30, width=100)


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """The argument parser of `python -m module`."""
    p = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    p.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return p


def add_config(p: argparse._ActionsContainer, *, what: str, required: bool = False) -> None:
    """Add --config, with the help text `what`, --config.FIELD and --help_config."""
    p.add_argument("--config", required=required, metavar="FILE[:VARIANT]", help=what)
    p.add_argument("--config.FIELD", metavar="VALUE", help="set one field of the config")
    p.add_argument(
        "--help_config", nargs="?", const="", metavar="PREFIX", action=_HelpConfig,
        help="print the config fields whose names start with PREFIX, and exit; after --config: "
        "those of its model",
    )  # fmt: skip


class _HelpConfig(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        from imagenet_jax.config.help import print_fields

        print_fields(values, namespace.config)
        parser.exit()


def add_process_flags(p: argparse.ArgumentParser) -> None:
    """--coordinator, --num_processes and --process_id, for `distributed.start`."""
    group = p.add_argument_group(
        "several processes", "SLURM, TPU VMs and JobSets tell these by themselves; see launch/"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--num_processes", type=int, metavar="N", help="1: run alone, ask nobody")
    group.add_argument("--process_id", type=int, metavar="I", help="0 to N - 1")


def add_weights_key(p: argparse.ArgumentParser) -> None:
    """--weights_key, for `weight_file.read`."""
    p.add_argument(
        "--weights_key", metavar="KEY",
        help="the entry of a weights file that holds the state dict, such as model_ema (default: "
        "EMA weights if the file has any)",
    )  # fmt: skip


def check_weights(args: argparse.Namespace) -> None:
    """Raise UserError unless the flags name either a workdir's or a file's weights."""
    if bool(args.workdir) == bool(args.weights) or bool(args.weights) != bool(args.config):
        raise UserError("give either --workdir=DIR or --weights=FILE with --config=FILE")
    if args.weights_key and not args.weights:
        raise UserError("--weights_key goes with --weights")
    if args.weights and args.checkpoint:
        raise UserError("--checkpoint goes with --workdir")


def open_weights(args: argparse.Namespace, overrides: Overrides) -> "Weights":
    """Return what --workdir and --checkpoint, or --weights, --weights_key and --config, name.

    What was chosen in a file is printed. Raises UserError where the weights cannot be read, or the
    data is given and does not fit them.
    """
    from imagenet_jax import config as config_io
    from imagenet_jax.training.load_weights import check_data, of_file, of_workdir

    if args.workdir:
        weights = of_workdir(expand_user(args.workdir), args.checkpoint or "latest", overrides)
    else:
        config = config_io.load(args.config, overrides)
        weights = of_file(expand_user(args.weights), config, args.weights_key or "")
        if weights.note:
            print(weights.note, file=sys.stderr)
    if args.weights or any(field.startswith("data.") for field, _ in overrides):
        check_data(weights)
    return weights


def split_overrides(argv: Sequence[str]) -> tuple[list[str], Overrides]:
    """(other arguments, [(field, text)]) of `--config.FIELD=text` and `--config.FIELD text`.

    Raises UserError for a field without a value.
    """
    rest: list[str] = []
    overrides: Overrides = []
    arguments = iter(argv)
    for argument in arguments:
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        field, equals, text = argument.removeprefix("--config.").partition("=")
        value = text if equals else next(arguments, None)
        if value is None:
            raise UserError(f"--config.{field} needs a value: --config.{field}=VALUE")
        overrides.append((field, value))
    return rest, overrides


def run(
    command: Callable[[Sequence[str]], int | None],
    lost_output: Literal["ends", "fails", "ignored"] = "fails",
) -> None:
    """Exit with the command's code; a user's error becomes one line on stderr and exit code 1.

    Args:
      lost_output: what happens if standard output cannot be written. "ends": the command ends with
        exit code 1. "fails": it goes on, and then exits with 1. "ignored": it goes on, and exits
        with its own code.
    """
    # orbax logs every failed write with its traceback; our own line says what it means.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for stream in (sys.stdout, sys.stderr):  # file names may hold what the terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with safe_streams(ends=lost_output == "ends") as output:
        code = _code(command, sys.argv[1:])
    if output.lost and lost_output != "ignored":
        code = code or 1
    if code and code > 128:  # a stop signal: whoever sent it does not wait for long
        exit_soon(code)
    sys.exit(code)


def _code(command: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int | None:
    try:
        code = command(argv)
        sys.stdout.flush()
        return code
    except UserError as e:
        if "--debug" in argv:
            raise
        print(f"error: {one_line(e, length=None)}", file=sys.stderr)
        return 1
    except PermissionError as e:
        if "--debug" in argv or not e.filename:
            raise
        print(f"error: {e.filename}: {e.strerror}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output, `head` say, has gone
        return 1
    except KeyboardInterrupt:
        return 130
