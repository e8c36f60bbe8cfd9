"""Next-token and multi-token-prediction losses on packed rows, as sums and counts.

A loss here is a sum over tokens, and the stage divides by the token count of the whole batch: so the number of
micro-batches or devices cannot change it.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from r1jax.algorithms.logprobs import CHUNK, logits_to_logprobs, map_token_chunks, project, token_logprobs
from r1jax.algorithms.masked import masked_sum
from r1jax.types import PackedBatch

Array = jax.Array
Metrics = dict[str, Array]


def next_token_loss(hidden: Array, unembed: Array, packed: PackedBatch, chunk: int = CHUNK) -> tuple[Array, Metrics]:
    """Sum over trained positions of -log p(target), in nats.

    hidden [R, T, D] after the final norm, unembed [D, V]. Returns (loss_sum, metrics); metrics, all sums that add up
    over micro-batches: ce_sum (the loss), ce_tokens (trained positions), entropy_sum (of the predictions).
    The mean loss of a batch is its loss_sum / its ce_tokens, both added over all micro-batches first.
    """
    logprobs, entropy = token_logprobs(hidden, unembed, packed.targets, 1.0, chunk)
    loss = -masked_sum(logprobs, packed.loss_mask)
    tokens = jnp.sum(packed.loss_mask)
    return loss, {"ce_sum": loss, "ce_tokens": tokens, "entropy_sum": masked_sum(entropy, packed.loss_mask)}


def second_next(packed: PackedBatch) -> tuple[Array, Array]:
    """What position t predicts two tokens on: (targets [R, T] int32, mask [R, T] float32).

    The target of t is token t + 2, which is the next-token target of t + 1; it counts where t and t + 1 lie in one
    segment and t + 1's prediction is trained. The last column never counts.
    """
    ids, targets = packed.segment_ids, packed.targets
    chex.assert_equal_shape([ids, targets, packed.loss_mask])
    same = (ids[:, :-1] == ids[:, 1:]) & (ids[:, 1:] != 0)
    mask = jnp.where(same, packed.loss_mask[:, 1:], 0.0)
    return jnp.pad(targets[:, 1:], ((0, 0), (0, 1))), jnp.pad(mask, ((0, 0), (0, 1)))


def mtp_loss(mtp_hidden: Array, unembed: Array, packed: PackedBatch, chunk: int = CHUNK) -> tuple[Array, Metrics]:
    """Sum of -log p(token t + 2) from the multi-token-prediction module, in nats (V3 eq. 24, depth 1).

    mtp_hidden [R, T, D] after the module's norm, whose position t predicts token t + 2 of the same segment through the
    shared unembed [D, V]. V3 normalises this sum by T, the main loss's count, not by its own, smaller, number of
    targets: total = (next_token loss_sum + lambda * mtp loss_sum) / ce_tokens.
    Metrics are sums: mtp_sum, mtp_tokens (its own targets, for a mean to report), mtp_correct (how often the
    module's most probable token is the target; ties count).
    """
    targets, mask = second_next(packed)
    chex.assert_shape(mtp_hidden, (*targets.shape, unembed.shape[0]))
    unembed = unembed.astype(jnp.float32)  # the type in which the chunks' gradients add up

    def function(hidden: Array, targets: Array) -> tuple[Array, Array]:
        logits = project(hidden, unembed)
        logprobs, _ = logits_to_logprobs(logits, targets)
        logits = jax.lax.stop_gradient(logits)
        best = jnp.max(logits, axis=-1) - jax.nn.logsumexp(logits, axis=-1)  # a max vectorizes on the CPU, argmax not
        return logprobs, (logprobs >= best).astype(jnp.float32)

    logprobs, correct = map_token_chunks(function, (mtp_hidden, targets), chunk)
    loss = -masked_sum(logprobs, mask)
    return loss, {"mtp_sum": loss, "mtp_tokens": jnp.sum(mask), "mtp_correct": masked_sum(correct, mask)}


def mtp_acceptance(
    mtp_hidden: Array, hidden: Array, unembed: Array, packed: PackedBatch, chunk: int = CHUNK
) -> Metrics:
    """How often speculative decoding would keep the module's second token (V3 section 5.4.3: 85-90 %).

    The draft of token t + 2 from mtp_hidden[:, t] is set against the main model's own distribution of it,
    hidden[:, t + 1], given the true token t + 1. Both [R, T, D], without gradient. Sums: accept_greedy (both have one
    most probable token), accept_sampled (sum over v of min(p(v), q(v)), the acceptance rate of speculative sampling at
    temperature 1), accept_tokens (their count).
    """
    _, mask = second_next(packed)
    main = jnp.pad(hidden[:, 1:], ((0, 0), (0, 1), (0, 0)))

    def function(draft: Array, main: Array) -> tuple[Array, Array]:
        q, p = project(draft, unembed), project(main, unembed)
        greedy = jnp.argmax(q, axis=-1) == jnp.argmax(p, axis=-1)
        overlap = jnp.sum(jnp.minimum(jax.nn.softmax(q), jax.nn.softmax(p)), axis=-1)
        return greedy.astype(jnp.float32), overlap

    # Two projections are in work at once, so half the tokens fit.
    tokens = max(1, chunk // 2)
    arrays = (jax.lax.stop_gradient(mtp_hidden), jax.lax.stop_gradient(main))
    greedy, overlap = map_token_chunks(function, arrays, tokens)
    return {
        "accept_greedy": masked_sum(greedy, mask),
        "accept_sampled": masked_sum(overlap, mask),
        "accept_tokens": jnp.sum(mask),
    }
