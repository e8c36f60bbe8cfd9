"""Log-probabilities of given tokens, and the entropy, without holding the logits of the whole batch.

At 32,768 tokens and a vocabulary of 129,280 the float32 logits of one row alone are 16 GiB. Tokens therefore go through
the unembedding in chunks, and the backward pass computes each chunk's logits again instead of keeping them.

Chunk i of n holds every n-th token of each row, from i on: where a mesh splits rows, or the length of each, every
device works on tokens of its own in every chunk, and none move.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

Array = jax.Array

CHUNK = 512
"""Tokens whose logits are in memory at a time: 1 MiB at V = 512, where one chunk of 4,000 tokens took twice as long on
the CPU; 253 MiB at V = 129,280. On a mesh a chunk is of all devices' tokens: pass more there."""


def logits_to_logprobs(logits: Array, targets: Array) -> tuple[Array, Array]:
    """Log-probability of `targets` and entropy, in nats, of softmax(logits).

    logits [..., V] float32, targets [...] int32 -> two arrays [...] float32. The entropy carries no gradient.
    """
    log_z = jax.nn.logsumexp(logits, axis=-1)
    # A masked sum, not a gather: with the vocabulary sharded, a gather would collect all logits on every device.
    is_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == targets[..., None]
    target_logits = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    log_p = jax.lax.stop_gradient(logits - log_z[..., None])
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
    return target_logits - log_z, entropy


def project(hidden: Array, unembed: Array, temperature: float = 1.0) -> Array:
    """Logits / temperature in float32: hidden [..., D], unembed [D, V] -> [..., V].

    The product is of hidden's dtype, as in the model's own head: the sampler's logits are the trainer's.
    """
    return (
        jnp.einsum("...d,dv->...v", hidden, unembed.astype(hidden.dtype), preferred_element_type=jnp.float32)
        / temperature
    )


def map_token_chunks(function: Callable[..., Any], arrays: tuple[Array, ...], chunk: int) -> Any:
    """Apply `function` to slices along T and join the results; its insides are recomputed in the backward pass.

    arrays: each [R, T, ...]; function(*slices) returns a tree of arrays [R, c, ...], token by token. At most `chunk`
    tokens (all rows together, at least one per row) are in work at a time. One chunk that holds all tokens is a plain
    call, without recomputation.
    Raises ValueError if chunk < 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 token, got {chunk}")
    rows, length = arrays[0].shape[:2]
    columns = max(1, chunk // max(rows, 1))
    count = -(-length // columns)
    if count <= 1:
        return function(*arrays)
    # A few more chunks where that spares filling rows up, which would move tokens between devices that split them.
    count = next((more for more in range(count, min(2 * count, length) + 1) if length % more == 0), count)
    columns = -(-length // count)

    def split(array: Array) -> Array:
        padding = [(0, 0), (0, count * columns - length)] + [(0, 0)] * (array.ndim - 2)
        return jnp.moveaxis(jnp.pad(array, padding).reshape(rows, columns, count, *array.shape[2:]), 2, 0)

    def join(array: Array) -> Array:
        return jnp.moveaxis(array, 0, 2).reshape(rows, count * columns, *array.shape[3:])[:, :length]

    body = jax.checkpoint(function, prevent_cse=False)  # the scan already keeps the two computations apart
    outputs = jax.lax.map(lambda slices: body(*slices), tuple(split(array) for array in arrays))
    return jax.tree.map(join, outputs)


def token_logprobs(
    hidden: Array, unembed: Array, targets: Array, temperature: float = 1.0, chunk: int = CHUNK
) -> tuple[Array, Array]:
    """Log-probability of each target under softmax(hidden @ unembed / temperature), and that softmax's entropy.

    hidden [R, T, D] (after the final norm), unembed [D, V], targets [R, T] int32 -> (logprobs, entropy), both [R, T]
    float32 in nats. No top-k or top-p: the policy of the sampler, of the old, the reference and the current model is
    this one. Differentiable in hidden and unembed through the log-probs; the entropy is a measurement, without
    gradient. Never holds more than `chunk` tokens' logits, forward or backward (at least one token of every row).
    Positions without a meaningful target get finite values to be masked.
    Raises ValueError if temperature <= 0 or chunk < 1.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0 for log-probabilities, got {temperature}")
    chex.assert_rank([hidden, unembed, targets], [3, 2, 2])
    chex.assert_shape(targets, hidden.shape[:2])
    chex.assert_shape(unembed, (hidden.shape[-1], None))
    unembed = unembed.astype(jnp.float32)  # the type in which the chunks' gradients add up

    def function(hidden: Array, targets: Array) -> tuple[Array, Array]:
        return logits_to_logprobs(project(hidden, unembed, temperature), targets)

    return map_token_chunks(function, (hidden, targets), chunk)
