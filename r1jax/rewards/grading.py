"""The graders of a stage: opened once, checked before the work starts, and asked as completions finish.

Every part of the reward that needs time starts at once, in workers of its own (processes for mathematics, sandboxes for
programs, requests to a judge), so that grading goes on while the sampler draws. What a model of this process has to say
(a judge or a reward model on the same accelerator) waits for the whole batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Protocol

from r1jax.processes import gather_dicts
from r1jax.rewards.answer import extract_final_answer
from r1jax.rewards.code.code_accuracy import LANGUAGES, MEASURES, CodeGrader, Runner
from r1jax.rewards.combine import (
    CODE_PARTS,
    COMPARISONS,
    MODEL_PARTS,
    NONE,
    Mix,
    RewardConfig,
    Scores,
    VerifyFunction,
    combine,
    measured_parts,
    needs_verifier,
    shaping_parts,
    verified,
)
from r1jax.rewards.device_rewards import DeviceRewards
from r1jax.rewards.isolation.grade_service import RemoteSandbox, read_token
from r1jax.rewards.isolation.sandbox import Sandbox
from r1jax.rewards.judges.judge import GroundTruthJudge
from r1jax.rewards.languages.language import check_language
from r1jax.rewards.mathematics.math_grader import MathGrader
from r1jax.rewards.patterns import PATTERNS
from r1jax.types import Example, Score, Status


class Grader(Protocol):
    """One part of the reward, by something that takes its time."""

    def submit(self, completion: str, example: Example) -> Future[Score]:
        """The score, as soon as it is known."""

    def flush(self) -> None:
        """Nothing more comes for now: whatever waits for company is graded."""


Waiting = Mapping[str, Callable[[], Score]]
"""Part of the reward -> waits for its score."""


@dataclasses.dataclass(frozen=True)
class Models:
    """The models that grade, made by whoever can load them. None, or absent: there is none."""

    judge: GroundTruthJudge | None = None
    scalar: Mapping[str, Grader] = dataclasses.field(default_factory=dict)  # keys of MODEL_PARTS


class Grading:
    """All graders of a `RewardConfig`; `open_grading` makes one."""

    def __init__(
        self,
        config: RewardConfig,
        verify: VerifyFunction | None,
        mathematics: MathGrader | None,
        programs: tuple[Mapping[Mix, CodeGrader], ThreadPoolExecutor] | None,
        models: Models,
        device: DeviceRewards | None = None,
    ) -> None:
        self.config = config
        self.mathematics = mathematics
        self.device = device
        self._verify = verify
        self._programs = programs
        self._models = models

    def begin(self) -> Batch:
        """A batch of completions to be graded together."""
        return Batch(self)

    def start(self, completion: str, example: Example) -> Waiting:
        """Starts grading one completion: its accuracy, and every other part that takes time and counts."""
        mix = self.config.mix(example.domain)
        waiting = {
            name: self._models.scalar[name].submit(completion, example).result
            for name in MODEL_PARTS
            if name in mix.counted
        }
        completion = PATTERNS[mix.pattern].tagged(completion)
        if needs_verifier(example):
            if self._verify is None:
                raise ValueError(f"task {example.task!r} is graded by its own verifier, but none was given")
            answer = extract_final_answer(completion)
            if answer is None:
                return {**waiting, "accuracy": partial(_known, Score(0.0, reason="no single final answer"))}
            verdict = self._verify(example, answer)
            return {**waiting, "accuracy": partial(_verdict, verdict, example, self.config.partial_credit)}
        if mix.comparison == "expressions":
            assert self.mathematics is not None
            return {**waiting, "accuracy": self.mathematics.submit(completion, example).result}
        if mix.comparison == "judge":
            assert self._models.judge is not None
            return {**waiting, "accuracy": self._models.judge.submit(completion, example).result}
        if mix.comparison == "code":
            assert self._programs is not None
            graders, threads = self._programs
            parts = threads.submit(graders[mix].parts, completion, example)
            names = ("accuracy", *(name for name in CODE_PARTS if name in mix.counted))
            return {**waiting, **{name: partial(_part_of, parts, name) for name in names}}
        compare = COMPARISONS.get(mix.comparison)
        if compare is not None and not self.is_matched_on_device(example):
            waiting["accuracy"] = partial(_known, compare(completion, example))
        return waiting

    def is_matched_on_device(self, example: Example) -> bool:
        """Whether the device compares the answer of an example."""
        exact = self.config.mix(example.domain).comparison == "exact"
        return exact and self.device is not None and not needs_verifier(example)

    def flush(self) -> None:
        """Lets the models of this process grade what they were given."""
        for grader in (self._models.judge, *self._models.scalar.values()):
            if grader is not None:
                grader.flush()


def _verdict(verdict: Callable[[], Score], example: Example, partial_credit: bool) -> Score:
    return verified(verdict(), example, partial_credit)


def _known(score: Score) -> Score:
    return score


def _part_of(parts: Future[dict[str, Score]], name: str) -> Score:
    return parts.result()[name]


class Batch:
    """Completions that are graded as they come; the same answer to the same example is graded once."""

    def __init__(self, grading: Grading) -> None:
        self._grading = grading
        self._given: dict[int, tuple[str, Sequence[int], Example]] = {}
        self._started: dict[tuple[str, int], Waiting] = {}

    def add(self, index: int, completion: str, tokens: Sequence[int], example: Example) -> None:
        """Starts grading completion `index`; does not wait. `tokens` are its tokens."""
        self._given[index] = completion, tokens, example
        key = completion, id(example)
        if key not in self._started:
            self._started[key] = self._grading.start(completion, example)

    def scores(self) -> tuple[Scores, ...]:
        """All scores, in the order of the indices 0, 1, ...; of several processes, what was added in any of them."""
        self._grading.flush()
        config, measured, scores = self._grading.config, self._measured(), {}
        for index, (completion, tokens, example) in self._given.items():
            parts = measured[index] | shaping_parts(completion, tokens, example, config)
            parts |= {name: wait() for name, wait in self._started[completion, id(example)].items()}
            scores[index] = combine(parts, config.mix(example.domain))
        return tuple(gather_dicts(scores).values())

    def _measured(self) -> dict[int, dict[str, Score]]:
        """The parts that are always measured, of every completion, and exact answers where the device reads them."""
        given = list(self._given.values())
        device, mix = self._grading.device, self._grading.config.mix
        if device is None:
            parts = [measured_parts(text, example, mix(example.domain).pattern) for text, _, example in given]
            return dict(zip(self._given, parts, strict=True))
        parts = device.parts(given)
        exact = [i for i, one in enumerate(given) if self._grading.is_matched_on_device(one[2])]
        for i, score in zip(exact, device.matches([given[i] for i in exact]), strict=True):
            parts[i]["accuracy"] = score
        return dict(zip(self._given, parts, strict=True))


@contextlib.contextmanager
def open_grading(
    config: RewardConfig,
    verify: VerifyFunction | None = None,
    models: Models | None = None,
    device: DeviceRewards | None = None,
) -> Iterator[Grading]:
    """The graders that `config` asks for, while they are needed. `models` must hold those that it names.

    device: what reads the tokens, if `config.on_device`.
    """
    models = models or Models()
    comparisons = {mix.comparison for mix in config.mixes}
    with contextlib.ExitStack() as stack:
        mathematics, programs = None, None
        if "expressions" in comparisons:
            mathematics = stack.enter_context(MathGrader(config.grading_workers, config.grading_seconds))
        if "code" in comparisons:
            threads = stack.enter_context(ThreadPoolExecutor(config.code.parallel, thread_name_prefix="programs"))
            programs = make_code_graders(config), threads
        missing = needed_models(config) - {*models.scalar, *(("judge",) if models.judge else ())}
        if missing:
            raise ValueError(f"the rewards need models that were not given: {', '.join(sorted(missing))}")
        if config.on_device and device is None:
            raise ValueError("on_device needs the tables of a tokenizer, which were not given")
        yield Grading(config, verify, mathematics, programs, models, device if config.on_device else None)


def needed_models(config: RewardConfig) -> set[str]:
    """The models without which a config cannot grade: "judge", and those of MODEL_PARTS that count."""
    counted = {name for mix in config.mixes for name in MODEL_PARTS if name in mix.counted}
    return counted | ({"judge"} if any(mix.comparison == "judge" for mix in config.mixes) else set())


def make_code_graders(config: RewardConfig) -> dict[Mix, CodeGrader]:
    """For every mix that runs programs a grader with the parts that count there; they share one sandbox, of this host
    or a grade server's. ValueError if the server's token is missing."""
    code = config.code
    runner: Runner = Sandbox(code.limits, code.parallel)
    if code.server:
        runner = RemoteSandbox(code.server, read_token(), code.limits, code.parallel)
    languages = {**LANGUAGES, **code.languages}
    return {
        mix: CodeGrader(runner, config.partial_credit, frozenset(mix.counted) & MEASURES, languages)
        for mix in config.mixes
        if mix.comparison == "code"
    }


def check_grading(config: RewardConfig, examples: Sequence[Example]) -> None:
    """That every example can be graded: now, not in the middle of a run.

    Raises:
      ValueError: naming the example and the field.
      SandboxUnavailableError: programs are to be run, and cannot be.
      LintUnavailableError: ruff is missing.
    """
    programs: dict[Mix, list[Example]] = {}
    references: list[Example] = []
    for example in examples:
        if config.domains and example.domain not in config.domains:
            raise ValueError(
                f"example {example.id!r}: domain: {example.domain!r} is not one of {sorted(config.domains)}"
            )
        mix = config.mix(example.domain)
        if "language" in mix.counted:
            try:
                check_language(example.language)
            except ValueError as error:
                raise ValueError(f"example {example.id!r}: {error}") from error
        if needs_verifier(example) or mix.comparison == NONE:
            continue
        if mix.comparison == "code":
            programs.setdefault(mix, []).append(example)
            continue
        if not example.answer.strip():
            raise ValueError(f"example {example.id!r}: no reference, and the comparison {mix.comparison!r} needs one")
        compare = COMPARISONS[mix.comparison]
        if compare is not None:
            _check_reference(example, mix, compare(REFUSED, example))
        elif mix.comparison == "expressions":
            references.append(example)
    if references:
        _check_expressions(config, references)
    if programs:
        graders = make_code_graders(config)
        for mix, own in programs.items():
            graders[mix].check(own)


REFUSED = "<answer> - </answer>"  # an answer that is no value: whether it has a grade is up to the reference


def _check_reference(example: Example, mix: Mix, score: Score) -> None:
    if score.status is Status.UNGRADABLE:
        raise ValueError(f"example {example.id!r}: comparison {mix.comparison!r}: {score.reason}")


def _check_expressions(config: RewardConfig, examples: Sequence[Example]) -> None:
    """Grades an answer to each: one that takes too long says nothing of its reference."""
    with MathGrader(config.grading_workers, config.grading_seconds) as grader:
        started = [grader.submit("<answer> 0 </answer>", example) for example in examples]
        for example, score in zip(examples, started, strict=True):
            _check_reference(example, config.mix(example.domain), score.result())
