"""Frozen values that cross a boundary between rooms of the house; the shape stands beside each field.

Axis letters: B batch, G samples per prompt, N sequences, R packed rows, T row length, P prompt width, L response
width, A active experts per token, M MoE layers.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import struct

Array = jax.Array
HostArray = np.ndarray
Params = Any  # nested dict of arrays, the "params" collection of a Linen module


class Status(enum.Enum):
    """How a grade came about. A broken grader must never look like a bad model."""

    GRADED = "graded"
    UNGRADABLE = "ungradable"  # e.g. the reference answer cannot be parsed, or the tool is missing
    TIMED_OUT = "timed_out"


@dataclasses.dataclass(frozen=True)
class Score:
    """One reward of one completion: `value` counts only when `status` is GRADED; `reason` says why otherwise."""

    value: float
    status: Status = Status.GRADED
    reason: str = ""

    @property
    def graded(self) -> bool:
        """Whether `value` is a grade at all."""
        return self.status is Status.GRADED


@dataclasses.dataclass(frozen=True)
class Example:
    """One question with its reference answer. `metadata` holds what the task's own verifier needs."""

    id: str
    question: str
    answer: str
    task: str
    language: str = "en"  # ISO 639-1 code of the prompt: the target of the language-consistency measure
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    domain: str = ""  # which of the config's reward mixes grades it (`rewards.combine`); empty: the common one


@struct.dataclass
class PackedBatch:
    """Rows of packed documents for next-token training. Position t predicts `targets[:, t]`."""

    tokens: Array  # [R, T] int32
    targets: Array  # [R, T] int32, the next token of the same document; 0 where loss_mask is 0
    segment_ids: Array  # [R, T] int32, 1, 2, ... within a row; 0 is padding
    positions: Array  # [R, T] int32, from 0 in every segment
    loss_mask: Array  # [R, T] float32, 1 where the prediction of targets[:, t] is trained
    parent_ids: Array | None = None  # [R, T] int32, segment of the row that is also seen, before the own one; 0: none


@struct.dataclass
class Rollout:
    """G completions of each of several prompts, as sampled, on the host. Completions of one prompt are consecutive."""

    prompt_tokens: HostArray  # [N, P] int32, left-padded
    prompt_lengths: HostArray  # [N] int32
    response_tokens: HostArray  # [N, L] int32, right-padded; the stop token is part of the response
    response_lengths: HostArray  # [N] int32
    sampler_logprobs: HostArray  # [N, L] float32 of logits/T, untruncated; 0 after the end
    finished: HostArray  # [N] bool, False where the length limit cut the response
    experts: HostArray | None = None  # [N, L, M, A] int8 or int16: the experts that predicted each response token


@struct.dataclass
class PolicyBatch:
    """Packed rows of prompt + response for a policy update. Arrays are aligned with `packed.targets`."""

    packed: PackedBatch  # loss_mask is 1 exactly where the target is a response token
    sequence_ids: Array  # [R, T] int32, index of the response in 0..num_sequences-1; -1 elsewhere
    advantages: Array  # [R, T] float32, the response's advantage on its tokens, 0 elsewhere
    weights: Array  # [R, T] float32, each token's weight in the loss (see algorithms.grpo.token_weights)
    sampler_logprobs: Array  # [R, T] float32
    old_logprobs: Array  # [R, T] float32, trainer log-probs of the policy that sampled
    ref_logprobs: Array  # [R, T] float32
