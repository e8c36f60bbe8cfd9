"""Which tensor of a released checkpoint is which parameter, and how its axes are laid out there.

A name table is a list of `Source`s: the tensor's name, the path of the parameter it belongs to, its layer in the
parameter's leading axis, and the name of a layout. `assemble` builds the parameters and sees to it that every tensor
is used exactly once and every parameter is filled.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from flax.core import meta
from jax.sharding import Mesh

from r1jax.model.config import GQAConfig, ModelConfig
from r1jax.model.transformer import abstract_params
from r1jax.sharding import param_shardings
from r1jax.types import Params

NAMES_SHOWN = 5  # of missing or unused tensors in an error


class WeightsError(ValueError):
    """A checkpoint that cannot be used as it is: the message names the tensor or the field, and its value."""


@dataclasses.dataclass(frozen=True)
class Source:
    """One tensor of a checkpoint and its place among the parameters."""

    name: str
    path: tuple[str, ...]
    layout: str  # a key of LAYOUTS
    layer: int | None = None  # index into the parameter's leading axis


def _rotary_halves(stored: np.ndarray, head_dim: int) -> np.ndarray:
    """Undoes llama.cpp's order of the rotated dimensions, [heads * head_dim, ...] -> the same shape.

    The GGUF of a llama model stores rows (0, d/2, 1, d/2 + 1, ...) of each head, so that rotated pairs are neighbors;
    the half-split order of our `rope` (and of the released checkpoints) is 0, 1, 2, ...
    """
    rest = stored.shape[1:]
    return stored.reshape(-1, head_dim // 2, 2, *rest).swapaxes(1, 2).reshape(stored.shape)


def _split_heads(stored: np.ndarray, head_dim: int) -> np.ndarray:
    """[heads * head_dim, in] -> [in, heads, head_dim]; a bias [heads * head_dim] -> [heads, head_dim]."""
    return np.moveaxis(stored.reshape(-1, head_dim, *stored.shape[1:]), (0, 1), (-2, -1))


# Stored tensors of matrices are [out, in]. Each layout: (stored, head_dim) -> the parameter of one layer.
LAYOUTS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "same": lambda stored, head_dim: stored,
    "transposed": lambda stored, head_dim: stored.T,
    "to_heads": _split_heads,
    "to_rotary_heads": lambda stored, head_dim: _split_heads(_rotary_halves(stored, head_dim), head_dim),
    "from_heads": lambda stored, head_dim: stored.T.reshape(-1, head_dim, stored.shape[0]),
}


def gguf_sources(cfg: ModelConfig, architecture: str) -> list[Source]:
    """The tensors of a GGUF file of a dense model, as llama.cpp names them.

    Args:
      cfg: a model with grouped-query attention and dense layers only.
      architecture: 'llama' stores q and k with each head's rotated dimensions as neighbors; the others do not.
    """
    attention = cfg.attention
    if not isinstance(attention, GQAConfig) or cfg.num_moe_layers:
        raise WeightsError("names of GGUF tensors are known for dense models with grouped-query attention only")
    rotary = "to_rotary_heads" if architecture == "llama" else "to_heads"
    block = [
        ("attn_norm.weight", ("attn_norm", "scale"), "same"),
        ("ffn_norm.weight", ("ffn_norm", "scale"), "same"),
        ("attn_q.weight", ("attn", "q", "kernel"), rotary),
        ("attn_k.weight", ("attn", "k", "kernel"), rotary),
        ("attn_v.weight", ("attn", "v", "kernel"), "to_heads"),
        ("attn_output.weight", ("attn", "o", "kernel"), "from_heads"),
        ("ffn_gate.weight", ("mlp", "gate", "kernel"), "transposed"),
        ("ffn_up.weight", ("mlp", "up", "kernel"), "transposed"),
        ("ffn_down.weight", ("mlp", "down", "kernel"), "transposed"),
    ]
    if attention.qkv_bias:
        layouts = {"q": rotary, "k": rotary, "v": "to_heads"}
        block += [(f"attn_{x}.bias", ("attn", x, "bias"), layout) for x, layout in layouts.items()]
    if attention.qk_norm:
        block += [(f"attn_{x}_norm.weight", ("attn", f"{x}_norm", "scale"), "same") for x in ("q", "k")]
    sources = [
        Source("token_embd.weight", ("embed", "embedding"), "same"),
        Source("output_norm.weight", ("final_norm", "scale"), "same"),
    ]
    if not cfg.tied_embeddings:
        sources.append(Source("output.weight", ("lm_head", "kernel"), "transposed"))
    for layer in range(cfg.num_dense_layers):
        sources += [Source(f"blk.{layer}.{n}", ("dense_layers", *path), layout, layer) for n, path, layout in block]
    return sources


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def check_names(sources: Sequence[Source], available: Sequence[str], origin: str) -> None:
    """Raises WeightsError unless the checkpoint has exactly the tensors of the table, each once."""
    wanted = [source.name for source in sources]
    counts, known = collections.Counter(available), set(wanted)
    missing = [name for name in wanted if name not in counts]
    unused = [name for name in counts if name not in known]
    repeated = [name for name, count in counts.items() if count > 1]
    for problem, names in (("lacks", missing), ("has unknown", unused), ("has more than once the", repeated)):
        if names:
            raise WeightsError(f"{origin} {problem} tensors: {_listed(names)}")


def assemble(
    cfg: ModelConfig,
    sources: Sequence[Source],
    available: Sequence[str],
    read: Callable[[str], np.ndarray],
    *,
    origin: str,
    mesh: Mesh | None = None,
) -> Params:
    """Parameters of `cfg` from a checkpoint's tensors.

    Args:
      cfg: of the model; its `param_dtype` is what the tensors are converted to.
      sources: the name table.
      available: names of all tensors in the checkpoint.
      read: name -> the tensor; called once per name, so that a large file need not be in memory at once.
      origin: of the checkpoint, for errors.
      mesh: place each parameter by its logical axes; None: on the default device.

    Raises:
      WeightsError: a tensor is missing, unknown, there twice or of another shape, or a parameter is not filled.
    """
    check_names(sources, available, origin)
    boxed = abstract_params(cfg)
    shapes: Mapping[tuple[str, ...], Any] = traverse_util.flatten_dict(meta.unbox(boxed))
    shardings = traverse_util.flatten_dict(param_shardings(mesh, boxed)) if mesh is not None else {}
    by_path: dict[tuple[str, ...], list[Source]] = {}
    for source in sources:
        by_path.setdefault(source.path, []).append(source)
    if by_path.keys() != shapes.keys():
        differing = sorted("/".join(path) for path in by_path.keys() ^ shapes.keys())
        raise WeightsError(f"{origin}: the name table and the model differ in {_listed(differing)}")
    params = {}
    for path, parts in by_path.items():
        value = _parameter(cfg, parts, shapes[path], read, origin)
        params[path] = jax.device_put(value, shardings.get(path))
    return traverse_util.unflatten_dict(params)


def _parameter(
    cfg: ModelConfig, parts: Sequence[Source], wanted: Any, read: Callable[[str], np.ndarray], origin: str
) -> np.ndarray:
    """One parameter from the tensors of its layers."""
    head_dim = cfg.attention.head_dim if isinstance(cfg.attention, GQAConfig) else 0
    value = np.empty(wanted.shape, wanted.dtype)
    filled: set[int | None] = set()
    for part in parts:
        target = value if part.layer is None else value[part.layer]
        stored = read(part.name)
        if stored.size != target.size or (part.layout in ("same", "transposed") and stored.ndim != target.ndim):
            raise WeightsError(f"{origin}: tensor {part.name} has shape {stored.shape}, for a parameter {target.shape}")
        laid_out = LAYOUTS[part.layout](stored, head_dim)
        if laid_out.shape != target.shape:
            raise WeightsError(f"{origin}: tensor {part.name} has shape {stored.shape}, for a parameter {target.shape}")
        target[...] = laid_out
        filled.add(part.layer)
    expected = {None} if None in filled else set(range(wanted.shape[0]))
    if filled != expected:
        lacking = sorted(expected - filled, key=str)
        raise WeightsError(f"{origin}: layers {lacking} of {'/'.join(parts[0].path)} are not filled")
    return value
