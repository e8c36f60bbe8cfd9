"""Tokenizers behind one protocol: sentencepiece models of our own, released `tokenizer.json` files, plain bytes.

Rules that hold for all of them:

- `encode` adds nothing: no bos, no eos, no dummy space in front. What the model sees is what was asked for.
- `decode(ids)` is the UTF-8 decoding of the concatenated `token_bytes`, with U+FFFD in place of invalid bytes, so any
  list of ids has a text, and the text of a list of ids does not depend on how it was cut into parts (`StreamDecoder`).
- `decode(encode(x)) == x` for every string x that has a UTF-8 encoding (lone surrogates have none), spaces and
  newlines included. A released tokenizer with a normalizer (Qwen2: NFC) gives back the normalized string.
- bos, eos, pad and other control tokens have no bytes: they vanish from the text.
- `encode(a) + encode(b)` always decodes to a + b, but need not equal `encode(a + b)`: a token may reach over the
  border. A prompt and its completion are therefore encoded separately everywhere, in pretraining documents, SFT and RL
  alike, and sampled ids are trained on as sampled, never decoded and encoded again.
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import io
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import sentencepiece
import tokenizers

from r1jax.data.errors import DataError
from r1jax.data.tokenizer_files import (
    CONFIG_FILE,
    ROLES,
    chat_template_of,
    read_tokenizer,
    read_tokenizer_config,
    token_name,
    write_tokenizer,
)

DEFAULT_USER_SYMBOLS = ("<think>", "</think>", "<answer>", "</answer>", "\n")
UNKNOWN_BYTES = "\ufffd".encode()  # of ids that no token has: a padded vocabulary can sample them, and it must be seen
_SPACE = "\u2581"  # how sentencepiece writes a space inside a piece


SENTENCEPIECE_FILE = "tokenizer.model"


class Tokenizer(Protocol):
    """What the rest of the house asks of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""

    @property
    def bos_id(self) -> int | None:
        """Beginning of a document; None if the tokenizer has none."""

    @property
    def eos_id(self) -> int:
        """End of a document or response."""

    @property
    def pad_id(self) -> int:
        """Fills arrays; may equal `eos_id`, so lengths and masks say what is padding, never the id."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever an id may mean something else."""

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text and nothing else."""

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of any ids; bytes that are no valid UTF-8 become U+FFFD."""

    def token_bytes(self, token_id: int) -> bytes:
        """Returns the bytes the token stands for."""

    def save(self, directory: pathlib.Path) -> None:
        """Writes the files that `load_tokenizer` reads into a folder."""


class _TokenTable:
    """Decoding by a table of bytes per token, shared by all tokenizers."""

    def __init__(self, table: Sequence[bytes], fingerprint: str):
        self._table = tuple(table)
        self._fingerprint = fingerprint

    @property
    def vocab_size(self) -> int:
        return len(self._table)

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def token_bytes(self, token_id: int) -> bytes:
        """Returns the bytes the token stands for: empty for control tokens, those of U+FFFD past the vocabulary."""
        if token_id < 0:
            raise ValueError(f"token id {token_id} is negative")
        return self._table[token_id] if token_id < len(self._table) else UNKNOWN_BYTES

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of any ids; bytes that are no valid UTF-8 become U+FFFD."""
        return b"".join(self.token_bytes(int(i)) for i in ids).decode("utf-8", errors="replace")


class StreamDecoder:
    """Decodes ids one at a time: the joined parts equal `decode` of all ids; half characters are held back."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_id: int) -> str:
        """Returns the text that became complete with this token (it may be empty)."""
        return self._decoder.decode(self._tokenizer.token_bytes(int(token_id)))

    def finish(self) -> str:
        """Returns what was held back (U+FFFD for an unfinished character) and starts afresh."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


class ByteTokenizer(_TokenTable):
    """One token per UTF-8 byte: pad 0, eos 1, bos 2, byte b is 3 + b. For tests and examples."""

    pad_id, eos_id, bos_id = 0, 1, 2

    def __init__(self) -> None:
        super().__init__([b"", b"", b"", *(bytes([b]) for b in range(256))], "byte-1")

    def encode(self, text: str) -> list[int]:
        """Returns one id per byte."""
        return [3 + b for b in text.encode("utf-8")]

    def save(self, directory: pathlib.Path) -> None:
        """Needs no file."""


class SentencePieceTokenizer(_TokenTable):
    """A sentencepiece model with byte fallback and no normalization, such as `train_sentencepiece` makes.

    Raises ValueError for a model that cannot give every string back: one that adds a dummy prefix, normalizes, removes
    spaces, or has no byte fallback.
    """

    def __init__(self, model: bytes | str | pathlib.Path):
        proto = model if isinstance(model, bytes) else pathlib.Path(model).read_bytes()
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
        name = "the sentencepiece model" if isinstance(model, bytes) else f"sentencepiece model {model}"
        self._byte_ids = _byte_ids(self._processor, name)
        super().__init__(
            [_piece_bytes(self._processor, i) for i in range(self._processor.vocab_size())],
            hashlib.sha256(proto).hexdigest(),
        )
        self._proto = proto
        eos, pad = self._processor.eos_id(), self._processor.pad_id()
        if eos < 0:
            raise ValueError(f"{name} has no eos token")
        self.eos_id: int = eos
        self.pad_id: int = pad if pad >= 0 else eos
        self.bos_id: int | None = self._processor.bos_id() if self._processor.bos_id() >= 0 else None
        self.eos_token: str = self._processor.id_to_piece(eos)  # names only: `encode` takes them for plain text
        self.bos_token: str | None = None if self.bos_id is None else self._processor.id_to_piece(self.bos_id)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of the most probable segmentation; user symbols are always one token each."""
        if _SPACE not in text:
            return self._processor.encode(text)
        # Sentencepiece would take a literal U+2581 for a space: spell it in bytes.
        literal = [self._byte_ids[b] for b in _SPACE.encode()]
        ids: list[int] = []
        for index, part in enumerate(text.split(_SPACE)):
            ids += (literal if index else []) + self._processor.encode(part)
        return ids

    def save(self, directory: pathlib.Path) -> None:
        """Writes `tokenizer.model`."""
        (directory / SENTENCEPIECE_FILE).write_bytes(self._proto)


def _byte_ids(processor: sentencepiece.SentencePieceProcessor, name: str) -> list[int]:
    """Returns the id of each byte token; refuses models that lose something of a string."""
    probe = "  \uff21 \ufb01\tx  \n "  # spaces, a full-width letter and a ligature that NFKC would change
    if processor.normalize(probe) != probe.replace(" ", _SPACE):
        raise ValueError(
            f"{name} changes its input ({probe!r} becomes {processor.normalize(probe)!r}): it must be trained with "
            "add_dummy_prefix=False, remove_extra_whitespaces=False, normalization_rule_name='identity'"
        )
    ids = [processor.piece_to_id(f"<0x{b:02X}>") for b in range(256)]
    if not all(processor.is_byte(i) for i in ids):
        raise ValueError(f"{name} has no byte fallback: it cannot encode every string")
    return ids


def _piece_bytes(processor: sentencepiece.SentencePieceProcessor, token_id: int) -> bytes:
    piece = processor.id_to_piece(token_id)
    if processor.is_control(token_id):
        return b""
    if processor.is_unknown(token_id):
        return UNKNOWN_BYTES  # never made by encode (byte fallback), but it can be sampled
    if processor.is_byte(token_id):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(_SPACE, " ").encode("utf-8")


def train_sentencepiece(
    sentences: Iterable[str],
    path: str | pathlib.Path,
    vocab_size: int,
    user_symbols: Sequence[str] = DEFAULT_USER_SYMBOLS,
    *,
    model_type: str = "bpe",
    character_coverage: float = 1.0,
    split_digits: bool = True,
) -> SentencePieceTokenizer:
    """Trains a sentencepiece model, writes it to `path` and returns it; the same sentences give the same bytes.

    Ids: pad 0, eos 1, bos 2, unk 3, then `user_symbols` (each always one token; " <think>" with a space is another one
    than "<think>"), 256 bytes, learned pieces. Sentencepiece does not learn from sentences with a NUL or a U+2581; they
    can still be encoded.

    Args:
      sentences: documents; they are held in memory.
      path: of the model file.
      vocab_size: exact number of tokens.
      user_symbols: texts that are one token wherever they occur.
      model_type: "bpe" or "unigram".
      character_coverage: share of the characters that get a token of their own; the others are spelled in bytes.
      split_digits: every digit is a token of its own, the space before it too; otherwise " 12" may be one.

    Raises:
      ValueError: no sentences, a bad symbol, or a vocabulary size outside of what these sentences allow (the message
        names both numbers).
    """
    if model_type not in ("unigram", "bpe"):
        raise ValueError(f"model_type {model_type!r} is not one of 'unigram', 'bpe'")
    symbols = list(user_symbols)
    bad = [s for s in symbols if not s or _SPACE in s or symbols.count(s) > 1]
    if bad:
        raise ValueError(f"user symbols must be distinct, not empty and without U+2581, got {bad}")
    sentences = [s for s in sentences if s]
    if not sentences:
        raise ValueError("no sentences to train a tokenizer on")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            user_defined_symbols=[s.replace(" ", _SPACE) for s in symbols],
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=split_digits,
            max_sentence_length=max(len(s.encode("utf-8")) for s in sentences) + 1,  # longer ones are skipped silently
            num_threads=1,
            input_sentence_size=0,
            shuffle_input_sentence=False,
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(_training_problem(str(error), vocab_size, len(sentences))) from error
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
    return SentencePieceTokenizer(path)


def _training_problem(message: str, vocab_size: int, num_sentences: int) -> str:
    too_high = re.search(r"value <= (\d+)", message)
    if too_high:
        return f"vocab_size {vocab_size} is too high: {num_sentences} sentences allow at most {too_high[1]} tokens"
    too_low = re.search(r"(\d+) vs (\d+)", message)
    if too_low:
        return (
            f"vocab_size {vocab_size} is too low: characters, bytes, control and user symbols alone take {too_low[2]}; "
            "raise it or lower character_coverage"
        )
    return f"sentencepiece could not train a vocabulary of {vocab_size} on {num_sentences} sentences: {message}"


class HuggingFaceTokenizer(_TokenTable):
    """A byte-level BPE from a released `tokenizer.json` (DeepSeek-V3, Qwen2, Qwen3, Llama 3, SmolLM2).

    `eos_token` and the others are given as text and looked up, ids are never hard-coded. Added tokens marked special
    decode to nothing, other added tokens (such as `<think>`) to their text. Text is searched for all added tokens, so a
    rendered chat template becomes control tokens; keep such markers out of untrusted questions
    (`chat.check_contents`). Without a pad token, eos pads. `config` is what `tokenizer_config.json` says, the chat
    template included; `save` writes all of it back.

    Raises ValueError if the tokenizer is not byte-level, puts a space in front, or lacks a named token.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        eos_token: str,
        bos_token: str | None = None,
        pad_token: str | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        serialized = tokenizer.to_str()
        self._tokenizer = tokenizers.Tokenizer.from_str(serialized)  # our own copy: the next two lines change it
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        settings = json.loads(serialized)
        _check_byte_level(settings)
        super().__init__(_byte_level_table(self._tokenizer), hashlib.sha256(serialized.encode()).hexdigest())
        self.eos_token, self.bos_token, self.pad_token = eos_token, bos_token, pad_token
        self._config = dict(config or {})
        self.eos_id: int = self._find(eos_token, "eos")
        self.bos_id: int | None = None if bos_token is None else self._find(bos_token, "bos")
        self.pad_id: int = self.eos_id if pad_token is None else self._find(pad_token, "pad")

    @classmethod
    def from_directory(cls, directory: str | pathlib.Path) -> HuggingFaceTokenizer:
        """Reads `tokenizer.json`, `tokenizer_config.json` and, if it is there, `chat_template.jinja`.

        Raises:
          DataError: a file is missing or broken (it is named), or names no eos token.
          ValueError: see the class.
        """
        directory = pathlib.Path(directory)
        config = read_tokenizer_config(directory)
        eos, bos, pad = (token_name(config, role) for role in ROLES)
        if eos is None:
            raise DataError(f"{directory / CONFIG_FILE} names no eos_token")
        return cls(read_tokenizer(directory), eos, bos, pad, config)

    def save(self, directory: pathlib.Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, the chat template in it."""
        write_tokenizer(directory, self._tokenizer, self._config, {role: getattr(self, role) for role in ROLES})

    @property
    def chat_template(self) -> str | None:
        """The checkpoint's own chat template, see `chat.ChatTemplate`."""
        return chat_template_of(self._config)

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """The special added tokens, by id: text that contains one is encoded as that token, whoever wrote the text."""
        return tuple(t.content for _, t in sorted(self._tokenizer.get_added_tokens_decoder().items()) if t.special)

    @property
    def added_tokens(self) -> tuple[str, ...]:
        """All tokens that are looked for in the text before the rest is cut into pieces, by id."""
        return tuple(t.content for _, t in sorted(self._tokenizer.get_added_tokens_decoder().items()))

    def with_tokens(self, tokens: Sequence[str]) -> HuggingFaceTokenizer:
        """A copy in which each of these texts (e.g. `<think>`) is one token wherever it occurs.

        Those that are not get the next free ids, in this order, and are no special tokens: they keep their text when
        decoded. The model then needs `vocab_size` embeddings. ValueError if one is empty or stays in pieces.
        """
        tokenizer = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        known = set(self.added_tokens)
        tokenizer.add_tokens(
            [tokenizers.AddedToken(t, special=False, normalized=False) for t in tokens if t not in known]
        )
        new = HuggingFaceTokenizer(tokenizer, self.eos_token, self.bos_token, self.pad_token, self._config)
        for token in tokens:
            if not token or new.encode(token) != [new.token_id(token)]:
                raise ValueError(f"{token!r} is {len(new.encode(token))} tokens after it was added, expected one")
        return new

    def encode(self, text: str) -> list[int]:
        """Returns the ids without the template's bos; added tokens written out in the text are recognized."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def token_id(self, token: str) -> int | None:
        """Returns the id of a token given as text (e.g. `<think>`), None if it is not in the vocabulary."""
        return self._tokenizer.token_to_id(token)

    def _find(self, token: str, role: str) -> int:
        token_id = self.token_id(token)
        if token_id is None:
            raise ValueError(f"the {role} token {token!r} is not in the vocabulary")
        return token_id


def _components(part: dict | None) -> Iterator[dict]:
    """Yields a pre-tokenizer or decoder and, for a Sequence, the parts of it."""
    if part is None:
        return
    yield part
    for child in part.get("pretokenizers") or part.get("decoders") or []:
        yield from _components(child)


def _check_byte_level(settings: dict) -> None:
    if not any(c["type"] == "ByteLevel" for c in _components(settings.get("decoder"))):
        kind = (settings.get("decoder") or {}).get("type")
        raise ValueError(f"only byte-level tokenizers are supported, this one's decoder is {kind}")
    if any(c["type"] == "ByteLevel" and c["add_prefix_space"] for c in _components(settings.get("pre_tokenizer"))):
        raise ValueError(
            "this tokenizer puts a space in front of every text (add_prefix_space), which decode cannot undo"
        )


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """The character that byte-level BPE (GPT-2) writes for each byte, inverted: printable ones stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


def _byte_level_table(tokenizer: tokenizers.Tokenizer) -> list[bytes]:
    byte_of = _byte_of_character()
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    table = [UNKNOWN_BYTES] * (max(vocabulary.values()) + 1)
    for token, token_id in tokenizer.get_vocab(with_added_tokens=False).items():
        if all(c in byte_of for c in token):
            table[token_id] = bytes(byte_of[c] for c in token)
        else:
            table[token_id] = token.encode("utf-8")  # e.g. DeepSeek's full-width control tokens, also listed as added
    for token_id, added in tokenizer.get_added_tokens_decoder().items():
        table[token_id] = b"" if added.special else added.content.encode("utf-8")
    return table


TOKENIZERS: dict[str, Callable[[str], Tokenizer]] = {
    "byte": lambda path: ByteTokenizer(),
    "sentencepiece": SentencePieceTokenizer,
    "huggingface": HuggingFaceTokenizer.from_directory,
}


def load_tokenizer(kind: str, path: str = "") -> Tokenizer:
    """Returns the tokenizer of this kind from a file (sentencepiece) or folder (huggingface); 'byte' needs no path."""
    if kind not in TOKENIZERS:
        raise ValueError(f"tokenizer kind {kind!r} is not one of {', '.join(TOKENIZERS)}")
    return TOKENIZERS[kind](path)
