"""The procedural tasks of reasoning-gym (extra `tasks`): any of them by name and parameters, with its own verifier.

Question i of a task is made from seed + i, so two seeds that are close make mostly the same questions, and small tasks
repeat theirs anyway: questions are kept distinct, and splits are made by a hash of the question, never by seeds.
"""

from __future__ import annotations

import base64
import copy
import dataclasses
import difflib
import functools
import inspect
import json
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from r1jax.types import Example, Score, Status

PREFIX = "reasoning_gym/"  # of Example.task
_NO_ANSWER = "no answer"
# Calls that run a text as a program; sympy's parser is eval behind a tokenizer.
_RUNS_TEXT = re.compile(r"(?<![\w.])(?:eval|exec)\s*\(|\b(?:parse_expr|sympify)\s*\(")


def _library() -> Any:
    """Returns the table of tasks: name -> (dataset class, config class)."""
    try:
        from reasoning_gym import factory
    except ModuleNotFoundError as error:
        raise ImportError(
            f"tasks of reasoning-gym need the extra `tasks` (python -m pip install 'r1jax[tasks]'): {error}"
        ) from error
    return factory.DATASETS


def task_names() -> list[str]:
    """Names of all tasks, sorted."""
    return sorted(_library())


def _close(name: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(name, allowed, n=5, cutoff=0.5)
    return f"; close ones: {', '.join(close)}" if close else ""


def _grading_sources(dataset_class: type) -> Iterator[str]:
    """Source text of a task's verifier and of what it calls in its own class and module."""
    verifier = inspect.getsource(dataset_class.score_answer)  # type: ignore[attr-defined]
    yield verifier
    for name in set(re.findall(r"(\w+)\s*\(", verifier)) - {"score_answer"}:
        for owner in (dataset_class, sys.modules[dataset_class.__module__]):
            called = getattr(owner, name, None)
            if inspect.isfunction(called) and (called.__module__ or "").startswith("reasoning_gym"):
                yield inspect.getsource(called)


def make_dataset(name: str, params: Mapping[str, Any], seed: int) -> Any:
    """Returns the library's dataset.

    Raises:
      ValueError: unknown task or parameter (close names are given), a bad value, or a task whose verifier runs answers.
    """
    library = _library()
    if name not in library:
        raise ValueError(f"unknown reasoning-gym task {name!r}{_close(name, sorted(library)) or '; see task_names()'}")
    dataset_class, config_class = library[name]
    allowed = [f.name for f in dataclasses.fields(config_class) if f.name not in ("seed", "size")]
    for key in params:
        if key not in allowed:
            raise ValueError(
                f"task {name!r} has no parameter {key!r}{_close(key, allowed)}; allowed: {', '.join(allowed)}"
            )
    if name == "composite":
        from reasoning_gym.composite import DatasetSpec

        params = {**params, "datasets": [DatasetSpec(**part) for part in params.get("datasets", ())]}
    config = config_class(**params, seed=seed)
    try:
        if hasattr(config, "validate"):
            config.validate()
    except AssertionError as error:
        raise ValueError(f"task {name!r} refuses the parameters {dict(params)}: {error}") from error
    dataset = dataset_class(config=config)
    for part in (dataset, *getattr(dataset, "datasets", {}).values()):  # `composite` hands answers to its parts
        if any(_RUNS_TEXT.search(source) for source in _grading_sources(type(part))):
            raise ValueError(
                f"task {name!r}: its verifier runs text as a program (eval or sympy's parser), and model answers are "
                "not run in the process that trains; choose a task whose verifier only reads them"
            )
    return dataset


def make_examples(
    name: str,
    params: Mapping[str, Any],
    size: int,
    seed: int,
    *,
    key: Callable[[Example], str],
    keep: Callable[[Example], bool] = lambda example: True,
) -> list[Example]:
    """Returns `size` examples with distinct questions.

    Args:
      name: of the task, e.g. "chain_sum".
      params: of the task, e.g. {"min_terms": 2, "max_terms": 3}.
      size: how many.
      seed: question i is made from seed + i.
      key: what two examples of the same question share.
      keep: which questions belong to the split that is wanted.

    Raises:
      ValueError: unknown task or parameter; or the task has fewer such questions (it stops after 1,000 + 20 x size
        tries without a new one).
      ImportError: reasoning-gym is not installed.
    """
    if size < 1:
        raise ValueError(f"size: {size} questions of {name!r} asked, at least 1 is needed")
    dataset = make_dataset(name, params, seed)
    examples: list[Example] = []
    seen: set[str] = set()
    index, last_new = 0, 0
    while len(examples) < size:
        entry = dataset[index]
        example = Example(
            id=f"{name}:{seed}:{index}",
            question=entry["question"],
            answer="" if entry["answer"] is None else str(entry["answer"]),
            task=PREFIX + name,
            metadata={"entry": entry, "params": dict(params)},
        )
        question = key(example)
        if question not in seen and keep(example):
            seen.add(question)
            examples.append(example)
            last_new = index
        index += 1
        if index - last_new > 1000 + 20 * size:
            raise ValueError(f"size: {size} distinct questions of {name!r} asked, found only {len(examples)}")
    return examples


@functools.cache
def _verifier(name: str, params: str) -> Any:
    """The dataset that grades; its seed does not matter."""
    return make_dataset(name, json.loads(params), seed=0)


def verify(example: Example, answer: str | None, partial_credit: bool = False) -> Score:
    """Grades an answer with the task's own verifier.

    Args:
      example: from `make_examples`.
      answer: the text of the final answer; None = there is none: wrong.
      partial_credit: give the verifier's value in [0, 1]; otherwise 1 for a full score and 0 for anything less.

    Returns:
      The score. A verifier that fails on the answer, yet accepts the reference answer, cannot read the answer, which is
      then wrong; one that fails or refuses the reference answer too grades nothing (UNGRADABLE).
    """
    check_example(example)
    if answer is None:
        return Score(0.0, reason=_NO_ANSWER)
    name, params = example.task.removeprefix(PREFIX), example.metadata["params"]
    return _score(
        _verifier(name, json.dumps(params, sort_keys=True)), example.metadata["entry"], answer, partial_credit
    )


def worker_arguments(example: Example, answer: str | None, partial_credit: bool = False) -> tuple[Any, ...]:
    """The arguments of `grade_in_worker`, all of them values that JSON holds.

    The entry goes as a pickle in base 64: JSON would make lists of its tuples, and the verifiers of `arc_agi` and
    `rearc` then refuse the reference answer.
    """
    check_example(example)
    entry = base64.b64encode(pickle.dumps(example.metadata["entry"])).decode("ascii")
    return example.task.removeprefix(PREFIX), example.metadata["params"], entry, answer, partial_credit


def grade_in_worker(
    name: str, params: dict[str, Any], entry: str, answer: str | None, partial_credit: bool
) -> tuple[float, str, str]:
    """What `verify` says, as (value, the status's value, reason), for a pool of processes that has a time limit:
    answers like "1e999999999" keep some verifiers busy for ever. Only for `worker_arguments` of the caller's own: a
    pickle can run anything."""
    if answer is None:
        return 0.0, Status.GRADED.value, _NO_ANSWER
    unpacked = pickle.loads(base64.b64decode(entry))
    score = _score(_verifier(name, json.dumps(params, sort_keys=True)), unpacked, answer, partial_credit)
    return score.value, score.status.value, score.reason


def prepare_worker() -> None:
    """Imports the tasks, which takes seconds, before the first item's time runs."""
    _library()


def check_example(example: Example) -> None:
    """ValueError for an example that is not from `make_examples`."""
    if not example.task.startswith(PREFIX) or "entry" not in example.metadata:
        raise ValueError(f"example {example.id!r} of task {example.task!r} is not one of reasoning-gym")


def _score(dataset: Any, entry: Mapping[str, Any], answer: str, partial_credit: bool) -> Score:
    value, problem = _grade(dataset, answer, entry)
    if problem:
        reference, _ = _grade(dataset, entry.get("answer"), entry)
        if reference == 1.0:
            return Score(0.0, reason=f"the verifier cannot read the answer: {problem}")
        return Score(0.0, Status.UNGRADABLE, f"the verifier failed: {problem}")
    if not 0.0 <= value <= 1.0:
        return Score(0.0, Status.UNGRADABLE, f"the verifier gave {value}, which is not in [0, 1]")
    return Score(value if partial_credit else float(value == 1.0))


def _grade(dataset: Any, answer: str | None, entry: Mapping[str, Any]) -> tuple[float, str]:
    """Returns the verifier's value and "", or 0 and what went wrong."""
    try:
        return float(dataset.score_answer(answer, copy.deepcopy(entry))), ""  # a verifier may write into its entry
    except Exception as error:  # noqa: BLE001 - foreign parsers of model text raise anything; verify() tells it apart
        return 0.0, f"{type(error).__name__}: {error}"
