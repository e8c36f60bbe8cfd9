"""The sign rule of the selection bias, and which parameters it concerns."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algorithms.router_bias import is_router_bias, load_max_over_mean, update_router_bias


def test_overloaded_experts_lose_and_underloaded_gain_by_hand():
    # Layer 0: mean 4; loads 7, 4, 1. Layer 1: all equal.
    bias = jnp.array([[0.1, 0.2, 0.3], [0.0, 0.0, 0.5]])
    load = jnp.array([[7, 4, 1], [5, 5, 5]])
    expected = [[0.099, 0.2, 0.301], [0.0, 0.0, 0.5]]
    np.testing.assert_allclose(update_router_bias(bias, load, 0.001), expected, rtol=1e-6)


def test_rate_zero_and_no_tokens_leave_the_bias():
    bias = jnp.array([[0.1, -0.2]])
    np.testing.assert_array_equal(update_router_bias(bias, jnp.array([[9.0, 1.0]]), 0.0), bias)
    np.testing.assert_array_equal(update_router_bias(bias, jnp.zeros((1, 2)), 0.1), bias)


def test_rule_balances_a_skewed_router():
    # Eight experts, top-2 of noise plus a fixed preference: without the bias the first experts take nearly all.
    rng = np.random.default_rng(0)
    preference = np.linspace(1.0, -1.0, 8)
    bias, history = jnp.zeros(8), []
    for _ in range(300):
        scores = 1 / (1 + np.exp(-(preference + 0.5 * rng.normal(size=(256, 8)))))
        chosen = np.argsort(-(scores + np.asarray(bias)), axis=1)[:, :2]
        load = jnp.asarray(np.bincount(chosen.reshape(-1), minlength=8), jnp.float32)
        history.append(float(load_max_over_mean(load)))
        bias = update_router_bias(bias, load, 0.005)
    assert history[0] > 2
    assert np.mean(history[-50:]) < 1.3


def test_load_max_over_mean_by_hand():
    load = jnp.array([[4, 0, 0, 0], [1, 1, 1, 1], [3, 1, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(load_max_over_mean(load), [4, 1, 3, 1])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (("moe_layers", "moe", "router", "bias"), True),
        (("mtp", "block", "moe", "router", "bias"), True),
        ("moe_layers/moe/router/bias", True),
        (("moe_layers", "moe", "router", "kernel"), False),
        (("moe_layers", "attn", "q", "bias"), False),  # Qwen2's projection bias is trained
        (("bias",), False),
    ],
)
def test_router_bias_paths(path, expected):
    assert is_router_bias(path) is expected


def test_router_bias_is_found_in_a_parameter_tree():
    tree = {"moe_layers": {"moe": {"router": {"bias": 0, "kernel": 0}}, "attn": {"q": {"bias": 0}}}}
    found = jax.tree_util.tree_map_with_path(lambda path, _: is_router_bias(path), tree)
    assert found == {"moe_layers": {"moe": {"router": {"bias": True, "kernel": False}}, "attn": {"q": {"bias": False}}}}
