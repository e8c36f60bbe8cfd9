"""The token embedding and the output head, which may share one matrix."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from r1jax.model.config import ModelConfig
from r1jax.model.layers import normal_init, parameter
from r1jax.sharding import axes_of, logical_sharding
from r1jax.types import Array, Params


class Embed(nn.Module):
    """The embedding matrix [V, D]; a token's vector is its row."""

    cfg: ModelConfig

    @nn.compact
    def __call__(self) -> Array:
        cfg, shape = self.cfg, (self.cfg.vocab_size, self.cfg.width)
        return parameter(self, "embedding", normal_init(cfg), ("vocab", "embed"), shape, cfg.param_dtype)


def look_up(table: Array, tokens: Array, dtype: str, mesh: Mesh | None) -> Array:
    """The vectors [B, T, D] of tokens [B, T] in a table [V, D], as `dtype`.

    On a mesh every device has some columns of the table, and some of its rows where a tensor axis splits those. It
    looks up the tokens of all devices that share the columns, and each gets back the vectors of its own: what moves is
    what was asked for, where the compiler would bring the whole table or all vectors to every device.
    """
    if mesh is None:
        return table[tokens].astype(dtype)
    columns, rows = axes_of("embed"), axes_of("vocab")

    def shard(table: Array, tokens: Array) -> Array:
        asked = jax.lax.all_gather(tokens, columns) - jax.lax.axis_index(rows) * table.shape[0]
        found = (asked >= 0) & (asked < table.shape[0])
        vectors = jnp.where(found[..., None], table[jnp.where(found, asked, 0)], 0).astype(dtype)
        return jax.lax.psum(jax.lax.all_to_all(vectors, columns, 0, 3, tiled=True)[0], rows)

    specs = (logical_sharding(mesh, names).spec for names in (("vocab", "embed"), ("batch", "length")))
    result = logical_sharding(mesh, ("batch", "length", "act_embed")).spec
    return jax.shard_map(shard, mesh=mesh, in_specs=tuple(specs), out_specs=result)(table, tokens)


class Head(nn.Module):
    """The output matrix [D, V] of an untied model."""

    cfg: ModelConfig

    @nn.compact
    def __call__(self) -> Array:
        cfg, shape = self.cfg, (self.cfg.width, self.cfg.vocab_size)
        return parameter(self, "kernel", normal_init(cfg), ("embed", "vocab"), shape, cfg.param_dtype)


def unembedding(params: Params, cfg: ModelConfig) -> Array:
    """The matrix [D, V] that turns hidden states into logits: the head, or the transposed embedding if tied."""
    return params["embed"]["embedding"].T if cfg.tied_embeddings else params["lm_head"]["kernel"]


def logits_of(hidden: Array, unembed: Array) -> Array:
    """[..., D] and [D, V] -> float32 logits [..., V]."""
    return jnp.einsum("...d,dv->...v", hidden, unembed.astype(hidden.dtype), preferred_element_type=jnp.float32)
