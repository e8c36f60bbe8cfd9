"""GRPO and its relatives against the float64 oracle, and against numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from oracles import grpo_numpy as oracle

from r1jax.algorithms import grpo
from r1jax.algorithms.grpo import GRPO_PRESETS, GRPOConfig
from r1jax.algorithms.logprobs import token_logprobs
from r1jax.types import PackedBatch, PolicyBatch

group_advantages = jax.jit(grpo.group_advantages, static_argnames="config")
token_weights = jax.jit(grpo.token_weights, static_argnames=("aggregation", "constant"))
TEMPERATURE, BUDGET = 0.7, 9
WIDTH, VOCAB, ROW = 6, 11, 32
CLIP = {"clip_low": 0.2, "clip_high": 0.28}
VARIANTS = {
    **GRPO_PRESETS,
    "gspo_token": dataclasses.replace(GRPO_PRESETS["gspo"], ratio="sequence_token"),
    "k3_strong": GRPOConfig(**CLIP, kl_coefficient=0.5),
    "k2_strong": GRPOConfig(**CLIP, kl_coefficient=0.5, kl_estimator="k2"),
    "mean_only": GRPOConfig(**CLIP, advantage="group_mean", aggregation="token_mean"),
    "tis_token": GRPOConfig(**CLIP, importance_correction="token"),
    "mis_token": GRPOConfig(**CLIP, importance_correction="token_mask", importance_cap=1.2),
    "tis_sequence": GRPOConfig(**CLIP, importance_correction="sequence"),
    "mis_sequence": GRPOConfig(**CLIP, importance_correction="sequence_mask"),
    "gspo_tis_sequence": dataclasses.replace(GRPO_PRESETS["gspo"], importance_correction="sequence"),
}


@dataclasses.dataclass
class Sequence:
    """Prompt and response of one sample: hidden states at all tokens, other policies' log-probs at the response."""

    prompt: int
    tokens: np.ndarray
    hidden: np.ndarray
    old: np.ndarray
    ref: np.ndarray
    sampler: np.ndarray

    @property
    def response(self) -> int:
        return len(self.tokens) - self.prompt

    @property
    def trained(self) -> slice:
        return slice(self.prompt - 1, len(self.tokens) - 1)


@functools.cache
def make_case(noise: float):
    """Four groups of four: one of equal rewards, two ungradable responses; some ratios far off, both ways."""
    rng = np.random.default_rng(0)
    unembed = rng.normal(size=(WIDTH, VOCAB)).astype(np.float32)
    sequences = []
    for _ in range(16):
        prompt, response = int(rng.integers(1, 5)), int(rng.integers(1, BUDGET + 1))
        tokens = rng.integers(0, VOCAB, prompt + response)
        hidden = rng.normal(size=(prompt + response, WIDTH)).astype(np.float32)
        trained = slice(prompt - 1, prompt + response - 1)
        new, _ = oracle.token_logprobs(hidden[trained].astype(float), unembed.astype(float), tokens[prompt:], 0.7)
        far = rng.choice([0.0, -3.5, 3.0], response, p=[0.8, 0.1, 0.1]) * (noise > 0.01)
        old = (new - noise * rng.normal(size=response) + far).astype(np.float32)
        ref = (new + 0.4 * rng.normal(size=response)).astype(np.float32)
        sampler = (old + 0.2 * rng.normal(size=response)).astype(np.float32)
        sequences.append(Sequence(prompt, tokens, hidden, old, ref, sampler))
    rewards = rng.choice([0.0, 0.1, 1.0], (4, 4)).astype(np.float32)
    rewards[2] = 0.1
    graded = np.ones((4, 4), bool)
    graded[0, 1] = graded[3, 2] = False
    rewards[~graded] = np.nan
    return sequences, unembed, rewards, graded


def case_for(config: GRPOConfig):
    return make_case(2e-3 if config.ratio != "token" else 0.3)


def first_fit(sequences, width: int, rows: int) -> list[list[int]]:
    """Indices of the sequences in each of exactly `rows` rows."""
    layout, room = [[] for _ in range(rows)], [width] * rows
    for index, sequence in enumerate(sequences):
        row = next(row for row in range(rows) if room[row] >= len(sequence.tokens))
        layout[row].append(index)
        room[row] -= len(sequence.tokens)
    return layout


def build(sequences, layout, advantages, weights) -> tuple[np.ndarray, PolicyBatch]:
    """Hidden states [R, T, D] and the policy batch of a layout, as numpy arrays."""
    shape = (len(layout), ROW)
    tokens, targets, segments, positions = (np.zeros(shape, np.int32) for _ in range(4))
    ids = np.full(shape, -1, np.int32)
    mask, a, w, old, ref, sampler = (np.zeros(shape, np.float32) for _ in range(6))
    hidden = np.random.default_rng(1).normal(size=(*shape, WIDTH)).astype(np.float32)  # padding is not zero
    for row, members in enumerate(layout):
        start = 0
        for segment, index in enumerate(members, 1):
            s = sequences[index]
            whole = slice(start, start + len(s.tokens))
            trained = slice(start + s.trained.start, start + s.trained.stop)
            tokens[row, whole], hidden[row, whole], segments[row, whole] = s.tokens, s.hidden, segment
            positions[row, whole] = np.arange(len(s.tokens))
            targets[row, trained], mask[row, trained] = s.tokens[s.prompt :], 1
            ids[row, trained], a[row, trained], w[row, trained] = index, advantages[index], weights[index]
            old[row, trained], ref[row, trained], sampler[row, trained] = s.old, s.ref, s.sampler
            start += len(s.tokens)
    packed = PackedBatch(tokens, targets, segments, positions, mask)
    return hidden, PolicyBatch(packed, ids, a, w, sampler, old, ref)


@functools.partial(jax.jit, static_argnames="config")
def run(hidden, unembed, batch, config):
    """(loss, metrics) and gradients with respect to the hidden states and the unembedding."""

    def loss(hidden, unembed):
        logprobs, entropy = token_logprobs(hidden, unembed, batch.packed.targets, TEMPERATURE, chunk=48)
        return grpo.grpo_loss(logprobs, entropy, batch, config, 16)

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(hidden, unembed)


def accumulate(hidden, unembed, batch, config, parts):
    """The same from `parts` micro-batches, each filled up with padding rows to 8."""
    (loss, metrics), grads = (0.0, None), ([], 0.0)
    for piece in np.split(np.arange(len(hidden)), parts):
        empty = 8 - len(piece)
        micro = jax.tree.map(lambda x, piece=piece, empty=empty: pad_rows(x[piece], empty), batch)
        micro = micro.replace(sequence_ids=np.where(micro.packed.loss_mask > 0, micro.sequence_ids, -1))
        (more, other), (dh, du) = run(pad_rows(hidden[piece], empty), unembed, micro, config)
        loss, metrics = loss + more, other if metrics is None else grpo.combine_metrics(metrics, other)
        grads = [*grads[0], dh[: len(piece)]], grads[1] + du
    return (loss, metrics), (np.concatenate(grads[0]), grads[1])


def pad_rows(array, rows: int):
    return np.pad(array, [(0, rows)] + [(0, 0)] * (array.ndim - 1))


def prepare(config: GRPOConfig):
    """Advantages and weights from the code under test; the expected loss and gradients from the oracle."""
    sequences, unembed, rewards, graded = case_for(config)
    advantages = np.asarray(group_advantages(rewards, config, graded)).reshape(-1)
    lengths = np.array([s.response for s in sequences])
    weights = np.asarray(token_weights(lengths, config.aggregation, BUDGET, graded.reshape(-1)))
    expected = oracle.advantages(rewards, config.advantage, config.std_eps, graded).reshape(-1)
    unembed64, responses = unembed.astype(float), []
    for s, advantage, ok in zip(sequences, expected, graded.reshape(-1), strict=True):
        args = s.hidden[s.trained].astype(float), unembed64, s.tokens[s.prompt :], TEMPERATURE
        new, _ = oracle.token_logprobs(*args)
        old, ref, sampler = (x.astype(float) for x in (s.old, s.ref, s.sampler))
        responses.append(oracle.Response(new, old, ref, sampler, advantage, bool(ok)))
    loss, slopes, magnitude = oracle.loss_and_gradient(responses, config, BUDGET)
    hidden_bar, unembed_bar = [], np.zeros_like(unembed64)
    for s, slope in zip(sequences, slopes, strict=True):
        args = s.hidden[s.trained].astype(float), unembed64, s.tokens[s.prompt :], TEMPERATURE
        dh, du = oracle.token_logprobs_backward(*args, slope)
        full = np.zeros(s.hidden.shape)
        full[s.trained] = dh
        hidden_bar.append(full)
        unembed_bar += du
    return advantages, weights, responses, (loss, magnitude, hidden_bar, unembed_bar)


def relative(actual, expected) -> float:
    actual, expected = np.asarray(actual, float), np.asarray(expected, float)
    return float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected)))


def errors(result, sequences, layout, expected) -> tuple[float, float]:
    """Relative errors of the loss and of the gradients.

    The loss's error is taken relative to the sum of its absolute terms, since advantages of both signs cancel (nearly
    all of them under GSPO); a gradient's largest error relative to its largest entry.
    """
    (loss, _), (hidden_bar, unembed_bar) = result
    want_loss, magnitude, want_hidden, want_unembed = expected
    full = np.zeros(hidden_bar.shape)
    for row, members in enumerate(layout):
        start = 0
        for index in members:
            full[row, start : start + len(want_hidden[index])] = want_hidden[index]
            start += len(want_hidden[index])
    return abs(float(loss) - want_loss) / magnitude, max(
        relative(hidden_bar, full), relative(unembed_bar, want_unembed)
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradient_equal_the_oracle_in_every_layout(name):
    config = VARIANTS[name]
    sequences, unembed, _, _ = case_for(config)
    advantages, weights, _, expected = prepare(config)
    found = {}

    unpacked = [[index] for index in range(16)]
    hidden, batch = build(sequences, unpacked, advantages, weights)
    found["unpacked"] = errors(accumulate(hidden, unembed, batch, config, 2), sequences, unpacked, expected)

    packed = first_fit(sequences, ROW, 8)
    hidden, batch = build(sequences, packed, advantages, weights)
    whole = run(hidden, unembed, batch, config)
    found["packed"] = errors(whole, sequences, packed, expected)

    for parts in (2, 8):
        result = accumulate(hidden, unembed, batch, config, parts)
        found[f"{parts} micro-batches"] = errors(result, sequences, packed, expected)
        for key, value in whole[0][1].items():
            np.testing.assert_allclose(result[0][1][key], value, rtol=2e-5, atol=1e-7, err_msg=key)

    assert len(jax.devices()) == 8
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    hidden, batch = jax.device_put((hidden, batch), rows)
    sharded = run(hidden, jax.device_put(unembed, NamedSharding(mesh, PartitionSpec())), batch, config)
    assert sharded[1][0].sharding.is_equivalent_to(rows, 3)
    found["8 devices"] = errors(sharded, sequences, packed, expected)

    for layout, (loss, gradient) in found.items():
        print(f"{name:18s} {layout:16s} loss {loss:.1e} gradient {gradient:.1e}")
        assert loss < 2e-6, layout
        assert gradient < 2e-6, layout


@pytest.mark.parametrize("name", VARIANTS)
def test_oracle_gradient_equals_central_differences_of_the_oracle_loss(name):
    config, step = VARIANTS[name], 1e-6
    _, _, responses, _ = prepare(config)
    _, gradients, _ = oracle.loss_and_gradient(responses, config, BUDGET)
    scale = max(np.abs(g).max() for g in gradients)
    frozen = config.ratio == "sequence_token"  # its gradient is, by design, not the derivative of its value
    for i, response in enumerate(responses):
        for t in range(len(response.new)):
            values = []
            for sign in (1, -1):
                new = response.new.copy()
                new[t] += sign * step
                moved = dataclasses.replace(response, new=new)
                values.append(oracle.loss_and_gradient([*responses[:i], moved, *responses[i + 1 :]], config, BUDGET)[0])
            slope = (values[0] - values[1]) / (2 * step)
            if not frozen:
                assert abs(slope - gradients[i][t]) < 1e-7 * max(scale, 1)
    if frozen:  # summed over a response, both forms have one gradient
        _, plain, _ = oracle.loss_and_gradient(responses, dataclasses.replace(config, ratio="sequence"), BUDGET)
        np.testing.assert_allclose([g.sum() for g in gradients], [g.sum() for g in plain], atol=1e-12)


def test_case_exercises_clipping_and_importance_both_ways():
    for name, sides in {"r1": ["high"], "dapo": ["low", "high"], "gspo": ["low", "high"]}.items():
        config = VARIANTS[name]
        sequences, unembed, _, _ = case_for(config)
        advantages, weights, _, _ = prepare(config)
        hidden, batch = build(sequences, first_fit(sequences, ROW, 8), advantages, weights)
        (_, metrics), _ = run(hidden, unembed, batch, config)
        for side in sides:
            assert 0.01 < metrics[f"clip_{side}"] < 0.9, (name, side)


# --- hand-worked --------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="config")
def tiny_gradient(logprobs, batch, config):
    return jax.grad(lambda x: tiny_loss(x, batch, config)[0])(logprobs)


def tiny_batch(log_ratios, advantages, weights, ref=None, sampler_gap=None) -> tuple[np.ndarray, PolicyBatch]:
    """One row per response without prompt; the current log-probs are -1 and pi/pi_old is exp(log_ratios)."""
    rows, width = len(log_ratios), max(len(r) for r in log_ratios)
    logprobs, mask, log_ratio = (np.zeros((rows, width), np.float32) for _ in range(3))
    ids = np.full((rows, width), -1, np.int32)
    for i, values in enumerate(log_ratios):
        n = len(values)
        mask[i, :n], ids[i, :n], log_ratio[i, :n], logprobs[i, :n] = 1, i, values, -1
    zeros = np.zeros((rows, width), np.int32)
    old = (logprobs - log_ratio) * mask
    gap = np.zeros_like(old) if sampler_gap is None else np.asarray(sampler_gap, np.float32) * mask
    a, w = (np.asarray(x, np.float32)[:, None] * mask for x in (advantages, weights))
    ref_logprobs = logprobs if ref is None else (logprobs + np.asarray(ref, np.float32)) * mask
    packed = PackedBatch(zeros, zeros, zeros + 1, zeros, mask)
    return logprobs, PolicyBatch(packed, ids, a, w, old - gap, old, ref_logprobs)


@functools.partial(jax.jit, static_argnames="config")
def tiny_loss(logprobs, batch, config):
    return grpo.grpo_loss(jnp.asarray(logprobs), jnp.ones(logprobs.shape), batch, config, len(logprobs))


RATIOS = [[math.log(1.5), math.log(0.5)], [math.log(0.5)]]


def test_token_clip_by_hand():
    # Response 0: A = 1, ratios 1.5, 0.5: min(1.5, 1.2) + min(0.5, 0.8) = 1.7. Response 1: A = -1, ratio 0.5:
    # min(-0.5, -0.8) = -0.8. Loss -(1.7 / 2 - 0.8) / 2 = -0.025. No gradient at 1.5 (high) nor at the last (low).
    logprobs, batch = tiny_batch(RATIOS, [1, -1], [1 / 4, 1 / 2])
    config = GRPOConfig(clip_low=0.2, clip_high=0.2, kl_coefficient=0)
    loss, metrics = tiny_loss(logprobs, batch, config)
    assert float(loss) == pytest.approx(-0.025, abs=1e-7)
    assert float(metrics["clip_high"]) == pytest.approx(1 / 4)
    assert float(metrics["clip_low"]) == pytest.approx(1 / 2)
    assert float(metrics["ratio"]) == pytest.approx((1.5 + 0.5) / 4 + 0.5 / 2)
    assert float(metrics["ratio_max"]) == pytest.approx(1.5)
    assert float(metrics["kl_old"]) == pytest.approx(-math.log(1.5) / 4 - math.log(0.5) * 3 / 4)
    gradient = tiny_gradient(logprobs, batch, config)
    np.testing.assert_allclose(gradient, [[0, -0.5 / 4], [0, 0]], atol=1e-7)


def test_aggregations_by_hand():
    # On-policy ratios (1): token terms are -A. A = (1, -1), lengths 2 and 1.
    for aggregation, expected in {"response_mean": 0.0, "token_mean": -1 / 3, "constant": -1 / (2 * 10)}.items():
        weights = token_weights(np.array([2, 1]), aggregation, 10)
        logprobs, batch = tiny_batch([[0, 0], [0]], [1, -1], weights)
        loss, metrics = tiny_loss(logprobs, batch, GRPOConfig(kl_coefficient=0, aggregation=aggregation))
        assert float(loss) == pytest.approx(expected, abs=1e-7)
        assert float(grpo.finalize_metrics(metrics)["ratio"]) == pytest.approx(1.0)
        assert float(metrics["weight"]) == pytest.approx({"constant": 3 / 20}.get(aggregation, 1.0))


def test_gspo_by_hand():
    # s = exp((log 1.5 + log 0.5) / 2) = sqrt(0.75) = 0.8660 for A = 1; s = 0.5, clipped up to 0.9, for A = -1.
    # Loss = -(0.8660 - 0.9) / 2; the gradient of response 0 is -s / 2 / 2 on each of its two tokens.
    logprobs, batch = tiny_batch(RATIOS, [1, -1], [1 / 4, 1 / 2])
    config = GRPOConfig(clip_low=0.1, clip_high=0.1, kl_coefficient=0, ratio="sequence")
    loss, gradient = tiny_loss(logprobs, batch, config)[0], tiny_gradient(logprobs, batch, config)
    assert float(loss) == pytest.approx(-(math.sqrt(0.75) - 0.9) / 2, abs=1e-6)
    np.testing.assert_allclose(gradient, [[-math.sqrt(0.75) / 4] * 2, [0, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "weights"),
    [("none", (1, 1)), ("token", (2, 0.25)), ("token_mask", (0, 0)), ("sequence", (0.75, 0.75))]
    + [("sequence_mask", (0.75, 0.75))],
)
def test_importance_weights_by_hand(kind, weights):
    # pi_old / pi_sampler = 3 and 0.25, product 0.75, cap 2: 3 is cut to 2; each alone lies outside [0.5, 2].
    logprobs, batch = tiny_batch([[0, 0]], [1], [1 / 2], sampler_gap=[[math.log(3), math.log(0.25)]])
    config = GRPOConfig(kl_coefficient=0, importance_correction=kind, importance_cap=2.0)
    loss, metrics = tiny_loss(logprobs, batch, config)
    assert float(loss) == pytest.approx(-sum(weights) / 2, abs=1e-6)
    assert float(metrics["importance"]) == pytest.approx(sum(weights) / 2, abs=1e-6)
    assert float(metrics["sampler_gap"]) == pytest.approx((math.log(3) + math.log(4)) / 2, abs=1e-6)
    assert float(metrics["sampler_gap_max"]) == pytest.approx(math.log(4), abs=1e-6)
    gradient = tiny_gradient(logprobs, batch, config)
    np.testing.assert_allclose(gradient, [[-w / 2 for w in weights]], atol=1e-6)


def test_kl_term_by_hand():
    # pi_ref / pi = 2: k3 = 2 - 1 - log 2, k2 = log(2)^2 / 2. Advantage 0: only the KL term is left, over 2 tokens.
    logprobs, batch = tiny_batch([[0, 0]], [0], [1 / 2], ref=[[math.log(2), math.log(2)]])
    for kind, expected in {"k3": 1 - math.log(2), "k2": math.log(2) ** 2 / 2}.items():
        loss, metrics = tiny_loss(logprobs, batch, GRPOConfig(kl_coefficient=0.1, kl_estimator=kind))
        assert float(loss) == pytest.approx(0.1 * expected, rel=1e-5)
        assert float(metrics["kl_ref"]) == pytest.approx(1 - math.log(2), rel=1e-5)
        assert float(metrics["kl_loss"]) == pytest.approx(float(loss), rel=1e-6)


# --- advantages, weights, schedules ---------------------------------------------------------------------------------


def test_group_advantages_by_hand():
    # Rewards 1, 0, 0, 0: mean 1/4, population std sqrt(3)/4; advantages sqrt(3) and -1/sqrt(3).
    rewards = np.array([[1, 0, 0, 0], [3, 1, 3, 1]], np.float32)
    expected = [[math.sqrt(3), *[-1 / math.sqrt(3)] * 3], [1, -1, 1, -1]]
    np.testing.assert_allclose(group_advantages(rewards, GRPO_PRESETS["r1"]), expected, rtol=1e-5)
    expected = [[0.75, -0.25, -0.25, -0.25], [1, -1, 1, -1]]
    np.testing.assert_allclose(group_advantages(rewards, GRPO_PRESETS["dr_grpo"]), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["r1", "dr_grpo"])
def test_zero_variance_groups_get_exactly_zero(name):
    rewards = np.full((3, 7), 0.1, np.float32) * np.array([[1], [3], [0]], np.float32)
    assert not np.asarray(group_advantages(rewards, GRPO_PRESETS[name])).any()
    assert not np.asarray(grpo.keep_informative(rewards)).any()


def test_ungradable_responses_take_no_part():
    # Graded 1, 0: mean 1/2, std 1/2. The last group has one graded member, hence no comparison.
    rewards = np.array([[1, np.nan, 0], [5, 2, np.inf], [1, 7, 7]], np.float32)
    graded = np.array([[True, False, True], [True, True, False], [True, False, False]])
    advantages = group_advantages(rewards, GRPO_PRESETS["r1"], graded)
    np.testing.assert_allclose(advantages, [[1, 0, -1], [1, -1, 0], [0, 0, 0]], rtol=1e-5)
    assert np.asarray(grpo.keep_informative(rewards, graded)).tolist() == [True, True, False]
    weights = token_weights(np.array([4, 2, 5]), "response_mean", None, np.array([True, False, True]))
    np.testing.assert_allclose(weights, [1 / 8, 0, 1 / 10])

    # Even the KL term leaves them alone, and a broken number on them breaks nothing.
    logprobs, batch = tiny_batch([[0.1], [0.2], [0.3]], [1, 0, -1], [1 / 2, 0, 1 / 2], ref=[[1], [np.inf], [1]])
    gradient = tiny_gradient(logprobs, batch, GRPOConfig(kl_coefficient=0.5))
    assert np.isfinite(np.asarray(gradient)).all()
    assert float(gradient[1, 0]) == 0
    assert np.asarray(gradient)[[0, 2]].all()


def test_truncated_responses_are_counted_and_trained():
    # Nothing knows whether a response ended by itself: one cut at the limit weighs like any other of its length.
    limit = 3
    weights = np.asarray(token_weights(np.array([limit, 2]), "response_mean"))
    np.testing.assert_allclose(weights, [1 / (2 * limit), 1 / 4])
    advantages = np.asarray(group_advantages(np.array([[0.0, 1.0]]), GRPO_PRESETS["r1"]))[0]
    logprobs, batch = tiny_batch([[0] * limit, [0, 0]], advantages, weights)
    gradient = tiny_gradient(logprobs, batch, GRPOConfig(kl_coefficient=0))
    np.testing.assert_allclose(gradient[0], [1 / 6] * limit, rtol=1e-5)


def test_padded_response_slots_and_empty_batches_weigh_nothing():
    for aggregation in grpo.AGGREGATIONS:
        included = np.array([True, False])
        one = token_weights(np.array([4]), aggregation, 8)
        np.testing.assert_allclose(token_weights(np.array([4, 0]), aggregation, 8, included), [one[0], 0])
        assert not np.asarray(token_weights(np.array([4, 2]), aggregation, 8, ~included & included)).any()


def test_positions_outside_responses_never_matter():
    logprobs, batch = tiny_batch([[0.3, 0.1], [0.2]], [1, -1], [1 / 4, 1 / 2])
    config = GRPOConfig(clip_low=0.2, clip_high=0.2, kl_coefficient=0.1, importance_correction="sequence")
    clean = tiny_loss(logprobs, batch, config), tiny_gradient(logprobs, batch, config)
    dirty = logprobs.copy()
    dirty[1, 1] = -500.0  # e.g. a prompt token; exp(ref - new) would overflow, and inf * 0 is NaN
    found = tiny_loss(dirty, batch, config), tiny_gradient(dirty, batch, config)
    jax.tree.map(np.testing.assert_array_equal, clean, found)


def test_overlong_penalty_by_hand():
    # DAPO's numbers: limit 20480, cache 4096.
    lengths = np.array([100, 16384, 17408, 18432, 20480, 30000])
    np.testing.assert_allclose(grpo.overlong_penalty(lengths, 20480, 4096), [0, 0, -0.25, -0.5, -1, -1])
    for cache in (0, 20481):
        with pytest.raises(ValueError, match="0 < cache <= max_length"):
            grpo.overlong_penalty(lengths, 20480, cache)


def test_length_limit_follows_the_paper():
    schedule = ((0, 32768), (8200, 65536))
    assert [grpo.length_limit(step, schedule) for step in (0, 8199, 8200, 10400)] == [32768, 32768, 65536, 65536]
    for bad in ((), ((1, 5),), ((0, 5), (0, 6)), ((0, 5), (9, 6), (8, 7)), ((0, 0),)):
        with pytest.raises(ValueError, match="length schedule"):
            grpo.length_limit(3, bad)
    with pytest.raises(ValueError, match="step"):
        grpo.length_limit(-1, schedule)


# --- the configuration ----------------------------------------------------------------------------------------------


def test_presets_are_the_published_ones():
    r1, dapo = GRPO_PRESETS["r1"], GRPO_PRESETS["dapo"]
    assert (r1.clip_low, r1.clip_high, r1.kl_coefficient, r1.kl_estimator) == (10, 10, 0.001, "k3")
    assert (r1.advantage, r1.std_eps, r1.ratio, r1.aggregation) == ("group_std", 1e-6, "token", "response_mean")
    assert GRPO_PRESETS["r1_zero"] == dataclasses.replace(r1, clip_low=0.2, clip_high=0.2)
    assert (dapo.clip_low, dapo.clip_high, dapo.aggregation, dapo.dynamic_sampling) == (0.2, 0.28, "token_mean", True)
    assert set(GRPO_PRESETS) == {"r1", "r1_zero", "dr_grpo", "dapo", "gspo"}


@pytest.mark.parametrize("field", grpo.CHOICES)
def test_unknown_choice_names_field_value_and_allowed(field):
    with pytest.raises(ValueError, match=f"{field}='nope' is not one of .*{grpo.CHOICES[field][0]}"):
        GRPOConfig(**{field: "nope"})


def test_k1_is_refused_as_a_loss_term_with_the_reason():
    with pytest.raises(ValueError, match="mean gradient on-policy is zero"):
        GRPOConfig(kl_estimator="k1")


@pytest.mark.parametrize(
    ("field", "value"),
    [("clip_low", 0.0), ("clip_high", -1.0), ("kl_coefficient", -0.1), ("std_eps", math.nan)]
    + [("importance_cap", 1.0), ("clip_high", math.inf), ("overlong_cache", -1)],
)
def test_numbers_out_of_range_name_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        GRPOConfig(**{field: value})


def test_every_choice_has_its_function():
    assert set(grpo.CHOICES["ratio"]) == set(grpo.RATIOS)
    assert set(grpo.CHOICES["aggregation"]) == set(grpo.AGGREGATIONS)
    assert set(grpo.CHOICES["importance_correction"]) == set(grpo.IMPORTANCE)
    assert set(grpo.CHOICES["kl_estimator"]) == set(grpo.KL_LOSSES)


def test_aggregation_errors():
    with pytest.raises(ValueError, match="aggregation='mean' is not one of response_mean"):
        grpo.token_weights(np.array([1]), "mean")
    with pytest.raises(ValueError, match="generation budget"):
        grpo.token_weights(np.array([1]), "constant")
