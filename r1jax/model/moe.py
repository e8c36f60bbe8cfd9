"""DeepSeekMoE: routed and shared experts, without dropped tokens (V3 section 2.1.2, eq. 12-20; V2 by config).

Letters: B batch, T length, D width, E experts, A active experts per token, F expert width, N tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from r1jax.model.config import ModelConfig, MoEConfig
from r1jax.model.expert_parallel import EXPERT_AXES, sharded_experts
from r1jax.model.grouped import choose_tile_size, routed_experts
from r1jax.model.layers import GatedMLP, normal_init
from r1jax.sharding import constrain
from r1jax.types import Array

SCORING = {"sigmoid": jax.nn.sigmoid, "softmax": jax.nn.softmax}  # of each of config.SCORING


@struct.dataclass
class MoEAux:
    """What a layer reports beside its output. Sums, so that micro-batches and shards add up."""

    load: Array  # [E] float32, assignments of real tokens to each expert
    balance_loss: Array  # [] float32, sum over sequences of V3 eq. 17-20 without alpha
    num_sequences: Array  # [] float32, the sequences in that sum
    experts: Array  # [B, T, A] int32, the experts chosen


class Routing(NamedTuple):
    """Where tokens go."""

    scores: Array  # [..., E] float32, affinities before the selection bias
    experts: Array  # [..., A] int32
    gates: Array  # [..., A] float32


def moe_config(model: ModelConfig) -> MoEConfig:
    """The experts' part of a configuration. Raises ValueError where there is none."""
    cfg = model.moe
    if cfg is None:
        raise ValueError("a model with MoE layers needs the field moe, which is None")
    return cfg


def _top2_sum(grouped: Array) -> Array:
    return jax.lax.top_k(grouped, 2)[0].sum(-1)


def _group_max(grouped: Array) -> Array:
    return grouped.max(-1)


GROUP_SCORES = {"top2_sum": _top2_sum, "max": _group_max}  # of each of config.GROUP_SCORES


def group_limited_topk(scores: Array, cfg: MoEConfig) -> Array:
    """The num_active best experts of the num_active_groups best groups: scores [..., E] -> [..., A] int32.

    Groups are contiguous; a group's score is the sum of its two best (V3) or its best (V2). Experts of the other
    groups are masked with -inf, so that they are never chosen, whatever the sign of the scores. Best first; the lower
    index wins a tie.
    """
    if cfg.num_groups > 1:
        grouped = scores.reshape(*scores.shape[:-1], cfg.num_groups, -1)
        best = jax.lax.top_k(GROUP_SCORES[cfg.group_score](grouped), cfg.num_active_groups)[1]
        keep = jnp.any(best[..., None] == jnp.arange(cfg.num_groups), axis=-2)
        scores = jnp.where(keep[..., None], grouped, -jnp.inf).reshape(scores.shape)
    return jax.lax.top_k(scores, cfg.num_active)[1]


def route(logits: Array, bias: Array | None, cfg: MoEConfig) -> Routing:
    """V3 eq. 13-16: logits [..., E] float32, selection bias [E] -> scores, chosen experts and their gates.

    The bias decides who is chosen and nothing else: the gates are made of the unbiased scores, and no gradient
    reaches it.
    """
    scores = SCORING[cfg.scoring](logits)
    selection = scores if bias is None else scores + bias
    experts = group_limited_topk(jax.lax.stop_gradient(selection), cfg)
    chosen = experts[..., None] == jnp.arange(cfg.num_experts)
    gates = jnp.sum(jnp.where(chosen, scores[..., None, :], 0), axis=-1)
    if cfg.normalize_gates:
        gates = gates / (gates.sum(-1, keepdims=True) + 1e-20)
    return Routing(scores, experts, gates * cfg.routed_scaling)


def expert_load(experts: Array, mask: Array, num_experts: int) -> Array:
    """experts [B, T, A], mask [B, T] bool -> [B, T, E] float32: 1 where a real token is assigned to an expert."""
    chosen = jnp.any(experts[..., None] == jnp.arange(num_experts), axis=-2)
    return (chosen & mask[..., None]).astype(jnp.float32)


def _sum_of_run(values: Array, first: Array, last: Array) -> Array:
    """[B, T, C] of integers >= 0 -> at each position the sum over its run. first, last: [B, T], where runs begin, end.

    Running sums never fall, so that the sum up to the run's end is the least of those at ends to come, and the sum
    before its start the greatest of those behind. Rows stay apart: a sum into segments of the whole batch would bring
    the batch to every device. Exact in float32 up to 2^24 a row.
    """
    running = jnp.cumsum(values, axis=1)
    until = jax.lax.cummin(jnp.where(last[..., None], running, jnp.inf), axis=1, reverse=True)
    return until - jax.lax.cummax(jnp.where(first[..., None], running - values, 0), axis=1)


def sequence_balance_loss(routing: Routing, mask: Array, sequence_ids: Array, cfg: MoEConfig) -> tuple[Array, Array]:
    """The sequence-wise balance loss of V3 eq. 17-20, unscaled: (sum over sequences, number of sequences).

    mask: [B, T] bool, real tokens. sequence_ids: [B, T] int32; a sequence is a run of equal ids within a row.
    With E experts, A active and T_s tokens in sequence s: f_si = E / (A T_s) * (tokens of s that choose i),
    P_si = mean over s of score_i / sum_j score_j, loss_s = sum_i f_si P_si. "Choose" means the A best of the unbiased
    scores where a selection bias exists (as eq. 18 prints it), and the experts in fact chosen where none does (V2).
    """
    experts = routing.scores.shape[-1]
    chosen = jax.lax.top_k(routing.scores, cfg.num_active)[1] if cfg.selection_bias else routing.experts
    changes = sequence_ids[:, 1:] != sequence_ids[:, :-1]
    edge = jnp.ones_like(sequence_ids[:, :1], dtype=bool)
    first, last = jnp.concatenate([edge, changes], axis=1), jnp.concatenate([changes, edge], axis=1)
    assigned = jnp.concatenate([expert_load(chosen, mask, experts), mask[..., None].astype(jnp.float32)], axis=-1)
    per_run = _sum_of_run(assigned, first, last)  # each token sees those of its own sequence
    counts, sizes = per_run[..., :experts], per_run[..., experts]
    share = routing.scores / routing.scores.sum(-1, keepdims=True)
    scale = jnp.where(mask, experts / (cfg.num_active * jnp.maximum(sizes, 1) ** 2), 0)
    num_sequences = jnp.sum(last & (sizes > 0), dtype=jnp.float32)
    return jnp.sum(scale * jnp.sum(counts * share, -1)), num_sequences


def _weight(
    module: nn.Module, name: str, cfg: ModelConfig, shape: tuple[int, ...], axes: tuple[str | None, ...]
) -> Array:
    init: Any = nn.with_logical_partitioning(normal_init(cfg), axes)
    return module.param(name, init, shape, jnp.dtype(cfg.param_dtype)).astype(cfg.dtype)


class Router(nn.Module):
    """x [B, T, D] -> Routing, in float32 whatever the model's type."""

    cfg: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Routing:
        moe = moe_config(self.cfg)
        init: Any = nn.with_logical_partitioning(normal_init(self.cfg), ("embed", None))
        kernel = self.param("kernel", init, (self.cfg.width, moe.num_experts), jnp.float32)
        bias = None
        if moe.selection_bias:
            zeros: Any = nn.with_logical_partitioning(nn.initializers.zeros, (None,))
            bias = jax.lax.stop_gradient(self.param("bias", zeros, (moe.num_experts,), jnp.float32))
        logits = jnp.einsum("btd,de->bte", x.astype(jnp.float32), kernel, precision=jax.lax.Precision.HIGHEST)
        return route(logits, bias, moe)


class Experts(nn.Module):
    """The routed experts: x [B, T, D], experts and gates [B, T, A] -> [B, T, D]."""

    cfg: ModelConfig
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, x: Array, experts: Array, gates: Array) -> Array:
        moe, width = moe_config(self.cfg), self.cfg.width
        into, back = (moe.num_experts, width, moe.expert_dim), (moe.num_experts, moe.expert_dim, width)
        weights = (
            _weight(self, "gate", self.cfg, into, EXPERT_AXES[0]),
            _weight(self, "up", self.cfg, into, EXPERT_AXES[1]),
            _weight(self, "down", self.cfg, back, EXPERT_AXES[2]),
        )
        if self.mesh is not None:
            return sharded_experts(x, experts, gates, weights, moe, self.mesh)
        tile_size = choose_tile_size(experts.size, moe.num_experts, moe.tile_size)
        tokens, chosen, token_gates = (array.reshape(-1, array.shape[-1]) for array in (x, experts, gates))
        return routed_experts(tokens, chosen, token_gates, weights, tile_size).reshape(x.shape)


class MoE(nn.Module):
    """The feed-forward part of an MoE block (V3 eq. 12, without the residual)."""

    cfg: ModelConfig
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, x: Array, mask: Array, sequence_ids: Array) -> tuple[Array, MoEAux]:
        """x [B, T, D], mask [B, T] bool (real tokens), sequence_ids [B, T] int32 -> y [B, T, D] and MoEAux.

        Padding is routed like any token, but takes no part in the load and the balance loss.
        """
        moe = moe_config(self.cfg)
        with jax.named_scope("router"):
            routing = Router(self.cfg, name="router")(x)
            load = expert_load(routing.experts, mask, moe.num_experts).sum((0, 1))
            balance_loss, num_sequences = sequence_balance_loss(routing, mask, sequence_ids, moe)
        with jax.named_scope("experts"):
            y = Experts(self.cfg, self.mesh, name="experts")(x, routing.experts, routing.gates)
            y = constrain(y, self.mesh, ("batch", "length", "act_embed"))
        if moe.num_shared:
            with jax.named_scope("shared"):
                y = y + GatedMLP(self.cfg, moe.num_shared * moe.expert_dim, name="shared")(x)
        return y, MoEAux(load, balance_loss, num_sequences, routing.experts)
