"""Checkpoints that are whole or not there: orbax arrays, our own metadata, and a manifest of checksums that decides.

On disk, under the store's directory (a local or shared POSIX file system):

    step_00000100/
        arrays/         orbax: every leaf under its path in the tree, in its own sharding
        metadata.json   what the caller gave: iterator states, counters, ...
        manifest.json   step, leaves, and size and SHA-256 of every file; written last

A checkpoint is built in `step_N.partial`, synced to disk and renamed, so a process killed at any moment leaves either
the whole of it or nothing that is ever read.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from orbax.checkpoint import v1 as ocp

from r1jax.manifest import (
    CheckpointError,
    DamagedError,
    is_disk_full,
    read_manifest,
    sync,
    verify,
    write_manifest,
)
from r1jax.processes import by_writer, from_writer, is_writer, wait_for_all

_PREFIX, _PARTIAL = "step_", ".partial"
CHUNK_BYTES = 64 * 2**20
_log = logging.getLogger(__name__)


class DiskFullError(CheckpointError):
    """The file system is full; the checkpoints already there are untouched."""


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """What the manifest says of one leaf; `key_impl` is set for random keys, whose shape is that of the key array."""

    shape: tuple[int, ...]
    dtype: str
    key_impl: str | None = None

    def entry(self) -> tuple[tuple[int, ...], str, str | None]:
        """As the manifest holds it."""
        return self.shape, self.dtype, self.key_impl


class CheckpointStore:
    """The checkpoints of one run, the newest `keep` of them.

    Leaves may be jax arrays in any sharding, random-key arrays, numpy arrays and Python numbers; None, tuples, named
    tuples and dataclass nodes live in the tree's structure, which the target of `restore` gives back. With several
    processes every process calls every method but `steps`; orbax writes each process's shards, process 0 the rest, and
    each checks its share of the files.
    """

    def __init__(self, directory: str | os.PathLike[str], keep: int = 2) -> None:
        """Names the directory; it is made by the first save.

        Args:
            directory: where the steps lie.
            keep: how many of the newest checkpoints stay; at least 1, and 2 or more to survive a damaged one.
        """
        if keep < 1:
            raise ValueError(f"keep: at least one checkpoint must stay, got {keep}")
        self.directory = pathlib.Path(directory).absolute()
        self.keep = keep
        self._damaged: set[int] = set()

    def steps(self) -> list[int]:
        """Steps that have a checkpoint on disk, ascending, damaged ones included."""
        if not self.directory.is_dir():
            return []
        names = (path.name.removeprefix(_PREFIX) for path in self.directory.glob(f"{_PREFIX}*") if path.is_dir())
        return sorted(int(name) for name in names if name.isdecimal())

    def latest(self) -> int | None:
        """The newest step whose checkpoint is whole; None if nothing was ever saved.

        Raises:
            CheckpointError: there are checkpoints, and all of them are damaged.
        """
        steps = from_writer(self.steps)
        for step in reversed(steps):
            if self._is_whole(step):
                return step
        if not steps:
            return None
        raise CheckpointError(
            f"{self.directory}: every checkpoint is damaged (steps {steps}). Put an undamaged copy back, or "
            "remove the directory to start from the beginning."
        )

    def save(self, step: int, tree: Any, metadata: Mapping[str, Any] | None = None) -> bool:
        """Writes one checkpoint and returns when it is safely on disk; then removes the oldest ones.

        A step is saved once: where a whole checkpoint of `step` exists nothing is written and the result is False.

        Args:
            step: number of the step, from 0.
            tree: pytree of arrays.
            metadata: what JSON can hold (finite or not, but no bytes).

        Raises:
            TypeError: `metadata` is not JSON, naming what is in the way, or a leaf is no array.
            DiskFullError: the file system is full; nothing of the new checkpoint stays.
        """
        text = json.dumps(dict(metadata or {}), ensure_ascii=False, sort_keys=True)
        leaves = dict(_named_leaves(tree))
        final = self._path(step)
        if from_writer(final.is_dir) and self._is_whole(step):
            _log.info("step %d is already saved in %s", step, self.directory)
            return False
        partial = final.with_name(final.name + _PARTIAL)
        try:
            if is_writer():
                self._clear(step)
                partial.mkdir(parents=True)
            wait_for_all("checkpoint begun")
            with _small_chunks():
                stored = map(_storable, leaves.items())
                ocp.save(partial / "arrays", {name: value for name, value in stored if value.size})
            wait_for_all("arrays written")
            if is_writer():
                (partial / "metadata.json").write_text(text, encoding="utf-8")
            write_manifest(partial, step, {name: _describe(name, leaf).entry() for name, leaf in leaves.items()})
            if is_writer():
                partial.rename(final)
                sync(self.directory)
        except Exception as error:
            if is_writer():
                shutil.rmtree(partial, ignore_errors=True)
            if is_disk_full(error):
                raise DiskFullError(self._disk_full_message(step)) from error
            raise
        wait_for_all("checkpoint ended")
        self._damaged.discard(step)
        self._remove_old(step)
        return True

    def restore(self, target: Any, step: int | None = None) -> tuple[int, Any, dict[str, Any]]:
        """Reads a checkpoint onto the shapes, dtypes and shardings of `target`; the newest whole one by default.

        A damaged newest checkpoint is announced loudly and the one before it is used. The bytes are checked against the
        manifest before anything is built from them.

        Args:
            target: pytree of the same structure as saved. A ShapeDtypeStruct (or array) with a sharding gives a jax
                array laid out so, on whatever mesh; without one, an uncommitted array on the default device; a numpy
                array or Python number gives the same kind back. See `abstract_like`.
            step: the step to read; None for the newest whole one.

        Returns:
            (step, tree, metadata).

        Raises:
            CheckpointError: nothing is there, all is damaged, or the checkpoint does not fit `target` (leaves named).
        """
        if step is None:
            step = self.latest()
            if step is None:
                raise CheckpointError(f"{self.directory}: no checkpoint to restore")
        path = self._path(step)
        try:
            manifest = verify(path, step)
        except DamagedError as error:
            raise CheckpointError(f"{path}: {error}") from error
        saved = {name: _Leaf(tuple(leaf[0]), leaf[1], leaf[2]) for name, leaf in manifest["leaves"].items()}
        wanted = dict(_named_leaves(target))
        _check_fit(path, saved, {name: _describe(name, leaf) for name, leaf in wanted.items()})
        abstract = {name: _loadable(leaf) for name, leaf in wanted.items() if 0 not in saved[name].shape}
        loaded = ocp.load(path / "arrays", abstract) if abstract else {}
        leaves = [_finish(leaf, loaded.get(name)) for name, leaf in wanted.items()]
        metadata = json.loads(from_writer(lambda: (path / "metadata.json").read_text(encoding="utf-8")))
        return step, jax.tree.unflatten(jax.tree.structure(target), leaves), metadata

    def adopt(self, step: int, folder: pathlib.Path, metadata: Mapping[str, Any] | None = None) -> None:
        """Makes a checkpoint of a folder that was filled elsewhere on this file system, and moves it here.

        Args:
            step: number of the step; there must be no checkpoint of it yet.
            folder: holds nothing but `arrays/`, a complete orbax checkpoint of one flat tree.
            metadata: as for `save`.

        Raises:
            CheckpointError: the step exists.
            DiskFullError: the file system is full; the folder stays where it is, and can be adopted later.
        """
        final = self._path(step)
        if final.exists():
            raise CheckpointError(f"{final} exists already")
        text = json.dumps(dict(metadata or {}), ensure_ascii=False, sort_keys=True)
        saved = ocp.metadata(folder / "arrays").metadata
        try:
            (folder / "metadata.json").write_text(text, encoding="utf-8")
            leaves = {name: (tuple(leaf.shape), str(leaf.dtype), None) for name, leaf in saved.items()}
            write_manifest(folder, step, leaves)
            self.directory.mkdir(parents=True, exist_ok=True)
            folder.rename(final)
            sync(self.directory)
        except OSError as error:
            if is_disk_full(error):
                raise DiskFullError(self._disk_full_message(step)) from error
            raise

    def open_arrays(self) -> tuple[int, pathlib.Path, dict[str, tuple[tuple[int, ...], str]]]:
        """The newest whole checkpoint, for a reader of slices: step, folder of the arrays, name -> (shape, type).

        Raises:
            CheckpointError: nothing is there, or all is damaged.
        """
        step = self.latest()
        if step is None:
            raise CheckpointError(f"{self.directory}: no checkpoint to read")
        leaves = read_manifest(self._path(step), step)["leaves"]
        return step, self._path(step) / "arrays", {name: (tuple(leaf[0]), leaf[1]) for name, leaf in leaves.items()}

    def _path(self, step: int) -> pathlib.Path:
        return self.directory / f"{_PREFIX}{step:08d}"

    def _is_whole(self, step: int) -> bool:
        try:
            verify(self._path(step), step)
        except DamagedError as error:
            if step not in self._damaged:
                self._damaged.add(step)
                _announce(f"The checkpoint {self._path(step)} is damaged and will not be used: {error}.")
            return False
        return True

    def _clear(self, step: int) -> None:
        """Removes what an earlier kill left half written, and a damaged checkpoint of this very step."""
        for path in (*self.directory.glob(f"{_PREFIX}*{_PARTIAL}"), self._path(step)):
            if path.is_dir():
                shutil.rmtree(path)

    @by_writer
    def _remove_old(self, saved: int) -> None:
        whole = [step for step in self.steps() if step not in self._damaged]
        for step in self.steps():
            if step not in whole[-self.keep :] and step != saved:
                # The manifest goes first: a kill halfway leaves nothing that looks whole.
                (self._path(step) / "manifest.json").unlink(missing_ok=True)
                shutil.rmtree(self._path(step))
                self._damaged.discard(step)

    def _disk_full_message(self, step: int) -> str:
        free = shutil.disk_usage(self.directory if self.directory.is_dir() else self.directory.parent).free
        kept = (
            f"The checkpoints of steps {self.steps()} are untouched." if self.steps() else "No checkpoint exists yet."
        )
        return (
            f"{self.directory}: the disk is full ({free / 2**20:.0f} MiB free), step {step} could not be saved. {kept} "
            "Make room and run the same command again."
        )


def abstract_like(tree: Any) -> Any:
    """The target that restores `tree` as it is: shapes, dtypes and, for arrays bound to devices, shardings."""

    def abstract(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding if _is_laid_out(leaf) else None)

    return jax.tree.map(abstract, tree)


def _small_chunks() -> ocp.Context:
    """Orbax's settings, but for chunks of at most CHUNK_BYTES: an export reads a large array slice by slice."""
    context = ocp.Context()
    options = type(context.array.saving.storage_options)

    def chunks(path: Any, value: Any) -> Any:
        large = value.size * value.dtype.itemsize > CHUNK_BYTES
        return options(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,)) if large else None  # layers first

    context.array.saving.scoped_storage_options_creator = chunks
    return context


def _named_leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    seen: set[str] = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "value"
        if name in seen:
            raise ValueError(f"two leaves of the tree are both called {name!r}")
        seen.add(name)
        yield name, leaf


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _is_laid_out(array: jax.Array) -> bool:
    """Whether an array is bound to devices of the run's mesh; if not, it is every process's own copy of one value."""
    return array.committed and (jax.process_count() == 1 or not array.is_fully_addressable)


def _describe(name: str, leaf: Any) -> _Leaf:
    if _is_key(leaf):
        return _Leaf(tuple(leaf.shape), "key", str(leaf.dtype))
    if isinstance(leaf, (bool, int, float)):
        leaf = np.asarray(leaf)
    if not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct, np.ndarray, np.generic)):
        raise TypeError(f"{name}: a checkpoint holds arrays and numbers, not {type(leaf).__name__}")
    return _Leaf(tuple(leaf.shape), str(leaf.dtype))


def _storable(item: tuple[str, Any]) -> tuple[str, Any]:
    name, leaf = item
    _describe(name, leaf)
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    return name, leaf if isinstance(leaf, jax.Array) and _is_laid_out(leaf) else np.asarray(leaf)


def _loadable(leaf: Any) -> Any:
    """What orbax is asked for: a sharded array, or a numpy array where the target has no sharding."""
    sharding = getattr(leaf, "sharding", None)
    if _is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    if isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
        if sharding is not None:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        return np.empty(leaf.shape, leaf.dtype)
    return np.asarray(leaf)


def _finish(target: Any, value: Any) -> Any:
    """The loaded value (None for an empty array, which is not stored) in the kind of its target."""
    if _is_key(target):
        if value is None:
            value = jnp.zeros(jax.eval_shape(jax.random.key_data, target).shape, jnp.uint32)
        return jax.random.wrap_key_data(jnp.asarray(value), impl=target.dtype)
    if isinstance(target, (jax.Array, jax.ShapeDtypeStruct)):
        if value is None:
            empty = np.zeros(target.shape, target.dtype)
            value = empty if target.sharding is None else jax.device_put(empty, target.sharding)
        return jnp.asarray(value)
    if isinstance(target, (bool, int, float)):
        return type(target)(value)
    return np.zeros(target.shape, target.dtype) if value is None else np.asarray(value)


def _check_fit(path: pathlib.Path, saved: dict[str, _Leaf], wanted: dict[str, _Leaf]) -> None:
    problems = [f"{name} is not in the checkpoint" for name in wanted if name not in saved]
    problems += [f"{name} is in the checkpoint only" for name in saved if name not in wanted]
    for name in wanted:
        if name in saved and saved[name] != wanted[name]:
            problems.append(f"{name} is {_show(saved[name])} in the checkpoint and {_show(wanted[name])} in the run")
    if problems:
        more = f", and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise CheckpointError(f"{path} does not fit this run: {'; '.join(problems[:6])}{more}")


def _show(leaf: _Leaf) -> str:
    return f"{leaf.key_impl or leaf.dtype}{list(leaf.shape)}"


@by_writer
def _announce(message: str) -> None:
    _log.warning(message)
    # Not wrapped: the path must be there in one piece to be copied.
    console = rich.console.Console(stderr=True)
    console.print(f"damaged checkpoint: {message}", style="bold red", markup=False, soft_wrap=True)
