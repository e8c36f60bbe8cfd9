"""The training state, where it lives on the mesh, and how gradients of micro-batches become one update."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.core import meta
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from r1jax.algorithms.router_bias import update_router_bias
from r1jax.model.config import ModelConfig
from r1jax.model.outputs import Output
from r1jax.model.transformer import Transformer, abstract_params, init_params
from r1jax.optim import Freeze, abstract_optimizer, global_norm, init_optimizer
from r1jax.sharding import param_shardings, replicate
from r1jax.types import Array, PackedBatch, Params

ROUTER_BIASES = (("moe_layers", "moe", "router"), ("mtp", "block", "moe", "router"))
"""Where the selection biases live in the parameter tree: the MoE stack's [M, E] and the MTP block's [E]."""


@struct.dataclass
class TrainState:
    """Everything that an update changes."""

    params: Params
    opt_state: Any
    step: Array  # [] int32, updates made


@struct.dataclass
class Accumulated:
    """Sums over the micro-batches of one update."""

    grads: Params
    sums: dict[str, Array]  # metrics that add up
    maxima: dict[str, Array]  # metrics of which the largest counts
    load: Array  # [M, E] assignments of real tokens
    mtp_load: Array | None  # [E]


def forward(model: Transformer, params: Params, packed: PackedBatch) -> Output:
    """The model on packed rows."""
    output = model.apply(
        {"params": params}, packed.tokens, packed.positions, packed.segment_ids, parent_ids=packed.parent_ids
    )
    assert isinstance(output, Output)
    return output


def abstract_state(model: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> Any:
    """Shapes and shardings of a TrainState: what a checkpoint is restored into."""
    return abstract_state_of(placed_abstract_params(model, mesh), optimizer, mesh)


def abstract_state_of(params: Params, optimizer: optax.GradientTransformation, mesh: Mesh) -> Any:
    """The same around parameters that are shapes with shardings."""
    shapes: Any = TrainState
    return shapes(
        params=params,
        opt_state=abstract_optimizer(optimizer, params),
        step=jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec())),
    )


def placed_abstract_params(model: ModelConfig, mesh: Mesh) -> Params:
    """Shapes of the parameters with the sharding of each."""
    boxed = abstract_params(model)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        meta.unbox(boxed),
        param_shardings(mesh, boxed),
    )


def create_state(model: ModelConfig, optimizer: optax.GradientTransformation, key: Array, mesh: Mesh) -> TrainState:
    """A fresh state with random parameters."""
    return state_from_params(optimizer, init_params(model, key, mesh), mesh)


def state_from_params(optimizer: optax.GradientTransformation, params: Params, mesh: Mesh) -> TrainState:
    """A state at step 0 around parameters that already lie on the mesh."""
    return TrainState(
        params=params,
        opt_state=init_optimizer(optimizer, params),
        step=replicate(mesh, jnp.zeros((), jnp.int32)),
    )


def add_accumulated(a: Accumulated, b: Accumulated) -> Accumulated:
    """Joins the sums of two micro-batches."""
    add = partial(jax.tree.map, jnp.add)
    return Accumulated(
        grads=add(a.grads, b.grads),
        sums=add(a.sums, b.sums),
        maxima=jax.tree.map(jnp.maximum, a.maxima, b.maxima),
        load=a.load + b.load,
        mtp_load=add(a.mtp_load, b.mtp_load),
    )


class GradientAccumulator:
    """Adds up the gradients of micro-batches: the first call makes the sums, later ones add to them in place.

    Micro-batches add up in float32, whatever the parameters' type: in bfloat16 a sum stops growing at some 256 times
    what is added. Within a micro-batch the parts of the devices are summed over the mesh in the type that is computed
    in, since a weight's gradient leaves its product in that type: with dtype bfloat16 every such sum is rounded to 8
    bits of mantissa. Laid out as `params`, shapes with shardings: left to itself the compiler keeps whole sums on every
    device.
    """

    def __init__(self, gradients: Callable[..., Accumulated], params: Params) -> None:
        layout = jax.tree.map(lambda leaf: leaf.sharding, params)

        def exact(*args: Any) -> Accumulated:
            one = gradients(*args)
            grads = jax.tree.map(lambda gradient: gradient.astype(jnp.float32), one.grads)
            return one.replace(grads=jax.lax.with_sharding_constraint(grads, layout))  # type: ignore[attr-defined]

        self.first = jax.jit(exact)
        self.add = jax.jit(lambda so_far, *args: add_accumulated(so_far, exact(*args)), donate_argnums=0)

    def __call__(self, so_far: Accumulated | None, *args: Any) -> Accumulated:
        """`so_far` (None at first) with the gradients of one more micro-batch."""
        return self.first(*args) if so_far is None else self.add(so_far, *args)


def apply_gradients(
    state: TrainState,
    total: Accumulated,
    optimizer: optax.GradientTransformation,
    router_bias_rate: float,
    freeze: Freeze,
) -> tuple[TrainState, dict[str, Array]]:
    """One optimiser update, then the rule-based update of the balancing bias from the whole batch's expert load.

    Returns the new state and {"grad_norm"}. Meant to run under jit with the state donated.
    """
    updates, opt_state = optimizer.update(total.grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if router_bias_rate:
        params = move_router_biases(params, (total.load, total.mtp_load), router_bias_rate)
    metrics = {"grad_norm": global_norm(total.grads, freeze)}
    return TrainState(params=params, opt_state=opt_state, step=state.step + 1), metrics


def move_router_biases(params: Params, loads: tuple[Array | None, Array | None], rate: float) -> Params:
    """The parameters with every selection bias moved by `algorithms.router_bias`; None leaves a bias as it is."""
    for path, load in zip(ROUTER_BIASES, loads, strict=True):
        router = params
        for name in path:
            router = router.get(name) if router is not None else None
        if load is None or router is None or "bias" not in router:
            continue
        params = _replaced(params, (*path, "bias"), update_router_bias(router["bias"], load, rate))
    return params


def _replaced(tree: Params, path: tuple[str, ...], value: Array) -> Params:
    head, *rest = path
    return {**tree, head: _replaced(tree[head], tuple(rest), value) if rest else value}
