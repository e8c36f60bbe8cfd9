"""The multi-token prediction module of depth 1 (V3 eq. 21-25)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.sharding import Mesh

from r1jax.model.block import block_class
from r1jax.model.config import ModelConfig
from r1jax.model.layers import Linear, RMSNorm
from r1jax.model.moe import MoEAux
from r1jax.model.outputs import Context
from r1jax.types import Array


class MTP(nn.Module):
    """From the state at t and the embedding of token t+1, a state that predicts token t+2.

    The order of the concatenation is [embedding; hidden], which the released weights want (the paper writes the
    other one), and `hidden` is the main stack's output after its final norm, as in released serving code.
    """

    cfg: ModelConfig
    mesh: Mesh | None

    @nn.compact
    def __call__(self, hidden: Array, embedded: Array, context: Context) -> tuple[Array, MoEAux | None]:
        """hidden, embedded [B, T, D] (embedded[:, t] of token t) -> ([B, T, D], the block's MoE side results).

        The last token of a segment has no successor: it is treated as padding, and its result means nothing.
        """
        following = jnp.roll(embedded, -1, axis=1)
        ids = context.segment_ids
        has_next = (ids == jnp.roll(ids, -1, axis=1)) & (jnp.arange(ids.shape[1]) < ids.shape[1] - 1)
        normed = [
            RMSNorm(self.cfg, self.cfg.norm_eps, name="embed_norm")(following),
            RMSNorm(self.cfg, self.cfg.norm_eps, name="hidden_norm")(hidden),
        ]
        x = Linear(self.cfg, (self.cfg.width,), (None, "embed"), name="proj")(jnp.concatenate(normed, axis=-1))
        block = block_class(self.cfg, scanned=False)(
            self.cfg, self.mesh, use_moe=self.cfg.num_moe_layers > 0, name="block"
        )
        x, (_, aux) = block(x, None, context.replace(segment_ids=jnp.where(has_next, ids, 0)))  # type: ignore[attr-defined]
        return RMSNorm(self.cfg, self.cfg.norm_eps, name="norm")(x), aux
