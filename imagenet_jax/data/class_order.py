"""Labels of classes in another order than that of the source: `config.data.class_order`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from imagenet_jax import strict_json
from imagenet_jax.data.tfds_format import Record
from imagenet_jax.errors import UserError, expand_user
from imagenet_jax.files import hash_texts

if TYPE_CHECKING:
    from imagenet_jax.data.sources import Source


class Reordered:
    """A source whose label i is the class `class_names[i]`.

    Attributes:
      class_numbers: of each class, the number that the user gives it: its name, or its line.
    """

    def __init__(self, source: "Source", class_names: Sequence[str], numbers: Sequence[int]):
        self._source, self.name = source, source.name
        self.class_names, self.class_numbers = tuple(class_names), tuple(numbers)
        self.fingerprint = hash_texts(source.fingerprint, *class_names)
        new = {name: label for label, name in enumerate(class_names)}
        self._new = np.array([new[name] for name in source.class_names], np.int32)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = self._source[index]
        if 0 <= record["label"] < len(self._new):  # others are reported where they are used
            record["label"] = int(self._new[record["label"]])
        return record

    def labels(self) -> np.ndarray:
        """i32[N]: the label of every record."""
        labels = self._source.labels()
        known = (labels >= 0) & (labels < len(self._new))
        return np.where(known, self._new[np.where(known, labels, 0)], labels)


def reorder(source: "Source", order: str) -> "Source":
    """Return `source` with its classes in the order that `config.data.class_order` names.

    "name": as they are. "number": class names are numbers, in ascending order. Otherwise a file
    with one class name a line, or with a JSON list of them, such as the classes.json of a workdir.

    Raises UserError where the names are not numbers, or the file does not list all of them.
    """
    if order == "name":
        return source
    if order == "number":
        return _by_number(source)
    names = _read(order)
    line = {name: i for i, name in enumerate(names)}
    for name in source.class_names:
        if name not in line:
            raise UserError(
                f"config.data.class_order = {order!r} has no line for class {name!r} of "
                f"{source.name}; add it on the line of its label"
            )
    found = sorted(source.class_names, key=line.__getitem__)
    return Reordered(source, found, [line[name] for name in found])


def _by_number(source: "Source") -> "Source":
    for name in source.class_names:
        if not is_number(name):
            raise UserError(
                f"config.data.class_order = 'number', but class {name!r} of {source.name} is not a "
                "number; use name, or a file with one class name a line"
            )
    found = sorted(source.class_names, key=int)
    numbers = [int(name) for name in found]
    if len(set(numbers)) < len(numbers):
        raise UserError(
            f"config.data.class_order = 'number', but two classes of {source.name} are the same "
            "number; use name, or a file with one class name a line"
        )
    return Reordered(source, found, numbers)


def is_number(name: str) -> bool:
    """Whether a class name is a number, such as "7" or "007"."""
    return name.isascii() and name.isdecimal()


def _read(file: str) -> list[str]:
    """The class names that a file lists."""
    path = expand_user(file)
    if not path.is_file():
        raise UserError(
            f"config.data.class_order = {file!r} is not a file; use name | number | a file with "
            "one class name a line"
        )
    try:
        text = path.read_text("utf-8-sig")
        listed = strict_json.loads(text) if text.lstrip().startswith("[") else text.splitlines()
        names = [str(name).strip() for name in listed]
    except (OSError, ValueError) as e:
        raise UserError(f"config.data.class_order = {file!r} cannot be read: {e}") from e
    while names and not names[-1]:
        names.pop()
    for i, name in enumerate(names):
        if not name or name in names[:i]:
            what = f"repeats {name!r}" if name else "is empty"
            raise UserError(
                f"config.data.class_order = {file!r}: line {i + 1} {what}; write one class name a "
                "line, the name of label 0 first"
            )
    return names
