"""From a policy to the batches of its next updates: collect -> advantages -> old and reference log-probs.

A rollout is stored as soon as it is graded, its log-probs as soon as they are computed.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from r1jax.algorithms.grpo import group_advantages, keep_informative, overlong_penalty, token_weights
from r1jax.data.errors import DataError
from r1jax.data.packing import PackedPolicy, pack_policy
from r1jax.data.pipelines import example_iterator
from r1jax.data.shared_prompts import pack_shared_prompts
from r1jax.metrics import StepTimer
from r1jax.processes import by_writer, from_writer, gather_objects
from r1jax.rewards.combine import Scores, totals_and_mask
from r1jax.rewards.grading import Grading
from r1jax.rollout import (
    Completer,
    GradedRollout,
    join,
    load_arrays,
    load_graded,
    save_arrays,
    save_graded,
    select_groups,
)
from r1jax.stages.rl_config import RLConfig
from r1jax.types import Example, PackedBatch, Params, PolicyBatch, Rollout, Score, Status

ScoreFunction = Callable[[Params, PackedBatch], tuple[np.ndarray, np.ndarray]]
"""Trainer log-probs [R, T] and chosen experts [R, T, M, A] of packed rows under given parameters; experts are -1 in
rows that only other processes have."""


@dataclasses.dataclass(frozen=True)
class MiniBatch:
    """One update's share of a rollout."""

    rows: np.ndarray  # [n] indices of its sequences in the rollout
    policy: PackedPolicy
    batch: PolicyBatch


def rollout_rewards(
    graded: GradedRollout, config: RLConfig, limit: int, seed: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """(rewards [P, G], graded [P, G]): totals with the overlong penalty, permuted within groups in the control run."""
    totals, mask = totals_and_mask(graded.scores)
    totals = totals + overlong_penalties(graded, config, limit)
    rewards, mask = totals.reshape(-1, config.group_size), mask.reshape(-1, config.group_size)
    if config.shuffle_rewards:
        order = np.argsort(np.random.default_rng(seed).random(rewards.shape), axis=1)
        rewards, mask = np.take_along_axis(rewards, order, 1), np.take_along_axis(mask, order, 1)
    return rewards, mask


def overlong_penalties(graded: GradedRollout, config: RLConfig, limit: int) -> np.ndarray:
    """The soft overlong penalty [N] of each response, 0 for all where the config has none."""
    cache, lengths = config.grpo_config.overlong_cache, graded.rollout.response_lengths
    return np.asarray(overlong_penalty(lengths, limit, cache)) if cache else np.zeros(len(lengths), np.float32)


def accuracies(graded: GradedRollout) -> tuple[np.ndarray, np.ndarray]:
    """(accuracy [P, G], whether it and the total have a grade [P, G]); the total stands in where a domain has no right
    answers."""
    parts = [scores.parts.get("accuracy", _total(scores)) for scores in graded.scores]
    mask = [part.graded and scores.graded for part, scores in zip(parts, graded.scores, strict=True)]
    shape = (len(graded.examples), graded.samples)
    return np.reshape([part.value for part in parts], shape), np.reshape(mask, shape)


def _total(scores: Scores) -> Score:
    return Score(0.0, Status.UNGRADABLE) if scores.total is None else Score(scores.total)


class Questions:
    """The questions of every rollout: those of `source`, from `late.from_rollout` on those of `late.source`."""

    def __init__(self, config: RLConfig, sources: Mapping[str, Sequence[Example]]) -> None:
        names = ["source", *(["late.source"] if config.late is not None else [])]
        self._streams = {name: example_iterator(sources[name], config.seed, config.prompts) for name in names}
        self._late_from = config.rollouts if config.late is None else config.late.from_rollout

    def draw(self, rollout: int) -> list[Example]:
        """The next questions for a rollout."""
        return next(self._streams["source" if rollout < self._late_from else "late.source"])

    def get_state(self) -> dict[str, Any]:
        """JSON-able; see `pipelines.BatchIterator`."""
        return {name: stream.get_state() for name, stream in self._streams.items()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Moves to a saved state. ValueError if it is another source's."""
        for name, stream in self._streams.items():
            stream.set_state(state[name])


class Collector:
    """Draws questions, samples and grades answers; every graded rollout is stored before it is used."""

    def __init__(
        self,
        config: RLConfig,
        completer: Completer,
        questions: Questions,
        folder: pathlib.Path,
        grading: Grading,
    ) -> None:
        self.config = config
        self.grading = grading
        self.completer = completer
        self.questions = questions
        self.folder = folder
        self.key = jax.random.fold_in(jax.random.key(config.seed), 1)

    def path(self, index: int) -> pathlib.Path:
        """Where rollout `index` is stored."""
        return self.folder / f"{index:06d}.npz"

    def collect(
        self, index: int, update: int, params: Params, timer: StepTimer
    ) -> tuple[GradedRollout, dict[str, float]]:
        """Rollout `index`, the stored one if it exists, else a new one from `params`; and metrics of all drawn answers.

        Dynamic sampling (DAPO, 2503.14476 eq. 11) keeps the groups with right and wrong answers, whatever their other
        rewards, and draws more questions until there are enough.
        """
        if from_writer(self.path(index).exists):
            graded, extra = load_graded(self.path(index))
            self.questions.set_state(extra["questions"])
            return graded, extra["drawn"]
        limit = self.config.response_limit(update)
        with timer("reshard") as wait:
            params = wait(self.completer.lay_out(params))
        kept: list[GradedRollout] = []
        right, answers = 0.0, 0
        for draw in range(self.config.max_draws):
            examples = self.questions.draw(index)
            key = jax.random.fold_in(jax.random.fold_in(self.key, index), draw)
            batch = self.grading.begin()
            with timer("rollout"):  # and what is graded meanwhile
                rollout, texts = self.completer.complete(params, examples, self.config.group_size, key, limit, batch)
            with timer("rewards"):
                graded = GradedRollout(rollout, tuple(examples), texts, batch.scores())
            accuracy, mask = accuracies(graded)
            right, answers = right + float(accuracy[mask].sum()), answers + int(mask.sum())
            if not self.config.grpo_config.dynamic_sampling:
                kept = [graded]
                break
            kept.append(select_groups(graded, np.asarray(keep_informative(accuracy, mask))))
            if sum(len(part.examples) for part in kept) >= self.config.prompts:
                break
        graded = join(kept)
        if len(graded.examples) < self.config.prompts:
            raise DataError(
                f"dynamic sampling: after max_draws = {self.config.max_draws} draws only {len(graded.examples)} of "
                f"{self.config.prompts} groups have right and wrong answers. Easier or harder questions, or more "
                "draws?"
            )
        graded = select_groups(graded, np.arange(len(graded.examples)) < self.config.prompts)
        drawn = {"draws": float(draw + 1)} | ({"accuracy_drawn": right / answers} if answers else {})
        save_graded(self.path(index), graded, {"questions": self.questions.get_state(), "drawn": drawn})
        return graded, drawn

    def forget(self, before: int) -> None:
        """Removes the stored rollouts that no checkpoint needs any more."""
        remove_stored(self.folder, before)


@by_writer
def remove_stored(folder: pathlib.Path, before: int) -> None:
    """Removes the numbered files below `before`."""
    for path in folder.glob("*.npz"):
        if int(path.name.split(".")[0]) < before:
            path.unlink()


def make_minibatches(
    graded: GradedRollout, index: int, limit: int, config: RLConfig
) -> tuple[list[MiniBatch], dict[str, float]]:
    """Advantages, token weights and packed rows of a rollout's mini-batches; log-probs are still zero."""
    rewards, mask = rollout_rewards(graded, config, limit, (config.seed, index))
    grpo = config.grpo_config
    advantages = np.asarray(group_advantages(rewards, grpo, mask)).reshape(-1)
    included = mask.reshape(-1)
    lengths = np.asarray(graded.rollout.response_lengths)
    r = graded.rollout
    order = np.random.default_rng((config.seed, 2, index)).permutation(len(lengths))
    pack = pack_shared_prompts if config.shared_prompts else pack_policy
    minibatches = []
    for rows in np.split(order, config.minibatches):
        weights = np.asarray(token_weights(lengths[rows], grpo.aggregation, float(limit), included[rows]))
        policy = pack(
            r.prompt_tokens[rows],
            r.prompt_lengths[rows],
            r.response_tokens[rows],
            r.response_lengths[rows],
            config.row_length,
            config.micro_rows,
        )
        zeros = np.zeros(policy.tokens.shape, np.float32)
        batch = policy.policy_batch(advantages[rows], weights, r.sampler_logprobs[rows], zeros, zeros)
        minibatches.append(MiniBatch(rows, policy, batch))
    flat = ~np.asarray(keep_informative(rewards, mask))
    overlong = {"overlong": float(overlong_penalties(graded, config, limit).mean())} if grpo.overlong_cache else {}
    segments = [mini.batch.packed.segment_ids for mini in minibatches]
    return minibatches, overlong | {
        "zero_variance_groups": float(flat.mean()),
        "advantage_max": float(np.abs(advantages).max()),
        "sampled_tokens": float(lengths.sum() + r.prompt_lengths[:: config.group_size].sum()),  # a prompt runs once
        "packed_tokens": float(sum(np.count_nonzero(ids) for ids in segments)),
        "packed_slots": float(sum(ids.size for ids in segments)),
    }


def attach_logprobs(
    minibatches: list[MiniBatch],
    graded: GradedRollout,
    score: ScoreFunction,
    params: Params,
    reference: Params,
    path: pathlib.Path,
) -> tuple[list[MiniBatch], dict[str, float]]:
    """Old and reference log-probs of every mini-batch, by the policy that sampled; stored, for a stop between updates.

    The metrics compare sampler and trainer: |log-prob gap| mean and max, and the share of tokens whose experts differ.
    """
    if from_writer(path.exists):
        arrays, metrics = load_arrays(path)
    else:
        arrays, gaps, differences = {}, [], []
        for j, mini in enumerate(minibatches):
            old, experts = score(params, mini.batch.packed)
            arrays[f"old_{j}"] = old
            arrays[f"ref_{j}"], _ = score(reference, mini.batch.packed)
            on = mini.batch.packed.loss_mask > 0
            gaps.append(np.abs(old - mini.batch.sampler_logprobs)[on])
            differences.append(expert_differences(graded.rollout, mini, experts))
        gap = np.concatenate(gaps)
        metrics = {"logprob_gap_mean": float(gap.mean()), "logprob_gap_max": float(gap.max())}
        if graded.rollout.experts is not None:
            differ, tokens = np.sum(gather_objects(np.sum(differences, axis=0)), axis=0)
            metrics["expert_difference"] = float(differ / tokens)
        save_arrays(path, arrays, metrics)
    done = []
    for j, mini in enumerate(minibatches):
        on = mini.batch.packed.loss_mask > 0
        batch = mini.batch.replace(  # type: ignore[attr-defined]
            old_logprobs=np.where(on, arrays[f"old_{j}"], np.float32(0)),
            ref_logprobs=np.where(on, arrays[f"ref_{j}"], np.float32(0)),
        )
        done.append(dataclasses.replace(mini, batch=batch))
    return done, metrics


def expert_differences(rollout: Rollout, mini: MiniBatch, experts: np.ndarray) -> tuple[int, int]:
    """(tokens for which the trainer chose another set of experts than the sampler, in any layer, tokens compared).

    experts: [R, T, M, A], -1 in rows of other processes, which are not compared here.
    """
    if rollout.experts is None:
        return 0, 0
    trained = np.sort(mini.policy.gather_from_rows(experts, fill=-1), axis=-1)
    sampled = np.sort(np.asarray(rollout.experts)[mini.rows], axis=-1)
    compared = (mini.policy.to_responses >= 0) & (trained >= 0).all(axis=(-1, -2))
    return int(np.any(trained != sampled, axis=(-1, -2))[compared].sum()), int(compared.sum())
