"""Orbax checkpoints written and read slice by slice, for arrays that are larger than the memory.

Orbax saves whole arrays. Here it saves a skeleton with the tree's metadata, and tensorstore, which Orbax stores its
arrays with, fills in the arrays: zarr3, one file per chunk, chunks no larger than a slice. `orbax.checkpoint.load`
reads the result like any other checkpoint, onto any mesh.
"""

from __future__ import annotations

import json
import math
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import tensorstore
from orbax.checkpoint import v1 as ocp

CHUNK_BYTES = 64 * 2**20  # the largest chunk; a reader of a shard decodes the chunks that it touches
CACHE_BYTES = 256 * 2**20  # of decoded chunks: a chunk may hold several slices
_TREE = "state"  # where Orbax keeps the arrays of a checkpoint that is one tree


def chunk_shape(shape: tuple[int, ...], depth: int, itemsize: int) -> list[int]:
    """Chunks of one slice (the first `depth` axes are its index), its longest axes halved until CHUNK_BYTES suffice."""
    chunk = [1] * depth + list(shape[depth:])
    while math.prod(chunk) * itemsize > CHUNK_BYTES:
        axis = max(range(len(chunk)), key=chunk.__getitem__)
        chunk[axis] = -(-chunk[axis] // 2)
    return chunk


class SliceWriter:
    """Fills the arrays of a checkpoint in any order, also over several processes one after the other."""

    def __init__(self, folder: pathlib.Path, arrays: Mapping[str, tuple[jax.ShapeDtypeStruct, int]]) -> None:
        """Makes the skeleton unless it is there.

        Args:
          folder: of the arrays of one checkpoint.
          arrays: name -> shape and type, and how many of the leading axes index the slices.
        """
        self._folder = folder
        self._stores: dict[str, Any] = {}
        self.fresh = not (folder / _TREE / "_METADATA").is_file()  # nothing was written by an earlier process
        if self.fresh:
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            self._make_skeleton(arrays)
        for name, (array, depth) in arrays.items():
            self._stores[name] = self._open(name, array, depth)

    def write(self, name: str, index: tuple[int, ...], value: np.ndarray) -> None:
        """Writes one slice; when it returns, the slice is on the disk."""
        self._stores[name][index].write(value).result()

    def check_complete(self) -> None:
        """Raises FileNotFoundError, naming an array, unless all of its chunks are there."""
        for name, store in self._stores.items():
            shape, chunk = store.shape, store.chunk_layout.write_chunk.shape
            wanted = math.prod(-(-size // part) for size, part in zip(shape, chunk, strict=True))
            found = sum(file.is_file() for file in (self._folder / _TREE / name / "c").rglob("*"))
            if found != wanted:
                raise FileNotFoundError(f"{self._folder / _TREE / name} has {found} chunks of {wanted}: remove it")

    def _make_skeleton(self, arrays: Mapping[str, tuple[jax.ShapeDtypeStruct, int]]) -> None:
        """A checkpoint of arrays with one element each, whose elements are then taken away."""
        context = ocp.Context()
        saving = context.array.saving
        saving.use_ocdbt, saving.use_zarr3, saving.use_compression = False, True, False
        saving.enable_write_sharding_file = False
        tiny = {name: np.zeros((1,) * len(array.shape), array.dtype) for name, (array, _) in arrays.items()}
        building = self._folder.with_name(self._folder.name + ".skeleton")
        shutil.rmtree(building, ignore_errors=True)
        with context:
            ocp.save(building, tiny)
        for name in arrays:
            shutil.rmtree(building / _TREE / name)
        building.rename(self._folder)

    def _open(self, name: str, array: jax.ShapeDtypeStruct, depth: int) -> Any:
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{self._folder / _TREE / name}/"},
            "store_data_equal_to_fill_value": True,  # so that a missing chunk is always an error
        }
        return tensorstore.open(
            spec,
            create=True,
            open=True,
            dtype=np.dtype(array.dtype).name,
            shape=list(array.shape),
            chunk_layout=tensorstore.ChunkLayout(chunk_shape=chunk_shape(array.shape, depth, array.dtype.itemsize)),
        ).result()


class SliceReader:
    """Reads slices of the arrays of a checkpoint that Orbax or `SliceWriter` has written."""

    def __init__(self, folder: pathlib.Path) -> None:
        """Raises FileNotFoundError if the folder holds no checkpoint of one tree."""
        metadata = json.loads((folder / _TREE / "_METADATA").read_text(encoding="utf-8"))
        self._base = folder / _TREE
        self._ocdbt = bool(metadata.get("use_ocdbt", True))
        self._driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
        self._context = tensorstore.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})
        self._stores: dict[str, Any] = {}

    def read(self, name: str, index: tuple[int, ...]) -> np.ndarray:
        """One slice of an array. Raises ValueError if data are missing."""
        if name not in self._stores:
            self._stores[name] = self._open(name)
        value: np.ndarray = self._stores[name][index].read().result()
        return value

    def _open(self, name: str) -> Any:
        kvstore: Any = {"driver": "file", "path": f"{self._base / name}/"}
        if self._ocdbt:
            kvstore = {"driver": "ocdbt", "base": f"file://{self._base}/", "path": f"{name}/"}
        spec = {"driver": self._driver, "kvstore": kvstore, "fill_missing_data_reads": False}
        return tensorstore.open(spec, context=self._context, open=True, read=True).result()
