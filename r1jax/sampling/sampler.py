"""`Sampler`: compiled prefill and decode programs of one model, one sampling configuration and one batch shape."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from r1jax.model.config import ModelConfig
from r1jax.processes import fill_in_rows, here, own_rows
from r1jax.sampling.decode import Decoder, DecodeState, SamplingConfig
from r1jax.sampling.programs import Programs, rows_together
from r1jax.sampling.stop import stop_table
from r1jax.sharding import (
    batch_sharding,
    batch_shards,
    decoding_mesh,
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


UNUSED = -1  # in place of a row's number: it only fills up a block


@dataclasses.dataclass(frozen=True)
class Block:
    """Rows that are decoded together."""

    state: DecodeState
    rows: np.ndarray  # [B] int, each row's number in the call, or UNUSED

    def after(self, state: DecodeState) -> Block:
        """The same rows in a later state."""
        return dataclasses.replace(self, state=state)

    def live(self) -> np.ndarray:
        """The places in the block of rows that are not done."""
        return np.flatnonzero(~here(self.state.done))

    def write(self, rollout: Rollout) -> None:
        """Copies what was drawn so far to the call's host arrays, as far as it lies on this process's devices."""
        used = self.rows != UNUSED
        rows, state = self.rows[used], self.state
        records: Any = (
            (rollout.response_tokens, state.tokens),
            (rollout.response_lengths, state.lengths),
            (rollout.sampler_logprobs, state.logprobs),
            (rollout.finished, state.done),
            (rollout.experts, state.experts),
        )
        for record, drawn in records:
            if record is not None:
                record[rows] = here(drawn)[used]


class Sampler:
    """Draws responses: `sampler.sample(params, prompts, lengths, keys) -> Rollout`.

    The rows of a call are worked on in blocks of `batch_size`, one compiled shape for all. Every few steps the rows not
    yet done are gathered into as few blocks as hold them. At one `batch_size`, a completion is the same to the last bit
    whatever its neighbours, its place, and the number of rows; another batch_size may differ in the last bits of the
    log-probs (about 2e-6 on a CPU), and so, rarely, in a token.

    Nothing but compiled programs is kept. A program is compiled when it is first needed, or by `warmup`; after that
    nothing compiles again: prompt lengths, response limits and the number of rows are data.

    `Rollout.experts[n, t]` (with `record_experts`) are the choices made when the model processed the token that
    *predicts* response token t: the last prompt token for t = 0, response token t - 1 after that. So they stand where
    the trainer's arrays [R, T] have response token t as the target. They are -1 after the end of the response.
    """

    def __init__(
        self,
        model_cfg: ModelConfig,
        mesh: Mesh | None,
        sampling_cfg: SamplingConfig,
        prompt_width: int,
        batch_size: int,
        token_bytes: Sequence[bytes] | None = None,
        group_size: int = 1,
    ) -> None:
        """Checks the configuration; compiles nothing yet.

        Args:
          model_cfg: the model's configuration.
          mesh: devices; rows and cache are split over its batch axes and the sequence axis. None: one device.
          sampling_cfg: how to draw.
          prompt_width: P, the longest prompt.
          batch_size: B, rows of a block.
          token_bytes: the bytes of every token, for `stop_strings`.
          group_size: G, rows of a call that share their prompt and stand together; the prompt is run once for those of
            them that are on one device.

        Raises:
          ValueError: prompt and response do not fit the model's context; rows do not divide over the mesh, or are no
            whole groups in every process; a stop token or stop string is not possible (see `stop.stop_table`).
        """
        longest = prompt_width + sampling_cfg.max_new_tokens
        if longest > model_cfg.max_positions:
            raise ValueError(
                f"prompt_width {prompt_width} + max_new_tokens {sampling_cfg.max_new_tokens} = {longest} exceeds the "
                f"model's max_positions {model_cfg.max_positions}"
            )
        mesh = None if mesh is None else decoding_mesh(mesh)
        shards = 1 if mesh is None else batch_shards(mesh)
        if batch_size % shards or batch_size % group_size:
            raise ValueError(
                f"batch_size {batch_size} is not a multiple of {shards} parts of the mesh and group_size {group_size}"
            )
        self.model_cfg = model_cfg
        self.cfg = sampling_cfg
        self.mesh = mesh
        self.prompt_width = prompt_width
        self.batch_size = batch_size
        self.group_size = group_size
        table = stop_table(model_cfg.vocab_size, sampling_cfg.stop_tokens, sampling_cfg.stop_strings, token_bytes)
        self._stops = jnp.asarray(table) if mesh is None else replicate(mesh, table)
        # Rows of a block that this process reads; those of a group may be several processes'.
        self._own = np.ones(batch_size, bool) if mesh is None else own_rows(batch_sharding(mesh, 1), batch_size)
        decoder = Decoder(model_cfg, sampling_cfg, mesh, jax.config.jax_default_prng_impl)  # type: ignore[attr-defined]
        together = rows_together(batch_size, mesh, group_size)
        self.abstract = Programs(decoder, prompt_width, batch_size, together, len(table))
        self._programs: dict[tuple[str, int], Any] = {}

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
        finished: Callable[[Rollout, np.ndarray], None] | None = None,
    ) -> Rollout:
        """Draws one response to each prompt.

        Args:
          params: the model's parameters, as `init_params` lays them out.
          prompts: [N, P] int32, left-padded. N is free; a block that is not full costs what a full one does.
          lengths: [N] int32.
          keys: [N] random keys, one per row.
          max_new_tokens: a limit on the response below the configured one.
          finished: called with the rollout so far and the numbers of rows that are done, every row once, while others
            are still drawn; of these rows `response_tokens` and `response_lengths` are final, all else is not. With
            several processes it is told of the rows on this one's devices.

        Returns:
          `Rollout` with host arrays of width L = the configured max_new_tokens. With several processes, all pass and
          get the same.

        Raises:
          ValueError: a prompt is empty or longer than P; a token is outside the vocabulary; the shapes do not match;
            max_new_tokens is outside 1..L. Raised before anything is computed.
        """
        prompts, lengths = np.asarray(prompts, np.int32), np.asarray(lengths, np.int32)
        limit = self.cfg.max_new_tokens if max_new_tokens is None else max_new_tokens
        self._check(prompts, lengths, keys, limit)
        rollout = self._empty(prompts, lengths)
        own = np.resize(self._own, len(prompts))
        told = ~own  # of other processes' rows they are told
        blocks: list[Block] = []
        for blocks in self._steps(params, rollout, keys, limit):
            if finished is not None:
                self._tell(blocks, rollout, told, finished)
        for block in blocks:
            block.write(rollout)
        if finished is not None and not told.all():
            finished(rollout, np.flatnonzero(~told))
        fill_in_rows(own, jax.tree.leaves(rollout.replace(prompt_tokens=None, prompt_lengths=None)))  # type: ignore[attr-defined]
        return rollout

    def lay_out(self, params: Params) -> Params:
        """The parameters where drawing wants them. `sample` does it where it is not done.

        That is where training has them, so that nothing moves, unless `collect_weights` brings all but the experts' to
        every device, or `decoding_mesh` splits a `lora_rank` over fewer devices than training's mesh does.
        """
        if self.mesh is None:
            return params
        return jax.device_put(params, jax.tree.map(lambda x: x.sharding, self.abstract.params))

    def _tell(
        self,
        blocks: list[Block],
        rollout: Rollout,
        told: np.ndarray,
        finished: Callable[[Rollout, np.ndarray], None],
    ) -> None:
        """Tells of rows that are done and were not told of (marked in `told`), a good part of a block at a time, so
        that a large block's tokens do not travel for every row."""
        for block in blocks:
            done = here(block.state.done) & (block.rows != UNUSED)
            new = np.flatnonzero(done)[~told[block.rows[done]]]
            if 8 * len(new) >= np.count_nonzero(self._own):
                rows = block.rows[new]
                rollout.response_tokens[rows] = here(block.state.tokens)[new]
                rollout.response_lengths[rows] = here(block.state.lengths)[new]
                told[rows] = True
                finished(rollout, rows)

    def stream(self, params: Params, prompt: Sequence[int], key: Array) -> Iterator[list[int]]:
        """Draws one response and yields it as it grows: its first token, then what every `regroup` steps add.

        Joined, the tokens are those that `sample` gives this prompt and key at the same `batch_size`. What the first
        `next` raises is what `sample` would.

        Args:
          params: as for `sample`.
          prompt: 1..P token ids, not padded.
          key: one random key.
        """
        prompts, lengths = left_pad([prompt], self.prompt_width)
        self._check(prompts, lengths, key[None], self.cfg.max_new_tokens)
        rollout, sent = self._empty(prompts, lengths), 0
        for (block,) in self._steps(params, rollout, key[None], self.cfg.max_new_tokens):
            block.write(rollout)
            drawn = int(rollout.response_lengths[0])
            yield rollout.response_tokens[0, sent:drawn].tolist()
            sent = drawn

    def _steps(self, params: Params, rollout: Rollout, keys: Array, limit: int) -> Iterator[list[Block]]:
        """Draws `limit` tokens, or until all rows are done; yields the blocks after the first and every `regroup` more.

        rollout: has the prompts, and gets what rows drew that are no longer among the blocks.
        """
        params = self.lay_out(params)
        blocks = self._prefill(params, rollout.prompt_tokens, rollout.prompt_lengths, keys)
        yield blocks
        step, have = 1, next(iter(self.abstract.ends), 1)  # tokens drawn, and the chunk that the caches are made for
        for end in self.abstract.ends:
            while step < min(end, limit) and any(int(block.state.active) for block in blocks):
                blocks = self._regroup(blocks, have, rollout)
                if have != end:
                    blocks = [block.after(self._program("grow", end)(block.state)) for block in blocks]
                    have = end
                step = min(step + self.cfg.regroup, end, limit)
                program, until = self._program("decode", end), np.int32(step)
                blocks = [block.after(program(params, block.state, until, self._stops)) for block in blocks]
                yield blocks

    def warmup(self) -> int:
        """Compiles every program that any call can need, and runs none of them; returns `compile_count`."""
        self._program("prefill", 1)
        for end in self.abstract.ends:
            self._program("decode", end)
            if jax.process_count() == 1:
                self._program("merge", end)
            if end != self.abstract.ends[0]:
                self._program("grow", end)
        return self.compile_count

    def _prefill(self, params: Params, prompts: np.ndarray, lengths: np.ndarray, keys: Array) -> list[Block]:
        key_data = np.asarray(jax.random.key_data(keys))
        prompts = np.where(_real(lengths, self.prompt_width), prompts, 0)  # whatever stands in the padding
        program = self._program("prefill", 1)
        blocks = []
        for first in range(0, len(prompts), self.batch_size):
            rows = np.arange(first, first + self.batch_size)
            rows[rows >= len(prompts)] = UNUSED
            leaders = rows[:: self.abstract.together]
            inputs: Any = (prompts[leaders], lengths[leaders], key_data[rows], rows == UNUSED)
            if self.mesh is not None:
                inputs = shard_batch(self.mesh, inputs)
            blocks.append(Block(program(params, *inputs, self._stops), rows))
        return blocks

    def _regroup(self, blocks: list[Block], end: int, rollout: Rollout) -> list[Block]:
        """The rows not yet done, in as few blocks as hold them; what the other rows drew is written to `rollout`.

        end: the chunk that the blocks' caches are made for.
        """
        live = [block for block in blocks if int(block.state.active)]
        if jax.process_count() == 1:  # with several, a row stays with its process
            wanted = [(place, slot) for place, block in enumerate(live) for slot in block.live()]
            if -(-len(wanted) // self.batch_size) < len(live):
                parts = [wanted[i : i + self.batch_size] for i in range(0, len(wanted), self.batch_size)]
                live = [self._pack(live, part, end) for part in parts]
        if len(live) < len(blocks):
            for block in blocks:
                block.write(rollout)
        return live

    def _pack(self, blocks: list[Block], wanted: list[tuple[int, int]], end: int) -> Block:
        """One block of the `wanted` rows, as (block, row of the block) with the blocks in order."""
        packed, count = blocks[wanted[0][0]], 0
        for place, pairs in itertools.groupby(wanted, key=lambda pair: pair[0]):
            slots = [slot for _, slot in pairs]
            index = np.zeros(self.batch_size, np.int32)
            index[:count] = np.arange(count)
            index[count : count + len(slots)] = self.batch_size + np.array(slots)
            count += len(slots)
            unused = np.arange(self.batch_size) >= count
            rows = np.where(unused, UNUSED, np.concatenate([packed.rows, blocks[place].rows])[index])
            arguments = (index, unused) if self.mesh is None else shard_batch(self.mesh, (index, unused))
            state = self._program("merge", end)(packed.state, blocks[place].state, *arguments)
            packed = Block(state, rows)
        return packed

    def _empty(self, prompts: np.ndarray, lengths: np.ndarray) -> Rollout:
        """A rollout of host arrays in which nothing is drawn yet."""
        count, width, routing = len(prompts), self.cfg.max_new_tokens, self.abstract.decoder.routing
        arrays: dict[str, Any] = {
            "prompt_tokens": prompts,
            "prompt_lengths": lengths,
            "response_tokens": np.zeros((count, width), np.int32),
            "response_lengths": np.zeros((count,), np.int32),
            "sampler_logprobs": np.zeros((count, width), np.float32),
            "finished": np.zeros((count,), bool),
        }
        if routing is not None:
            arrays["experts"] = np.full((count, width, *routing.shape), -1, routing.dtype)
        return Rollout(**arrays)

    def _check(self, prompts: np.ndarray, lengths: np.ndarray, keys: Array, limit: int) -> None:
        vocab = self.model_cfg.vocab_size
        if not 1 <= limit <= self.cfg.max_new_tokens:
            raise ValueError(f"max_new_tokens is {limit}, expected 1..{self.cfg.max_new_tokens}")
        if prompts.ndim != 2 or prompts.shape[1] != self.prompt_width or not len(prompts):
            raise ValueError(f"prompts have shape {prompts.shape}, expected [N, {self.prompt_width}] with N > 0")
        if lengths.shape != prompts.shape[:1] or keys.shape[:1] != prompts.shape[:1]:
            raise ValueError(f"{len(prompts)} prompts, but lengths {lengths.shape} and keys {keys.shape}")
        if str(jax.random.key_impl(keys)) != self.abstract.decoder.key_impl:
            raise ValueError(f"keys are {jax.random.key_impl(keys)} keys, expected {self.abstract.decoder.key_impl}")
        _check_lengths(lengths, self.prompt_width)
        real = np.where(_real(lengths, self.prompt_width), prompts, -1)
        leaders = np.arange(len(prompts)) // self.group_size * self.group_size
        if len(prompts) % self.group_size or (real != real[leaders]).any():
            raise ValueError(f"the {len(prompts)} rows are not groups of {self.group_size} with one prompt each")
        wrong = np.argwhere(_real(lengths, self.prompt_width) & ((prompts < 0) | (prompts >= vocab)))
        if len(wrong):
            row, place = wrong[0]
            raise ValueError(f"prompt of row {row} has token {prompts[row, place]}, outside the vocabulary of {vocab}")

    def _program(self, kind: str, end: int) -> Any:
        """The compiled prefill, decode or grow of the chunk that ends with `end` response tokens."""
        if (kind, end) not in self._programs:
            jitted, arguments = self.abstract.program(kind, end)
            self._programs[kind, end] = jitted.lower(*arguments).compile()
        return self._programs[kind, end]


def _real(lengths: np.ndarray, width: int) -> np.ndarray:
    """[N, width] bool: where left-padded prompts have their tokens."""
    return np.arange(width) >= width - lengths[:, None]
