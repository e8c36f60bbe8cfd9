"""One pre-norm transformer block: x += attention(norm(x)); x += ffn(norm(x))."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh

from r1jax.model.cache import LayerCache
from r1jax.model.config import MLAConfig, ModelConfig
from r1jax.model.gqa import GQA
from r1jax.model.layers import GatedMLP, RMSNorm
from r1jax.model.mla import MLA
from r1jax.model.moe import MoE, MoEAux
from r1jax.model.outputs import Context
from r1jax.sharding import constrain
from r1jax.types import Array

ACTIVATIONS = ("batch", "length", "act_embed")


class Block(nn.Module):
    """(x [B, T, D], this layer's cache, context) -> (x, (cache entries, MoE side results)).

    The cache is only read; the caller writes the entries of all layers at once. Entries are None outside of caching,
    so that a scan over layers does not stack what nobody needs.
    """

    cfg: ModelConfig
    mesh: Mesh | None
    use_moe: bool

    @nn.compact
    def __call__(
        self, x: Array, cache: LayerCache | None, context: Context
    ) -> tuple[Array, tuple[LayerCache | None, MoEAux | None]]:
        x = constrain(x, self.mesh, ACTIVATIONS)
        attention: Any = MLA if isinstance(self.cfg.attention, MLAConfig) else GQA
        normed = RMSNorm(self.cfg, self.cfg.norm_eps, name="attn_norm")(x)
        with jax.named_scope("attention"):
            y, entries = attention(self.cfg, self.mesh, name="attn")(normed, context, cache)
        x = x + y
        normed = RMSNorm(self.cfg, self.cfg.norm_eps, name="ffn_norm")(x)
        aux: MoEAux | None = None
        with jax.named_scope("ffn"):
            if self.use_moe:
                ids = context.segment_ids
                y, aux = MoE(self.cfg, self.mesh, name="moe")(normed, ids != 0, ids)
            else:
                y = GatedMLP(self.cfg, self.cfg.ffn_dim, name="mlp")(normed)
        x = constrain(x + y, self.mesh, ACTIVATIONS)
        return x, (None if cache is None else entries, aux)


def block_class(cfg: ModelConfig) -> Any:
    """`Block`, recomputed in the backward pass if the configuration says so."""
    return nn.remat(Block, prevent_cse=False) if cfg.remat == "block" else Block
