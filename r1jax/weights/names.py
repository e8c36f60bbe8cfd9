"""Which tensor of a released checkpoint is which parameter, and how its axes are laid out there.

A name table is a list of `Source`s, one per tensor: its name and shape, and the slice of a parameter that it is. It is
read in both directions: import goes from tensors to parameters, export from parameters to tensors.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence

import jax
import ml_dtypes
import numpy as np
from flax import traverse_util
from flax.core import meta

from r1jax.model.config import GQAConfig, MLAConfig, ModelConfig, MoEConfig
from r1jax.model.transformer import abstract_params

NAMES_SHOWN = 5  # of missing or unused tensors in the first line of an error

Path = tuple[str, ...]


class WeightsError(ValueError):
    """A checkpoint that cannot be used as it is: the message names the tensor or the field, and its value.

    `names` lists every tensor that the message is about, where it is about several.
    """

    def __init__(self, message: str, names: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.names = list(names)


@dataclasses.dataclass(frozen=True)
class Source:
    """One tensor of a checkpoint and its place among the parameters."""

    name: str
    shape: tuple[int, ...]  # as stored: [out, in] for a matrix
    path: Path  # of the parameter
    layout: str  # 'same', 'transposed' or 'rotary', see `to_parameter`
    index: tuple[int, ...] = ()  # of the slice, in the parameter's leading axes: layer, expert
    quantized: bool = False  # one of the matrices that the published DeepSeek-V3 stores in FP8 blocks
    copy_of: str | None = None  # the tensor that this one repeats; the parameter is read from that one


def to_parameter(source: Source, stored: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The stored tensor in the axes of its parameter slice of `shape`.

    'same': the same order of numbers. 'transposed': [out, in] -> [in, out], then either side split into heads.
    'rotary': like 'transposed', after the rotated dimensions of each head were put from neighbors into halves.
    """
    if source.layout == "rotary":
        stored = _neighbors_to_halves(stored, shape[-1])
    return (stored if source.layout == "same" else transposed(stored)).reshape(shape)


TRANSPOSED_ROWS = 64  # at a time: numpy's own copy of a transposed matrix takes seven times as long


def transposed(matrix: np.ndarray) -> np.ndarray:
    """A contiguous copy of matrix.T."""
    if matrix.ndim < 2:
        return matrix
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    for row in range(0, len(matrix), TRANSPOSED_ROWS):
        rows = slice(row, row + TRANSPOSED_ROWS)
        out[:, rows] = matrix[rows].T
    return out


def to_stored(source: Source, value: np.ndarray) -> np.ndarray:
    """The inverse of `to_parameter`: a parameter slice in the axes and shape of the stored tensor."""
    if source.layout == "same":
        return value.reshape(source.shape)
    stored = transposed(value.reshape(source.shape[::-1]))
    return _halves_to_neighbors(stored, value.shape[-1]) if source.layout == "rotary" else stored


def _neighbors_to_halves(stored: np.ndarray, head_dim: int) -> np.ndarray:
    """Undoes llama.cpp's order of the rotated dimensions, [heads * head_dim, ...] -> the same shape.

    The GGUF of a llama model stores rows (0, d/2, 1, d/2 + 1, ...) of each head, so that rotated pairs are neighbors;
    the half-split order of our `rope` (and of the released checkpoints) is 0, 1, 2, ...
    """
    return stored.reshape(-1, head_dim // 2, 2, *stored.shape[1:]).swapaxes(1, 2).reshape(stored.shape)


def _halves_to_neighbors(stored: np.ndarray, head_dim: int) -> np.ndarray:
    return stored.reshape(-1, 2, head_dim // 2, *stored.shape[1:]).swapaxes(1, 2).reshape(stored.shape)


@dataclasses.dataclass(frozen=True)
class _Part:
    """A tensor of every layer: its name and parameter within the layer."""

    name: str
    path: Path
    shape: tuple[int, ...]
    layout: str = "transposed"
    index: tuple[int, ...] = ()
    quantized: bool = False

    def at(self, prefix: str, path: Path, index: tuple[int, ...] = ()) -> Source:
        """The tensor of one layer."""
        return Source(prefix + self.name, self.shape, path + self.path, self.layout, index + self.index, self.quantized)


def _matrix(name: str, path: Path, out_dim: int, in_dim: int, index: tuple[int, ...] = ()) -> _Part:
    return _Part(f"{name}.weight", (*path, "kernel"), (out_dim, in_dim), index=index, quantized=True)


def _norm(name: str, path: Path, width: int) -> _Part:
    return _Part(f"{name}.weight", (*path, "scale"), (width,), "same")


def _mla_parts(cfg: ModelConfig, att: MLAConfig) -> Iterator[_Part]:
    heads = att.num_heads
    q_dim = heads * (att.qk_nope_head_dim + att.qk_rope_head_dim)
    if att.q_lora_rank is None:
        yield _matrix("self_attn.q_proj", ("attn", "q"), q_dim, cfg.width)
    else:
        yield _matrix("self_attn.q_a_proj", ("attn", "q_a"), att.q_lora_rank, cfg.width)
        yield _norm("self_attn.q_a_layernorm", ("attn", "q_a_norm"), att.q_lora_rank)
        yield _matrix("self_attn.q_b_proj", ("attn", "q_b"), q_dim, att.q_lora_rank)
    latent = att.kv_lora_rank + att.qk_rope_head_dim
    yield _matrix("self_attn.kv_a_proj_with_mqa", ("attn", "kv_a"), latent, cfg.width)
    yield _norm("self_attn.kv_a_layernorm", ("attn", "kv_a_norm"), att.kv_lora_rank)
    kv_dim = heads * (att.qk_nope_head_dim + att.v_head_dim)
    yield _matrix("self_attn.kv_b_proj", ("attn", "kv_b"), kv_dim, att.kv_lora_rank)
    yield _matrix("self_attn.o_proj", ("attn", "o"), cfg.width, heads * att.v_head_dim)


def _gqa_parts(cfg: ModelConfig, att: GQAConfig) -> Iterator[_Part]:
    for short, heads in (("q", att.num_heads), ("k", att.num_kv_heads), ("v", att.num_kv_heads)):
        dim = heads * att.head_dim
        yield _matrix(f"self_attn.{short}_proj", ("attn", short), dim, cfg.width)
        if att.qkv_bias:
            yield _Part(f"self_attn.{short}_proj.bias", ("attn", short, "bias"), (dim,))
        if att.qk_norm and short != "v":
            yield _norm(f"self_attn.{short}_norm", ("attn", f"{short}_norm"), att.head_dim)
    yield _matrix("self_attn.o_proj", ("attn", "o"), cfg.width, att.num_heads * att.head_dim)


def _mlp_parts(name: str, path: Path, width: int, dim: int) -> Iterator[_Part]:
    yield _matrix(f"{name}.gate_proj", (*path, "gate"), dim, width)
    yield _matrix(f"{name}.up_proj", (*path, "up"), dim, width)
    yield _matrix(f"{name}.down_proj", (*path, "down"), width, dim)


def _moe_parts(cfg: ModelConfig, moe: MoEConfig) -> Iterator[_Part]:
    router = ("moe", "router")
    yield _Part("mlp.gate.weight", (*router, "kernel"), (moe.num_experts, cfg.width))
    if moe.selection_bias:
        yield _Part("mlp.gate.e_score_correction_bias", (*router, "bias"), (moe.num_experts,), "same")
    for expert in range(moe.num_experts):
        for part in _mlp_parts(f"mlp.experts.{expert}", ("moe", "experts"), cfg.width, moe.expert_dim):
            # The experts of a layer are one array, without a module (and its "kernel") for each.
            yield dataclasses.replace(part, path=part.path[:-1], index=(expert,))
    if moe.num_shared:
        yield from _mlp_parts("mlp.shared_experts", ("moe", "shared"), cfg.width, moe.num_shared * moe.expert_dim)


def _block_parts(cfg: ModelConfig, use_moe: bool) -> list[_Part]:
    att = cfg.attention
    parts = [_norm("input_layernorm", ("attn_norm",), cfg.width)]
    parts += _mla_parts(cfg, att) if isinstance(att, MLAConfig) else _gqa_parts(cfg, att)
    parts.append(_norm("post_attention_layernorm", ("ffn_norm",), cfg.width))
    if use_moe:
        assert cfg.moe is not None
        return parts + list(_moe_parts(cfg, cfg.moe))
    return parts + list(_mlp_parts("mlp", ("mlp",), cfg.width, cfg.ffn_dim))


def _mtp_sources(cfg: ModelConfig, layer: int) -> Iterator[Source]:
    """The prediction module, stored as one more layer, with copies of the embedding and the head that it shares."""
    prefix, width = f"model.layers.{layer}.", cfg.width
    own = [
        _norm("enorm", ("embed_norm",), width),
        _norm("hnorm", ("hidden_norm",), width),
        dataclasses.replace(_matrix("eh_proj", ("proj",), width, 2 * width), quantized=False),
        _norm("shared_head.norm", ("norm",), width),
    ]
    matrix = (cfg.vocab_size, width)
    embed, head = ("embed", "embedding"), ("lm_head", "kernel")
    yield Source(prefix + "embed_tokens.weight", matrix, embed, "same", copy_of="model.embed_tokens.weight")
    yield from (part.at(prefix, ("mtp",)) for part in own)
    name = prefix + "shared_head.head.weight"
    if cfg.tied_embeddings:
        yield Source(name, matrix, embed, "same", copy_of="model.embed_tokens.weight")
    else:
        yield Source(name, matrix, head, "transposed", copy_of="lm_head.weight")
    yield from (part.at(prefix, ("mtp", "block")) for part in _block_parts(cfg, cfg.num_moe_layers > 0))


def hf_table(cfg: ModelConfig) -> list[Source]:
    """The tensors of a Hugging Face folder of the deepseek_v3, deepseek_v2, llama, qwen2 and qwen3 families, in order.

    Names and shapes are those of the published DeepSeek-V3/R1, Qwen and Llama checkpoints; a tied model has no
    lm_head.weight. FP8 scales are not listed: a matrix with `quantized` may have one (see `fp8`).
    """
    matrix = (cfg.vocab_size, cfg.width)
    table = [Source("model.embed_tokens.weight", matrix, ("embed", "embedding"), "same")]
    dense, moe = _block_parts(cfg, False), _block_parts(cfg, True) if cfg.num_moe_layers else []
    for layer in range(cfg.num_layers):
        prefix, place = f"model.layers.{layer}.", layer - cfg.num_dense_layers
        if place < 0:
            table += [part.at(prefix, ("dense_layers",), (layer,)) for part in dense]
        else:
            table += [part.at(prefix, ("moe_layers",), (place,)) for part in moe]
    table.append(Source("model.norm.weight", (cfg.width,), ("final_norm", "scale"), "same"))
    if not cfg.tied_embeddings:
        table.append(Source("lm_head.weight", matrix, ("lm_head", "kernel"), "transposed"))
    if cfg.mtp_depth:
        table += _mtp_sources(cfg, cfg.num_layers)
    return table


GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_table(cfg: ModelConfig, architecture: str) -> list[Source]:
    """The tensors of a GGUF file of a dense model, as llama.cpp names them.

    Args:
      cfg: a model with grouped-query attention and dense layers only.
      architecture: 'llama' stores q and k with each head's rotated dimensions as neighbors; the others do not.
    """
    if not isinstance(cfg.attention, GQAConfig) or cfg.num_moe_layers:
        raise WeightsError("names of GGUF tensors are known for dense models with grouped-query attention only")
    parts = []
    for part in _block_parts(cfg, False):
        name, _, kind = part.name.rpartition(".")
        rotary = architecture == "llama" and name in ("self_attn.q_proj", "self_attn.k_proj")
        layout = "rotary" if rotary else part.layout
        parts.append(dataclasses.replace(part, name=f"{GGUF_NAMES[name]}.{kind}", layout=layout))
    matrix = (cfg.vocab_size, cfg.width)
    table = [Source("token_embd.weight", matrix, ("embed", "embedding"), "same")]
    for layer in range(cfg.num_dense_layers):
        table += [part.at(f"blk.{layer}.", ("dense_layers",), (layer,)) for part in parts]
    table.append(Source("output_norm.weight", (cfg.width,), ("final_norm", "scale"), "same"))
    if not cfg.tied_embeddings:
        table.append(Source("output.weight", matrix, ("lm_head", "kernel"), "transposed"))
    return table


def check_finite(value: np.ndarray, name: str, origin: str) -> None:
    """Raises WeightsError, naming the tensor, if it holds NaN or an infinity."""
    if value.dtype == ml_dtypes.bfloat16:  # by its exponent bits: numpy would convert the array first
        exponent = np.uint16(0x7F80)
        finite = not np.any((value.view(np.uint16) & exponent) == exponent)
    else:
        finite = bool(np.isfinite(value).all())
    if not finite:
        raise WeightsError(f"{origin}: tensor {name} holds NaN or infinity")


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def check_names(table: Sequence[Source], available: Collection[str], origin: str) -> None:
    """Raises WeightsError unless the checkpoint has exactly the tensors of the table, each once."""
    wanted = [source.name for source in table]
    counts, known = collections.Counter(available), set(wanted)
    missing = [name for name in wanted if name not in counts]
    unused = [name for name in counts if name not in known]
    repeated = [name for name, count in counts.items() if count > 1]
    for problem, names in (("lacks", missing), ("has unknown", unused), ("has more than once the", repeated)):
        if names:
            raise WeightsError(f"{origin} {problem} tensors: {listed(names)}", names)


def check_shapes(table: Sequence[Source], shapes: Mapping[str, tuple[int, ...]], origin: str) -> None:
    """Raises WeightsError for tensors whose shape is not the one that the configuration gives."""
    wrong = [
        f"{source.name} has shape {list(shapes[source.name])}, the configuration wants {list(source.shape)}"
        for source in table
        if shapes[source.name] != source.shape
    ]
    if wrong:
        raise WeightsError(f"{origin}: tensor {wrong[0]}" + (f"; {len(wrong) - 1} more" if wrong[1:] else ""), wrong)


def check_filled(cfg: ModelConfig, table: Sequence[Source]) -> None:
    """Raises WeightsError unless the table fills every number of every parameter of `cfg` exactly once."""
    shapes = flat_shapes(cfg)
    slices: dict[Path, list[tuple[int, ...]]] = {path: [] for path in shapes}
    for source in table:
        if source.path not in slices:
            raise WeightsError(
                f"tensor {source.name} belongs to {'/'.join(source.path)}, which the model does not have"
            )
        if source.copy_of is None:
            slices[source.path].append(source.index)
    for path, found in slices.items():
        depth = len(found[0]) if found else 0
        expected = sorted(np.ndindex(*shapes[path].shape[:depth])) if found else None
        if sorted(found) != expected:
            raise WeightsError(f"parameter {'/'.join(path)} is not filled exactly once by the checkpoint's tensors")


def flat_shapes(cfg: ModelConfig) -> dict[Path, jax.ShapeDtypeStruct]:
    """Path -> shape and type of every parameter."""
    flat: dict[Path, jax.ShapeDtypeStruct] = traverse_util.flatten_dict(meta.unbox(abstract_params(cfg)))
    return flat
