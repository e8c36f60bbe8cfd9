"""Attention whose scores never fill [T, T]: blocks of queries against chunks of keys, with an online softmax.

The forward pass keeps, per query, the running maximum, the running sum and the weighted values (Milakov & Gimelshein
1805.02867; Rabe & Staats 2112.05682); the backward pass keeps only the output and the log of that sum, and computes
each block's weights again (FlashAttention, Dao et al. 2205.14135, section 3.1 and algorithm 4). Blocks that lie wholly
above the diagonal are skipped.

For MLA the keys and values of a chunk are built from the latent inside the loop, so that those of a whole row never
exist: at 65,536 tokens and 128 heads of 192 + 128 channels they would be 5 GiB per row and layer in bfloat16.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from r1jax.model.layers import ATTENTION, MASKED_SCORE
from r1jax.types import Array

Expand = Callable[[Any, Any], tuple[Array, Array]]
"""(a chunk of what keys and values are made of, leaves [B, u, ...], and weights) -> k [B, K, u, H], v [B, K, u, Hv]."""


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Tokens of one block: [query, key] float32 scores per row and head are in memory at a time."""

    query: int = 1024
    key: int = 1024

    def __post_init__(self) -> None:
        for field in ("query", "key"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: a chunk of attention holds at least 1 token, got {getattr(self, field)}")


@struct.dataclass
class Places:
    """Where tokens stand and which segments they are of; the leading axes are blocks."""

    index: Array  # [..., c] int32, place in the row
    segment_ids: Array  # [..., B, c]
    parent_ids: Array | None  # [..., B, c]


def chunked_attention(
    q: Array,
    k: Array,
    v: Array,
    segment_ids: Array,
    parent_ids: Array | None,
    scale: float,
    chunks: Chunks,
    shards: int = 1,
) -> Array:
    """`layers.causal_attention` in blocks: same arguments, same result to rounding, no array of T x T elements.

    shards: into how many equal parts the mesh splits the queries' T. Blocks are cut inside these parts, so that the
    queries stay where they are; keys and values should be whole on every one of these devices.
    """
    return _blockwise(_expand_nothing, q, (k, v), (), k.shape[2], segment_ids, parent_ids, scale, chunks, shards)


def chunked_latent_attention(
    q: Array,
    c_kv: Array,
    k_pe: Array,
    up: Array,
    segment_ids: Array,
    parent_ids: Array | None,
    scale: float,
    chunks: Chunks,
    shards: int = 1,
) -> Array:
    """MLA in blocks: keys and values of all heads exist for one chunk of tokens at a time.

    Args:
      q: [B, T, N, nope + R], the part without position first.
      c_kv: [B, T, C]; k_pe: [B, T, R], one for all heads.
      up: [C, N, nope + v].
      segment_ids, parent_ids, scale, chunks, shards: as in `chunked_attention`.

    Returns:
      [B, T, N, v].
    """
    w_k, w_v = jnp.split(up, [q.shape[-1] - k_pe.shape[-1]], axis=-1)
    heads = q.shape[2]
    return _blockwise(
        _expand_latent, q, (c_kv, k_pe), (w_k, w_v), heads, segment_ids, parent_ids, scale, chunks, shards
    )


def _expand_nothing(source: tuple[Array, Array], weights: tuple[()]) -> tuple[Array, Array]:
    k, v = source
    return k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)


def _expand_latent(source: tuple[Array, Array], weights: tuple[Array, Array]) -> tuple[Array, Array]:
    c_kv, k_pe = source
    k_nope = jnp.einsum("buc,cnh->bnuh", c_kv, weights[0])
    k_pe = jnp.broadcast_to(k_pe[:, None], (*k_nope.shape[:3], k_pe.shape[-1]))
    return jnp.concatenate([k_nope, k_pe], axis=-1), jnp.einsum("buc,cnh->bnuh", c_kv, weights[1])


def _blockwise(
    expand: Expand,
    q: Array,
    source: Any,
    weights: Any,
    kv_heads: int,
    segment_ids: Array,
    parent_ids: Array | None,
    scale: float,
    chunks: Chunks,
    shards: int,
) -> Array:
    """Cuts queries [B, T, N, H] and sources (leaves [B, T, ...]) into blocks, attends, and joins the results."""
    batch, length, heads, head_dim = q.shape
    if length % shards:
        raise ValueError(f"{length} tokens a row cannot be split over {shards} devices of the sequence axis")
    query_blocks, key_blocks = -(-length // shards // chunks.query), -(-length // chunks.key)
    queries = _places(segment_ids, parent_ids, shards, query_blocks)
    keys = jax.tree.map(lambda x: x[0], _places(segment_ids, None, 1, key_blocks))
    # [parts, blocks, B, c, N, H] -> [parts, blocks, B, K, N/K, c, H], the form of a plain batched product
    grouped = _cut(q, shards, query_blocks)
    grouped = grouped.reshape(*grouped.shape[:4], kv_heads, heads // kv_heads, head_dim)
    grouped = jnp.moveaxis(grouped, 3, 5)
    sources = jax.tree.map(lambda x: _cut(x, 1, key_blocks)[0], source)
    # By position only: whether segments meet would have to be asked of all devices of the batch.
    needed = queries.index[-1, :, -1] >= keys.index[:, :1]
    attend = jax.vmap(partial(_attend, expand, scale), in_axes=(0, None, None, 0, None, None))
    out = attend(grouped, sources, weights, queries, keys, needed)
    out = jnp.moveaxis(out, 5, 3).reshape(*out.shape[:3], -1, heads, out.shape[-1])  # [parts, blocks, B, c, N, Hv]
    out = jnp.moveaxis(out, 2, 0).reshape(batch, shards, -1, heads, out.shape[-1])[:, :, : length // shards]
    return out.reshape(batch, length, heads, out.shape[-1])


def _cut(array: Array, parts: int, blocks: int) -> Array:
    """[B, T, ...] -> [parts, blocks, B, tokens, ...]; blocks are cut inside parts, and filled up with zeros."""
    batch, length = array.shape[:2]
    own = length // parts
    tokens = -(-own // blocks)  # even blocks waste the fewest filled-up places
    padding = [(0, 0), (0, 0), (0, blocks * tokens - own)] + [(0, 0)] * (array.ndim - 2)
    parted = jnp.pad(array.reshape(batch, parts, own, *array.shape[2:]), padding)
    return jnp.moveaxis(parted.reshape(batch, parts, blocks, tokens, *array.shape[2:]), 0, 2)


def _places(segment_ids: Array, parent_ids: Array | None, parts: int, blocks: int) -> Places:
    """Places of [parts, blocks]; filled-up ones are of segment 0, so nobody sees them."""
    ids = _cut(segment_ids, parts, blocks)
    tokens, own = ids.shape[-1], segment_ids.shape[1] // parts
    starts = own * np.arange(parts)[:, None] + tokens * np.arange(blocks)
    return Places(
        index=jnp.asarray(starts[..., None] + np.arange(tokens), jnp.int32),
        segment_ids=ids,
        parent_ids=None if parent_ids is None else _cut(parent_ids, parts, blocks),
    )


def _visible(queries: Places, keys: Places) -> Array:
    """[B, c, u]: who sees whom, as `layers.causal_attention` says it."""
    ids = keys.segment_ids[:, None, :]
    seen = (queries.segment_ids[:, :, None] == ids) & (ids != 0)
    if queries.parent_ids is not None:
        seen |= (queries.parent_ids[:, :, None] == ids) & (ids != 0)
    return seen & (queries.index[:, None] >= keys.index[None, :])


def _scores(q: Array, k: Array, visible: Array, scale: float) -> Array:
    """[B, K, G, c, u] float32, MASKED_SCORE where hidden."""
    scores = jnp.einsum("bkgch,bkuh->bkgcu", q, k, preferred_element_type=jnp.float32) * scale
    return jnp.where(visible[:, None, None], scores, MASKED_SCORE)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(
    expand: Expand, scale: float, q: Array, source: Any, weights: Any, queries: Places, keys: Places, needed: Array
) -> Array:
    """Attention of n blocks of queries to m chunks of keys.

    Args:
      expand, scale: how keys and values are made of a chunk of `source`, and the scores' factor.
      q: [n, B, K, G, c, H]; source: leaves [m, B, u, ...]; weights: any, for `expand`.
      queries, keys: Places of n and of m blocks.
      needed: [m, n] bool: whether any token of the queries' block may see one of the chunk.

    Returns:
      [n, B, K, G, c, Hv] in the type of the values; 0 where nothing is visible.
    """
    return _attend_forward(expand, scale, q, source, weights, queries, keys, needed)[0]


def _attend_forward(
    expand: Expand, scale: float, q: Array, source: Any, weights: Any, queries: Places, keys: Places, needed: Array
) -> tuple[Array, tuple[Any, ...]]:
    _, v = jax.eval_shape(expand, jax.tree.map(lambda x: x[0], source), weights)

    def key_step(state: tuple[Array, Array, Array], chunk: tuple[Any, Places, Array]) -> tuple[Any, None]:
        part, places, wanted = chunk
        k, v = expand(part, weights)

        def query_step(_: None, block: tuple[Any, ...]) -> tuple[None, Any]:
            q, place, want, state = block

            def add(total: Array, largest: Array, norm: Array) -> tuple[Array, Array, Array]:
                visible = _visible(place, places)
                scores = _scores(q, k, visible, scale)
                new = jnp.maximum(largest, jnp.max(scores, axis=-1))
                unnormalized = jnp.where(visible[:, None, None], jnp.exp(scores - new[..., None]), 0.0)
                fade = jnp.exp(largest - new)
                weighted = jnp.einsum(
                    "bkgcu,bkuh->bkgch", unnormalized.astype(v.dtype), v, preferred_element_type=jnp.float32
                )
                return total * fade[..., None] + weighted, new, norm * fade + jnp.sum(unnormalized, axis=-1)

            return None, jax.lax.cond(want, add, lambda *state: state, *state)

        return jax.lax.scan(query_step, None, (q, queries, wanted, state))[1], None

    empty = (
        jnp.zeros((*q.shape[:-1], v.shape[-1]), jnp.float32),
        jnp.full(q.shape[:-1], MASKED_SCORE, jnp.float32),
        jnp.zeros(q.shape[:-1], jnp.float32),
    )
    (total, largest, norm), _ = jax.lax.scan(key_step, empty, (source, keys, needed))
    out = (total / jnp.where(norm > 0, norm, 1.0)[..., None]).astype(v.dtype)
    log_sum = largest + jnp.log(jnp.where(norm > 0, norm, 1.0))
    out, log_sum = (checkpoint_name(x, ATTENTION) for x in (out, log_sum))
    return out, (q, source, weights, queries, keys, needed, out, log_sum)


def _attend_backward(expand: Expand, scale: float, residuals: tuple[Any, ...], cotangent: Array) -> tuple[Any, ...]:
    q, source, weights, queries, keys, needed, out, log_sum = residuals
    # sum over keys of weight x its cotangent: what the softmax's normalisation takes off (Dao et al., eq. 4)
    offset = jnp.sum(cotangent.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)

    def key_step(sums: tuple[Array, Any], chunk: tuple[Any, Places, Array]) -> tuple[Any, Any]:
        q_bar, weights_bar = sums
        part, places, wanted = chunk
        (k, v), pull = jax.vjp(expand, part, weights)

        def query_step(kv_bar: tuple[Array, Array], block: tuple[Any, ...]) -> tuple[Any, Array]:
            q, out_bar, log_sum, offset, place, want, q_bar = block

            def add(k_bar: Array, v_bar: Array, q_bar: Array) -> tuple[Array, Array, Array]:
                visible = _visible(place, places)
                scores = _scores(q, k, visible, scale)
                weight = jnp.where(visible[:, None, None], jnp.exp(scores - log_sum[..., None]), 0.0)
                product = partial(jnp.einsum, preferred_element_type=jnp.float32)
                weight_bar = product("bkgch,bkuh->bkgcu", out_bar, v)
                score_bar = (weight * (weight_bar - offset[..., None]) * scale).astype(q.dtype)
                v_bar = v_bar + product("bkgcu,bkgch->bkuh", weight.astype(v.dtype), out_bar)
                k_bar = k_bar + product("bkgcu,bkgch->bkuh", score_bar, q)
                return k_bar, v_bar, q_bar + product("bkgcu,bkuh->bkgch", score_bar, k)

            *kv_bar, q_bar = jax.lax.cond(want, add, lambda *bars: bars, *kv_bar, q_bar)
            return tuple(kv_bar), q_bar

        zeros = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
        blocks = (q, cotangent, log_sum, offset, queries, wanted, q_bar)
        (k_bar, v_bar), q_bar = jax.lax.scan(query_step, zeros, blocks)
        source_bar, part_bar = pull((k_bar.astype(k.dtype), v_bar.astype(v.dtype)))
        return (q_bar, jax.tree.map(lambda a, b: a + b, weights_bar, part_bar)), source_bar

    zeros = (jnp.zeros(q.shape, jnp.float32), jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), weights))
    (q_bar, weights_bar), source_bar = jax.lax.scan(key_step, zeros, (source, keys, needed))
    weights_bar = jax.tree.map(lambda bar, w: bar.astype(w.dtype), weights_bar, weights)
    return q_bar.astype(q.dtype), source_bar, weights_bar, None, None, None


_attend.defvjp(_attend_forward, _attend_backward)
