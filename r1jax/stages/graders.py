"""The graders that a stage's rewards need, made with what a stage can load: verifiers, sandboxes, judges."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future

from jax.sharding import Mesh

from r1jax.data import reasoning_tasks
from r1jax.data.chat import Chat, Message
from r1jax.data.errors import DataError
from r1jax.data.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer
from r1jax.model.config import ModelConfig
from r1jax.processes import from_writer
from r1jax.rewards.code.lint import LintUnavailableError
from r1jax.rewards.combine import MODEL_PARTS, NONE, RewardConfig
from r1jax.rewards.device_rewards import DeviceRewards
from r1jax.rewards.grading import Grading, Models, check_grading, needed_models, open_grading
from r1jax.rewards.isolation.grade_service import read_token
from r1jax.rewards.isolation.sandbox import SandboxUnavailableError
from r1jax.rewards.judges.chat_models import ChatModel, Conversation, Endpoint, Reply
from r1jax.rewards.judges.judge import GroundTruthJudge, JudgeConfig, truth_conversation
from r1jax.rewards.judges.reward_models import ScalarGrader
from r1jax.rewards.workers import Ending, Outcome, WorkerPool
from r1jax.rollout import DecodingConfig
from r1jax.sampling.answers import SamplerChat
from r1jax.sampling.decode import SamplingConfig
from r1jax.settings import ConfigError
from r1jax.stages.checks import Planned, is_planned, known_policy
from r1jax.stages.policy import Policy, PolicySource, load_policy
from r1jax.stages.scalar_model import VIEWS, describe_reward_model, load_reward_model
from r1jax.types import Example, Score, Status


def check_rewards(
    rewards: RewardConfig, sources: Mapping[str, Sequence[Example]], workdir: pathlib.Path, planned: Planned
) -> None:
    """That every example can be graded by these rewards.

    Raises:
      DataError: naming the source, the example and what it lacks.
      ConfigError: a tool or a model is missing.
    """
    missing = (needed_models(rewards) & set(MODEL_PARTS)) - set(rewards.reward_models)
    if missing:
        raise ConfigError(f"rewards.reward_models: {', '.join(sorted(missing))} count, and no model of theirs is named")
    for name, path in rewards.reward_models.items():
        check_reward_model(name, workdir / path, planned)
    if rewards.code.server:
        try:
            read_token()
        except ValueError as error:
            raise ConfigError(f"rewards.code.server: {rewards.code.server}: {error}") from error
    for field, examples in sources.items():
        try:
            check_grading(rewards, examples)
        except (SandboxUnavailableError, LintUnavailableError) as error:
            raise ConfigError(f"rewards: programs cannot be graded: {error}") from error
        except ValueError as error:
            raise DataError(f"{field}: {error}") from error
    if "judge" in needed_models(rewards):
        assert rewards.judge is not None
        try:
            check_judge(rewards.judge, workdir, planned)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"rewards.judge: {str(error).removeprefix('init.')}") from error


def check_reward_model(name: str, folder: pathlib.Path, planned: Planned) -> None:
    """That a finished reward model of the right view is there, or is going to be. ConfigError, naming the field."""
    if is_planned(folder, planned):
        return
    try:
        _, _, card = describe_reward_model(folder)
    except ConfigError as error:
        raise ConfigError(f"rewards.reward_models.{name}: {error}") from error
    if card.view != name:
        raise ConfigError(f"rewards.reward_models.{name}: {folder} holds a model of {card.view}")


class Verifiers:
    """reasoning-gym's own verifiers, in processes: some never end on an answer that a model can think of.

    The processes start with the first answer.
    """

    def __init__(self, rewards: RewardConfig) -> None:
        self._rewards = rewards
        self._pool: WorkerPool | None = None

    def start(self, example: Example, answer: str) -> Callable[[], Score]:
        """Starts the verifier; the result waits for the score.

        An answer that takes too long, or is the end of its process, is wrong if the verifier can do with the reference;
        else nothing can be said.
        """
        outcome = self._submit(example, answer)
        return lambda: self._score(example, answer, outcome.result())

    def _submit(self, example: Example, answer: str | None) -> Future[Outcome]:
        if self._pool is None:
            rewards = self._rewards
            self._pool = WorkerPool(reasoning_tasks.grade_in_worker, rewards.grading_workers, rewards.grading_seconds)
        return self._pool.submit(*reasoning_tasks.worker_arguments(example, answer, self._rewards.partial_credit))

    def _score(self, example: Example, answer: str, outcome: Outcome) -> Score:
        if outcome.ending is Ending.DONE:
            value, status, reason = outcome.value
            return Score(value, Status(status), reason)
        if outcome.ending is Ending.CRASHED:  # once more: somebody else may have ended the process
            outcome = self._submit(example, answer).result()
            if outcome.ending is Ending.DONE:
                return self._score(example, answer, outcome)
        reference = self._submit(example, example.metadata["entry"].get("answer")).result()
        if outcome.ending is not Ending.FAILED and reference.ending is Ending.DONE and reference.value[0] == 1.0:
            return Score(0.0, reason=f"the verifier cannot read the answer: {outcome.reason}")
        status = Status.TIMED_OUT if outcome.ending is Ending.TIMED_OUT else Status.UNGRADABLE
        return Score(0.0, status, outcome.reason)

    def close(self) -> None:
        """Ends the processes."""
        if self._pool is not None:
            self._pool.close()


def check_comparable(field: str, rewards: RewardConfig, examples: Sequence[Example]) -> None:
    """That every example has a right answer, so that it can be evaluated. ConfigError naming one that has none."""
    for example in examples:
        if rewards.mix(example.domain).comparison == NONE:
            raise ConfigError(f"{field}: example {example.id!r} of domain {example.domain!r} has no right answer")


@contextlib.contextmanager
def stage_grading(
    rewards: RewardConfig, workdir: pathlib.Path, mesh: Mesh, policy: Policy, decoding: DecodingConfig
) -> Iterator[Grading]:
    """The graders of a stage, while it runs; `policy` and `decoding` say what will be graded."""
    with contextlib.ExitStack() as stack:
        verifiers = Verifiers(rewards)
        stack.callback(verifiers.close)
        judge = None
        if "judge" in needed_models(rewards):
            assert rewards.judge is not None
            model = stack.enter_context(open_chat_model(rewards.judge, workdir, mesh))
            batched, parallel = rewards.judge.kind == "sampler", rewards.judge.parallel
            judge = GroundTruthJudge(model, batched=batched, parallel=parallel)
            stack.callback(judge.close)
        scalar = {}
        for name, path in rewards.reward_models.items():
            scalar[name] = ScalarGrader(load_reward_model(workdir / path, mesh, decoding.batch_size), VIEWS[name])
            stack.callback(scalar[name].close)
        device = None
        if rewards.on_device:
            device = DeviceRewards(policy.tokenizer.token_bytes, policy.model.vocab_size, decoding.max_new_tokens)
        yield stack.enter_context(open_grading(rewards, verifiers.start, Models(judge, scalar), device))


def check_judge(judge: JudgeConfig, workdir: pathlib.Path, planned: Planned) -> None:
    """That the model is there, or is going to be. ValueError or ImportError, saying what is missing."""
    if judge.kind == "endpoint":
        with Endpoint(judge.endpoint()) as endpoint:
            endpoint.check()
    else:
        model, tokenizer = known_policy(_policy_of(judge), workdir, planned)
        if tokenizer is not None:  # else when the policy has been made, before the stage that asks it draws anything
            _check_room(judge, model, tokenizer)


def _check_room(judge: JudgeConfig, model: ModelConfig, tokenizer: Tokenizer) -> None:
    prompt = _chat(tokenizer, judge.chat_format).prompt([Message(**m) for m in truth_conversation("", "", "")])
    if len(prompt.tokens) + judge.max_new_tokens > model.max_positions:
        raise ValueError(
            f"max_new_tokens: {judge.max_new_tokens}; an empty question takes {len(prompt.tokens)} tokens, and the "
            f"model's context is {model.max_positions}"
        )


@contextlib.contextmanager
def open_chat_model(judge: JudgeConfig, workdir: pathlib.Path, mesh: Mesh) -> Iterator[ChatModel]:
    """The model that is asked: an endpoint, or a policy in the sampler (paths are relative to `workdir`)."""
    if judge.kind == "endpoint":
        with Endpoint(judge.endpoint()) as endpoint:
            yield endpoint
        return
    policy = load_policy(_policy_of(judge), workdir, mesh)
    _check_room(judge, policy.model, policy.tokenizer)
    sampling = SamplingConfig(judge.max_new_tokens, temperature=judge.temperature)
    chat = _chat(policy.tokenizer, judge.chat_format)
    yield SamplerChat(policy.model, policy.params, policy.tokenizer, chat, sampling, judge.batch_size, mesh)


@contextlib.contextmanager
def open_shared_chat_model(judge: JudgeConfig, workdir: pathlib.Path, mesh: Mesh) -> Iterator[ChatModel]:
    """As `open_chat_model`, for what all processes ask alike: an endpoint is asked by one of them."""
    with open_chat_model(judge, workdir, mesh) as model:
        yield AskedByWriter(model) if judge.kind == "endpoint" else model


class AskedByWriter:
    """A model whose replies to the writer are shared by all processes."""

    def __init__(self, model: ChatModel) -> None:
        self._model = model

    def ask(self, conversations: Sequence[Conversation], seed: int) -> list[Reply]:
        """See `ChatModel`."""
        return from_writer(lambda: self._model.ask(conversations, seed))


def _chat(tokenizer: Tokenizer, chat_format: str) -> Chat:
    assert isinstance(tokenizer, HuggingFaceTokenizer | SentencePieceTokenizer)  # a policy has no other
    return Chat(tokenizer, chat_format)


def _policy_of(judge: JudgeConfig) -> PolicySource:
    if judge.path == "smollm2":
        return PolicySource("smollm2")
    return PolicySource("gguf" if judge.path.endswith(".gguf") else "stage", judge.path)
