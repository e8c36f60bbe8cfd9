"""Operations of a traced program, before any compiler: for machines that have none here, and to check the other count.

A trace has the whole arrays, or inside of `shard_map` those of one device; loops are multiplied out, a loop whose end
depends on data is counted once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.interpreters import partial_eval
from jax.sharding import Mesh

from r1jax.plan.collectives import Collective, group_along, sent_bytes
from r1jax.plan.costs import Cost
from r1jax.plan.hlo import skipping_share
from r1jax.plan.steps import PlannedStep, tree_bytes
from r1jax.sharding import BATCH_AXES

COLLECTIVES = {
    "all_gather": "all-gather",
    "all_gather_invariant": "all-gather",
    "psum": "all-reduce",
    "psum_invariant": "all-reduce",
    "reduce_scatter": "reduce-scatter",
    "all_to_all": "all-to-all",
    "ragged_all_to_all": "ragged-all-to-all",
    "ppermute": "collective-permute",
}


def jaxpr_cost(step: PlannedStep, mesh: Mesh, platform: str) -> Cost:
    """Of one device, work assumed to be split evenly over all of them.

    Collectives are those that the program asks for itself (`shard_map`); what the partitioner adds is estimated by what
    parameters and gradients need (`fsdp_collectives`). Bytes of HBM: arguments once, or once for every token that is
    drawn, which is a lower bound.
    """
    traced = step.function.trace(*step.arguments).jaxpr.jaxpr
    flops = grouped = 0.0
    found: list[Collective] = []
    for equation, times, manual in equations(traced, platform, Place(iterations=step.iterations)):
        share = times / (mesh.devices.size if not manual else mesh.devices.size // manual)
        count = equation_flops(equation)
        flops += share * count
        grouped += share * count * equation.primitive.name.startswith("ragged_dot")
        if equation.primitive.name in COLLECTIVES:
            found += _collective(equation, times, mesh)
    if step.model_flops:
        params = step.arguments[step.params_at]
        found += fsdp_collectives(params, mesh, step.trains, step.compute_bytes)
    moved = tree_bytes(step.arguments) * step.iterations
    return Cost(flops, grouped, (), moved, tuple(sorted(found, key=lambda one: -one.total)))


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a program stands in the program that is run."""

    times: float = 1.0  # it is run
    manual: int = 0  # devices of the mesh axes that `shard_map` has split by hand
    loops: tuple[int, ...] = ()  # trip counts of the loops around it, the innermost last
    iterations: float = 1.0  # of a loop in it whose end depends on data; of one within another: 1


def equations(jaxpr: Any, platform: str, place: Place) -> Iterator[tuple[Any, float, int]]:
    """(equation, times it is run, devices of the mesh axes that `shard_map` has split by hand) of a program and all
    programs in it."""
    indices: dict[Any, tuple[Any, ...]] = {}
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))  # no logits that nobody asks for
    for equation in used.eqns:
        name = equation.primitive.name
        yield equation, place.times, place.manual
        if name == "platform_index":
            indices[equation.outvars[0]] = equation.params["platforms"]
        inside = place
        if name == "scan":
            length = equation.params["length"]
            inside = dataclasses.replace(place, times=place.times * length, loops=(*place.loops, length))
        if name == "while":
            inside = dataclasses.replace(place, times=place.times * place.iterations, loops=(), iterations=1.0)
        if name == "shard_map":
            axes = equation.params["newly_manual_axes"]
            split = math.prod(equation.params["mesh"].shape[axis] for axis in axes)
            inside = dataclasses.replace(place, manual=max(place.manual, 1) * split)
        for one, share in _programs(equation, indices, platform, place.loops):
            yield from equations(one, platform, dataclasses.replace(inside, times=inside.times * share))


def _programs(
    equation: Any, indices: dict[Any, tuple[Any, ...]], platform: str, loops: tuple[int, ...]
) -> list[tuple[Any, float]]:
    """(program, how often of the times that the equation is run); of a conditional as `hlo.Program.run` says."""
    if equation.primitive.name == "cond":
        branches = [branch.jaxpr for branch in equation.params["branches"]]
        platforms = next((indices[v] for v in equation.invars[:1] if v in indices), None)
        if platforms is not None:  # of the platform, else the default, which is the last
            chosen = (b for b, p in zip(branches, platforms, strict=False) if p and platform in p)
            return [(next(chosen, branches[-1]), 1.0)]
        work = [total_flops(branch, platform) for branch in branches]
        skips = sum(flops > 0 for flops in work) == 1
        return [(branches[work.index(max(work))], skipping_share(loops) if skips else 1.0)]
    if equation.primitive.name in ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"):
        called = equation.params.get("call_jaxpr") or equation.params["fun_jaxpr"]
        return [(getattr(called, "jaxpr", called), 1.0)]
    found: list[tuple[Any, float]] = []
    for name, parameter in equation.params.items():
        if name in ("cond_jaxpr", "jvp_jaxpr_fun", "jvp_jaxpr_thunk"):
            continue
        for one in parameter if isinstance(parameter, list | tuple) else (parameter,):
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                found.append((one, 1.0))
    return found


def total_flops(jaxpr: Any, platform: str) -> float:
    """Operations of all matrix products of a program, arrays as they stand in it."""
    return sum(times * equation_flops(equation) for equation, times, _ in equations(jaxpr, platform, Place()))


def equation_flops(equation: Any) -> float:
    """Two for every multiply-add of a product, 0 of what is none."""
    name = equation.primitive.name
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * math.prod(shape[axis] for axis in contracted) * equation.outvars[0].aval.size
    if name.startswith("ragged_dot"):
        rows, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        if len(out) == 2:  # [S, D] with [E, D, F]: every row with its group's matrix
            return 2.0 * out[0] * out[1] * rows[1]
        return 2.0 * rows[0] * out[-1] * out[-2]  # [S, D] with [S, F], summed within groups
    return 0.0


def _collective(equation: Any, times: float, mesh: Mesh) -> list[Collective]:
    named = equation.params.get("axes") or equation.params.get("axis_name")
    axes = tuple(axis for axis in (named if isinstance(named, tuple) else (named,)) if isinstance(axis, str))
    group = math.prod(mesh.shape[axis] for axis in axes)
    if group == 1:
        return []
    kind = COLLECTIVES[equation.primitive.name]
    given = sum(v.aval.size * v.aval.dtype.itemsize for v in equation.invars[: None if kind == "all-reduce" else 1])
    devices = group_along(axes, mesh)
    return [Collective(kind, axes, group, sent_bytes(kind, given, group), times, "shard_map", devices)]


def fsdp_collectives(
    params: Any, mesh: Mesh, trains: bool, compute_bytes: int, experts: bool = False
) -> list[Collective]:
    """An estimate of what the partitioner adds for sharded parameters outside of `shard_map`.

    Every parameter that is split over axes with other tokens is gathered in the type that is computed in, once for
    each pass over the model; in training its gradient, in the same type, is scattered over the same devices and summed
    over the others that have tokens: those along the batch axes, and along `sequence`.

    Args:
        params: ShapeDtypeStructs with shardings.
        mesh: their mesh.
        trains: a backward pass too.
        compute_bytes: of an element while it is computed with.
        experts: those of the routed experts too, which `shard_map` gathers by hand.
    """
    found = []
    with_tokens = tuple(axis for axis in (*BATCH_AXES, "sequence") if mesh.shape[axis] > 1)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        routed = "experts/" in name
        if routed and not experts:
            continue
        spec = [axis for entry in leaf.sharding.spec for axis in (entry if isinstance(entry, tuple) else (entry,))]
        rows = tuple(axis for axis in with_tokens if not (routed and axis == "expert"))
        over = tuple(axis for axis in spec if axis in rows)
        shard = math.prod(leaf.sharding.shard_shape(leaf.shape))
        group = math.prod(mesh.shape[axis] for axis in over)
        if group > 1:
            sent = sent_bytes("all-gather", shard * compute_bytes, group)
            found.append(Collective("all-gather", over, group, sent, 1 + trains, name, group_along(over, mesh)))
        if trains and group > 1:
            sent = sent_bytes("reduce-scatter", float(compute_bytes) * shard * group, group)
            found.append(Collective("reduce-scatter", over, group, sent, 1, name, group_along(over, mesh)))
        others = tuple(axis for axis in rows if axis not in over)
        devices = math.prod(mesh.shape[axis] for axis in others)
        if trains and devices > 1:
            sent = sent_bytes("all-reduce", float(compute_bytes) * shard, devices)
            found.append(Collective("all-reduce", others, devices, sent, 1, name, group_along(others, mesh)))
    return found
