"""A compiled program's text, read back: instructions, the loops around them, and how often each is run.

XLA's own `cost_analysis` counts the body of a loop once; the layers of a model are such a body. Here every instruction
of the optimised, partitioned program carries the product of the trip counts of the loops around it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

# Bits of an element.
BITS = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2", "f8e4m3", "f8e4m3b11fnuz", "f8e8m0fnu"), 8),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 16),
    **dict.fromkeys(("s32", "u32", "f32"), 32),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 64),
    **dict.fromkeys(("s4", "u4", "f4e2m1fn"), 4),
    **dict.fromkeys(("s2", "u2"), 2),
    **dict.fromkeys(("token", "opaque"), 0),
    "c128": 128,
}
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([0-9,]*)\](\{[^{}]*\})?")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: element type, sizes, and whether it lies in on-chip memory (VMEM) instead of HBM."""

    dtype: str
    sizes: tuple[int, ...]
    on_chip: bool = False

    @property
    def elements(self) -> int:
        """In all."""
        return math.prod(self.sizes)

    @property
    def bytes(self) -> float:
        """Without the padding of the layout."""
        return self.elements * BITS[self.dtype] / 8


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """All arrays of a type such as `f32[8,2]{1,0:T(8,128)S(1)}` or a tuple of them."""
    found = []
    for dtype, sizes, layout in _ARRAY.findall(text):
        if dtype in BITS:
            on_chip = bool(re.search(r"S\([1-9]\d*\)", layout))
            found.append(Shape(dtype, tuple(int(size) for size in sizes.split(",") if size), on_chip))
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str  # what follows the operands
    constant: str = ""  # of a constant or parameter: what stands in the parentheses
    root: bool = False

    def called(self, field: str) -> str | None:
        """The computation that an attribute such as `body` names."""
        match = re.search(rf"\b{field}=%?([\w.\-]+)", self.attributes)
        return match[1] if match else None

    @property
    def source(self) -> str:
        """The operation of the model that it comes from."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
    """The computations of a module by name, instructions in order."""

    computations: dict[str, Computation]
    entry: str

    def run(self) -> Iterator[tuple[Instruction, Computation, float]]:
        """(instruction, its computation, times it is run) of all that is run by itself, not as part of a fusion."""
        yield from self._walk(self.entry, 1.0)

    def _walk(self, name: str, times: float) -> Iterator[tuple[Instruction, Computation, float]]:
        computation = self.computations[name]
        for instruction in computation.values():
            yield instruction, computation, times
            if instruction.opcode == "while":
                trips = trip_count(self, instruction)
                body = instruction.called("body")
                assert body is not None
                yield from self._walk(body, times * (1 if trips is None else trips))
            elif instruction.opcode in ("call", "async-start"):
                target = instruction.called("to_apply") or instruction.called("calls")
                if target is not None:
                    yield from self._walk(target, times)
            elif instruction.opcode == "conditional":
                for branch in _branches(instruction):  # one of them is run; which, is known only when it is
                    yield from self._walk(branch, times / len(_branches(instruction)))

    def fused(self, instruction: Instruction) -> Computation | None:
        """What a fusion is made of."""
        return self.computations.get(instruction.called("calls") or "") if instruction.opcode == "fusion" else None

    def within(self, instruction: Instruction) -> Iterator[tuple[Instruction, Computation]]:
        """All instructions of a fusion, those of fusions in it too."""
        for inner in (self.fused(instruction) or {}).values():
            computation = self.fused(instruction)
            assert computation is not None
            yield inner, computation
            yield from self.within(inner)


def _branches(instruction: Instruction) -> list[str]:
    match = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    if match:
        return [name.strip().lstrip("%") for name in match[1].split(",")]
    return [name for name in (instruction.called("true_computation"), instruction.called("false_computation")) if name]


def trip_count(program: Program, loop: Instruction) -> int | None:
    """How often a loop's body is run; None where that depends on data, as in decoding."""
    known = re.search(r"known_trip_count\W+n\W+(\d+)", loop.attributes)
    if known:
        return int(known[1])
    condition = program.computations[loop.called("condition") or ""]
    for instruction in condition.values():
        scope, values = condition, dict[str, str]()
        compare = instruction if instruction.opcode == "compare" else None
        if instruction.opcode == "fusion" and instruction.root:
            scope = program.fused(instruction) or {}
            compare = next((inner for inner in scope.values() if inner.opcode == "compare"), None)
            parameters = [inner for inner in scope.values() if inner.opcode == "parameter"]
            values = {inner.name: instruction.operands[int(inner.constant)] for inner in parameters}
        if compare is None or not (compare.root or scope is not condition) or "direction=LT" not in compare.attributes:
            continue
        limit = scope[compare.operands[1]]
        limit = condition[values[limit.name]] if limit.name in values else limit
        if limit.opcode == "constant":
            return int(limit.constant)
    return None


def _balanced(text: str, start: int) -> int:
    """Index behind the parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        if text[index] in "({[":
            depth += 1
        elif text[index] in ")}]":
            depth -= 1
            if depth == 0:
                return index + 1
    raise ValueError(f"unbalanced parentheses in {text[start : start + 80]!r}")


_DEFINITION = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")


def _parse_line(line: str) -> Instruction | None:
    start = _DEFINITION.match(line)
    if start is None:
        return None
    begin = start.end()
    end = _balanced(line, begin) if line[begin] == "(" else line.index(" ", begin)
    opcode = _OPCODE.match(line, end)
    if opcode is None:
        return None
    close = _balanced(line, opcode.end() - 1)
    inner = line[opcode.end() : close - 1]
    plain = opcode[1] in ("constant", "parameter")
    operands = () if plain else tuple(re.findall(r"%([\w.\-]+)", inner))
    return Instruction(
        name=start[2],
        opcode=opcode[1],
        shapes=parse_shapes(line[begin:end]),
        operands=operands,
        attributes=line[close:],
        constant=inner if plain else "",
        root=bool(start[1]),
    )


def parse_program(text: str) -> Program:
    """The program in the text that XLA prints. Raises ValueError if there is no entry computation in it."""
    computations: dict[str, Computation] = {}
    entry = ""
    current: Computation | None = None
    last: Instruction | None = None
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY ")) and line.rstrip().endswith("{"):
            name = line.removeprefix("ENTRY ").split(" ", 1)[0].lstrip("%")
            current, last = {}, None
            computations[name] = current
            entry = name if line.startswith("ENTRY ") else entry
        elif line.rstrip() == "}" or line.startswith("}, execution_thread"):
            current = None
        elif current is not None:
            instruction = _parse_line(line)
            if instruction is None and last is not None:  # a kernel's attributes may go over several lines
                instruction = dataclasses.replace(last, attributes=f"{last.attributes} {line}")
            if instruction is not None:
                current[instruction.name] = last = instruction
    if not entry:
        raise ValueError("the program's text has no entry computation")
    return Program(computations, entry)
