"""The token embedding and the output head, which may share one matrix."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from r1jax.model.config import ModelConfig
from r1jax.model.layers import normal_init, parameter
from r1jax.types import Array, Params


class Embed(nn.Module):
    """The embedding matrix [V, D]; a token's vector is its row."""

    cfg: ModelConfig

    @nn.compact
    def __call__(self) -> Array:
        cfg, shape = self.cfg, (self.cfg.vocab_size, self.cfg.width)
        return parameter(self, "embedding", normal_init(cfg), ("vocab", "embed"), shape, cfg.param_dtype)


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
