"""ImageNet's class names, the order of labels, and matching classes of data and weights."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Self

import numpy as np

from imagenet_jax.data import Record, Source
from imagenet_jax.errors import UserError, expand_user
from imagenet_jax.files import hash_texts, parse_json

_IMAGENET = "imagenet_classes.txt"  # one "wnid<TAB>name" per line; the names are torchvision's
_FILE_ADVICE = (
    "write a file whose line i + 1 is the data's name for class i of the weights, and set "
    "--config.data.class_order=FILE"
)
# ImageNet's name -> names in lists of WordNet synonyms, for classes that share their first synonym.
_SYNONYMS = {
    "crane": ("crane", "crane2"),
    "crane bird": ("crane",),
    "maillot": ("maillot",),
    "maillot tank suit": ("maillot, tank suit",),
}


@functools.cache
def _imagenet() -> tuple[tuple[str, ...], tuple[str, ...]]:
    text = resources.files(__package__).joinpath(_IMAGENET).read_text("utf-8")
    wnids, names = zip(*(line.split("\t") for line in text.splitlines()), strict=True)
    return wnids, names


def imagenet_wnids() -> tuple[str, ...]:
    """Return ImageNet's 1000 WordNet ids in label order, "n01440764" first."""
    return _imagenet()[0]


def imagenet_names() -> tuple[str, ...]:
    """Return ImageNet's 1000 class names in label order, "tench" first; no two are equal."""
    return _imagenet()[1]


class Reordered:
    """A source whose label i is the class `class_names[i]`.

    Attributes:
      class_numbers: the number of each class: its name as a number, or its line in the user's file.
    """

    def __init__(self, source: Source, class_names: Sequence[str], numbers: Sequence[int]):
        self._source, self.name = source, source.name
        self.class_names, self.class_numbers = tuple(class_names), tuple(numbers)
        self.fingerprint = hash_texts(source.fingerprint, *class_names)
        new = {name: label for label, name in enumerate(class_names)}
        self._new = np.array([new[name] for name in source.class_names], np.int32)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = self._source[index]
        if 0 <= record["label"] < len(self._new):  # the pipeline reports any other label
            record["label"] = int(self._new[record["label"]])
        return record

    def labels(self) -> np.ndarray:
        labels = self._source.labels()
        valid = (labels >= 0) & (labels < len(self._new))
        return np.where(valid, self._new[np.where(valid, labels, 0)], labels)


def reorder(source: Source, order: str) -> Source:
    """Return `source` with its classes in the order of `config.data.class_order`.

    Args:
      order: "name": unchanged. "number": class names are numbers, in ascending order. Otherwise a
        file with one class name per line, or with a JSON list of them, such as a workdir's
        classes.json.

    Raises:
      UserError: if a name is not a number, or if the file does not list every class.
    """
    if order == "name":
        return source
    if order == "number":
        line = _parse_numbers(source)
    else:
        line = {name: i for i, name in enumerate(_read_class_list(order))}
    for name in source.class_names:
        if name not in line:
            raise UserError(
                f"config.data.class_order = {order!r} has no line for class {name!r} of "
                f"{source.name}; add the name on the line of its label"
            )
    found = sorted(source.class_names, key=line.__getitem__)
    return Reordered(source, found, [line[name] for name in found])


def _parse_numbers(source: Source) -> dict[str, int]:
    use = "use name, or a file with one class name per line"
    for name in source.class_names:
        if not is_number(name):
            raise UserError(
                f"config.data.class_order = 'number', but class {name!r} of {source.name} is not a "
                f"number; {use}"
            )
    numbers = {name: int(name) for name in source.class_names}
    if len(set(numbers.values())) < len(numbers):
        raise UserError(
            f"config.data.class_order = 'number', but two classes of {source.name} are the same "
            f"number; {use}"
        )
    return numbers


def is_number(name: str) -> bool:
    """Return whether a class name is a number, such as "7" or "007"."""
    return name.isascii() and name.isdecimal()


def _read_class_list(file: str) -> list[str]:
    path, field = expand_user(file), f"config.data.class_order = {file!r}"
    if not path.is_file():
        raise UserError(
            f"{field} is not a file; use name | number | a file with one class name per line"
        )
    try:
        text = path.read_text("utf-8-sig")
        listed = parse_json(text) if text.lstrip().startswith("[") else text.splitlines()
        names = [str(name).strip() for name in listed]
    except (OSError, ValueError) as e:
        raise UserError(f"{field} cannot be read: {e}") from e
    while names and not names[-1]:
        names.pop()
    for i, name in enumerate(names):
        if not name or name in names[:i]:
            what = f"repeats {name!r}" if name else "is empty"
            raise UserError(
                f"{field}: line {i + 1} {what}; write one class name per line, in the order of "
                "labels"
            )
    return names


@dataclass(frozen=True)
class KnownClasses:
    """The classes of a classification head.

    Attributes:
      count: outputs of the head.
      names: label -> name; () if unknown.
      assumed: whether the names are assumed to be ImageNet's, because the head has 1000 outputs.
      origin: where the weights come from, for messages.
    """

    count: int
    names: tuple[str, ...]
    assumed: bool
    origin: str

    @classmethod
    def of_head(cls, names: tuple[str, ...], count: int, origin: str) -> Self:
        """Return the classes of a head with `count` outputs; `names` came with its weights, or ().

        Names are ignored unless there is one per output.
        """
        names = names if len(names) == count else ()
        assumed = not names and count == len(imagenet_wnids())
        return cls(count, imagenet_wnids() if assumed else names, assumed, origin)


def find_outputs(known: KnownClasses, source: Source) -> np.ndarray | None:
    """Return the output of the head for each label of the data: i32[K], or None if they are equal.

    Classes are matched by name. Numbers from config.data.class_order are used if the names of the
    weights are unknown or assumed. K < `known.count` if the data has only some of the classes.

    Raises UserError, with the first difference and how to fix it, if the names do not match.
    """
    found = _match(known, source)
    return None if found == list(range(known.count)) else np.array(found, np.int32)


def require_same_labels(known: KnownClasses, source: Source) -> None:
    """Raise UserError, naming the first class that differs, unless label i is output i."""
    outputs = find_outputs(known, source)
    if outputs is not None:
        label = int(np.flatnonzero(outputs != np.arange(len(outputs)))[0])
        raise _mismatch(known, source, _name_difference(known, source, label))


def _match(known: KnownClasses, source: Source) -> list[int]:
    data, names = _canonical(source.class_names), _canonical(known.names)
    numbers = list(getattr(source, "class_numbers", ()))
    if data == names:
        return list(range(known.count))
    place = {name: i for i, name in enumerate(names)}
    if len(place) < len(names) or (known.assumed and numbers):
        place = {}
    by_name = [place.get(name) for name in data]
    named = [output for output in by_name if output is not None]
    if len(named) == len(data):
        return named
    if numbers:
        for name, output, number in zip(source.class_names, by_name, numbers, strict=True):
            if number >= known.count or output not in (None, number):
                here = f"class {name!r} of {source.name} is {number} by config.data.class_order"
                there = f"has {known.count} classes" if output is None else f"knows it as {output}"
                raise _mismatch(known, source, f"{here}, but {known.origin} {there}")
        return numbers
    if len(data) != known.count:
        name = source.class_names[by_name.index(None)]
        difference = (
            f"class {name!r} of {source.name} is not one of the {known.count} classes of "
            f"{known.origin}"
        )
        if not known.names:
            difference = (
                f"{source.name} has {len(data)} classes, and {known.origin} has {known.count}, "
                "whose names are unknown"
            )
        raise _mismatch(known, source, difference)
    comparable = any(is_number(n) or re.fullmatch(r"n\d{8}", n) for n in data)
    unknown = not names or (known.assumed and not comparable)
    numbered = all(is_number(n) and int(n) == i for i, n in enumerate(data))
    if unknown or (numbered and not all(map(is_number, names))):
        return list(range(known.count))
    first = next(i for i, name in enumerate(data) if name != names[i])
    raise _mismatch(known, source, _name_difference(known, source, first))


def _name_difference(known: KnownClasses, source: Source, label: int) -> str:
    why = " (ImageNet's names, assumed for 1000 unnamed classes)" if known.assumed else ""
    return (
        f"class {label} is {source.class_names[label]!r} in {source.name}, but "
        f"{known.names[label]!r} in {known.origin}{why}"
    )


def _mismatch(known: KnownClasses, source: Source, difference: str) -> UserError:
    data, advice = source.class_names, _FILE_ADVICE
    if len(data) > known.count:
        advice = "use data with only those classes, or other weights"
    elif all(map(is_number, data)) and not all(map(is_number, known.names or ("0",))):
        numbers = {int(name) for name in data}
        usable = len(numbers) == len(data) and max(numbers) < known.count
        if usable and not getattr(source, "class_numbers", ()):
            advice = (
                "if the data's names are labels, set --config.data.class_order=number; otherwise "
                + _FILE_ADVICE
            )
    return UserError(f"{difference}; {advice}")


def _canonical(names: tuple[str, ...]) -> tuple[str, ...]:
    """Replace ImageNet's names or synonyms with WordNet ids; strip leading zeros of numbers."""
    wnids = dict(zip(imagenet_names(), imagenet_wnids(), strict=True))
    if len(names) == len(wnids) and all(map(_is_synonym, names, wnids)):
        return imagenet_wnids()
    if names and all(name in wnids for name in names):
        return tuple(wnids[name] for name in names)
    plain = tuple(str(int(name)) if is_number(name) else name for name in names)
    return plain if len(set(plain)) == len(plain) else names


def _is_synonym(name: str, imagenet_name: str) -> bool:
    """Return whether `name`, such as "tench, Tinca tinca", is a list of synonyms of the class.

    Only "crane" names two classes, so a whole list of names matches only in ImageNet's order.
    """
    return name in _SYNONYMS.get(imagenet_name, ()) or (
        imagenet_name not in _SYNONYMS and name.partition(",")[0] == imagenet_name
    )
