"""JSON files stay valid JSON, whatever the numbers are."""

import ast
import json
import math

import pytest
from conftest import REPOSITORY

from imagenet_jax import strict_json

NAN, INF = float("nan"), float("inf")


def strictly(text):
    """What a parser that follows RFC 8259 reads."""

    def refuse(literal):
        raise ValueError(literal)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({"step": 2, "loss": NAN}, {"step": 2, "loss": None, "nonfinite_values": {"loss": "nan"}}),
        (
            {"also": [{"loss": -INF, "top1": 0.5}], "top1": 1.0},
            {
                "also": [{"loss": None, "top1": 0.5, "nonfinite_values": {"loss": "-inf"}}],
                "top1": 1.0,
            },
        ),
        (
            {"a/b": [1.0, [INF, 2]], "none": None},
            {"a/b": [1.0, [None, 2]], "none": None, "nonfinite_values": {"a/b/1/0": "inf"}},
        ),
        ({"grad_norm/layer1": INF}, None),
        ([{"x": NAN}, 1], [{"x": None, "nonfinite_values": {"x": "nan"}}, 1]),
        ({"nonfinite": {"policy": "stop"}}, {"nonfinite": {"policy": "stop"}}),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_every_parser_reads_it_and_ours_reads_the_numbers(value, written, indent):
    text = strict_json.dumps(value, indent=indent)
    if written:
        assert strictly(text) == written
    back = strict_json.loads(text)
    assert repr(back) == repr(value)  # NaN is not equal to itself


def test_a_number_in_no_object_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        strict_json.dumps([1.0, NAN])


def test_literals_of_older_files_are_read():
    back = strict_json.loads('{"loss": NaN, "x": [-Infinity]}')
    assert math.isnan(back["loss"])
    assert back["x"] == [-INF]


@pytest.mark.parametrize("path", ["y", "x/3", "x/y", "x/0/0", "x/0"])
def test_a_number_that_is_not_there_is_an_error(path):
    with pytest.raises(ValueError, match="nonfinite_values names"):
        strict_json.loads(json.dumps({"x": [1.0], "nonfinite_values": {path: "nan"}}))


def test_everything_goes_through_one_writer_and_reader():
    importing = [
        path.name
        for path in (REPOSITORY / "imagenet_jax").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import)
        and any(alias.name == "json" for alias in node.names)
        or isinstance(node, ast.ImportFrom)
        and node.module == "json"
    ]
    assert importing == ["strict_json.py"]
