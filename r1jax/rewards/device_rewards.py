"""The rewards that tokens alone decide, read off them by compiled programs: format, language, and the exact answer.

For long responses in large batches, where reading text on the host would hold up the step. Format and match equal the
text versions; the language does wherever code and mathematics are closed (`token_language`, tools/compare_rewards.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from r1jax.rewards import on_device
from r1jax.rewards.answer import exact_match, is_statable, normalize_space
from r1jax.rewards.format import format_reward
from r1jax.rewards.languages import token_language
from r1jax.rewards.languages.language import LANGUAGES, language_reward
from r1jax.types import Example, Score

Completion = tuple[str, Sequence[int], Example]  # text, tokens, what it answers
ROWS = 256  # of one call: its shape is fixed, so that nothing compiles again
GOLD_STEP = 64  # bytes: references are padded to multiples of it, for the same reason


class DeviceRewards:
    """`DeviceRewards(tokenizer.token_bytes, vocab_size, width).parts([(text, tokens, example), ...])`."""

    def __init__(self, token_bytes: Callable[[int], bytes], vocab_size: int, width: int) -> None:
        """width: of the longest response, in tokens."""
        self._width = width
        self._bytes = on_device.make_byte_table(token_bytes, vocab_size)
        self._words = token_language.make_language_table(token_bytes, vocab_size)

    def parts(self, given: Sequence[Completion]) -> list[dict[str, Score]]:
        """ "format" and "language" of each completion. What no token can decide the text does: the name of a fault,
        and other languages than English and Chinese."""
        formed, shares = [], []
        for tokens, lengths, examples in self._blocks(given):
            targets = token_language.target_ids([e.language if _is_told(e) else LANGUAGES[0] for e in examples])
            form = on_device.format_reward(tokens, lengths, self._bytes)
            share = token_language.language_reward(tokens, lengths, form, _filled(targets), self._words)
            formed += np.asarray(form)[: len(examples)].tolist()
            shares += np.asarray(share)[: len(examples)].tolist()
        found = []
        for (text, _, example), form, share in zip(given, formed, shares, strict=True):
            reason = "" if form else format_reward(text, example).reason
            language = Score(share) if _is_told(example) else language_reward(text, example)
            found.append({"format": Score(form, reason=reason), "language": language})
        return found

    def matches(self, given: Sequence[Completion]) -> list[Score]:
        """`answer.exact_match` of each completion; the text decides where no completion can state the reference."""
        golds = [normalize_space(example.answer) if is_statable(example.answer) else "-" for _, _, example in given]
        longest = max((len(gold.encode()) for gold in golds), default=1)
        width = -(-longest // GOLD_STEP) * GOLD_STEP
        found: list[Score] = []
        for tokens, lengths, examples in self._blocks(given):
            own = golds[len(found) : len(found) + len(examples)]
            gold = on_device.make_gold([*own, *["-"] * (ROWS - len(own))], width)
            right = np.asarray(on_device.exact_match_reward(tokens, lengths, self._bytes, gold))
            found += [Score(1.0) if value else Score(0.0, reason="another answer") for value in right[: len(own)]]
        return [
            score if is_statable(example.answer) else exact_match(text, example)
            for score, (text, _, example) in zip(found, given, strict=True)
        ]

    def _blocks(self, given: Sequence[Completion]) -> Iterator[tuple[np.ndarray, np.ndarray, list[Example]]]:
        """Tokens [ROWS, width] and lengths [ROWS] of `ROWS` completions at a time, the last ones of length 0 where
        there are fewer, and their examples."""
        for start in range(0, len(given), ROWS):
            block = given[start : start + ROWS]
            tokens, lengths = np.zeros((ROWS, self._width), np.int32), np.zeros(ROWS, np.int32)
            for row, (_, response, _) in enumerate(block):
                tokens[row, : len(response)], lengths[row] = response, len(response)
            yield tokens, lengths, [example for _, _, example in block]


def _filled(values: np.ndarray) -> np.ndarray:
    return np.pad(values, (0, ROWS - len(values)))


def _is_told(example: Example) -> bool:
    return example.language in LANGUAGES
