"""Train a published baseline again, and say whether it is the same run."""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from imagenet_jax import config as config_io
from imagenet_jax import train as loop
from imagenet_jax.baselines import comparison
from imagenet_jax.baselines import folder as baseline
from imagenet_jax.baselines.checksums import checksums
from imagenet_jax.baselines.folder import Baseline
from imagenet_jax.errors import UserError, writing
from imagenet_jax.files import read_json, write_json
from imagenet_jax.runtime.provenance import collect_provenance
from imagenet_jax.training.evaluate import evaluate_workdir
from imagenet_jax.training.experiment import make_experiment
from imagenet_jax.training.init_weights import read_initial_weights
from imagenet_jax.training.load_weights import of_workdir
from imagenet_jax.weights import torch_names

MARK = "reproduces.json"
# What may differ and leave the bits alone: the code is what is put to the test.
_CODE = (
    "git_revision", "git_dirty", "git_untracked", "version", "code_sha256", "python", "platform",
)  # fmt: skip
_OTHER = ("data", "initial_weights", "resumed", "published_with")  # no part of the environment
# Fields that may be set and make XLA compile another program.
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
    """Train the baseline in `folder` again and compare; prints PASS, or FAIL and the difference.

    Args:
      steps: how many are compared; None: all that the fingerprint has.
      full: train to the published checkpoint, and compare its weights or result too.
      workdir: where it trains; None: in a temporary folder.
      overrides: (field, text), of fields that say how a run is carried out and what file it
        starts from.

    Returns:
      0 where it is the same run, 1 where it is not, 128 + a signal that stopped the training.
      Raises UserError where it cannot be compared.
    """
    published = baseline.read(folder)
    first_steps = published.fingerprint["first_steps"]
    count = len(first_steps) if steps is None else steps
    if not 1 <= count <= len(first_steps):
        raise UserError(
            f"--steps={steps}: {folder} has the first {len(first_steps)}; --full goes to the end"
        )
    config = _config_of(published, overrides)
    fingerprints = make_experiment(config).fingerprints
    _require_same_data(published, config, fingerprints)
    here = collect_provenance(fingerprints)
    different = environment_differences(published.provenance, here)
    before, now = config_io.flatten(published.config), config_io.flatten(config)
    different += [(f, before[f], now[f]) for f in _ROUNDING if before[f] != now[f]]
    exact = not any(name not in _CODE for name, _, _ in different)
    for name, theirs, ours in different:
        print(f"{name}: {_shown(theirs)} in the baseline, {_shown(ours)} here")
    print(
        "versions and hardware are those of the baseline: every bit has to agree"
        if exact
        else "versions or hardware are others: equal within a tolerance, which grows by the step",
        flush=True,
    )
    end = published.fingerprint["weights"]["checkpoint"] if full else count
    with _place(workdir) as place:
        _claim(place, published, here)
        code = loop.train(config, place, stop_after=end)
        if code:
            return code
        ours = baseline.read_lines(place / "first_steps.jsonl")[:count]
        dtype = config.model.dtype
        found = comparison.first_difference(first_steps, ours, exact=exact, dtype=dtype)
        apart = comparison.largest_difference(first_steps, ours)
        start = comparison.largest_difference(first_steps, ours[:1])
        within = f"within the tolerance ({start:.1e} apart at step 1, at most {apart:.1e})"
        how = within if apart else "bit for bit"
        agree = f"loss and gradient norm of {len(ours)} steps agree {how}"
        if full and not found:
            compare_end = _compare_weights if exact else _compare_accuracy
            found, more = compare_end(published, place)
            agree = f"{agree}; {more}"
    print(f"FAIL {published.name}: {found}" if found else f"PASS {published.name}: {agree}")
    return 1 if found else 0


def environment_differences(
    published: dict[str, Any], here: dict[str, Any]
) -> list[tuple[str, Any, Any]]:
    """(name, published, here) of what is not alike of two provenances, but for the data.

    Where the published run was started several times, each start counts.
    """
    found: dict[str, tuple[str, Any, Any]] = {}
    ours = _flat(here)
    for start in (published, *published.get("resumed", [])):
        theirs = _flat(start)
        for name in sorted(theirs.keys() | ours.keys()):
            a, b = theirs.get(name), ours.get(name)
            if a != b and name not in _OTHER:
                found.setdefault(name, (name, a, b))
    return list(found.values())


def _flat(provenance: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """One entry for each package, and for each value that `machine` tells."""
    flat: dict[str, Any] = {}
    for name, value in provenance.items():
        if name in ("packages", "machine", "environment"):
            flat |= _flat(value)
        elif name in ("cpu", "accelerator"):
            flat |= _flat(value, f"{name} ")
        else:
            flat[prefix + name.removeprefix(prefix)] = value
    return flat


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "not told" if value is None else str(value)


def _config_of(published: Baseline, overrides: Iterable[tuple[str, str]]) -> ConfigDict:
    config = ConfigDict(published.config.to_dict())  # its own copy, groups too
    # Do not log to external services.
    config.update_from_flattened_dict({"log.tensorboard": False, "log.wandb": "", "log.mlflow": ""})
    for field, text in overrides:
        config_io.override(config, field, text)
        if field not in _SETTABLE:
            raise UserError(
                f"--config.{field} changes what is computed; reproduce takes {', '.join(_SETTABLE)}"
            )
    return config_io.check(config)


def _require_same_data(
    published: Baseline, config: ConfigDict, fingerprints: dict[str, str]
) -> None:
    for split, fingerprint in published.fingerprint["data"].items():
        if fingerprints.get(split) != fingerprint:
            raise UserError(
                f"split {split!r} of {config.data.path} has fingerprint "
                f"{fingerprints.get(split)}, and {published.name} was trained with {fingerprint}: "
                "these are other images, or the same in another order or stored otherwise; say "
                "where the same ones are with --config.data.path=DIR"
            )
    initial = published.provenance.get("initial_weights")
    if initial:
        weights = read_initial_weights(config)
        if weights is None or weights.sha256 != initial["sha256"]:
            raise UserError(
                f"{config.init.weights} is not the file that {published.name} started from "
                f"(SHA-256 {initial['sha256']}): --config.init.weights=FILE says where it is"
            )


@contextmanager
def _place(workdir: Path | None) -> Iterator[Path]:
    if workdir:
        yield workdir
        return
    with tempfile.TemporaryDirectory(prefix="reproduce-") as temporary:
        yield Path(temporary) / "run"


def _claim(workdir: Path, published: Baseline, here: dict[str, Any]) -> None:
    """Make `workdir` this reproduction's; UserError where it holds something else.

    A reproduction that was stopped goes on where code and machine are still the same: what other
    code computed says nothing about this one.
    """
    text = (published.path / baseline.FINGERPRINT).read_bytes()
    mark = {"fingerprint": hashlib.sha256(text).hexdigest(), "by": here}
    path = workdir / MARK
    if (workdir / "config.json").exists():
        try:
            same = read_json(path) == mark and not here["git_dirty"]
        except (OSError, ValueError):
            same = False
        if not same:
            raise UserError(
                f"--workdir={workdir} holds another run, or one of other code: use a new one"
            )
        return
    with writing(f"--workdir={workdir}"):
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, mark)


def _compare_weights(
    published: Baseline, workdir: Path
) -> tuple[comparison.Difference | None, str]:
    """The first tensor whose bits are others, and what to say where there is none."""
    theirs = published.fingerprint["weights"]
    weights = of_workdir(workdir, str(theirs["checkpoint"]))
    params, stats = jax.device_get((weights.tree["params"], weights.tree["batch_stats"]))
    ours = checksums(torch_names.to_torch(params, stats, weights.config.model))
    found = comparison.weights_difference(theirs, ours, f"step {theirs['checkpoint']}")
    return found, f"so do the weights of step {theirs['checkpoint']}, SHA-256 {ours['all']}"


def _compare_accuracy(
    published: Baseline, workdir: Path
) -> tuple[comparison.Difference | None, str]:
    """The top-1 where it is too far away, and what to say where it is not."""
    theirs, ours = published.results["results"][0], _result(published, workdir)
    a, b = theirs["top1"], ours["top1"]
    allowed = comparison.accuracy_tolerance(a, theirs["count"])
    step = published.results["checkpoint"]
    found = None
    if not abs(a - b) <= allowed:
        found = comparison.Difference(f"step {step}", "top1", a, b, allowed / max(a, b))
    return found, f"top-1 of step {step} is {b:.2%}, published {a:.2%} (allowed: {allowed:.2%})"


def _result(published: Baseline, workdir: Path) -> dict[str, Any]:
    """The result of the published kind of weights, over the whole split."""
    step, kind = published.results["checkpoint"], published.results["results"][0]["weights"]
    for line in baseline.read_lines(workdir / "metrics.jsonl"):
        if line["step"] == step and line.get("weights") == kind:
            return line
    record = next(iter(evaluate_workdir(workdir, str(step))))
    return next(row for row in (record, *record["also"]) if row["weights"] == kind)
