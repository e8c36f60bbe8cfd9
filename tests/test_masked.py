"""Masked sums and per-response sums: hand-worked numbers, and no NaN from what is masked."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.algorithms import masked

VALUES = jnp.array([[1.0, 2.0, 4.0], [8.0, jnp.nan, -jnp.inf]])
MASK = jnp.array([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]])


def test_sum_and_max_by_hand():
    assert float(masked.masked_sum(VALUES, MASK)) == 13
    assert float(masked.masked_max(VALUES, MASK)) == 8
    np.testing.assert_allclose(masked.masked_sum(VALUES, MASK, axis=1), [5, 8])


def test_nothing_selected_is_zero_and_for_max_minus_infinity():
    empty = jnp.zeros((2, 3))
    assert float(masked.masked_sum(VALUES, empty)) == 0
    assert float(masked.masked_max(VALUES, empty)) == -np.inf
    assert float(masked.weighted_sum(VALUES, empty)) == 0


def test_weighted_sum_by_hand_and_its_gradient_skips_broken_entries():
    weights = jnp.array([[0.5, 0.0, 2.0], [1.0, 0.0, 0.0]])
    value, gradient = jax.value_and_grad(masked.weighted_sum)(VALUES, weights)
    assert float(value) == 0.5 + 8 + 8
    np.testing.assert_array_equal(gradient, weights)


def test_response_sums_by_hand():
    # Response 0 has 1 and 2, response 2 has 4 and 8; response 1 is not here, -1 belongs to none.
    values = jnp.array([[1.0, 2.0, 100.0, 4.0], [jnp.nan, 8.0, 200.0, 300.0]])
    ids = jnp.array([[0, 0, -1, 2], [-1, 2, -1, -1]])
    np.testing.assert_allclose(masked.response_sum(values, ids, 3), [3, 0, 12])
    np.testing.assert_allclose(masked.response_mean(values, ids, 3), [1.5, 0, 6])
    spread = masked.spread_to_tokens(jnp.array([7.0, 8.0, 9.0]), ids)
    np.testing.assert_array_equal(spread, [[7, 7, 0, 9], [0, 9, 0, 0]])


def test_response_sum_gradient_reaches_only_tokens_of_a_response():
    ids = jnp.array([[0, 0, -1, 2]])
    gradient = jax.grad(lambda x: jnp.sum(masked.response_sum(x, ids, 3) * jnp.array([1.0, 10.0, 100.0])))
    np.testing.assert_array_equal(gradient(jnp.ones((1, 4))), [[1, 1, 0, 100]])
