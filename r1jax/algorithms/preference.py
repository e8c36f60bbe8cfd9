"""The two losses of reward models, as sums over what counts.

Pairwise (helpfulness in R1): the probability that a response is preferred is the sigmoid of the difference of two
rewards (Bradley and Terry 1952; InstructGPT, 2203.02155, eq. 1). Point-wise (safety in R1): the probability that a
response is safe is the sigmoid of its reward. R1 names both kinds without a formula; margin and label smoothing are not
in it, and 0 by default.

A loss here is a sum, and the stage divides by the count of the whole batch: so the number of micro-batches cannot
change it. Whatever the mask leaves out may be anything, NaN included.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from r1jax.algorithms.masked import masked_sum

Array = jax.Array
Metrics = dict[str, Array]


def pairwise_loss(
    chosen: Array, rejected: Array, mask: Array, margin: float = 0.0, smoothing: float = 0.0
) -> tuple[Array, Metrics]:
    """Sum over pairs of -(1 - smoothing) log sigmoid(d) - smoothing log sigmoid(-d), d = chosen - rejected - margin.

    Args:
      chosen, rejected: rewards of the preferred response and of the other one, float32, of one shape.
      mask: nonzero where there is a pair.
      margin: by how much the preferred one should be ahead (Llama 2, 2307.09288, eq. 2, with one margin for all).
      smoothing: assumed share of pairs whose label is the wrong way round, 0 to below 1/2.

    Returns:
      (loss, metrics); metrics are sums: preference_sum (the loss), items (pairs), right (pairs with chosen ahead of
      rejected, without the margin; a tie counts half), difference_sum (of chosen - rejected).
    """
    chex.assert_equal_shape([chosen, rejected, mask])
    difference = jnp.where(mask != 0, chosen - rejected, 0.0)
    ahead = difference - margin
    losses = -(1 - smoothing) * jax.nn.log_sigmoid(ahead) - smoothing * jax.nn.log_sigmoid(-ahead)
    loss = masked_sum(losses, mask)
    return loss, {
        "preference_sum": loss,
        "items": _count(mask),
        "right": masked_sum(_credit(difference), mask),
        "difference_sum": masked_sum(difference, mask),
    }


def pointwise_loss(rewards: Array, safe: Array, mask: Array, smoothing: float = 0.0) -> tuple[Array, Metrics]:
    """Sum over responses of the binary cross-entropy between sigmoid(reward) and the label.

    Args:
      rewards: float32, any shape.
      safe: of the same shape, 1 where the response is safe and 0 where it is not.
      mask: nonzero where there is a labelled response.
      smoothing: assumed share of wrong labels, 0 to below 1/2.

    Returns:
      (loss, metrics); metrics are sums: preference_sum (the loss), items (responses), right (those whose reward is on
      the side of 0 that the label says; 0 itself counts half), safe_sum (labels), probability_sum (of P(safe)).
    """
    chex.assert_equal_shape([rewards, safe, mask])
    kept = jnp.where(mask != 0, rewards, 0.0)
    sign = jnp.where(safe > 0, 1.0, -1.0)
    losses = -(1 - smoothing) * jax.nn.log_sigmoid(sign * kept) - smoothing * jax.nn.log_sigmoid(-sign * kept)
    loss = masked_sum(losses, mask)
    return loss, {
        "preference_sum": loss,
        "items": _count(mask),
        "right": masked_sum(_credit(sign * kept), mask),
        "safe_sum": masked_sum(jnp.where(safe > 0, 1.0, 0.0), mask),
        "probability_sum": masked_sum(jax.nn.sigmoid(kept), mask),
    }


def _count(mask: Array) -> Array:
    return jnp.sum(jnp.where(mask != 0, 1.0, 0.0))


def _credit(ahead: Array) -> Array:
    """1 where a number is above 0, 0 where it is below, one half at 0."""
    return 0.5 * (1.0 + jnp.sign(ahead))
