"""A model and its tokenizer as one file in llama.cpp's GGUF format, for llama.cpp and Ollama.

The file says what llama.cpp's own converter would say: its names, its order of rotated dimensions, norms and biases in
float32 whatever the matrices are stored in. `gguf` reads it back, the configuration and the tokenizer included; what it
could not read back as it was is refused before anything is written.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers

from r1jax.checkpoint import DiskFullError, is_disk_full
from r1jax.data.tokenizer import HuggingFaceTokenizer
from r1jax.data.tokenizer_files import CONFIG_FILE, TOKENIZER_FILE, read_json
from r1jax.metrics import Progress
from r1jax.model.config import GQAConfig, Llama3RopeConfig, ModelConfig, RopeConfig, YarnConfig
from r1jax.model.rope import rope_amplitude, yarn_magnitude
from r1jax.weights.checkpoint_tensors import CheckpointTensors
from r1jax.weights.export_config import family_of
from r1jax.weights.gguf import (
    ARCHITECTURES,
    CONTROL_TOKEN,
    LLAMA3_PRE,
    NORMAL_TOKEN,
    PRE_TOKENIZERS,
    ROPE_FACTORS,
    UNUSED_TOKEN,
    USER_TOKEN,
    llama3_factors,
    llama3_scaling,
)
from r1jax.weights.names import Source, WeightsError, gguf_table

# How matrices are stored, and what the file says of itself.
QUANTIZATIONS = {
    "F32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "F16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "Q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
LARGEST_F16 = 65504.0
LARGEST_Q8_0 = 127 * LARGEST_F16  # a block's scale is half precision
DEEPSEEK_BOS = "<｜begin▁of▁sentence｜>"  # tells the distilled Qwen models' tokenizer from Qwen's own

MIB = 2**20
Report = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One tensor of the file."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        per_block, block_bytes = gguf.GGML_QUANT_SIZES[self.kind]
        return math.prod(self.shape) // per_block * block_bytes


def export_gguf(checkpoint: Path, out: Path, quantization: str, name: str | None = None) -> int:
    """Writes the policy in the folder `checkpoint` to the new file `out`, and returns the file's size in bytes.

    Raises:
      WeightsError: as `write_gguf`; or there is no finished policy, or its tokenizer is no tokenizer.json.
      FileExistsError: `out` is there already.
      DiskFullError: there is not enough room.
    """
    if out.exists():
        raise FileExistsError(f"{out} is there already; remove it, or choose another file")
    tensors = CheckpointTensors(checkpoint)
    tokenizer = tensors.tokenizer
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        raise WeightsError(f"{checkpoint}: only the tokenizer of a released model ({TOKENIZER_FILE}) can be written")
    total = math.ceil(tensor_bytes(tensors.model, quantization) / MIB)
    out.parent.mkdir(parents=True, exist_ok=True)
    with Progress(f"export to {out.name} (MiB)", total) as progress:
        write_gguf(
            out,
            tensors.model,
            tensors.read,
            tokenizer,
            quantization=quantization,
            name=name or out.stem,
            chat_template=tokenizer.chat_template,
            progress=lambda done, total: progress.update(math.ceil(done / MIB)),
        )
    return out.stat().st_size


def write_gguf(
    path: Path,
    cfg: ModelConfig,
    read: Callable[[Source], np.ndarray],
    tokenizer: HuggingFaceTokenizer,
    *,
    quantization: str,
    name: str,
    chat_template: str | None,
    progress: Report = lambda done, total: None,
) -> None:
    """Writes one model; the file is whole or not there. One tensor is in memory at a time.

    Args:
      path: of the file; `PATH.partial` meanwhile.
      cfg: a model of the Llama, Qwen2 or Qwen3 family.
      read: a tensor of `gguf_table(cfg, family)` -> its values, called once for each.
      tokenizer: of the model; it may have fewer tokens than the model, not more.
      quantization: of matrices, one of QUANTIZATIONS; vectors are stored as F32.
      name: of the model, shown by programs that run it.
      chat_template: a jinja2 text.
      progress: told (bytes written, bytes of all tensors) after each tensor.

    Raises:
      WeightsError: the format has no way to say something of this model or tokenizer (nothing has been written), or a
        tensor has values that the quantization cannot hold (named).
      DiskFullError: there is not enough room (said before the start where that can be known).
    """
    architecture = _architecture(cfg)
    entries = _entries(cfg, read, quantization)
    partial = path.with_name(path.name + ".partial")
    writer = gguf.GGUFWriter(partial, architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(QUANTIZATIONS[quantization][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_settings(writer, cfg)
    _add_tokenizer(writer, cfg, tokenizer)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    for entry in entries:
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), entry.nbytes, raw_dtype=entry.kind)
    _check_room(path, entries)
    try:
        _write(writer, entries, progress)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
    except BaseException as error:
        partial.unlink(missing_ok=True)
        # Of an array that did not fit, numpy says only how much of it was written.
        if is_disk_full(error) or (isinstance(error, OSError) and "requested and" in str(error)):
            raise DiskFullError(f"{path}: the disk is full; make room and run the same command again") from error
        raise
    partial.replace(path)


def tensor_bytes(cfg: ModelConfig, quantization: str) -> int:
    """Bytes of all tensors of a file. Raises WeightsError as `write_gguf` for a model that cannot be written."""
    return sum(entry.nbytes for entry in _entries(cfg, lambda source: np.empty(0), quantization))


def _architecture(cfg: ModelConfig) -> str:
    family = family_of(cfg)
    if family not in ARCHITECTURES:
        raise WeightsError(f"the model is of the family {family}, GGUF files hold {', '.join(ARCHITECTURES)}")
    return family


def _write(writer: Any, entries: list[_Entry], progress: Report) -> None:
    done, total = 0, sum(entry.nbytes for entry in entries)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry in entries:
            writer.write_tensor_data(_encoded(entry))
            done += entry.nbytes
            progress(done, total)
    finally:
        writer.close()


def _check_room(path: Path, entries: list[_Entry]) -> None:
    needed, free = sum(entry.nbytes for entry in entries), shutil.disk_usage(path.parent).free
    if needed > free:
        raise DiskFullError(f"{path}: {needed / MIB:.0f} MiB are to be written, {free / MIB:.0f} MiB are free")


def _entries(cfg: ModelConfig, read: Callable[[Source], np.ndarray], quantization: str) -> list[_Entry]:
    if quantization not in QUANTIZATIONS:
        raise WeightsError(f"quantization {quantization!r} is not one of {', '.join(QUANTIZATIONS)}")
    full, asked = gguf.GGMLQuantizationType.F32, QUANTIZATIONS[quantization][0]
    architecture = _architecture(cfg)
    entries = []
    for source in gguf_table(cfg, architecture):
        kind = asked if len(source.shape) > 1 else full
        block = gguf.GGML_QUANT_SIZES[kind][0]
        if source.shape[-1] % block:
            raise WeightsError(
                f"tensor {source.name} has rows of {source.shape[-1]} numbers, {quantization} takes blocks of {block}; "
                "use F16"
            )
        entries.append(_Entry(source.name, source.shape, kind, functools.partial(read, source)))
    if isinstance(cfg.rope.scaling, Llama3RopeConfig):
        factors = _rope_factors(cfg, architecture, cfg.rope.scaling)
        entries.append(_Entry(ROPE_FACTORS, factors.shape, full, lambda: factors))
    return entries


def _encoded(entry: _Entry) -> np.ndarray:
    """The tensor's values as they are stored. Raises WeightsError, with its name, if they cannot be."""
    values = np.ascontiguousarray(entry.read(), np.float32)
    if values.shape != entry.shape:
        raise WeightsError(f"tensor {entry.name} has shape {list(values.shape)}, the file's is {list(entry.shape)}")
    largest = float(max(values.max(), -values.min()))
    if not math.isfinite(largest):
        raise WeightsError(f"tensor {entry.name} holds NaN or infinity")
    limits = {gguf.GGMLQuantizationType.F16: LARGEST_F16, gguf.GGMLQuantizationType.Q8_0: LARGEST_Q8_0}
    limit = limits.get(entry.kind, math.inf)
    if largest > limit:
        raise WeightsError(f"tensor {entry.name} holds {largest}, {entry.kind.name} goes up to {limit}; use F32")
    encoded: np.ndarray = gguf.quants.quantize(values, entry.kind)
    return encoded


def _add_settings(writer: Any, cfg: ModelConfig) -> None:
    assert isinstance(cfg.attention, GQAConfig)
    head_dim = cfg.attention.head_dim
    writer.add_vocab_size(cfg.vocab_size)
    writer.add_context_length(cfg.max_positions)
    writer.add_embedding_length(cfg.width)
    writer.add_block_count(cfg.num_layers)
    writer.add_feed_forward_length(cfg.ffn_dim)
    writer.add_head_count(cfg.attention.num_heads)
    writer.add_head_count_kv(cfg.attention.num_kv_heads)
    if head_dim * cfg.attention.num_heads != cfg.width:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(cfg.norm_eps)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(cfg.rope.theta)
    if isinstance(cfg.rope.scaling, YarnConfig):
        _check_yarn(cfg.rope, cfg.rope.scaling)
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(cfg.rope.scaling.factor)
        writer.add_rope_scaling_orig_ctx_len(cfg.rope.scaling.original_max_positions)


def _check_yarn(rope: RopeConfig, scaling: YarnConfig) -> None:
    """Refuses what llama.cpp would not compute: other ramps than the usual one, another amplitude than 1 + 0.1 ln f."""
    for field, usual in (("beta_fast", 32.0), ("beta_slow", 1.0)):
        if getattr(scaling, field) != usual:
            raise WeightsError(f"rope.scaling.{field} is {getattr(scaling, field)}, llama.cpp takes it as {usual}")
    amplitude, wanted = rope_amplitude(rope), yarn_magnitude(scaling.factor, 1.0)
    if not math.isclose(amplitude, wanted, rel_tol=1e-6):
        raise WeightsError(
            f"rope.scaling.mscale {scaling.mscale} and mscale_all_dim {scaling.mscale_all_dim} give the amplitude "
            f"{amplitude:.6g}, llama.cpp takes it as {wanted:.6g}"
        )


def _rope_factors(cfg: ModelConfig, architecture: str, scaling: Llama3RopeConfig) -> np.ndarray:
    """Llama 3's factors. Raises WeightsError if a reader could not tell from them what the scaling is."""
    assert isinstance(cfg.attention, GQAConfig)
    if architecture != "llama":
        raise WeightsError(f"rope.scaling is {scaling}, GGUF has Llama 3's scaling for llama only, not {architecture}")
    for field, released in (("low_freq_factor", 1.0), ("high_freq_factor", 4.0), ("original_max_positions", 8192)):
        if getattr(scaling, field) != released:
            raise WeightsError(f"rope.scaling.{field} is {getattr(scaling, field)}, GGUF files have {released}")
    factors = llama3_factors(cfg.rope.theta, cfg.attention.head_dim, scaling)
    try:
        found = llama3_scaling(cfg.rope.theta, cfg.attention.head_dim, factors, "the new file")
    except WeightsError:
        found = None
    if found != scaling:
        raise WeightsError(f"rope.scaling.factor is {scaling.factor}, but no frequency of this model is divided by it")
    return factors


def _add_tokenizer(writer: Any, cfg: ModelConfig, tokenizer: HuggingFaceTokenizer) -> None:
    settings, config = _tokenizer_files(tokenizer)
    pre = pre_tokenizer_name(settings)
    tokens, types = _tokens(settings, cfg.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(_merges(settings["model"]))
    if tokenizer.bos_id is not None:
        writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    if tokenizer.pad_token is not None:
        writer.add_pad_token_id(tokenizer.pad_id)
    # Here every prompt begins with bos where the tokenizer has one; the release may say that it should not.
    writer.add_add_bos_token(tokenizer.bos_id is not None and config.get("add_bos_token") is not False)


def _tokenizer_files(tokenizer: HuggingFaceTokenizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        return read_json(Path(folder) / TOKENIZER_FILE), read_json(Path(folder) / CONFIG_FILE)


def pre_tokenizer_name(settings: dict[str, Any]) -> str:
    """llama.cpp's name (tokenizer.ggml.pre) of the way in which a tokenizer.json cuts text before the merges.

    Raises:
      WeightsError: llama.cpp may have one, but it is not known here; with what the tokenizer does.
    """
    found = _cutting(settings)
    for name, splits in PRE_TOKENIZERS.items():
        known = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=name in LLAMA3_PRE))
        normalizer, known.pre_tokenizer = splits()
        if normalizer is not None:
            known.normalizer = normalizer
        if _cutting(json.loads(known.to_str())) == found:
            named = any(token["content"] == DEEPSEEK_BOS for token in settings["added_tokens"])
            return "deepseek-r1-qwen" if name == "qwen2" and named else name
    raise WeightsError(
        f"the tokenizer cuts text in a way that has no known GGUF name (known are {', '.join(PRE_TOKENIZERS)}): "
        f"{json.dumps(found, ensure_ascii=False)}"
    )


def _cutting(settings: dict[str, Any]) -> dict[str, Any]:
    """All that decides into which pieces a text is cut, in one form for the same thing."""
    return {
        "normalizers": _steps(settings["normalizer"], "normalizers"),
        "pre_tokenizers": _steps(settings["pre_tokenizer"], "pretokenizers"),
        "ignore_merges": bool(settings["model"].get("ignore_merges")),
    }


def _steps(part: dict[str, Any] | None, children: str) -> list[dict[str, Any]]:
    """The parts of a (nested) sequence, without what only moves offsets."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for child in part[children] for step in _steps(child, children)]
    return [{key: value for key, value in part.items() if key != "trim_offsets"}]


def _tokens(settings: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Tokens and their types, filled up to the model's vocabulary."""
    names = {token_id: token for token, token_id in settings["model"]["vocab"].items()}
    types = dict.fromkeys(names, NORMAL_TOKEN)
    for added in settings["added_tokens"]:
        for flag in ("lstrip", "rstrip", "single_word"):
            if added[flag]:
                raise WeightsError(f"the token {added['content']!r} has {flag} set, which GGUF files cannot say")
        names[added["id"]] = added["content"]
        types[added["id"]] = CONTROL_TOKEN if added["special"] else USER_TOKEN
    if max(names) >= vocab_size:
        raise WeightsError(f"the tokenizer has ids up to {max(names)}, the model {vocab_size} tokens")
    ids = range(vocab_size)
    return [names.get(i, f"[PAD{i}]") for i in ids], [types.get(i, UNUSED_TOKEN) for i in ids]


def _merges(model: dict[str, Any]) -> list[str]:
    if model["type"] != "BPE":
        raise WeightsError(f"the tokenizer is of type {model['type']}, only BPE is supported")
    for field in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(field):
            raise WeightsError(f"the tokenizer's {field} is {model[field]!r}, which GGUF files cannot say")
    if not model["merges"]:
        raise WeightsError("the tokenizer has no merges, which GGUF files cannot say")
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    for pair in pairs:
        if len(pair) != 2 or any(" " in part for part in pair):
            raise WeightsError(f"the tokenizer's merge {pair} has a space in it, which GGUF files cannot say")
    return [" ".join(pair) for pair in pairs]
