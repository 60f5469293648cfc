"""Training a published baseline again and comparing the two runs."""

import contextlib
import hashlib
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from imagenet_jax import config as config_io
from imagenet_jax import train as loop
from imagenet_jax.baselines import comparison
from imagenet_jax.baselines import folder as baseline
from imagenet_jax.baselines.comparison import Difference
from imagenet_jax.baselines.folder import Baseline
from imagenet_jax.classify.evaluate_weights import evaluate_workdir
from imagenet_jax.errors import UserError, writing
from imagenet_jax.files import read_json, write_json
from imagenet_jax.runtime.provenance import collect_provenance
from imagenet_jax.training.experiment import make_experiment
from imagenet_jax.training.load_weights import load_run_weights, read_initial_weights
from imagenet_jax.weights import torch_names

MARK = "reproduces.json"
# Provenance that may differ while results stay identical: the code is what is being tested.
_CODE = (
    "git_revision", "git_dirty", "git_untracked", "version", "code_sha256", "python", "platform",
)  # fmt: skip
_NO_ENVIRONMENT = ("data", "initial_weights", "resumed", "published_with")
# Fields that may be set but make XLA compile a program that rounds differently.
_ROUNDING = ("mesh.fsdp", "log.group_norms", "debug.nans")
_SETTABLE = ("init.weights", *config_io.OPERATIONAL)


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
      0 if the runs agree, 1 if not, 128 + the number of a signal that stopped the training.

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
        _claim(workdir, published, here)
        code = loop.train(config, workdir, stop_after=end)
        if code:
            return code
        ours = baseline.read_lines(workdir / "first_steps.jsonl")[:count]
        found = comparison.first_difference(
            first_steps, ours, exact=exact, dtype=config.model.dtype
        )
        agreement = _describe_agreement(first_steps, ours)
        if full and not found:
            compare_end = _compare_weights if exact else _compare_accuracy
            found, more = compare_end(published, workdir)
            agreement = f"{agreement}; {more}"
    print(f"FAIL {published.name}: {found}" if found else f"PASS {published.name}: {agreement}")
    return 1 if found else 0


def make_config(published: Baseline, overrides: Iterable[tuple[str, str]]) -> ConfigDict:
    """Return a copy of the baseline's config with (field, text) changes, without external logs."""
    config = ConfigDict(published.config.to_dict())
    config.update_from_flattened_dict({"log.tensorboard": False, "log.wandb": "", "log.mlflow": ""})
    for field, text in overrides:
        config_io.override(config, field, text)
        if field not in _SETTABLE:
            raise UserError(
                f"--config.{field} changes what is computed; reproduce takes {', '.join(_SETTABLE)}"
            )
    return config_io.check(config)


def environment_differences(
    published: dict[str, Any], here: dict[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Return (name, published, here) for each difference of two provenances, except the data.

    If the published run was started several times, each start counts.
    """
    found: dict[str, tuple[str, Any, Any]] = {}
    ours = _flatten(here)
    for start in (published, *published.get("resumed", [])):
        theirs = _flatten(start)
        for name in sorted(theirs.keys() | ours.keys()):
            a, b = theirs.get(name), ours.get(name)
            if a != b and name not in _NO_ENVIRONMENT:
                found.setdefault(name, (name, a, b))
    return list(found.values())


def _flatten(provenance: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return one entry for each package and each property of the machine."""
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
    """Print how this environment differs; return whether results must agree bit for bit."""
    different = environment_differences(published.provenance, here)
    before, now = config_io.flatten(published.config), config_io.flatten(config)
    different += [(f, before[f], now[f]) for f in _ROUNDING if before[f] != now[f]]
    for name, theirs, ours in different:
        print(f"{name}: {_format_value(theirs)} in the baseline, {_format_value(ours)} here")
    if all(name in _CODE for name, _, _ in different):
        print("versions and hardware are the same: comparing bit for bit", flush=True)
        return True
    print(
        "versions or hardware differ: comparing within a tolerance that grows with the step",
        flush=True,
    )
    return False


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


def _claim(workdir: Path, published: Baseline, here: dict[str, Any]) -> None:
    """Mark `workdir` as this reproduction's; UserError if it contains anything else.

    A stopped reproduction continues only with the same code on the same machine: steps of other
    code would prove nothing about this one.
    """
    text = (published.path / baseline.FINGERPRINT).read_bytes()
    mark = {"fingerprint": hashlib.sha256(text).hexdigest(), "by": here}
    path = workdir / MARK
    if (workdir / "config.json").exists():
        same = False
        with contextlib.suppress(OSError, ValueError):
            same = read_json(path) == mark and not here["git_dirty"]
        if not same:
            raise UserError(
                f"--workdir={workdir} holds another run, or one of different code: use a new one"
            )
        return
    with writing(f"--workdir={workdir}"):
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, mark)


def _describe_agreement(published: list[dict[str, Any]], here: list[dict[str, Any]]) -> str:
    largest = comparison.largest_difference(published, here)
    how = "bit for bit"
    if largest:
        first = comparison.largest_difference(published, here[:1])
        how = f"within the tolerance (differing by {first:.1e} at step 1, at most {largest:.1e})"
    return f"loss and gradient norm of {len(here)} steps agree {how}"


def _compare_weights(published: Baseline, workdir: Path) -> tuple[Difference | None, str]:
    """Return the first tensor that differs, and the text for agreement."""
    theirs = published.fingerprint["weights"]
    weights = load_run_weights(workdir, str(theirs["checkpoint"]))
    params, stats = jax.device_get((weights.tree["params"], weights.tree["batch_stats"]))
    ours = baseline.checksums(torch_names.to_torch(params, stats, weights.config.model))
    found = comparison.weights_difference(theirs, ours, f"step {theirs['checkpoint']}")
    return found, f"so do the weights of step {theirs['checkpoint']}, SHA-256 {ours['all']}"


def _compare_accuracy(published: Baseline, workdir: Path) -> tuple[Difference | None, str]:
    """Return the top-1 accuracies if they differ too much, and the text for agreement."""
    step = published.results["checkpoint"]
    a, b = published.result["top1"], _find_result(published, workdir)["top1"]
    allowed = comparison.accuracy_tolerance(a, published.result["count"])
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
