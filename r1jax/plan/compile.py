"""Compiling for machines that are not there: TPU topologies through libtpu, and what the compiler says of memory.

The compiler writes its program and its assignment of buffers to a folder before it decides that a program does not fit,
so a program that is refused is counted like one that is not. JAX's own text of a compiled program would be read back
from a form that a newer libtpu writes in another way than this jax reads (0.0.52 and 0.10.2: `async-update instruction
should have 1 operands but sees 3`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from r1jax.plan.chips import Topology
from r1jax.plan.hlo import Program, parse_program


class PlanError(ValueError):
    """What was asked cannot be planned; the message says what and why."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device, as the compiler lays a program out."""

    arguments: float
    outputs: float  # beside those that take the place of arguments
    temporaries: float

    @property
    def peak(self) -> float:
        """All together, which is what the program takes while it is run."""
        return self.arguments + self.outputs + self.temporaries


@dataclasses.dataclass(frozen=True)
class Buffer:
    """One array that a program makes."""

    bytes: float
    shape: str
    source: str  # the operation of the model that makes it


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program for a machine that need not exist."""

    program: Program
    memory: Memory
    seconds: float  # of compiling
    refused: str = ""  # what the compiler said, if it found that the program does not fit
    buffers: tuple[Buffer, ...] = ()  # largest first; the compiler tells of them for TPUs
    first_too_many: Buffer | None = None  # the first, in order of the program, that ends beyond the device's memory


def tpu_devices(topology: Topology) -> Sequence[Any]:
    """The devices of a TPU topology, none of which need be there. Raises PlanError saying what is missing or wrong."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no question to a metadata server, which only clouds have
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nothing is run, so another process may use its own
    # libtpu looks at the machine that it is on and prints pages where that is no TPU; the topology is its own matter.
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
    if importlib.util.find_spec("libtpu") is None:
        raise PlanError(
            f"topology: {topology.name} is compiled by libtpu, which is not there: python -m pip install 'r1jax[plan]'"
        )
    more: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.chip.config:
        more["chip_config_name"] = topology.chip.config
    if topology.chips == topology.slices:  # a chip alone, on a host that has no more; else four are on a host
        more["chips_per_host_bounds"] = (1, 1, 1)
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology.slice_name, **more)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise PlanError(f"topology: libtpu does not know {topology.name}: {error}") from error
    return described.devices


def tpu_compiler() -> str:
    """Which libtpu compiles, and whether a run's would be another: jax names the versions that it is made for."""
    version, jax_version = importlib.metadata.version("libtpu"), importlib.metadata.version("jax")
    named = re.search(r"libtpu==([\d.]+)\.\*", " ".join(importlib.metadata.requires("jax") or ()))
    if named is None or f"{version}.".startswith(f"{named[1]}."):
        return f"libtpu {version}"
    return (
        f"libtpu {version}, and jax {jax_version} is made for {named[1]}.*, with which a run needs other memory: "
        "python -m pip install 'r1jax[plan]'"
    )


def compile_for_tpu(lowered: Any, usable: float) -> Compiled:
    """Compiles a lowered program for its TPU topology; one that does not fit comes back too, with `refused` set."""
    began, refused = time.monotonic(), ""
    with _dump() as folder:
        try:
            compiled = lowered.compile(compiler_options={"xla_dump_to": str(folder)})
        except jax.errors.JaxRuntimeError as error:
            refused = str(error)
            if "RESOURCE_EXHAUSTED" not in refused:
                raise
        seconds = time.monotonic() - began
        program = parse_program(_only(folder, "*.after_optimizations.txt"))
        values, allocations = read_assignment(_only(folder, "*buffer-assignment.txt"))
    memory = _assigned(allocations) if refused else memory_of(compiled)
    sources = {one.name: one.source for computation in program.computations.values() for one in computation.values()}
    buffers = largest_buffers(values, sources)
    first = _first_beyond(values, memory, usable, sources) if memory.peak > usable else None
    return Compiled(program, memory, seconds, refused, buffers, first)


def compile_here(lowered: Any) -> Compiled:
    """Compiles for the devices of this process."""
    began = time.monotonic()
    compiled = lowered.compile()
    return Compiled(parse_program(compiled.as_text()), memory_of(compiled), time.monotonic() - began)


def memory_of(compiled: Any) -> Memory:
    """What `memory_analysis` says of one device."""
    stats = compiled.memory_analysis()
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return Memory(stats.argument_size_in_bytes, outputs, stats.temp_size_in_bytes)


@contextlib.contextmanager
def _dump() -> Iterator[pathlib.Path]:
    with tempfile.TemporaryDirectory(prefix="r1jax-plan-") as folder:
        yield pathlib.Path(folder)


def _only(folder: pathlib.Path, pattern: str) -> str:
    """The largest file of the name: small programs (constants) are dumped beside the one that counts.

    Raises PlanError naming the pattern where there is none: another libtpu may write other files.
    """
    found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_size)
    if not found:
        raise PlanError(f"the compiler left no {pattern} in {folder} (xla_dump_to), so its memory cannot be told")
    return found[-1].read_text(encoding="utf-8", errors="replace")


@dataclasses.dataclass(frozen=True)
class Value:
    """One line of the buffer assignment: a value and its place in an allocation of temporaries."""

    name: str
    order: int
    bytes: int
    offset: int
    shape: str


_VALUE = re.compile(r" value: <(\d+) ([^ {]+)(?:\{[^}]*\})? @(\d+)> \(size=(\d+),offset=(\d+)\): (.*)")
_ALLOCATION = re.compile(r"allocation \d+: size (\d+), (.*)")


def read_assignment(text: str) -> tuple[list[Value], list[tuple[int, str]]]:
    """(temporaries in HBM in order of the program, (bytes, kind) of each allocation in HBM)."""
    values: list[Value] = []
    allocations: list[tuple[int, str]] = []
    temporary = False
    for line in text.splitlines():
        allocation = _ALLOCATION.match(line)
        if allocation:
            in_hbm = "color" not in allocation[2]
            temporary = in_hbm and "preallocated-temp" in allocation[2]
            if in_hbm:
                allocations.append((int(allocation[1]), allocation[2]))
        value = _VALUE.match(line)
        if value and temporary:
            values.append(Value(value[2], int(value[1]), int(value[4]), int(value[5]), value[6]))
        if line.startswith("Total bytes used"):
            break
    return sorted(values, key=lambda value: value.order), allocations


def _assigned(allocations: Sequence[tuple[int, str]]) -> Memory:
    """The same three numbers from the assignment. An output in an argument's place is counted with the arguments."""
    arguments = sum(size for size, kind in allocations if "parameter" in kind)
    outputs = sum(size for size, kind in allocations if "maybe-live-out" in kind and "parameter" not in kind)
    temporaries = sum(size for size, kind in allocations if "preallocated-temp" in kind)
    return Memory(arguments, outputs, temporaries)


def largest_buffers(values: Sequence[Value], sources: dict[str, str], count: int = 8) -> tuple[Buffer, ...]:
    """One value of each place: of several that follow each other there, one that says where it comes from."""
    ordered = sorted(values, key=lambda value: (-value.bytes, not sources.get(value.name)))
    seen: dict[tuple[int, int], Buffer] = {}
    for value in ordered:
        buffer = Buffer(value.bytes, value.shape.split("{")[0], sources.get(value.name, ""))
        seen.setdefault((value.offset, value.bytes), buffer)
        if len(seen) == count:
            break
    return tuple(seen.values())


def _first_beyond(values: Sequence[Value], memory: Memory, usable: float, sources: dict[str, str]) -> Buffer | None:
    room = usable - memory.arguments - memory.outputs
    for value in values:
        if value.offset + value.bytes > room and not value.shape.startswith("("):
            return Buffer(value.bytes, value.shape.split("{")[0], sources.get(value.name, value.name))
    return None
