"""Export: the policy of a finished stage or an import becomes a Hugging Face folder that other tools read.

Tensors have the published names and order, MTP layer and balancing bias included; shards and index are named as
DeepSeek publishes them. One tensor is in memory at a time. The index and config.json are written last: a folder that an
export has not finished cannot be loaded by anyone, and the same command goes on with the shard it was at.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from r1jax.checkpoint import DiskFullError, is_disk_full
from r1jax.data.tokenizer import Tokenizer
from r1jax.data.tokenizer_files import read_json
from r1jax.metrics import Progress
from r1jax.model.config import ModelConfig
from r1jax.sampling.generation_config import RELEASED
from r1jax.weights.checkpoint_tensors import CheckpointTensors
from r1jax.weights.export_config import config_fields
from r1jax.weights.fp8 import BLOCK, E4M3, SCALE_SUFFIX, quantize, scale_shape
from r1jax.weights.hf_config import model_config
from r1jax.weights.importer import MIB
from r1jax.weights.names import Source, check_finite, hf_table
from r1jax.weights.released import INDEX, SINGLE
from r1jax.weights.safetensors_files import TensorSpec, open_safetensors, write_safetensors
from r1jax.workdir import WorkdirError, write_atomically

DTYPES = ("source", "float32", "bfloat16", "fp8")
FLOAT32, BFLOAT16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)
UNFINISHED = "exporting.json"  # what the folder is going to be, until it is
R1_GENERATION = {"do_sample": True, "temperature": 0.6, "top_p": 0.95}  # the R1 README's advice
MTP_KEYS = ("num_nextn_predict_layers", "num_mtp_layers")
NOT_COMPARED: dict[str, Any] = {
    "param_dtype": "float32",
    "dtype": "float32",
    "remat": "none",
    "attention_impl": "auto",
    "attention_query_chunk": 1024,
    "attention_key_chunk": 1024,
    "init_std": 0.0,
    "vocab_size": 0,
}
"""Of ModelConfig: what config.json need not say, or is brought up to date there."""


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """How tensors are stored."""

    dtype: str = "source"  # 'source': the type of our parameters; 'float32', 'bfloat16', or 'fp8' (blocks with scales)
    max_shard_bytes: int = 5_000_000_000
    ue8m0: bool | None = None  # FP8 scales are powers of two; None: if the imported checkpoint's were

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}, expected one of {DTYPES}")
        if self.max_shard_bytes < 1:
            raise ValueError(f"max_shard_bytes is {self.max_shard_bytes}, expected at least 1")


@dataclasses.dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the export: what it is called and made of."""

    spec: TensorSpec
    source: Source
    is_scale: bool = False


def plan_tensors(cfg: ModelConfig, dtype: str) -> list[PlannedTensor]:
    """All tensors of an export in their order, as the published checkpoints store them.

    In 'fp8' the matrices that DeepSeek publishes so are FP8, each followed by its scales, and the rest bfloat16. The
    balancing bias is float32 in every type.
    """
    plain = FLOAT32 if dtype == "float32" else BFLOAT16
    planned = []
    for source in hf_table(cfg):
        if dtype == "fp8" and source.quantized:
            planned.append(PlannedTensor(TensorSpec(source.name, E4M3, source.shape), source))
            scales = TensorSpec(source.name + SCALE_SUFFIX, FLOAT32, scale_shape(source.shape))
            planned.append(PlannedTensor(scales, source, is_scale=True))
        else:
            stored = FLOAT32 if source.path[-2:] == ("router", "bias") else plain
            planned.append(PlannedTensor(TensorSpec(source.name, stored, source.shape), source))
    return planned


def plan_shards(planned: list[PlannedTensor], max_bytes: int) -> dict[str, list[PlannedTensor]]:
    """File name -> its tensors: filled in order up to `max_bytes`; a larger tensor has a file of its own."""
    shards: list[list[PlannedTensor]] = [[]]
    room = max_bytes
    for tensor in planned:
        if shards[-1] and tensor.spec.nbytes > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(tensor)
        room -= tensor.spec.nbytes
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    # Five digits and six, as in DeepSeek's own folders.
    return {f"model-{i:05d}-of-{len(shards):06d}.safetensors": shard for i, shard in enumerate(shards, 1)}


def export_checkpoint(folder: pathlib.Path, out: pathlib.Path, options: ExportOptions) -> list[str]:
    """Exports the policy in `folder` to `out`; called again after a kill, it goes on. Returns the tensor files' names.

    Raises:
      WeightsError: `folder` holds no finished policy, or a model that no released family computes.
      CheckpointError: its checkpoint is damaged.
      WorkdirError: `out` holds something else.
      DiskFullError: there is not enough room.
    """
    tensors = CheckpointTensors(folder)
    cfg = tensors.model
    released = folder / RELEASED
    dtype = cfg.param_dtype if options.dtype == "source" else options.dtype
    original = read_json(released / "config.json") if (released / "config.json").exists() else None
    ue8m0 = options.ue8m0
    if ue8m0 is None:
        ue8m0 = ((original or {}).get("quantization_config") or {}).get("scale_fmt") == "ue8m0"
    config = export_config(cfg, original, tensors.tokenizer, dtype, ue8m0)
    shards = plan_shards(plan_tensors(cfg, dtype), options.max_shard_bytes)
    plan = {"checkpoint": tensors.fingerprint, "config": config, "max_shard_bytes": options.max_shard_bytes}
    _claim(out, plan)
    _check_room(out, shards)
    try:
        _write_shards(out, shards, tensors, ue8m0)
        _write_small_files(out, released, tensors.tokenizer, config, shards)
    except OSError as error:
        if is_disk_full(error):
            raise DiskFullError(f"{out}: the disk is full; make room and run the same command again") from error
        raise
    (out / UNFINISHED).unlink()
    return list(shards)


def export_config(
    cfg: ModelConfig, original: dict[str, Any] | None, tokenizer: Tokenizer, dtype: str, ue8m0: bool
) -> dict[str, Any]:
    """config.json: the imported one where it still describes the model, else one made of our configuration."""
    fields = dict(original) if original is not None and _describes(original, cfg) else None
    if fields is None:
        fields = config_fields(cfg) | {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    fields |= {"vocab_size": cfg.vocab_size} | {key: cfg.mtp_depth for key in MTP_KEYS if key in fields}
    fields.pop("auto_map", None)  # names Python files of the source, which are not carried along
    fields.pop("quantization_config", None)
    fields["dtype" if "dtype" in fields else "torch_dtype"] = "float32" if dtype == "float32" else "bfloat16"
    if dtype == "fp8":
        fields["quantization_config"] = {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [BLOCK, BLOCK],
            **({"scale_fmt": "ue8m0"} if ue8m0 else {}),
        }
    return fields


def _describes(fields: dict[str, Any], cfg: ModelConfig) -> bool:
    """Whether a config.json still says what `cfg` is, but for the MTP layer."""
    depth = {key: cfg.mtp_depth for key in MTP_KEYS if key in fields}  # the import may have left the layer out
    said = model_config({**fields, **depth}, ignore=tuple(fields))
    return dataclasses.replace(said, **NOT_COMPARED) == dataclasses.replace(cfg, **NOT_COMPARED)


def _claim(out: pathlib.Path, plan: dict[str, Any]) -> None:
    """Makes `out` the folder of this export. Raises WorkdirError if it is the folder of something else."""
    if out.is_file():
        raise WorkdirError(f"{out} is a file; the export needs a directory")
    record = out / UNFINISHED
    if not record.exists():
        if out.exists() and any(out.iterdir()):
            raise WorkdirError(f"{out} is not empty; choose another folder")
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(record, json.dumps(plan, indent=2) + "\n")
    elif read_json(record) != json.loads(json.dumps(plan)):
        raise WorkdirError(f"{out} holds another export that was not finished; choose another folder, or remove it")


def _check_room(out: pathlib.Path, shards: dict[str, list[PlannedTensor]]) -> None:
    needed = sum(t.spec.nbytes for name, shard in shards.items() if not (out / name).exists() for t in shard)
    free = shutil.disk_usage(out).free
    if needed > free:
        raise DiskFullError(f"{out}: {needed / MIB:.0f} MiB are to be written, {free / MIB:.0f} MiB are free")


def _write_shards(
    out: pathlib.Path, shards: dict[str, list[PlannedTensor]], tensors: CheckpointTensors, ue8m0: bool
) -> None:
    """Writes the shards that an earlier attempt has not written."""
    sizes = {name: sum(t.spec.nbytes for t in shard) for name, shard in shards.items()}
    ready = [name for name in shards if (out / name).exists()]
    for name in ready:
        found = {tensor: (stored.dtype, stored.shape) for tensor, stored in open_safetensors(out / name).items()}
        if found != {tensor.spec.name: (tensor.spec.dtype, tensor.spec.shape) for tensor in shards[name]}:
            raise WorkdirError(f"{out / name} is not of this export; remove the folder, or choose another")
    done, total = sum(sizes[name] for name in ready), -(-sum(sizes.values()) // MIB)
    with Progress(f"export to {out.name} (MiB)", total, done // MIB) as progress:
        for name, shard in shards.items():
            if name in ready:
                continue

            def values(shard: list[PlannedTensor] = shard, name: str = name) -> Iterator[tuple[TensorSpec, np.ndarray]]:
                nonlocal done
                for spec, value in _values(shard, tensors, ue8m0):
                    yield spec, value
                    done += spec.nbytes
                    progress.update(done // MIB, file=name)

            write_safetensors(out / name, values(), [tensor.spec for tensor in shard], {"format": "pt"})
        progress.update(total, files=len(shards))


def _values(
    shard: list[PlannedTensor], tensors: CheckpointTensors, ue8m0: bool
) -> Iterator[tuple[TensorSpec, np.ndarray]]:
    """The arrays of a shard; a matrix and its scales are quantized together where they stand together."""
    name, parts = "", None
    for planned in shard:
        source = planned.source
        if planned.spec.dtype == E4M3 or planned.is_scale:
            if source.name != name:
                value = tensors.read(source).astype(np.float32)
                check_finite(value, source.name, "the checkpoint")
                name, parts = source.name, quantize(value, power_of_two=ue8m0)
            assert parts is not None
            yield planned.spec, parts[planned.is_scale]
        else:
            value = np.asarray(tensors.read(source), planned.spec.dtype)
            check_finite(value, source.name, f"the checkpoint, in {planned.spec.dtype}")
            yield planned.spec, value


def _write_small_files(
    out: pathlib.Path,
    released: pathlib.Path,
    tokenizer: Tokenizer,
    config: dict[str, Any],
    shards: dict[str, list[PlannedTensor]],
) -> None:
    """Everything but the tensors; the index and config.json, without which nothing can be loaded, come last."""
    if released.is_dir():
        for file in released.iterdir():
            if file.name not in ("config.json", INDEX):
                shutil.copyfile(file, out / file.name)
    tokenizer.save(out)  # over the carried files: tokens may have been added
    if not (out / "generation_config.json").exists():
        ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
        write_atomically(out / "generation_config.json", json.dumps(R1_GENERATION | ids, indent=2) + "\n")
    if list(shards) != [SINGLE]:
        weight_map = {tensor.spec.name: name for name, shard in shards.items() for tensor in shard}
        total = sum(tensor.spec.nbytes for shard in shards.values() for tensor in shard)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_atomically(out / INDEX, json.dumps(index, indent=2) + "\n")
    write_atomically(out / "config.json", json.dumps(config, indent=2) + "\n")
