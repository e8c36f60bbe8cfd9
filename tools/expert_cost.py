"""What an MoE layer costs as its experts grow and what a token uses of them stays the same.

    taskset -c 1 python -m tools.expert_cost --experts 8 16 32 64 128 --tokens 8192 --repeats 5

Measures, on one CPU device: forward and backward of one MoE layer (router, balance loss, routed and shared experts) on
one batch; one decoding step of 64 tokens; and the optimiser's update of the layer's parameters, whose number grows with
the experts. Assignments are those of a random router, near balance. Each time is the smallest of the repeats
(`tools.processor_time`). Prints a table with the time over that of the fewest experts, and the exponent fitted to all.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
from flax.core import meta

from r1jax.model.config import GQAConfig, ModelConfig, MoEConfig, RopeConfig
from r1jax.model.moe import MoE
from r1jax.types import Array, Params
from tools.processor_time import Step, growth_table, least_seconds

DECODED = 64  # sequences in a decoding step


@dataclasses.dataclass(frozen=True)
class Size:
    """What stays the same."""

    tokens: int
    width: int
    expert_dim: int
    active: int
    tile_size: int


def main() -> int:
    """Prints one table per kind of work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--expert_dim", type=int, default=128)
    parser.add_argument("--active", type=int, default=8, help="experts that a token uses")
    parser.add_argument("--tile_size", type=int, default=MoEConfig.tile_size, help="fewest rows per tile")
    parser.add_argument("--repeats", type=int, default=5)
    flags = parser.parse_args()
    size = Size(flags.tokens, flags.width, flags.expert_dim, flags.active, flags.tile_size)
    works = {count: layer_work(size, count) for count in flags.experts}
    for name in ("layer", "decode", "optimiser"):
        seconds = least_seconds({count: work[name] for count, work in works.items()}, flags.repeats)
        rich.console.Console().print(growth_table("experts", f"{name}, {dataclasses.asdict(size)}", seconds))
    return 0


def layer_work(size: Size, experts: int) -> dict[str, Step]:
    """The three kinds of work of a layer with so many experts."""
    moe = MoEConfig(experts, size.active, size.expert_dim, num_shared=1, tile_size=size.tile_size)
    cfg = ModelConfig(
        vocab_size=8,
        width=size.width,
        num_dense_layers=0,
        ffn_dim=8,
        attention=GQAConfig(1, 1, 8),
        rope=RopeConfig(),
        num_moe_layers=1,
        moe=moe,
        init_std=0.02,
    )
    layer, rows = MoE(cfg), 8
    x = jnp.asarray(np.random.default_rng(0).normal(size=(rows, size.tokens // rows, size.width)), jnp.float32)
    ids = jnp.ones(x.shape[:2], jnp.int32)
    params = meta.unbox(jax.jit(layer.init)(jax.random.key(0), x, ids > 0, ids)["params"])
    optimiser = optax.adamw(1e-3)
    state = optimiser.init(params)

    def loss(params: Params, x: Array, ids: Array) -> Array:
        y, aux = layer.apply({"params": params}, x, ids > 0, ids)
        return jnp.sum(y * y) + aux.balance_loss

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))
    step_x, step_ids = x.reshape(-1, 1, size.width)[:DECODED], jnp.ones((DECODED, 1), jnp.int32)
    decode = jax.jit(lambda params, x, ids: layer.apply({"params": params}, x, ids > 0, ids)[0])
    update = jax.jit(lambda grads, state, params: optimiser.update(grads, state, params)[0])
    return {
        "layer": lambda: gradients(params, x, ids),
        "decode": lambda: decode(params, step_x, step_ids),
        "optimiser": lambda: update(params, state, params),
    }


if __name__ == "__main__":
    sys.exit(main())
