from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from r1jax.algorithms.router_bias import is_router_bias
from r1jax.checkpoint import CheckpointStore
from r1jax.optim import (
    OptimizerConfig,
    abstract_optimizer,
    global_norm,
    init_optimizer,
    learning_rate_schedule,
    make_optimizer,
)
from r1jax.stages.state import Accumulated, GradientAccumulator


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


def rounded(x):
    """To bfloat16, by another library than the code's."""
    return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)


def test_bfloat16_moments_are_changed_in_float32_and_rounded_once():
    fields = {"learning_rate": 0.1, "name": "adam", "clip_norm": None}
    optimizer = make_optimizer(OptimizerConfig(mu_dtype="bfloat16", nu_dtype="bfloat16", **fields))
    value = {"kernel": jnp.ones(64, jnp.bfloat16)}
    state = init_optimizer(optimizer, value)
    update = jax.jit(optimizer.update)
    mean, square = np.zeros(64, np.float32), np.zeros(64, np.float32)
    for step in range(4):
        grads = np.random.default_rng(step).normal(size=64).astype(np.float32)
        updates, state = update({"kernel": grads}, state, value)
        mean, square = 0.9 * mean + 0.1 * grads, 0.95 * square + 0.05 * grads**2
        step_size = mean / (1 - 0.9 ** (step + 1)) / (np.sqrt(square / (1 - 0.95 ** (step + 1))) + 1e-8)
        np.testing.assert_allclose(updates["kernel"], -0.1 * step_size, rtol=1e-5)
        mean, square = rounded(mean), rounded(square)
        stored = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (64,)]
        for leaf, want in zip(stored, (mean, square), strict=True):
            assert leaf.dtype == jnp.bfloat16
            np.testing.assert_allclose(leaf.astype(np.float32), want, rtol=2**-8)  # a tie may fall either way
        mean, square = (np.asarray(leaf, np.float32) for leaf in stored)


def test_moments_are_float32_unless_asked_whatever_the_parameters_are():
    optimizer = make_optimizer(OptimizerConfig())
    state = optimizer.init({"kernel": jnp.ones(3, jnp.bfloat16)})
    assert {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.shape} == {jnp.dtype("float32")}


def test_master_weights_add_up_what_bfloat16_parameters_would_lose():
    """At 1.0 bfloat16 numbers are 2^-8 apart below: 20 steps of 1e-4 vanish one by one and move the master by 0.002."""
    moved = {}
    for master in (False, True):
        optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-4, name="adam", master_weights=master))
        value = {"kernel": jnp.array([1.0, -1.0, 0.25], jnp.bfloat16), "bias": jnp.zeros(2, jnp.bfloat16)}
        state = init_optimizer(optimizer, value)

        @jax.jit
        def step(value, state, optimizer=optimizer):
            updates, state = optimizer.update({"kernel": jnp.ones(3), "bias": -jnp.ones(2)}, state, value)
            return optax.apply_updates(value, updates), state

        for _ in range(20):
            value, state = step(value, state)
        moved[master] = value["kernel"]
        assert value["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(moved[False], np.float32), [1.0, -1.0, 0.25])
    copies = flat(state)
    (kernel,) = (leaf for path, leaf in copies.items() if path.endswith("master/kernel"))
    np.testing.assert_allclose(kernel, [0.998, -1.002, 0.248], rtol=1e-6)  # Adam's steps are 1 under one gradient
    np.testing.assert_array_equal(moved[True], kernel.astype(jnp.bfloat16))


def test_master_weights_of_float32_parameters_are_refused():
    with pytest.raises(ValueError, match="master_weights: the parameters are float32 themselves"):
        make_optimizer(OptimizerConfig(master_weights=True)).init({"kernel": jnp.ones(2)})


def test_a_state_in_host_memory_changes_no_bit_and_survives_a_checkpoint(tmp_path):
    mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    split, whole = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec())
    tree = {"kernel": jnp.ones((8, 4), jnp.bfloat16), "router": {"bias": jnp.ones(3, jnp.bfloat16)}}
    tree = jax.device_put(tree, {"kernel": split, "router": {"bias": whole}})
    fields = {"learning_rate": 0.1, "mu_dtype": "bfloat16", "nu_dtype": "bfloat16", "master_weights": True}
    results = {}
    for memory in ("device", "host"):
        optimizer = make_optimizer(OptimizerConfig(memory=memory, **fields), is_router_bias)
        state, value = init_optimizer(optimizer, tree), tree
        update = jax.jit(optimizer.update, donate_argnums=1)
        for step in range(2):
            grads = jax.tree.map(lambda x, step=step: jnp.sin(jnp.arange(x.size).reshape(x.shape) + step), tree)
            updates, state = update(grads, state, value)
            value = optax.apply_updates(value, updates)
        kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state) if leaf.ndim}
        assert kinds == {"pinned_host" if memory == "host" else "device"}
        results[memory] = value, state
    jax.tree.map(np.testing.assert_array_equal, results["host"], results["device"])
    store = CheckpointStore(tmp_path)
    store.save(2, state)
    _, restored, _ = store.restore(abstract_optimizer(optimizer, tree))
    for got, want in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert (got.dtype, got.sharding.memory_kind) == (want.dtype, want.sharding.memory_kind)
        np.testing.assert_array_equal(got, want)


def test_host_memory_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr("r1jax.optim.HOST_MEMORY", "tape")
    optimizer = make_optimizer(OptimizerConfig(memory="host"))
    with pytest.raises(ValueError, match=r"memory: 'host' needs memory of kind 'tape', and cpu devices have \["):
        init_optimizer(optimizer, params())


def test_gradients_of_micro_batches_add_up_in_float32():
    """300 gradients of 1 are 300; a bfloat16 sum stays at 256."""

    def one(value):
        grads = jax.grad(lambda v: jnp.sum(v["kernel"].astype(jnp.float32)))(value)
        return Accumulated(grads=grads, sums={}, maxima={}, load=jnp.zeros(1), mtp_load=None)

    accumulate, total = GradientAccumulator(one, {"kernel": jnp.zeros(2, jnp.bfloat16)}), None
    for _ in range(300):
        total = accumulate(total, {"kernel": jnp.zeros(2, jnp.bfloat16)})
    np.testing.assert_array_equal(total.grads["kernel"], [300, 300])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mu_dtype": "float16"}, "mu_dtype: unknown value 'float16'; allowed: float32, bfloat16"),
        ({"memory": "disk"}, "memory: unknown value 'disk'; allowed: device, host"),
        ({"nu_dtype": "bfloat16", "b2": 0.999}, "nu_dtype: bfloat16 rounds away the small steps of b2 = 0.999"),
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
