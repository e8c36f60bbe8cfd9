"""Prefill and decode as pure functions of an explicit state; `sampler.Sampler` compiles and calls them.

A completion depends on its prompt, the parameters and its own key only: the draw of response token t uses
fold_in(row key, t), and every operation of the model treats rows alike. Rows that are done are computed on (their
tokens are thrown away), so that shapes never change within a chunk.

The loop runs in chunks of steps. The cache has just the slots that its chunk can reach and grows between chunks, since
a decode step reads all of them. `merge` packs the unfinished rows of two blocks into one of the same shape: the same
program then runs on them, and the results stay the same to the last bit, which they would not in a smaller shape.

Letters: B rows, P prompt width, L longest response, V vocabulary, M MoE layers, A active experts.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from r1jax.model.cache import Cache, grow_cache, init_cache, repeat_rows, take_rows
from r1jax.model.config import ModelConfig
from r1jax.model.heads import logits_of, unembedding
from r1jax.model.outputs import Output
from r1jax.model.transformer import Transformer
from r1jax.sampling.logits import sample_token
from r1jax.types import Array, Params


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How responses are drawn. `sampling.sampler.Sampler` compiles one set of programs for each such config."""

    max_new_tokens: int  # L, the longest response; a call may ask for less
    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0
    stop_tokens: tuple[int, ...] = ()  # ids that end a response and are part of it
    stop_strings: tuple[str, ...] = ()  # a response ends with the first token after which its text contains one
    chunk: int = 32  # decode steps between two growths of the cache; each chunk is a program of its own
    regroup: int = 8  # decode steps between two looks at whether the unfinished rows fit into fewer blocks
    record_experts: bool = False
    collect_weights: bool = False  # see `sampling.programs.Programs.params`

    def __post_init__(self) -> None:
        """Raises ValueError naming the field that is out of range."""
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}, expected at least 1")
        for field in ("chunk", "regroup"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}, expected at least 1")
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}, expected 0 (greedy) or more")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}, expected 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, expected more than 0 and at most 1")


@struct.dataclass
class DecodeState:
    """All that decoding carries from step to step. Response arrays are empty (0; experts -1) from `lengths` on."""

    cache: Cache
    key_data: Array  # [B, ...] uint32, data of the row keys
    automaton: Array  # [B] int32, state of the stop automaton
    done: Array  # [B] bool, a stop token or stop string was drawn
    active: Array  # [] int32, rows not done
    step: Array  # [] int32, response tokens drawn so far, the same for all rows
    lengths: Array  # [B] int32, the stop token included
    tokens: Array  # [B, L] int32
    logprobs: Array  # [B, L] float32 of logits / T, untruncated
    experts: Array | None  # [B, L, M, A] int8 or int16: experts[:, t] routed the token that *predicts* token t


def chunk_ends(cfg: SamplingConfig) -> tuple[int, ...]:
    """Response lengths at which the chunks end. The first token comes from the prefill, before any chunk."""
    if cfg.max_new_tokens == 1:
        return ()
    return (*range(1 + cfg.chunk, cfg.max_new_tokens, cfg.chunk), cfg.max_new_tokens)


def cache_slots(prompt_width: int, end: int) -> int:
    """Slots needed until `end` response tokens are drawn: the last one is not fed back."""
    return prompt_width + end - 1


def grow(state: DecodeState, slots: int) -> DecodeState:
    """The same state with a cache of `slots` slots."""
    return state.replace(cache=grow_cache(state.cache, slots))  # type: ignore[attr-defined]


def merge(first: DecodeState, second: DecodeState, rows: Array, unused: Array) -> DecodeState:
    """Rows of two states of the same step and shape, gathered into one.

    rows: [B] int32 into the rows of `first` followed by those of `second`. unused: [B] bool, rows of the result that
    only fill it up. A row's own numbers do not change, and so neither does what it will draw.
    """

    def joined(x: Array, y: Array) -> Array:
        return jnp.concatenate([x, y])[rows]

    def layers(x: Array, y: Array) -> Array:
        return jnp.concatenate([x, y], axis=1)

    a, b = first.cache, second.cache
    cache = Cache(
        dense=jax.tree.map(layers, a.dense, b.dense),
        moe=jax.tree.map(layers, a.moe, b.moe),
        start=jnp.concatenate([a.start, b.start]),
        index=a.index,
    )
    done = joined(first.done, second.done) | unused
    return DecodeState(
        cache=take_rows(cache, rows),
        key_data=joined(first.key_data, second.key_data),
        automaton=joined(first.automaton, second.automaton),
        done=done,
        active=jnp.sum(~done, dtype=jnp.int32),
        step=first.step,
        lengths=joined(first.lengths, second.lengths),
        tokens=joined(first.tokens, second.tokens),
        logprobs=joined(first.logprobs, second.logprobs),
        experts=jax.tree.map(joined, first.experts, second.experts),
    )


@dataclasses.dataclass(frozen=True)
class Decoder:
    """The pure functions of one model under one sampling configuration; everything static is a field."""

    model_cfg: ModelConfig
    cfg: SamplingConfig
    mesh: Mesh | None = None
    key_impl: str = "threefry2x32"

    @property
    def routing(self) -> jax.ShapeDtypeStruct | None:
        """One token's recorded expert choices [M, A], in the smallest type that holds them and -1; None if none are."""
        moe, layers = self.model_cfg.moe, self.model_cfg.num_moe_layers
        if not self.cfg.record_experts or moe is None or layers == 0:
            return None
        return jax.ShapeDtypeStruct((layers, moe.num_active), jnp.int8 if moe.num_experts <= 128 else jnp.int16)

    def prefill(
        self, params: Params, prompts: Array, lengths: Array, key_data: Array, unused: Array, stops: Array
    ) -> DecodeState:
        """Runs the prompts and draws the first response token.

        The B rows are G consecutive ones for each of B / G prompts, and every prompt is run once.

        Args:
          params: the model's parameters.
          prompts: [B / G, P] int32, left-padded.
          lengths: [B / G] int32, real tokens of each prompt, at least 1.
          key_data: [B, ...] uint32, data of one key per row.
          unused: [B] bool, rows that only fill the batch: they draw nothing.
          stops: [S, V] int32, see `stop.stop_table`.
        """
        batch, width = len(unused), prompts.shape[1]
        limit = self.cfg.max_new_tokens
        slots = cache_slots(width, next(iter(chunk_ends(self.cfg)), 1))
        cache = init_cache(self.model_cfg, lengths, width, slots, self.model_cfg.dtype)
        routing = self.routing
        positions = jnp.maximum(jnp.arange(width)[None, :] - cache.start[:, None], 0)
        out = self._forward(params, prompts, positions, cache)
        assert out.cache is not None
        together = batch // len(prompts)
        state = DecodeState(
            cache=repeat_rows(out.cache, together),
            key_data=key_data,
            automaton=jnp.zeros((batch,), jnp.int32),
            done=unused,
            active=jnp.zeros((), jnp.int32),
            step=jnp.zeros((), jnp.int32),
            lengths=jnp.zeros((batch,), jnp.int32),
            tokens=jnp.zeros((batch, limit), jnp.int32),
            logprobs=jnp.zeros((batch, limit), jnp.float32),
            experts=None if routing is None else jnp.full((batch, limit, *routing.shape), -1, routing.dtype),
        )
        experts = jnp.repeat(out.aux.experts[:, :, -1], together, axis=1)
        return self._draw(params, state, jnp.repeat(out.hidden[:, -1], together, axis=0), experts, stops)

    def decode_chunk(self, params: Params, state: DecodeState, limit: Array, stops: Array, end: int) -> DecodeState:
        """Draws tokens until `end` are drawn, or `limit` ([] int32), or all rows are done, whichever comes first."""
        last = jnp.minimum(limit, end)

        def unfinished(state: DecodeState) -> Array:
            return (state.step < last) & (state.active > 0)

        def body(state: DecodeState) -> DecodeState:
            tokens = jax.lax.dynamic_slice_in_dim(state.tokens, state.step - 1, 1, axis=1)
            positions = (state.cache.index - state.cache.start)[:, None]
            out = self._forward(params, tokens, positions, state.cache)
            state = state.replace(cache=out.cache)  # type: ignore[attr-defined]
            return self._draw(params, state, out.hidden[:, -1], out.aux.experts[:, :, -1], stops)

        return jax.lax.while_loop(unfinished, body, state)

    def _forward(self, params: Params, tokens: Array, positions: Array, cache: Cache) -> Output:
        """Feeds tokens [B, T] to the model."""
        model: Any = Transformer(self.model_cfg, self.mesh)
        return model.apply({"params": params}, tokens, positions, cache=cache)

    def _draw(self, params: Params, state: DecodeState, hidden: Array, chosen: Array, stops: Array) -> DecodeState:
        """Draws the next response token from hidden [B, D]; chosen [M, B, A] are the experts behind it."""
        with jax.named_scope("head"):
            logits = logits_of(hidden, unembedding(params, self.model_cfg))
        with jax.named_scope("draw"):
            keys = jax.random.wrap_key_data(state.key_data, impl=self.key_impl)
            keys = jax.vmap(lambda key: jax.random.fold_in(key, state.step))(keys)
            token, logprob = sample_token(logits, keys, self.cfg.temperature, self.cfg.top_k, self.cfg.top_p)
        with jax.named_scope("record"):
            live = ~state.done
            token = jnp.where(live, token, 0)
            automaton = jnp.where(live, stops[state.automaton, token], state.automaton)
            done = state.done | (automaton == stops.shape[0])

            def put(record: Array, value: Array, empty: int) -> Array:
                value = jnp.where(live.reshape(-1, *[1] * (value.ndim - 1)), value.astype(record.dtype), empty)
                return jax.lax.dynamic_update_slice_in_dim(record, value[:, None], state.step, axis=1)

            experts = state.experts
            if experts is not None:
                experts = put(experts, chosen.swapaxes(0, 1), -1)
            return DecodeState(
                cache=state.cache,
                key_data=state.key_data,
                automaton=automaton,
                done=done,
                active=jnp.sum(~done, dtype=jnp.int32),
                step=state.step + 1,
                lengths=state.lengths + live,
                tokens=put(state.tokens, token, 0),
                logprobs=put(state.logprobs, logprob, 0),
                experts=experts,
            )
