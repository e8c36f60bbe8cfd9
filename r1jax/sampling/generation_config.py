"""How a released checkpoint wants to be sampled: its `generation_config.json`."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from r1jax.data.errors import DataError
from r1jax.data.tokenizer_files import read_json

GENERATION_CONFIG = "generation_config.json"
RELEASED = "released"  # sub-folder of an imported checkpoint that keeps the small files it came with


# Settings that change what is drawn, and the values at which they do nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1, None),
    "min_p": (0, None),
    "typical_p": (1, None),
    "num_beams": (1, None),
    "no_repeat_ngram_size": (0, None),
    "penalty_alpha": (None,),
    "epsilon_cutoff": (0, None),
    "eta_cutoff": (0, None),
}


@dataclasses.dataclass(frozen=True)
class GenerationDefaults:
    """What to sample with unless the user says otherwise; R1's own values (its README, usage recommendations)."""

    temperature: float = 0.6
    top_p: float = 0.95
    stop_tokens: tuple[int, ...] = ()  # beside the tokenizer's eos
    top_k: int = 0  # 0: all tokens
    not_applied: tuple[str, ...] = ()  # what the file says beside these, which our sampler does not do


def read_generation_defaults(folder: pathlib.Path) -> GenerationDefaults:
    """The defaults of the checkpoint in `folder`: from generation_config.json there or in `released/`, else R1's.

    Raises:
      DataError: the file is broken, or a field is not of its kind; names the file.
    """
    for path in (folder / GENERATION_CONFIG, folder / RELEASED / GENERATION_CONFIG):
        if path.is_file():
            return _defaults(path, read_json(path))
    return GenerationDefaults()


def _defaults(path: pathlib.Path, fields: dict[str, Any]) -> GenerationDefaults:
    ends = fields.get("eos_token_id")
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    if fields.get("do_sample") is False:
        fields = fields | {"temperature": 0}
    kinds_of: dict[str, tuple[type, ...]] = {"temperature": (int, float), "top_p": (int, float), "top_k": (int,)}
    found = {name: fields[name] for name in kinds_of if fields.get(name) is not None}
    for name, values, kinds in (*((n, [v], kinds_of[n]) for n, v in found.items()), ("eos_token_id", ends, (int,))):
        wrong = [value for value in values if not isinstance(value, kinds) or isinstance(value, bool)]
        if wrong:
            raise DataError(f"{path}: {name} has {wrong[0]!r}, expected a number")
    top_k = found.pop("top_k", 0)
    numbers = {name: float(value) for name, value in found.items()}
    other = [f"{name} = {fields[name]}" for name, values in NEUTRAL.items() if fields.get(name) not in values]
    return GenerationDefaults(**numbers, top_k=top_k, stop_tokens=tuple(ends), not_applied=tuple(other))
