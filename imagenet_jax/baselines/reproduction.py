"""Trains a published baseline again and compares it, bit for bit or within a tolerance.

Programs that round differently, because of another processor or compiler version, differ only by
rounding at the first step. Training amplifies the difference at each step, until the two runs are
like independent runs of one recipe. Largest relative differences measured on the quickstart,
between jax 0.10.2 and 0.12.0 and between SSE4.2 and AVX2; in float32 also between one core and two,
and between one device and eight:

    step                      1      2      3      4      5      7     10     20     30     50
    float32   loss        2e-07  2e-07  2e-05  1e-03  1e-02  6e-03  3e-02  7e-02  1e-01  1e-01
              grad_norm   2e-03  3e-03  2e-02  4e-01  3e-02  2e-01  1e-01  3e-01  4e-01  2e-01
    bfloat16  loss        4e-05  2e-04  5e-05  8e-04  2e-03  1e-02  5e-03  9e-02  3e-02  9e-02
              grad_norm   2e-02  6e-02  2e-02  2e-01  1e-01  2e-02  2e-01  3e-01  2e-01  8e-02

The tolerance therefore starts small, grows tenfold per step, and ends at a level that excludes only
runs that diverge or do not learn. The first steps reveal different data, seeds, initial weights and
losses. A small change of the learning rate is detected only if bits are compared.
"""

import contextlib
import hashlib
import math
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from imagenet_jax import config as config_io
from imagenet_jax import train as loop
from imagenet_jax.baselines import folder as baseline
from imagenet_jax.baselines.folder import Baseline
from imagenet_jax.classify.evaluate_weights import evaluate_workdir
from imagenet_jax.errors import UserError, writing
from imagenet_jax.files import read_json, write_json
from imagenet_jax.runtime.provenance import collect_provenance
from imagenet_jax.training.experiment import make_experiment
from imagenet_jax.training.load_weights import load_run_weights, read_initial_weights
from imagenet_jax.weights import state_dicts

MARK = "reproduces.json"
# Provenance that may differ in a bit-for-bit comparison, because it tests the code.
_CODE = (
    "git_revision", "git_dirty", "git_untracked", "version", "code_sha256", "python", "platform",
)  # fmt: skip
_NO_ENVIRONMENT = ("data", "initial_weights", "resumed", "published_with")
# Fields that may be set, but make XLA compile a program that rounds differently.
_ROUNDING = ("mesh.fsdp", "log.group_norms", "debug.nans")
_SETTABLE = ("init.weights", *config_io.OPERATIONAL)

# Tolerances of |a - b| / max(|a|, |b|): at the first step, growth per step, and the upper limit.
_FIRST = {
    "float32": {"loss": 1e-5, "grad_norm": 1e-2},
    "bfloat16": {"loss": 2e-3, "grad_norm": 2e-1},
}
_GROWTH = 10.0
_LAST = {"loss": 0.5, "grad_norm": 0.8}
_STANDARD_ERRORS = 3.0  # allowed difference of the top-1 accuracies of two runs
QUANTITIES = ("loss", "grad_norm")


def reproduce(
    folder: Path,
    *,
    steps: int | None = None,
    full: bool = False,
    workdir: Path | None = None,
    overrides: Iterable[tuple[str, str]] = (),
) -> int:
    """Train the baseline in `folder` again and print PASS, or FAIL and the first difference.

    Args:
      steps: the number of steps to compare; None: all that the fingerprint has.
      full: train to the published checkpoint, and also compare its weights or accuracy.
      workdir: where to train; None: in a temporary folder.
      overrides: (field, text) changes of operational fields and of init.weights.

    Returns:
      0 if the runs agree, 1 if not, 128 + the number of the signal if one stopped the training.

    Raises UserError if the runs cannot be compared.
    """
    published = baseline.read(folder)
    first_steps = published.fingerprint["first_steps"]
    count = len(first_steps) if steps is None else steps
    if not 1 <= count <= len(first_steps):
        raise UserError(
            f"--steps={steps}: {folder} has the first {len(first_steps)}; --full trains to the end"
        )
    config = make_config(published, overrides)
    fingerprints = make_experiment(config).fingerprints
    _require_same_data(published, config, fingerprints)
    here = collect_provenance(fingerprints)
    exact = _print_environment(published, config, here)
    end = published.fingerprint["weights"]["checkpoint"] if full else count
    with contextlib.ExitStack() as stack:
        if not workdir:
            temporary = tempfile.TemporaryDirectory(prefix="reproduce-")
            workdir = Path(stack.enter_context(temporary)) / "run"
        _mark_workdir(workdir, published, here)
        code = loop.train(config, workdir, stop_after=end)
        if code:
            return code
        ours = baseline.read_lines(workdir / "first_steps.jsonl")[:count]
        found = first_difference(first_steps, ours, exact=exact, dtype=config.model.dtype)
        agreement = _describe_agreement(first_steps, ours)
        if full and not found:
            compare_end = _compare_weights if exact else _compare_accuracy
            found, more = compare_end(published, workdir)
            agreement = f"{agreement}; {more}"
    print(f"FAIL {published.name}: {found}" if found else f"PASS {published.name}: {agreement}")
    return 1 if found else 0


def make_config(published: Baseline, overrides: Iterable[tuple[str, str]]) -> ConfigDict:
    """Return a copy of the baseline's config with (field, text) changes, without external logs."""
    without_logs = {"log.tensorboard": False, "log.wandb": "", "log.mlflow": ""}
    config = config_io.copy_config(published.config, without_logs)
    for field, text in overrides:
        config_io.override(config, field, text)
        if field not in _SETTABLE:
            raise UserError(
                f"--config.{field} changes what is computed; reproduce takes {', '.join(_SETTABLE)}"
            )
    return config_io.check(config)


class Difference(NamedTuple):
    """The first value that differs."""

    where: str  # such as "step 3"
    quantity: str  # such as "loss"
    published: Any
    here: Any
    allowed: float  # largest relative difference; 0 if the values must be identical

    def __str__(self) -> str:
        allowed = "must be identical bit for bit"
        if self.allowed:
            found = relative_difference(self.published, self.here)
            allowed = f"relative difference {found:.1e}, allowed {self.allowed:.1e}"
        values = f"published {self.published!r}, here {self.here!r}"
        return f"{self.where}, {self.quantity}: {values} ({allowed})"


def tolerance(step: int, quantity: str, dtype: str) -> float:
    """Return the relative difference that rounding can explain after `step` steps in `dtype`."""
    # The exponent 9 reaches every limit and cannot overflow.
    return min(_FIRST[dtype][quantity] * _GROWTH ** min(step - 1, 9), _LAST[quantity])


def relative_difference(a: float, b: float) -> float:
    """Return |a - b| / max(|a|, |b|): 0 for equal values, infinity if one is NaN or infinite."""
    if a == b:
        return 0.0
    difference = abs(a - b) / max(abs(a), abs(b))
    return difference if math.isfinite(difference) else math.inf


def first_difference(
    published: list[dict[str, Any]], here: list[dict[str, Any]], *, exact: bool, dtype: str
) -> Difference | None:
    """Return the first difference between steps [{step, loss, grad_norm}], or None.

    Args:
      here: the same steps, or only the first of them.
      exact: compare bit for bit instead of within `tolerance`.
      dtype: compute dtype of the model, "float32" or "bfloat16".
    """
    for theirs, ours in zip(published, here, strict=False):
        for name in QUANTITIES:
            allowed = 0.0 if exact else tolerance(theirs["step"], name, dtype)
            a, b = theirs[name], ours[name]
            if relative_difference(a, b) > allowed:
                return Difference(f"step {theirs['step']}", name, a, b, allowed)
    return None


def accuracy_tolerance(top1: float, count: int) -> float:
    """Return the allowed absolute difference from `top1` for a run that rounds differently.

    It is three standard errors of the difference between two independent samples of `count` images.
    Laplace's estimate of the proportion makes it positive even at an accuracy of 100 %.
    """
    p = (top1 * count + 1) / (count + 2)
    return _STANDARD_ERRORS * math.sqrt(2 * p * (1 - p) / count)


def _flatten(provenance: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a flat dictionary with an entry for each package and property of the machine."""
    flat: dict[str, Any] = {}
    for name, value in provenance.items():
        if name in ("packages", "machine", "environment"):
            flat |= _flatten(value)
        elif name in ("cpu", "accelerator"):
            flat |= _flatten(value, f"{name} ")
        else:
            flat[prefix + name.removeprefix(prefix)] = value
    return flat


def _print_environment(published: Baseline, config: ConfigDict, here: dict[str, Any]) -> bool:
    """Print how this environment differs. Return whether results must agree bit for bit."""
    different: dict[str, tuple[Any, Any]] = {}  # name: (published, here)
    ours = _flatten(here)
    for start in published.starts:
        theirs = _flatten(start)
        for name in sorted(theirs.keys() | ours.keys()):
            values = theirs.get(name), ours.get(name)
            if values[0] != values[1] and name not in _NO_ENVIRONMENT:
                different.setdefault(name, values)
    before, now = config_io.flatten(published.config), config_io.flatten(config)
    different |= {f: (before[f], now[f]) for f in _ROUNDING if before[f] != now[f]}
    for name, (a, b) in different.items():
        print(f"{name}: {_format_value(a)} in the baseline, {_format_value(b)} here")
    exact = all(name in _CODE for name in different)
    how = "are the same: comparing bit for bit"
    if not exact:
        how = "differ: comparing within a tolerance that grows with the step"
    print(f"versions {'and' if exact else 'or'} hardware {how}", flush=True)
    return exact


def _format_value(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)


def _require_same_data(
    published: Baseline, config: ConfigDict, fingerprints: dict[str, str]
) -> None:
    for split, fingerprint in published.fingerprint["data"].items():
        if fingerprints.get(split) != fingerprint:
            raise UserError(
                f"split {split!r} of {config.data.path} has fingerprint "
                f"{fingerprints.get(split)}, but {published.name} was trained with {fingerprint}: "
                "the images differ, or are ordered or stored differently; use "
                "--config.data.path=DIR for the original ones"
            )
    initial = published.provenance.get("initial_weights")
    if initial:
        given = config.init.weights and read_initial_weights(config).sha256
        if given != initial["sha256"]:
            raise UserError(
                f"{config.init.weights} is not the file that {published.name} started from "
                f"(SHA-256 {initial['sha256']}); use --config.init.weights=FILE"
            )


def _mark_workdir(workdir: Path, published: Baseline, here: dict[str, Any]) -> None:
    """Mark `workdir` as a run of this reproduction. Raises UserError if it has another run.

    A stopped reproduction continues only with the same code on the same machine, because earlier
    steps of different code would prove nothing about this code.
    """
    text = (published.path / baseline.FINGERPRINT).read_bytes()
    mark = {"fingerprint": hashlib.sha256(text).hexdigest(), "by": here}
    path = workdir / MARK
    if (workdir / "config.json").exists():
        with contextlib.suppress(OSError, ValueError):
            if read_json(path) == mark and not here["git_dirty"]:
                return
        raise UserError(
            f"--workdir={workdir} has another run, or a run of different code: use a new workdir"
        )
    with writing(f"--workdir={workdir}"):
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, mark)


def _describe_agreement(published: list[dict[str, Any]], here: list[dict[str, Any]]) -> str:
    pairs = zip(published, here, strict=False)
    found = [max(relative_difference(a[name], b[name]) for name in QUANTITIES) for a, b in pairs]
    how = "bit for bit"
    if any(found):
        largest = f"differing by {found[0]:.1e} at step 1, at most {max(found):.1e}"
        how = f"within the tolerance ({largest})"
    return f"loss and gradient norm of {len(here)} steps agree {how}"


def _compare_weights(published: Baseline, workdir: Path) -> tuple[Difference | None, str]:
    """Return the first tensor that differs, if any, and the message if all agree."""
    theirs = published.fingerprint["weights"]
    weights = load_run_weights(workdir, str(theirs["checkpoint"]))
    params, stats = jax.device_get((weights.tree["params"], weights.tree["batch_stats"]))
    ours = baseline.checksums(state_dicts.to_torch(params, stats, weights.config.model))
    step, a, b = f"step {theirs['checkpoint']}", theirs["tensors"], ours["tensors"]
    differing = (name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name))
    found = None
    if name := next(differing, None):
        found = Difference(step, f"SHA-256 of {name}", a.get(name), b.get(name), 0.0)
    return found, f"so do the weights of {step}, SHA-256 {ours['all']}"


def _compare_accuracy(published: Baseline, workdir: Path) -> tuple[Difference | None, str]:
    """Return the top-1 accuracies if they differ too much, and the message if they agree."""
    step = published.results["checkpoint"]
    a, b = published.result["top1"], _find_result(published, workdir)["top1"]
    allowed = accuracy_tolerance(a, published.result["count"])
    found = None
    if not abs(a - b) <= allowed:
        found = Difference(f"step {step}", "top1", a, b, allowed / max(a, b))
    return found, f"top-1 of step {step} is {b:.2%}, published {a:.2%} (allowed: {allowed:.2%})"


def _find_result(published: Baseline, workdir: Path) -> dict[str, Any]:
    """Return the result of this run for the published step and kind of weights."""
    step, kind = published.results["checkpoint"], published.result["weights"]
    for line in baseline.read_lines(workdir / "metrics.jsonl"):
        if line["step"] == step and line.get("weights") == kind:
            return line
    record = next(iter(evaluate_workdir(workdir, str(step))))
    return next(row for row in (record, *record["also"]) if row["weights"] == kind)
