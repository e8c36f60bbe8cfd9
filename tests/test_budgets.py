"""Thinking budgets: where chains are cut, what is drawn behind them, and that the others stay what they were."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from folders import BOS, EOS, byte_tokenizer

from r1jax.data.chat import THINK_CLOSE, THINK_OPEN
from r1jax.data.samples import Sample, write_samples
from r1jax.data.tokenizer import HuggingFaceTokenizer
from r1jax.evaluation import budgets
from r1jax.evaluation.budget_curve import budget_curve
from r1jax.evaluation.budgets import BudgetedAnswers, Thought, budget_figures, thought_of_tokens, without_budget
from r1jax.evaluation.estimators import summarize
from r1jax.evaluation.evaluator import evaluation_of
from r1jax.evaluation.plots import png
from r1jax.model.config import ModelConfig
from r1jax.model.presets import get_preset
from r1jax.model.transformer import init_params
from r1jax.rewards.combine import RewardConfig
from r1jax.rewards.grading import open_grading
from r1jax.rollout import Completer, DecodingConfig, GradedRollout, PromptConfig, grade
from r1jax.sampling.sampler import Sampler, SamplingConfig, left_pad
from r1jax.settings import ConfigError, from_config
from r1jax.sharding import MeshConfig, make_mesh
from r1jax.stages import evaluate
from r1jax.stages.interruption import Interrupted
from r1jax.stages.policy import Policy, describe_policy, save_policy
from r1jax.types import Example, Params, Rollout

LENGTH, ANSWER, WIDTH = 12, 5, 24
CLOSING = f" {THINK_CLOSE} <answer>"
DECODING = DecodingConfig(max_new_tokens=LENGTH, chunk=LENGTH, batch_size=8)
PROMPT = PromptConfig(template="chat", chat_format="r1", width=WIDTH)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation() -> Iterator[None]:
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)


@pytest.fixture(scope="module")
def tokenizer() -> HuggingFaceTokenizer:
    """Bytes, and each thinking tag one token."""
    return HuggingFaceTokenizer(byte_tokenizer(), EOS, BOS).with_tokens([THINK_OPEN, THINK_CLOSE])


@pytest.fixture(scope="module")
def model(tokenizer: HuggingFaceTokenizer) -> ModelConfig:
    small = {"vocab_size": tokenizer.vocab_size, "width": 32, "num_dense_layers": 1, "ffn_dim": 48, "init_std": 0.3}
    return dataclasses.replace(get_preset("tiny_dense"), max_positions=96, **small)


@pytest.fixture(scope="module")
def params(model: ModelConfig) -> Params:
    return init_params(model, jax.random.key(0))


def one_device() -> Any:
    return make_mesh(MeshConfig(), devices=jax.devices()[:1])


@pytest.mark.parametrize(
    ("text", "opened", "finished", "thought"),
    [
        (f"ab{THINK_CLOSE}cd", True, True, Thought(0, 3)),  # the prompt has opened it
        (f"{THINK_OPEN}ab{THINK_CLOSE}c", False, True, Thought(1, 4)),
        (f"  {THINK_OPEN}ab{THINK_CLOSE}c", False, True, Thought(3, 6)),  # blanks before it
        (f"{THINK_OPEN}ab", False, False, Thought(1, 4)),  # cut by the length limit: open after all its tokens
        (f"{THINK_OPEN}ab", False, True, Thought(1, 3)),  # ended by itself: after its last token no more
        ("abc", False, False, Thought(0, 0)),  # no thought
        (f"a{THINK_OPEN}b", False, False, Thought(0, 0)),
    ],
)
def test_where_a_response_thinks(
    text: str, opened: bool, finished: bool, thought: Thought, tokenizer: HuggingFaceTokenizer
) -> None:
    tokens = tokenizer.encode(text)
    assert thought_of_tokens(tokens, tokenizer, opened, finished) == thought
    # The text itself says the same.
    for count in range(1, len(tokens) + 1):
        begun = (THINK_OPEN if opened else "") + tokenizer.decode(tokens[:count])
        inside = begun.lstrip().startswith(THINK_OPEN) and THINK_CLOSE not in begun
        assert thought.is_open(count) == (inside and not (finished and count == len(tokens)))


RESPONSES = (
    f"abc{THINK_CLOSE}<answer>9{EOS}",  # thinks 3 tokens; 13 would be too many, so the answer is short
    f"abcdef{THINK_CLOSE}9{EOS}",
    "abcdefghijkl",  # cut by the limit, still thinking
    f"ab{EOS}",  # ended within its thought
    f"abcdefghijk{THINK_CLOSE}",  # cut by the limit, after its thought
    f"xyz{THINK_CLOSE}{EOS}",
)


@pytest.fixture(scope="module")
def answers(tokenizer: HuggingFaceTokenizer) -> GradedRollout:
    """Two questions, three responses each."""
    responses = [tokenizer.encode(text)[:LENGTH] for text in RESPONSES]
    prompts = [tokenizer.encode(f"{BOS}<｜User｜>{n}?<｜Assistant｜>{THINK_OPEN}\n") for n in (1, 22) for _ in range(3)]
    tokens, lengths = left_pad(prompts, WIDTH)
    rollout = Rollout(
        prompt_tokens=tokens,
        prompt_lengths=lengths,
        response_tokens=np.array([r + [0] * (LENGTH - len(r)) for r in responses], np.int32),
        response_lengths=np.array([len(r) for r in responses], np.int32),
        sampler_logprobs=np.full((6, LENGTH), -1.0, np.float32),
        finished=np.array([r[-1] == tokenizer.eos_id for r in responses]),
    )
    texts = [tokenizer.decode(r) for r in responses]
    with open_grading(RewardConfig()) as grading:
        return grade(rollout, texts, [Example("a", "1?", "9", "t"), Example("b", "22?", "9", "t")], grading)


@pytest.fixture(scope="module")
def maker(tokenizer: HuggingFaceTokenizer, model: ModelConfig) -> BudgetedAnswers:
    return BudgetedAnswers(CLOSING, ANSWER, PROMPT, DECODING, model, one_device(), tokenizer)


def under(
    budget: int, maker: BudgetedAnswers, params: Params, answers: GradedRollout, store: pathlib.Path
) -> budgets.Budgeted:
    with open_grading(RewardConfig()) as grading:
        thoughts = maker.thoughts(answers)
        return maker.answer(params, answers, thoughts, budget, jax.random.key(7), grading, store)


@pytest.mark.parametrize(
    ("budget", "cut", "thinking"),
    [
        (2, [1, 1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2]),
        (3, [1, 1, 1, 0, 1, 1], [3, 3, 3, 3, 3, 3]),  # the fourth has ended; its stop token is one of its three
        (4, [0, 1, 1, 0, 1, 0], [4, 4, 4, 3, 4, 4]),  # the tag that closes a thought is one of its tokens
        (12, [0, 0, 1, 0, 0, 0], [4, 7, 12, 3, 12, 4]),
    ],
)
def test_chains_are_cut_at_the_budget_and_no_other_response_changes(
    budget: int,
    cut: list[int],
    thinking: list[int],
    maker: BudgetedAnswers,
    params: Params,
    answers: GradedRollout,
    tokenizer: HuggingFaceTokenizer,
    tmp_path: pathlib.Path,
) -> None:
    found = under(budget, maker, params, answers, tmp_path / "part.npz")
    assert found.cut.tolist() == [bool(c) for c in cut]
    assert found.thinking.tolist() == thinking
    closing = tokenizer.encode(CLOSING)
    before, after = answers.rollout, found.graded.rollout
    for i in range(6):
        length = int(after.response_lengths[i])
        row = after.response_tokens[i].tolist()
        if not cut[i]:
            assert length == before.response_lengths[i]
            assert row[:LENGTH] == before.response_tokens[i].tolist()
            assert (found.graded.texts[i], found.drawn[i]) == (answers.texts[i], 0)
            assert found.graded.scores[i] is not None
            continue
        assert row[:budget] == before.response_tokens[i, :budget].tolist()
        assert row[budget : budget + len(closing)] == closing
        assert length == budget + len(closing) + found.drawn[i]
        assert after.finished[i] == (row[length - 1] == tokenizer.eos_id)
        assert after.finished[i] or found.drawn[i] == ANSWER
        assert not any(row[length:])
        assert found.graded.texts[i] == tokenizer.decode(row[:length])
        assert found.graded.texts[i].startswith(tokenizer.decode(row[:budget]) + CLOSING)
        assert (after.sampler_logprobs[i, :budget] == -1).all()
        assert not after.sampler_logprobs[i, budget : budget + len(closing)].any()


def test_an_answer_is_what_the_sampler_draws_behind_the_closed_chain(
    maker: BudgetedAnswers,
    params: Params,
    answers: GradedRollout,
    model: ModelConfig,
    tokenizer: HuggingFaceTokenizer,
    tmp_path: pathlib.Path,
) -> None:
    """Row by row, with a sampler of another width and block."""
    found = under(4, maker, params, answers, tmp_path / "part.npz")
    before, begin = answers.rollout, 4 + len(tokenizer.encode(CLOSING))
    sampler = Sampler(model, None, SamplingConfig(ANSWER, stop_tokens=(tokenizer.eos_id,)), 40, batch_size=1)
    for i in np.flatnonzero(found.cut).tolist():
        prompt = before.prompt_tokens[i, WIDTH - before.prompt_lengths[i] :].tolist()
        whole = [*prompt, *before.response_tokens[i, :4].tolist(), *tokenizer.encode(CLOSING)]
        key = jax.random.fold_in(jax.random.key(7), i)
        drawn = sampler.sample(params, *left_pad([whole], 40), key[None])
        count = int(drawn.response_lengths[0])
        assert found.drawn[i] == count
        row = found.graded.rollout.response_tokens[i, begin : begin + count]
        np.testing.assert_array_equal(row, drawn.response_tokens[0, :count])
        logprobs = found.graded.rollout.sampler_logprobs[i, begin : begin + count]
        np.testing.assert_allclose(logprobs, drawn.sampler_logprobs[0, :count], atol=1e-4)


def test_a_budget_above_every_chain_changes_no_figure(
    maker: BudgetedAnswers, params: Params, answers: GradedRollout, tmp_path: pathlib.Path
) -> None:
    free = without_budget(answers, maker.thoughts(answers))
    found = under(LENGTH + 1, maker, params, answers, tmp_path / "part.npz")
    figures = [budget_figures([part], None, RewardConfig(), 0) for part in (free, found)]
    assert figures[0] == figures[1]
    assert figures[0]["share_cut"] == 0.0
    assert figures[0]["thinking_tokens"] == pytest.approx(np.mean([4, 7, 12, 3, 12, 4]))
    plain = summarize(evaluation_of([answers]))
    assert {name: figures[0][name] for name in plain} == plain


def test_what_is_stored_is_neither_drawn_nor_graded_again(
    maker: BudgetedAnswers,
    params: Params,
    answers: GradedRollout,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = under(4, maker, params, answers, tmp_path / "part.npz")
    monkeypatch.setattr(BudgetedAnswers, "_forced", lambda *args: pytest.fail("sampled again"))
    again = under(4, maker, params, answers, tmp_path / "part.npz")
    assert again.graded.texts == first.graded.texts
    assert again.graded.scores == first.graded.scores
    assert again.drawn.tolist() == first.drawn.tolist()


def test_the_curve_is_drawn_over_thinking_tokens(
    maker: BudgetedAnswers, params: Params, answers: GradedRollout, tmp_path: pathlib.Path
) -> None:
    found = under(4, maker, params, answers, tmp_path / "part.npz")
    rows = [budget_figures([found], 4, RewardConfig(), 0)]
    rows.append(budget_figures([without_budget(answers, maker.thoughts(answers))], None, RewardConfig(), 0))
    figure = budget_curve(rows)
    assert figure is not None
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["4", "no budget"]
    assert [text.xy for text in axes.texts] == [(row["thinking_tokens"], row["pass_at_1"]) for row in rows]
    assert png(figure).startswith(b"\x89PNG")
    assert budget_curve([row | {"pass_at_1": None} for row in rows]) is None


# The stage -------------------------------------------------------------------------------------------------------


MADE: dict[str, Any] = {}


def completer(*args: Any, **kwargs: Any) -> Completer:
    """The same one for every run: it holds nothing but compiled programs, of one configuration."""
    if "completer" not in MADE:
        MADE["completer"] = Completer(*args, **kwargs)
    return MADE["completer"]


@pytest.fixture
def run_folder(
    tokenizer: HuggingFaceTokenizer,
    model: ModelConfig,
    params: Params,
    maker: BudgetedAnswers,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> pathlib.Path:
    """A work directory beside a policy of noise."""
    policy = tmp_path / "policy"
    policy.mkdir()
    describe_policy(policy, Policy(model, params, tokenizer))
    save_policy(policy, params, 1)
    monkeypatch.setattr(evaluate, "make_mesh", lambda config: one_device())
    monkeypatch.setattr(evaluate, "Completer", completer)
    monkeypatch.setattr(evaluate, "BudgetedAnswers", lambda *args: maker)
    rows = [{"question": f"{n}+{n}?", "answer": str(2 * n)} for n in range(4)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_samples(tmp_path / "samples_kept.jsonl", [Sample("s", question="3+3?", completion="6")])
    return tmp_path


def stage_config(folder: pathlib.Path, **changes: Any) -> evaluate.EvaluateConfig:
    fields: dict[str, Any] = {
        "init": {"kind": "stage", "path": "../policy"},
        "source": {"kind": "jsonl", "path": str(folder / "questions.jsonl")},
        "samples": 4,
        "prompt": dataclasses.asdict(PROMPT),
        "decoding": dataclasses.asdict(DECODING),
        "thinking_budgets": (4, LENGTH),
        "budget_closing": CLOSING,
        "budget_answer_tokens": ANSWER,
        "contamination": ("../samples_kept.jsonl", {"kind": "tasks", "split": "rl", "size": 5}),
    }
    return from_config(evaluate.EvaluateConfig, fields | changes)


def stop(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """The `call`-th call of a function ends the process, after its work."""
    original, calls = getattr(owner, name), []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        calls.append(1)
        if len(calls) == call:
            raise Interrupted
        return result

    monkeypatch.setattr(owner, name, wrapped)


def test_an_evaluation_with_budgets_stopped_anywhere_ends_as_if_undisturbed(run_folder: pathlib.Path) -> None:
    config = stage_config(run_folder)
    whole, stopped = run_folder / "whole", run_folder / "stopped"
    whole.mkdir(), stopped.mkdir()
    evaluate.check(config, whole, {})
    evaluate.run(config, whole)
    for owner, name, call in (
        (evaluate, "answer_examples", 1),
        (budgets, "save_graded", 1),
        (BudgetedAnswers, "answer", 3),
    ):
        with pytest.MonkeyPatch.context() as patch:
            stop(patch, owner, name, call)
            with pytest.raises(Interrupted):
                evaluate.run(config, stopped)
    evaluate.run(config, stopped)
    summaries = [json.loads((folder / "summary.json").read_text(encoding="utf-8")) for folder in (whole, stopped)]
    for summary in summaries:
        assert summary.pop("seconds") == summary["cost"].pop("seconds") > 0
    assert summaries[0] == summaries[1]
    for name in ("budgets.png", "samples.jsonl"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes()
    check_summary(summaries[0])


def check_summary(summary: dict[str, Any]) -> None:
    """Of the 4 x 4 responses. Nearly all think to the limit: a model of noise seldom closes a thought."""
    cut, most, free = summary["budgets"]
    assert [row["budget"] for row in summary["budgets"]] == [4, LENGTH, None]
    assert free["share_cut"] == 0.0 < most["share_cut"] <= cut["share_cut"]
    assert cut["thinking_tokens"] <= 4.0 < most["thinking_tokens"] == free["thinking_tokens"] <= LENGTH
    assert {name: free[name] for name in ("pass_at_1", "length_mean", "truncation_rate", "by_domain")} == {
        name: summary[name] for name in ("pass_at_1", "length_mean", "truncation_rate", "by_domain")
    }
    told = summary["contamination"]
    assert [told[name] for name in ("questions", "equal", "overlap")] == [4, 1, 1]
    assert list(told["trained"]) == ["contamination[0]: ../samples_kept.jsonl", "contamination[1]: tasks"]
    # Tokens were drawn for the free responses, and behind every cut chain: what is longer than budget and closing.
    sampled = 16 * free["length_mean"]
    assert sampled < summary["cost"]["tokens_sampled"] <= sampled + 32 * ANSWER
    assert summary["cost"]["tokens_trained"] == 0 < summary["cost"]["flops"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thinking_budgets": (8, 4)}, r"thinking_budgets: \(8, 4\) must be ascending, and at least 1"),
        ({"thinking_budgets": (0,)}, r"thinking_budgets: \(0,\) must be ascending"),
        ({"thinking_budgets": (13,)}, "no chain has 13 tokens: decoding.max_new_tokens = 12"),
        ({"budget_closing": "<answer>"}, "budget_closing: '<answer>' must have one </think> and no <think>"),
        ({"budget_answer_tokens": 0}, "budget_answer_tokens: 0; at least 1"),
        (
            {"rewards": {"pattern": "boxed"}, "budget_closing": " </think> <answer>"},
            "budget_closing: .* begins an answer in tags, which the pattern 'boxed' does not read",
        ),
        ({"samples": -1}, "samples: -1 answers per question"),
    ],
)
def test_budgets_that_cannot_be_are_refused(changes: dict[str, Any], message: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match=message):
        stage_config(tmp_path, **changes)


def test_budgets_must_fit_the_context_and_trained_files_must_be_there(run_folder: pathlib.Path) -> None:
    config = stage_config(run_folder, budget_answer_tokens=60)
    with pytest.raises(ConfigError, match=r"budget_closing \+ budget_answer_tokens = 107 tokens exceed .* = 96"):
        evaluate.check(config, run_folder / "whole", {})
    config = stage_config(run_folder, contamination=("../gone.jsonl",))
    for early in (partial(evaluate.check, planned={}), evaluate.run):
        with pytest.raises(ValueError, match=r"contamination\[0\]: .*gone.jsonl: No such file"):
            early(config, run_folder / "whole")
    planned: dict[pathlib.Path, Any] = {(run_folder / "rejection").resolve(): None}
    evaluate.check(stage_config(run_folder, contamination=("../rejection/kept.jsonl",)), run_folder / "whole", planned)
