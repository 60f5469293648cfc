"""Names of classes: which output of the head a label of the data means, and what is refused."""

import importlib.util
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_jax.data.classes import (
    KnownClasses,
    find_outputs,
    imagenet_names,
    imagenet_wnids,
    reorder,
    require_same_labels,
)
from imagenet_jax.errors import UserError

WNIDS = imagenet_wnids()
WORDS = imagenet_names()
NUMBERS = tuple(sorted(map(str, range(1000))))  # as text: 0, 1, 10, 100, 101, ...
PADDED = tuple(f"{i:03}" for i in range(1000))


# As Hugging Face's imagenet-1k: WordNet's synonyms, but no name twice.
SYNONYMS = tuple(
    {
        "tench": "tench, Tinca tinca",
        "Cardigan": "Cardigan, Cardigan Welsh corgi",
        "projectile": "projectile, missile",
        "crane bird": "crane",
        "crane": "crane2",
        "maillot tank suit": "maillot, tank suit",
    }.get(word, word)
    for word in WORDS
)


class Names:
    """A source of one image per class, whose bytes are the name of its class."""

    name, fingerprint = "data", "f"

    def __init__(self, *names):
        self.class_names = names

    def __len__(self):
        return len(self.class_names)

    def __getitem__(self, i):
        return {"image": self.class_names[i].encode(), "label": i, "id": str(i)}

    def labels(self):
        return np.arange(len(self), dtype=np.int32)


def known(*names, count=0):
    return KnownClasses.of_head(names, count or len(names), "weights file w")


def meant(classes, source):
    """{name of the data: the output of the head that its images count for}."""
    outputs = find_outputs(classes, source)
    found = {}
    for i in range(len(source)):
        record = source[i]
        assert source.labels()[i] == record["label"]
        name = record["image"].decode()
        assert source.class_names[record["label"]] == name
        found[name] = record["label"] if outputs is None else int(outputs[record["label"]])
    return found


@pytest.mark.parametrize(
    ("classes", "data"),
    [
        (known(*"abcd"), "abcd"),
        (known(*"abcd"), "bd"),
        (known(*"dbac"), "abcd"),  # trained in another order
        (known(*WNIDS), WNIDS[::10]),
        (known(*NUMBERS), NUMBERS),
    ],
)
def test_names_decide(classes, data):
    assert meant(classes, Names(*data)) == {name: classes.names.index(name) for name in data}


@given(st.permutations(range(10)), st.lists(st.integers(0, 9), min_size=1, unique=True))
def test_any_order_and_any_subset(order, some):
    classes = known(*map(str, order))
    found = meant(classes, Names(*sorted(map(str, some))))
    assert found == {str(n): order.index(n) for n in some}


def test_plain_weights_of_1000_classes_are_in_the_order_of_imagenet():
    plain = known(count=1000)
    assert find_outputs(plain, Names(*WNIDS)) is None
    assert find_outputs(plain, Names(*WORDS)) is None
    assert find_outputs(plain, Names(*PADDED)) is None
    # Neither WordNet ids nor numbers: somebody's own 1000 classes.
    assert find_outputs(plain, Names(*(f"kind {i:04}" for i in range(1000)))) is None
    some = WNIDS[3:900:7]
    assert find_outputs(plain, Names(*some)).tolist() == list(range(3, 900, 7))
    # Words, as convert writes them, and WordNet ids, as folders have them.
    assert find_outputs(known(*WORDS), Names(*some)).tolist() == list(range(3, 900, 7))


def test_synonyms_of_all_of_imagenet_are_known_in_its_order_alone():
    for other in (WNIDS, WORDS):
        assert find_outputs(known(*other), Names(*SYNONYMS)) is None
        assert find_outputs(known(*SYNONYMS), Names(*other)) is None
    assert find_outputs(known(*SYNONYMS), Names(*WNIDS[3:900:7])).tolist() == list(range(3, 900, 7))
    twice = tuple("crane" if name == "crane2" else name for name in SYNONYMS)
    assert find_outputs(known(*WNIDS), Names(*twice)) is None
    # Two classes change places: likely ones, and ones whose names are much alike.
    for a, b in [("crane", "crane2"), ("maillot", "maillot, tank suit"), (SYNONYMS[0], "goldfish")]:
        swapped = {a: b, b: a}
        shuffled = [swapped.get(name, name) for name in SYNONYMS]
        assert sorted(shuffled) == sorted(SYNONYMS)
        with pytest.raises(UserError, match="class_order=FILE"):
            find_outputs(known(*WNIDS), Names(*shuffled))
    with pytest.raises(UserError, match="class 0 is 'zucchini'"):
        find_outputs(known(*WNIDS), Names(*sorted(SYNONYMS, reverse=True)))
    with pytest.raises(UserError, match="class_order=FILE"):
        find_outputs(known(*WNIDS), Names(*SYNONYMS[:999], "tench, Tinca tinca"))


@pytest.mark.parity
def test_wordnets_synonyms_of_every_class_are_known():
    package = Path(importlib.util.find_spec("timm").origin).parent
    text = (package / "data" / "_info" / "imagenet_synset_to_lemma.txt").read_text()
    synonyms = dict(line.split("\t") for line in text.splitlines())
    assert find_outputs(known(*WNIDS), Names(*(synonyms[wnid] for wnid in WNIDS))) is None


@pytest.mark.parametrize(
    ("classes", "data", "words"),
    [
        # The class "0" of the data was renamed "10", which moves it to the place of label 1.
        (known(*"0123456789"), sorted(map(str, range(1, 11))), ["class 0 is '1'", "but '0'"]),
        (known(count=1000), NUMBERS, ["class 0 is '0'", "'n01440764'", "class_order=number"]),
        (known(*WNIDS), NUMBERS, ["class 0 is '0'", "'n01440764'", "class_order=number"]),
        (known(*WNIDS), NUMBERS[:7], ["'0'", "not one of the 1000", "class_order=number"]),
        (known(*WNIDS), [*WNIDS[:999], "n99999999"], ["class 999 is 'n99999999'", "'n15075141'"]),
        (known(*"abc"), "abd", ["class 2 is 'd' in data, but 'c' in weights file w"]),
        (known(*"abc"), "ad", ["class 'd' of data is not one of the 3"]),
        (known(*"abc"), "abcd", ["class 'd' of data is not one of the 3", "only those classes"]),
        (known(count=7), "abc", ["data has 3 classes", "has 7, whose names are unknown"]),
        (known(*NUMBERS), WNIDS, ["class 0 is 'n01440764'", "'0'"]),
    ],
)
def test_other_names_are_refused_and_the_advice_works(classes, data, words, tmp_path):
    source = Names(*data)
    with pytest.raises(UserError) as caught:
        find_outputs(classes, source)
    message = str(caught.value)
    for word in words:
        assert word in message
    if "only those classes" in message:
        return
    options = re.findall(r"--config\.data\.class_order=(\w+)", message)
    assert "FILE" in options
    for option in options:
        if option == "number":
            wanted = {name: int(name) for name in data}
        else:  # what the user knows of the classes that the weights know by another name
            lines = [name if name in data else "" for name in classes.names or [""] * 7]
            others = [name for name in data if name not in lines]
            lines = [
                name or (others.pop(0) if others else f"none {i}") for i, name in enumerate(lines)
            ]
            wanted = {name: lines.index(name) for name in data}
            option = tmp_path / "order.txt"
            option.write_text("\n".join(lines) + "\n")
        assert meant(classes, reorder(source, str(option))) == wanted


def test_a_file_may_list_classes_that_the_data_does_not_have(tmp_path):
    file = tmp_path / "order.txt"
    file.write_text("\ufeffzebra\r\ncat\r\ndog\r\n\r\n", encoding="utf-8")
    source = reorder(Names("cat", "dog"), str(file))
    assert source.class_names == ("cat", "dog")
    assert meant(known(count=3), source) == {"cat": 1, "dog": 2}
    (tmp_path / "classes.json").write_text(json.dumps(["dog", "cat"]))
    source = pickle.loads(
        pickle.dumps(reorder(Names("cat", "dog"), str(tmp_path / "classes.json")))
    )
    assert source.class_names == ("dog", "cat")
    assert [source[i]["label"] for i in range(2)] == [1, 0]
    assert source.fingerprint != Names.fingerprint


def test_a_file_cannot_contradict_names_that_the_weights_know(tmp_path):
    file = tmp_path / "order.txt"
    file.write_text("dog\ncat\nbird\n")
    source = reorder(Names("bird", "cat", "dog"), str(file))
    with pytest.raises(UserError, match="'dog' of data is 0 by .*class_order.* knows it as 1"):
        find_outputs(known("cat", "dog", "eel"), source)
    assert find_outputs(known("cat", "dog", "bird"), source).tolist() == [1, 0, 2]  # names decide


@pytest.mark.parametrize(
    ("names", "order", "words"),
    [
        (("a", "1"), "number", "class 'a' of data is not a number"),
        (("1", "01"), "number", "same number"),
        (("a",), "nubmer", "'nubmer' is not a file; use name | number"),
        (("a", "c"), "a\nb\n", "no line for class 'c'"),
        (("a",), "a\n\nb\n", "line 2 is empty"),
        (("a",), "a\nb\na\n", "line 3 repeats 'a'"),
    ],
)
def test_bad_orders_are_one_line(names, order, words, tmp_path):
    if "\n" in order:
        (tmp_path / "order.txt").write_text(order)
        order = str(tmp_path / "order.txt")
    with pytest.raises(UserError, match=re.escape(words)):
        reorder(Names(*names), order)


def test_a_head_that_is_kept_needs_the_same_labels():
    require_same_labels(known(*"abc"), Names(*"abc"))
    require_same_labels(known(count=3), Names(*"abc"))
    with pytest.raises(UserError, match="class 0 is 'a' in data, but 'b'.*class_order=FILE"):
        require_same_labels(known(*"bac"), Names(*"abc"))
