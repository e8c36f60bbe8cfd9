"""What a stage makes of its rewards before it starts, and programs graded through what it opens."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import socket

import pytest
from test_sandbox import isolated

from r1jax.data.code_tasks import make_examples
from r1jax.data.errors import DataError
from r1jax.data.sources import ColumnMapping, SourceConfig
from r1jax.data.templates import render_completion
from r1jax.data.tokenizer import ByteTokenizer
from r1jax.model.presets import get_preset
from r1jax.rewards import grading
from r1jax.rewards.combine import RewardConfig
from r1jax.rewards.isolation.sandbox import Sandbox, SandboxUnavailableError
from r1jax.rewards.judges.judge import JudgeConfig
from r1jax.rollout import DecodingConfig
from r1jax.settings import ConfigError, from_config
from r1jax.sharding import MeshConfig, make_mesh
from r1jax.stages.checks import source_of
from r1jax.stages.graders import check_rewards, stage_grading
from r1jax.stages.policy import Policy
from r1jax.types import Example, Score, Status

CODE = RewardConfig(comparison="code")
(PROBLEM,) = make_examples(1, "rl", 0)
HERE = pathlib.Path()
SUM = Example(id="s", question="compute 7 + 5 ?", answer="12", task="chain_sum")


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def without_isolation(sandbox: Sandbox) -> None:
    raise SandboxUnavailableError("user namespaces are blocked")


@pytest.mark.parametrize(
    ("rewards", "example", "message"),
    [
        (
            RewardConfig(accuracy=0.0, safety=1.0),
            PROBLEM,
            "rewards.reward_models: safety count, and no model of theirs is named",
        ),
        (
            RewardConfig(language=1.0),
            dataclasses.replace(SUM, language="tlh"),
            "source: example .*: target language must be one of .*, got 'tlh'",
        ),
        (CODE, dataclasses.replace(PROBLEM, metadata={"function": "f"}), "source: example .* stdio, calls or test_cas"),
        (RewardConfig(), dataclasses.replace(SUM, answer=""), "source: example .*: no reference, and the comparison"),
        (RewardConfig(), PROBLEM, "source: example .*: comparison 'math': "),
    ],
)
def test_what_cannot_be_graded_is_refused_before_the_start(
    rewards: RewardConfig, example: Example, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sandbox, "check", lambda sandbox: None)
    with pytest.raises((DataError, ConfigError), match=message):
        check_rewards(rewards, {"source": [example]}, HERE, {})


def test_without_isolation_nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sandbox, "check", without_isolation)
    with pytest.raises(ConfigError, match="rewards: programs cannot be graded: user namespaces are blocked"):
        check_rewards(CODE, {"source": [PROBLEM]}, HERE, {})


def test_a_judge_that_an_earlier_stage_will_make_is_there_in_time(tmp_path: pathlib.Path) -> None:
    judge = JudgeConfig(kind="sampler", path="../sft", chat_format="qwen")
    rewards, stage = RewardConfig(comparison="judge", judge=judge), tmp_path / "rl"
    with pytest.raises(ConfigError, match=r"rewards\.judge: .*sft"):
        check_rewards(rewards, {"source": [PROBLEM]}, stage, {})
    check_rewards(rewards, {"source": [PROBLEM]}, stage, {tmp_path / "sft": get_preset("tiny_dense")})
    with pytest.raises(ConfigError, match=r"rewards\.judge: .*leaves no policy"):
        check_rewards(rewards, {"source": [PROBLEM]}, stage, {tmp_path / "sft": None})


def test_a_judge_that_does_not_answer_is_told_before_the_start() -> None:
    pytest.importorskip("openai")
    judge = JudgeConfig(url=f"http://127.0.0.1:{free_port()}/v1", model="m", retries=0, seconds=5.0)
    with pytest.raises(ConfigError, match=r"rewards\.judge: .*127\.0\.0\.1"):
        check_rewards(RewardConfig(comparison="judge", judge=judge), {"source": [PROBLEM]}, HERE, {})


@isolated
def test_programs_are_graded_while_others_come(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = "def f(xs): return 0"
    texts = [
        render_completion("so", PROBLEM.answer),
        render_completion("so", wrong),
        render_completion("so", "def f(xs) return 0"),
        "no program",
    ]
    mesh = make_mesh(MeshConfig())
    policy, decoding = Policy(get_preset("tiny_mla_moe"), {}, ByteTokenizer()), DecodingConfig()
    with stage_grading(dataclasses.replace(CODE, runs=0.5, lint=0.0), HERE, mesh, policy, decoding) as opened:
        batch = opened.begin()
        for i, text in enumerate(texts):
            batch.add(i, text, [], PROBLEM)
        scores = batch.scores()
        assert [score.total for score in scores] == [2.5, 1.5, 1.0, 0.0]
        assert [score.parts["runs"].value for score in scores] == [1.0, 1.0, 0.0, 0.0]
        monkeypatch.setattr(Sandbox, "run", without_isolation_now)
        batch = opened.begin()
        for i, text in enumerate(texts):
            batch.add(i, text, [], PROBLEM)
        lost = batch.scores()
    assert [score.total for score in lost] == [None, None, 1.0, 0.0]
    assert lost[0].parts["accuracy"].status is Status.UNGRADABLE
    assert lost[3].parts["accuracy"] == Score(0.0, reason="no program in a single final answer")


def without_isolation_now(*_: object, **__: object) -> None:
    raise SandboxUnavailableError("the server is gone")


def test_the_questions_own_language_can_decide_the_target(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "questions.jsonl"
    rows = ["What is seven plus five?", "七加五是多少?", "7 + 5"]
    path.write_text("".join(json.dumps({"question": q, "answer": "12"}) + "\n" for q in rows))
    columns = ColumnMapping(default_language="auto")
    source = source_of("source", SourceConfig(kind="jsonl", path=str(path), columns=columns))
    assert [example.language for example in source] == ["en", "zh", "en"]
    path.write_text(json.dumps({"question": "Сколько будет семь плюс пять?", "answer": "12"}) + "\n")
    with pytest.raises(DataError, match=r"source: example .* neither English nor Chinese by script"):
        source_of("source", SourceConfig(kind="jsonl", path=str(path), columns=columns))


def test_only_what_the_mixes_name_is_opened() -> None:
    with grading.open_grading(RewardConfig()) as opened:
        assert opened.mathematics is None
        assert opened._programs is None
    assert grading.needed_models(RewardConfig()) == set()
    general = {"chat": {"comparison": "none", "accuracy": 0.0, "helpfulness": 1.0}}
    assert grading.needed_models(RewardConfig(domains=general)) == {"helpfulness"}


def test_a_verifier_that_never_ends_is_ended_and_its_answer_is_wrong() -> None:
    """coin_flip reads answers as fractions: this one would have a thousand million digits."""
    pytest.importorskip("reasoning_gym")
    source = source_of("source", SourceConfig(kind="reasoning_gym", task="coin_flip", size=1))
    rewards, mesh = RewardConfig(grading_seconds=3.0, grading_workers=1), make_mesh(MeshConfig())
    policy = Policy(get_preset("tiny_mla_moe"), {}, ByteTokenizer())
    with stage_grading(rewards, HERE, mesh, policy, DecodingConfig()) as opened:
        batch = opened.begin()
        for i, answer in enumerate((source[0].answer, "1e999999999", "0.123")):
            batch.add(i, render_completion("so", answer), [], source[0])
        accuracies = [score.parts["accuracy"] for score in batch.scores()]
    assert [accuracy.value for accuracy in accuracies] == [1.0, 0.0, 0.0]
    assert all(accuracy.graded for accuracy in accuracies)
    assert accuracies[1].reason == "the verifier cannot read the answer: more than 3 s"


@isolated
def test_another_language_is_a_line_of_the_config() -> None:
    shell = {"source": "p.sh", "hello": "echo 42", "command": ["sh", "p.sh"]}
    rewards = from_config(RewardConfig, {"comparison": "code", "format": 0.0, "code": {"languages": {"sh": shell}}})
    tests = {"language": "sh", "stdio": [{"input": "3\n", "output": "6"}, {"input": "5\n", "output": "10"}]}
    doubled = Example("d", "double it", "", "doubling", metadata=tests)
    check_rewards(rewards, {"source": [doubled]}, HERE, {})
    with grading.open_grading(rewards) as opened:
        batch = opened.begin()
        batch.add(0, "<answer>read x; echo $((x * 2))</answer>", [], doubled)
        batch.add(1, "<answer>echo 6</answer>", [], doubled)
        assert [score.total for score in batch.scores()] == [1.0, 0.0]
    with pytest.raises(DataError, match="language 'rust' is not one of"):
        check_rewards(
            rewards, {"source": [dataclasses.replace(doubled, metadata={**tests, "language": "rust"})]}, HERE, {}
        )
