"""Languages that cannot be told by script: lingua's detector (the extra `lingua`), built once for a bounded set.

A smaller set errs less and takes less memory: with these 18 languages 0.3 GB, from the first texts on that need them.
A text in a language that is not in the set is taken for one that is.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

EXTRA = "lingua"
# ISO 639-1 code -> the kinds of words (keys of `language.word_counts`: Latin, Han, other) that its script has.
SCRIPTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("de", "en", "es", "fr", "id", "it", "nl", "pl", "pt", "tr", "vi"), ("en",)),
    **dict.fromkeys(("ar", "hi", "ko", "ru", "uk"), ("other",)),
    "ja": ("zh", "other"),
    "zh": ("zh",),
}


def is_installed() -> bool:
    """Whether the extra is there."""
    return importlib.util.find_spec("lingua") is not None


@functools.cache
def _detector() -> Any:
    import lingua

    codes = [lingua.IsoCode639_1.from_str(code) for code in sorted(SCRIPTS)]
    return lingua.LanguageDetectorBuilder.from_iso_codes_639_1(*codes).build()


def detect(text: str) -> str | None:
    """The most probable language of a text among `SCRIPTS`, None for a text without letters. Needs the extra."""
    language = _detector().detect_language_of(text)
    return None if language is None else str(language.iso_code_639_1.name).lower()
