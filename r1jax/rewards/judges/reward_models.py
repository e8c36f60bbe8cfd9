"""Scalar reward models: the interface of a model that scores responses, and the grader that asks it in batches.

What each model may look at is the R1 paper's choice: helpfulness is judged on the final summary only, so that the
thinking stays free, and safety on the whole response, thinking included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

import numpy as np

from r1jax.processes import ask_together
from r1jax.rewards.patterns import summary_of
from r1jax.types import Example, Score, Status

View = Callable[[str], str | None]  # what of a completion a reward model sees; None: there is nothing of that kind


class ScalarRewardModel(Protocol):
    """Scores responses."""

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """[N] float32: the reward of each response to its prompt; any finite number."""
        ...


def helpfulness_input(completion: str) -> str | None:
    """The final summary (`patterns.summary_of`); None where there is none."""
    return summary_of(completion)


def safety_input(completion: str) -> str:
    """The whole response."""
    return completion


class ScalarGrader:
    """Grades completions by a scalar reward model: `submit` queues, `flush` asks the model for all that is queued.

    A completion of which `view` sees nothing is graded as the empty response to its prompt, and the reason says so. It
    is not left ungraded: what has no grade has no part in training, and a policy could escape a bad one by never
    ending its thought. A value that is not finite is no grade: UNGRADABLE. Not for several threads at once.
    """

    def __init__(self, model: ScalarRewardModel, view: View) -> None:
        """`view` is `helpfulness_input` or `safety_input`."""
        self._model, self._view = model, view
        self._queue: list[tuple[str, str | None, Future[Score]]] = []

    def submit(self, completion: str, example: Example) -> Future[Score]:
        """The score of a completion, once `flush` was called."""
        score: Future[Score] = Future()
        self._queue.append((example.question, self._view(completion), score))
        return score

    def flush(self) -> None:
        """Scores what is queued.

        Raises:
          ValueError: the model returned another number of values. This and what the model itself raises is also what
            the futures then raise.
        """
        queue, self._queue = self._queue, []
        try:
            asked = [(prompt, text or "") for prompt, text, _ in queue]
            values = ask_together(asked, lambda pairs: self._score(pairs).tolist())
        except BaseException as error:
            for *_, future in queue:
                future.set_exception(error)
            raise
        for value, (_, text, future) in zip(values, queue, strict=True):
            if np.isfinite(value):
                future.set_result(Score(float(value), reason="graded as an empty response" if text is None else ""))
            else:
                future.set_result(Score(0.0, Status.UNGRADABLE, f"the reward model returned {value}"))

    def _score(self, asked: list[tuple[str, str]]) -> np.ndarray:
        prompts, responses = zip(*asked, strict=True)
        values = np.asarray(self._model.score(prompts, responses))
        if values.shape != (len(asked),):
            raise ValueError(f"the reward model returned shape {values.shape} for {len(asked)} responses")
        return values

    def close(self) -> None:
        """Drops what is queued: its futures are cancelled."""
        for *_, future in self._queue:
            future.cancel()
        self._queue = []

    def __call__(self, completion: str, example: Example) -> Score:
        """The score of one completion, and of all that was queued before it."""
        score = self.submit(completion, example)
        self.flush()
        return score.result()
