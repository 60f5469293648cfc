"""The kind of a weights file, from its first bytes, and why it cannot be used."""

import re
import zipfile
from pathlib import Path

_SAVE = "where it was made, run torch.save(model.state_dict(), FILE)"
_MAGIC = {
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"BZh": "a bzip2 archive; unpack it first",
    b"\xfd7zXZ": "an xz archive; unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd archive; unpack it first",
    b"7z\xbc\xaf": "a 7z archive; unpack it first",
    b"\x89HDF": "an HDF5 file, as Keras writes, and not a state dict of torch",
    b"\x93NUMPY": "one NumPy array, not a state dict",
}  # fmt: skip


def kind(path: Path) -> str:
    """Return "safetensors", "pickle", or a phrase such as "is empty" for anything else.

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
    if head[257:262] == b"ustar":
        return "is a tar archive; unpack it and give the weights file in it"
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
    # The last character may be incomplete.
    if (
        text
        and all(c.isprintable() or c.isspace() for c in text[:-1])
        and "\ufffd" not in text[:-1]
    ):
        return f"is text, not weights; it begins with {' '.join(text.split())[:40]!r}"
    return f"is neither a safetensors file nor of torch.save; it begins with {head[:8].hex(' ')}"


def pickle_problem(error: Exception) -> str:
    """Return what is wrong with a file, as `kind` does, from the exception of torch.load.

    torch's own message advises to run the code in the file.
    """
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
