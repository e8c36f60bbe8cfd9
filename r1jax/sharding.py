"""Meshes, and the one table that says where every named axis of a parameter or activation lives."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.core import meta
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from r1jax.processes import place

MESH_AXES = ("slice", "data", "fsdp", "sequence", "expert", "tensor")  # slowest network first
BATCH_AXES = ("slice", "data", "fsdp", "expert")  # every device of these axes has its own rows of the batch

MeshAxes = str | tuple[str, ...] | None

LOGICAL_AXES: tuple[tuple[str, MeshAxes], ...] = (
    # Parameters. Gradients, moments and master weights are laid out like their parameters.
    ("vocab", "tensor"),
    ("embed", ("fsdp", "sequence", "expert")),  # all but the experts' weights: every device keeps a part of its own
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("head_dim", None),
    ("q_lora", None),
    ("kv_lora", None),
    ("lora_rank", ("fsdp", "sequence", "expert")),  # of what MLA's latents are multiplied with
    ("mlp", "tensor"),
    ("experts", "expert"),
    ("expert_embed", ("fsdp", "sequence")),
    ("expert_mlp", "tensor"),
    ("norm", None),
    ("layers", None),
    # Activations, and batches and rollouts on the device, of which rows are split and nothing else.
    ("batch", BATCH_AXES),
    ("length", "sequence"),
    ("kv_length", None),  # of keys and values: the queries on every device of the sequence axis see them all
    ("act_embed", None),
    ("act_heads", "tensor"),
    ("act_kv_heads", "tensor"),
    ("act_head_dim", None),
    ("act_latent", None),  # MLA's, which all heads share
    ("act_mlp", "tensor"),
    ("act_vocab", "tensor"),
    ("act_experts", None),
    # The cache and the state of the sampler, on the mesh of `decoding_mesh`, where the sequence axis takes rows. Their
    # other axes are `layers`, `batch`, `act_kv_heads`, `act_head_dim` and `act_latent`.
    ("slots", None),
)

# What is split over the last of its mesh axes alone, or stays whole, where it does not divide over all of them.
# Anything else is refused.
MAY_STAY_WHOLE = {
    "kv_heads": "query heads are split over more devices than there are key-value heads: each has all of these",
    "act_kv_heads": "as kv_heads",
    "lora_rank": "512 and 1,536 channels on 1,024 devices",
}


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """What the automatic mesh has to know of a model."""

    parameters: int
    width: int
    experts: int = 0  # routed ones of a layer; 0: none


STATE_BYTES = 16  # of a trained parameter: weight, gradient and two moments in float32
SMALLEST_MEMORY = 16 * 2**30  # bytes taken for a device that does not tell its memory


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis. One of `data` and `fsdp` may be -1: the devices that are left.

    With `auto` the sizes are chosen by `automatic_sizes`, and no other field may be given.
    """

    slice: int = 1  # slices or hosts joined by a slow network: only the sums of gradients cross it
    data: int = -1
    fsdp: int = 1
    expert: int = 1
    sequence: int = 1
    tensor: int = 1
    auto: bool = False

    def __post_init__(self) -> None:
        default = {field.name: field.default for field in dataclasses.fields(self)}
        given = {axis: getattr(self, axis) for axis in MESH_AXES if getattr(self, axis) != default[axis]}
        if self.auto and given:
            raise ValueError(f"auto chooses the sizes of all axes, so none may be given, got {given}")

    def sizes(self, num_devices: int) -> tuple[int, ...]:
        """Axis sizes in the order of MESH_AXES for `num_devices` devices. ValueError if they do not multiply up."""
        if self.auto:
            raise ValueError("the sizes of an automatic mesh depend on the model: see `choose_mesh`")
        sizes = {axis: getattr(self, axis) for axis in MESH_AXES}
        free = [axis for axis, size in sizes.items() if size == -1]
        if len(free) > 1 or not set(free) <= {"data", "fsdp"}:
            raise ValueError(f"only one of data and fsdp may be -1, got {sizes}")
        if any(size < 1 for axis, size in sizes.items() if axis not in free):
            raise ValueError(f"mesh axis sizes must be positive, got {sizes}")
        fixed = math.prod(size for axis, size in sizes.items() if axis not in free)
        if num_devices % fixed if free else num_devices != fixed:
            works = " or ".join(f"{axis} = {size}" for axis, size in _mended(sizes, num_devices)) or "none"
            raise ValueError(
                f"mesh axes {sizes} do not multiply up to {num_devices} devices (-1 takes what is left); nearest "
                f"size of one axis that mends it: {works}"
            )
        for axis in free:
            sizes[axis] = num_devices // fixed
        return tuple(sizes[axis] for axis in MESH_AXES)


def _mended(sizes: Mapping[str, int], devices: int) -> list[tuple[str, int]]:
    """Sizes of one axis with which all of them multiply up to `devices`: of each axis the nearest, if there is one.

    Of an axis that is not in use only if it is one of those that any model takes.
    """
    free = any(size == -1 for size in sizes.values())
    found = []
    for axis, size in sizes.items():
        rest = math.prod(abs(other) for name, other in sizes.items() if name != axis)
        if size == -1 or (size == 1 and axis not in ("data", "fsdp")) or devices % rest:
            continue
        whole = devices // rest  # all that is left; less of it where another axis takes what is left then
        works = [part for part in range(1, whole + 1) if whole % part == 0] if free else [whole]
        found.append((axis, min(works, key=lambda part: abs(part - size))))
    return found


def automatic_sizes(model: ModelSize, slices: int, devices: int, memory: int | None) -> MeshConfig:
    """The default mesh for training `model` on `slices` slices of `devices` devices with `memory` bytes each.

    1. slice = the slices that the devices belong to (1 where they do not tell).
    2. A model whose float32 weights, gradients and two moments (16 bytes a parameter) take at most half of a device's
       memory is kept whole on every device: data = devices. Memory that is not known counts as 16 GiB.
    3. A larger one is split: expert = the greatest common divisor of experts, devices and width; fsdp = as many of the
       remaining devices as divide the width; data = what is left.

    sequence and tensor stay 1: whether they pay depends on lengths and links, which `python -m tools.plan` looks at.
    """
    if model.parameters * STATE_BYTES <= (memory or SMALLEST_MEMORY) // 2:
        return MeshConfig(slice=slices, data=devices)
    expert = math.gcd(model.experts, devices, model.width) if model.experts else 1
    fsdp = math.gcd(devices // expert, model.width // expert)
    return MeshConfig(slice=slices, data=devices // (expert * fsdp), fsdp=fsdp, expert=expert)


def choose_mesh(config: MeshConfig, model: ModelSize, devices: Sequence[jax.Device] | None = None) -> MeshConfig:
    """The configuration itself, or with `auto` the one of `automatic_sizes` for `devices` (all of them by default)."""
    if not config.auto:
        return config
    if devices is None:
        devices = jax.devices()
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    stats = devices[0].memory_stats() or {}
    return automatic_sizes(model, slices, len(devices) // slices, stats.get("bytes_limit"))


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with axes MESH_AXES over `devices` (all of them by default).

    Slices are told apart by the devices' `slice_index`, else by their process, else (one process) by their order;
    within a slice the devices stand in the order that its network likes best. The axes are AxisType.Auto: the compiler
    places what carries no explicit sharding. Raises ValueError, naming sizes and counts, if the axes do not multiply up
    to the devices, or the slices are not those of the machine.
    """
    if devices is None:
        devices = jax.devices()
    sizes = config.sizes(len(devices))
    parts = [
        mesh_utils.create_device_mesh(sizes[1:], part, allow_split_physical_axes=True)
        for part in _slices(devices, config.slice)
    ]
    return Mesh(np.stack(parts), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _slices(devices: Sequence[jax.Device], count: int) -> list[list[jax.Device]]:
    """The devices in `count` parts, no slice or process of the machine in two of them."""
    groups = _grouped(devices, "slice_index")
    if len(groups) > 1 and len(groups) != count:
        raise ValueError(f"mesh axis slice = {count}, but the devices are those of {len(groups)} slices")
    if len(groups) == 1 and count > 1:
        groups = _grouped(devices, "process_index")
        if len(groups) > 1 and len(groups) % count:
            raise ValueError(f"mesh axis slice = {count} does not divide the {len(groups)} processes of the devices")
    counts = [len(group) for group in groups]
    if len(set(counts)) > 1:
        raise ValueError(
            f"mesh axis slice = {count}, but the slices or processes have {counts} devices, not all as many"
        )
    ordered = [device for group in groups for device in group]
    size = len(ordered) // count
    return [ordered[first : first + size] for first in range(0, len(ordered), size)]


def _grouped(devices: Sequence[jax.Device], attribute: str) -> list[list[jax.Device]]:
    groups: dict[int, list[jax.Device]] = {}
    for device in devices:
        groups.setdefault(getattr(device, attribute, 0), []).append(device)
    return [groups[index] for index in sorted(groups)]


def decoding_mesh(mesh: Mesh) -> Mesh:
    """The same devices with the sequence axis joined to fsdp, for sampling: a step of one token has no length to split,
    so the devices of that axis take rows, and with them their share of the cache.

    A parameter lies where it lay, as the sequence axis is part of `embed` and `expert_embed` beside fsdp, unless it has
    a `lora_rank` that fsdp x sequence x expert does not divide: that is split over sequence and expert in training, and
    here, where sequence is part of fsdp, over expert alone, so that it has to be moved.
    """
    if mesh.shape["sequence"] == 1:
        return mesh
    sizes = {**mesh.shape, "fsdp": mesh.shape["fsdp"] * mesh.shape["sequence"], "sequence": 1}
    return Mesh(mesh.devices.reshape(tuple(sizes.values())), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def axes_of(name: str) -> tuple[str, ...]:
    """The mesh axes that split a logical axis. Raises ValueError for a name that LOGICAL_AXES lacks."""
    table = dict(LOGICAL_AXES)
    if name not in table:
        raise ValueError(f"unknown logical axis {name!r}, expected one of {sorted(table)}")
    axes = table[name]
    return (axes,) if isinstance(axes, str) else axes or ()


def _parts(sizes: Mapping[str, int], axes: Sequence[str]) -> int:
    return math.prod(sizes[axis] for axis in axes)


def indivisible(field: str, size: int, axes: Sequence[str], sizes: Mapping[str, int]) -> str | None:
    """What is wrong with splitting `size` over mesh axes of these sizes, and what would work.

    None if nothing is wrong.
    """
    parts = _parts(sizes, axes)
    if size % parts == 0:
        return None
    split = " x ".join(f"{axis} = {sizes[axis]}" for axis in axes)
    larger = (size // parts + 1) * parts
    works = [f"{field} = " + " or ".join(str(n) for n in (larger - parts, larger) if n)]
    divisors = [part for part in range(1, size + 1) if size % part == 0]
    near = [max(part for part in divisors if part < parts), min((p for p in divisors if p > parts), default=None)]
    works.append(f"{' x '.join(axes)} = " + " or ".join(str(n) for n in near if n))
    return (
        f"{field}: {size} does not divide into {parts} equal parts (mesh: {split}); nearest that do: "
        f"{', or '.join(works)}"
    )


def logical_sharding(mesh: Mesh, names: Sequence[str | None], shape: Sequence[int] | None = None) -> NamedSharding:
    """The sharding of an array whose axes are called `names` (None: not sharded).

    With `shape`, an axis of MAY_STAY_WHOLE that its mesh axes do not divide is split over fewer of them or stays whole,
    e.g. one key-value head on two tensor shards; without, every name is taken at its word. Raises ValueError for a name
    that LOGICAL_AXES lacks, for names that want the same mesh axis twice, and for any other size that its mesh axes do
    not divide.
    """
    spec: list[MeshAxes] = []
    owner: dict[str, str] = {}
    for index, name in enumerate(names):
        axes = () if name is None else axes_of(name)
        if name is not None and shape is not None:
            problem = indivisible(name, shape[index], axes, mesh.shape)
            if problem and name not in MAY_STAY_WHOLE:
                raise ValueError(f"array of shape {tuple(shape)} with axes {tuple(names)}: {problem}")
            while shape[index] % _parts(mesh.shape, axes):
                axes = axes[1:]
        for axis in axes:
            if axis in owner:
                raise ValueError(
                    f"mesh axis {axis!r} splits both {owner[axis]!r} and {name!r} of an array with axes {tuple(names)}"
                )
            owner[axis] = str(name)
        spec.append((axes[0] if len(axes) == 1 else axes) or None)
    return NamedSharding(mesh, PartitionSpec(*spec))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the leading axis of a batch is split."""
    return _parts(mesh.shape, BATCH_AXES)


def batch_sharding(mesh: Mesh, ndim: int) -> NamedSharding:
    """Leading axis over the batch axes; the other axes whole."""
    return logical_sharding(mesh, ("batch",) + (None,) * (ndim - 1)) if ndim else logical_sharding(mesh, ())


def shard_batch(mesh: Mesh, tree: Any) -> Any:
    """Places the leaves of a host batch on the mesh, rows split over the batch axes (scalars replicated).

    With several processes all pass the whole batch, and each places its own rows. Raises ValueError, naming the sizes,
    if the rows do not divide.
    """
    shards = batch_shards(mesh)

    def placed(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        if array.ndim and array.shape[0] % shards:
            sizes = {axis: mesh.shape[axis] for axis in BATCH_AXES}
            raise ValueError(
                f"batch leaf {jax.tree_util.keystr(path)} has {array.shape[0]} rows, which do not divide into {shards} "
                f"parts (mesh axes {sizes})"
            )
        return place(array, batch_sharding(mesh, array.ndim))

    return jax.tree_util.tree_map_with_path(placed, tree)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Places every leaf whole on every device."""
    return jax.tree.map(lambda leaf: place(leaf, NamedSharding(mesh, PartitionSpec())), tree)


def param_shardings(mesh: Mesh, abstract_params: Any, whole: Collection[str] = ()) -> Any:
    """Shardings for a parameter tree, as a tree without the boxes.

    abstract_params: what `jax.eval_shape` of a Linen `init` returns: leaves boxed with logical axis names (as made by
    `nn.with_logical_partitioning`), or bare ones, which are replicated. whole: logical axes that are not split here,
    whatever the table says. Raises ValueError as `logical_sharding`.
    """

    def sharding(leaf: Any) -> NamedSharding:
        if isinstance(leaf, meta.Partitioned):
            names = [None if name in whole else name for name in leaf.names]
            return logical_sharding(mesh, names, leaf.value.shape)
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree.map(sharding, abstract_params, is_leaf=lambda leaf: isinstance(leaf, meta.Partitioned))


def constrain(x: jax.Array, mesh: Mesh | None, names: Sequence[str | None]) -> jax.Array:
    """Asks the compiler to lay `x` out by the logical names of its axes; the identity without a mesh."""
    if mesh is None:
        return x
    if len(names) != x.ndim:
        raise ValueError(f"{len(names)} logical axes {tuple(names)} for an array of shape {x.shape}")
    return jax.lax.with_sharding_constraint(x, logical_sharding(mesh, names, x.shape))
