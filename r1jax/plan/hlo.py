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
PRODUCTS = frozenset(("dot", "convolution", "ragged-dot", "custom-call"))  # custom calls: kernels
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

    def run(self, iterations: float = 1.0) -> Iterator[tuple[Instruction, Computation, float]]:
        """(instruction, its computation, times it is run) of all that is run by itself, not as part of a fusion.

        Of a conditional's branches only the one with the most products is taken to be run. Where no other branch has
        any, the conditional skips work, and its share is that of causal attention (`skipping_share`), the one place
        where these models skip.

        Args:
          iterations: of a loop whose end depends on data, as that over tokens in decoding; such a loop inside of
            another one counts once.
        """
        yield from self._walk(self.entry, 1.0, (), iterations)

    def _walk(
        self, name: str, times: float, loops: tuple[int, ...], iterations: float
    ) -> Iterator[tuple[Instruction, Computation, float]]:
        """`loops`: trip counts of the loops around, where they are known, the innermost last."""
        computation = self.computations[name]
        for instruction in computation.values():
            yield instruction, computation, times
            if instruction.opcode == "while":
                trips = trip_count(self, instruction, computation)
                body = instruction.called("body")
                assert body is not None
                if trips is None:
                    yield from self._walk(body, times * iterations, (), 1.0)
                else:
                    yield from self._walk(body, times * trips, (*loops, trips), iterations)
            elif instruction.opcode in ("call", "async-start"):
                target = instruction.called("to_apply") or instruction.called("calls")
                if target is not None:
                    yield from self._walk(target, times, loops, iterations)
            elif instruction.opcode == "conditional":
                work = {branch: self._products(branch) for branch in _branches(instruction)}
                largest = max(work, key=lambda branch: (work[branch], len(self.computations[branch])))
                skips = sum(count > 0 for count in work.values()) == 1
                share = skipping_share(loops) if skips else 1.0
                yield from self._walk(largest, times * share, loops, iterations)

    def _products(self, name: str) -> float:
        """Elements of all products of a computation: which of two does more, not how much it costs."""
        count = 0.0
        for instruction, _, times in self._walk(name, 1.0, (), 1.0):
            for inner in (instruction, *(inner for inner, _ in self.within(instruction))):
                count += times * (inner.opcode in PRODUCTS) * sum(shape.elements for shape in inner.shapes)
        return count

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


def skipping_share(loops: tuple[int, ...]) -> float:
    """How often a conditional that skips work does not skip it, in loops over n blocks of queries and of keys.

    Of whole causal rows in n blocks the i-th block of queries sees i of keys: (n + 1) / (2 n) of all pairs are worked
    on, where the two loops differ with the shorter one's n, if it divides the other's. Outside of two loops nothing is
    known, and all is counted. Where a `sequence` axis splits the queries between s devices, a block is skipped only if
    none of them needs it: then nearly all are run, 1 - 1 / (2 s), and this is too low by up to a half.
    """
    if len(loops) < 2:
        return 1.0
    blocks = min(loops[-2:])
    return (blocks + 1) / (2 * blocks)


def _branches(instruction: Instruction) -> list[str]:
    match = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    if match:
        return [name.strip().lstrip("%") for name in match[1].split(",")]
    return [name for name in (instruction.called("true_computation"), instruction.called("false_computation")) if name]


def trip_count(program: Program, loop: Instruction, scope: Computation) -> int | None:
    """How often the body of a loop in `scope` is run; None where that depends on data, as in decoding.

    The counter goes up by one; libtpu may run the first round outside of the loop and then starts it from one.
    """
    known = re.search(r"known_trip_count\W+n\W+(\d+)", loop.attributes)
    if known:
        return int(known[1])
    condition = program.computations[loop.called("condition") or ""]
    for instruction in condition.values():
        inside, values = condition, dict[str, str]()
        compare = instruction if instruction.opcode == "compare" else None
        if instruction.opcode == "fusion" and instruction.root:
            inside = program.fused(instruction) or {}
            compare = next((inner for inner in inside.values() if inner.opcode == "compare"), None)
            parameters = [inner for inner in inside.values() if inner.opcode == "parameter"]
            values = {inner.name: instruction.operands[int(inner.constant)] for inner in parameters}
        if compare is None or not (compare.root or inside is not condition) or "direction=LT" not in compare.attributes:
            continue
        counter, limit = (condition[values[name]] if name in values else inside[name] for name in compare.operands)
        if limit.opcode == "constant":
            return int(limit.constant) - _start(counter, loop, scope)
    return None


def _start(counter: Instruction, loop: Instruction, scope: Computation) -> int:
    """What a loop's counter, an element of the tuple that it goes round with, begins with; 0 where that is not told."""
    index = re.search(r"\bindex=(\d+)", counter.attributes)
    given = scope[loop.operands[0]]
    if counter.opcode != "get-tuple-element" or index is None or given.opcode != "tuple":
        return 0
    value = scope[given.operands[int(index[1])]]
    while value.opcode in ("copy", "bitcast"):
        value = scope[value.operands[0]]
    return int(value.constant) if value.opcode == "constant" else 0


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
