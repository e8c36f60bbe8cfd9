"""Mesh shapes for a stage on a machine: all that divide, ranked by what they must at least move, the best compiled."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

from jax.sharding import Mesh

from r1jax.model.config import MLAConfig, ModelConfig
from r1jax.model.mesh_check import check_mesh
from r1jax.plan.chips import Topology
from r1jax.plan.collectives import Collective, group_along, sent_bytes
from r1jax.plan.compile import PlanError
from r1jax.plan.costs import bandwidth
from r1jax.plan.jaxprs import fsdp_collectives
from r1jax.plan.planner import Plan, make_plan, mesh_of
from r1jax.plan.steps import kept_bytes, row_length, rows_at_once
from r1jax.plan.subject import Subject
from r1jax.settings import ConfigError
from r1jax.sharding import BATCH_AXES, MESH_AXES, MeshConfig
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.state import placed_abstract_params

WIDEST_TENSOR = 16  # beyond, an all-reduce of activations costs more than it saves on any machine of the table


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A mesh and what it must at least cost."""

    mesh: MeshConfig
    network: float  # seconds of one pass of training over a micro-batch
    state: float  # bytes of a device: parameters, optimiser state, gradients, reference


def mesh_shapes(devices: int, slices: int = 1) -> Iterator[MeshConfig]:
    """Every way to split the devices of each slice over the axes: powers of two, the rest to fsdp or to data."""
    powers = [2**i for i in range(devices.bit_length()) if devices % 2**i == 0]
    for expert in powers:
        for sequence in powers:
            for tensor in (size for size in powers if size <= WIDEST_TENSOR):
                if devices % (expert * sequence * tensor) == 0:
                    left = devices // (expert * sequence * tensor)
                    sizes = {"slice": slices, "expert": expert, "sequence": sequence, "tensor": tensor}
                    yield MeshConfig(data=1, fsdp=left, **sizes)
                    if left > 1:  # or parameters whole on each
                        yield MeshConfig(data=left, fsdp=1, **sizes)


def estimate(subject: Subject, topology: Topology, mesh: Mesh, shape: MeshConfig) -> Candidate:
    """What gradients of one micro-batch must move on a mesh, from the shapes alone.

    Gathers and scatters of parameters, tokens to experts and back, sums of activations over tensor, keys and values
    over sequence; each in the forward and the backward pass, and once more where blocks are recomputed.
    """
    model = subject.model
    params = placed_abstract_params(model, mesh)
    passes = 2 if model.remat == "none" else 3
    found = fsdp_collectives(params, mesh, trains=True, compute_bytes=2, experts=True)
    shared = mesh.devices.size // mesh.shape["tensor"]  # devices with tokens of their own
    tokens = rows_at_once(subject.config) * row_length(subject.config) / shared
    found += activation_collectives(model, mesh, tokens, passes)
    network = sum(one.total / bandwidth(one, mesh, topology) for one in found)
    return Candidate(shape, network, kept_bytes(subject.config, model, mesh))


def activation_collectives(model: ModelConfig, mesh: Mesh, tokens: float, passes: int) -> list[Collective]:
    """Of `tokens` tokens on a device."""
    array = tokens * model.width * 2

    def moved(kind: str, axis: str, given: float, times: float) -> list[Collective]:
        group = mesh.shape[axis]
        if group == 1:
            return []
        sent = sent_bytes(kind, given, group)
        return [Collective(kind, (axis,), group, sent, times, axis, group_along((axis,), mesh))]

    found = moved("all-reduce", "tensor", array, 2 * model.num_layers * passes)
    if model.moe and model.num_moe_layers:
        given = array * model.moe.num_active  # along `tensor` every device sends all of them
        found += moved("all-to-all", "expert", given, 2 * model.num_moe_layers * passes)
    attention = model.attention
    if isinstance(attention, MLAConfig):
        kept = attention.kv_lora_rank + attention.qk_rope_head_dim
    else:
        kept = 2 * attention.num_kv_heads * attention.head_dim
    return found + moved("all-gather", "sequence", tokens * kept * 2, model.num_layers * passes)


def candidates(subject: Subject, topology: Topology) -> list[Candidate]:
    """All shapes that divide the model and the batch and hold the state, the one that moves least first.

    Raises PlanError if there is none.
    """
    found, divide = [], 0
    for shape in mesh_shapes(topology.devices // topology.slices, topology.slices):
        sizes = {axis: getattr(shape, axis) for axis in MESH_AXES}
        if not divides(subject, sizes):
            continue
        divide += 1
        one = estimate(subject, topology, mesh_of(topology, subject.with_mesh(shape)), shape)
        if one.state < topology.chip.device.usable:
            found.append(one)
    if not found:
        raise PlanError(
            f"--search: of all meshes of {topology.name} {divide} divide the model and the batch, and none holds "
            "parameters, moments and gradients: more chips, or moments in bfloat16 or in host memory"
        )
    return sorted(found, key=lambda one: one.network)


def divides(subject: Subject, sizes: dict[str, int]) -> bool:
    """Whether a mesh divides the model, the rows of a micro-batch and those that are decoded together."""
    config = subject.config
    try:
        check_mesh(subject.model, sizes, row_length(config))
    except ConfigError:
        return False
    shards = math.prod(sizes[axis] for axis in BATCH_AXES)
    if isinstance(config, RLConfig):  # as `stages.checks.check_decoded`
        together = math.lcm(shards * sizes["sequence"], config.group_size)
        if config.decoding.batch_size % together:
            return False
    return rows_at_once(config) % shards == 0


def own_shape(subject: Subject, topology: Topology) -> MeshConfig | None:
    """The config's mesh with all its sizes, or None where it does not fit the machine or the stage."""
    try:
        sizes = dict(mesh_of(topology, subject).shape)
    except PlanError:
        return None
    return MeshConfig(**sizes) if divides(subject, sizes) else None


def search(
    subject: Subject, topology: Topology, count: int, names: tuple[str, ...], tell: Callable[[str], None]
) -> list[Plan]:
    """Plans of the config's own mesh, if the machine can have it, and of the `count` best others; those that fit first,
    the fastest predicted step first."""
    own = own_shape(subject, topology)
    ranked = [one for one in candidates(subject, topology) if one.mesh != own]
    tell(f"{len(ranked)} meshes divide the model and hold its state; compiling the best {min(count, len(ranked))}")
    plans = []
    if own is not None:
        tell("the config's own mesh")
        plans.append(make_plan(subject, topology, names, tell))
    for one in ranked[:count]:
        sizes = ", ".join(f"{axis} {getattr(one.mesh, axis)}" for axis in MESH_AXES if getattr(one.mesh, axis) > 1)
        tell(f"mesh {sizes or 'of one device'}: at least {one.network:.3g} s of network for a micro-batch")
        plans.append(make_plan(subject.with_mesh(one.mesh), topology, names, tell))
    return sorted(plans, key=lambda plan: (plan.fits is False, plan.step_seconds))
