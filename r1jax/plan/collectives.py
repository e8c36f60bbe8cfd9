"""The collectives of a compiled program: what is moved, among which devices, along which axes of the mesh."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jax.sharding import Mesh

from r1jax.plan.hlo import Computation, Instruction, Program

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# What libtpu writes of traffic between slices, which the hosts carry: the collective that their runtime makes of a
# `send`. Of a collective over slices and over chips of a slice the part within slices is written beside it, as a
# collective of its own, so that what is sent here is one device's share.
TRANSFERS = {
    "ALL_GATHER": "all-gather",
    "ALL_REDUCE": "all-reduce",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of a program of one kind, size and place together; bytes are of one device and one call."""

    kind: str
    axes: tuple[str, ...]  # of the mesh; empty where the groups follow none
    group: int  # devices that take part together
    bytes: float  # that a device sends
    times: float  # calls
    source: str  # of the model
    devices: tuple[int, ...]  # one group, as places in the mesh

    @property
    def total(self) -> float:
        """Bytes that a device sends in all calls."""
        return self.bytes * self.times


def sent_bytes(kind: str, given: float, group: int) -> float:
    """Bytes that one of `group` devices sends, at the least, in a collective on `given` bytes each.

    A ring sends each of the other devices' parts on: an all-gather the own shard n - 1 times, a reduce-scatter all but
    one part of what is given, an all-reduce both after one another.
    """
    if kind == "all-gather":
        return given * (group - 1)
    if kind == "all-reduce":
        return 2 * given * (group - 1) / group
    if kind in ("reduce-scatter", "all-to-all", "ragged-all-to-all"):
        return given * (group - 1) / group
    return given


def replica_groups(attributes: str) -> list[list[int]]:
    """The groups of devices that an instruction names, in any of XLA's notations; pairs of a permutation as groups."""
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", attributes)
    listed = pairs or re.search(r"replica_groups=\{(\{.*?)\}\}", attributes)
    if listed:
        return [[int(i) for i in part.split(",")] for part in re.findall(r"\{([\d,]+)", listed[1] + "}")]
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        shape, sizes = (tuple(int(i) for i in part.split(",")) for part in (iota[1], iota[2]))
        order = tuple(int(i) for i in iota[3].split(",")) if iota[3] else tuple(range(len(sizes)))
        return np.arange(math.prod(sizes)).reshape(sizes).transpose(order).reshape(shape).tolist()
    named = re.search(r"replica_groups=mesh\[([^\]]*)\](.*?)\{([^}]*)\}", attributes)
    if named and "device_ids" not in named[2]:
        sizes_of = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        return _mesh_groups(sizes_of, re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", named[3]))
    return []


def _mesh_groups(sizes: Mapping[str, int], axes: Sequence[tuple[str, str, str]]) -> list[list[int]]:
    """Groups along axes of a mesh of devices in order; an axis may be a part: 'axis':(product before)size."""
    split: list[tuple[int, bool]] = []  # (size, along it) of every axis, or of its parts
    chosen = {name: (int(before or 1), int(part or sizes[name])) for name, before, part in axes}
    for name, size in sizes.items():
        if name not in chosen:
            split.append((size, False))
            continue
        before, part = chosen[name]
        split += [(before, False), (part, True), (size // (before * part), False)]
    shape = [size for size, _ in split]
    order = [i for i, (_, along) in enumerate(split) if not along] + [i for i, (_, along) in enumerate(split) if along]
    group = math.prod(size for size, along in split if along)
    return np.arange(math.prod(shape)).reshape(shape).transpose(order).reshape(-1, group).tolist()


def axes_of(group: Sequence[int], mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes along which a group of places in the mesh lies: those that differ, if it is all of them."""
    places = np.array(np.unravel_index(np.asarray(group), tuple(mesh.shape.values())))
    varying = [name for name, row in zip(mesh.shape, places, strict=True) if len(set(row.tolist())) > 1]
    return tuple(varying)


def group_along(axes: tuple[str, ...], mesh: Mesh) -> tuple[int, ...]:
    """Places in the mesh of the first group along some axes."""
    places = np.arange(mesh.devices.size).reshape(tuple(mesh.shape.values()))
    first = tuple(slice(None) if axis in axes else 0 for axis in mesh.shape)
    return tuple(int(place) for place in places[first].reshape(-1))


def find_collectives(program: Program, mesh: Mesh, iterations: float = 1.0) -> list[Collective]:
    """Every collective of the program, equal ones joined, the one that moves the most first.

    `iterations`: of loops whose end depends on data (`Program.run`).
    """
    found: dict[tuple[str, tuple[str, ...], int, float, str], Collective] = {}
    for instruction, computation, times in program.run(iterations):
        for inner, scope in ((instruction, computation), *program.within(instruction)):
            one = _between_slices(inner, scope, times, mesh)
            one = one or _collective(_kind(inner, instruction), inner, scope, times, mesh)
            if one is None:
                continue
            one = dataclasses.replace(one, source=one.source or _source(instruction))
            key = (one.kind, one.axes, one.group, one.bytes, one.source)
            known = found.get(key)
            found[key] = one if known is None else dataclasses.replace(known, times=known.times + times)
    return sorted(found.values(), key=lambda one: -one.total)


def _kind(instruction: Instruction, run: Instruction) -> str:
    """Of an instruction that is run by itself or within the fusion `run`: one of KINDS, or empty.

    libtpu writes a reduce-scatter as a fusion of an all-reduce and of the slice that the device keeps of it, and calls
    the computation `all-reduce-scatter`: what is run sends no more than a reduce-scatter.
    """
    kind = instruction.opcode.removesuffix("-start")
    if kind == "all-reduce" and (run.called("calls") or "").startswith("all-reduce-scatter"):
        return "reduce-scatter"
    return kind if kind in KINDS else ""


def _source(instruction: Instruction) -> str:
    return re.sub(r"^jit\([^)]*\)/", "", instruction.source)


def _between_slices(send: Instruction, computation: Computation, times: float, mesh: Mesh) -> Collective | None:
    """A `send` to other slices; one to the own host is none."""
    transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', send.attributes) if send.opcode == "send" else None
    if transfer is None:
        return None
    kind, slices = TRANSFERS.get(transfer[1], "collective-permute"), mesh.shape["slice"]
    given = sum(shape.bytes for shape in computation[send.operands[0]].shapes)
    devices = group_along(("slice",), mesh)
    return Collective(kind, ("slice",), slices, sent_bytes(kind, given, slices), times, _source(send), devices)


def _collective(
    kind: str, instruction: Instruction, computation: Computation, times: float, mesh: Mesh
) -> Collective | None:
    if not kind:
        return None
    groups = replica_groups(instruction.attributes)
    if kind == "collective-permute":
        groups = [pair for pair in groups if pair[0] != pair[1]]
        if not groups:
            return None
    group = groups[0] if groups else list(range(mesh.devices.size))
    if len(group) == 1:
        return None
    sizes = [sum(shape.bytes for shape in computation[name].shapes) for name in instruction.operands]
    if kind == "ragged-all-to-all":  # from a buffer into a buffer: what fits both
        given = min(sizes[:2])
    else:
        given = sizes[0] if kind == "collective-permute" else sum(sizes)
    varying: tuple[str, ...] = ()
    for one in groups if kind == "collective-permute" else [group]:
        varying = tuple(name for name in mesh.shape if name in varying or name in axes_of(one, mesh))
    whole = kind == "collective-permute" or math.prod(mesh.shape[name] for name in varying) == len(group)
    return Collective(
        kind=kind,
        axes=varying if whole else (),
        group=len(group),
        bytes=sent_bytes(kind, given, len(group)),
        times=times,
        source=_source(instruction),
        devices=tuple(group),
    )
