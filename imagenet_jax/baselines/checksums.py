"""SHA-256 of weights, tensor by tensor."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def checksums(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """{"all", "tensors": {name: ...}}, hexadecimal, of little-endian row-major bytes.

    Those are the bytes of a .safetensors file. "all" is of the lines "SUM  NAME", sorted by name,
    as sha256sum prints them.
    """
    sums = {}
    for name in sorted(tensors):
        array = np.asarray(tensors[name])
        little = array.astype(array.dtype.newbyteorder("<"), order="C")
        sums[name] = hashlib.sha256(little.tobytes()).hexdigest()
    lines = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    return {"all": hashlib.sha256(lines.encode()).hexdigest(), "tensors": sums}
