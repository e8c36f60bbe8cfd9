"""Meshes, and the one table that says where every named axis of a parameter or activation lives."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax.core import meta
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("slice", "data", "fsdp", "expert", "sequence", "tensor")  # slowest network first
BATCH_AXES = ("slice", "data", "fsdp", "expert")  # every device of these axes has its own rows of the batch

MeshAxes = str | tuple[str, ...] | None

LOGICAL_AXES: tuple[tuple[str, MeshAxes], ...] = (
    # parameters
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("head_dim", None),
    ("q_lora", None),
    ("kv_lora", None),
    ("mlp", "tensor"),
    ("experts", "expert"),
    ("expert_mlp", "tensor"),
    ("norm", None),
    ("layers", None),
    # activations
    ("batch", BATCH_AXES),
    ("length", "sequence"),
    ("kv_length", None),  # keys and values: whole on every device of the sequence axis, whose queries see them all
    ("act_embed", None),
    ("act_heads", "tensor"),
    ("act_kv_heads", "tensor"),
    ("act_head_dim", None),
    ("act_mlp", "tensor"),
    ("act_vocab", "tensor"),
    ("act_experts", None),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis. One of `data` and `fsdp` may be -1: the devices that are left."""

    slice: int = 1
    data: int = -1
    fsdp: int = 1
    expert: int = 1
    sequence: int = 1
    tensor: int = 1

    def sizes(self, num_devices: int) -> tuple[int, ...]:
        """Axis sizes in the order of MESH_AXES for `num_devices` devices. ValueError if they do not multiply up."""
        sizes = {axis: getattr(self, axis) for axis in MESH_AXES}
        free = [axis for axis, size in sizes.items() if size == -1]
        if len(free) > 1 or not set(free) <= {"data", "fsdp"}:
            raise ValueError(f"only one of data and fsdp may be -1, got {sizes}")
        if any(size < 1 for axis, size in sizes.items() if axis not in free):
            raise ValueError(f"mesh axis sizes must be positive, got {sizes}")
        fixed = math.prod(size for axis, size in sizes.items() if axis not in free)
        if num_devices % fixed if free else num_devices != fixed:
            raise ValueError(f"mesh axes {sizes} do not multiply up to {num_devices} devices (-1 takes what is left)")
        for axis in free:
            sizes[axis] = num_devices // fixed
        return tuple(sizes[axis] for axis in MESH_AXES)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with axes MESH_AXES over `devices` (all of them by default), in device order.

    The axes are AxisType.Auto: the compiler places what carries no explicit sharding. Raises ValueError, naming the
    axis sizes and the device count, if they do not multiply up.
    """
    if devices is None:
        devices = jax.devices()
    sizes = config.sizes(len(devices))
    return jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices)


def _mesh_axes(mesh: Mesh, axes: MeshAxes) -> int:
    return math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))


def logical_sharding(mesh: Mesh, names: Sequence[str | None], shape: Sequence[int] | None = None) -> NamedSharding:
    """The sharding of an array whose axes are called `names` (None: not sharded).

    With `shape`, an axis that its mesh axes do not divide stays whole, e.g. one key-value head on two tensor shards;
    without, every name is taken at its word. Raises ValueError for a name that LOGICAL_AXES lacks.
    """
    table = dict(LOGICAL_AXES)
    spec: list[MeshAxes] = []
    for index, name in enumerate(names):
        if name is not None and name not in table:
            raise ValueError(f"unknown logical axis {name!r}, expected one of {sorted(table)}")
        axes = None if name is None else table[name]
        divides = shape is None or shape[index] % _mesh_axes(mesh, axes) == 0
        spec.append(axes if divides else None)
    return NamedSharding(mesh, PartitionSpec(*spec))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the leading axis of a batch is split."""
    return _mesh_axes(mesh, BATCH_AXES)


def batch_sharding(mesh: Mesh, ndim: int) -> NamedSharding:
    """Leading axis over the batch axes; the other axes whole."""
    return logical_sharding(mesh, ("batch",) + (None,) * (ndim - 1)) if ndim else logical_sharding(mesh, ())


def shard_batch(mesh: Mesh, tree: Any) -> Any:
    """Places the leaves of a host batch on the mesh, rows split over the batch axes (scalars replicated).

    With several processes each passes its own rows. Raises ValueError, naming the sizes, if the rows do not divide.
    """
    processes = jax.process_count()
    shards = batch_shards(mesh)

    def place(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        if array.ndim and (array.shape[0] * processes) % shards:
            sizes = {axis: mesh.shape[axis] for axis in BATCH_AXES}
            raise ValueError(
                f"batch leaf {jax.tree_util.keystr(path)} has {array.shape[0] * processes} rows, which do not divide "
                f"into {shards} parts (mesh axes {sizes})"
            )
        sharding = batch_sharding(mesh, array.ndim)
        if processes == 1:
            return jax.device_put(array, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(array))

    return jax.tree_util.tree_map_with_path(place, tree)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Places every leaf whole on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def param_shardings(mesh: Mesh, abstract_params: Any) -> Any:
    """Shardings for a parameter tree, as a tree without the boxes.

    abstract_params: what `jax.eval_shape` of a Linen `init` returns: leaves boxed with logical axis names (as made by
    `nn.with_logical_partitioning`), or bare ones, which are replicated. An axis its mesh axes do not divide stays
    whole.
    """

    def sharding(leaf: Any) -> NamedSharding:
        if isinstance(leaf, meta.Partitioned):
            return logical_sharding(mesh, leaf.names, leaf.value.shape)
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree.map(sharding, abstract_params, is_leaf=lambda leaf: isinstance(leaf, meta.Partitioned))


def constrain(x: jax.Array, mesh: Mesh | None, names: Sequence[str | None]) -> jax.Array:
    """Asks the compiler to lay `x` out by the logical names of its axes; the identity without a mesh."""
    if mesh is None:
        return x
    if len(names) != x.ndim:
        raise ValueError(f"{len(names)} logical axes {tuple(names)} for an array of shape {x.shape}")
    return jax.lax.with_sharding_constraint(x, logical_sharding(mesh, names, x.shape))
