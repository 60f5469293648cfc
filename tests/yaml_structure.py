"""A small checker of YAML documents: the part of JSON Schema that the manifests here need."""

from typing import Any

TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict, "array": list, "string": str, "integer": int, "boolean": bool
}  # fmt: skip


def problems(value: Any, schema: dict[str, Any], at: str = "") -> list[str]:
    """What in `value` breaks `schema`: type, required, fields (closed), items, one_of, minimum."""
    wanted = schema["type"]
    if not isinstance(value, TYPES[wanted]) or (wanted == "integer" and isinstance(value, bool)):
        return [f"{at}: {value!r} is not of type {wanted}"]
    found = []
    if "one_of" in schema and value not in schema["one_of"]:
        found.append(f"{at}: {value!r} is not one of {schema['one_of']}")
    if "minimum" in schema and value < schema["minimum"]:
        found.append(f"{at}: {value} is below {schema['minimum']}")
    if wanted == "object" and "fields" in schema:
        fields = schema["fields"]
        found += [
            f"{at}.{name}: missing" for name in schema.get("required", ()) if name not in value
        ]
        found += [f"{at}.{name}: unknown" for name in value if name not in fields]
        for name in value.keys() & fields.keys():
            found += problems(value[name], fields[name], f"{at}.{name}")
    if wanted == "object" and "values" in schema:
        for name, item in value.items():
            found += problems(item, schema["values"], f"{at}.{name}")
    if wanted == "array":
        for i, item in enumerate(value):
            found += problems(item, schema["items"], f"{at}[{i}]")
    return found


def obj(required: str = "", **fields: dict[str, Any]) -> dict[str, Any]:
    """An object of exactly these fields; `required` names some, separated by blanks."""
    return {"type": "object", "fields": fields, "required": required.split()}


def array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def one_of(*values: Any) -> dict[str, Any]:
    return {"type": "string", "one_of": values}


STRING = {"type": "string"}
BOOLEAN = {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0}
POSITIVE = {"type": "integer", "minimum": 1}
