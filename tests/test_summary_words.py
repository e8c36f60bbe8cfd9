"""The tokenizer of the tiny recipe knows the words of the summaries, which no document of its corpus has."""

from __future__ import annotations

import pathlib
import runpy

import pytest

from r1jax.data.cold_start import PHRASES
from r1jax.data.corpus import write_corpus
from r1jax.settings import from_config
from r1jax.stages.pretrain import PretrainConfig, TokenizerConfig, corpus_tokenizer

TINY = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "configs" / "parts" / "r1_tiny.py"))


def test_every_word_of_a_summary_is_one_token(tmp_path: pathlib.Path) -> None:
    fields = TINY["pretrain"](0, "tiny_mla_moe", steps=100, documents=6000)
    config = from_config(PretrainConfig, fields)
    tokenizer = corpus_tokenizer(config, list(write_corpus(config.corpus)), tmp_path)
    for phrases in PHRASES.values():
        for phrase in phrases:
            text = f" </think> {phrase.replace('{answer}', '<answer> 9 </answer>')}"
            assert [tokenizer.decode([i]) for i in tokenizer.encode(text)] == [f" {word}" for word in text.split()]


def test_words_are_words() -> None:
    with pytest.raises(ValueError, match="words: 'two words' is not one word"):
        TokenizerConfig(words=("one", "two words"))
