"""Adam and its learning-rate schedules from a config, with leaves that are left alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

Array = jax.Array
Freeze = Callable[[str], bool]  # of a leaf's path, its names joined by "/"

_NAMES = ("adamw", "adam")
_SCHEDULES = ("constant", "linear", "cosine")


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

    def __post_init__(self) -> None:
        for field, value, allowed in (("name", self.name, _NAMES), ("schedule", self.schedule, _SCHEDULES)):
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

    Leaves whose path `freeze` accepts (the router bias) get a zero update, have no moments, no decay and no part in the
    global norm.
    """
    steps = []
    if config.clip_norm is not None:
        steps.append(optax.clip_by_global_norm(config.clip_norm))
    steps.append(optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps))
    if config.name == "adamw" and config.weight_decay:
        steps.append(optax.add_decayed_weights(config.weight_decay, mask=_decay_mask(config.no_decay)))
    steps.append(optax.scale_by_learning_rate(learning_rate_schedule(config)))

    def labels(params: Any) -> Any:
        return _map_paths(lambda path: "frozen" if freeze(path) else "trained", params)

    return optax.partition({"trained": optax.chain(*steps), "frozen": optax.set_to_zero()}, labels)


def init_optimizer(optimizer: optax.GradientTransformation, params: Any) -> optax.OptState:
    """The optimizer's first state, every moment laid out like its parameter and every counter on all its devices."""
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


def _state_shardings(optimizer: optax.GradientTransformation, params: Any) -> Any:
    """One sharding per leaf of the state: a leaf whose path ends in a parameter's path is laid out like it."""
    layouts = {path: leaf.sharding for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    first = next(iter(layouts.values()))
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
