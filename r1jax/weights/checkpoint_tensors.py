"""The tensors of a released layout, read slice by slice from the checkpoint that a stage or an import has left."""

from __future__ import annotations

import hashlib
import pathlib

import numpy as np

from r1jax.checkpoint import CheckpointStore
from r1jax.weights.names import Source, WeightsError, flat_shapes, to_stored
from r1jax.weights.policy_folder import MODEL_FILE, PARAMETERS, read_description
from r1jax.weights.slices import SliceReader


class CheckpointTensors:
    """A finished policy's parameters, in the axes of released tensors."""

    def __init__(self, folder: pathlib.Path) -> None:
        """Raises WeightsError if the folder holds no finished policy, or other parameters than its model.json says."""
        self.model, self.tokenizer = read_description(folder)
        _, arrays, leaves = CheckpointStore(folder / PARAMETERS).open_arrays()
        wanted = {"/".join(path): (leaf.shape, str(leaf.dtype)) for path, leaf in flat_shapes(self.model).items()}
        if leaves != wanted:
            differing = sorted(name for name in leaves.keys() | wanted.keys() if leaves.get(name) != wanted.get(name))
            name = differing[0]
            raise WeightsError(
                f"{folder / PARAMETERS}: {name} is {leaves.get(name)}, {MODEL_FILE} says {wanted.get(name)}", differing
            )
        self._slices = SliceReader(arrays)
        self.fingerprint = hashlib.sha256((arrays.parent / "manifest.json").read_bytes()).hexdigest()

    def read(self, source: Source) -> np.ndarray:
        """The stored tensor of one entry of a name table, in the parameter's type."""
        return to_stored(source, self._slices.read("/".join(source.path), source.index))
