"""Safetensors files, one tensor in memory at a time: reading through memory maps, writing as a stream.

The safetensors library checks every file's header. Its own readers map whole files (a process then holds all that it
has touched) and give numpy no FP8, and its writers want all tensors of a file at once; so the bytes are handled here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from r1jax.weights.names import WeightsError

DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH = struct.Struct("<Q")  # of the header, in front of it


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's bytes are."""

    file: pathlib.Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int  # from the start of the file

    @property
    def nbytes(self) -> int:
        """Size of the data."""
        return math.prod(self.shape) * self.dtype.itemsize

    def map(self) -> np.ndarray:
        """The tensor in a memory map of its own, which ends with the array."""
        if not self.nbytes:
            return np.empty(self.shape, self.dtype)
        return np.memmap(self.file, self.dtype, mode="r", offset=self.offset, shape=self.shape)


def open_safetensors(file: pathlib.Path) -> dict[str, StoredTensor]:
    """Name -> tensor of one file, in the order of their bytes.

    Raises:
      WeightsError: the file is cut short or no safetensors file, or holds a type that no supported family uses.
    """
    try:
        with safetensors.safe_open(file, "numpy"):
            pass  # the library has checked that header and bytes fit together
        with file.open("rb") as stream:
            (length,) = _LENGTH.unpack(stream.read(_LENGTH.size))
            header = json.loads(stream.read(length))
    except (safetensors.SafetensorError, OSError, ValueError, struct.error) as error:
        raise WeightsError(f"{file} is not a whole safetensors file: {error}") from error
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in DTYPES:
            raise WeightsError(f"{file}: tensor {name} has type {entry['dtype']}, known are {', '.join(DTYPES)}")
        start = _LENGTH.size + length + entry["data_offsets"][0]
        tensors[name] = StoredTensor(file, DTYPES[entry["dtype"]], tuple(entry["shape"]), start)
    return tensors


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """A tensor that is going to be written."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the data."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    file: pathlib.Path,
    tensors: Iterable[tuple[TensorSpec, np.ndarray]],
    specs: list[TensorSpec],
    metadata: Mapping[str, str],
) -> None:
    """Writes one file that is whole or not there, holding one tensor at a time.

    Args:
      file: to be written; `FILE.partial` meanwhile.
      tensors: the arrays, in the order of `specs`.
      specs: all tensors of the file.
      metadata: text -> text; readers expect {"format": "pt"}.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for spec in specs:
        header[spec.name] = {
            "dtype": NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    partial = file.with_name(file.name + ".partial")
    with partial.open("wb") as stream:
        stream.write(_LENGTH.pack(len(text)) + text)
        for (spec, value), expected in zip(tensors, specs, strict=True):
            if spec != expected or value.shape != spec.shape or value.dtype != spec.dtype:
                raise ValueError(f"tensor {spec.name}: {value.dtype}{list(value.shape)}, the header says {expected}")
            stream.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)
