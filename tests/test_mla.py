"""The two forms of multi-head latent attention against each other and against the paper's equations."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model.attention_choice import latent_attention
from r1jax.model.cache import MLACache
from r1jax.model.config import MLAConfig, ModelConfig, RopeConfig
from r1jax.model.mla import absorbed_attention
from r1jax.model.outputs import Context
from r1jax.model.rope import Rotation

B, T, N, NOPE, R, V, C = 3, 7, 2, 6, 4, 5, 8
SCALE = 0.37


def make_inputs(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {
        "q_nope": (B, T, N, NOPE),
        "q_pe": (B, T, N, R),
        "c_kv": (B, T, C),
        "k_pe": (B, T, R),
        "up": (C, N, NOPE + V),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def equations(x: dict[str, np.ndarray], segment_ids: np.ndarray) -> np.ndarray:
    """V3 eq. 1-11, one query at a time, in float64. Padding gives zeros."""
    x = {name: value.astype(np.float64) for name, value in x.items()}
    out = np.zeros((B, T, N, V))
    for b, t, n in np.ndindex(B, T, N):
        seen = [s for s in range(t + 1) if segment_ids[b, s] == segment_ids[b, t] != 0]
        if not seen:
            continue
        keys_values = x["c_kv"][b, seen] @ x["up"][:, n]
        keys = np.concatenate([keys_values[:, :NOPE], x["k_pe"][b, seen]], axis=-1)
        scores = keys @ np.concatenate([x["q_nope"][b, t, n], x["q_pe"][b, t, n]]) * SCALE
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights / weights.sum() @ keys_values[:, NOPE:]
    return out


@pytest.mark.parametrize("impl", ["plain", "chunked"])
def test_expanded_form_equals_the_equations(impl: str) -> None:
    x = make_inputs()
    cfg = ModelConfig(
        vocab_size=8,
        width=8,
        num_dense_layers=1,
        ffn_dim=8,
        attention=MLAConfig(N, None, C, NOPE, R, V),
        rope=RopeConfig(),
        attention_impl=impl,
        attention_query_chunk=3,
        attention_key_chunk=2,
    )
    segment_ids = np.array([[1, 1, 1, 2, 2, 3, 3], [0, 0, 1, 1, 1, 1, 1], [1, 1, 2, 2, 2, 0, 0]])
    context = Context(rotation=Rotation(jnp.zeros(0), jnp.zeros(0)), segment_ids=jnp.asarray(segment_ids))
    got = latent_attention(cfg, None, **x, context=context, scale=SCALE)
    np.testing.assert_allclose(got, equations(x, segment_ids), atol=2e-6)
    assert (np.asarray(got)[segment_ids == 0] == 0).all()


def absorbed(x: dict[str, np.ndarray], cache: MLACache, slots: np.ndarray) -> np.ndarray:
    last = {name: jnp.asarray(x[name][:, -1:]) for name in ("q_nope", "q_pe", "c_kv", "k_pe")}
    return np.asarray(
        absorbed_attention(**last, up=jnp.asarray(x["up"]), cache=cache, slots=jnp.asarray(slots), scale=SCALE)
    )


def test_absorbed_form_equals_the_equations_with_left_padding_and_empty_slots() -> None:
    x = make_inputs(1)
    start = np.array([0, 2, T - 1])  # the last row has nothing but the new token
    segment_ids = (np.arange(T) >= start[:, None]).astype(int)
    length = T + 3
    slot = np.arange(length)
    slots = (slot >= start[:, None]) & (slot < T - 1)
    cache = MLACache(c_kv=jnp.zeros((B, length, C)), k_pe=jnp.zeros((B, length, R)))
    cache = MLACache(
        c_kv=cache.c_kv.at[:, : T - 1].set(x["c_kv"][:, :-1]), k_pe=cache.k_pe.at[:, : T - 1].set(x["k_pe"][:, :-1])
    )
    got = absorbed(x, cache, slots)
    want = equations(x, segment_ids)[:, -1:]
    print(f"absorbed form: largest difference {np.abs(got - want).max():.1e}")
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_hidden_slots_change_nothing_to_the_last_bit() -> None:
    x = make_inputs(2)
    slots = np.arange(T) < np.array([3, 5, 0])[:, None]
    caches = []
    for seed in (3, 4):
        rng = np.random.default_rng(seed)
        hidden = {"c_kv": rng.normal(size=(B, T, C)) * 1e3, "k_pe": rng.normal(size=(B, T, R)) * 1e3}
        caches.append(
            MLACache(**{k: jnp.where(slots[..., None], x[k], v).astype(jnp.float32) for k, v in hidden.items()})
        )
    np.testing.assert_array_equal(absorbed(x, caches[0], slots), absorbed(x, caches[1], slots))
