"""Grouped-query attention of the Llama, Qwen2 (qkv bias) and Qwen3 (qk norm) families."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.sharding import Mesh

from r1jax.model.attention_choice import attention
from r1jax.model.cache import GQACache, after
from r1jax.model.config import GQAConfig, ModelConfig
from r1jax.model.layers import Linear, RMSNorm, masked_softmax
from r1jax.model.outputs import Context
from r1jax.model.rope import apply_rope
from r1jax.sharding import constrain
from r1jax.types import Array


class GQA(nn.Module):
    """x [B, T, D] -> (y [B, T, D], cache entries of the T tokens)."""

    cfg: ModelConfig
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, x: Array, context: Context, cache: GQACache | None) -> tuple[Array, GQACache]:
        att = self.cfg.attention
        assert isinstance(att, GQAConfig)

        def project(name: str, heads: int, axis: str) -> Array:
            names = ("embed", axis, "head_dim")
            return Linear(self.cfg, (heads, att.head_dim), names, use_bias=att.qkv_bias, name=name)(x)

        q = project("q", att.num_heads, "heads")
        k = project("k", att.num_kv_heads, "kv_heads")
        v = project("v", att.num_kv_heads, "kv_heads")
        if att.qk_norm:
            q = RMSNorm(self.cfg, self.cfg.norm_eps, name="q_norm")(q)
            k = RMSNorm(self.cfg, self.cfg.norm_eps, name="k_norm")(k)
        q = apply_rope(q, context.rotation, self.cfg.rope.interleaved)
        k = apply_rope(k, context.rotation, self.cfg.rope.interleaved)
        scale = att.head_dim**-0.5
        if context.slots is None:
            q = constrain(q, self.mesh, ("batch", "length", "act_heads", "act_head_dim"))
            k, v = (constrain(y, self.mesh, ("batch", "kv_length", "act_kv_heads", "act_head_dim")) for y in (k, v))
            out = attention(self.cfg, self.mesh, q, k, v, context, scale)
        else:
            assert cache is not None
            out = cached_attention(q, k, v, cache, context.slots, scale)
            k, v = after(k, out), after(v, out)
        y = Linear(self.cfg, (self.cfg.width,), ("heads", "head_dim", "embed"), num_in_axes=2, name="o")(out)
        return y, GQACache(k=k.transpose(0, 2, 3, 1), v=v.transpose(0, 2, 1, 3))


def cached_attention(q: Array, k: Array, v: Array, cache: GQACache, slots: Array, scale: float) -> Array:
    """One new token per row against the cache of one layer.

    Args:
      q: [B, 1, N, H]; k, v: [B, 1, K, H], the new token's own entries.
      cache: k [B, K, H, S], v [B, K, S, H], read only: the new token is not in it yet.
      slots: [B, S] bool, visible slots.
      scale: factor of the scores.

    Returns:
      [B, 1, N, H].
    """
    batch, _, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    grouped = q.reshape(batch, kv_heads, heads // kv_heads, head_dim)
    old = jnp.einsum("bkgh,bkhs->bkgs", grouped, cache.k.astype(q.dtype), preferred_element_type=jnp.float32)
    own = jnp.einsum("bkgh,bkh->bkg", grouped, k[:, 0], preferred_element_type=jnp.float32)[..., None]
    scores = jnp.concatenate([old, own], axis=-1) * scale
    visible = jnp.concatenate([slots, jnp.ones_like(slots[:, :1])], axis=-1)[:, None, None]
    weights = masked_softmax(scores, visible).astype(q.dtype)
    out = jnp.einsum("bkgs,bksh->bkgh", weights[..., :-1], cache.v.astype(q.dtype))
    out = out + weights[..., -1:] * v[:, 0, :, None]
    return out.reshape(batch, 1, heads, head_dim)
