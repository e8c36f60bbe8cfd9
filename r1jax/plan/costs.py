"""What one run of a compiled program costs a device: operations, bytes of HBM, bytes on the network, and seconds.

Operations are those of matrix products (two for a multiply-add), loops multiplied out. The roofline: each part alone at
the rate of the spec sheet, so no real run is faster than the largest of the three, and a run that overlaps none of the
network with the rest takes the sum.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import re

import numpy as np
from jax.sharding import Mesh

from r1jax.plan.chips import Topology
from r1jax.plan.collectives import Collective, find_collectives
from r1jax.plan.hlo import Computation, Instruction, Program, Shape

PASSES = {"highest": 6, "high": 3}  # bf16 products that a TPU makes of one of float32
NO_TRAFFIC = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional"),
        *("after-all", "partition-id", "replica-id", "add-dependency", "opt-barrier", "domain"),
        *("async-start", "async-update", "async-done", "copy-done", "all-gather-done", "all-reduce-done"),
        *("collective-permute-done", "send-done", "recv-done"),
    )
)
GROUPED = ("ragged-dot", "grouped_weights")  # products with a group's matrix: XLA's, and `model.grouped_kernel`
ALL_TO_ALL = ("all-to-all", "ragged-all-to-all")
READS_A_PART = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one run of a program on one device."""

    flops: float  # of matrix products
    grouped_flops: float  # the part of them in products with a group's matrix, at the full size of their buffers
    unknown: tuple[str, ...]  # kernels that do not say what they compute
    bytes: float  # read from and written to HBM
    collectives: tuple[Collective, ...]

    @property
    def network_bytes(self) -> float:
        """Sent by a device."""
        return sum(one.total for one in self.collectives)


def program_cost(program: Program, mesh: Mesh, iterations: float = 1.0) -> Cost:
    """Walks the program once; `iterations`: of a loop whose end depends on data (`Program.run`)."""
    flops = grouped = moved = 0.0
    unknown: dict[str, None] = {}
    for instruction, computation, times in program.run(iterations):
        moved += times * traffic(program, instruction, computation)
        for inner, scope in ((instruction, computation), *program.within(instruction)):
            count = instruction_flops(inner, scope)
            if count is None:
                unknown[inner.source or inner.name] = None
                continue
            flops += times * count
            grouped += times * count * any(name in inner.opcode + inner.name + inner.source for name in GROUPED)
    return Cost(flops, grouped, tuple(unknown), moved, tuple(find_collectives(program, mesh, iterations)))


def instruction_flops(instruction: Instruction, scope: Computation) -> float | None:
    """Operations of one matrix product, 0 of what is none, None of a kernel that does not tell."""
    if instruction.opcode == "dot":
        left = scope[instruction.operands[0]].shapes[0]
        summed = _numbers(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        return 2.0 * instruction.shapes[0].elements * math.prod(left.sizes[axis] for axis in summed)
    if instruction.opcode == "convolution":
        left, right = (scope[name].shapes[0] for name in instruction.operands[:2])
        return _convolution_flops(instruction, left, right) * _passes(instruction, left)
    if instruction.opcode == "ragged-dot":
        rows, out = scope[instruction.operands[0]].shapes[0].sizes, instruction.shapes[0].sizes
        # [S, D] with [E, D, F]: every row with its group's matrix; or [S, D] with [S, F], summed within groups.
        return 2.0 * rows[0] * (rows[1] * out[1] if len(out) == 2 else out[-2] * out[-1])
    if instruction.opcode != "custom-call":
        return 0.0
    target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
    estimate = re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', instruction.attributes)
    if estimate:
        return float(estimate[1])
    kernel = target is not None and target[1] == "tpu_custom_call" and "metadata" not in instruction.name
    return None if kernel else 0.0


def _passes(instruction: Instruction, left: Shape) -> int:
    named = re.search(r"operand_precision=\{(\w+)", instruction.attributes)
    return PASSES.get(named[1], 1) if named and left.dtype == "f32" else 1


def _numbers(pattern: str, text: str) -> list[int]:
    match = re.search(pattern, text)
    return [int(number) for number in match[1].split(",") if number] if match else []


def _convolution_flops(instruction: Instruction, left: Shape, right: Shape) -> float:
    """A TPU writes batched products as convolutions with dilated or padded windows: only what meets data is counted."""
    labels = re.search(r"dim_labels=([\w?]+)_([\w?]+)->([\w?]+)", instruction.attributes)
    assert labels is not None
    window = dict(
        re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", instruction.attributes) or [""])[0])
    )
    out = instruction.shapes[0]

    def along(field: str, axis: int, default: str) -> str:
        return window[field].split("x")[axis] if field in window else default

    pairs = 1.0
    for axis in range(sum(label.isdigit() for label in labels[1])):
        size = left.sizes[labels[1].index(str(axis))]
        outputs, taps = out.sizes[labels[3].index(str(axis))], right.sizes[labels[2].index(str(axis))]
        low = int(along("pad", axis, "0_0").split("_")[0])
        stride, spread = int(along("stride", axis, "1")), int(along("rhs_dilate", axis, "1"))
        holes = int(along("lhs_dilate", axis, "1"))
        place = np.arange(outputs)[:, None] * stride + np.arange(taps)[None, :] * spread - low
        pairs *= int(np.count_nonzero((place >= 0) & (place % holes == 0) & (place // holes < size)))
    batch, features = out.sizes[labels[3].index("b")], out.sizes[labels[3].index("f")]
    return 2.0 * pairs * batch * features * right.sizes[labels[2].index("i")]


def traffic(program: Program, instruction: Instruction, scope: Computation) -> float:
    """Bytes of HBM that an instruction reads and writes; what lies in on-chip memory is free.

    What reads a part of an array (a layer's slice of stacked weights) reads that part; an update in place writes the
    part.
    """
    if instruction.opcode in NO_TRAFFIC:
        return 0.0
    written = instruction.shapes
    if instruction.opcode.endswith(("-start", "recv", "send")):  # a tuple of what is written and of what is not
        written = () if instruction.opcode == "send" else written[:1]
    if instruction.opcode in READS_A_PART:
        return 2 * _in_memory(instruction.shapes)
    operands = [scope[name] for name in instruction.operands if name in scope]
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _in_memory(operands[1].shapes)
    if instruction.opcode == "scatter":
        return 2 * _in_memory(operands[-1].shapes)
    fused = program.fused(instruction)
    if fused is None:
        return _in_memory(written) + sum(_in_memory(operand.shapes) for operand in operands)
    return _fusion_traffic(program, instruction, operands)


def _in_memory(shapes: tuple[Shape, ...]) -> float:
    return sum(shape.bytes for shape in shapes if not shape.on_chip)


def _fusion_traffic(program: Program, fusion: Instruction, operands: list[Instruction]) -> float:
    total = _in_memory(fusion.shapes)
    for inner, scope in program.within(fusion):  # in place: the part instead of the whole
        if inner.opcode != "dynamic-update-slice" or inner.shapes[0].on_chip or inner.operands[1] not in scope:
            continue
        if inner.shapes[0] in fusion.shapes:
            total -= inner.shapes[0].bytes - scope[inner.operands[1]].shapes[0].bytes
    fused = program.fused(fusion) or {}
    for inner in fused.values():
        if inner.opcode == "parameter" and int(inner.constant) < len(operands):
            total += _read_of(program, fused, inner.name, _in_memory(operands[int(inner.constant)].shapes))
    return max(total, 0.0)


def _read_of(program: Program, fused: Computation, name: str, whole: float) -> float:
    """Bytes that a fusion reads of a value in it that has `whole` bytes: where all that use it take parts, the parts;
    nothing where a part of it is written in place."""
    read = 0.0
    for user in fused.values():
        if name not in user.operands:
            continue
        inner = program.fused(user)
        if inner is not None:
            taken = [one.name for one in inner.values() if one.opcode == "parameter"
                     and user.operands[int(one.constant)] == name]  # fmt: skip
            read += sum(_read_of(program, inner, one, whole) for one in taken)
        elif user.opcode == "bitcast":
            read += _read_of(program, fused, user.name, whole)
        elif user.opcode in READS_A_PART and user.operands[0] == name:
            read += user.shapes[0].bytes
        elif not (user.opcode == "dynamic-update-slice" and user.operands[0] == name):
            return whole
    return min(read, whole)


@dataclasses.dataclass(frozen=True)
class Time:
    """Seconds of one run: each resource alone, at its full rate."""

    compute: float
    memory: float
    network: float

    @property
    def overlapped(self) -> float:
        """If everything overlaps: no run is faster."""
        return max(self.compute, self.memory, self.network)

    @property
    def predicted(self) -> float:
        """Products and HBM overlap, the network is waited for."""
        return max(self.compute, self.memory) + self.network

    @property
    def bound(self) -> str:
        """The resource that takes longest."""
        return max(("compute", "memory", "network"), key=lambda name: getattr(self, name))


def step_time(flops: float, moved: float, collectives: tuple[Collective, ...], mesh: Mesh, topology: Topology) -> Time:
    """The roofline of one run on one device."""
    device = topology.chip.device
    network = sum(one.total / bandwidth(one, mesh, topology) for one in collectives)
    return Time(flops / device.bf16, moved / device.bandwidth, network)


def bandwidth(collective: Collective, mesh: Mesh, topology: Topology) -> float:
    """Bytes a second that a device can send in a collective; other collectives at the same time are not considered.

    Over slices and over chips of a slice: one phase after the other. Of what a ring of n devices in s slices sends,
    (s - 1) / (n - 1) crosses, since every device of a slice sends its own share of the slice's bytes on; in an
    all-to-all, all that is for other slices. libtpu writes the two phases apart (`collectives.TRANSFERS`): a group over
    both is one that was estimated from a trace.
    """
    if topology.chip.platform == "cuda":
        return _switched(collective, topology)
    if "slice" not in collective.axes:
        return _torus(collective, mesh, topology)
    slices = mesh.shape["slice"]
    chips = collective.group // slices
    if chips <= 1:
        return topology.chip.device.network
    crosses = (slices - 1) / (collective.group - 1) * (chips if collective.kind in ALL_TO_ALL else 1)
    within = _torus(dataclasses.replace(collective, group=chips), mesh, topology)
    return 1 / (crosses / topology.chip.device.network + (1 - crosses) / within)


def _switched(collective: Collective, topology: Topology) -> float:
    """On GPUs: the switch's rate within a host; beyond it a group's GPUs of a host share what crosses.

    A ring enters and leaves a host once. With g of its GPUs in a host, g rings run at once, each with one g-th of the
    bytes and leaving by another GPU's adapter. In an all-to-all every adapter carries what its GPU has for other hosts.
    """
    device = topology.chip.device
    hosts = collections.Counter(place // topology.shape[0] for place in collective.devices)
    if len(hosts) == 1:
        return device.link
    inside = min(hosts.values())
    if collective.kind in ALL_TO_ALL:
        return min(device.link, device.network * (collective.group - 1) / (collective.group - inside))
    return min(device.link, device.network * (1 if collective.kind == "collective-permute" else inside))


def _torus(collective: Collective, mesh: Mesh, topology: Topology) -> float:
    """On a torus a group that extends along k of its axes sends over k rings, both ways round where they are closed.

    In an all-to-all the longest axis decides: what a device gives goes a quarter round on average, the part that it
    keeps counted, and of what a line's devices give a quarter goes through the middle each way. Every device is in a
    group, and all groups send at once: those with places between a group's own share its links.
    """
    link = topology.chip.device.link
    chips = [mesh.devices.flat[place].coords for place in collective.devices]
    rings, crossed = 0.0, math.inf
    for axis, (size, closed) in enumerate(zip(topology.shape, topology.closed, strict=True)):
        extent = {coords[axis] for coords in chips}
        if len(extent) > 1:
            sharing = _groups_on_a_link(extent, size, closed)
            ring = closed and sharing * len(extent) >= size
            rings += (2 if ring else 1) / sharing
            crossed = min(crossed, (8 if ring else 4) * link / (len(extent) * sharing))  # of what is given
    rate = (rings or 1.0) * link
    sent = (collective.group - 1) / collective.group
    return min(rate, crossed * sent) if collective.kind in ALL_TO_ALL else rate


def _groups_on_a_link(extent: set[int], size: int, closed: bool) -> int:
    """Groups that use the busiest link of an axis of the torus, if all are moved copies of one: places 0, 4, 8 and 12
    of 16 go over the same links as three other groups."""
    places = sorted(extent)
    steps = [after - before for before, after in itertools.pairwise(places)]
    if closed:  # the longest way between two neighbours is the one not taken
        steps = sorted([*steps, size - places[-1] + places[0]])[:-1]
    return min(max(steps), math.ceil(size / len(places)))
