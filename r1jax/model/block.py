"""One pre-norm transformer block: x += attention(norm(x)); x += ffn(norm(x))."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh

from r1jax.model.cache import LayerCache
from r1jax.model.config import MLAConfig, ModelConfig
from r1jax.model.gqa import GQA
from r1jax.model.layers import ATTENTION, GatedMLP, RMSNorm
from r1jax.model.mla import MLA
from r1jax.model.moe import MoE, MoEAux
from r1jax.model.outputs import Context
from r1jax.sharding import constrain
from r1jax.types import Array

ACTIVATIONS = ("batch", "length", "act_embed")
BLOCK_INPUT = "block_input"  # name for remat policies


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
        x = checkpoint_name(constrain(x, self.mesh, ACTIVATIONS), BLOCK_INPUT)
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


def block_class(cfg: ModelConfig, scanned: bool = True) -> Any:
    """`Block`, of which the backward pass finds what `cfg.remat` keeps and computes the rest again.

    scanned: a loop over layers keeps the two computations apart by itself; elsewhere the compiler must be told not to
    merge them again.
    """
    if cfg.remat == "none":
        return Block
    return nn.remat(Block, policy=remat_policy(cfg.remat), prevent_cse=not scanned)


def remat_policy(name: str) -> Any:
    """The `jax.checkpoint` policy behind a key of `model.config.REMAT`; None keeps the block's input alone."""
    policies = jax.checkpoint_policies
    return {
        "dots": policies.checkpoint_dots_with_no_batch_dims,
        "attention": policies.save_only_these_names(ATTENTION),
        "block": None,
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[BLOCK_INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    }[name]
