"""Chunked log-probs: equal to the float64 oracle forward and backward, and never with all logits in memory."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from oracles import grpo_numpy as oracle

from r1jax.algorithms import logprobs as lp
from r1jax.sharding import MeshConfig, logical_sharding, make_mesh

ROWS, LENGTH, WIDTH, VOCAB = 8, 13, 6, 40


def make(seed=0, rows=ROWS, length=LENGTH, width=WIDTH, vocab=VOCAB):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(rows, length, width)).astype(np.float32)
    unembed = rng.normal(size=(width, vocab)).astype(np.float32)
    targets = rng.integers(0, vocab, (rows, length)).astype(np.int32)
    cotangent = rng.normal(size=(rows, length)).astype(np.float32)
    return hidden, unembed, targets, cotangent


def value_and_gradients(hidden, unembed, targets, cotangent, temperature, chunk):
    def loss(hidden, unembed):
        logprobs, entropy = lp.token_logprobs(hidden, unembed, targets, temperature, chunk)
        return jnp.sum(cotangent * logprobs), (logprobs, entropy)

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(hidden, unembed)


def assert_close(actual, expected, tolerance=2e-6):
    scale = np.max(np.abs(expected))
    assert np.max(np.abs(np.asarray(actual, float) - expected)) < tolerance * scale


def check_against_oracle(result, hidden, unembed, targets, cotangent, temperature):
    (_, (logprobs, entropy)), (hidden_bar, unembed_bar) = result
    flat = hidden.reshape(-1, hidden.shape[-1]).astype(float), unembed.astype(float), targets.reshape(-1), temperature
    want_logprobs, want_entropy = oracle.token_logprobs(*flat)
    want_hidden, want_unembed = oracle.token_logprobs_backward(*flat, cotangent.reshape(-1).astype(float))
    assert logprobs.dtype == entropy.dtype == jnp.float32
    assert_close(logprobs, want_logprobs.reshape(targets.shape))
    assert_close(entropy, want_entropy.reshape(targets.shape))
    assert_close(hidden_bar, want_hidden.reshape(hidden.shape))
    assert_close(unembed_bar, want_unembed)


# One chunk; uneven chunks (13 columns by 3 and by 2); one token per row; fewer tokens than rows.
@pytest.mark.parametrize("chunk", [ROWS * LENGTH, 3 * ROWS, 2 * ROWS + 1, ROWS, 1])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_entropy_and_gradients_equal_float64(chunk, temperature):
    case = make()
    result = jax.jit(value_and_gradients, static_argnums=(4, 5))(*case, temperature, chunk)
    check_against_oracle(result, *case, temperature)


def test_batch_sharded_over_rows_equals_the_oracle():
    case = make()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("data",), ()))
    placed = [jax.device_put(x, s) for x, s in zip(case, (rows, whole, rows, rows), strict=True)]
    result = jax.jit(value_and_gradients, static_argnums=(4, 5))(*placed, 0.7, 3 * ROWS)
    assert result[0][1][0].sharding.is_equivalent_to(rows, 2)
    check_against_oracle(result, *case, 0.7)


def test_vocabulary_sharded_over_devices_needs_no_gathered_logits():
    case = make()
    mesh = jax.make_mesh((8,), ("tensor",), axis_types=(AxisType.Auto,))
    whole, columns = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), (None, "tensor")))
    placed = [jax.device_put(x, s) for x, s in zip(case, (whole, columns, whole, whole), strict=True)]
    compiled = jax.jit(value_and_gradients, static_argnums=(4, 5)).lower(*placed, 1.0, 3 * ROWS).compile()
    assert "all-gather" not in compiled.as_text()
    check_against_oracle(compiled(*placed), *case, 1.0)


def test_rows_and_their_length_stay_split_in_every_chunk():
    rows, length, vocab, chunk = 4, 256, 1000, 32  # 8 tokens on each of 4 devices
    case = make(rows=rows, length=length, vocab=vocab)
    mesh = make_mesh(MeshConfig(data=2, sequence=2), jax.devices()[:4])
    split, whole = (logical_sharding(mesh, names) for names in (("batch", "length"), ()))
    placed = [jax.device_put(x, s) for x, s in zip(case, (split, whole, split, split), strict=True)]

    def gradients(hidden, unembed, targets, cotangent):
        def loss(hidden, unembed):
            logprobs, entropy = lp.token_logprobs(hidden, unembed, targets, 0.7, chunk)
            return jnp.sum(cotangent * logprobs), (logprobs, entropy)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(hidden, unembed)

    compiled = jax.jit(gradients).lower(*placed).compile()
    moved = [word for word in ("all-gather", "all-to-all", "collective-permute") if word in compiled.as_text()]
    assert not moved
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * rows * length * vocab / 4 / 2  # half a device's logits
    check_against_oracle(compiled(*placed), *case, 0.7)


def test_chunks_add_their_gradients_up_in_float32():
    """Of a bfloat16 unembedding: 512 chunks of one token, each adding 1 to what a bfloat16 sum would leave at 256."""
    unembed, targets = jnp.zeros((1, 2), jnp.bfloat16), jnp.zeros((1, 512), jnp.int32)
    hidden = jnp.full((1, 512, 1), 2, jnp.bfloat16)
    gradient = jax.grad(lambda u: jnp.sum(lp.token_logprobs(hidden, u, targets, 1.0, 1)[0]))(unembed)
    np.testing.assert_array_equal(gradient, [[512, -512]])  # 2 x (1 - 1/2) of each token, and its negative


def test_hand_worked_uniform_and_two_token_cases():
    # Zero hidden state: uniform over 4, log-prob -log 4, entropy log 4.
    logprobs, entropy = lp.token_logprobs(jnp.zeros((1, 1, 2)), jnp.ones((2, 4)), jnp.array([[2]]))
    assert float(logprobs[0, 0]) == pytest.approx(-math.log(4))
    assert float(entropy[0, 0]) == pytest.approx(math.log(4))
    # Logits (log 3, 0) at T = 0.5: odds 9 to 1.
    hidden, unembed = jnp.array([[[math.log(3)]]]), jnp.array([[1.0, 0.0]])
    logprobs, entropy = lp.token_logprobs(hidden, unembed, jnp.array([[0]]), temperature=0.5)
    assert float(logprobs[0, 0]) == pytest.approx(math.log(0.9), rel=1e-6)
    assert float(entropy[0, 0]) == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1), rel=1e-6)


def test_extreme_logits_stay_finite():
    logprobs, entropy = lp.logits_to_logprobs(jnp.array([[1e4, -1e4, 0.0]]), jnp.array([1]))
    assert float(logprobs[0]) == -2e4
    assert float(entropy[0]) == 0


def test_bfloat16_states_give_float32_logprobs():
    hidden, unembed, targets, _ = make()
    half = [jnp.asarray(x, jnp.bfloat16) for x in (hidden, unembed)]
    logprobs, _ = lp.token_logprobs(*half, targets)
    exact, _ = lp.token_logprobs(*(x.astype(jnp.float32) for x in half), targets)
    assert logprobs.dtype == jnp.float32
    np.testing.assert_allclose(logprobs, exact, atol=1e-5)


def test_entropy_carries_no_gradient():
    hidden, unembed, targets, _ = make()
    gradient = jax.grad(lambda h: jnp.sum(lp.token_logprobs(h, unembed, targets, 1.0, 24)[1]))(hidden)
    assert not np.asarray(gradient).any()


def largest_array(jaxpr) -> int:
    """Elements of the largest array any equation makes, inside scans and other calls as well."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [math.prod(v.aval.shape) for v in equation.outvars if hasattr(v.aval, "shape")]
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            sizes += [largest_array(inner)] if hasattr(inner, "eqns") else []
    return max(sizes)


def test_no_buffer_of_all_logits_forward_or_backward():
    rows, length, vocab, chunk = 4, 256, 1000, 32
    hidden, unembed, targets, cotangent = make(rows=rows, length=length, vocab=vocab)
    everything = rows * length * vocab

    def gradients(size):
        return lambda *args: value_and_gradients(*args, 1.0, size)

    arrays = hidden, unembed, targets, cotangent
    assert largest_array(jax.make_jaxpr(gradients(rows * length))(*arrays).jaxpr) >= everything  # the test can see it
    assert largest_array(jax.make_jaxpr(gradients(chunk))(*arrays).jaxpr) <= chunk * vocab
    memory = {
        size: jax.jit(gradients(size)).lower(*arrays).compile().memory_analysis().temp_size_in_bytes
        for size in (rows * length, chunk)
    }
    assert memory[rows * length] >= 4 * everything
    assert memory[chunk] < 4 * everything / 4


@pytest.mark.parametrize(("temperature", "chunk", "message"), [(0.0, 8, "temperature"), (1.0, 0, "chunk")])
def test_bad_arguments_are_refused(temperature, chunk, message):
    hidden, unembed, targets, _ = make()
    with pytest.raises(ValueError, match=message):
        lp.token_logprobs(hidden, unembed, targets, temperature, chunk)
