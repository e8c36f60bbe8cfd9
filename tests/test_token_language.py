"""The language reward on tokens counts the words of the text, however tokens are cut; hand-worked and compared."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from r1jax.data.templates import render_completion
from r1jax.data.tokenizer import ByteTokenizer
from r1jax.rewards.format import format_reward
from r1jax.rewards.languages import token_language
from r1jax.rewards.languages.language import language_reward, language_share, script_of
from r1jax.rewards.languages.token_language import LanguageTable, make_language_table, target_ids
from r1jax.rewards.languages.word_automaton import BREAK, KINDS, kind_of
from r1jax.types import Example

BYTES = ByteTokenizer()
WIDTH = 256
TARGETS = ["en", "zh"]
# Code and mathematics whole, words and letters of all kinds, and characters of one to four bytes.
WHOLE = (
    "$x + y$ ", "$我们 ab$ ", "`print(x)` ", "```python\nfor x in y\n``` ", "\\(ab 先 c\\)", "\\[a b\\]", "$$ab\ncd$$ ",
    "\\frac", "\\text{two}", " ", "\n", "don't", "I'm", "x", "ab", "é", "naïve", "我", "们", "да", "н",
    "½", "’", "'s", "ＡＢ", "，", "。", "😀", "𠮷", "7", "٣", "</th", "<", "<think", "answer>", "\u3000", "\xa0", "\0",
)  # fmt: skip


@pytest.fixture(scope="module")
def byte_table() -> LanguageTable:
    return make_language_table(BYTES.token_bytes, BYTES.vocab_size)


def example(language: str) -> Example:
    return Example(id="1", question="q", answer="9", task="chain_sum", language=language)


def rows_of(id_lists: list[list[int]], filler: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ids [N, width] and lengths [N]; junk stands behind the end of each."""
    tokens = np.full((len(id_lists), max(WIDTH, *map(len, id_lists))), filler, np.int32)
    for row, ids in enumerate(id_lists):
        tokens[row, : len(ids)] = ids
    return tokens, np.array([len(ids) for ids in id_lists], np.int32)


def rewards(id_lists: list[list[int]], texts: list[str], languages: list[str], table: LanguageTable) -> np.ndarray:
    tokens, lengths = rows_of(id_lists, filler=BYTES.encode("z")[0])
    formed = np.array([format_reward(text, example("en")).value for text in texts], np.float32)
    return np.asarray(token_language.language_reward(tokens, lengths, formed, target_ids(languages), table))


def check_equal(texts: list[str], languages: list[str], table: LanguageTable) -> None:
    got = rewards([BYTES.encode(text) for text in texts], texts, languages, table)
    want = [language_reward(text, example(target)).value for text, target in zip(texts, languages, strict=True)]
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize(
    ("thought", "english", "chinese", "other"),
    [
        ("seven plus 五 得 twelve", 3, 2, 0),
        ("don't can’t I'm x' o'o", 4, 0, 0),
        ("naïve Ångström ＡＢＣ", 3, 0, 0),
        ("Да нет½ ½ один", 0, 0, 3),
        ("x + y = 7, so a is B", 2, 0, 0),
        ("七加五，得十二。二〇〇八年", 0, 11, 0),
        (r"so $\frac{one}{two}$ and \(three\) and \[four\] and $$five$$ end", 5, 0, 0),
        (r"so $我们先算$ `我们` is", 2, 6, 0),
        ("from $5 to $6 dollars", 3, 0, 0),
        ("take $ab$5 or $cd$ so", 4, 0, 0),  # a digit behind: no formula, so $5 or $ is none either, but $cd$ is one
        ("before ```python\nprint(value)\n``` after `code` end", 3, 0, 0),
        ("a ` tick\nand line", 3, 0, 0),
        ("``` not closed, so it counts", 5, 0, 0),
        ("ends with $x + ab$", 2, 0, 0),
        (r"\alphaé \beta beta", 1, 0, 0),
        ("the </th and <answe of it", 6, 0, 0),  # pieces of tags are words
    ],
)
def test_words_of_a_thought(thought: str, english: int, chinese: int, other: int, byte_table: LanguageTable) -> None:
    total = english + chinese + other
    text = render_completion(thought, "nine 九")
    got = rewards([BYTES.encode(text)] * 2, [text] * 2, ["en", "zh"], byte_table)
    np.testing.assert_allclose(got, [english / total, chinese / total], rtol=1e-6)


@settings(max_examples=60)
@given(st.lists(st.lists(st.sampled_from(WHOLE), max_size=14).map("".join), min_size=16, max_size=16))
def test_equals_the_text_version(byte_table: LanguageTable, thoughts: list[str]) -> None:
    texts = [f"<think> a {thought} </think> <answer> two 二 </answer>" for thought in thoughts]
    texts += [f"well: {text}" for text in texts]  # malformed: all of it counts
    check_equal(texts, ["en", "zh"] * 16, byte_table)


def test_where_it_differs_from_the_text_version(byte_table: LanguageTable) -> None:
    cases = {
        # thought: (English words of the text version, here)
        "``` never closed, but `code` inside of it": (4, 7),
        "$$ so $abc$ too": (2, 3),
        f"```\n{'word ' * 1000}\n``` end": (1001, 1),  # a region of 5,000 characters
    }
    for thought, (text_version, here) in cases.items():
        text = render_completion(f"{thought} 我", "9")
        assert language_reward(text, example("en")).value == pytest.approx(text_version / (text_version + 1))
        assert rewards([BYTES.encode(text)], [text], ["en"], byte_table)[0] == pytest.approx(here / (here + 1))


def test_a_character_counts_once_wherever_tokens_are_cut() -> None:
    pieces = [
        b"",
        b"a\xe6",
        b"\x88",
        b"\x91",
        b"\x91\xf0\xa0",
        b"\xae",
        b"\xb7b",
        b"\xc3",
        b"\xa9t\xc3",
        b"\xa9 ",
        b" ok",
    ]
    table = make_language_table(pieces.__getitem__, len(pieces))
    cases = {
        (1, 2, 3, 10): (1, 1),  # a我 ok
        (1, 0, 2, 0, 3, 10): (1, 1),  # control tokens between the bytes
        (1, 2, 4, 5, 6, 10): (1, 2),  # a我𠮷b ok
        (7, 8, 9): (1, 0),  # été is one word
        (1, 2, 10): (1, 0),  # a character that never ends is none
        (1, 3, 2, 3, 10): (1, 1),  # 摈, and a stray byte behind it
        (2, 3, 10): (1, 0),
        (10, 1, 2): (1, 0),  # it ends with half a character
        (7, 10): (1, 0),
        (1, 2, 3, 8, 9, 10): (2, 1),  # a我, a stray byte, té, ok
    }
    for ids, (english, chinese) in cases.items():
        text = b"".join(pieces[i] for i in ids).decode("utf-8", errors="replace")
        assert (language_share(text, "en") or 0) == english / (english + chinese), text
        tokens, lengths = rows_of([list(ids)], filler=1)
        share = token_language.language_share(tokens, lengths, np.zeros(1), target_ids(["en"]), table)
        np.testing.assert_allclose(share, [english / (english + chinese)], err_msg=str(ids))


@pytest.mark.parametrize("seed", range(3))
def test_broken_bytes_count_as_in_the_text(seed: int, byte_table: LanguageTable) -> None:
    rng = np.random.default_rng(seed)
    common = [*"我的éЖ𠮷ab '’，".encode(), *b"\x80\xbf\xc0\xc2\xe0\xed\xf0\xf4\xf5\xff"]
    others = [byte for byte in range(256) if byte not in b"$`\\"]
    id_lists = [
        [3 + int(byte) for byte in rng.choice([*common, *rng.choice(others, 8)], size=int(rng.integers(0, 40)))]
        for _ in range(512)
    ]
    texts = [BYTES.decode(ids) for ids in id_lists]
    got = rewards(id_lists, texts, ["en", "zh"] * 256, byte_table)
    want = [language_reward(t, example(target)).value for t, target in zip(texts, ["en", "zh"] * 256, strict=True)]
    assert sum(value > 0 for value in want) > 20
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_any_cut_of_a_text_gives_the_same() -> None:
    text = render_completion("don't 我们 $x$ naïve `c` two\\frac </th ’s 😀", "9")
    raw = text.encode()
    rng = np.random.default_rng(0)
    pieces: list[bytes] = []
    id_lists = []
    for _ in range(16):
        cuts = [0, *sorted(int(cut) for cut in rng.integers(0, len(raw) + 1, size=24)), len(raw)]
        id_lists.append(list(range(len(pieces), len(pieces) + 25)))
        pieces += [raw[start:end] for start, end in itertools.pairwise(cuts)]
    got = rewards(id_lists, [text] * 16, ["zh"] * 16, make_language_table(pieces.__getitem__, len(pieces)))
    np.testing.assert_allclose(got, [language_reward(text, example("zh")).value] * 16, rtol=1e-6)


def test_no_words_and_no_tokens(byte_table: LanguageTable) -> None:
    tokens, lengths = rows_of([BYTES.encode("7 + 5 = 12"), []])
    targets, formed = target_ids(["en", "zh"]), np.zeros(2)
    assert np.isnan(token_language.language_share(tokens, lengths, formed, targets, byte_table)).all()
    assert token_language.language_reward(tokens, lengths, formed, targets, byte_table).tolist() == [0, 0]
    assert token_language.language_reward(tokens[:, :0], 0 * lengths, formed, targets, byte_table).tolist() == [0, 0]


def test_only_two_languages_are_targets() -> None:
    with pytest.raises(ValueError, match=r"language 1: 'fr' is not one of \['en', 'zh'\]"):
        target_ids(["en", "fr"])


def test_every_letter_is_of_the_kind_that_the_text_version_sees() -> None:
    kinds = token_language._kinds()
    rng = np.random.default_rng(0)
    letters = [c for c in map(chr, range(0x110000)) if c.isalnum() or c.isspace() or script_of(c)]
    assert max(letters) < chr(token_language._LETTERS_END)
    for character in rng.choice(letters, 2000):
        kind = KINDS[kinds[ord(character)]]
        # Between letters of one script: one word where it is of this script, two words where it ends them.
        for frame in ("中{}中", "ab{}ab", "Жы{}Жы"):
            counts = [
                language_share(frame.format(letter), target) for letter in (character, kind) for target in TARGETS
            ]
            assert counts[:2] == counts[2:], (character, kind)
    assert {kind_of("a"), kind_of("z"), kind_of("!")} == {"a", "x", BREAK}


def test_a_batch_over_several_devices_gives_the_same(byte_table: LanguageTable) -> None:
    texts = [render_completion("seven 加 five " * (1 + n), "9") for n in range(8)]
    tokens, lengths = rows_of([BYTES.encode(text) for text in texts])
    targets, formed = target_ids(TARGETS * 4), np.ones(8, np.float32)
    alone = np.asarray(token_language.language_share(tokens, lengths, formed, targets, byte_table))
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    placed = jax.device_put((tokens, lengths, formed, targets), sharding)
    spread = token_language.language_share(*placed, byte_table)
    assert spread.sharding.is_equivalent_to(sharding, 1)
    np.testing.assert_array_equal(spread, alone)


def test_other_values_of_the_same_shape_do_not_compile_again(byte_table: LanguageTable) -> None:
    compiled = set()
    for text in (render_completion("a b c", "9"), "$ quite another"):
        rewards([BYTES.encode(text)], [text], ["en"], byte_table)
        compiled.add(token_language.language_reward._cache_size())
    assert len(compiled) == 1
