"""Measures a judge: how often it agrees with a truth that is known by construction.

    python -m tools.judge_agreement --url http://127.0.0.1:8000/v1 --model NAME [--items 200]
    python -m tools.judge_agreement --checkpoint smollm2 [--items 200]

The items are sums and differences of r1jax's own generator with a predicted answer in one of several notations, which
states the right value for every second item and another one for the rest. Printed are the agreement with its exact 95 %
bounds (Clopper-Pearson), that on each class (a judge that always says "correct" has 100 % on one and 0 % on the other),
what had no grade and why, and the items per second. --checkpoint is that of `tools.sample`.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np

from r1jax.data.tasks import GENERATORS, to_example
from r1jax.rewards.judges.chat_models import ChatModel
from r1jax.rewards.judges.judge import GroundTruthJudge
from r1jax.types import Example, Score
from tools.audit_rewards import bounds
from tools.chat_model import add_model_options, judge_config, open_model
from tools.command_line import run_tool

NOTATIONS: tuple[Callable[[int], str], ...] = (
    str,
    lambda value: f"\\boxed{{{value}}}",
    lambda value: f"The result is {value}.",
    lambda value: f"{value}.0",
    lambda value: f"= {value}",
)


@dataclasses.dataclass(frozen=True)
class Item:
    """A question with a predicted answer, and whether that is right."""

    example: Example
    prediction: str
    right: bool

    @property
    def completion(self) -> str:
        """The prediction as a policy would state it."""
        return f"<think>I work it out.</think> <answer>{self.prediction}</answer>"


def make_items(count: int, seed: int) -> list[Item]:
    """`count` items, every second one right; a wrong prediction is 1 to 9 off, never negative."""
    rng = np.random.default_rng([seed, count])
    items = []
    for number in range(count):
        example = to_example(GENERATORS["chain_sum"](rng), "en")
        value, right = int(example.answer), number % 2 == 0
        if not right:
            value += int(rng.choice([off for off in range(-9, 10) if off and value + off >= 0]))
        items.append(Item(example, NOTATIONS[int(rng.integers(len(NOTATIONS)))](value), right))
    return items


def judge_items(judge: GroundTruthJudge, items: Sequence[Item]) -> list[Score]:
    """The judge's score of every item."""
    futures = [judge.submit(item.completion, item.example) for item in items]
    judge.flush()
    return [future.result() for future in futures]


def share(name: str, part: int, whole: int) -> str:
    """One line of the report."""
    low, high = bounds(part, whole) if whole else (0.0, 1.0)
    rate = 100 * part / max(whole, 1)
    return f"{name:<22} {part:>4} of {whole:>4}  {rate:5.1f} %  ({100 * low:.1f} to {100 * high:.1f})"


def report(items: Sequence[Item], scores: Sequence[Score], seconds: float) -> str:
    """What the judge did, line by line."""
    graded = [(item, score) for item, score in zip(items, scores, strict=True) if score.graded]
    agreed = [item.right is (score.value == 1) for item, score in graded]
    lines = [share("agreement", sum(agreed), len(graded))]
    for right, name in ((True, "right, judged right"), (False, "wrong, judged wrong")):
        of_class = [agrees for agrees, (item, _) in zip(agreed, graded, strict=True) if item.right is right]
        lines.append(share(name, sum(of_class), len(of_class)))
    unparseable = sum(score.reason.startswith("unparseable") for score in scores)
    lines.append(share("unparseable", unparseable, len(scores)))
    lines.append(share("no answer", len(scores) - len(graded) - unparseable, len(scores)))
    lines.append(f"{seconds:.1f} s, {len(items) / seconds:.2f} items/s")
    missing = collections.Counter((score.status.value, score.reason) for score in scores if not score.graded)
    lines += [f"{count:>4} x {status}: {reason}" for (status, reason), count in missing.most_common(5)]
    return "\n".join(lines)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=0, help="so many items with their scores")
    options = parser.parse_args(arguments)
    if options.items < 2:
        parser.error("--items must be at least 2")
    return options


def measure(model: ChatModel, options: argparse.Namespace) -> None:
    """Judges all items and prints the report."""
    items = make_items(options.items, options.seed)
    judge = GroundTruthJudge(model, options.seed, batched=options.url is None, parallel=options.parallel)
    started = time.perf_counter()
    try:
        scores = judge_items(judge, items)
    finally:
        judge.close()
    seconds = time.perf_counter() - started
    for item, score in list(zip(items, scores, strict=True))[: options.show]:
        print(f"{item.example.question} {item.example.answer} | {item.prediction!r}: {score}")
    print(report(items, scores, seconds))


def main() -> None:
    """Parses the command line and measures."""
    options = parse_arguments()
    with open_model(judge_config(options)) as model:
        measure(model, options)


if __name__ == "__main__":
    run_tool(main)
