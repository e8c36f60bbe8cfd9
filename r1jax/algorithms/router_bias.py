"""Auxiliary-loss-free expert balancing: the selection bias moves by rule, not by gradient (V3 section 2.1.2).

The model reports how many tokens each expert got; the stage adds those up over a step and writes the new bias.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import chex
import jax
import jax.numpy as jnp

Array = jax.Array


def update_router_bias(bias: Array, load: Array, rate: float) -> Array:
    """bias + rate * sign(mean load - load), layer by layer (Wang et al. 2408.15664, algorithm 1).

    bias [..., E] float32, load [..., E] assignments of the whole batch (added over micro-batches and devices). An
    expert above its layer's mean load loses `rate` (V3: 0.001), one below gains it, one exactly at the mean keeps its
    bias. V3 does not say against what "overloaded" is measured; the mean is the cited paper's rule.
    """
    chex.assert_equal_shape([bias, load])
    load = load.astype(jnp.float32)
    mean = jnp.mean(load, axis=-1, keepdims=True)
    return bias + rate * jnp.sign(mean - load)


def load_max_over_mean(load: Array) -> Array:
    """Largest over mean load of each layer's experts: [..., E] -> [...]; 1 is perfect balance, E all on one.

    A layer that saw no token gets 1.
    """
    load = load.astype(jnp.float32)
    mean = jnp.mean(load, axis=-1)
    return jnp.where(mean > 0, jnp.max(load, axis=-1) / jnp.where(mean > 0, mean, 1.0), 1.0)


def expert_load_metrics(load: Array) -> dict[str, Array]:
    """Largest over mean load of each MoE layer [M, E], and the worst layer's; nothing without layers."""
    if load.size == 0:
        return {}
    ratios = load_max_over_mean(load)
    layers = {f"expert_load_max_over_mean/layer_{i}": ratios[i] for i in range(load.shape[0])}
    return layers | {"expert_load_max_over_mean": jnp.max(ratios)}


def is_router_bias(path: str | Iterable[Any]) -> bool:
    """Whether a parameter's path ends in router/bias: such a leaf gets no gradient, decay or part in the clip norm.

    `path` is a jax key path, a sequence of names, or names joined by "/".
    """
    names = path.split("/") if isinstance(path, str) else [_key_name(key) for key in path]
    return names[-2:] == ["router", "bias"]


def _key_name(key: Any) -> str:
    if isinstance(key, jax.tree_util.DictKey | jax.tree_util.FlattenedIndexKey):
        return str(key.key)
    return key.name if isinstance(key, jax.tree_util.GetAttrKey) else str(key)
