"""Folders in the Hugging Face layout: config.json, safetensors (in shards with an index, or one file), tokenizer.

Everything is checked when a folder is opened, before a tensor is read: that every shard is whole, that index and shards
name the same tensors, that every FP8 matrix has the scales that belong to it.
"""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from jax.sharding import Mesh

from r1jax.data.tokenizer import HuggingFaceTokenizer
from r1jax.data.tokenizer_files import read_json
from r1jax.model.config import ModelConfig
from r1jax.types import Params
from r1jax.weights.fp8 import BLOCK, E4M3, SCALE_SUFFIX, dequantize, is_power_of_two, scale_shape
from r1jax.weights.hf_config import model_config
from r1jax.weights.names import Source, WeightsError, check_finite, check_names, check_shapes, hf_table, listed
from r1jax.weights.parameters import ParameterReader, place_parameters
from r1jax.weights.safetensors_files import StoredTensor, open_safetensors

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*")
MAX_PADDING = 4096  # rows of the embedding that no token has; DeepSeek-V2-Lite has about 2,400

# All that a quantization_config may say: FP8 blocks as DeepSeek publishes them.
QUANTIZATION: dict[str, tuple[Any, ...]] = {
    "quant_method": ("fp8",),
    "fmt": ("e4m3",),
    "activation_scheme": ("dynamic",),
    "weight_block_size": ([BLOCK, BLOCK],),
    "scale_fmt": (None, "ue8m0"),
}


class ReleasedFolder:
    """A released checkpoint: its config.json, and tensors that are read (and dequantized) one at a time."""

    def __init__(self, path: pathlib.Path | str) -> None:
        """Raises WeightsError or DataError if a file is missing or damaged, or index, shards and scales do not fit."""
        self.path = pathlib.Path(path)
        self.config = read_json(self.path / "config.json")
        self.ue8m0 = _check_quantization(self.path, self.config.get("quantization_config"))
        self._stored = _open_shards(self.path)
        scales = {name for name in self._stored if name.endswith(SCALE_SUFFIX)}
        self.shapes = {name: tensor.shape for name, tensor in self._stored.items() if name not in scales}
        self._check_scales(scales)

    def read(self, name: str) -> np.ndarray:
        """A tensor as the model means it: FP8 matrices as float32, others in the type they are stored in (a map).

        Raises:
          WeightsError: it holds NaN or an infinity, or its scales are not what the configuration says.
        """
        tensor = self._stored[name]
        value = tensor.map()
        if tensor.dtype == E4M3:
            scales = np.asarray(self._stored[name + SCALE_SUFFIX].map(), np.float32)
            if self.ue8m0 and not is_power_of_two(scales):
                raise WeightsError(f"{self.path}: {name}{SCALE_SUFFIX} has scales that are no powers of two (ue8m0)")
            value = dequantize(value, scales)
        check_finite(value, name, str(tensor.file))
        return value

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor in the file, those of its scales included."""
        scales = self._stored.get(name + SCALE_SUFFIX)
        return self._stored[name].nbytes + (scales.nbytes if scales else 0)

    @property
    def param_dtype(self) -> str:
        """The smallest parameter type that holds what the tensors say: bfloat16 for BF16 and FP8 checkpoints.

        The router is float32 in the model whatever this is. FP8 is published to be dequantized to bfloat16, although
        scale times value may have more digits than that.
        """
        narrow = (np.dtype(ml_dtypes.bfloat16), E4M3)
        own = [self._stored[name] for name in self.shapes if ".mlp.gate." not in name]
        return "bfloat16" if all(tensor.dtype in narrow for tensor in own) else "float32"

    def fingerprint(self) -> dict[str, Any]:
        """What tells this checkpoint from another: its configuration, and every shard's size and time of change."""
        files = sorted({tensor.file for tensor in self._stored.values()})
        return {
            "config": self.config,
            "small_files": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in self.small_files()},
            "shards": {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files},
        }

    def small_files(self) -> list[pathlib.Path]:
        """The tokenizer and whatever else belongs to the model, apart from the tensors, their index and programs."""
        found = {file for pattern in SMALL_FILES for file in self.path.glob(pattern) if file.is_file()}
        return sorted(file for file in found if not file.name.endswith(".index.json"))

    def _check_scales(self, scales: Collection[str]) -> None:
        quantized = {name for name in self.shapes if self._stored[name].dtype == E4M3}
        missing = sorted(name for name in quantized if name + SCALE_SUFFIX not in scales)
        if missing:
            raise WeightsError(f"{self.path}: FP8 tensors without {SCALE_SUFFIX}: {listed(missing)}", missing)
        unused = sorted(name for name in scales if name.removesuffix(SCALE_SUFFIX) not in quantized)
        if unused:
            raise WeightsError(f"{self.path}: scales of no FP8 tensor: {listed(unused)}", unused)
        for name in sorted(scales):
            wanted = scale_shape(self.shapes[name.removesuffix(SCALE_SUFFIX)])
            if self._stored[name].shape != wanted:
                raise WeightsError(
                    f"{self.path}: {name} has shape {list(self._stored[name].shape)}, expected {list(wanted)} (blocks "
                    f"of {BLOCK} x {BLOCK})"
                )


def _check_quantization(path: pathlib.Path, quantization: Mapping[str, Any] | None) -> bool:
    """Whether scales are powers of two; refuses every other quantization than DeepSeek's."""
    if quantization is not None and not isinstance(quantization, Mapping):
        raise WeightsError(f"{path}/config.json: quantization_config is {quantization!r}, expected an object")
    for key, value in (quantization or {}).items():
        if key not in QUANTIZATION:
            raise WeightsError(f"{path}/config.json: quantization_config.{key} is {value!r}, which is not supported")
        if value not in QUANTIZATION[key]:
            allowed = " or ".join(repr(one) for one in QUANTIZATION[key])
            raise WeightsError(
                f"{path}/config.json: quantization_config.{key} is {value!r}, only {allowed} is supported"
            )
    return (quantization or {}).get("scale_fmt") == "ue8m0"


def _open_shards(path: pathlib.Path) -> dict[str, StoredTensor]:
    """All tensors of a folder. With an index, it and the shards must name the same tensors in the same files."""
    if not (path / INDEX).exists():
        found = sorted(file.name for file in path.glob("*.safetensors"))
        if found != [SINGLE]:
            raise WeightsError(
                f"{path} has neither {INDEX} nor a single {SINGLE} (found: {', '.join(found) or 'none'})"
            )
        return open_safetensors(path / SINGLE)
    weight_map = read_json(path / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise WeightsError(f"{path / INDEX} has no weight_map of tensor names to file names")
    missing = sorted({name for name in weight_map.values() if not (path / name).is_file()})
    if missing:
        raise WeightsError(f"{path} lacks shards that its index names: {listed(missing)}", missing)
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(weight_map.values())):
        for name, tensor in open_safetensors(path / file).items():
            if weight_map.get(name) != file:
                said = f"in {weight_map[name]}" if name in weight_map else "nowhere"
                raise WeightsError(f"{path / file} holds tensor {name}, which the index has {said}")
            tensors[name] = tensor
    lacking = sorted(name for name in weight_map if name not in tensors)
    if lacking:
        raise WeightsError(f"{path}: tensors of the index that its shards lack: {listed(lacking)}", lacking)
    return tensors


def released_config(folder: ReleasedFolder, *, ignore: Collection[str] = (), **overrides: Any) -> ModelConfig:
    """The model's configuration, `hf_config.model_config` of the folder's own file."""
    return model_config(folder.config, ignore=ignore, where=str(folder.path / "config.json"), **overrides)


def released_table(folder: ReleasedFolder, cfg: ModelConfig, ignored_prefix: str | None = None) -> Sequence[Source]:
    """The folder's name table, once every tensor is known to be there with its shape, and no other.

    ignored_prefix: tensors whose names start so are left out on purpose (an MTP layer that is not wanted).
    """
    table = hf_table(cfg)
    if cfg.tied_embeddings and HEAD in folder.shapes:  # some tools store the tied matrix twice
        table.append(Source(HEAD, (cfg.vocab_size, cfg.width), ("embed", "embedding"), "same", copy_of=EMBEDDING))
    available = [name for name in folder.shapes if ignored_prefix is None or not name.startswith(ignored_prefix)]
    mtp = f"model.layers.{cfg.num_layers}."
    if cfg.mtp_depth and not any(name.startswith(mtp) for name in available):
        raise WeightsError(
            f"{folder.path} has no tensors of the multi-token prediction layer ({mtp}*) that its config.json names; to "
            "go without it: --mtp drop of tools.import_weights, or overrides = {'mtp_depth': 0} in a config"
        )
    check_names(table, available, str(folder.path))
    check_shapes(table, folder.shapes, str(folder.path))
    return table


def token_ids(config: Mapping[str, Any], role: str) -> set[int]:
    """The ids that a config gives for `role` ('bos', 'eos'): one, several or none."""
    value = config.get(f"{role}_token_id")
    return set(value) if isinstance(value, list) else set() if value is None else {value}


def check_tokenizer(folder: ReleasedFolder, cfg: ModelConfig, tokenizer: HuggingFaceTokenizer) -> None:
    """That the tokenizer is this model's: its size, and the ids of bos and eos.

    Raises:
      WeightsError: the numbers that do not fit.
    """
    size = tokenizer.vocab_size
    if not cfg.vocab_size - MAX_PADDING <= size <= cfg.vocab_size:
        raise WeightsError(
            f"{folder.path}: the tokenizer has {size} tokens, but vocab_size is {cfg.vocab_size} (a model's vocabulary "
            f"may be padded by at most {MAX_PADDING})"
        )
    generation = folder.path / "generation_config.json"
    configs = [folder.config] + ([read_json(generation)] if generation.exists() else [])
    for role, own in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id)):
        stated = set().union(*(token_ids(config, role) for config in configs))
        wrong = sorted(i for i in stated if not (isinstance(i, int) and 0 <= i < cfg.vocab_size))
        if wrong:
            raise WeightsError(
                f"{folder.path}: {role}_token_id {wrong[0]!r} is outside the vocabulary of {cfg.vocab_size}"
            )
        if own is not None and stated and own not in stated:
            raise WeightsError(
                f"{folder.path}: the tokenizer's {role} has id {own}, config.json and generation_config.json say "
                f"{', '.join(map(str, sorted(stated)))}"
            )


def load_released(
    path: pathlib.Path | str, *, mesh: Mesh | None = None, ignore: Collection[str] = (), **overrides: Any
) -> tuple[ModelConfig, Params]:
    """Reads a released checkpoint straight onto the devices, each device's part for it alone.

    Args:
      path: the folder.
      mesh: place each parameter by its logical axes; None: on the default device.
      ignore: keys of config.json that the caller knows to make no difference.
      overrides: fields of ModelConfig that the file does not decide, such as `dtype`, `param_dtype`, `remat`; and
        `mtp_depth=0`, which leaves the multi-token prediction layer out.

    Returns:
      (configuration, parameters).

    Raises:
      WeightsError: the folder is damaged, or describes a model that is not supported; names the tensor or the field.
    """
    folder = ReleasedFolder(path)
    cfg = released_config(folder, ignore=ignore, **overrides)
    dropped = mtp_prefix(folder, cfg) if overrides.get("mtp_depth") == 0 else None
    reader = ParameterReader(cfg, released_table(folder, cfg, dropped), folder.read)
    return cfg, place_parameters(reader, mesh)


def mtp_prefix(folder: ReleasedFolder, cfg: ModelConfig) -> str | None:
    """How the names of the multi-token prediction layer begin, for leaving it out; None if there is none."""
    said = folder.config.get("num_nextn_predict_layers") or folder.config.get("num_mtp_layers")
    return f"model.layers.{cfg.num_layers}." if said else None
