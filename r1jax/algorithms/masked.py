"""Sums, means and maxima over the entries that count, and over the tokens of each packed response.

Every function selects with `where` before it adds, never by multiplying with the mask: an infinity at a padding
position times 0 is NaN, and its gradient too.
"""

from __future__ import annotations

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

Array = jax.Array
Axis = int | Sequence[int] | None


def masked_sum(values: Array, mask: Array, axis: Axis = None) -> Array:
    """Sum of `values` where `mask` is nonzero. Both of one shape; the result drops `axis` (None: all axes)."""
    chex.assert_equal_shape([values, mask])
    return jnp.sum(jnp.where(mask != 0, values, 0), axis=axis)


def masked_max(values: Array, mask: Array, axis: Axis = None) -> Array:
    """Largest of `values` where `mask` is nonzero; -inf where nothing is selected."""
    chex.assert_equal_shape([values, mask])
    return jnp.max(jnp.where(mask != 0, values, -jnp.inf), axis=axis)


def weighted_sum(values: Array, weights: Array) -> Array:
    """Scalar sum of weights * values; entries of weight 0 take no part even when they are not finite."""
    chex.assert_equal_shape([values, weights])
    return jnp.sum(weights * jnp.where(weights != 0, values, 0))


def response_sum(values: Array, sequence_ids: Array, num_sequences: int) -> Array:
    """Sum over the tokens of each response.

    values [R, T]; sequence_ids [R, T] int, the response of each token in 0..num_sequences-1, -1 for tokens of none.
    Returns [num_sequences]; responses without a token here get 0.
    """
    chex.assert_equal_shape([values, sequence_ids])
    ids = jnp.where(sequence_ids < 0, num_sequences, sequence_ids).reshape(-1)  # the spare last bin is dropped
    kept = jnp.where(sequence_ids < 0, 0, values).reshape(-1)
    return jax.ops.segment_sum(kept, ids, num_segments=num_sequences + 1)[:num_sequences]


def response_mean(values: Array, sequence_ids: Array, num_sequences: int) -> Array:
    """Mean over the tokens of each response: [R, T] -> [num_sequences]; 0 for responses without a token here."""
    counts = response_sum(jnp.ones_like(values), sequence_ids, num_sequences)
    return response_sum(values, sequence_ids, num_sequences) / jnp.maximum(counts, 1)


def spread_to_tokens(per_response: Array, sequence_ids: Array) -> Array:
    """Give each token its response's value: [N] and [R, T] -> [R, T]; 0 at tokens of no response (id -1)."""
    chex.assert_rank([per_response, sequence_ids], [1, 2])
    return jnp.where(sequence_ids < 0, 0, per_response[jnp.maximum(sequence_ids, 0)])
