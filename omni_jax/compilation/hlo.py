"""Reads the text of a compiled XLA program: computations, instructions, and the types of what they produce.

    %fusion.3 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} fusion(%a, %b), kind=kLoop, calls=%fused.3
    └─ name     └─ type: tiles of 8 x 128, in memory space 1 └─ opcode, operands, attributes

Format: XLA's HLO text (https://openxla.org/xla/operation_semantics) and its tiled layouts
(https://openxla.org/xla/tiled_layout), as printed by `jax.stages.Compiled.as_text()`.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Union

_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16}
# Memory spaces of a layout. 0 is the chip's main memory; 5 the host's; the others lie on the chip (VMEM, SMEM, flags).
HBM, HOST = 0, 5


@dataclass(frozen=True)
class Shape:
    """An array. `tile` holds the sizes of the first level of tiling, of the minor-most axes; empty for none."""

    dtype: str
    dims: tuple[int, ...]
    order: tuple[int, ...] = ()  # minor to major
    tile: tuple[int, ...] = ()
    space: int = HBM

    @property
    def bytes(self) -> int:
        """Size in memory, with the padding to whole tiles."""
        dims = [self.dims[axis] for axis in self.order] if self.order else list(reversed(self.dims))
        for place, size in enumerate(reversed(self.tile)):
            if place < len(dims):
                dims[place] = -(-dims[place] // size) * size
        return math.prod(dims) * _bits(self.dtype) // 8

    @property
    def net_bytes(self) -> int:
        """Size without padding."""
        return math.prod(self.dims) * _bits(self.dtype) // 8


Type = Union[Shape, tuple["Type", ...]]  # noqa: UP007 (a name in quotes knows no |)


@dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    type: Type
    operands: tuple[str, ...]
    attributes: str  # as printed, from the first operand's bracket on
    is_root: bool = False

    def computations(self, key: str) -> tuple[str, ...]:
        """Names of computations under an attribute, e.g. `calls`, `body`, `branch_computations`."""
        found = re.search(rf"\b{key}=(\{{[^}}]*\}}|%[^\s,]+)", self.attributes)
        return tuple(re.findall(r"%([^\s,}]+)", found[1])) if found else ()

    def number(self, key: str) -> int | None:
        """An integer attribute, e.g. `index=3`."""
        found = re.search(rf"\b{key}=(-?\d+)", self.attributes)
        return int(found[1]) if found else None

    def text(self, key: str) -> str | None:
        """A quoted attribute, e.g. `custom_call_target="…"`."""
        found = re.search(rf'\b{key}="([^"]*)"', self.attributes)
        return found[1] if found else None


@dataclass
class Computation:
    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @cached_property
    def root(self) -> Instruction:
        return next(each for each in reversed(self.instructions.values()) if each.is_root)

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        return {int(each.operands[0]): each for each in self.instructions.values() if each.opcode == "parameter"}

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Who reads an instruction's result."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for each in self.instructions.values():
            for operand in dict.fromkeys(each.operands):
                if operand in found:
                    found[operand].append(each)
        return found


@dataclass
class Module:
    computations: dict[str, Computation]
    entry: str

    @property
    def main(self) -> Computation:
        return self.computations[self.entry]

    def reachable(self) -> Iterator[Instruction]:
        """Every instruction of every computation."""
        for computation in self.computations.values():
            yield from computation.instructions.values()


def arrays(type_: Type) -> Iterator[Shape]:
    """The arrays of a type, in order."""
    if isinstance(type_, Shape):
        yield type_
    else:
        for part in type_:
            yield from arrays(part)


_HEADER = re.compile(r"^(ENTRY )?%?(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?(\S+) = ")
_OPCODE = re.compile(r"\s*([a-z][a-zA-Z0-9-]*)\(")
_COMMENT = re.compile(r"/\*.*?\*/")


def parse(text: str) -> Module:
    """The module that `text` prints.

    Raises:
        ValueError: no entry computation: this is not the text of a compiled program.
    """
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        if current is None:
            header = _HEADER.match(line)
            if header:
                current = computations[header[2]] = Computation(header[2])
                entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        else:
            found = _INSTRUCTION.match(line)
            if found:
                each = _instruction(found[2], _COMMENT.sub("", line[found.end() :]), bool(found[1]))
                current.instructions[each.name] = each
    if entry is None:
        raise ValueError("This is not the text of a compiled XLA program: it has no ENTRY computation.")
    return Module(computations, entry)


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
    type_, place = _type(text, 0)
    opcode = _OPCODE.match(text, place)
    end = _closing(text, opcode.end() - 1)
    inside = text[opcode.end() : end]
    operands = (inside.strip(),) if opcode[1] == "parameter" else tuple(re.findall(r"%([^\s,)]+)", inside))
    return Instruction(name, opcode[1], type_, operands, text[opcode.end() - 1 :], is_root)


def _closing(text: str, place: int) -> int:
    """Index of the bracket that closes the one at `place`."""
    depth = 0
    for index in range(place, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    raise ValueError(f"no closing bracket in {text[:80]!r}")


_SHAPE = re.compile(r"([a-z][a-z0-9]*)(?:\[([^\]]*)\])?(\{[^}]*\})?")


def _type(text: str, place: int) -> tuple[Type, int]:
    while text[place] == " ":
        place += 1
    if text[place] != "(":
        found = _SHAPE.match(text, place)
        return _shape(found), found.end()
    parts, place = [], place + 1
    while True:
        while text[place] in " ,":
            place += 1
        if text[place] == ")":
            return tuple(parts), place + 1
        part, place = _type(text, place)
        parts.append(part)


def _shape(found: re.Match) -> Shape:
    dims = tuple(int(size.lstrip("<=")) for size in (found[2] or "").split(",") if size)
    layout = found[3] or ""
    order = re.match(r"\{([\d,]*)", layout)
    tile, space = re.search(r"T\(([\d,*]+)\)", layout), re.search(r"S\((\d+)\)", layout)
    return Shape(
        found[1],
        dims,
        tuple(int(axis) for axis in order[1].split(",") if axis) if order else (),
        tuple(int(size) for size in tile[1].split(",")) if tile and "*" not in tile[1] else (),
        int(space[1]) if space else HBM,
    )


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    digits = re.match(r"[a-z]+(\d+)", dtype)  # f32, s8, u4, f8e4m3fn, c64
    return int(digits[1]) if digits else 0
