"""Reading and writing of weights files.

Files written by safetensors, torch.save and Keras are read, whatever their suffix, without
executing code in them. Keys become torchvision's or timm's (library_names.py). Files are written as
.safetensors only.
"""

import dataclasses
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from imagenet_jax.errors import UserError, expand_user, one_line, shorten, writing
from imagenet_jax.files import dump_json, parse_json, write_atomically
from imagenet_jax.weights import keras_file
from imagenet_jax.weights.file_format import explain_pickle_error, identify_file
from imagenet_jax.weights.library_names import join_parts, rename

_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8,
    "BOOL": np.bool_, "C64": np.complex64,
}  # fmt: skip
_CLASS_NAMES = "class_names"  # key in the metadata of a .safetensors file: a JSON list
# Keys of a checkpoint that may hold a state dict, in order of preference: EMA weights before raw
# weights, as for a workdir. "teacher" is DINO's.
_KEYS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema", "teacher",
    "state_dict", "model_state_dict", "model", "net", "network", "weights",
)  # fmt: skip
_DEPTH = 3  # levels of nested dicts that are searched for a state dict
# What training scripts save next to tensors. It is unpickled as _Ignored; none of these classes is
# instantiated.
_METADATA = (
    "argparse.Namespace", "types.SimpleNamespace", "datetime.datetime",
    "pathlib.PosixPath", "pathlib.WindowsPath",
    "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
    "numpy.ndarray", "numpy.dtype", "torch.torch_version.TorchVersion",
    # The log of mmengine, and the function that its methods are pickled with.
    "mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr", "__builtin__.getattr",
)  # fmt: skip


class _Ignored:
    """Placeholder for an object in a checkpoint that is not needed to read its tensors."""

    def __init__(self, *_: Any): ...

    def __setstate__(self, state: Any) -> None: ...


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """The state dict in a weights file.

    Attributes:
      arrays: arrays by torchvision's or timm's keys; float16 and bfloat16 become float32.
      note: one line on what was chosen, renamed and skipped; "" if nothing was.
      is_ema: whether the file marks the weights as EMA weights.
    """

    arrays: dict[str, np.ndarray]
    note: str
    is_ema: bool


def read(path: str | Path, key: str = "") -> WeightsFile:
    """Read the state dict of a weights file. torch is needed only for files of torch.save.

    Args:
      key: the entry with the state dict, such as "model" or "ema.state_dict"; "": find it.

    Raises UserError, saying what the file is, if it does not exist or has no state dict.
    """
    path = expand_user(path)
    origin = f"weights file {path}"
    try:
        if path.is_dir():
            raise UserError(f"{origin} is a folder; give a file")
        found: dict[str, Mapping[str, Any]] = {}
        notes: list[str] = []
        kind = identify_file(path)
        if kind == "safetensors":
            found = {"": _read_safetensors(path, origin)}
        elif kind == "pickle":
            found = _find_state_dicts(_unpickle(path, origin))
        elif kind == "hdf5":
            found[""], notes = keras_file.read(path, origin)
        else:
            raise UserError(f"{origin} cannot be read: it {kind}")
    except FileNotFoundError as e:
        raise UserError(f"{origin} does not exist") from e
    except OSError as e:
        raise UserError(f"{origin} cannot be read: {e.strerror or e}") from e
    chosen = _choose(found, key, origin)
    state_dict = found[chosen]
    others = [str(name) for name, value in state_dict.items() if not _is_array(value)]
    renamed, note = rename((k for k, v in state_dict.items() if _is_array(v)), origin=origin)
    is_ema = "ema" in re.split(r"[._]", chosen)
    if is_ema or len(found) > 1:
        notes.append(f"{'EMA ' * is_ema}weights from {chosen!r}")
    if len(found) > 1 and not key:
        notes.append(f"--weights_key={next(n for n in found if n != chosen)} chooses others")
    if note:
        notes.append(note)
    if others:
        notes.append(f"skipped entries that are not tensors: {shorten(others)}")
    arrays = {new: _to_numpy(state_dict[old], f"{origin}: {old}") for old, new in renamed.items()}
    return WeightsFile(join_parts(arrays), f"{origin}: {'; '.join(notes)}" if notes else "", is_ema)


def load_class_names(path: str | Path) -> tuple[str, ...]:
    """Return the class names by label that `save` stored in a .safetensors file; () if none."""
    from safetensors import safe_open

    path = expand_user(path)
    if identify_file(path) != "safetensors":
        return ()
    with safe_open(path, framework="numpy") as file:
        stored = (file.metadata() or {}).get(_CLASS_NAMES, "[]")
    try:
        names = parse_json(stored)
    except ValueError:  # another program's entry of that name
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


def save(
    state_dict: Mapping[str, np.ndarray], path: str | Path, class_names: tuple[str, ...] = ()
) -> None:
    """Write a .safetensors file atomically, with class names in its metadata.

    Raises UserError if `path` has another suffix or cannot be written.
    """
    from safetensors import numpy as safetensors_numpy

    path = expand_user(path)
    if path.suffix != ".safetensors":
        raise UserError(f"weights are written as .safetensors, not {path.name}")
    if not path.parent.is_dir():
        raise UserError(f"weights file {path}: the folder {path.parent} does not exist")
    # safetensors ignores strides. np.ascontiguousarray would make torch's 0-d counters 1-d.
    arrays = {key: np.asarray(value, order="C") for key, value in state_dict.items()}
    metadata = {_CLASS_NAMES: dump_json(class_names)} if class_names else None
    with writing(f"weights file {path}"):
        # Not save_file, which makes the file readable only by its owner, whatever the umask.
        write_atomically(path, safetensors_numpy.save(arrays, metadata))


def _read_safetensors(path: Path, origin: str) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, deserialize

    data = path.read_bytes()
    try:
        tensors = deserialize(data)
    except SafetensorError as e:
        reason = one_line(e)
        if "incomplete" in reason.lower():
            reason = "it is cut off; copy or download it again"
        raise UserError(f"{origin} cannot be read: {reason}") from e
    arrays = {}
    for name, tensor in tensors:
        dtype = tensor["dtype"]
        if dtype not in _DTYPES:
            raise UserError(
                f"{origin}: {name} is of type {dtype}, which is not supported; save it in float32"
            )
        arrays[name] = np.frombuffer(tensor["data"], _DTYPES[dtype]).reshape(tensor["shape"])
    return arrays


def _unpickle(path: Path, origin: str) -> Any:
    try:
        import torch
    except ImportError as e:
        raise UserError(
            f"{origin} was written by torch.save; reading it needs torch: pip install torch, or "
            "convert it to .safetensors on a machine that has torch"
        ) from e
    try:
        with (
            torch.serialization.safe_globals([(_Ignored, name) for name in _METADATA]),
            warnings.catch_warnings(action="ignore"),  # about pickle protocols
        ):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises many kinds; each means that the file cannot be used
        raise UserError(f"{origin} cannot be read: it {explain_pickle_error(e)}") from e


def _is_array(value: Any) -> bool:
    # torch may not be installed, so look for an attribute of its tensors.
    return isinstance(value, np.ndarray) or hasattr(value, "is_floating_point")


def _find_state_dicts(
    loaded: Any, path: str = "", depth: int = _DEPTH
) -> dict[str, Mapping[str, Any]]:
    """Return the dicts of tensors in nested dicts, by dotted path; "" is the outermost."""
    if not isinstance(loaded, Mapping) or depth < 0:
        return {}
    found: dict[str, Mapping[str, Any]] = {}
    if any(str(k).endswith("weight") and _is_array(v) for k, v in loaded.items()):
        found[path] = loaded
    for name, value in loaded.items():
        found |= _find_state_dicts(value, f"{path}.{name}".removeprefix("."), depth - 1)
    return found


def _choose(found: Mapping[str, Any], key: str, origin: str) -> str:
    """Return the path in `found` that `key` names, or the preferred path if `key` is ""."""
    if not found:
        raise UserError(f"{origin} has no state dict: no tensor in it is named weight")
    choices = " or ".join(filter(None, found))
    if key:
        matches = [path for path in found if path == key or path.startswith(f"{key}.")]
        if not matches:
            hint = f"use {choices}" if choices else "it has only one; omit the key"
            raise UserError(f"{origin} has no state dict {key!r} (--weights_key): {hint}")
        return matches[0]
    for name in _KEYS:
        for path in found:
            if name in path.split("."):
                return path
    if "" in found or len(found) == 1:
        return min(found)  # "" sorts first
    raise UserError(f"{origin} has several state dicts; choose one: --weights_key={choices}")


def _to_numpy(value: Any, origin: str) -> np.ndarray:
    """Return `value`, an array or a dense CPU tensor, as an array; 16-bit floats become float32."""
    if not isinstance(value, np.ndarray):
        if value.is_meta:
            raise UserError(f"{origin} has no values: it was saved from torch's meta device")
        odd = value.is_sparse or value.is_quantized or value.is_nested
        if odd or "sparse" in str(value.layout):
            raise UserError(f"{origin} is a sparse, quantized or nested tensor; save a dense one")
        try:
            value = value.detach().resolve_conj().resolve_neg()
            value = (value.float() if value.is_floating_point() else value).numpy()
        except (TypeError, RuntimeError) as e:
            raise UserError(f"{origin} has the type {value.dtype}, which is not supported") from e
    if jnp.issubdtype(value.dtype, jnp.floating) and value.dtype.itemsize < 4:
        return value.astype(np.float32)
    return value
