"""What blocks keep for the backward pass: the same gradients, less memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model.block import block_class, remat_policy
from r1jax.model.config import REMAT, GQAConfig, ModelConfig, RopeConfig
from r1jax.model.transformer import Transformer, init_params

LENGTH = 128
CFG = ModelConfig(
    vocab_size=16,
    width=16,
    num_dense_layers=8,
    ffn_dim=32,
    attention=GQAConfig(num_heads=2, num_kv_heads=1, head_dim=8),
    rope=RopeConfig(theta=100.0),
    max_positions=LENGTH,
    init_std=0.2,
    attention_impl="chunked",
    attention_query_chunk=32,
    attention_key_chunk=32,
)


def compiled_gradient(cfg: ModelConfig, params: Any) -> Any:
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 16, (2, LENGTH)))
    positions = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)

    def loss(params: Any) -> jax.Array:
        return -jnp.mean(
            jax.nn.log_softmax(Transformer(cfg).apply({"params": params}, tokens, positions).logits)[..., 3]
        )

    return jax.jit(jax.grad(loss)).lower(params).compile()


def compare(policies: tuple[str, ...]) -> dict[str, int]:
    """Asserts equal gradients; returns bytes of temporaries on the device by policy."""
    params, want, memory = init_params(CFG, jax.random.key(0)), None, {}
    for policy in policies:
        compiled = compiled_gradient(dataclasses.replace(CFG, remat=policy), params)
        got = compiled(params)
        want = got if want is None else want
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
        memory[policy] = compiled.memory_analysis().temp_size_in_bytes
        print(policy, memory[policy])
    return memory


def test_keeping_only_block_inputs_changes_no_gradient_and_takes_less_memory() -> None:
    memory = compare(("none", "block"))
    assert memory["block"] < memory["none"] / 2


@pytest.mark.slow  # 10 s; python -m pytest -m slow tests/test_remat.py
def test_every_policy_changes_no_gradient_and_takes_its_place_in_memory() -> None:
    memory = compare(tuple(REMAT))
    assert memory["none"] > memory["dots"] > memory["attention"] > memory["block"] >= memory["offload"]


@pytest.mark.parametrize("policy", [name for name in REMAT if name != "none"])
def test_every_policy_there_is_has_an_implementation(policy: str) -> None:
    assert block_class(dataclasses.replace(CFG, remat=policy)) is not block_class(CFG)
    assert (remat_policy(policy) is None) is (policy == "block")
