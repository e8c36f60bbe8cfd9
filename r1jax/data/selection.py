"""Which of the samples that passed are trained on: no two alike, n of each prompt, domains in stated proportions."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence

from r1jax.data.decontamination import words_of

RULES = ("random", "shortest")
NEAR_N = 3  # words of an n-gram by which near-duplicates are told


def same_text(text: str) -> str:
    """What two texts share exactly if they differ in nothing but white space."""
    return " ".join(text.split())


def find_duplicates(texts: Sequence[str], near: float | None = None) -> dict[int, str]:
    """The texts that repeat an earlier one: index -> 'duplicate' (all but white space) or 'near_duplicate'.

    near: the least share of 3-grams of words in common (those of either text: Jaccard) that makes two texts near
    duplicates, 0..1; None: there are none. A text that is dropped as one is not held against later ones. Each text is
    compared with all that stay, so these should be the answers to one question.
    """
    found: dict[int, str] = {}
    seen: set[str] = set()
    kept: list[set[tuple[str, ...]]] = []
    for index, text in enumerate(texts):
        plain = same_text(text)
        if plain in seen:
            found[index] = "duplicate"
            continue
        seen.add(plain)
        if near is None:
            continue
        grams = _grams(text)
        if any(_jaccard(grams, other) >= near for other in kept):
            found[index] = "near_duplicate"
        else:
            kept.append(grams)
    return found


def _grams(text: str) -> set[tuple[str, ...]]:
    words = words_of(text)
    return {tuple(words[i : i + NEAR_N]) for i in range(max(1, len(words) - NEAR_N + 1))}


def _jaccard(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    return len(a & b) / len(a | b)


def choose(lengths: Sequence[int], count: int, rule: str, *seed: str | int) -> list[int]:
    """`count` of as many samples as there are `lengths` (all, if there are no more), as ascending indices.

    rule: 'random', drawn with the seed alone; or 'shortest', of equal lengths the earlier.
    """
    if rule == "random":
        chosen = random.Random(json.dumps(seed)).sample(range(len(lengths)), min(count, len(lengths)))
    else:
        chosen = sorted(range(len(lengths)), key=lambda index: lengths[index])[:count]
    return sorted(chosen)


def largest_mixture(available: Mapping[str, int], proportions: Mapping[str, float]) -> dict[str, int]:
    """How many samples of each group make the largest mixture in the given proportions.

    Args:
      available: group -> samples.
      proportions: group -> a positive weight; exactly the same groups.

    Returns:
      Group -> count, rounded down: floor(s w) with the largest s for which no group has fewer samples.

    Raises:
      ValueError: a group has no proportion, or has no samples.
    """
    if available.keys() != proportions.keys():
        raise ValueError(
            f"proportions: {sorted(proportions)} are stated, and there are samples of {sorted(available)}: each must "
            "have its proportion"
        )
    empty = [group for group, count in available.items() if not count]
    if empty:
        raise ValueError(f"proportions: there are no samples of {', '.join(map(repr, sorted(empty)))}")
    scale = min(count / proportions[group] for group, count in available.items())
    # Of the group that limits, scale * weight may be a rounding error below its count.
    return {group: math.floor(scale * proportions[group] + 1e-6) for group in available}
