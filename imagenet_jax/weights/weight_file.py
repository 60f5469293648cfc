"""Reading and writing of weights files, and what else a file is instead of weights.

Files of safetensors, torch.save and Keras are read, whatever their suffix. No code in a file is
run. Names become torchvision's or timm's (torch_names.py). Only .safetensors files are written.
"""

import dataclasses
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from imagenet_jax.errors import UserError, expand_user, one_line, writing
from imagenet_jax.files import dump_json, parse_json, write_atomically
from imagenet_jax.weights import keras_file
from imagenet_jax.weights.torch_names import join_parts, rename, shorten

_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8,
    "BOOL": np.bool_, "C64": np.complex64,
}  # fmt: skip
_CLASS_NAMES = "class_names"  # entry of a .safetensors file's metadata: a JSON list
# Entries of a checkpoint that may hold a state dict, by preference: EMA weights come before raw
# weights, as in a workdir. "teacher" is DINO's.
_KEYS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema", "teacher",
    "state_dict", "model_state_dict", "model", "net", "network", "weights",
)  # fmt: skip
_DEPTH = 3  # levels of nested dicts that are searched for a state dict
# What training scripts save beside tensors. All become _Ignored; none of these classes is created.
_METADATA = (
    "argparse.Namespace", "types.SimpleNamespace", "datetime.datetime",
    "pathlib.PosixPath", "pathlib.WindowsPath",
    "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
    "numpy.ndarray", "numpy.dtype", "torch.torch_version.TorchVersion",
    # mmengine's log, and the function its methods are pickled with.
    "mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr", "__builtin__.getattr",
)  # fmt: skip


_SAVE = "where it was made, run torch.save(model.state_dict(), FILE)"
_ARCHIVE = "archive; unpack it and give the weights file in it"
_MAGIC = {
    b"\x1f\x8b": f"a gzip {_ARCHIVE}", b"BZh": f"a bzip2 {_ARCHIVE}",
    b"\xfd7zXZ": f"an xz {_ARCHIVE}", b"\x28\xb5\x2f\xfd": f"a zstd {_ARCHIVE}",
    b"7z\xbc\xaf": f"a 7z {_ARCHIVE}",
    b"\x93NUMPY": "one NumPy array, not a state dict",
}  # fmt: skip


class _Ignored:
    """Stands for an object of a checkpoint that is not needed to read its tensors."""

    def __init__(self, *_: Any): ...

    def __setstate__(self, state: Any) -> None: ...


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """Attributes:
    arrays: by torchvision's or timm's names; narrower floats of the file become float32.
    note: one line on what was chosen, renamed and skipped; "" if nothing was.
    is_ema: whether the file calls the weights a moving average.
    """

    arrays: dict[str, np.ndarray]
    note: str
    is_ema: bool


def read(path: str | Path, key: str = "") -> WeightsFile:
    """Read the state dict of a weights file. Only a pickle needs torch.

    Args:
      key: the entry that holds the state dict, with dots between nested entries; "": find it.

    Raises UserError for a missing or unreadable file, saying what the file is instead.
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
            found = _state_dicts(_unpickle(path, origin))
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
        notes.append(f"--weights_key={next(n for n in found if n != chosen)} takes others")
    if note:
        notes.append(note)
    if others:
        notes.append(f"skipped what is not a tensor: {shorten(others)}")
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

    Raises UserError for another suffix, or if the file cannot be written.
    """
    from safetensors import numpy as safetensors_numpy

    path = expand_user(path)
    if path.suffix != ".safetensors":
        raise UserError(f"weights are written as .safetensors, not {path.name}")
    if not path.parent.is_dir():
        raise UserError(f"weights file {path}: the folder {path.parent} does not exist")
    # safetensors ignores strides. ascontiguousarray would give torch's counters, 0-d arrays, an
    # axis.
    arrays = {key: np.asarray(value, order="C") for key, value in state_dict.items()}
    metadata = {_CLASS_NAMES: dump_json(class_names)} if class_names else None
    with writing(f"weights file {path}"):
        # save_file would make the file readable by its owner only; here the umask decides.
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
        raise UserError(f"{origin} cannot be read: it {_explain_pickle_error(e)}") from e


def _is_array(value: Any) -> bool:
    # By an attribute of torch's tensors: torch may not be installed.
    return isinstance(value, np.ndarray) or hasattr(value, "is_floating_point")


def _state_dicts(loaded: Any, path: str = "", depth: int = _DEPTH) -> dict[str, Mapping[str, Any]]:
    """Return the dicts of tensors in nested dicts by dotted path; "" is the outermost."""
    if not isinstance(loaded, Mapping) or depth < 0:
        return {}
    found: dict[str, Mapping[str, Any]] = {}
    if any(str(k).endswith("weight") and _is_array(v) for k, v in loaded.items()):
        found[path] = loaded
    for name, value in loaded.items():
        found |= _state_dicts(value, f"{path}.{name}".removeprefix("."), depth - 1)
    return found


def _choose(found: Mapping[str, Any], key: str, origin: str) -> str:
    """Return the path in `found` that `key` names, or the preferred one if `key` is ""."""
    if not found:
        raise UserError(f"{origin} holds no state dict: no tensor in it is named weight")
    choices = " or ".join(filter(None, found))
    if key:
        matches = [path for path in found if path == key or path.startswith(f"{key}.")]
        if not matches:
            hint = f"use {choices}" if choices else "it has one state dict; leave the key out"
            raise UserError(f"{origin} has no state dict {key!r} (--weights_key): {hint}")
        return matches[0]
    for name in _KEYS:
        for path in found:
            if name in path.split("."):
                return path
    if "" in found or len(found) == 1:
        return min(found)  # "" if it is one of several
    raise UserError(f"{origin} has several state dicts; choose one: --weights_key={choices}")


def _to_numpy(value: Any, origin: str) -> np.ndarray:
    """Return an array or a dense CPU tensor as an array; narrower floats become float32."""
    if not isinstance(value, np.ndarray):
        if value.is_meta:
            raise UserError(f"{origin} has no values (device meta): the model was never loaded")
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


def identify_file(path: Path) -> str:
    """Return "safetensors", "pickle", "hdf5", or a phrase such as "is empty" for anything else.

    Raises OSError if the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(1024)
    if not head:
        return "is empty"
    if head.startswith(b"version ") and b"\noid sha256:" in head:
        return "is a git-lfs pointer, not the file it stands for; run git lfs pull"
    # First, as the length of a safetensors header may look like any other format's first bytes.
    is_header = head[8:9] == b"{"
    if is_header and 8 + int.from_bytes(head[:8], "little") <= size:
        return "safetensors"
    if head.startswith(b"PK"):
        return _kind_of_zip(path)
    if head[0] == 0x80 and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    if head[257:262] == b"ustar":
        return f"is a tar {_ARCHIVE}"
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            return f"is {what}"
    if is_header:
        return "is cut off; copy or download it again"
    return _kind_of_text(head)


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return "is a zip archive that is cut off or damaged; copy or download it again"
    if any(name.endswith("/constants.pkl") for name in names):
        return f"is a TorchScript program, not a state dict; {_SAVE}"
    if any(name.endswith("/data.pkl") for name in names):
        return "pickle"
    if names and all(name.endswith(".npy") for name in names):
        return "is a NumPy archive, not a state dict of torch"
    return "is a zip archive that torch did not write; unpack it and give the weights file in it"


def _kind_of_text(head: bytes) -> str:
    text = head.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").strip()
    if re.match(r"<(!doctype|html|\?xml|head)", text, re.IGNORECASE):
        return "is a web page, not weights; download the file that the page is about"
    whole = text[:-1]  # the last character may be incomplete
    if text and all(c.isprintable() or c.isspace() for c in whole) and "\ufffd" not in whole:
        return f"is text, not weights; it begins with {' '.join(text.split())[:40]!r}"
    return f"is neither a safetensors file nor of torch.save; it begins with {head[:8].hex(' ')}"


def _explain_pickle_error(error: Exception) -> str:
    """Return what is wrong with a file, without torch's advice to run the code in it."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    if found := re.search(r"GLOBAL (\S+)", text):
        return (
            f"holds a pickled {found[1]}, such as a whole model, and not only tensors; code in a "
            f"file is never run here: {_SAVE}"
        )
    if isinstance(error, EOFError) or "truncated" in text:
        return "is cut off; copy or download it again"
    if "PytorchStreamReader" in text:
        return "is damaged; copy or download it again"
    if "magic number" in text or "Unsupported operand" in text:
        return f"is a pickle of another program or of a protocol above 2; {_SAVE}"
    lines = (text.partition("WeightsUnpickler error:")[2] or text).split("\n")
    reason = next((line.strip() for line in lines if line.strip()), "")
    if not reason or "weights_only" in reason or "Weights only" in reason:
        reason = type(error).__name__
    return f"is damaged or not a state dict ({reason})"
