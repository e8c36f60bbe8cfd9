"""Which of the forms of attention a row takes, and the call of it. All compute the same function, to rounding."""

from __future__ import annotations

import jax.numpy as jnp
from jax.sharding import Mesh

from r1jax.model.attention import Chunks, chunked_attention, chunked_latent_attention
from r1jax.model.attention_kernel import kernel_attention, kernel_refusal
from r1jax.model.config import MLAConfig, ModelConfig
from r1jax.model.layers import causal_attention
from r1jax.model.outputs import Context
from r1jax.settings import ConfigError
from r1jax.types import Array


def attention_form(
    cfg: ModelConfig, q_shape: tuple[int, ...], v_dim: int, with_parents: bool, mesh: Mesh | None
) -> str:
    """'plain', 'chunked' or 'kernel' for queries [B, T, N, H]: `cfg.attention_impl`, or what `auto` makes of it.

    with_parents: whether rows have `parent_ids`. Raises ValueError where a kernel is asked for and cannot do this
    attention.
    """
    if cfg.attention_impl in ("plain", "chunked"):
        return cfg.attention_impl
    refusal = kernel_refusal(q_shape, v_dim, with_parents, mesh)
    if cfg.attention_impl == "kernel":
        if refusal:
            raise ValueError(f"attention_impl is 'kernel', but {refusal}; 'chunked' and 'auto' work everywhere")
        return "kernel"
    if q_shape[1] <= min(cfg.attention_query_chunk, cfg.attention_key_chunk):
        return "plain"
    return "chunked" if refusal else "kernel"


def check_attention(cfg: ModelConfig, rows: int, length: int, with_parents: bool, mesh: Mesh | None) -> None:
    """That the model's attention can be computed on rows [rows, length] of all devices: before anything is built.

    Raises ConfigError naming the field where a kernel is asked for and cannot do it.
    """
    attention = cfg.attention
    if isinstance(attention, MLAConfig):
        head_dim, v_dim = attention.qk_nope_head_dim + attention.qk_rope_head_dim, attention.v_head_dim
    else:
        head_dim = v_dim = attention.head_dim
    try:
        attention_form(cfg, (rows, length, attention.num_heads, head_dim), v_dim, with_parents, mesh)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def attention(
    cfg: ModelConfig, mesh: Mesh | None, q: Array, k: Array, v: Array, context: Context, scale: float
) -> Array:
    """Among the tokens of the rows: q [B, T, N, H], k [B, T, K, H], v [B, T, K, Hv] -> [B, T, N, Hv]."""
    form = attention_form(cfg, q.shape, v.shape[-1], context.parent_ids is not None, mesh)
    if form == "kernel":
        return kernel_attention(q, k, v, context.segment_ids, scale, mesh)
    if form == "plain":
        return causal_attention(q, k, v, context.segment_ids, context.parent_ids, scale)
    return chunked_attention(
        q, k, v, context.segment_ids, context.parent_ids, scale, _chunks(cfg), _length_shards(mesh, q.shape[1])
    )


def latent_attention(
    cfg: ModelConfig,
    mesh: Mesh | None,
    q_nope: Array,
    q_pe: Array,
    c_kv: Array,
    k_pe: Array,
    up: Array,
    context: Context,
    scale: float,
) -> Array:
    """MLA among the tokens of the rows (V3 eq. 1-11).

    q_nope, q_pe [B, T, N, *], c_kv [B, T, C], k_pe [B, T, R], up [C, N, nope + v] -> [B, T, N, v].
    """
    q = jnp.concatenate([q_nope, q_pe], axis=-1)
    v_dim = up.shape[-1] - q_nope.shape[-1]
    if attention_form(cfg, q.shape, v_dim, context.parent_ids is not None, mesh) == "chunked":
        shards = _length_shards(mesh, q.shape[1])
        return chunked_latent_attention(
            q, c_kv, k_pe, up, context.segment_ids, context.parent_ids, scale, _chunks(cfg), shards
        )
    k_nope, v = jnp.split(jnp.einsum("btc,cnh->btnh", c_kv, up), [q_nope.shape[-1]], axis=-1)
    k_pe = jnp.broadcast_to(k_pe[:, :, None, :], (*k_nope.shape[:3], k_pe.shape[-1]))
    return attention(cfg, mesh, q, jnp.concatenate([k_nope, k_pe], axis=-1), v, context, scale)


def _chunks(cfg: ModelConfig) -> Chunks:
    return Chunks(query=cfg.attention_query_chunk, key=cfg.attention_key_chunk)


def _length_shards(mesh: Mesh | None, length: int) -> int:
    """Into how many parts the mesh splits rows of this length; one that does not divide stays whole."""
    shards = 1 if mesh is None else mesh.shape["sequence"]
    return 1 if length % shards else shards
