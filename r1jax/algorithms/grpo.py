"""Group relative policy optimization (GRPO) and its relatives, from rewards to one scalar loss.

    advantages = group_advantages(rewards [P, G], config)                     A_i = (r_i - mean r) / std r
    weights    = token_weights(lengths [N], config.aggregation, constant)     what one token of response i counts
    loss       = sum over tokens of weight * (-policy_objective + beta * KL)  grpo_loss

The weights carry every normalization. They are computed once for a whole mini-batch, so neither packing, the number of
micro-batches nor that of devices can change the loss: partial sums simply add up.

Two forms of GRPO are in print. R1 (eq. 1) writes one ratio per response and no length normalization; DeepSeekMath
(2402.03300 eq. 3) a ratio per token and 1/|o_i|. `r1` is the latter, the one that is specified far enough to be run.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from r1jax.algorithms.kl import k1, k2, k3
from r1jax.algorithms.masked import masked_max, response_mean, response_sum, spread_to_tokens, weighted_sum
from r1jax.types import PolicyBatch

Array = jax.Array
Metrics = dict[str, Array]

AdvantageKind = Literal["group_std", "group_mean"]
RatioKind = Literal["token", "sequence", "sequence_token"]
AggregationKind = Literal["response_mean", "token_mean", "constant"]
ImportanceKind = Literal["none", "token", "token_mask", "sequence", "sequence_mask"]
KLKind = Literal["k2", "k3"]

CHOICES: Mapping[str, tuple[str, ...]] = {
    "advantage": get_args(AdvantageKind),
    "ratio": get_args(RatioKind),
    "aggregation": get_args(AggregationKind),
    "importance_correction": get_args(ImportanceKind),
    "kl_estimator": get_args(KLKind),
}


@dataclasses.dataclass(frozen=True)
class GRPOConfig:
    """One policy-gradient algorithm of the GRPO family. The defaults are the preset `r1`."""

    clip_low: float = 10.0
    """Ratios below 1 - clip_low get no gradient when the advantage is negative. R1 stage 1: 10 (R1v2 3.2)."""
    clip_high: float = 10.0
    """Ratios above 1 + clip_high get no gradient when the advantage is positive. R1: 10; DAPO "clip-higher": 0.28."""
    kl_coefficient: float = 0.001
    """beta of the KL term, in the loss and not in the reward (R1v2 2.1, A.3). 0 leaves the term out."""
    kl_estimator: KLKind = "k3"
    """R1 eq. 2 is k3. k1 is refused: as a loss term its mean gradient on-policy is zero (see kl.py)."""
    advantage: AdvantageKind = "group_std"
    """group_std: (r - mean) / std (R1 eq. 3); group_mean: r - mean (Dr.GRPO, 2503.20783)."""
    std_eps: float = 1e-6
    """Added to the population standard deviation (ddof 0). R1 states neither: an r1jax default."""
    ratio: RatioKind = "token"
    """token: pi/pi_old of each token (DeepSeekMath eq. 3); sequence: its geometric mean over the response, and
    sequence_token: that value with each token's own gradient (GSPO and GSPO-token, 2507.18071)."""
    aggregation: AggregationKind = "response_mean"
    """response_mean: 1/|o_i|, then the mean over responses (DeepSeekMath eq. 3); token_mean: over all tokens (DAPO,
    2503.14476); constant: sum over tokens / constant, then the mean over responses (Dr.GRPO)."""
    importance_correction: ImportanceKind = "none"
    """Weight for sampler/trainer mismatch, w = pi_old,trainer / pi_sampler without gradient, on the policy term. token:
    min(w, cap) per token (truncated importance sampling); token_mask: w inside [1/cap, cap], else 0; sequence and
    sequence_mask: the same with the product over the response."""
    importance_cap: float = 2.0
    """Bound of the importance weight; 2 is the usual value, without a source in the R1 papers."""
    dynamic_sampling: bool = False
    """For the stage: drop groups whose rewards are all equal (keep_informative) and draw more prompts (DAPO)."""
    overlong_cache: int = 0
    """For the stage: tokens before the response limit over which overlong_penalty falls to -1; 0: none (DAPO: 4096)."""

    def __post_init__(self) -> None:
        for field, allowed in CHOICES.items():
            value = getattr(self, field)
            if value not in allowed:
                hint = ": as a loss term its mean gradient on-policy is zero" if value == "k1" else ""
                raise ValueError(f"{field}={value!r} is not one of {', '.join(allowed)}{hint}")
        bounds = (
            ("clip_low", self.clip_low > 0, "above 0"),
            ("clip_high", self.clip_high > 0, "above 0"),
            ("kl_coefficient", self.kl_coefficient >= 0, "at least 0"),
            ("std_eps", self.std_eps >= 0, "at least 0"),
            ("importance_cap", self.importance_cap > 1, "above 1"),
            ("overlong_cache", self.overlong_cache >= 0, "at least 0"),
        )
        for field, holds, condition in bounds:
            if not holds or not math.isfinite(getattr(self, field)):
                raise ValueError(f"{field}={getattr(self, field)!r} must be finite and {condition}")


GRPO_PRESETS: Mapping[str, GRPOConfig] = {
    # R1 RL stage 1 as published (R1v2 3.2); token form and 1/|o| after DeepSeekMath.
    "r1": GRPOConfig(),
    # The clip range of R1-Zero is not reported: 0.2 is r1jax's default. The rest is R1v2 2.1.
    "r1_zero": GRPOConfig(clip_low=0.2, clip_high=0.2),
    # 2503.20783: no std, no 1/|o|, no KL; the clip range is r1jax's default.
    "dr_grpo": GRPOConfig(
        clip_low=0.2, clip_high=0.2, kl_coefficient=0.0, advantage="group_mean", aggregation="constant"
    ),
    # 2503.14476: clip-higher, token mean, no KL, dynamic sampling, soft overlong penalty.
    "dapo": GRPOConfig(
        clip_low=0.2,
        clip_high=0.28,
        kl_coefficient=0.0,
        aggregation="token_mean",
        dynamic_sampling=True,
        overlong_cache=4096,
    ),
    # 2507.18071: one ratio per response, its clip range. The paper's equations have no KL term, and so has this.
    "gspo": GRPOConfig(clip_low=3e-4, clip_high=4e-4, kl_coefficient=0.0, ratio="sequence"),
}


# --- rewards of groups -> advantages ----------------------------------------------------------------------------------


def keep_informative(rewards: ArrayLike, graded: ArrayLike | None = None) -> Array:
    """Which groups teach something: [P, G] -> [P] bool, False where all (graded) rewards are equal (DAPO).

    Groups with fewer than two graded responses are False.
    """
    rewards, mask = _rewards_and_mask(rewards, graded)
    highest = jnp.max(jnp.where(mask, rewards, -jnp.inf), axis=1)
    lowest = jnp.min(jnp.where(mask, rewards, jnp.inf), axis=1)
    return highest > lowest


def group_advantages(rewards: ArrayLike, config: GRPOConfig, graded: ArrayLike | None = None) -> Array:
    """Each response's reward against its group's: [P, G] -> [P, G] float32 (R1 eq. 3 or Dr.GRPO).

    graded [P, G] bool (None: all): an ungradable response takes no part in its group's mean and std and gets advantage
    0; its reward may be anything, NaN included. Leave it out of token_weights too, or the KL term still trains it.
    A group whose graded rewards are all equal gets exactly 0 and stays in the batch; it then contributes only KL.
    """
    rewards, mask = _rewards_and_mask(rewards, graded)
    count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    mean = jnp.sum(jnp.where(mask, rewards, 0.0), axis=1, keepdims=True) / count
    centered = jnp.where(mask, rewards - mean, 0.0)
    # Decided on the rewards themselves: the float mean of equal rewards can miss them by a rounding error, which
    # dividing by std + 1e-6 would blow up.
    informative = keep_informative(rewards, mask)[:, None]
    if config.advantage == "group_std":
        std = jnp.sqrt(jnp.sum(jnp.square(centered), axis=1, keepdims=True) / count)
        centered = centered / jnp.where(informative, std + config.std_eps, 1.0)
    return jnp.where(informative, centered, 0.0)


def overlong_penalty(lengths: ArrayLike, max_length: int, cache: int) -> Array:
    """DAPO's soft punishment of long responses (2503.14476 eq. 13), added to the reward: int lengths -> float32.

    0 up to max_length - cache, then falling linearly to -1 at max_length, -1 above.
    Raises ValueError unless 0 < cache <= max_length.
    """
    if not 0 < cache <= max_length:
        raise ValueError(f"overlong penalty needs 0 < cache <= max_length, got cache={cache}, max_length={max_length}")
    return jnp.clip((max_length - cache - jnp.asarray(lengths, jnp.float32)) / cache, -1.0, 0.0)


def length_limit(step: int, schedule: tuple[tuple[int, int], ...]) -> int:
    """The response limit in force at `step`, from (first step, limit) pairs: R1-Zero is ((0, 32768), (8200, 65536)).

    A truncated response is part of the batch like any other: it has its reward, its advantage and its gradient.
    Raises ValueError unless the pairs start at step 0, ascend, and have limits above 0.
    """
    starts = [start for start, _ in schedule]
    ascending = all(earlier < later for earlier, later in itertools.pairwise(starts))
    if not starts or starts[0] != 0 or not ascending or any(limit < 1 for _, limit in schedule):
        raise ValueError(f"length schedule must be (step, limit) pairs from step 0 on, ascending, got {schedule}")
    if step < 0:
        raise ValueError(f"step must be at least 0, got {step}")
    return [limit for start, limit in schedule if start <= step][-1]


def _rewards_and_mask(rewards: ArrayLike, graded: ArrayLike | None) -> tuple[Array, Array]:
    rewards = jnp.asarray(rewards, jnp.float32)
    chex.assert_rank(rewards, 2)
    mask = jnp.ones(rewards.shape, bool) if graded is None else jnp.asarray(graded, bool)
    chex.assert_equal_shape([rewards, mask])
    return rewards, mask


# --- what one token counts --------------------------------------------------------------------------------------------


def token_weights(
    lengths: ArrayLike, aggregation: str, constant: float | None = None, included: ArrayLike | None = None
) -> Array:
    """Weight of each token of response i, such that loss = sum over tokens of weight * token loss: [N] -> [N] float32.

    lengths [N]: response tokens, stop token included, truncated or not. included [N] bool (None: all): False gives
    weight 0 and takes the response out of all counts (ungradable ones, padding). With M included responses:
    response_mean 1 / (M |o_i|), DeepSeekMath; token_mean 1 / (sum of |o_j|), DAPO; constant 1 / (M * constant),
    Dr.GRPO, where `constant` is the generation budget in tokens. Call it once for the mini-batch that makes one update.
    Raises ValueError for an unknown aggregation, or `constant` without its number.
    """
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation={aggregation!r} is not one of {', '.join(AGGREGATIONS)}")
    if aggregation == "constant" and (constant is None or not constant > 0):
        raise ValueError(f"aggregation='constant' needs a constant above 0 (the generation budget), got {constant}")
    lengths = jnp.asarray(lengths, jnp.float32)
    chex.assert_rank(lengths, 1)
    mask = jnp.ones(lengths.shape, bool) if included is None else jnp.asarray(included, bool)
    chex.assert_equal_shape([lengths, mask])
    return jnp.where(mask, AGGREGATIONS[aggregation](lengths, mask, constant), 0.0)


def _response_mean(lengths: Array, mask: Array, constant: float | None) -> Array:
    return 1.0 / (jnp.maximum(jnp.sum(mask), 1) * jnp.maximum(lengths, 1.0))


def _token_mean(lengths: Array, mask: Array, constant: float | None) -> Array:
    total = jnp.sum(jnp.where(mask, lengths, 0.0))
    return jnp.broadcast_to(1.0 / jnp.maximum(total, 1.0), lengths.shape)


def _constant(lengths: Array, mask: Array, constant: float | None) -> Array:
    assert constant is not None  # token_weights has checked it
    return jnp.broadcast_to(1.0 / (jnp.maximum(jnp.sum(mask), 1) * constant), lengths.shape)


AGGREGATIONS: Mapping[str, Callable[[Array, Array, float | None], Array]] = {
    "response_mean": _response_mean,
    "token_mean": _token_mean,
    "constant": _constant,
}


# --- ratios of the current to the old policy: (log ratio [R, T], ids [R, T], N) -> [R, T] -----------------------------


def token_ratio(log_ratio: Array, sequence_ids: Array, num_sequences: int) -> Array:
    """pi / pi_old of each token (DeepSeekMath eq. 3)."""
    return jnp.exp(log_ratio)


def sequence_ratio(log_ratio: Array, sequence_ids: Array, num_sequences: int) -> Array:
    """exp(mean over the response of log pi / pi_old), on each of its tokens (GSPO, 2507.18071 eq. 7)."""
    return jnp.exp(spread_to_tokens(response_mean(log_ratio, sequence_ids, num_sequences), sequence_ids))


def sequence_token_ratio(log_ratio: Array, sequence_ids: Array, num_sequences: int) -> Array:
    """The value of sequence_ratio with the gradient of the token's own log-prob (GSPO-token, 2507.18071 eq. 14)."""
    value = jax.lax.stop_gradient(sequence_ratio(log_ratio, sequence_ids, num_sequences))
    return value * jnp.exp(log_ratio - jax.lax.stop_gradient(log_ratio))


RATIOS: Mapping[str, Callable[[Array, Array, int], Array]] = {
    "token": token_ratio,
    "sequence": sequence_ratio,
    "sequence_token": sequence_token_ratio,
}


# --- importance weights for sampler/trainer mismatch: (log w [R, T], ids, N, cap) -> [R, T], without gradient ---------


def no_importance(log_weight: Array, sequence_ids: Array, num_sequences: int, cap: float) -> Array:
    """1 everywhere."""
    return jnp.ones_like(log_weight)


def token_importance(log_weight: Array, sequence_ids: Array, num_sequences: int, cap: float) -> Array:
    """min(pi_old / pi_sampler, cap) per token."""
    return jnp.exp(jnp.minimum(log_weight, math.log(cap)))


def token_mask_importance(log_weight: Array, sequence_ids: Array, num_sequences: int, cap: float) -> Array:
    """pi_old / pi_sampler per token where it lies in [1/cap, cap], else 0."""
    inside = jnp.abs(log_weight) <= math.log(cap)
    return jnp.where(inside, jnp.exp(jnp.where(inside, log_weight, 0.0)), 0.0)


def sequence_importance(log_weight: Array, sequence_ids: Array, num_sequences: int, cap: float) -> Array:
    """min(product over the response of pi_old / pi_sampler, cap), on each of its tokens."""
    total = response_sum(log_weight, sequence_ids, num_sequences)
    return token_importance(spread_to_tokens(total, sequence_ids), sequence_ids, num_sequences, cap)


def sequence_mask_importance(log_weight: Array, sequence_ids: Array, num_sequences: int, cap: float) -> Array:
    """The product over the response where it lies in [1/cap, cap], else 0, on each of its tokens."""
    total = response_sum(log_weight, sequence_ids, num_sequences)
    return token_mask_importance(spread_to_tokens(total, sequence_ids), sequence_ids, num_sequences, cap)


IMPORTANCE: Mapping[str, Callable[[Array, Array, int, float], Array]] = {
    "none": no_importance,
    "token": token_importance,
    "token_mask": token_mask_importance,
    "sequence": sequence_importance,
    "sequence_mask": sequence_mask_importance,
}

KL_LOSSES: Mapping[str, Callable[[Array, Array], Array]] = {"k2": k2, "k3": k3}


# --- the loss ---------------------------------------------------------------------------------------------------------


def clipped_objective(ratio: Array, advantages: Array, clip_low: float, clip_high: float) -> Array:
    """min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A), any shape (R1 eq. 1)."""
    chex.assert_equal_shape([ratio, advantages])
    return jnp.minimum(ratio * advantages, jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high) * advantages)


def grpo_loss(
    logprobs: Array, entropy: Array, batch: PolicyBatch, config: GRPOConfig, num_sequences: int
) -> tuple[Array, Metrics]:
    """sum over tokens of weight * (-importance * clipped objective + beta * KL), and metrics.

    logprobs [R, T]: the current policy's, of logits / rollout temperature, aligned with batch.packed.targets; entropy
    [R, T] is only measured. num_sequences (static) bounds batch.sequence_ids; a response lies wholly in this batch,
    since GSPO and the sequence corrections need all its tokens. The gradient reaches `logprobs` only. A micro-batch's
    loss is its share of the mini-batch's: add them, never average.

    Metrics, to be added over micro-batches, but the *_max by maximum (combine_metrics); then finalize_metrics:
    loss, policy_loss, kl_loss (in full); weight (sum of the token weights); and sums with the token weights: ratio,
    clip_low and clip_high (share of tokens whose gradient the clip took away), kl_ref (k3 to the reference), kl_old (k1
    of old against current policy), entropy, importance, sampler_gap (|old trainer log-prob - sampler log-prob|);
    ratio_max, importance_max, sampler_gap_max over the tokens of weight above 0 (-inf without any).
    """
    shape = batch.packed.targets.shape
    chex.assert_shape([logprobs, entropy, batch.sequence_ids, batch.advantages, batch.weights], shape)
    chex.assert_shape([batch.old_logprobs, batch.ref_logprobs, batch.sampler_logprobs], shape)
    weights, ids = batch.weights, batch.sequence_ids
    counted = (batch.packed.loss_mask != 0) & (weights != 0)
    # Elsewhere (prompts, padding, ungradable responses) the policies need not be comparable: out before any exp, since
    # an overflow times weight 0 is NaN.
    logprobs = jnp.where(counted, logprobs, 0.0)
    old = jnp.where(counted, batch.old_logprobs, 0.0)
    ref = jnp.where(counted, batch.ref_logprobs, 0.0)
    mismatch = old - jnp.where(counted, batch.sampler_logprobs, 0.0)

    ratio = RATIOS[config.ratio](logprobs - old, ids, num_sequences)
    importance = IMPORTANCE[config.importance_correction](mismatch, ids, num_sequences, config.importance_cap)
    importance = jax.lax.stop_gradient(importance)
    objective = clipped_objective(ratio, batch.advantages, config.clip_low, config.clip_high)
    policy_loss = -weighted_sum(importance * objective, weights)
    loss, kl_loss = policy_loss, jnp.zeros_like(policy_loss)
    if config.kl_coefficient > 0:
        kl_loss = config.kl_coefficient * weighted_sum(KL_LOSSES[config.kl_estimator](logprobs, ref), weights)
        loss = policy_loss + kl_loss

    measured = {
        "ratio": ratio,
        "clip_low": (batch.advantages < 0) & (ratio < 1.0 - config.clip_low),
        "clip_high": (batch.advantages > 0) & (ratio > 1.0 + config.clip_high),
        "kl_ref": k3(logprobs, ref),
        "kl_old": k1(old, logprobs),
        "entropy": entropy,
        "importance": importance,
        "sampler_gap": jnp.abs(mismatch),
    }
    metrics = {name: weighted_sum(value.astype(jnp.float32), weights) for name, value in measured.items()}
    metrics |= {f"{name}_max": masked_max(measured[name], counted) for name in ("ratio", "importance", "sampler_gap")}
    metrics |= {"loss": loss, "policy_loss": policy_loss, "kl_loss": kl_loss, "weight": jnp.sum(weights)}
    return loss, jax.lax.stop_gradient(metrics)


UNSCALED = ("loss", "policy_loss", "kl_loss", "weight")


def combine_metrics(first: Metrics, second: Metrics) -> Metrics:
    """Metrics of two micro-batches of one mini-batch: *_max by maximum, all else added."""
    return {
        name: jnp.maximum(value, second[name]) if name.endswith("_max") else value + second[name]
        for name, value in first.items()
    }


def finalize_metrics(metrics: Metrics) -> Metrics:
    """Means out of a whole mini-batch's weighted sums: each is divided by `weight`; losses and maxima stay.

    With response_mean and token_mean the weight of a mini-batch is 1 and nothing changes; with `constant` it is not.
    """
    weight = metrics["weight"]
    scale = jnp.where(weight > 0, 1.0 / jnp.where(weight > 0, weight, 1.0), 0.0)
    return {
        name: value if name in UNSCALED or name.endswith("_max") else value * scale for name, value in metrics.items()
    }
