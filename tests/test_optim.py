from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from r1jax.algorithms.router_bias import is_router_bias
from r1jax.optim import (
    OptimizerConfig,
    abstract_optimizer,
    global_norm,
    init_optimizer,
    learning_rate_schedule,
    make_optimizer,
)


def params():
    return {
        "mlp": {"kernel": jnp.array([[1.0, -2.0], [3.0, 0.5]])},
        "norm": {"scale": jnp.array([1.0, 1.5])},
        "moe": {"router": {"bias": jnp.array([0.25, -0.25]), "kernel": jnp.array([[0.1, 0.2]])}},
    }


def gradients(seed):
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(generator.normal(size=leaf.shape), jnp.float32), params())


def test_warmup_then_constant():
    rate = learning_rate_schedule(OptimizerConfig(learning_rate=8.0, warmup_steps=4))
    assert [float(rate(t)) for t in range(6)] == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]
    assert float(learning_rate_schedule(OptimizerConfig(learning_rate=8.0))(0)) == 8.0


def test_cosine_and_linear_decay_by_hand():
    common = {"learning_rate": 1.0, "warmup_steps": 2, "stable_steps": 2, "total_steps": 8, "final_fraction": 0.2}
    linear = learning_rate_schedule(OptimizerConfig(schedule="linear", **common))
    np.testing.assert_allclose(
        [float(linear(t)) for t in range(10)], [0.5, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2], rtol=1e-6
    )
    cosine = learning_rate_schedule(OptimizerConfig(schedule="cosine", **common))
    # cos(pi/4) = 0.70711 at a quarter of the decay: 0.2 + 0.8 * (1 + 0.70711) / 2
    np.testing.assert_allclose([float(cosine(t)) for t in (4, 5, 6, 8, 20)], [1, 0.882843, 0.6, 0.2, 0.2], rtol=1e-6)


@pytest.mark.parametrize("norm", [0.5, None])
def test_three_updates_equal_adamw_written_out_in_float64(norm):
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=2, weight_decay=0.3, clip_norm=norm)
    optimizer = make_optimizer(config, is_router_bias)
    value, state = params(), init_optimizer(make_optimizer(config, is_router_bias), params())
    reference = {k: np.asarray(v, np.float64) for k, v in flat(value).items()}
    mean = {k: np.zeros_like(v) for k, v in reference.items()}
    square = {k: np.zeros_like(v) for k, v in reference.items()}
    for step in range(3):
        grads = gradients(step)
        updates, state = optimizer.update(grads, state, value)
        value = jax.tree.map(jnp.add, value, updates)
        g = {k: np.asarray(v, np.float64) for k, v in flat(grads).items() if k != "moe/router/bias"}
        length = np.sqrt(sum(np.sum(v**2) for v in g.values()))
        scale = 1.0 if norm is None else min(1.0, norm / length)
        rate = 0.1 * min(1.0, (step + 1) / 2)
        for k, v in g.items():
            mean[k] = 0.9 * mean[k] + 0.1 * v * scale
            square[k] = 0.95 * square[k] + 0.05 * (v * scale) ** 2
            step_size = (mean[k] / (1 - 0.9 ** (step + 1))) / (np.sqrt(square[k] / (1 - 0.95 ** (step + 1))) + 1e-8)
            decay = 0.0 if k == "norm/scale" else 0.3 * reference[k]
            reference[k] = reference[k] - rate * (step_size + decay)
    for k, v in flat(value).items():
        np.testing.assert_allclose(v, reference[k], rtol=2e-6, atol=1e-7, err_msg=k)


def test_a_frozen_leaf_is_untouched_and_outside_the_norm():
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, clip_norm=1.0), is_router_bias)
    state = init_optimizer(optimizer, params())
    assert not any(leaf.shape == (2,) and "bias" in path for path, leaf in flat(state).items())
    small, huge = gradients(0), gradients(0)
    huge["moe"]["router"]["bias"] = jnp.array([1e9, -1e9])
    first, _ = optimizer.update(small, state, params())
    second, _ = optimizer.update(huge, state, params())
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert not np.any(second["moe"]["router"]["bias"])
    assert float(global_norm(huge, is_router_bias)) == pytest.approx(float(global_norm(small, is_router_bias)))
    assert float(global_norm({"a": jnp.array([3.0]), "b": jnp.array([[4.0]])})) == 5.0


def test_adam_has_no_decay():
    zeros = jax.tree.map(jnp.zeros_like, params())
    for name, moved in (("adam", False), ("adamw", True)):
        optimizer = make_optimizer(OptimizerConfig(name=name, learning_rate=0.1, weight_decay=0.3))
        updates, _ = optimizer.update(zeros, init_optimizer(optimizer, params()), params())
        assert bool(np.any(updates["mlp"]["kernel"])) is moved


def test_moments_are_laid_out_like_their_parameters():
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec())
    tree = {"kernel": jax.device_put(jnp.ones((8, 4)), split), "router": {"bias": jax.device_put(jnp.ones(3), whole)}}
    optimizer = make_optimizer(OptimizerConfig(clip_norm=1.0), is_router_bias)
    state = init_optimizer(optimizer, tree)
    shapes = {leaf.shape: leaf.sharding for leaf in jax.tree.leaves(state)}
    assert shapes == {(8, 4): split, (): whole}
    abstract = abstract_optimizer(optimizer, tree)
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    for got, leaf in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
        assert (got.shape, got.dtype, got.sharding) == (leaf.shape, leaf.dtype, leaf.sharding)
    abstract_params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
    assert jax.tree.leaves(abstract_optimizer(optimizer, abstract_params)) == jax.tree.leaves(abstract)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "lion"}, "name: unknown value 'lion'; allowed: adamw, adam"),
        ({"schedule": "step"}, "schedule: unknown value 'step'; allowed: constant, linear, cosine"),
        ({"schedule": "cosine"}, "total_steps: required by the cosine schedule"),
        ({"schedule": "linear", "total_steps": 5, "warmup_steps": 5}, "total_steps: 5 leaves no step"),
        ({"clip_norm": 0.0}, "clip_norm: must be positive"),
    ],
)
def test_a_wrong_config_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**fields)


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
