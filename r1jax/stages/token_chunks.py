"""Losses and log-probs in chunks of tokens, on a mesh: what `algorithms.logprobs`, which knows of none, is given."""

from __future__ import annotations

import jax.numpy as jnp
from jax.sharding import Mesh

from r1jax.algorithms.logprobs import CHUNK
from r1jax.model.heads import unembedding
from r1jax.model.transformer import Transformer
from r1jax.sharding import batch_shards, constrain
from r1jax.types import Array, Params


def collected_unembedding(model: Transformer, params: Params) -> Array:
    """The unembedding [D, V] for all chunks: in one piece but for a vocabulary split over tensor.

    Left as it lies, it would be collected over fsdp for every chunk. In float32, so that the sum of the chunks'
    gradients is rounded once, where the devices' parts of it meet.
    """
    unembed = unembedding(params, model.cfg).astype(jnp.float32)
    return constrain(unembed, model.mesh, ("act_embed", "act_vocab"))


def tokens_at_once(mesh: Mesh | None) -> int:
    """Tokens of all devices in one chunk: CHUNK on each that has tokens of its own."""
    return CHUNK if mesh is None else CHUNK * batch_shards(mesh) * mesh.shape["sequence"]
