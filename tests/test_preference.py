"""Losses of reward models against numpy in double precision, worked cases, and what the mask leaves out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algorithms.preference import pairwise_loss, pointwise_loss


def log_sigmoid(x):
    return -np.logaddexp(0.0, -np.asarray(x, np.float64))


def made_up(seed=0, shape=(5, 7)):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(scale=3, size=(2, *shape)).astype(np.float32)
    return a, b, (rng.random(shape) < 0.6).astype(np.float32)


@pytest.mark.parametrize(("margin", "smoothing"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.1), (1.0, 0.25)])
def test_pairwise_loss_and_gradient_against_numpy(margin, smoothing):
    chosen, rejected, mask = made_up()
    d = np.float64(chosen) - rejected - margin
    expected = -np.sum(mask * ((1 - smoothing) * log_sigmoid(d) + smoothing * log_sigmoid(-d)))
    loss, metrics = pairwise_loss(chosen, rejected, mask, margin, smoothing)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert float(metrics["items"]) == mask.sum()
    assert float(metrics["right"]) == np.sum((chosen > rejected) * mask)
    np.testing.assert_allclose(metrics["difference_sum"], np.sum((chosen - rejected) * mask), rtol=1e-5)
    # d/d chosen of -log sigmoid(d) is sigmoid(d) - 1; of the smoothed loss it is sigmoid(d) - (1 - smoothing).
    grads = jax.grad(lambda c, r: pairwise_loss(c, r, mask, margin, smoothing)[0], argnums=(0, 1))(chosen, rejected)
    expected_grad = mask * (np.exp(log_sigmoid(d)) - (1 - smoothing))
    np.testing.assert_allclose(grads[0], expected_grad, atol=1e-6)
    np.testing.assert_allclose(grads[1], -expected_grad, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_pointwise_loss_and_gradient_against_numpy(smoothing):
    rewards, other, mask = made_up(1)
    safe = (other > 0).astype(np.float32)
    target = safe * (1 - smoothing) + (1 - safe) * smoothing
    expected = -np.sum(mask * (target * log_sigmoid(rewards) + (1 - target) * log_sigmoid(-rewards)))
    loss, metrics = pointwise_loss(rewards, safe, mask, smoothing)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert float(metrics["right"]) == np.sum(((rewards > 0) == (safe > 0)) * mask)
    assert float(metrics["safe_sum"]) == np.sum(safe * mask)
    np.testing.assert_allclose(metrics["probability_sum"], np.sum(np.exp(log_sigmoid(rewards)) * mask), rtol=1e-5)
    grad = jax.grad(lambda r: pointwise_loss(r, safe, mask, smoothing)[0])(rewards)
    np.testing.assert_allclose(grad, mask * (np.exp(log_sigmoid(rewards)) - target), atol=1e-6)


def test_worked_cases():
    zero, one = jnp.zeros(1), jnp.ones(1)
    loss, metrics = pairwise_loss(zero, zero, one)
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)
    assert float(metrics["right"]) == 0.5  # a tie
    np.testing.assert_allclose(pairwise_loss(jnp.array([np.log(3.0)]), zero, one)[0], np.log(4 / 3), rtol=1e-6)
    np.testing.assert_allclose(pointwise_loss(jnp.array([np.log(3.0)]), zero, one)[0], np.log(4), rtol=1e-6)
    # Far on the wrong side the loss is the distance, not infinity.
    np.testing.assert_allclose(pairwise_loss(-200 * one, 200 * one, one)[0], 400, rtol=1e-6)
    np.testing.assert_allclose(pointwise_loss(-300 * one, one, one)[0], 300, rtol=1e-6)


@pytest.mark.parametrize("loss", [pairwise_loss, pointwise_loss])
def test_masked_entries_may_be_anything_and_parts_add_up(loss):
    a, b, mask = made_up(2)
    b = (b > 0).astype(np.float32)
    whole, metrics = loss(a, b, mask)
    broken = np.where(mask > 0, a, np.array([np.nan, np.inf, -np.inf] * 20, np.float32)[: a.size].reshape(a.shape))
    value, grad = jax.value_and_grad(lambda x: loss(x, b, mask)[0])(broken)
    np.testing.assert_array_equal(value, whole)
    assert np.isfinite(grad).all()
    parts = [loss(a[rows], b[rows], mask[rows]) for rows in (slice(0, 2), slice(2, 5))]
    np.testing.assert_allclose(sum(part for part, _ in parts), whole, rtol=1e-6)
    for name, total in metrics.items():
        np.testing.assert_allclose(sum(sums[name] for _, sums in parts), total, rtol=1e-5, err_msg=name)
