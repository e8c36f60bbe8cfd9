"""The three KL estimators: their values, and what each does as a loss term, by exact expectation over a vocabulary."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algorithms.kl import k1, k2, k3

ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def distributions(distance: float):
    """Logits of a policy and of a reference `distance` away, five tokens."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=5)
    return jnp.asarray(logits, jnp.float32), jnp.asarray(logits + distance * rng.normal(size=5), jnp.float32)


def kl(logits, ref_logits):
    logp, ref = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref_logits)
    return jnp.sum(jnp.exp(logp) * (logp - ref))


def mean_value_and_gradient(estimator, logits, ref_logits):
    """Expectation over x ~ policy, exactly, of the estimate and of its gradient for fixed samples (the loss's)."""
    probabilities, ref = jax.nn.softmax(logits), jax.nn.log_softmax(ref_logits)

    def loss(logits):
        return jnp.sum(jax.lax.stop_gradient(probabilities) * estimator(jax.nn.log_softmax(logits), ref))

    return jax.value_and_grad(loss)(logits)


def test_values_by_hand():
    # pi = 1/2, pi_ref = 1/4: d = -log 2.
    new, ref = jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.25]))
    assert float(k1(new, ref)[0]) == pytest.approx(np.log(2))
    assert float(k2(new, ref)[0]) == pytest.approx(np.log(2) ** 2 / 2)
    assert float(k3(new, ref)[0]) == pytest.approx(0.5 - 1 + np.log(2), rel=1e-6)


def test_k1_and_k3_are_unbiased_values_and_k2_is_not():
    logits, ref = distributions(1.0)
    exact = float(kl(logits, ref))
    assert exact > 0.1
    assert float(mean_value_and_gradient(k1, logits, ref)[0]) == pytest.approx(exact, rel=1e-5)
    assert float(mean_value_and_gradient(k3, logits, ref)[0]) == pytest.approx(exact, rel=1e-5)
    assert float(mean_value_and_gradient(k2, logits, ref)[0]) != pytest.approx(exact, rel=1e-2)


def test_k1_as_a_loss_has_zero_mean_gradient():
    logits, ref = distributions(1.0)
    exact = np.asarray(jax.grad(kl)(logits, ref))
    gradient = np.asarray(mean_value_and_gradient(k1, logits, ref)[1])
    assert np.abs(exact).max() > 0.1
    assert np.abs(gradient).max() < 1e-7  # not a small KL gradient: none at all


def test_k1_as_a_loss_averages_out_over_samples():
    # The same by sampling: 200,000 draws leave noise of about 1/450, two hundred times less than the KL's gradient.
    logits, ref = distributions(3.0)
    probabilities = np.asarray(jax.nn.softmax(logits), float)
    draws = np.random.default_rng(1).choice(5, 200_000, p=probabilities / probabilities.sum())
    logp_gradient = np.eye(5)[draws] - probabilities  # gradient of log pi(x), times k1's slope of 1
    exact = np.asarray(jax.grad(kl)(logits, ref))
    assert np.abs(logp_gradient.mean(0)).max() < 0.005 < 0.1 < np.abs(exact).max()


def test_k2_as_a_loss_has_the_gradient_of_the_kl():
    logits, ref = distributions(1.0)
    gradient = mean_value_and_gradient(k2, logits, ref)[1]
    np.testing.assert_allclose(gradient, jax.grad(kl)(logits, ref), atol=1e-6)


def test_k3_as_a_loss_has_the_gradient_of_the_kl_to_first_order():
    relative = []
    for distance in (0.1, 0.01):
        logits, ref = distributions(distance)
        exact = np.asarray(jax.grad(kl)(logits, ref))
        found = np.asarray(mean_value_and_gradient(k3, logits, ref)[1])
        relative.append(np.abs(found - exact).max() / np.abs(exact).max())
    assert relative[0] < 0.2
    assert relative[1] < relative[0] / 5  # the error is of the order of the distance


def test_k3_is_never_negative_and_keeps_its_digits_near_zero():
    new = jnp.full(1000, -2.0)
    ref = new + jnp.linspace(-2e-3, 2e-3, 1000)
    difference = np.asarray(ref, float) - np.asarray(new, float)
    exact = np.expm1(difference) - difference
    found = np.asarray(k3(new, ref))
    assert (found >= 0).all()
    far = np.abs(difference) > 1e-3
    np.testing.assert_allclose(found[far], exact[far], rtol=1e-3)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_equal_policies_have_no_divergence(name):
    same = jnp.log(jnp.array([0.1, 0.9]))
    assert not np.asarray(ESTIMATORS[name](same, same)).any()
