"""From logits to a token: temperature, top-k, top-p, one draw per row, and the draw's log-probability.

A draw is by inverse CDF in two levels: a block of the vocabulary by its share of the mass, then a token within it, with
one uniform number each. That costs one exponential and one sum over the vocabulary; Gumbel noise costs a random number
and two logarithms per entry and is about ten times slower on a CPU. The second uniform number also keeps the rare
tokens of a large vocabulary reachable in proportion: a single float32 number resolves no probability below 1e-7.

Truncation by top-k and top-p finds a threshold by bisection over the float32 bit patterns (30 passes without a sort):
exact, and equal logits are kept or dropped together.

Letters: B rows, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.types import Array


def top_k_mask(logits: Array, k: int) -> Array:
    """[B, V] bool: the k largest logits of each row, with all that equal the k-th; everything if k is 0 or >= V."""
    if k == 0 or k >= logits.shape[-1]:
        return jnp.ones(logits.shape, bool)
    return logits >= jax.lax.top_k(logits, k)[0][:, -1:]


def top_p_mask(weights: Array, p: float) -> Array:
    """[B, V] bool: the smallest set of largest weights that holds at least the share p of the row's sum.

    weights: [B, V] float32, non-negative, not normalized; a token of weight 0 is never kept. Tokens of equal weight
    stand or fall together, and the largest is always kept (Holtzman et al., 1904.09751).
    """
    if p >= 1.0:
        return weights > 0
    bits = jax.lax.bitcast_convert_type(weights, jnp.int32)  # ordered as the non-negative floats are
    target = p * jnp.sum(weights, axis=-1, keepdims=True)

    def enough(threshold: Array) -> Array:
        return jnp.sum(jnp.where(bits >= threshold, weights, 0.0), axis=-1, keepdims=True) >= target

    def body(i: Array, threshold: Array) -> Array:
        trial = threshold | jnp.left_shift(1, 30 - i)
        return jnp.where(enough(trial), trial, threshold)

    threshold = jax.lax.fori_loop(0, 31, body, jnp.zeros_like(target, jnp.int32))  # the largest that keeps enough
    return (bits >= threshold) & (weights > 0)


def block_width(vocab_size: int) -> int:
    """Tokens in a block of the two-level draw: a power of two near the square root of the vocabulary."""
    return 2 ** round(np.log2(max(vocab_size, 2)) / 2)


def _draw(weights: Array, uniform: Array) -> Array:
    """weights [B, K] >= 0, uniform [B] in [0, 1) -> [B] int32, index i with probability weights[i] / sum.

    A weight of 0 is never drawn: the running sum is a tree of additions and need not be monotone in its last bit, so
    the index is looked for among the positive weights only, and the last of them stands in when rounding finds none.
    """
    total = jnp.cumsum(weights, axis=-1)
    hit = (total > uniform[:, None] * total[:, -1:]) & (weights > 0)
    last = weights.shape[-1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)
    return jnp.where(hit.any(-1), jnp.argmax(hit, axis=-1), last).astype(jnp.int32)


def draw_index(weights: Array, uniform: Array) -> Array:
    """Draws from unnormalized probabilities: weights [B, V] >= 0, uniform [B, 2] in [0, 1) -> [B] int32."""
    batch, vocab = weights.shape
    width = block_width(vocab)
    blocks = jnp.pad(weights, ((0, 0), (0, -vocab % width))).reshape(batch, -1, width)
    block = _draw(blocks.sum(-1), uniform[:, 0])
    chosen = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * width + _draw(chosen, uniform[:, 1])


def sample_token(
    logits: Array, keys: Array, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> tuple[Array, Array]:
    """Draws one token per row.

    Args:
      logits: [B, V].
      keys: [B] random keys, one per row: a row's draw depends on its own logits and key only.
      temperature: T > 0 draws from softmax(logits / T); 0 takes the largest logit (the lowest id of equal ones).
      top_k: keep the k most likely tokens; 0 keeps all.
      top_p: then keep the fewest most likely of those that hold this share of their mass; 1 keeps all.

    Returns:
      tokens [B] int32 and their log-probabilities [B] float32 under the *untruncated* softmax(logits / T): what a
      policy ratio needs. At temperature 0 they are those of T = 1.
    """
    scaled = logits.astype(jnp.float32)
    if temperature > 0:
        scaled = scaled / temperature
    shifted = scaled - scaled.max(-1, keepdims=True)
    weights = jnp.exp(shifted)
    log_total = jnp.log(weights.sum(-1))
    if temperature == 0:
        tokens = jnp.argmax(scaled, axis=-1).astype(jnp.int32)
    else:
        if top_k:
            weights = jnp.where(top_k_mask(scaled, top_k), weights, 0.0)
        if top_p < 1:
            weights = jnp.where(top_p_mask(weights, top_p), weights, 0.0)
        uniform = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
        tokens = draw_index(weights, uniform)
    chosen = jnp.take_along_axis(shifted, tokens[:, None], axis=-1)[:, 0]
    return tokens, chosen - log_total
