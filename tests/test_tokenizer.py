from __future__ import annotations

import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from r1jax.data.tokenizer import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    StreamDecoder,
    load_tokenizer,
    train_sentencepiece,
)

SENTENCES = [
    "User: what is 12 + 30 ?\n<think> 12 plus 30 is 42 , so  42 </think>\n<answer> 42 </answer>",
    "用户: 3 加 4 得 几 ?\n<think> 三 加 四 得 七 </think> <answer> 7 </answer>",
    "The answer is not here, wait, let me check: five times six is thirty.",
] * 20

# Strings that have bitten tokenizers: spaces at both ends, the space symbol itself, control names, byte names, NUL.
NASTY = [
    "", " ", "   ", "\n", " a", "a ", "  a   b  ", "a\n\n b\r\n\t", "\u2581", "\u2581 \u2581a", "<s></s><pad><unk>",
    "<0x41>", "a\0b", "é e\u0301 ﬁ Ａ", "🤖 你好，世界", "<think> x</think><think", "</answer>\n",
    "\ufffd", "\u200b\ufeff",
]  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.lists(
    st.sampled_from([*NASTY, "ans", "<", "think>", "42", " "]), max_size=6
).map("".join)


@pytest.fixture(scope="module")
def sp(tmp_path_factory) -> SentencePieceTokenizer:
    return train_sentencepiece(SENTENCES, tmp_path_factory.mktemp("sp") / "sub" / "tiny.model", 310)


@pytest.fixture(scope="module")
def spaced(tmp_path_factory) -> SentencePieceTokenizer:
    path = tmp_path_factory.mktemp("sp") / "spaced.model"
    symbols = ["<think>", " <think>", "</think>", ","]
    return train_sentencepiece(SENTENCES, path, 311, symbols, model_type="unigram", split_digits=False)


def byte_level_bpe(**changes) -> tokenizers.Tokenizer:
    """A BPE tokenizer laid out as the released ones are, trained here."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=changes.get("add_prefix_space", False)),
        ]
    )
    tokenizer.decoder = changes.get("decoder", decoders.ByteLevel())
    if "normalizer" in changes:
        tokenizer.normalizer = changes["normalizer"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>", "<|start|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return tokenizer


@pytest.fixture(scope="module")
def bpe() -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(byte_level_bpe(), eos_token="<|end|>", bos_token="<|start|>")


@pytest.fixture(params=["byte", "sp", "bpe"])
def tokenizer(request, sp, bpe):
    return {"byte": ByteTokenizer(), "sp": sp, "bpe": bpe}[request.param]


def test_nasty_strings_come_back(tokenizer):
    for text in NASTY:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=300, deadline=None)
@given(text=TEXT, other=TEXT)
def test_any_string_comes_back_also_encoded_in_two_parts(sp, bpe, text, other):
    for tokenizer in (ByteTokenizer(), sp, bpe):
        first, second = tokenizer.encode(text), tokenizer.encode(other)
        assert tokenizer.decode(first) == text
        assert tokenizer.decode(first + second) == text + other


@settings(max_examples=200, deadline=None)
@given(text=TEXT)
def test_any_string_comes_back_from_unigram_with_spaced_symbols_too(spaced, text):
    assert spaced.decode(spaced.encode(text)) == text


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_ids_decode_and_stream_to_the_same_text(sp, bpe, data):
    for tokenizer in (ByteTokenizer(), sp, bpe):
        ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=20))
        whole = tokenizer.decode(ids)
        stream = StreamDecoder(tokenizer)
        assert "".join(map(stream.feed, ids)) + stream.finish() == whole
        assert whole == b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", errors="replace")


def test_half_a_character_is_held_back_and_then_replaced():
    tokenizer = ByteTokenizer()
    stream = StreamDecoder(tokenizer)
    assert [stream.feed(i) for i in tokenizer.encode("é你")] == ["", "é", "", "", "你"]
    assert stream.feed(3 + 0xE4) == ""
    assert stream.finish() == "\ufffd"
    assert stream.feed(3 + ord("a")) == "a"  # finish starts afresh
    assert tokenizer.decode([3 + 0xE4, 3 + ord("a")]) == "\ufffda"


def test_encode_adds_nothing(tokenizer):
    special = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    assert tokenizer.encode("") == []
    assert not special & set(tokenizer.encode("the answer"))
    assert tokenizer.token_bytes(tokenizer.encode("a")[0]) == b"a"


def test_control_tokens_vanish_and_ids_past_the_vocabulary_are_seen(tokenizer):
    ids = [tokenizer.eos_id, *tokenizer.encode("ok"), tokenizer.pad_id, tokenizer.bos_id]
    assert tokenizer.decode(ids) == "ok"
    assert tokenizer.decode([tokenizer.vocab_size + 5]) == "\ufffd"
    with pytest.raises(ValueError, match="-1 is negative"):
        tokenizer.decode([-1])


def test_all_256_bytes_have_a_token(tokenizer):
    single = {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)}
    assert {bytes([b]) for b in range(256)} <= single


def test_sentencepiece_layout_tags_are_one_token_and_digits_stand_alone(sp):
    assert (sp.pad_id, sp.eos_id, sp.bos_id) == (0, 1, 2)
    assert [sp.token_bytes(i) for i in range(4, 9)] == [b"<think>", b"</think>", b"<answer>", b"</answer>", b"\n"]
    assert sp.encode("<think></think><answer></answer>\n") == [4, 5, 6, 7, 8]
    assert [sp.token_bytes(i) for i in sp.encode("42")] == [b"4", b"2"]
    assert sp.eos_id not in sp.encode("</s>")  # text cannot forge a control token


def test_a_symbol_with_a_space_is_a_token_of_its_own(spaced):
    assert spaced.encode("<think> <think>") == [4, 5]
    assert [spaced.token_bytes(i) for i in spaced.encode("  <think></think>")] == [b" ", b" <think>", b"</think>"]


def test_sentencepiece_training_is_deterministic_and_the_file_is_the_model(sp, tmp_path):
    again = train_sentencepiece(SENTENCES, tmp_path / "other.model", 310)
    loaded = load_tokenizer("sentencepiece", str(tmp_path / "other.model"))
    assert sp.vocab_size == again.vocab_size == 310
    assert sp.fingerprint == again.fingerprint == loaded.fingerprint
    assert loaded.encode(SENTENCES[0]) == sp.encode(SENTENCES[0])
    assert train_sentencepiece(SENTENCES, tmp_path / "c.model", 309).fingerprint != sp.fingerprint


def test_vocabulary_size_out_of_reach_says_what_is_possible(tmp_path):
    with pytest.raises(ValueError, match=r"vocab_size 5000 is too high: 60 sentences allow at most \d+ tokens"):
        train_sentencepiece(SENTENCES, tmp_path / "m", 5000)
    with pytest.raises(ValueError, match=r"vocab_size 200 is too low: .* alone take \d+"):
        train_sentencepiece(SENTENCES, tmp_path / "m", 200)
    assert not (tmp_path / "m").exists()


def test_bad_training_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no sentences"):
        train_sentencepiece(["", ""], tmp_path / "m", 300)
    with pytest.raises(ValueError, match="user symbols"):
        train_sentencepiece(SENTENCES, tmp_path / "m", 300, user_symbols=["<a>", "<a>"])
    with pytest.raises(ValueError, match="model_type 'word' is not one of"):
        train_sentencepiece(SENTENCES, tmp_path / "m", 300, model_type="word")


def test_a_sentencepiece_model_that_loses_spaces_is_refused(tmp_path):
    import sentencepiece

    options = {"vocab_size": 60, "hard_vocab_limit": False, "num_threads": 1, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_prefix=str(tmp_path / "plain"), **options
    )
    with pytest.raises(ValueError, match=r"plain\.model changes its input .*add_dummy_prefix"):
        SentencePieceTokenizer(tmp_path / "plain.model")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_prefix=str(tmp_path / "nobytes"),
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        **options,
    )
    with pytest.raises(ValueError, match="no byte fallback"):
        SentencePieceTokenizer(tmp_path / "nobytes.model")


def test_byte_level_bpe_marks(bpe):
    think = bpe.token_id("<think>")
    assert bpe.encode("<think>a<|end|>") == [think, bpe.token_id("a"), bpe.eos_id]
    assert bpe.decode([think, bpe.eos_id]) == "<think>"  # special tokens vanish, other added ones do not
    assert bpe.pad_id == bpe.eos_id
    assert [bpe.token_bytes(i) for i in bpe.encode("42")] == [b"4", b"2"]


def test_byte_level_bpe_agrees_with_the_librarys_own_decoder(bpe):
    raw = byte_level_bpe()
    for text in SENTENCES[:3]:
        assert raw.encode(text).ids == bpe.encode(text)
        assert raw.decode(bpe.encode(text), skip_special_tokens=True) == bpe.decode(bpe.encode(text))


def test_from_directory_reads_names_from_the_config(tmp_path):
    byte_level_bpe().save(str(tmp_path / "tokenizer.json"))
    config = {"eos_token": {"content": "<|end|>"}, "bos_token": None, "pad_token": "<|start|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer("huggingface", str(tmp_path))
    assert (tokenizer.bos_id, tokenizer.decode(tokenizer.encode(" hi "))) == (None, " hi ")
    assert tokenizer.eos_id != tokenizer.pad_id
    config["eos_token"] = None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"tokenizer_config\.json names no eos_token"):
        load_tokenizer("huggingface", str(tmp_path))
    config["eos_token"] = "<|none|>"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"eos token '<\|none\|>' is not in the vocabulary"):
        load_tokenizer("huggingface", str(tmp_path))


def test_tokenizers_that_lose_something_are_refused():
    with pytest.raises(ValueError, match="add_prefix_space"):
        HuggingFaceTokenizer(byte_level_bpe(add_prefix_space=True), eos_token="<|end|>")
    with pytest.raises(ValueError, match="decoder is Metaspace"):
        HuggingFaceTokenizer(byte_level_bpe(decoder=decoders.Metaspace()), eos_token="<|end|>")


def test_a_normalizing_tokenizer_gives_back_the_normalized_string():
    tokenizer = HuggingFaceTokenizer(byte_level_bpe(normalizer=normalizers.NFC()), eos_token="<|end|>")
    assert tokenizer.decode(tokenizer.encode("e\u0301 ")) == "é "


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=30))
def test_every_byte_string_has_ids(sp, bpe, data):
    """Text has no invalid UTF-8, but a model can say any bytes, and every one of them has its tokens."""
    for tokenizer in (ByteTokenizer(), sp, bpe):
        place = {tokenizer.token_bytes(i): i for i in reversed(range(tokenizer.vocab_size))}
        ids = [place[bytes([byte])] for byte in data]
        assert b"".join(map(tokenizer.token_bytes, ids)) == data
        assert tokenizer.decode(ids) == data.decode("utf-8", errors="replace")
        stream = StreamDecoder(tokenizer)
        assert "".join(map(stream.feed, ids)) + stream.finish() == data.decode("utf-8", errors="replace")


def test_every_byte_of_a_text_is_in_its_tokens(tokenizer):
    used = set()
    characters = [chr(c) for c in (*range(0x800), *range(0x800, 0x110000, 251)) if not 0xD800 <= c < 0xE000]
    for first in range(0, len(characters), 500):
        text = "".join(characters[first : first + 500])
        covered = b"".join(map(tokenizer.token_bytes, tokenizer.encode(text)))
        assert covered == text.encode()
        used |= set(covered)
    assert used == set(range(256)) - {0xC0, 0xC1, *range(0xF5, 0x100)}  # those that UTF-8 never uses


def test_a_stream_never_splits_a_character_of_several_tokens(tokenizer):
    text = "é 你好🤖, ﬁn\u0301 𝔸ä"
    ids = tokenizer.encode(text)
    assert len(ids) > len(text)
    stream, whole = StreamDecoder(tokenizer), ""
    held = 0
    for token in ids:
        piece = stream.feed(token)
        held += piece == ""
        whole += piece
        assert text.startswith(whole)  # never a U+FFFD on the way
    assert stream.finish() == ""
    assert whole == text
    assert held


CONFIG = {
    "eos_token": {"content": "<|end|>", "lstrip": False, "__type": "AddedToken"},
    "bos_token": "<|start|>",
    "pad_token": None,
    "model_max_length": 131072,
    "chat_template": "{{ messages[0].content }} 你",
    "added_tokens_decoder": {"0": {"content": "<|end|>", "special": True, "more": 1}},
}


def write_tokenizer_files(directory, config=CONFIG):
    byte_level_bpe().save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def test_saving_loses_nothing_of_the_config(tmp_path):
    write_tokenizer_files(tmp_path)
    tokenizer = HuggingFaceTokenizer.from_directory(tmp_path)
    (tmp_path / "copy").mkdir()
    tokenizer.save(tmp_path / "copy")
    saved = json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text(encoding="utf-8"))
    think = str(tokenizer.token_id("<think>"))
    assert saved["added_tokens_decoder"].keys() == {"0", "1", think}
    assert saved["added_tokens_decoder"][think]["content"] == "<think>"
    saved["added_tokens_decoder"] = {"0": saved["added_tokens_decoder"]["0"]}
    assert saved.pop("tokenizer_class") == "PreTrainedTokenizerFast"  # without one, transformers could not load it
    assert saved == CONFIG
    again = HuggingFaceTokenizer.from_directory(tmp_path / "copy")
    assert (again.fingerprint, again.bos_id, again.eos_id) == (
        tokenizer.fingerprint,
        tokenizer.bos_id,
        tokenizer.eos_id,
    )
    assert again.chat_template == tokenizer.chat_template == "{{ messages[0].content }} 你"


def test_the_chat_template_is_found_where_it_may_be(tmp_path, bpe):
    assert bpe.chat_template is None
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    for template, expected in ((several, "d"), (several[:1], None), ("plain", "plain"), (None, None)):
        write_tokenizer_files(tmp_path, CONFIG | {"chat_template": template})
        assert HuggingFaceTokenizer.from_directory(tmp_path).chat_template == expected
    (tmp_path / "chat_template.jinja").write_text("file\n", encoding="utf-8")
    tokenizer = HuggingFaceTokenizer.from_directory(tmp_path)
    assert tokenizer.chat_template == "file\n"
    (tmp_path / "copy").mkdir()
    tokenizer.save(tmp_path / "copy")
    assert HuggingFaceTokenizer.from_directory(tmp_path / "copy").chat_template == "file\n"


def test_missing_think_tokens_are_added_at_the_next_ids(tmp_path, bpe):
    assert bpe.control_tokens == ("<|end|>", "<|start|>")
    assert bpe.added_tokens == ("<|end|>", "<|start|>", "<think>")
    size = bpe.vocab_size
    more = bpe.with_tokens(["<think>", "</think>", "a b", "<|end|>"])
    assert (bpe.vocab_size, more.vocab_size) == (size, size + 2)
    assert more.encode("x</think>a b<think>") == [bpe.token_id("x"), size, size + 1, bpe.token_id("<think>")]
    assert more.decode([size, size + 1, more.eos_id]) == "</think>a b"
    assert more.control_tokens == bpe.control_tokens
    assert more.fingerprint != bpe.fingerprint
    assert more.with_tokens(["</think>"]).fingerprint == more.fingerprint
    text = "User: what is </ think> ?"
    assert more.encode(text) == bpe.encode(text)
    more.save(tmp_path)
    again = HuggingFaceTokenizer.from_directory(tmp_path)
    assert (again.fingerprint, again.token_id("</think>")) == (more.fingerprint, size)
    with pytest.raises(ValueError, match="'' is 0 tokens after it was added, expected one"):
        bpe.with_tokens([""])


def test_a_token_that_only_lay_in_the_vocabulary_keeps_its_id(bpe):
    settings = json.loads(byte_level_bpe().to_str())
    settings["added_tokens"] = [token for token in settings["added_tokens"] if token["content"] != "<think>"]
    settings["model"]["vocab"]["<think>"] = 400
    tokenizer = HuggingFaceTokenizer(tokenizers.Tokenizer.from_str(json.dumps(settings)), "<|end|>")
    assert len(tokenizer.encode("<think>")) > 1
    assert tokenizer.with_tokens(["<think>"]).encode("<think>") == [400]


def test_broken_tokenizer_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path} has no tokenizer_config\.json"):
        HuggingFaceTokenizer.from_directory(tmp_path)
    write_tokenizer_files(tmp_path)
    for name, text, said in (
        ("tokenizer_config.json", "{", "is not JSON"),
        ("tokenizer_config.json", "[]", "holds a list, not an object"),
        ("tokenizer.json", '{"version": ', "is not JSON"),
        ("tokenizer.json", "{}", "is no tokenizer"),
        ("tokenizer.json", None, "has no tokenizer.json"),
    ):
        write_tokenizer_files(tmp_path)
        (tmp_path / name).unlink()
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=rf"{name}.*{said}|{said}"):
            HuggingFaceTokenizer.from_directory(tmp_path)


def test_unknown_kind_is_named():
    with pytest.raises(ValueError, match="kind 'bpe' is not one of byte, sentencepiece, huggingface"):
        load_tokenizer("bpe")
