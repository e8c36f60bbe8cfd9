"""The plan of one stage on one machine: every step compiled, weighed against the chip, and timed."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from r1jax.model.config import MLAConfig, ModelConfig, MoEConfig
from r1jax.model.expert_parallel import Dispatch, buffer_of
from r1jax.model.mesh_check import check_mesh, model_size
from r1jax.plan.chips import Topology
from r1jax.plan.compile import Memory, PlanError, compile_for_tpu, tpu_devices
from r1jax.plan.costs import Cost, Time, program_cost, step_time
from r1jax.plan.jaxprs import jaxpr_cost
from r1jax.plan.steps import PlannedStep, planned_steps, row_length, tree_bytes
from r1jax.plan.subject import Subject
from r1jax.sharding import automatic_sizes, make_mesh


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """One step, weighed and timed; bytes and operations of one device and one call."""

    step: PlannedStep
    memory: Memory | None  # None: there is no compiler for this machine here
    arguments: float  # bytes of the step's arguments, by their shardings
    beside: float  # bytes of what else lies in memory meanwhile
    cost: Cost
    flops: float  # with products of experts at balanced load
    time: Time
    seconds: float  # of compiling
    refused: str = ""
    largest: tuple[Any, ...] = ()  # buffers
    first_too_many: Any = None

    @property
    def peak(self) -> float | None:
        """Bytes of a device while the step is run."""
        return None if self.memory is None else self.memory.peak + self.beside

    def fits(self, usable: float) -> bool | None:
        """None: unknown, unless already the arguments do not fit."""
        if self.peak is None:
            return None if self.arguments + self.beside <= usable else False
        return not self.refused and self.peak <= usable


@dataclasses.dataclass(frozen=True)
class Plan:
    """A stage on a machine."""

    subject: Subject
    topology: Topology
    mesh: dict[str, int]
    steps: tuple[StepPlan, ...]
    seconds: float  # of planning
    whole: bool = True  # all programs of the stage are there

    @property
    def step_seconds(self) -> float:
        """One step of the stage: of RL a rollout with its log-probs and updates."""
        return sum(one.time.predicted * one.step.calls for one in self.steps)

    @property
    def model_flops(self) -> float:
        """That the model costs in one step of the stage, on all devices."""
        return sum(one.step.model_flops * one.step.calls for one in self.steps)

    @property
    def use(self) -> float:
        """Model FLOP use: the model's operations over what the chips could do meanwhile."""
        return self.model_flops / (self.step_seconds * self.topology.chips * self.topology.chip.bf16)

    @property
    def fits(self) -> bool | None:
        """Whether all steps fit; None: unknown."""
        said = [one.fits(self.topology.chip.device.usable) for one in self.steps]
        return False if False in said else None if None in said else True


def mesh_of(topology: Topology, subject: Subject) -> Mesh:
    """The config's mesh over the machine's devices. Raises PlanError with the sizes if it does not fit."""
    if topology.chip.platform == "tpu":
        devices: Sequence[Any] = tpu_devices(topology)
    else:
        devices = jax.devices("cpu")
        if len(devices) < topology.devices:
            raise PlanError(
                f"topology: {topology.name} has {topology.devices} GPUs, and this process {len(devices)} devices to "
                "stand for them; set jax_num_cpu_devices before anything else"
            )
        devices = devices[: topology.devices]
    config = subject.config.mesh
    if config.auto:
        sizes, share = model_size(subject.model), topology.devices // topology.slices
        config = automatic_sizes(sizes, topology.slices, share, int(topology.chip.device.usable))
    try:
        return make_mesh(config, devices)
    except ValueError as error:
        raise PlanError(f"mesh: does not fit {topology.name}, {topology.devices} devices: {error}") from error


def make_plan(
    subject: Subject,
    topology: Topology,
    names: Sequence[str] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Compiles every step of the stage (or those of `names`) for the machine and counts what it costs.

    Raises:
      PlanError: the machine or the mesh cannot be had, or there is no step of a name.
      ConfigError: the stage's sizes do not fit the mesh.
    """
    began = time.monotonic()
    mesh = mesh_of(topology, subject)
    check_mesh(subject.model, mesh, row_length(subject.config))
    steps = planned_steps(subject.config, subject.model, mesh)
    known = [step.name for step in steps]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise PlanError(f"--only: {unknown[0]!r} is not one of the steps {', '.join(known)}")
    plans = []
    for step in steps:
        if not names or step.name in names:
            tell(f"{step.name}: {step.what}")
            plans.append(plan_step(step, subject.model, mesh, topology))
    whole = len(plans) == len(steps)
    return Plan(subject, topology, dict(mesh.shape), tuple(plans), time.monotonic() - began, whole)


def plan_step(step: PlannedStep, model: ModelConfig, mesh: Mesh, topology: Topology) -> StepPlan:
    """One step: compiled for a TPU, counted from its trace for a GPU."""
    arguments, beside = tree_bytes(step.arguments), tree_bytes(step.beside)
    if topology.chip.platform == "tpu":
        usable = topology.chip.device.usable - beside
        compiled = compile_for_tpu(step.lower(), usable)
        cost = program_cost(compiled.program, mesh, step.iterations)
    else:
        began = time.monotonic()
        cost = jaxpr_cost(step, mesh, topology.chip.platform)
        compiled = None
        seconds = time.monotonic() - began
    flops = balanced_flops(cost, step, model, mesh) + kernel_flops(cost, step, model, mesh)
    timed = step_time(flops, cost.bytes, cost.collectives, mesh, topology)
    if compiled is None:
        return StepPlan(step, None, arguments, beside, cost, flops, timed, seconds)
    return StepPlan(
        step, compiled.memory, arguments, beside, cost, flops, timed, compiled.seconds, compiled.refused,
        compiled.buffers, compiled.first_too_many,
    )  # fmt: skip


def balanced_flops(cost: Cost, step: PlannedStep, model: ModelConfig, mesh: Mesh) -> float:
    """Operations of one device if every expert is given the same number of rows.

    Buffers of experts are made for loads that are not even, and grouped products skip the rows that no expert has. So
    such products, which a program's text has at the full size of their buffers, count as much as the buffers are full.
    """
    if not cost.grouped_flops or model.moe is None:
        return cost.flops
    return cost.flops - (1 - filled_share(step, model.moe, mesh)) * cost.grouped_flops


def filled_share(step: PlannedStep, moe: MoEConfig, mesh: Mesh) -> float:
    """Of the rows of a device's buffer of experts those that are filled if every expert is given the same number."""
    rows = math.ceil(step.assignments / (mesh.devices.size // mesh.shape["tensor"]))
    devices = mesh.shape["expert"]
    how = Dispatch("expert", moe.exchange, moe.buffer_factor, moe.tile_size)
    return rows / buffer_of(rows, devices, moe.num_experts // devices, how).slots


def kernel_flops(cost: Cost, step: PlannedStep, model: ModelConfig, mesh: Mesh) -> float:
    """Operations of the slowest device in attention kernels, which do not tell theirs.

    Forward two products, scores and sums; backward seven, since gradients of queries (3) and of keys and values (4)
    are two kernels that both make the scores again. What the causal mask hides is skipped, so the rows' mean is what
    the model counts; of a row that is split along `sequence` into s parts the last sees (2 - 1/s) times the mean, and
    the others wait for it.
    """
    if not any("splash" in name for name in cost.unknown):
        return 0.0
    att = model.attention
    keys, values = (
        (att.qk_nope_head_dim + att.qk_rope_head_dim, att.v_head_dim)
        if isinstance(att, MLAConfig)
        else (att.head_dim, att.head_dim)
    )
    forward = 2.0 if step.trains and model.remat not in ("none", "attention") else 1.0
    backward = (4 * keys + 3 * values) / (keys + values) if step.trains else 0.0
    imbalance = 2 - 1 / mesh.shape["sequence"]
    return imbalance * step.attention_flops * (forward + backward) / mesh.devices.size
