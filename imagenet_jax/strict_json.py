"""Valid JSON for numbers that JSON does not have: the one writer and reader of the package.

A NaN or infinite number is written as null, and the field "nonfinite_values" of the object that it
is in says which it was: {"loss": null, "nonfinite_values": {"loss": "nan"}}. A number in a list
is named by its path from that object, such as "losses/2".
"""

import json
import math
from typing import Any

FIELD = "nonfinite_values"


def dumps(
    value: Any,
    *,
    indent: int | None = None,
    sort_keys: bool = False,
    separators: tuple[str, str] | None = None,
) -> str:
    """Return `value` as JSON that every parser accepts.

    Raises ValueError for a NaN or infinite number that is in no object.
    """
    return json.dumps(
        encode(value),
        indent=indent,
        sort_keys=sort_keys,
        separators=separators,
        allow_nan=False,
    )


def loads(text: str | bytes) -> Any:
    """Return what `dumps` wrote, NaN and infinite numbers included.

    The literals NaN and Infinity, which are not JSON, are read as well.

    Raises ValueError for anything else.
    """
    return json.loads(text, object_hook=decode)


def encode(value: Any) -> Any:
    """Return a copy of `value` in which null stands for NaN and infinite numbers."""
    if isinstance(value, dict):
        found: dict[str, str] = {}
        plain = {k: _encode(v, str(k), found) for k, v in value.items()}
        return plain | ({FIELD: found} if found else {})
    return [encode(item) for item in value] if isinstance(value, list | tuple) else value


def decode(value: dict[str, Any]) -> dict[str, Any]:
    """Put the numbers that "nonfinite_values" names back into one object.

    Raises ValueError where it names what is not there.
    """
    for path, number in value.pop(FIELD, {}).items():
        node: Any = value
        try:
            *keys, last = _keys(value, path)
            for key in keys:
                node = node[key]
            if node[last] is not None:
                raise ValueError("a number is there")
            node[last] = float(number)
        except (LookupError, TypeError, ValueError) as e:
            raise ValueError(f"{FIELD} names {path!r}, which is not there") from e
    return value


def _encode(value: Any, path: str, found: dict[str, str]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        found[path] = str(float(value))
        return None
    if isinstance(value, list | tuple):
        return [_encode(item, f"{path}/{i}", found) for i, item in enumerate(value)]
    return encode(value)


def _keys(value: dict[str, Any], path: str) -> list[Any]:
    """The keys of a path; a name may have slashes of its own."""
    if path in value:
        return [path]
    name, *indices = path.split("/")
    while name not in value and indices:
        name = f"{name}/{indices.pop(0)}"
    return [name, *map(int, indices)]
