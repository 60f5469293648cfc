"""Valid JSON for NaN and infinite numbers. All JSON of the package is written and read here.

Such a number is written as null, and the field "nonfinite_values" of its object holds the value:
{"loss": null, "nonfinite_values": {"loss": "nan"}}. The key of a number in a list is its path
from that object, such as "losses/2".
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

    Raises ValueError for a NaN or infinite number outside of an object.
    """
    return json.dumps(
        encode(value),
        indent=indent,
        sort_keys=sort_keys,
        separators=separators,
        allow_nan=False,
    )


def loads(text: str | bytes) -> Any:
    """Return the value that `dumps` wrote, including NaN and infinite numbers.

    Also reads the literals NaN and Infinity, which are not JSON. Raises ValueError for other text.
    """
    return json.loads(text, object_hook=decode)


def encode(value: Any) -> Any:
    """Return a copy of `value` with null for NaN and infinite numbers."""
    if isinstance(value, dict):
        found: dict[str, str] = {}
        plain = {k: _encode(v, str(k), found) for k, v in value.items()}
        return plain | ({FIELD: found} if found else {})
    return [encode(item) for item in value] if isinstance(value, list | tuple) else value


def decode(value: dict[str, Any]) -> dict[str, Any]:
    """Put the numbers in "nonfinite_values" back into their object.

    Raises ValueError if a path in it does not exist.
    """
    for path, number in value.pop(FIELD, {}).items():
        node: Any = value
        try:
            *keys, last = _keys(value, path)
            for key in keys:
                node = node[key]
            if node[last] is not None:
                raise ValueError("not null")
            node[last] = float(number)
        except (LookupError, TypeError, ValueError) as e:
            raise ValueError(f"{FIELD} names {path!r}, which does not exist or is not null") from e
    return value


def _encode(value: Any, path: str, found: dict[str, str]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        found[path] = str(float(value))
        return None
    if isinstance(value, list | tuple):
        return [_encode(item, f"{path}/{i}", found) for i, item in enumerate(value)]
    return encode(value)


def _keys(value: dict[str, Any], path: str) -> list[Any]:
    """Split a path into keys. The first key may contain slashes."""
    if path in value:
        return [path]
    name, *indices = path.split("/")
    while name not in value and indices:
        name = f"{name}/{indices.pop(0)}"
    return [name, *map(int, indices)]
