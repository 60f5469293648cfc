"""The cost of a compiled program, read from its HLO: bytes, cycles, kernels and collectives."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16,
    "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
# Instructions that move no data.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "opt-barrier",
}  # fmt: skip
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (.*)")
_CALLED = re.compile(r"(?:to_apply|body|calls)=%?([\w.-]+)")


@dataclasses.dataclass
class ProgramCost:
    """The cost of running a program once on one device.

    Attributes:
      kernels: number of instructions that read or write memory; a fusion counts as one.
      bytes: bytes of their operands and results: the memory traffic of a device without a cache.
      cycles: estimate of the compiler; 0 if it makes none, as on GPUs.
      collectives: kind -> number of instructions.
      collective_bytes: kind -> bytes of their results.
    """

    kernels: float = 0
    bytes: float = 0
    cycles: float = 0
    collectives: Counter[str] = dataclasses.field(default_factory=Counter)
    collective_bytes: Counter[str] = dataclasses.field(default_factory=Counter)

    def add(self, other: "ProgramCost", times: int = 1) -> None:
        """Add the cost of running another program `times` times."""
        self.kernels += times * other.kernels
        self.bytes += times * other.bytes
        self.cycles += times * other.cycles
        for kind, count in other.collectives.items():
            self.collectives[kind] += times * count
            self.collective_bytes[kind] += times * other.collective_bytes[kind]


class _Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    rest: str  # operands and attributes


def read_cost(text: str) -> ProgramCost:
    """Return the cost of the program with this `jax.stages.Compiled.as_text()`."""
    computations = dict(_computations(text))
    return _cost(computations["ENTRY"], computations)


def _computations(text: str) -> Iterator[tuple[str, list[_Instruction]]]:
    """Yield (name, instructions) of each computation; the main one is named ENTRY."""
    name = ""
    instructions: list[_Instruction] = []
    for line in text.splitlines():
        if line.startswith("}"):
            yield name, instructions
        elif line and not line[0].isspace() and line.rstrip().endswith("{"):
            words = line.split()
            name = "ENTRY" if words[0] == "ENTRY" else words[0].lstrip("%")
            instructions = []
        elif found := _INSTRUCTION.match(line):
            shape, rest = _split_shape(found[2])
            opcode, _, rest = rest.partition("(")
            instructions.append(_Instruction(found[1], shape, opcode.strip(), rest))


def _split_shape(text: str) -> tuple[str, str]:
    """Split "SHAPE opcode(...)", where SHAPE is a word or a tuple in parentheses."""
    if not text.startswith("("):
        shape, _, rest = text.partition(" ")
        return shape, rest
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[: i + 1], text[i + 1 :]
    return text, ""


def _cost(
    instructions: list[_Instruction], computations: dict[str, list[_Instruction]]
) -> ProgramCost:
    cost = ProgramCost()
    shapes = {i.name: i.shape for i in instructions}
    for _, shape, opcode, rest in instructions:
        if opcode in ("while", "call", "conditional"):
            times = re.search(r'"known_trip_count":\{"n":"(\d+)"', rest)
            called = _CALLED.search(rest)
            if called and called[1] in computations:
                inner = _cost(computations[called[1]], computations)
                cost.add(inner, int(times[1]) if times else 1)
            continue
        if opcode in _FREE or opcode.endswith("-done"):
            continue
        operands = re.findall(r"%([\w.-]+)", rest.partition(")")[0])
        # The u8 result of a library call is its scratch memory.
        result = _size(shape, skip="u8" if opcode == "custom-call" else "")
        cost.kernels += 1
        cost.bytes += result + sum(_size(shapes.get(operand, "")) for operand in operands)
        if cycles := re.search(r'"estimated_cycles":"(\d+)"', rest):
            cost.cycles += int(cycles[1])
        if (kind := opcode.removesuffix("-start")) in COLLECTIVES:
            cost.collectives[kind] += 1
            cost.collective_bytes[kind] += int(result)
    return cost


def _size(shape: str, skip: str = "") -> float:
    """Return the bytes of a shape or tuple of shapes, without those of dtype `skip`."""
    return sum(
        _BITS.get(dtype, 0) / 8 * math.prod(int(side) for side in sides.split(",") if side)
        for dtype, sides in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape)
        if dtype != skip
    )
