"""Multi-head latent attention (V3 eq. 1-11), in its expanded and its absorbed form.

Expanded: keys and values are built from the latent, as in training. Absorbed: the up-projections move onto the query
and the output, so that decoding reads only the latent cache. Both compute the same function.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.sharding import Mesh

from r1jax.model.attention_choice import latent_attention
from r1jax.model.cache import MLACache, after
from r1jax.model.config import MLAConfig, ModelConfig
from r1jax.model.layers import Linear, RMSNorm, masked_softmax, normal_init, parameter
from r1jax.model.outputs import Context
from r1jax.model.rope import apply_rope, mla_softmax_scale
from r1jax.sharding import constrain
from r1jax.types import Array

LATENT_NORM_EPS = 1e-6  # of q_a_norm and kv_a_norm, whatever norm_eps says, as in the transformers library


class LatentUp(nn.Module):
    """The kv_b projection's kernel [C, N, nope + v]; the two forms use it differently."""

    cfg: ModelConfig
    shape: tuple[int, int, int]

    @nn.compact
    def __call__(self) -> Array:
        cfg, names = self.cfg, ("lora_rank", "heads", "head_dim")
        kernel = parameter(self, "kernel", normal_init(cfg), names, self.shape, cfg.param_dtype)
        return kernel.astype(jnp.dtype(self.cfg.dtype))


class MLA(nn.Module):
    """x [B, T, D] -> (y [B, T, D], cache entries of the T tokens)."""

    cfg: ModelConfig
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, x: Array, context: Context, cache: MLACache | None) -> tuple[Array, MLACache]:
        att = self.cfg.attention
        assert isinstance(att, MLAConfig)
        q_nope, q_pe = self.query(att, x, context)
        c_kv, k_pe = jnp.split(
            Linear(self.cfg, (att.kv_lora_rank + att.qk_rope_head_dim,), ("embed", "kv_lora"), name="kv_a")(x),
            [att.kv_lora_rank],
            axis=-1,
        )
        c_kv = RMSNorm(self.cfg, LATENT_NORM_EPS, name="kv_a_norm")(c_kv)
        k_pe = apply_rope(k_pe, context.rotation, self.cfg.rope.interleaved)
        up = LatentUp(self.cfg, (att.kv_lora_rank, att.num_heads, att.qk_nope_head_dim + att.v_head_dim), name="kv_b")()
        scale = mla_softmax_scale(att.qk_nope_head_dim + att.qk_rope_head_dim, self.cfg.rope)
        if context.slots is None:
            queries, latent = ("batch", "length", "act_heads", "act_head_dim"), ("batch", "kv_length", "act_latent")
            q_nope, q_pe = (constrain(q, self.mesh, queries) for q in (q_nope, q_pe))
            c_kv, k_pe = (constrain(y, self.mesh, latent) for y in (c_kv, k_pe))
            out = latent_attention(self.cfg, self.mesh, q_nope, q_pe, c_kv, k_pe, up, context, scale)
        else:
            assert cache is not None
            out = absorbed_attention(q_nope, q_pe, c_kv, k_pe, up, cache, context.slots, scale)
            c_kv, k_pe = after(c_kv, out), after(k_pe, out)
        y = Linear(self.cfg, (self.cfg.width,), ("heads", "head_dim", "embed"), num_in_axes=2, name="o")(out)
        return y, MLACache(c_kv=c_kv, k_pe=k_pe)

    def query(self, att: MLAConfig, x: Array, context: Context) -> tuple[Array, Array]:
        """Queries without position [B, T, N, nope] and rotated ones [B, T, N, R]."""
        heads = (att.num_heads, att.qk_nope_head_dim + att.qk_rope_head_dim)
        if att.q_lora_rank is None:
            q = Linear(self.cfg, heads, ("embed", "heads", "head_dim"), name="q")(x)
        else:
            c_q = Linear(self.cfg, (att.q_lora_rank,), ("embed", "q_lora"), name="q_a")(x)
            c_q = RMSNorm(self.cfg, LATENT_NORM_EPS, name="q_a_norm")(c_q)
            q = Linear(self.cfg, heads, ("lora_rank", "heads", "head_dim"), name="q_b")(c_q)
        q_nope, q_pe = jnp.split(q, [att.qk_nope_head_dim], axis=-1)
        return q_nope, apply_rope(q_pe, context.rotation, self.cfg.rope.interleaved)


def absorbed_attention(
    q_nope: Array, q_pe: Array, c_kv: Array, k_pe: Array, up: Array, cache: MLACache, slots: Array, scale: float
) -> Array:
    """One new token per row against the latent cache of one layer: multi-query attention of key width C + R.

    Args:
      q_nope, q_pe: [B, 1, N, *]; c_kv, k_pe: [B, 1, *], the new token's own entries.
      up: [C, N, nope + v].
      cache: c_kv [B, S, C], k_pe [B, S, R], read only: the new token is not in it yet.
      slots: [B, S] bool, visible slots.
      scale: factor of the scores.

    Returns:
      [B, 1, N, v].
    """
    w_k, w_v = jnp.split(up, [q_nope.shape[-1]], axis=-1)
    q_c = jnp.einsum("bnh,cnh->bnc", q_nope[:, 0], w_k)
    q_r = q_pe[:, 0]
    old = jnp.einsum("bnc,bsc->bns", q_c, cache.c_kv.astype(q_c.dtype), preferred_element_type=jnp.float32)
    old += jnp.einsum("bnr,bsr->bns", q_r, cache.k_pe.astype(q_r.dtype), preferred_element_type=jnp.float32)
    own = jnp.einsum("bnc,bsc->bns", q_c, c_kv, preferred_element_type=jnp.float32)
    own += jnp.einsum("bnr,bsr->bns", q_r, k_pe, preferred_element_type=jnp.float32)
    scores = jnp.concatenate([old, own], axis=-1) * scale
    visible = jnp.concatenate([slots, jnp.ones_like(slots[:, :1])], axis=-1)[:, None]
    weights = masked_softmax(scores, visible).astype(q_c.dtype)
    z = jnp.einsum("bns,bsc->bnc", weights[..., :-1], cache.c_kv.astype(q_c.dtype)) + weights[..., -1:] * c_kv
    return jnp.einsum("bnc,cnh->bnh", z, w_v)[:, None]
