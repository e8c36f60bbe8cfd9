"""The transformer: embedding, a scanned stack of dense blocks, a scanned stack of MoE blocks, head, MTP module.

Axis letters: B batch, T tokens of this call, S cache slots, D width, V vocabulary, M MoE layers, E experts,
A active experts.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta
from jax.sharding import Mesh

from r1jax.model.block import ACTIVATIONS, block_class
from r1jax.model.cache import Cache, LayerCache, cache_length, write_entries
from r1jax.model.config import MLAConfig, ModelConfig
from r1jax.model.heads import Embed, Head, logits_of, look_up
from r1jax.model.layers import RMSNorm
from r1jax.model.moe import MoEAux
from r1jax.model.mtp import MTP
from r1jax.model.outputs import Aux, Context, Output
from r1jax.model.rope import rotation
from r1jax.sharding import constrain, param_shardings
from r1jax.types import Array, Params


class Transformer(nn.Module):
    """`model.apply({"params": params}, tokens, positions, segment_ids, cache) -> Output`."""

    cfg: ModelConfig
    mesh: Mesh | None = None

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        positions: Array,
        segment_ids: Array | None = None,
        cache: Cache | None = None,
        parent_ids: Array | None = None,
    ) -> Output:
        """One forward pass.

        Args:
          tokens: [B, T] int32.
          positions: [B, T] int32, the tokens' places in their sequences, for RoPE.
          segment_ids: [B, T] int32: a token sees what came before it in its row with the same id; 0 is padding. None:
            each row is one segment. Not together with a cache.
          cache: the T tokens are written at slot `cache.index` of every row. T > 1 is a prefill and needs an empty
            cache: the tokens see each other but not the cache. T == 1 is a decode step: the token sees the cached
            slots from `cache.start` on and itself. The MTP module does not run.
          parent_ids: [B, T] int32: a second, earlier segment of the row that a token sees, such as the prompt that
            several responses share; 0: none. The MTP module and the balance loss do not know of it.

        Returns:
          `Output`; its cache is None where none came in.

        Raises:
          ValueError: segment_ids together with a cache, or more tokens than the cache or `max_positions` hold.
        """
        cfg = self.cfg
        context = self.context(tokens, positions, segment_ids, cache).replace(parent_ids=parent_ids)  # type: ignore[attr-defined]
        table = Embed(cfg, name="embed")()
        embedded = constrain(look_up(table, tokens, cfg.dtype, self.mesh), self.mesh, ACTIVATIONS)
        x, dense, _ = self.stack(
            embedded, cache.dense if cache else None, context, cfg.num_dense_layers, "dense_layers"
        )
        x, moe, moe_aux = self.stack(x, cache.moe if cache else None, context, cfg.num_moe_layers, "moe_layers")
        hidden = RMSNorm(cfg, cfg.norm_eps, name="final_norm")(x)
        unembed = table.T if cfg.tied_embeddings else Head(cfg, name="lm_head")()
        aux = stacked_aux(moe_aux, tokens)
        if cfg.mtp_depth and cache is None:
            mtp_hidden, mtp_aux = MTP(cfg, self.mesh, name="mtp")(hidden, embedded, context)
            aux = aux.replace(mtp_hidden=mtp_hidden)  # type: ignore[attr-defined]
            if mtp_aux is not None:
                aux = aux.replace(mtp_balance_loss=mean_balance_loss(mtp_aux), mtp_expert_load=mtp_aux.load)
        if cache is not None:
            cache = cache.replace(  # type: ignore[attr-defined]
                dense=write_entries(cache.dense, dense, cache.index),
                moe=write_entries(cache.moe, moe, cache.index),
                index=cache.index + tokens.shape[1],
            )
        return Output(logits=logits_of(hidden, unembed), hidden=hidden, cache=cache, aux=aux)

    def context(self, tokens: Array, positions: Array, segment_ids: Array | None, cache: Cache | None) -> Context:
        """What all blocks share: rotations and who sees whom."""
        length = tokens.shape[1]
        limit = self.cfg.max_positions if cache is None else cache_length(cache)
        if length > limit:
            raise ValueError(
                f"{length} tokens a row, but {'max_positions' if cache is None else 'the cache'} is {limit}"
            )
        slots = None
        if cache is not None:
            if segment_ids is not None:
                raise ValueError("segment_ids and a cache do not go together: cache.start says where a row begins")
            own = cache.index + jnp.arange(length)
            segment_ids = (own[None, :] >= cache.start[:, None]).astype(jnp.int32)
            if length == 1:
                slot = jnp.arange(cache_length(cache))
                slots = (slot >= cache.start[:, None]) & (slot < cache.index)
        elif segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        att = self.cfg.attention
        dim = att.qk_rope_head_dim if isinstance(att, MLAConfig) else att.head_dim
        return Context(rotation=rotation(positions, dim, self.cfg.rope), segment_ids=segment_ids, slots=slots)

    def stack(
        self, x: Array, cache: LayerCache | None, context: Context, length: int, name: str
    ) -> tuple[Array, LayerCache | None, MoEAux | None]:
        """Runs `length` blocks; the leading axis of their parameters, cache and results is the layer."""
        if length == 0:
            return x, None, None
        scanned = nn.scan(
            block_class(self.cfg),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=length,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, (entries, aux) = scanned(self.cfg, self.mesh, use_moe=name == "moe_layers", name=name)(x, cache, context)
        return x, entries, aux


def mean_balance_loss(aux: MoEAux) -> Array:
    """The balance loss of each layer as a mean over the batch's sequences."""
    return aux.balance_loss / jnp.maximum(aux.num_sequences, 1.0)


def stacked_aux(moe_aux: MoEAux | None, tokens: Array) -> Aux:
    """`Aux` of the main stack; without MoE layers its arrays have no elements."""
    if moe_aux is None:
        return Aux(
            expert_load=jnp.zeros((0, 0)),
            balance_loss=jnp.zeros(()),
            num_sequences=jnp.zeros(()),
            experts=jnp.zeros((0, *tokens.shape, 0), jnp.int32),
        )
    return Aux(
        expert_load=moe_aux.load,
        balance_loss=jnp.sum(mean_balance_loss(moe_aux)),
        num_sequences=moe_aux.num_sequences[0],
        experts=moe_aux.experts,
    )


@functools.lru_cache(maxsize=64)  # tracing a model takes seconds, and many ask
def abstract_params(cfg: ModelConfig) -> Params:
    """The shapes of all parameters, boxed with the names of their axes; nothing is allocated. Not to be changed."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    return jax.eval_shape(Transformer(_without_kernel(cfg)).init, jax.random.key(0), tokens, tokens)["params"]


def _without_kernel(cfg: ModelConfig) -> ModelConfig:
    """The same parameters, on a platform that may have no attention kernel."""
    return dataclasses.replace(cfg, attention_impl="plain")


def init_params(cfg: ModelConfig, key: Array, mesh: Mesh | None = None) -> Params:
    """Random parameters (unboxed), each made in its place on the mesh if there is one."""
    tokens = jnp.zeros((1, 2), jnp.int32)

    def init(key: Array) -> Params:
        return meta.unbox(Transformer(_without_kernel(cfg)).init(key, tokens, tokens)["params"])

    shardings = None if mesh is None else param_shardings(mesh, abstract_params(cfg))
    return jax.jit(init, out_shardings=shardings)(key)


def param_count(cfg: ModelConfig) -> int:
    """Number of parameters, MTP module and router biases included."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(cfg)))
