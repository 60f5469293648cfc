"""The classes that weights know, compared with those of the data by their names."""

import dataclasses
import re

import numpy as np

from imagenet_jax.data import imagenet_classes
from imagenet_jax.data.class_order import is_number
from imagenet_jax.data.sources import Source
from imagenet_jax.errors import UserError

_FILE_ADVICE = (
    "write a file whose line i + 1 is the data's name for class i of the weights, and set "
    "--config.data.class_order=FILE"
)
# What lists of WordNet's synonyms call the classes whose first synonym is that of another class.
_SYNONYMS = {
    "crane": ("crane", "crane2"),
    "crane bird": ("crane",),
    "maillot": ("maillot",),
    "maillot tank suit": ("maillot, tank suit",),
}


@dataclasses.dataclass(frozen=True)
class KnownClasses:
    """The classes of a head.

    Attributes:
      count: outputs of the head.
      names: label -> name; () where nothing says them.
      assumed: the names are ImageNet's because the head has 1000 outputs and nothing else says.
      origin: for messages.
    """

    count: int
    names: tuple[str, ...]
    assumed: bool
    origin: str


def known_classes(names: tuple[str, ...], count: int, origin: str) -> KnownClasses:
    """Return the classes of a head of `count` outputs, whose weights came with `names` or ().

    Names are ignored unless there is one per output.
    """
    names = names if len(names) == count else ()
    assumed = not names and count == len(imagenet_classes.wnids())
    return KnownClasses(count, imagenet_classes.wnids() if assumed else names, assumed, origin)


def outputs_of(known: KnownClasses, source: Source) -> np.ndarray | None:
    """Return which output of the head each label of the data is: i32[K], None where the same.

    Names decide; numbers that config.data.class_order gives stand in for names that the weights do
    not know, or that are only assumed. K is below `known.count` where the data has some of the
    classes.

    Raises UserError, naming the first class that differs and the way out, where names do not fit.
    """
    found = _outputs(known, source)
    return None if found == list(range(known.count)) else np.array(found, np.int32)


def require_same_labels(known: KnownClasses, source: Source) -> None:
    """Raise UserError, naming the first class that differs, unless label i is output i."""
    outputs = outputs_of(known, source)
    if outputs is not None:
        label = int(np.flatnonzero(outputs != np.arange(len(outputs)))[0])
        raise _refusal(known, source, _names_differ(known, source, label))


def _outputs(known: KnownClasses, source: Source) -> list[int]:
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
                raise _refusal(known, source, f"{here}, but {known.origin} {there}")
        return numbers
    if len(data) != known.count:
        raise _refusal(known, source, _not_known(known, source, by_name.index(None)))
    comparable = any(is_number(n) or re.fullmatch(r"n\d{8}", n) for n in data)
    unknown = not names or (known.assumed and not comparable)
    numbered = all(is_number(n) and int(n) == i for i, n in enumerate(data))
    if unknown or (numbered and not all(map(is_number, names))):
        return list(range(known.count))
    first = next(i for i, name in enumerate(data) if name != names[i])
    raise _refusal(known, source, _names_differ(known, source, first))


def _names_differ(known: KnownClasses, source: Source, label: int) -> str:
    why = " (ImageNet's, for it has 1000 classes and no names)" if known.assumed else ""
    return (
        f"class {label} is {source.class_names[label]!r} in {source.name}, but "
        f"{known.names[label]!r} in {known.origin}{why}"
    )


def _not_known(known: KnownClasses, source: Source, label: int) -> str:
    if not known.names:
        return (
            f"{source.name} has {len(source.class_names)} classes, and {known.origin} has "
            f"{known.count}, whose names are unknown"
        )
    return (
        f"class {source.class_names[label]!r} of {source.name} is none of the {known.count} of "
        f"{known.origin}"
    )


def _refusal(known: KnownClasses, source: Source, difference: str) -> UserError:
    data = source.class_names
    if len(data) > known.count:
        advice = "give data of only those classes, or other weights"
    elif all(map(is_number, data)) and not all(map(is_number, known.names or ("0",))):
        numbers = {int(name) for name in data}
        usable = len(numbers) == len(data) and max(numbers) < known.count
        usable = usable and not getattr(source, "class_numbers", ())
        number = "where the data's names are labels, set --config.data.class_order=number"
        advice = f"{number}; else {_FILE_ADVICE}" if usable else _FILE_ADVICE
    else:
        advice = _FILE_ADVICE
    return UserError(f"{difference}; {advice}")


def _canonical(names: tuple[str, ...]) -> tuple[str, ...]:
    """WordNet ids for ImageNet's words or lists of synonyms; numbers without leading zeros."""
    words = dict(zip(imagenet_classes.class_names(), imagenet_classes.wnids(), strict=True))
    if len(names) == len(words) and all(map(_is_synonyms, names, words)):
        return imagenet_classes.wnids()
    if names and all(name in words for name in names):
        return tuple(words[name] for name in names)
    plain = tuple(str(int(name)) if is_number(name) else name for name in names)
    return plain if len(set(plain)) == len(plain) else names


def _is_synonyms(name: str, word: str) -> bool:
    """Whether `name`, such as "tench, Tinca tinca", names ImageNet's class `word`.

    Only two classes share a name, "crane", so all of them agree only in ImageNet's order.
    """
    return name in _SYNONYMS.get(word, ()) or (
        word not in _SYNONYMS and name.partition(",")[0] == word
    )
