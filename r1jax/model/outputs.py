"""What a forward pass returns."""

from __future__ import annotations

from flax import struct

from r1jax.model.cache import Cache
from r1jax.model.rope import Rotation
from r1jax.types import Array


@struct.dataclass
class Aux:
    """Side results. M is the number of MoE layers of the main stack; without any, M = E = A = 0."""

    expert_load: Array  # [M, E] float32, assignments of real tokens to each expert
    balance_loss: Array  # [] float32, sequence-wise (V3 eq. 17-20) without alpha: mean over sequences, summed over
    # the MoE layers of the main stack
    num_sequences: Array  # [] float32, sequences in that mean: weight it by this when adding micro-batches up
    experts: Array  # [M, B, T, A] int32, experts chosen for each token
    mtp_hidden: Array | None = None  # [B, T, D]; mtp_hidden[:, t] predicts token t+2 through the shared head
    mtp_balance_loss: Array | None = None  # [] float32, the same of the MTP block
    mtp_expert_load: Array | None = None  # [E] float32, load of the MTP block's experts


@struct.dataclass
class Output:
    """Result of `Transformer`. XLA drops whatever the caller leaves unused."""

    logits: Array  # [B, T, V] float32
    hidden: Array  # [B, T, D] after the final norm
    cache: Cache | None
    aux: Aux


@struct.dataclass
class Context:
    """What every block of a forward pass shares."""

    rotation: Rotation
    segment_ids: Array  # [B, T] int32; 0 is padding
    parent_ids: Array | None = None  # [B, T] int32, a second segment that a token sees; see `types.PackedBatch`
    slots: Array | None = None  # [B, S] bool, cached slots visible to the one new token; None unless decoding
