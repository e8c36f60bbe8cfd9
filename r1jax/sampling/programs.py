"""The programs of a `Sampler` before they are compiled: their arguments' shapes and places, and the jitted functions.

Nothing here touches a device, so the same programs can be lowered for machines that are not there.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import meta
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from r1jax.model.cache import GQACache, LayerCache, MLACache
from r1jax.model.transformer import abstract_params
from r1jax.sampling.decode import Decoder, DecodeState, cache_slots, chunk_ends, grow, merge
from r1jax.sharding import batch_sharding, batch_shards, logical_sharding, param_shardings
from r1jax.types import Params

MLA_CACHE_AXES = MLACache(
    c_kv=("layers", "batch", "slots", "act_latent"),  # type: ignore[arg-type]
    k_pe=("layers", "batch", "slots", "act_latent"),  # type: ignore[arg-type]
)
GQA_CACHE_AXES = GQACache(
    k=("layers", "batch", "act_kv_heads", "act_head_dim", "slots"),  # type: ignore[arg-type]
    v=("layers", "batch", "act_kv_heads", "slots", "act_head_dim"),  # type: ignore[arg-type]
)


def state_shardings(mesh: Mesh, state: DecodeState) -> DecodeState:
    """Where a decode state lives: its rows, those of the cache included, split over the batch axes of the mesh."""

    def layers(cache: LayerCache | None) -> Any:
        if cache is None:
            return None
        names = MLA_CACHE_AXES if isinstance(cache, MLACache) else GQA_CACHE_AXES
        return jax.tree.map(lambda x, axes: logical_sharding(mesh, axes, x.shape), cache, names)

    placed: Any = jax.tree.map(lambda x: batch_sharding(mesh, x.ndim), state)
    return placed.replace(cache=placed.cache.replace(dense=layers(state.cache.dense), moe=layers(state.cache.moe)))


def rows_together(batch_size: int, mesh: Mesh | None, group_size: int) -> int:
    """Rows of a group that a prefill runs once: all, or those on one device where the batch has fewer on each."""
    return math.gcd(batch_size if mesh is None else batch_size // batch_shards(mesh), group_size)


@dataclasses.dataclass(frozen=True)
class Programs:
    """Prefill, decode, grow and merge of one decoder at one batch shape (letters as in `sampling.decode`)."""

    decoder: Decoder
    prompt_width: int  # P
    batch_size: int  # B
    together: int  # G, rows of one prompt that stand together
    stop_states: int  # S, states of the stop automaton

    @functools.cached_property
    def ends(self) -> tuple[int, ...]:
        """Response lengths at which the chunks end."""
        return chunk_ends(self.decoder.cfg)

    @functools.cached_property
    def params(self) -> Params:
        """Shapes and shardings of the parameters.

        With `collect_weights` those that are not experts' are whole on every device of fsdp and expert: collected once
        for all steps of a call instead of once in each, at the cost of their bytes.
        """
        boxed = abstract_params(self.decoder.model_cfg)
        if self.decoder.mesh is None:
            return meta.unbox(boxed)
        whole = ("embed", "lora_rank") if self.decoder.cfg.collect_weights else ()
        return jax.tree.map(_placed, meta.unbox(boxed), param_shardings(self.decoder.mesh, boxed, whole))

    @functools.cached_property
    def inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Of a prefill: prompts [B / G, P], lengths [B / G], key data [B, ...] and unused rows [B]."""
        rows, mesh = self.batch_size, self.decoder.mesh
        key_data = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=self.decoder.key_impl)))
        arrays = (
            jax.ShapeDtypeStruct((rows // self.together, self.prompt_width), jnp.int32),
            jax.ShapeDtypeStruct((rows // self.together,), jnp.int32),
            jax.ShapeDtypeStruct((rows, *key_data.shape), key_data.dtype),
            jax.ShapeDtypeStruct((rows,), bool),
        )
        if mesh is None:
            return arrays
        return tuple(_placed(x, batch_sharding(mesh, x.ndim)) for x in arrays)

    @functools.cached_property
    def stops(self) -> jax.ShapeDtypeStruct:
        """The stop automaton's table [S, V], whole on every device."""
        mesh = self.decoder.mesh
        sharding = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        shape = (self.stop_states, self.decoder.model_cfg.vocab_size)
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)

    @functools.cached_property
    def _prefilled(self) -> DecodeState:
        return jax.eval_shape(self.decoder.prefill, self.params, *self.inputs, self.stops)

    def state(self, end: int) -> DecodeState:
        """The state in the chunk that ends with `end` response tokens."""
        slots, mesh = cache_slots(self.prompt_width, end), self.decoder.mesh
        state = jax.eval_shape(functools.partial(grow, slots=slots), self._prefilled)
        return state if mesh is None else jax.tree.map(_placed, state, state_shardings(mesh, state))

    def program(self, kind: str, end: int) -> tuple[Any, tuple[Any, ...]]:
        """(jitted function, its abstract arguments) of the chunk that ends with `end` response tokens.

        kind: 'prefill' (of any `end`), 'decode', 'grow' (from the chunk before) or 'merge'.
        """
        after = self.state(self.ends[0] if kind == "prefill" and self.ends else end)
        shardings = None if self.decoder.mesh is None else jax.tree.map(lambda x: x.sharding, after)
        if kind == "prefill":
            jitted = jax.jit(self.decoder.prefill, out_shardings=shardings)
            return jitted, (self.params, *self.inputs, self.stops)
        if kind == "merge":
            unused = self.inputs[-1]
            index = jax.ShapeDtypeStruct(unused.shape, jnp.int32, sharding=unused.sharding)
            return jax.jit(merge, out_shardings=shardings), (after, after, index, unused)
        if kind == "grow":
            before = self.state(self.ends[self.ends.index(end) - 1])
            slots = cache_slots(self.prompt_width, end)
            return jax.jit(functools.partial(grow, slots=slots), out_shardings=shardings), (before,)
        decode = functools.partial(self.decoder.decode_chunk, end=end)
        limit = jax.ShapeDtypeStruct((), jnp.int32)
        return jax.jit(decode, out_shardings=shardings, donate_argnums=1), (self.params, after, limit, self.stops)


def _placed(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
