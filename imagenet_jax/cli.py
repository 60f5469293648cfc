"""Command lines: common flags, config overrides, shell completion, errors and exit codes."""

import argparse
import contextlib
import difflib
import errno
import functools
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TextIO

from imagenet_jax.errors import UserError, expand_user, one_line
from imagenet_jax.runtime.stopping import exit_soon

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from imagenet_jax.training.load_weights import Weights
    from imagenet_jax.weights.catalog import Entry

Overrides = list[tuple[str, str]]


class _Parser(argparse.ArgumentParser):
    """An argument parser with shell completion. For an unknown option, it suggests the nearest."""

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        if "_ARGCOMPLETE" in os.environ:  # set by the shell function of argcomplete
            import argcomplete

            if "--config." in os.environ.get("COMP_LINE", ""):
                from imagenet_jax.config import flatten
                from imagenet_jax.config.fields import defaults

                for field in flatten(defaults()):
                    self.add_argument(f"--config.{field}")
            argcomplete.autocomplete(self)
        arguments = sys.argv[1:] if args is None else args
        for name in (argument.partition("=")[0] for argument in arguments):
            if name == "--":
                break
            near = difflib.get_close_matches(name, self._option_string_actions, n=1)
            if name.startswith("--") and near not in ([], [name]):
                self.error(f"unrecognized argument {name}; did you mean {near[0]}?")
        return super().parse_args(args, namespace)


# Prints descriptions as written, and options in one column.
_FORMATTER = functools.partial(
    argparse.RawDescriptionHelpFormatter, max_help_position=30, width=100
)


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """Return the argument parser of `python -m module`."""
    p = _Parser(
        prog=f"python -m {module}", description=description, formatter_class=_FORMATTER,
        allow_abbrev=False,
    )  # fmt: skip
    p.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return p


def add_config(p: argparse._ActionsContainer, *, what: str, required: bool = False) -> None:
    """Add --config, with the help text `what`, --config.FIELD and --help_config."""
    p.add_argument("--config", required=required, metavar="FILE[:VARIANT]", help=what)
    p.add_argument("--config.FIELD", metavar="VALUE", help="set one field of the config")
    p.add_argument(
        "--help_config", nargs="?", const="", metavar="PREFIX", action=_HelpConfig,
        help="print the config fields whose names start with PREFIX, and exit; give --config "
        "first to see the fields of its model",
    )  # fmt: skip


class _HelpConfig(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        from imagenet_jax.config.help import print_fields

        print_fields(values, namespace.config)
        parser.exit()


def add_process_flags(p: argparse.ArgumentParser) -> None:
    """Add --coordinator, --num_processes and --process_id, for `processes.connect`."""
    group = p.add_argument_group(
        "several processes",
        "detected automatically on SLURM, TPU VMs and Kubernetes JobSets; see launch/",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    group.add_argument(
        "--num_processes", type=int, metavar="N",
        help="number of processes; 1: a single process, without detection",
    )  # fmt: skip
    group.add_argument(
        "--process_id", type=int, metavar="I", help="index of this process, 0 to N - 1"
    )


def add_weights_key(p: argparse.ArgumentParser) -> None:
    """Add --weights_key, for `weight_file.read`."""
    p.add_argument(
        "--weights_key", metavar="KEY",
        help="entry of the weights file with the state dict, such as model_ema (default: the EMA "
        "weights, if there are any)",
    )  # fmt: skip


def add_weights(p: argparse.ArgumentParser) -> None:
    """Add --workdir, --checkpoint, --weights, --weights_key and --config, for `open_weights`."""
    p.add_argument("--workdir", metavar="DIR", help="workdir of a training run")
    p.add_argument(
        "--checkpoint", metavar="latest|best|STEP",
        help="checkpoint of the workdir; best: by config.checkpoint.best_metric (default: latest)",
    )  # fmt: skip
    p.add_argument(
        "--weights", metavar="FILE|NAME",
        help="instead of --workdir: a state dict with torchvision's names, or published weights "
        "that python -m imagenet_jax.weights lists",
    )  # fmt: skip
    add_weights_key(p)
    add_config(p, what="model and data for --weights; not needed with a NAME")


def check_weights(args: argparse.Namespace) -> None:
    """Raise UserError unless the flags name a workdir, a file with a config or published weights.

    A config is optional for published weights.
    """
    from imagenet_jax.weights import catalog

    by_name = bool(args.weights and not args.workdir and catalog.find(args.weights))
    has_config = bool(args.config) or by_name
    if bool(args.workdir) == bool(args.weights) or bool(args.weights) != has_config:
        raise UserError("give either --workdir=DIR or --weights=FILE with --config=FILE")
    if args.weights_key and not args.weights:
        raise UserError("--weights_key goes with --weights")
    if args.weights and args.checkpoint:
        raise UserError("--checkpoint goes with --workdir")


def load_weights_config(args: argparse.Namespace, overrides: Overrides) -> "ConfigDict":
    """Return the config for --weights.

    Published weights set their preprocessing, which is printed, and without --config also their
    model. The overrides are applied last.
    """
    from imagenet_jax import config as config_io
    from imagenet_jax.config.fields import defaults
    from imagenet_jax.runtime.processes import is_first
    from imagenet_jax.weights import catalog

    entry = catalog.find(args.weights)
    if entry is None:
        return config_io.load(args.config, overrides)
    changes, note = _preprocessing(entry, overrides)
    if is_first():
        print(note, file=sys.stderr)
    if args.config:
        return config_io.load(args.config, [*changes, *overrides])
    config = defaults(entry.model)
    config.model.update(entry.fields)
    config_io.apply_overrides(config, [*changes, *overrides])
    return config_io.check(config)


def match_initial_weights(overrides: Overrides) -> tuple[Overrides, str]:
    """Return (overrides, a note), with the preprocessing that published initial weights expect.

    This sets data.mean, data.std and data.interpolation before `overrides`. Image sizes remain
    those of the config. The note is "" if the initial weights are not published ones.
    """
    weights = dict(overrides).get("init.weights")
    if not weights:
        return overrides, ""
    from imagenet_jax.weights import catalog

    entry = catalog.find(weights)
    if entry is None:
        return overrides, ""
    changes, note = _preprocessing(entry, overrides, "data.")
    return [*changes, *overrides], note


def _preprocessing(entry: "Entry", overrides: Overrides, group: str = "") -> tuple[Overrides, str]:
    """Return (the preprocessing of `entry` that `overrides` does not set, a note)."""
    given = {field for field, _ in overrides}
    wanted = {k: v for k, v in entry.preprocessing().items() if k.startswith(group)}
    changes = [(field, str(value)) for field, value in wanted.items() if field not in given]
    settings = ", ".join(f"{field} = {text}" for field, text in changes)
    return changes, f"{entry.name} ({entry.model}) sets {settings or 'nothing'}"


def open_weights(args: argparse.Namespace, overrides: Overrides) -> "Weights":
    """Return the weights that the flags of `check_weights` name.

    If a weights file has several state dicts, print which one is used. Raises UserError if the
    weights cannot be read, or if data is given that does not fit them.
    """
    from imagenet_jax.training.load_weights import check_data, load_run_weights, load_weights_file
    from imagenet_jax.weights import catalog

    if args.workdir:
        workdir, checkpoint = expand_user(args.workdir), args.checkpoint or "latest"
        weights = load_run_weights(workdir, checkpoint, overrides)
    else:
        config = load_weights_config(args, overrides)
        weights = load_weights_file(catalog.locate(args.weights), config, args.weights_key or "")
        if weights.note:
            print(weights.note, file=sys.stderr)
    if args.weights or any(field.startswith("data.") for field, _ in overrides):
        check_data(weights)
    return weights


def split_overrides(argv: Sequence[str]) -> tuple[list[str], Overrides]:
    """Return the other arguments, and (field, text) for each `--config.FIELD=text`.

    `--config.FIELD text` works too. Raises UserError for a field without a value.
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
    """Run a command and exit with its code. A UserError is printed as one line, with exit code 1.

    Args:
      lost_output: what to do if standard output cannot be written: "ends" ends the command with
        exit code 1, "fails" finishes it and then exits with 1, "ignored" has no effect.
    """
    # orbax logs a traceback for every failed write, which is reported in one line instead.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for stream in (sys.stdout, sys.stderr):  # for file names that the terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with safe_streams(ends=lost_output == "ends") as output:
        code = _code(command, sys.argv[1:])
    if output.lost and lost_output != "ignored":
        code = code or 1
    if code and code > 128:  # after a stop signal, whose sender does not wait for long
        exit_soon(code)
    sys.exit(code)


def _code(command: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int | None:
    try:
        code = command(argv)
        sys.stdout.flush()
        return code
    except (UserError, PermissionError) as e:
        if "--debug" in argv or (isinstance(e, PermissionError) and not e.filename):
            raise
        text = e if isinstance(e, UserError) else f"{e.filename}: {e.strerror}"
        print(f"error: {one_line(text, length=None)}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        return 1
    except KeyboardInterrupt:
        return 130


class Output:
    """A text stream that reports its first failed write and ignores later ones.

    Later text is written if the stream works again.

    Attributes:
      lost: the first error, or None if everything was written.
    """

    def __init__(self, stream: TextIO, name: str, *, ends: bool):
        """If `ends`, the first failure ends the command, because this output is its result."""
        self._stream, self._name, self._ends = stream, name, ends
        self.lost: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as e:
            self._fail(e)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as e:
            self._fail(e)

    def _fail(self, error: OSError) -> None:
        if self.lost:
            return
        self.lost = error
        problem = f"{self._name} cannot be written: {error.strerror}"
        if self._ends:
            raise error if error.errno == errno.EPIPE else UserError(problem)
        if self._name == "standard output":
            print(f"warning: {problem}; the command continues without it", file=sys.stderr)

    def finish(self) -> None:
        """Flush now, because a failure while Python exits would change the exit code."""
        try:
            self._stream.flush()
        except OSError as e:
            self.lost = self.lost or e
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextlib.contextmanager
def safe_streams(*, ends: bool) -> Iterator[Output]:
    """Replace sys.stdout and sys.stderr with `Output`s in this block. Yield the one of sys.stdout.

    If `ends`, the first failure of sys.stdout raises UserError or BrokenPipeError.
    """
    _open_closed_streams()
    output = Output(sys.stdout, "standard output", ends=ends)
    errors = Output(sys.stderr, "standard error", ends=False)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            yield output
        finally:
            output.finish()
            errors.finish()


def _open_closed_streams() -> None:
    """Open closed streams as os.devnull, because the next file would get their number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
