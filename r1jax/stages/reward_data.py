"""The data of a reward model: read, split by prompt, tokenized, drawn."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence

import numpy as np

from r1jax.data.errors import DataError
from r1jax.data.preferences import Labelled, Pair, read_labels, read_pairs
from r1jax.data.sources import question_hash
from r1jax.rewards.judges.reward_models import View
from r1jax.stages.scalar_model import Reader
from r1jax.types import Example


def read_data(kind: str, paths: Sequence[pathlib.Path]) -> Sequence[Pair | Labelled]:
    """All pairs ('pairwise'), or all labelled responses. DataError naming what is wrong, and where."""
    if kind == "pairwise":
        return [pair for path in paths for pair in read_pairs(path)]
    labelled = [item for path in paths for item in read_labels(path)]
    if len({item.safe for item in labelled}) == 1:
        raise DataError(f"data: all {len(labelled)} responses have the same label, safe = {labelled[0].safe}")
    return labelled


def split_by_prompt(items: Sequence[Pair | Labelled], share: float, seed: int) -> np.ndarray:
    """[N] bool: which items are held out. All of one question are on one side; the questions are ranked by a hash of
    the seed and their text, and the first `share` of them (rounded, at least one) are held out.

    Raises DataError where fewer than two prompts are on either side.
    """
    hashes = [_prompt_hash(item.question) for item in items]
    ranked = sorted(set(hashes), key=lambda h: hashlib.sha256(f"{seed}:{h}".encode()).hexdigest())
    count = round(share * len(ranked))
    if count < 2 or len(ranked) - count < 2:
        raise DataError(
            f"data: {len(ranked)} different prompts, of which held_out = {share} is {count}: at least 2 must be held "
            "out, and 2 be left to train on"
        )
    chosen = set(ranked[:count])
    return np.array([h in chosen for h in hashes])


def _prompt_hash(question: str) -> str:
    return question_hash(Example("", question, "", ""))


@dataclasses.dataclass(frozen=True)
class Units:
    """The tokenized data: of each item the tokens of its responses, preferred one first, and its label."""

    sequences: list[list[list[int]]]  # [N][W]
    labels: list[float]  # [N]: 1 in a pair, else 1 where the response is safe
    lengths: np.ndarray  # [N, W] tokens of what is seen of each response
    prompts: list[str]  # [N] hash of the prompt
    empty: int  # responses of which nothing is seen


def encode_units(items: Sequence[Pair | Labelled], view: View, reader: Reader) -> Units:
    """Tokenizes all items, which are of one kind. DataError naming one that is too long."""
    responses = [(i.chosen, i.rejected) if isinstance(i, Pair) else (i.completion,) for i in items]
    lanes = len(responses[0])
    seen = [view(response) for unit in responses for response in unit]
    names = [f"data: {item.id!r}" for item in items for _ in range(lanes)]
    questions = [item.question for item in items for _ in range(lanes)]
    flat = reader.encode(names, questions, [text or "" for text in seen])
    lengths = np.array([len(reader.tokenizer.encode(text or "")) for text in seen])
    return Units(
        sequences=[flat[i : i + lanes] for i in range(0, len(flat), lanes)],
        labels=[1.0 if isinstance(item, Pair) else float(item.safe) for item in items],
        lengths=lengths.reshape(-1, lanes),
        prompts=[_prompt_hash(item.question) for item in items],
        empty=sum(not text for text in seen),
    )


class Batches:
    """The items of every update: each epoch all of them once, in an order drawn from the seed."""

    def __init__(self, count: int, batch: int, epochs: int, seed: int) -> None:
        self._count, self._batch, self._seed = count, batch, seed
        self._per_epoch = -(-count // batch)
        self.steps = epochs * self._per_epoch

    def __getitem__(self, step: int) -> np.ndarray:
        """The indices of update `step`, from 1."""
        epoch, place = divmod(step - 1, self._per_epoch)
        order = np.random.default_rng([self._seed, epoch]).permutation(self._count)
        return order[place * self._batch : (place + 1) * self._batch]
