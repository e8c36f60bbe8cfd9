"""Parameters out of a checkpoint's tensors, slice by slice, and whole parameters placed on a mesh."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from r1jax.model.config import ModelConfig
from r1jax.model.transformer import abstract_params
from r1jax.sharding import param_shardings
from r1jax.types import Params
from r1jax.weights.names import Path, Source, WeightsError, check_filled, check_finite, flat_shapes, to_parameter

VOCABULARY_AXIS = {("embed", "embedding"): 0, ("lm_head", "kernel"): 1}

ReadTensor = Callable[[str], np.ndarray]


@dataclasses.dataclass(frozen=True)
class AddedRows:
    """New tokens: their rows of embedding and head become the mean of the rows that the checkpoint's tokens have."""

    ids: tuple[int, ...]
    trained: int  # the first ones of the stored rows belong to tokens, the rest are padding


class ParameterReader:
    """The slices of every parameter of a model, read from a checkpoint's tensors one at a time."""

    def __init__(
        self, cfg: ModelConfig, table: Sequence[Source], read: ReadTensor, added: AddedRows | None = None
    ) -> None:
        """Args:
          cfg: of the model; `param_dtype` is what tensors are converted to.
          table: the checkpoint's tensors, checked against what it holds.
          read: name -> the tensor as it is meant (dequantized); called when a slice is read.
          added: tokens that the checkpoint does not have; `cfg` has room for them.

        Raises:
          WeightsError: the table does not fill every parameter exactly once.
        """
        check_filled(cfg, table)
        self.cfg, self._read, self._added = cfg, read, added
        self.shapes = flat_shapes(cfg)
        self.sources: dict[Path, dict[tuple[int, ...], Source]] = {path: {} for path in self.shapes}
        self.copies = [source for source in table if source.copy_of is not None]
        for source in table:
            if source.copy_of is None:
                self.sources[source.path][source.index] = source

    def depth(self, path: Path) -> int:
        """How many of a parameter's leading axes index its slices."""
        return len(next(iter(self.sources[path])))

    def piece(self, path: Path, index: tuple[int, ...]) -> np.ndarray:
        """One slice, in the type of the parameter. Raises WeightsError for a tensor that cannot be used."""
        source, wanted = self.sources[path][index], self.shapes[path]
        shape = wanted.shape[len(index) :]
        stored = self._read(source.name)
        if self._added is not None and path in VOCABULARY_AXIS:
            grown = self._grown(to_parameter(source, stored, _stored_shape(source)), VOCABULARY_AXIS[path], shape)
            check_finite(grown, source.name, f"converted to {grown.dtype}")
            return grown
        value = np.asarray(to_parameter(source, stored, shape), wanted.dtype)
        if value.dtype != stored.dtype:
            check_finite(value, source.name, f"converted to {value.dtype}")  # bfloat16 ends before float32 does
        return value

    def _grown(self, value: np.ndarray, axis: int, shape: tuple[int, ...]) -> np.ndarray:
        assert self._added is not None
        rows = np.moveaxis(value, axis, 0)
        grown = np.zeros((shape[axis], rows.shape[1]), np.float32)
        grown[: len(rows)] = rows
        grown[list(self._added.ids)] = grown[: self._added.trained].mean(axis=0, dtype=np.float64)
        return np.asarray(np.moveaxis(grown, 0, axis), np.dtype(self.cfg.param_dtype))

    def check_copies(self) -> None:
        """That tensors stored twice are equal. Raises WeightsError naming a pair that differs."""
        for source in self.copies:
            assert source.copy_of is not None
            if not np.array_equal(self._read(source.name), self._read(source.copy_of)):
                raise WeightsError(f"tensor {source.name} differs from {source.copy_of}, which it should repeat")

    def pieces(self) -> Iterator[tuple[Path, tuple[int, ...]]]:
        """Every slice of every parameter."""
        for path, sources in self.sources.items():
            for index in sources:
                yield path, index

    def box(self, path: Path, box: tuple[slice, ...]) -> np.ndarray:
        """The part of a parameter within `box`, one slice of its tensors in memory at a time."""
        wanted, depth = self.shapes[path], self.depth(path)
        ranges = [range(*part.indices(size)) for part, size in zip(box, wanted.shape, strict=True)]
        out = np.empty([len(r) for r in ranges], wanted.dtype)
        for index in itertools.product(*ranges[:depth]):
            place = tuple(i - r.start for i, r in zip(index, ranges, strict=False))
            out[place] = self.piece(path, index)[box[depth:]]
        return out


def _stored_shape(source: Source) -> tuple[int, ...]:
    return source.shape if source.layout == "same" else source.shape[::-1]


def place_parameters(reader: ParameterReader, mesh: Mesh | None) -> Params:
    """All parameters, each device's part read for it alone; the host holds one part at a time.

    mesh: parameters are placed by their logical axes; None: on the default device.
    """
    reader.check_copies()
    shardings: dict[Path, Any] = {}
    if mesh is not None:
        shardings = traverse_util.flatten_dict(param_shardings(mesh, abstract_params(reader.cfg)))
    params = {path: _placed(reader, path, shardings.get(path)) for path in reader.shapes}
    return traverse_util.unflatten_dict(params)


def _placed(reader: ParameterReader, path: Path, sharding: Any) -> jax.Array:
    shape = reader.shapes[path].shape
    if sharding is None:
        whole = tuple(slice(None) for _ in shape)
        return jax.device_put(reader.box(path, whole))
    last: dict[str, np.ndarray] = {}  # devices that hold the same part follow each other

    def part(box: tuple[slice, ...] | None) -> np.ndarray:
        assert box is not None
        if str(box) not in last:
            last.clear()
            last[str(box)] = reader.box(path, box)
        return last[str(box)]

    return jax.make_array_from_callback(shape, sharding, part)
