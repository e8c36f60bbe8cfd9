r"""The accuracy reward for mathematics in any notation: numbers exactly, everything else in worker processes.

What the exact parser of `math_accuracy.py` understands on both sides it decides, unless a percent sign, a unit or a
name is in play. All else goes to `expressions.compare` in a pool of processes with a time limit for each answer. So a
grade has one of three values: right, wrong, or none, with the reason: ungradable (the reference is not understood, the
grading process died) or timed out. An answer cannot choose to have none: where comparing it takes too long or ends the
process, the reference is compared with a plain number, and if that works the answer is wrong.
"""

from __future__ import annotations

import collections
import re
import threading
from concurrent.futures import Future
from functools import partial
from types import TracebackType

from r1jax.rewards.answer import extract_final_answer
from r1jax.rewards.mathematics.expressions import RIGHT, UNGRADABLE, compare
from r1jax.rewards.mathematics.math_accuracy import Value, gold_text, parse_value, same_value, stated_text
from r1jax.rewards.workers import Ending, Outcome, WorkerPool
from r1jax.types import Example, Score, Status

_MARKED = re.compile(r"[%°=€£¥％＝]|\\circ|(?<!\\)\$(?=.)(?!.*\$)|\\\$", re.DOTALL)  # a value with a unit or a name


class MathGrader:
    """Grades answers to mathematical questions; opened once for a whole stage, since its processes take time to start.

    `submit` does not wait: grading goes on while more completions come.
    """

    def __init__(self, workers: int, seconds: float) -> None:
        """`workers` processes, each answer for at most `seconds`."""
        self.pool = WorkerPool(compare, workers, seconds)
        self._lock = threading.Lock()
        self._references: dict[str, Future[Outcome]] = {}  # compared with a plain number, each once

    @property
    def counts(self) -> collections.Counter[str]:
        """How often the pool answered, timed out, crashed and replaced a worker."""
        return self.pool.counts

    def submit(self, completion: str, example: Example) -> Future[Score]:
        """The score of a completion, as soon as it is known."""
        score: Future[Score] = Future()
        gold, answer = gold_text(example.answer), extract_final_answer(completion)
        stated = None if answer is None else stated_text(answer)
        any_order = bool(example.metadata.get("any_order", False))
        value = None if _MARKED.search(gold) else parse_value(gold)
        exact = None if value is None else _exact(value, answer, stated, any_order)
        if exact is not None:
            score.set_result(exact)
            return score
        known = value is not None and stated is not None  # "3 8" is a reference that only the exact parser understands
        outcome = self.pool.submit(gold, stated, example.question, any_order)

        def grade(done: Future[Outcome], reference: Outcome | None) -> None:
            graded = _score(done.result(), reference)
            unstated = stated is None and answer is not None
            if (graded.graded and unstated) or (graded.status is Status.UNGRADABLE and known):
                graded = Score(0.0, reason="the answer is not one value")
            score.set_result(graded)

        def grade_again(reference: Outcome, last: Future[Outcome]) -> None:
            if not _passed_on(last, score):
                grade(last, reference)

        def finish(done: Future[Outcome]) -> None:
            if _passed_on(done, score):
                return
            if done.result().ending is Ending.DONE or stated is None:
                grade(done, None)
                return
            try:
                reference = self._compared_with_a_number(gold)
            except RuntimeError as error:  # the grader was closed meanwhile
                score.set_exception(error)
                return

            def decide(alone: Future[Outcome]) -> None:
                if _passed_on(alone, score):
                    return
                if done.result().ending is not Ending.CRASHED or not _is_usable(alone.result()):
                    grade(done, alone.result())
                    return
                try:  # once more: somebody else may have ended the process
                    again = self.pool.submit(gold, stated, example.question, any_order)
                except RuntimeError as error:
                    score.set_exception(error)
                    return
                again.add_done_callback(partial(grade_again, alone.result()))

            reference.add_done_callback(decide)

        outcome.add_done_callback(finish)
        return score

    def _compared_with_a_number(self, gold: str) -> Future[Outcome]:
        """What becomes of a reference and the simplest answer; with itself a sum is compared without working it out."""
        with self._lock:
            if gold not in self._references:
                self._references[gold] = self.pool.submit(gold, "1")
            return self._references[gold]

    def __call__(self, completion: str, example: Example) -> Score:
        """1 where the completion's one final answer states what the reference does, else 0."""
        return self.submit(completion, example).result()

    def close(self) -> None:
        """Ends the processes."""
        self.pool.close()

    def __enter__(self) -> MathGrader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _exact(gold: Value, answer: str | None, stated: str | None, any_order: bool) -> Score | None:
    """The score where numbers and option letters decide it; None where a worker has to."""
    if answer is None:
        return Score(0.0, reason="no single final answer")
    if stated is None or not stated.strip():
        return Score(0.0, reason="the answer is not one value")
    value = None if _MARKED.search(stated) else parse_value(answer)
    if value is None:
        return None
    return Score(1.0) if same_value(value, gold, any_order) else Score(0.0, reason="another answer")


def _passed_on(done: Future[Outcome], score: Future[Score]) -> bool:
    """Whether a call was cancelled or failed, and its score with it."""
    if done.cancelled():
        score.cancel()
    elif (error := done.exception()) is not None:
        score.set_exception(error)
    else:
        return False
    return True


def _is_usable(reference: Outcome) -> bool:
    """Whether a plain answer to a reference could be graded."""
    return reference.ending is Ending.DONE and reference.value[0] != UNGRADABLE


def _score(outcome: Outcome, reference: Outcome | None) -> Score:
    """The score of an answer; `reference` is what became of a plain answer, where that had to be found out."""
    if outcome.ending is not Ending.DONE and reference is not None and _is_usable(reference):
        late = outcome.ending is Ending.TIMED_OUT
        return Score(
            0.0, reason=f"the answer {'takes too long' if late else 'is too much'} to compare: {outcome.reason}"
        )
    if outcome.ending is Ending.TIMED_OUT:
        return Score(0.0, Status.TIMED_OUT, outcome.reason)
    if outcome.ending is not Ending.DONE:
        return Score(0.0, Status.UNGRADABLE, outcome.reason)
    verdict, reason = outcome.value
    if verdict == UNGRADABLE:
        return Score(0.0, Status.UNGRADABLE, reason)
    return Score(1.0) if verdict == RIGHT else Score(0.0, reason=reason)
