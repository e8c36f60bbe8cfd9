"""The explicit decoding cache: it goes into a forward pass and comes out of it.

Slots are shared by all rows: prompts are left-padded to one width, so that every row writes the same slot and the
write is a contiguous update. Row b's token in slot s has position s - start[b].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from r1jax.model.config import MLAConfig, ModelConfig
from r1jax.types import Array


@struct.dataclass
class MLACache:
    """What MLA keeps of a token: the normalized latent and the rotated shared key (V3 section 2.1.1)."""

    c_kv: Array  # [L, B, S, C]
    k_pe: Array  # [L, B, S, R]


@struct.dataclass
class GQACache:
    """Keys (after RoPE) and values. The key's slot axis is last: the layout the CPU multiplies fastest."""

    k: Array  # [L, B, K, H, S]
    v: Array  # [L, B, K, S, H]


LayerCache = MLACache | GQACache


@struct.dataclass
class Cache:
    """Keys and values of all layers so far."""

    dense: LayerCache | None  # of the leading dense layers
    moe: LayerCache | None  # of the layers with experts
    start: Array  # [B] int32, first valid slot; left padding before it
    index: Array  # [] int32, the next slot to write, the same for all rows


def _slot_axes(cache: LayerCache) -> LayerCache:
    """The slot axis of every array."""
    return MLACache(c_kv=2, k_pe=2) if isinstance(cache, MLACache) else GQACache(k=4, v=3)  # type: ignore[arg-type]


def _init_layers(cfg: ModelConfig, layers: int, batch: int, length: int, dtype: jnp.dtype) -> LayerCache | None:
    if layers == 0:
        return None
    att = cfg.attention
    if isinstance(att, MLAConfig):
        lead = (layers, batch, length)
        return MLACache(
            c_kv=jnp.zeros((*lead, att.kv_lora_rank), dtype), k_pe=jnp.zeros((*lead, att.qk_rope_head_dim), dtype)
        )
    lead = (layers, batch, att.num_kv_heads)
    return GQACache(
        k=jnp.zeros((*lead, att.head_dim, length), dtype), v=jnp.zeros((*lead, length, att.head_dim), dtype)
    )


def init_cache(
    cfg: ModelConfig, prompt_lengths: Array, prompt_width: int, length: int, dtype: str = "float32"
) -> Cache:
    """An empty cache of `length` slots for prompts left-padded to `prompt_width`.

    Args:
      cfg: the model's configuration.
      prompt_lengths: [B] int32, real tokens of each prompt.
      prompt_width: P, the slots the prompts will take.
      length: S, slots in all; writing past it is the caller's error and is not noticed on the device.
      dtype: of keys and values.

    Raises:
      ValueError: the prompts do not fit, or `length` exceeds the model's `max_positions`.
    """
    if not prompt_width <= length <= cfg.max_positions:
        raise ValueError(
            f"cache length {length} must be at least the prompt width {prompt_width} "
            f"and at most max_positions {cfg.max_positions}"
        )
    batch = prompt_lengths.shape[0]
    return Cache(
        dense=_init_layers(cfg, cfg.num_dense_layers, batch, length, jnp.dtype(dtype)),
        moe=_init_layers(cfg, cfg.num_moe_layers, batch, length, jnp.dtype(dtype)),
        start=(prompt_width - prompt_lengths).astype(jnp.int32),
        index=jnp.zeros((), jnp.int32),
    )


def _map_layers(cache: Cache, function) -> Cache:  # type: ignore[no-untyped-def]
    return cache.replace(  # type: ignore[attr-defined]
        dense=None if cache.dense is None else function(cache.dense),
        moe=None if cache.moe is None else function(cache.moe),
    )


def cache_length(cache: Cache) -> int:
    """S, the number of slots."""
    layers = cache.moe if cache.dense is None else cache.dense
    return layers.c_kv.shape[2] if isinstance(layers, MLACache) else layers.v.shape[3]  # type: ignore[union-attr]


def grow_cache(cache: Cache, length: int) -> Cache:
    """The same cache with `length` slots, the new ones empty.

    Raises:
      ValueError: `length` is smaller than the present number of slots.
    """
    extra = length - cache_length(cache)
    if extra < 0:
        raise ValueError(f"a cache of {cache_length(cache)} slots cannot grow to {length}")

    def grow(layers: LayerCache) -> LayerCache:
        def pad(x: Array, axis: int) -> Array:
            widths = [(0, 0)] * x.ndim
            widths[axis] = (0, extra)
            return jnp.pad(x, widths)

        return jax.tree.map(pad, layers, _slot_axes(layers))

    return _map_layers(cache, grow)


def take_rows(cache: Cache, rows: Array) -> Cache:
    """The cache of the given rows [B'] only, in that order."""

    def take(layers: LayerCache) -> LayerCache:
        return jax.tree.map(lambda x: jnp.take(x, rows, axis=1), layers)

    return _map_layers(cache, take).replace(start=cache.start[rows])  # type: ignore[attr-defined]


def repeat_rows(cache: Cache, times: int) -> Cache:
    """Every row `times` times, one behind the other. As `take_rows`, but rows of a device stay on it: of rows that are
    looked up by number the compiler cannot know where they are, and brings all of them to every device."""

    def repeat(layers: LayerCache) -> LayerCache:
        return jax.tree.map(lambda x: jnp.repeat(x, times, axis=1), layers)

    return _map_layers(cache, repeat).replace(start=jnp.repeat(cache.start, times))  # type: ignore[attr-defined]


def write_entries(layers: LayerCache | None, entries: LayerCache | None, index: Array) -> LayerCache | None:
    """Writes the entries of T new tokens (T slots in the layers' layout) at slot `index` of every layer and row."""
    if layers is None or entries is None:
        return layers
    return jax.tree.map(
        lambda x, new, axis: jax.lax.dynamic_update_slice_in_dim(x, new.astype(x.dtype), index, axis),
        layers,
        entries,
        _slot_axes(layers),
    )


def after(entry: Array, result: Array) -> Array:
    """`entry` [B, 1, ...], made to depend on `result` [B, 1, ...], which was computed from the cache.

    So the write of the entry comes after the reads, and XLA updates the cache in place; else it copies the cache of a
    stack of one layer in every decode step (it drops `optimization_barrier` before it decides on copies). What is
    added is a zero that XLA does not see through: the bits of a number, shifted out.
    """
    probe = result.reshape(result.shape[0], -1)[:, 0].astype(jnp.float32)
    zero = (jax.lax.bitcast_convert_type(probe, jnp.uint32) >> 31) >> 1
    return entry + zero.astype(entry.dtype).reshape(-1, *(1,) * (entry.ndim - 1))
