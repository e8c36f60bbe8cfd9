"""Token-space rewards equal the text versions, however tokens are cut, and cost little."""

from __future__ import annotations

import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.data.templates import render_completion
from r1jax.data.tokenizer import ByteTokenizer, SentencePieceTokenizer, train_sentencepiece
from r1jax.rewards import on_device
from r1jax.rewards.answer import TAGS, exact_match
from r1jax.rewards.format import format_reward
from r1jax.types import Example

COMPLETIONS = 12_000
WIDTH = 128
BATCH = 512
GOLDS = ("9", "12", "3 8", "-4", "1/2", "a < b", "九", "</answe", "knight , knave")
ENGLISH = ["seven", "plus", "five", "is", "twelve", ",", "minus", "three", "so", "wait", "no", "check"]
CHINESE = ["七", "加", "五", "得", "十二", "，", "减", "三", "等等", "不对", "检查", "所以"]
SPACES = (" ", "  ", "\n", "\t ", "\r\n", "\f\v", "")
# What a completion may be spoilt with: whole tags, pieces of tags, look-alikes, and harmless text.
SPLINTERS = (
    *TAGS, *TAGS, "<", "</", "<<", "<think", "think>", "</th", "<answer ", "answer>", "<answer><answer>",
    "<Think>", "< think >", "<think/>", "</ answer>", "\uff1cthink\uff1e",
    "\u3000", "\xa0", "\u200b", "\0", "\x1c", "\x85", "9", " ", "\n", "十", "é", "😀",
)  # fmt: skip


def _random_completion(rng: np.random.Generator, gold: str) -> str:
    """A well-formed completion; its answer is right nine times in ten."""

    def space() -> str:
        return str(rng.choice(SPACES))

    words = ENGLISH if rng.random() < 0.5 else CHINESE
    thought = " ".join(rng.choice(words, size=int(rng.integers(1, 9))))
    answer = gold if rng.random() < 0.9 else str(rng.choice([*GOLDS, gold + gold, f"{gold} {gold}", gold[:-1] + "7"]))
    answer = answer.replace(" ", str(rng.choice((" ", "  ", "\n", "\t \n")))) if rng.random() < 0.5 else answer
    pieces = ("<think>", thought, "</think>", "<answer>", answer, "</answer>", "")
    return "".join(space() + piece for piece in pieces)


def _spoil(rng: np.random.Generator, text: str) -> str:
    """A near miss: one or two characters or tags too many, too few, doubled or swapped, or an end cut off."""
    for _ in range(int(rng.integers(1, 3))):
        cut = int(rng.integers(len(text) + 1))
        end = min(len(text), cut + int(rng.integers(1, 9)))
        tag, other = (str(t) for t in rng.choice(TAGS, size=2))
        kind = int(rng.integers(7))
        if kind == 0:
            text = text[:cut] + text[end:]
        elif kind == 1:
            text = text[:cut] + str(rng.choice(SPLINTERS)) + text[cut:]
        elif kind == 2:
            text = text.replace(tag, "")
        elif kind == 3:
            text = text.replace(tag, other)
        elif kind == 4:
            text = text[:cut]
        elif kind == 5:
            text = text[:cut] + text[cut:end] + text[cut:]
        else:
            text = text.replace(tag, str(rng.choice(SPLINTERS)))
    return text


def _completions(seed: int, size: int) -> Iterator[tuple[str, str]]:
    """(text, gold): a third well-formed, a third spoilt ones, a third random splinters and words."""
    rng = np.random.default_rng(seed)
    for index in range(size):
        gold = str(rng.choice(GOLDS))
        if index % 3 == 2:
            pieces = rng.choice([*SPLINTERS, *ENGLISH, gold], size=int(rng.integers(0, 12)))
            yield "".join(str(piece) for piece in pieces), gold
        else:
            text = _random_completion(rng, gold)
            yield (text if index % 3 == 0 else _spoil(rng, text)), gold


def _cut_in_pieces(rng: np.random.Generator, tokenizer: SentencePieceTokenizer, text: str) -> list[int]:
    """Ids of `text` cut at random places first, as a sampler may: tags are then spelled by parts and bytes."""
    raw = text.encode("utf-8")
    cuts = sorted(int(cut) for cut in rng.integers(0, len(raw) + 1, size=int(rng.integers(0, 6))))
    ids: list[int] = []
    for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        piece = raw[start:end]
        try:
            ids += tokenizer.encode(piece.decode("utf-8"))
        except UnicodeDecodeError:
            ids += [_byte_id(tokenizer, byte) for byte in piece]
    return ids


@functools.lru_cache(maxsize=512)
def _byte_id(tokenizer: SentencePieceTokenizer, byte: int) -> int:
    return next(
        token for token in range(tokenizer.vocab_size - 1, -1, -1) if tokenizer.token_bytes(token) == bytes([byte])
    )


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SentencePieceTokenizer]:
    """Two tokenizers with byte fallback: one has the tags as tokens, one spells them with pieces that cross borders."""
    path: pathlib.Path = tmp_path_factory.mktemp("tokenizers")
    rng = np.random.default_rng(0)
    sentences = [_random_completion(rng, str(rng.choice(GOLDS[:5]))).replace("\v", " ") for _ in range(400)]
    return {
        "tags are tokens": train_sentencepiece(sentences, path / "tags.model", 360),
        "tags are cut": train_sentencepiece(sentences, path / "cut.model", 420, user_symbols=(), model_type="bpe"),
    }


def _rows(id_lists: list[list[int]], filler: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids [N, width] and lengths [N]; what lies behind a completion's end is junk that must not count."""
    width = max(max(map(len, id_lists)), WIDTH)
    tokens = np.full((len(id_lists), width), filler, np.int32)
    for row, ids in enumerate(id_lists):
        tokens[row, : len(ids)] = ids
    return tokens, np.array([len(ids) for ids in id_lists], np.int32)


def _check_equal(
    tokenizer: SentencePieceTokenizer | ByteTokenizer, id_lists: list[list[int]], golds: list[str]
) -> tuple[int, int, int]:
    """Compares both rewards with the text versions on the decoded ids; (completions, well-formed, right)."""
    table = on_device.make_byte_table(tokenizer.token_bytes, tokenizer.vocab_size + 3)  # logits may be padded
    tokens, lengths = _rows(id_lists, filler=tokenizer.encode(">")[-1])
    formed = right = 0
    for start in range(0, len(id_lists), BATCH):
        part = slice(start, start + BATCH)
        gold = on_device.make_gold(golds[part], width=32)
        got_format = np.asarray(on_device.format_reward(tokens[part], lengths[part], table))
        got_match = np.asarray(on_device.exact_match_reward(tokens[part], lengths[part], table, gold))
        for row, ids in enumerate(id_lists[part]):
            text = tokenizer.decode(ids)
            example = Example(id="1", question="q", answer=golds[start + row], task="t")
            want = (format_reward(text, example).value, exact_match(text, example).value)
            assert (got_format[row], got_match[row]) == want, (text, example.answer)
            formed += int(want[0])
            right += int(want[1])
    return len(id_lists), formed, right


@pytest.mark.parametrize("name", ["tags are tokens", "tags are cut"])
def test_token_space_rewards_equal_the_text_versions(
    name: str, sentencepiece: dict[str, SentencePieceTokenizer]
) -> None:
    tokenizer = sentencepiece[name]
    rng = np.random.default_rng(1)
    texts, golds = zip(*_completions(seed=2, size=COMPLETIONS), strict=True)
    id_lists = [_cut_in_pieces(rng, tokenizer, text) for text in texts]
    assert [tokenizer.decode(ids) for ids in id_lists[:50]] == list(texts[:50])
    whole = {tag: len(tokenizer.encode(tag)) == 1 for tag in TAGS}
    assert all(whole.values()) if name == "tags are tokens" else not any(whole.values())
    total, formed, right = _check_equal(tokenizer, id_lists, list(golds))
    print(f"{name}: {total} completions, {formed} well-formed, {right} right")
    assert total >= 10_000
    assert formed >= total / 3
    assert right >= total / 3


def test_bytes_and_random_ids_too(sentencepiece: dict[str, SentencePieceTokenizer]) -> None:
    texts, golds = zip(*_completions(seed=3, size=1500), strict=True)
    byte_tokenizer = ByteTokenizer()
    _check_equal(byte_tokenizer, [byte_tokenizer.encode(text) for text in texts], list(golds))
    rng = np.random.default_rng(4)
    for tokenizer in sentencepiece.values():
        tags = tokenizer.encode("<think>") + tokenizer.encode("</answer>")
        common = [*tags, *tokenizer.encode(" <answer> 9 </think>")]
        pool = np.array([*range(tokenizer.vocab_size + 3), *common * 40])  # control and unknown ids, broken UTF-8
        id_lists = [[int(i) for i in rng.choice(pool, size=int(rng.integers(0, 30)))] for _ in range(512)]
        _check_equal(tokenizer, id_lists, ["9"] * len(id_lists))


def test_a_tag_counts_wherever_tokens_are_cut() -> None:
    # Token 0 is a control token: it has no bytes, and the "x" behind it in the table is not its own.
    pieces = [
        b"",
        b"x",
        b" <th",
        b"ink",
        b"> \xe4",
        b"\xb8\x83 </thi",
        b"nk>",
        b" <",
        b"answer",
        b"> ",
        b"9 ",
        b"</an",
        b"swer>",
    ]
    table = on_device.make_byte_table(pieces.__getitem__, len(pieces))
    good = list(range(2, 13))
    rows = [good, [*good, 0], [0, *good, 0], [*good, 1], good[:-1], [*good[:5], 0, *good[5:]], [1, *good]]
    tokens, lengths = _rows(rows, filler=1)
    np.testing.assert_array_equal(on_device.format_reward(tokens, lengths, table), [1, 1, 1, 0, 0, 1, 0])
    gold = on_device.make_gold(["9"] * len(rows))
    np.testing.assert_array_equal(on_device.exact_match_reward(tokens, lengths, table, gold), [1, 1, 1, 1, 0, 1, 1])


def test_every_order_of_up_to_six_tags_is_graded_alike() -> None:
    tokenizer = ByteTokenizer()
    orders = [order for size in range(1, 7) for order in itertools.product(TAGS, repeat=size)]
    id_lists = [tokenizer.encode("".join(f"{tag}9" for tag in order)) for order in orders]
    _check_equal(tokenizer, id_lists, ["9"] * len(orders))
    id_lists = [tokenizer.encode("".join(f" {tag} 9" for tag in order)[:-1]) for order in orders]
    _check_equal(tokenizer, id_lists, ["9"] * len(orders))


@pytest.mark.parametrize(
    ("stated", "gold", "value"),
    [
        ("9", "9", 1.0),
        (" \n9\t", "9", 1.0),
        ("99", "9", 0.0),
        ("9 9", "9", 0.0),
        ("899", "9", 0.0),
        ("8 9", "9", 0.0),
        ("", "9", 0.0),
        (" ", "9", 0.0),
        ("3  \n8", " 3 8 ", 1.0),
        ("38", "3 8", 0.0),
        ("3 8 ", "3 8 8", 0.0),
        ("3 8 8", "3 8", 0.0),
        ("a<b", "a<b", 1.0),
        ("<", "<", 1.0),
        ("</answe", "</answe", 1.0),
        ("</answer", "</answer", 1.0),
        ("</answe r>", "</answe", 0.0),
        ("9</answer", "9", 0.0),
        ("九", "九", 1.0),
        ("\u3000九", "九", 0.0),
    ],
)
def test_exact_match_on_tokens(stated: str, gold: str, value: float) -> None:
    tokenizer = ByteTokenizer()
    text = f"<think> a </think> <answer>{stated}</answer>"
    table = on_device.make_byte_table(tokenizer.token_bytes, tokenizer.vocab_size)
    tokens, lengths = _rows([tokenizer.encode(text)], filler=0)
    graded = on_device.exact_match_reward(tokens, lengths, table, on_device.make_gold([gold], width=16))
    assert graded.tolist() == [value]
    assert exact_match(text, Example(id="1", question="q", answer=gold, task="t")).value == value


PIECES = st.sampled_from([*SPLINTERS, "<think> a </think>", "<answer> 9 </answer>", "<answer> 9", " 9"])


@settings(max_examples=150)
@given(st.lists(st.lists(PIECES, max_size=8).map("".join), min_size=8, max_size=8), st.sampled_from(GOLDS))
def test_any_splinters_are_graded_alike(texts: list[str], gold: str) -> None:
    tokenizer = ByteTokenizer()
    _check_equal(tokenizer, [tokenizer.encode(text) for text in texts], [gold] * len(texts))


def test_references_that_no_completion_can_state_are_refused() -> None:
    for answer in ("", " \n", "<answer>", "9 </answer>"):
        with pytest.raises(ValueError, match=r"answer 1: .* is blank or contains a tag"):
            on_device.make_gold(["9", answer])
    with pytest.raises(ValueError, match="an answer of 3 bytes is longer than the width 2"):
        on_device.make_gold(["9", "九"], width=2)


def test_empty_completions_and_empty_batches_are_graded() -> None:
    table = on_device.make_byte_table(ByteTokenizer().token_bytes, 259)
    nothing = jnp.zeros((2, 4), jnp.int32), jnp.zeros((2,), jnp.int32)
    np.testing.assert_array_equal(on_device.format_reward(*nothing, table), [0, 0])
    np.testing.assert_array_equal(
        on_device.exact_match_reward(*nothing, table, on_device.make_gold(["9", "9"])), [0, 0]
    )
    assert on_device.format_reward(jnp.zeros((2, 0), jnp.int32), nothing[1], table).tolist() == [0, 0]


def _count_compilations(function: Callable[..., object]) -> int:
    return function._cache_size()  # type: ignore[attr-defined, no-any-return]


def test_other_values_of_the_same_shape_do_not_compile_again() -> None:
    tokenizer = ByteTokenizer()
    table = on_device.make_byte_table(tokenizer.token_bytes, tokenizer.vocab_size)
    texts = [render_completion("a b c", "9"), render_completion("quite another thought", "12"), "short"]
    compiled = []
    for text, gold in zip(texts, ("9", "12", "3 8"), strict=True):
        tokens, lengths = _rows([tokenizer.encode(text)], filler=0)
        on_device.format_reward(tokens, lengths, table)
        on_device.exact_match_reward(tokens, lengths, table, on_device.make_gold([gold], width=16))
        compiled.append(
            _count_compilations(on_device.format_reward) + _count_compilations(on_device.exact_match_reward)
        )
    assert compiled[0] == compiled[1] == compiled[2]
