"""What kind of file a weights file is, by its first bytes, and what is wrong with it."""

import re
import zipfile
from pathlib import Path

_SAVE = "in the program that wrote it, call torch.save(model.state_dict(), FILE)"
_ARCHIVE = "archive; unpack it and give the weights file in it"
_MAGIC = {
    b"\x1f\x8b": f"a gzip {_ARCHIVE}", b"BZh": f"a bzip2 {_ARCHIVE}",
    b"\xfd7zXZ": f"an xz {_ARCHIVE}", b"\x28\xb5\x2f\xfd": f"a zstd {_ARCHIVE}",
    b"7z\xbc\xaf": f"a 7z {_ARCHIVE}",
    b"\x93NUMPY": "one NumPy array, not a state dict",
}  # fmt: skip


def identify_file(path: Path) -> str:
    """Return "safetensors", "pickle" or "hdf5"; for other files, what is wrong: "is empty", ...

    Raises OSError if the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(1024)
    if not head:
        return "is empty"
    if head.startswith(b"version ") and b"\noid sha256:" in head:
        return "is a Git LFS pointer, not the file itself; run git lfs pull"
    # Before the other formats: the header length of a safetensors file may look like their magic.
    is_header = head[8:9] == b"{"
    if is_header and 8 + int.from_bytes(head[:8], "little") <= size:
        return "safetensors"
    if head.startswith(b"PK"):
        return _identify_zip(path)
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
    return _describe_text(head)


def _identify_zip(path: Path) -> str:
    """Return what `identify_file` does, for a zip archive."""
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
        return "is a NumPy archive, not a torch state dict"
    return "is a zip archive not written by torch; unpack it and give the weights file in it"


def _describe_text(head: bytes) -> str:
    """Return what a file of unknown format is, by its first bytes."""
    text = head.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").strip()
    if re.match(r"<(!doctype|html|\?xml|head)", text, re.IGNORECASE):
        return "is a web page, not weights; download the file that it links to"
    whole = text[:-1]  # the last character may be incomplete
    if text and all(c.isprintable() or c.isspace() for c in whole) and "\ufffd" not in whole:
        return f"is text, not weights; it begins with {' '.join(text.split())[:40]!r}"
    return f"is neither safetensors nor written by torch.save; it begins with {head[:8].hex(' ')}"


def explain_pickle_error(error: Exception) -> str:
    """Return what is wrong with a pickle, without torch's advice to execute the code in it."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    if found := re.search(r"GLOBAL (\S+)", text):
        return (
            f"contains a pickled {found[1]}, such as a whole model, and not only tensors; code in "
            f"files is never executed: {_SAVE}"
        )
    if isinstance(error, EOFError) or "truncated" in text:
        return "is cut off; copy or download it again"
    if "PytorchStreamReader" in text:
        return "is damaged; copy or download it again"
    if "magic number" in text or "Unsupported operand" in text:
        return f"is a pickle not written by torch, or of a protocol above 2; {_SAVE}"
    lines = (text.partition("WeightsUnpickler error:")[2] or text).split("\n")
    reason = next((line.strip() for line in lines if line.strip()), "")
    if not reason or "weights_only" in reason or "Weights only" in reason:
        reason = type(error).__name__
    return f"is damaged or not a state dict ({reason})"
