"""Pieces every block is made of: linear maps, RMSNorm, the SwiGLU MLP and masked softmax attention."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from r1jax.model.config import ModelConfig
from r1jax.types import Array

MASKED_SCORE = -1e30  # finite, so that a row without any visible key gives no NaN
ATTENTION = "attention"  # name, for a remat policy, of what attention's backward pass needs of its forward one


def normal_init(cfg: ModelConfig) -> nn.initializers.Initializer:
    """Normal weights of the configured standard deviation, as V3 section 4.2 initialises every matrix."""
    return nn.initializers.normal(cfg.init_std)


def parameter(
    module: nn.Module,
    name: str,
    init: nn.initializers.Initializer,
    names: tuple[str | None, ...],
    shape: tuple[int, ...],
    dtype: str,
) -> Array:
    """A parameter of `module` whose axes carry logical names. Call it from within a compact method."""
    value: Any = module.param(name, nn.with_logical_partitioning(init, names), shape, jnp.dtype(dtype))
    return value


class Linear(nn.Module):
    """y = x W (+ b), contracting the last `num_in_axes` axes of x with the leading axes of the kernel.

    Attributes:
      out_shape: trailing axes of the result, e.g. (N, H) for a projection to heads.
      names: logical axis name of every kernel axis, inputs first.
    """

    cfg: ModelConfig
    out_shape: tuple[int, ...]
    names: tuple[str | None, ...]
    num_in_axes: int = 1
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.dtype)
        shape = x.shape[x.ndim - self.num_in_axes :] + self.out_shape
        kernel = parameter(self, "kernel", normal_init(cfg), self.names, shape, cfg.param_dtype)
        y = jnp.tensordot(x.astype(dtype), kernel.astype(dtype), axes=self.num_in_axes)
        if self.use_bias:
            names = self.names[self.num_in_axes :]
            bias = parameter(self, "bias", nn.initializers.zeros, names, self.out_shape, cfg.param_dtype)
            y = y + bias.astype(dtype)
        return y


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, computed in float32; the scale comes after casting back, as in HF."""

    cfg: ModelConfig
    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = parameter(self, "scale", nn.initializers.ones, (None,), x.shape[-1:], self.cfg.param_dtype)
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return normed.astype(x.dtype) * scale.astype(x.dtype)


class GatedMLP(nn.Module):
    """SwiGLU: W_down(silu(W_gate x) * W_up x)."""

    cfg: ModelConfig
    dim: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        gate = Linear(self.cfg, (self.dim,), ("embed", "mlp"), name="gate")(x)
        up = Linear(self.cfg, (self.dim,), ("embed", "mlp"), name="up")(x)
        return Linear(self.cfg, (x.shape[-1],), ("mlp", "embed"), name="down")(nn.silu(gate) * up)


def masked_softmax(scores: Array, visible: Array) -> Array:
    """Softmax in float32 over the last axis; hidden entries are exactly 0, also where nothing is visible."""
    weights = jax.nn.softmax(jnp.where(visible, scores.astype(jnp.float32), MASKED_SCORE), axis=-1)
    return jnp.where(jnp.any(visible, axis=-1, keepdims=True), weights, 0.0)


def causal_attention(q: Array, k: Array, v: Array, segment_ids: Array, parent_ids: Array | None, scale: float) -> Array:
    """Attention among the tokens of one segment, each seeing itself and what came before.

    Args:
      q: [B, T, N, H]; k: [B, T, K, H]; v: [B, T, K, Hv]. Key head j serves query heads j*N/K ... (j+1)*N/K - 1.
      segment_ids: [B, T], 0 is padding: it sees nothing, is seen by nothing, and gets a zero output.
      parent_ids: [B, T], a second segment of the row that a token sees (a prompt that several responses share); 0 or
        None: no other.
      scale: factor of the scores.

    Returns:
      [B, T, N, Hv].
    """
    batch, length, heads, head_dim = q.shape
    kv_heads, v_dim = k.shape[2], v.shape[-1]
    # Plain batched matrix products over [T, H]: on a CPU their backward pass takes half the time of one einsum's.
    grouped = q.transpose(0, 2, 1, 3).reshape(batch, kv_heads, heads // kv_heads * length, head_dim)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    scores = jnp.einsum("bkmh,bksh->bkms", grouped, k, preferred_element_type=jnp.float32) * scale
    same = (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids != 0)[:, :, None]
    if parent_ids is not None:
        same |= (parent_ids[:, :, None] == segment_ids[:, None, :]) & (parent_ids != 0)[:, :, None]
    visible = same & jnp.tril(jnp.ones((length, length), bool))
    by_head = scores.reshape(batch, kv_heads, heads // kv_heads, length, length)
    weights = masked_softmax(by_head, visible[:, None, None]).astype(v.dtype).reshape(scores.shape)
    out = jnp.einsum("bkms,bksh->bkmh", weights, v)
    return out.reshape(batch, heads, length, v_dim).transpose(0, 2, 1, 3)
