"""`Sampler`: compiled prefill and decode programs of one model, one sampling configuration and one batch shape."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from jax.sharding import Mesh, NamedSharding

from r1jax.model.cache import Cache, GQACache, LayerCache, MLACache
from r1jax.model.config import ModelConfig
from r1jax.model.transformer import abstract_params
from r1jax.sampling.decode import Decoder, DecodeState, SamplingConfig, cache_slots, chunk_ends, grow
from r1jax.sampling.stop import stop_table
from r1jax.sharding import (
    batch_sharding,
    batch_shards,
    logical_sharding,
    param_shardings,
    replicate,
    shard_batch,
)
from r1jax.types import Array, Params, Rollout


def left_pad(prompts: Sequence[Sequence[int]], width: int, pad: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of unequal length as tokens [B, width] int32, padded on the left, and lengths [B] int32.

    Raises:
      ValueError: a prompt is empty or longer than `width`; names the row, its length and the limit.
    """
    tokens = np.full((len(prompts), width), pad, np.int32)
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    _check_lengths(lengths, width)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = prompt
    return tokens, lengths


def _check_lengths(lengths: np.ndarray, width: int) -> None:
    for row in np.flatnonzero((lengths < 1) | (lengths > width)):
        if lengths[row] < 1:
            raise ValueError(f"prompt of row {row} is empty: a response needs at least one token before it")
        raise ValueError(f"prompt of row {row} has {lengths[row]} tokens, more than the prompt width {width}")


def state_shardings(mesh: Mesh, state: DecodeState) -> DecodeState:
    """Where a decode state lives: its rows, those of the cache included, split over the batch axes of the mesh."""

    def layers(cache: LayerCache | None) -> Any:
        if cache is None:
            return None
        if isinstance(cache, MLACache):
            return jax.tree.map(lambda x: logical_sharding(mesh, (None, "batch", None, None), x.shape), cache)
        names = (None, "batch", "act_kv_heads", None, None)
        return GQACache(k=logical_sharding(mesh, names, cache.k.shape), v=logical_sharding(mesh, names, cache.v.shape))

    def rows(x: Array) -> NamedSharding:
        return batch_sharding(mesh, x.ndim)

    cache = state.cache
    placed = jax.tree.map(rows, state.replace(cache=None))  # type: ignore[attr-defined]
    return placed.replace(
        cache=Cache(dense=layers(cache.dense), moe=layers(cache.moe), start=rows(cache.start), index=rows(cache.index))
    )


class Sampler:
    """Draws responses: `sampler.sample(params, prompts, lengths, keys) -> Rollout`.

    Nothing but compiled programs is kept. A program is compiled when it is first needed, or by `warmup`; after that
    nothing compiles again: prompt lengths, response limits and a batch that is not full are data.

    `Rollout.experts[n, t]` (with `record_experts`) are the choices made when the model processed the token that
    *predicts* response token t: the last prompt token for t = 0, response token t - 1 after that. So they stand where
    the trainer's arrays [R, T] have response token t as the target.
    """

    def __init__(
        self,
        model_cfg: ModelConfig,
        mesh: Mesh | None,
        sampling_cfg: SamplingConfig,
        prompt_width: int,
        batch_size: int,
        token_bytes: Sequence[bytes] | None = None,
    ) -> None:
        """Checks the configuration; compiles nothing yet.

        Args:
          model_cfg: the model's configuration.
          mesh: devices; rows and cache are split over its batch axes. None: one device.
          sampling_cfg: how to draw.
          prompt_width: P, the longest prompt.
          batch_size: B, rows of every call.
          token_bytes: the bytes of every token, for `stop_strings`.

        Raises:
          ValueError: prompt and response do not fit the model's context; rows do not divide over the mesh; a stop
            token or stop string is not possible (see `stop.stop_table`).
        """
        longest = prompt_width + sampling_cfg.max_new_tokens
        if longest > model_cfg.max_positions:
            raise ValueError(
                f"prompt_width {prompt_width} + max_new_tokens {sampling_cfg.max_new_tokens} = {longest} exceeds the "
                f"model's max_positions {model_cfg.max_positions}"
            )
        if mesh is not None and batch_size % batch_shards(mesh):
            raise ValueError(f"batch_size {batch_size} does not divide into the {batch_shards(mesh)} parts of the mesh")
        self.model_cfg = model_cfg
        self.cfg = sampling_cfg
        self.mesh = mesh
        self.prompt_width = prompt_width
        self.batch_size = batch_size
        table = stop_table(model_cfg.vocab_size, sampling_cfg.stop_tokens, sampling_cfg.stop_strings, token_bytes)
        self._stops = jnp.asarray(table) if mesh is None else replicate(mesh, table)
        self._ends = chunk_ends(sampling_cfg)
        self._decoder = Decoder(model_cfg, sampling_cfg, mesh, str(jax.config.jax_default_prng_impl))
        self._programs: dict[tuple[str, int], Any] = {}

    @functools.cached_property
    def _params(self) -> Params:
        """Shapes and shardings of the parameters."""
        boxed = abstract_params(self.model_cfg)
        if self.mesh is None:
            return meta.unbox(boxed)
        return jax.tree.map(_placed, meta.unbox(boxed), param_shardings(self.mesh, boxed))

    @property
    def compile_count(self) -> int:
        """Programs compiled so far."""
        return len(self._programs)

    def sample(
        self,
        params: Params,
        prompts: Array | np.ndarray,
        lengths: Array | np.ndarray,
        keys: Array,
        max_new_tokens: int | None = None,
    ) -> Rollout:
        """Draws one response to each prompt.

        Args:
          params: the model's parameters, of the same shapes and shardings in every call.
          prompts: [N, P] int32, left-padded, N <= batch_size; missing rows are filled up and cost what full ones cost.
          lengths: [N] int32.
          keys: [N] random keys, one per row.
          max_new_tokens: a limit on the response below the configured one.

        Returns:
          `Rollout` with host arrays of width L = the configured max_new_tokens. With several processes, each passes
          and gets its own rows of the batch, which must then be full.

        Raises:
          ValueError: a prompt is empty or longer than P; a token is outside the vocabulary; the shapes do not match;
            max_new_tokens is outside 1..L. Raised before anything is computed.
        """
        prompts, lengths = np.asarray(prompts, np.int32), np.asarray(lengths, np.int32)
        limit = self.cfg.max_new_tokens if max_new_tokens is None else max_new_tokens
        self._check(prompts, lengths, keys, limit)
        if self.mesh is not None:
            params = jax.device_put(params, jax.tree.map(lambda x: x.sharding, self._params))  # mostly there already
        state = self._program("prefill", 1)(params, *self._inputs(prompts, lengths, keys), self._stops)
        for end in self._ends:
            if int(state.step) >= limit or not int(state.active):
                break
            if end != self._ends[0]:
                state = self._program("grow", end)(state)
            state = self._program("decode", end)(params, state, np.int32(limit), self._stops)
        fetch = functools.partial(_local_rows, count=len(prompts))
        return Rollout(
            prompt_tokens=prompts,
            prompt_lengths=lengths,
            response_tokens=fetch(state.tokens),
            response_lengths=fetch(state.lengths),
            sampler_logprobs=fetch(state.logprobs),
            finished=fetch(state.done),
            experts=None if state.experts is None else fetch(state.experts),
        )

    def warmup(self) -> int:
        """Compiles every program that any call can need, and runs none of them; returns `compile_count`."""
        self._program("prefill", 1)
        for end in self._ends:
            self._program("decode", end)
            if end != self._ends[0]:
                self._program("grow", end)
        return self.compile_count

    def _check(self, prompts: np.ndarray, lengths: np.ndarray, keys: Array, limit: int) -> None:
        rows, vocab = self.batch_size // jax.process_count(), self.model_cfg.vocab_size
        if not 1 <= limit <= self.cfg.max_new_tokens:
            raise ValueError(f"max_new_tokens is {limit}, expected 1..{self.cfg.max_new_tokens}")
        if prompts.ndim != 2 or prompts.shape[1] != self.prompt_width or not 1 <= len(prompts) <= rows:
            raise ValueError(f"prompts have shape {prompts.shape}, expected [1..{rows}, {self.prompt_width}]")
        if lengths.shape != prompts.shape[:1] or keys.shape[:1] != prompts.shape[:1]:
            raise ValueError(f"{len(prompts)} prompts, but lengths {lengths.shape} and keys {keys.shape}")
        if len(prompts) < rows and jax.process_count() > 1:
            raise ValueError(f"{len(prompts)} prompts; with several processes each must bring {rows}")
        _check_lengths(lengths, self.prompt_width)
        real = np.arange(self.prompt_width) >= self.prompt_width - lengths[:, None]
        wrong = np.argwhere(real & ((prompts < 0) | (prompts >= vocab)))
        if len(wrong):
            row, place = wrong[0]
            raise ValueError(f"prompt of row {row} has token {prompts[row, place]}, outside the vocabulary of {vocab}")

    def _inputs(self, prompts: np.ndarray, lengths: np.ndarray, keys: Array) -> tuple[Any, ...]:
        """The batch as the prefill takes it: filled up to its full size by copies of row 0 that draw nothing."""
        rows = self.batch_size // jax.process_count()
        source = np.arange(rows)
        source[len(prompts) :] = 0
        key_data = np.asarray(jax.random.key_data(keys))[source]
        real = np.arange(self.prompt_width) >= self.prompt_width - lengths[:, None]
        prompts = np.where(real, prompts, 0)[source]  # whatever stands in the padding
        batch = (prompts, lengths[source], key_data, np.arange(rows) >= len(lengths))
        return batch if self.mesh is None else shard_batch(self.mesh, batch)

    def _abstract_inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        rows = self.batch_size
        key_data = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=self._decoder.key_impl)))
        arrays = (
            jax.ShapeDtypeStruct((rows, self.prompt_width), jnp.int32),
            jax.ShapeDtypeStruct((rows,), jnp.int32),
            jax.ShapeDtypeStruct((rows, *key_data.shape), key_data.dtype),
            jax.ShapeDtypeStruct((rows,), bool),
        )
        if self.mesh is None:
            return arrays
        return tuple(_placed(x, batch_sharding(self.mesh, x.ndim)) for x in arrays)

    def _abstract_state(self, end: int) -> DecodeState:
        """The state in the chunk that ends with `end` response tokens."""
        prefill = functools.partial(self._decoder.prefill, stops=self._stops)
        state = jax.eval_shape(prefill, self._params, *self._abstract_inputs())
        state = jax.eval_shape(functools.partial(grow, slots=cache_slots(self.prompt_width, end)), state)
        if self.mesh is None:
            return state
        return jax.tree.map(_placed, state, state_shardings(self.mesh, state))

    def _program(self, kind: str, end: int) -> Any:
        """The compiled prefill, decode or grow of the chunk that ends with `end` response tokens."""
        if (kind, end) not in self._programs:
            self._programs[kind, end] = self._compile(kind, end)
        return self._programs[kind, end]

    def _compile(self, kind: str, end: int) -> Any:
        after = self._abstract_state(self._ends[0] if kind == "prefill" and self._ends else end)
        shardings = None if self.mesh is None else jax.tree.map(lambda x: x.sharding, after)
        if kind == "prefill":
            jitted = jax.jit(self._decoder.prefill, out_shardings=shardings)
            return jitted.lower(self._params, *self._abstract_inputs(), self._stops).compile()
        if kind == "grow":
            before = self._abstract_state(self._ends[self._ends.index(end) - 1])
            slots = cache_slots(self.prompt_width, end)
            return jax.jit(functools.partial(grow, slots=slots), out_shardings=shardings).lower(before).compile()
        decode = functools.partial(self._decoder.decode_chunk, end=end)
        limit = jax.ShapeDtypeStruct((), jnp.int32)
        jitted = jax.jit(decode, out_shardings=shardings, donate_argnums=1)
        return jitted.lower(self._params, after, limit, self._stops).compile()


def _placed(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _local_rows(x: Array, count: int) -> np.ndarray:
    """The first `count` rows of a batch on the host; of a batch over several processes, the rows of this one."""
    if x.is_fully_addressable:
        return np.asarray(x)[:count]
    shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
