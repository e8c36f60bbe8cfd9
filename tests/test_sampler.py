"""What a sampled response may depend on, where it ends, and what is recorded of it."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model.presets import get_preset
from r1jax.model.transformer import Transformer, init_params
from r1jax.sampling.sampler import Sampler, SamplingConfig, left_pad
from r1jax.sampling.stop import byte_automaton, stop_table, token_automaton
from r1jax.sharding import MeshConfig, make_mesh
from r1jax.types import Rollout

WIDTH, BATCH = 8, 8
STOPS = tuple(range(2, 40))  # about one token in thirteen of a random model
CONFIG = SamplingConfig(max_new_tokens=14, stop_tokens=STOPS, chunk=8, regroup=4, record_experts=True)
ONE_CHUNK = dataclasses.replace(CONFIG, chunk=14, regroup=100)
MODEL = get_preset("tiny_mla_moe")


@pytest.fixture(scope="module")
def params():
    return init_params(MODEL, jax.random.key(0))


@pytest.fixture(scope="module")
def sampler():
    return Sampler(MODEL, None, CONFIG, WIDTH, BATCH)


def make_batch(count: int, seed: int = 0, vocab: int = 512):
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(40, vocab, rng.integers(1, WIDTH + 1)).tolist() for _ in range(count)]
    return *left_pad(prompts, WIDTH), jax.random.split(jax.random.key(seed), count)


def assert_same_rows(a: Rollout, b: Rollout, rows_a=slice(None), rows_b=slice(None), atol: float | None = None):
    """Equal to the last bit, log-probs too unless `atol` is given."""
    for name in ("response_tokens", "response_lengths", "finished", "experts"):
        np.testing.assert_array_equal(getattr(a, name)[rows_a], getattr(b, name)[rows_b], err_msg=name)
    x, y = a.sampler_logprobs[rows_a], b.sampler_logprobs[rows_b]
    if atol is None:
        np.testing.assert_array_equal(x, y)
    else:
        np.testing.assert_allclose(x, y, atol=atol, rtol=0)


def teacher_forced(cfg, params, rollout: Rollout, temperature: float = 1.0):
    """Log-probs and experts of the responses from one cacheless pass over prompt + response, right-padded."""
    rows, width = rollout.response_tokens.shape
    tokens = np.zeros((rows, WIDTH + width), np.int32)
    for row, length in enumerate(rollout.prompt_lengths):
        tokens[row, :length] = rollout.prompt_tokens[row, WIDTH - length :]
        tokens[row, length : length + width] = rollout.response_tokens[row]
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    out = jax.jit(lambda p: Transformer(cfg).apply({"params": p}, jnp.asarray(tokens), positions))(params)
    logprobs = np.asarray(jax.nn.log_softmax(out.logits / temperature))
    predicting = rollout.prompt_lengths[:, None] - 1 + np.arange(width)
    row = np.arange(rows)[:, None]
    experts = np.asarray(out.aux.experts).transpose(1, 2, 0, 3)[row, predicting]
    return logprobs[row, predicting, rollout.response_tokens], experts


def test_a_completion_does_not_depend_on_place_or_neighbours(params, sampler):
    prompts, lengths, keys = make_batch(20)
    rollout = sampler.sample(params, prompts, lengths, keys)
    assert 0 < rollout.finished.mean() < 1
    order = np.random.default_rng(1).permutation(20)
    permuted = sampler.sample(params, prompts[order], lengths[order], keys[order])
    assert_same_rows(rollout, permuted, rows_a=order)
    alone = sampler.sample(params, prompts[3:4], lengths[3:4], keys[3:4])
    assert_same_rows(rollout, alone, rows_a=slice(3, 4))
    others, other_lengths, other_keys = make_batch(20, seed=9)
    others[7], other_lengths[7], other_keys = prompts[3], lengths[3], other_keys.at[7].set(keys[3])
    mixed = sampler.sample(params, others, other_lengths, other_keys)
    assert_same_rows(rollout, mixed, rows_a=3, rows_b=7)
    assert (mixed.response_tokens[8] != rollout.response_tokens[8]).any()


def test_what_stands_in_the_padding_does_not_matter(params, sampler):
    prompts, lengths, keys = make_batch(8)
    noisy = np.where(np.arange(WIDTH) < WIDTH - lengths[:, None], -7, prompts)
    rollout = sampler.sample(params, prompts, lengths, keys)
    assert_same_rows(rollout, sampler.sample(params, noisy, lengths, keys))


def test_regrouping_changes_nothing(params, sampler):
    batch = make_batch(30)
    unhurried = Sampler(MODEL, None, dataclasses.replace(CONFIG, regroup=100), WIDTH, BATCH)
    unhurried._programs = sampler._programs  # the very same compiled programs: only the rows' company differs
    rollout = sampler.sample(params, *batch)
    assert_same_rows(rollout, unhurried.sample(params, *batch))


def test_one_chunk_and_another_batch_size_agree_within_float32_rounding(params, sampler):
    batch = make_batch(32)
    rollout = sampler.sample(params, *batch)
    assert_same_rows(rollout, Sampler(MODEL, None, ONE_CHUNK, WIDTH, 32).sample(params, *batch), atol=1e-5)


def test_records_equal_a_cacheless_pass_over_prompt_and_response(params, sampler):
    rollout = sampler.sample(params, *make_batch(16))
    logprobs, experts = teacher_forced(MODEL, params, rollout)
    within = np.arange(CONFIG.max_new_tokens) < rollout.response_lengths[:, None]
    np.testing.assert_allclose(rollout.sampler_logprobs[within], logprobs[within], atol=2e-5)
    same = np.sort(rollout.experts[within], axis=-1) == np.sort(experts[within], axis=-1)
    assert same.mean() > 0.999
    assert rollout.experts.dtype == np.int8


def test_nothing_is_recorded_after_the_end(params, sampler):
    rollout = sampler.sample(params, *make_batch(16))
    after = np.arange(CONFIG.max_new_tokens) >= rollout.response_lengths[:, None]
    assert (rollout.response_tokens[after] == 0).all()
    assert (rollout.sampler_logprobs[after] == 0).all()
    assert (rollout.experts[after] == -1).all()
    for tokens, length, finished in zip(
        rollout.response_tokens, rollout.response_lengths, rollout.finished, strict=True
    ):
        stopped = np.isin(tokens[:length], STOPS)
        assert stopped[:-1].sum() == 0
        assert stopped[-1] == finished
        assert finished or length == CONFIG.max_new_tokens


def test_a_lower_limit_gives_the_beginning_of_the_same_response(params, sampler):
    batch = make_batch(12)
    rollout = sampler.sample(params, *batch)
    for limit in (1, 5, 9):
        cut = sampler.sample(params, *batch, max_new_tokens=limit)
        np.testing.assert_array_equal(cut.response_tokens[:, :limit], rollout.response_tokens[:, :limit])
        np.testing.assert_array_equal(cut.sampler_logprobs[:, :limit], rollout.sampler_logprobs[:, :limit])
        np.testing.assert_array_equal(cut.response_lengths, np.minimum(rollout.response_lengths, limit))
        np.testing.assert_array_equal(cut.finished, rollout.finished & (rollout.response_lengths <= limit))
        assert (cut.response_tokens[:, limit:] == 0).all()


def test_a_stream_is_the_sampled_response_in_parts(params, sampler):
    prompts, lengths, keys = make_batch(20)
    rollout = sampler.sample(params, prompts, lengths, keys)
    ends = set()
    for row in range(20):
        prompt = prompts[row, WIDTH - lengths[row] :].tolist()
        parts = list(sampler.stream(params, prompt, keys[row]))
        length = rollout.response_lengths[row]
        assert list(itertools.chain.from_iterable(parts)) == rollout.response_tokens[row, :length].tolist()
        # The first token; every `regroup` = 4 steps, and where the chunk ends after 9 tokens.
        assert [len(part) for part in parts[:-1]] == [1, 4, 4, 4][: len(parts) - 1]
        ends.add(bool(rollout.finished[row]))
    assert ends == {True, False}


def test_rows_are_told_of_once_when_they_are_done_and_most_of_them_before_the_end(params, sampler):
    batch = make_batch(20)
    told: dict[int, tuple[list[int], int]] = {}
    calls: list[list[int]] = []

    def finished(rollout, rows):
        calls.append(rows.tolist())
        for row in rows.tolist():
            assert row not in told
            length = int(rollout.response_lengths[row])
            told[row] = rollout.response_tokens[row, :length].tolist(), length

    rollout = sampler.sample(params, *batch, finished=finished)
    assert_same_rows(rollout, sampler.sample(params, *batch))
    assert sorted(told) == list(range(20))
    for row, (tokens, length) in told.items():
        assert length == rollout.response_lengths[row]
        assert tokens == rollout.response_tokens[row, :length].tolist()
    assert len(calls) > 2
    assert not rollout.finished[calls[-1]].all()  # the last call has those that the limit cut
    assert rollout.finished[np.concatenate(calls[:-1])].all()


def test_a_stream_may_be_left_and_refuses_what_sample_refuses(params, sampler):
    stream = sampler.stream(params, [50, 51], jax.random.key(0))
    first = next(stream)
    stream.close()
    assert first == next(sampler.stream(params, [50, 51], jax.random.key(0)))
    with pytest.raises(ValueError, match="prompt of row 0 has 9 tokens, more than the prompt width 8"):
        next(sampler.stream(params, [1] * 9, jax.random.key(0)))
    with pytest.raises(ValueError, match="prompt of row 0 has token 512, outside the vocabulary of 512"):
        next(sampler.stream(params, [512], jax.random.key(0)))


def test_nothing_compiles_after_warmup(params):
    sampler = Sampler(MODEL, None, CONFIG, WIDTH, BATCH)
    batches = [make_batch(count, seed) for count, seed in ((20, 0), (20, 1), (3, 2))]
    for _, _, keys in batches:
        jax.block_until_ready(jax.random.key_data(keys))  # a view of the keys, compiled once per number of rows
    count = sampler.warmup()
    assert count == 6  # prefill; decode and merge for two chunks; grow
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    for batch, limit in zip(batches, (None, 6, 9), strict=True):
        sampler.sample(params, *batch, max_new_tokens=limit)
    assert compiled == []
    assert sampler.compile_count == count
    jax.jit(lambda x: x * 3 + 1)(jnp.ones(3)).block_until_ready()
    assert compiled  # the listener does see compilations


def test_sampling_on_a_mesh_equals_one_device():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, expert=2))
    cfg = dataclasses.replace(MODEL, num_moe_layers=1, mtp_depth=0)
    config = SamplingConfig(7, stop_tokens=STOPS, chunk=6, regroup=2, record_experts=True)
    batch = make_batch(16, seed=2)
    rollout = Sampler(cfg, None, config, WIDTH, 8).sample(init_params(cfg, jax.random.key(0)), *batch)
    sharded = init_params(cfg, jax.random.key(0), mesh)
    assert_same_rows(rollout, Sampler(cfg, mesh, config, WIDTH, 8).sample(sharded, *batch), atol=1e-5)


def test_the_dense_family_and_greedy_decoding():
    cfg = get_preset("tiny_dense", num_dense_layers=2)
    params = init_params(cfg, jax.random.key(0))
    greedy = Sampler(cfg, None, SamplingConfig(6, temperature=0.0, record_experts=True), WIDTH, BATCH)
    prompts, lengths, keys = make_batch(8)
    rollout = greedy.sample(params, prompts, lengths, keys)
    assert rollout.experts is None
    assert (rollout.response_lengths == 6).all()
    assert not rollout.finished.any()
    apply = jax.jit(lambda tokens: Transformer(cfg).apply({"params": params}, tokens, jnp.arange(20)[None]).logits)
    for row in range(2):
        tokens = prompts[row, WIDTH - lengths[row] :].tolist()
        for t in range(6):
            logits = apply(np.array([tokens + [0] * (20 - len(tokens))], np.int32))[0, len(tokens) - 1]
            assert rollout.response_tokens[row, t] == int(logits.argmax())
            np.testing.assert_allclose(rollout.sampler_logprobs[row, t], jax.nn.log_softmax(logits).max(), atol=1e-5)
            tokens.append(int(logits.argmax()))


def test_a_response_ends_at_the_first_token_that_completes_a_stop_string():
    cfg = get_preset("tiny_dense", num_dense_layers=1, ffn_dim=64)
    params = init_params(cfg, jax.random.key(0))
    rng = np.random.default_rng(0)
    alphabet = [b"a", b"b", b"ab", b"</", b"/a", b"n>", b"", "得".encode()[:1], "得".encode()[1:], b"ba"]
    token_bytes = [alphabet[i] for i in rng.integers(0, len(alphabet), 500)]
    strings = ("ab</a", "bb", "a得", "</n>")
    batch = make_batch(64, seed=4)
    stopped = Sampler(cfg, None, SamplingConfig(14, stop_strings=strings), WIDTH, 64, token_bytes).sample(
        params, *batch
    )
    free = Sampler(cfg, None, SamplingConfig(14), WIDTH, 64).sample(params, *batch)
    assert 0 < stopped.finished.mean() < 1
    for row, tokens in enumerate(free.response_tokens):
        length, found = first_stop([(token_bytes + [b""] * 12)[token] for token in tokens], strings)
        assert stopped.response_lengths[row] == length
        assert stopped.finished[row] == found
        np.testing.assert_array_equal(stopped.response_tokens[row, :length], tokens[:length])
        assert (stopped.response_tokens[row, length:] == 0).all()


def first_stop(pieces: list[bytes], strings) -> tuple[int, bool]:
    """By decoding the whole text again after every token."""
    for count in range(1, len(pieces) + 1):
        text = b"".join(pieces[:count]).decode(errors="replace")
        if any(string in text for string in strings):
            return count, True
    return len(pieces), False


def test_stop_table_equals_searching_the_decoded_text():
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(300):
        alphabet = ["a", "b", "<", "/", "得"] if rng.random() < 0.5 else ["a", "b"]
        strings = tuple("".join(rng.choice(alphabet, rng.integers(1, 6))) for _ in range(rng.integers(1, 4)))
        text = "".join(rng.choice(alphabet, 400)).encode()
        cuts = np.sort(rng.integers(0, len(text), 40))  # token borders anywhere, inside characters too
        pieces = [text[a:b] for a, b in itertools.pairwise(cuts)]
        table = stop_table(45, (41,), strings, [*pieces, b"a"])
        for _ in range(10):
            tokens = rng.integers(0, len(pieces), 12)
            state, length, done = 0, 0, False
            while not done and length < 12:
                state = table[state, tokens[length]]
                done = state == len(table)
                length += 1
            assert (length, done) == first_stop([pieces[token] for token in tokens], strings)
            found += done
        assert (table[:, 41] == len(table)).all()
    assert 500 < found < 2900


def test_an_automaton_worked_by_hand():
    automaton = byte_automaton([b"aab"])
    state, seen = 0, []
    for byte in b"aaab":
        state = automaton[state, byte]
        seen.append(int(state))
    assert seen == [1, 2, 2, 3]
    assert (automaton[3] == 3).all()
    assert token_automaton(automaton, [b"aa", b"", b"xab", b"abx"]).tolist() == [
        [2, 0, 0, 0],
        [2, 1, 0, 3],
        [2, 2, 0, 3],
        [3, 3, 3, 3],
    ]


def test_prompts_that_cannot_be_sampled_are_refused_by_name(params, sampler):
    with pytest.raises(ValueError, match=r"prompt of row 1 has 9 tokens, more than the prompt width 8"):
        left_pad([[1], [1] * 9], 8)
    with pytest.raises(ValueError, match=r"prompt of row 0 is empty"):
        left_pad([[], [1]], 8)
    prompts, lengths, keys = make_batch(8)
    with pytest.raises(ValueError, match=r"prompt of row 2 has 9 tokens"):
        sampler.sample(params, prompts, np.where(np.arange(8) == 2, 9, lengths), keys)
    with pytest.raises(ValueError, match=r"prompt of row 5 has token 512, outside the vocabulary of 512"):
        sampler.sample(params, np.where(np.arange(8)[:, None] == 5, 512, prompts), lengths, keys)
    with pytest.raises(ValueError, match=r"max_new_tokens is 15, expected 1..14"):
        sampler.sample(params, prompts, lengths, keys, max_new_tokens=15)
    with pytest.raises(ValueError, match=r"expected \[N, 8\]"):
        sampler.sample(params, prompts[:, 1:], lengths, keys)
    with pytest.raises(ValueError, match=r"8 prompts, but lengths \(7,\)"):
        sampler.sample(params, prompts, lengths[1:], keys)
    with pytest.raises(ValueError, match=r"rbg"):
        sampler.sample(params, prompts, lengths, jax.random.split(jax.random.key(0, impl="rbg"), 8))


def test_configurations_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match=r"500 \+ max_new_tokens 14 = 514 exceeds the model's max_positions 512"):
        Sampler(MODEL, None, CONFIG, 500, 8)
    with pytest.raises(ValueError, match=r"batch_size 12 is not a multiple of 8 parts of the mesh"):
        Sampler(MODEL, make_mesh(MeshConfig(data=8)), CONFIG, 8, 12)
    for field, value in (("temperature", -1.0), ("top_p", 0.0), ("top_k", -1), ("chunk", 0), ("max_new_tokens", 0)):
        with pytest.raises(ValueError, match=f"{field} is {value}"):
            SamplingConfig(**{"max_new_tokens": 4, field: value})
    with pytest.raises(ValueError, match="stop token 512 is outside"):
        stop_table(512, (512,))
    with pytest.raises(ValueError, match="need token_bytes"):
        stop_table(512, (), ("x",))
    with pytest.raises(ValueError, match="a stop string is empty"):
        stop_table(2, (), ("",), [b"a", b"b"])
    with pytest.raises(ValueError, match="U\\+FFFD"):
        stop_table(2, (), ("\ufffd",), [b"a", b"b"])
