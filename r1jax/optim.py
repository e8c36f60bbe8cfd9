"""Adam and its learning-rate schedules from a config, with leaves that are left alone, and its state's memory.

Bytes per trained parameter: 4 for each moment in float32, 2 in bfloat16; 4 for a master weight. DeepSeek-V3 keeps both
moments in bfloat16 and master weights and gradients in float32 (2412.19437, section 3.3.1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

Array = jax.Array
Freeze = Callable[[str], bool]  # of a leaf's path, its names joined by "/"

_NAMES = ("adamw", "adam")
_SCHEDULES = ("constant", "linear", "cosine")
_MOMENT_DTYPES = ("float32", "bfloat16")
_MEMORIES = ("device", "host")
_LARGEST_B2 = 0.98  # of a bfloat16 nu: at 0.99 rounding can hold it 20 % off what it follows
HOST_MEMORY = "pinned_host"  # JAX's name of host memory that the device reads directly


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam with decoupled weight decay (Loshchilov & Hutter 1711.05101) under a warm-up and decay schedule.

    Betas, weight decay, clip norm and the final tenth are DeepSeek-V3's (2412.19437, section 4.2); the learning rate
    and its shape are the run's own, eps and the leaves without decay are not published.
    """

    learning_rate: float = 3e-4  # the peak, reached at the end of the warm-up
    name: str = "adamw"  # 'adamw', or 'adam': no weight decay
    schedule: str = "constant"  # 'constant', 'linear' or 'cosine': the shape of the decay
    warmup_steps: int = 0  # step t of the warm-up runs at peak * (t + 1) / warmup_steps
    stable_steps: int = 0  # steps at the peak between warm-up and decay
    total_steps: int | None = None  # where the decay ends; required unless the schedule is constant
    final_fraction: float = 0.1  # final learning rate / peak
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    no_decay: tuple[str, ...] = ("scale", "bias")  # last names of leaves without weight decay: norms and biases
    clip_norm: float | None = 1.0  # of all trained gradients together; None: no clipping
    # Types in which the moments are kept; they are updated in float32 and rounded to nearest, which holds a bfloat16
    # moment within 2^-9 / (1 - beta) of what it follows: 2 % of mu, 4 % of nu (2 % of the step) at these betas.
    mu_dtype: str = "float32"
    nu_dtype: str = "float32"
    master_weights: bool = False  # a float32 copy of parameters that are not, to which updates add up
    memory: str = "device"  # of moments and master weights: 'device' or 'host'; each update moves them there and back

    def __post_init__(self) -> None:
        for field, value, allowed in (
            ("name", self.name, _NAMES),
            ("schedule", self.schedule, _SCHEDULES),
            ("mu_dtype", self.mu_dtype, _MOMENT_DTYPES),
            ("nu_dtype", self.nu_dtype, _MOMENT_DTYPES),
            ("memory", self.memory, _MEMORIES),
        ):
            if value not in allowed:
                raise ValueError(f"{field}: unknown value {value!r}; allowed: {', '.join(allowed)}")
        if self.schedule != "constant":
            if self.total_steps is None:
                raise ValueError(f"total_steps: required by the {self.schedule} schedule")
            if self.total_steps <= self.warmup_steps + self.stable_steps:
                raise ValueError(
                    f"total_steps: {self.total_steps} leaves no step for the decay after {self.warmup_steps} of "
                    f"warm-up and {self.stable_steps} at the peak"
                )
        if self.nu_dtype == "bfloat16" and self.b2 > _LARGEST_B2:
            raise ValueError(
                f"nu_dtype: bfloat16 rounds away the small steps of b2 = {self.b2}; at most {_LARGEST_B2}, or float32"
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm: must be positive or None, got {self.clip_norm}")


def learning_rate_schedule(config: OptimizerConfig) -> Callable[[Any], Array]:
    """The learning rate, float32, as a function of the number of updates already made."""
    peak, final = config.learning_rate, config.learning_rate * config.final_fraction
    decay_start = config.warmup_steps + config.stable_steps

    def schedule(step: Any) -> Array:
        step = jnp.asarray(step, jnp.float32)
        rate = jnp.float32(peak)
        if config.schedule != "constant":
            assert config.total_steps is not None  # checked by the config
            progress = jnp.clip((step - decay_start) / (config.total_steps - decay_start), 0.0, 1.0)
            if config.schedule == "cosine":
                progress = 0.5 * (1.0 - jnp.cos(jnp.pi * progress))
            rate = peak + (final - peak) * progress
        return rate * jnp.minimum(1.0, (step + 1.0) / max(config.warmup_steps, 1))

    return schedule


def make_optimizer(config: OptimizerConfig, freeze: Freeze = lambda path: False) -> optax.GradientTransformation:
    """Clip by the global norm, Adam, weight decay, learning rate.

    Leaves whose path `freeze` accepts (the router bias) get a zero update, have no moments, no decay, no master weight
    and no part in the global norm.
    """
    steps = []
    if config.clip_norm is not None:
        steps.append(optax.clip_by_global_norm(config.clip_norm))
    steps.append(_adam(config))
    if config.name == "adamw" and config.weight_decay:
        steps.append(optax.add_decayed_weights(config.weight_decay, mask=_decay_mask(config.no_decay)))
    steps.append(optax.scale_by_learning_rate(learning_rate_schedule(config)))

    def labels(params: Any) -> Any:
        return _map_paths(lambda path: "frozen" if freeze(path) else "trained", params)

    trained = optax.chain(*steps)
    if config.master_weights:
        trained = _with_master_weights(trained)
    both = optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)
    return _HostOptimizer(*_on_host(both)) if config.memory == "host" else both


class _HostOptimizer(optax.GradientTransformation):
    """An optimizer whose state, but for its counters, lies in the host's memory between updates."""


def init_optimizer(optimizer: optax.GradientTransformation, params: Any) -> optax.OptState:
    """The optimizer's first state, every moment laid out like its parameter and every counter on all its devices.

    Raises ValueError if it belongs in the host's memory and the platform has none that devices can read.
    """
    return jax.jit(optimizer.init, out_shardings=_state_shardings(optimizer, params))(params)


def abstract_optimizer(optimizer: optax.GradientTransformation, params: Any) -> optax.OptState:
    """The same state as shapes, dtypes and shardings: what a checkpoint is restored onto.

    `params` may itself be of ShapeDtypeStructs with shardings.
    """
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(optimizer.init, params),
        _state_shardings(optimizer, params),
    )


def global_norm(tree: Any, freeze: Freeze = lambda path: False) -> Array:
    """Euclidean norm over all leaves that are not frozen, a float32 scalar: what `clip_norm` is compared with."""
    kept = _map_paths(lambda path: not freeze(path), tree)
    leaves = [leaf for leaf, keep in zip(jax.tree.leaves(tree), jax.tree.leaves(kept), strict=True) if keep]
    return optax.tree.norm(leaves).astype(jnp.float32)


def in_host_memory(sharding: Any) -> Any:
    """The same layout in the host's memory. Raises ValueError where a platform has none that its devices read."""
    device = next(iter(sharding.device_set))
    if device in jax.local_devices():  # those of a plan, and of other processes, cannot be asked
        kinds = sorted(memory.kind for memory in device.addressable_memories())
        if HOST_MEMORY not in kinds:
            raise ValueError(
                f"memory: 'host' needs memory of kind {HOST_MEMORY!r}, and {device.platform} devices have {kinds}"
            )
    return sharding.with_memory_kind(HOST_MEMORY)


def in_device_memory(sharding: Any) -> Any:
    """The same layout in the devices' own memory."""
    return sharding.with_memory_kind("device") if sharding.memory_kind == HOST_MEMORY else sharding


def move(tree: Any, layout: Callable[[Any], Any]) -> Any:
    """Every array with its sharding changed by `layout`, such as `in_host_memory`; where it is so already, as it is."""
    return jax.tree.map(lambda leaf: jax.device_put(leaf, layout(leaf.sharding)), tree)


def _adam(config: OptimizerConfig) -> optax.GradientTransformation:
    """optax's Adam in float32, whose moments are kept in their own types, whatever those of the parameters."""
    inner = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)

    def stored(state: optax.ScaleByAdamState) -> optax.ScaleByAdamState:
        return state._replace(mu=_cast(state.mu, config.mu_dtype), nu=_cast(state.nu, config.nu_dtype))

    def init(params: Any) -> optax.ScaleByAdamState:
        return stored(inner.init(params))

    def update(grads: Any, state: optax.ScaleByAdamState, params: Any = None) -> Any:
        exact = state._replace(mu=_cast(state.mu, "float32"), nu=_cast(state.nu, "float32"))
        updates, new = inner.update(_cast(grads, "float32"), exact, params)
        return updates, stored(new)

    return optax.GradientTransformation(init, update)


class MasterState(NamedTuple):
    """State of an optimizer and the weights it really changes."""

    inner: optax.OptState
    master: Any  # float32, the parameters' tree


def _with_master_weights(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on float32 copies of the parameters; the updates lead the parameters to the rounded copies."""

    def init(params: Any) -> MasterState:
        if all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params)):
            raise ValueError("master_weights: the parameters are float32 themselves; param_dtype 'bfloat16' is meant")
        master = _cast(params, "float32")
        return MasterState(inner.init(master), master)

    def update(grads: Any, state: MasterState, params: Any) -> tuple[Any, MasterState]:
        updates, inner_state = inner.update(grads, state.inner, state.master)
        master = optax.apply_updates(state.master, updates)
        # In float32, so that parameter + update, rounded to the parameter's type, is the rounded copy.
        return optax.tree.sub(master, _cast(params, "float32")), MasterState(inner_state, master)

    return optax.GradientTransformation(init, update)


def _on_host(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` with its arrays taken to the device for an update, and back to the host after it; runs under jit."""

    def place(state: Any, space: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.device_put(leaf, space) if leaf.ndim else leaf, state)

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        updates, new = inner.update(grads, place(state, jax.memory.Space.Device), params)
        return updates, place(new, jax.memory.Space.Host)

    return optax.GradientTransformation(inner.init, update)


def _cast(tree: Any, dtype: str) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(dtype)), tree)


def _state_shardings(optimizer: optax.GradientTransformation, params: Any) -> Any:
    """One sharding per leaf of the state: a leaf whose path ends in a parameter's path is laid out like it."""
    layouts = {path: leaf.sharding for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    first = next(iter(layouts.values()))
    if isinstance(optimizer, _HostOptimizer):
        layouts = {path: in_host_memory(sharding) for path, sharding in layouts.items()}
    counter = NamedSharding(first.mesh, PartitionSpec()) if isinstance(first, NamedSharding) else first

    def layout(path: tuple[Any, ...], _: Any) -> Any:
        return next((layouts[path[i:]] for i in range(len(path)) if path[i:] in layouts), counter)

    return jax.tree_util.tree_map_with_path(layout, jax.eval_shape(optimizer.init, params))


def _decay_mask(no_decay: tuple[str, ...]) -> Callable[[Any], Any]:
    return lambda params: _map_paths(lambda path: path.rsplit("/", 1)[-1] not in no_decay, params)


def _map_paths(function: Callable[[str], Any], tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: function(jax.tree_util.keystr(path, simple=True, separator="/")), tree
    )
