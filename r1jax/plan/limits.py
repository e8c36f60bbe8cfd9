"""The largest batch and the longest rows that fit: a line through the memory of two compiled sizes.

Peak memory grows with rows by a constant for each row: activations of a block, its residuals, logits of a chunk. With
length it does too where attention runs in chunks; scores of whole rows would grow with its square, and the line then
says too much. So the answer is a prediction, to be confirmed by a plan at that size.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from r1jax.plan.chips import Topology
from r1jax.plan.compile import PlanError
from r1jax.plan.planner import Plan, make_plan, mesh_of
from r1jax.plan.steps import row_length, rows_at_once
from r1jax.plan.subject import Subject, for_responses
from r1jax.sharding import batch_shards, decoding_mesh
from r1jax.stages.pretrain import PretrainConfig
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.sft_config import SFTConfig

FITTED = ("gradients",)  # unless others are asked for: each limit costs a compilation


@dataclasses.dataclass(frozen=True)
class Limit:
    """How far one size of a step can grow."""

    step: str
    field: str  # what grows
    points: tuple[tuple[int, float], ...]  # (size, bytes of a device), compiled
    usable: float
    multiple: int  # the size grows in steps of this

    @property
    def slope(self) -> float:
        """Bytes of a device for one more."""
        (x, low), (y, high) = self.points
        return (high - low) / (y - x)

    @property
    def largest(self) -> int | None:
        """The largest size that fits; 0: not even one step of it; None: memory does not grow with it."""
        if self.slope <= 0:
            return None
        x, low = self.points[0]
        return max(math.floor((x + (self.usable - low) / self.slope) / self.multiple) * self.multiple, 0)


def find_limits(plan: Plan, names: tuple[str, ...]) -> list[Limit]:
    """Of each step of `names` (gradients, log-probs, prefill, decode): how many rows, and how long, fit.

    Every limit takes one compilation beside the plan's own, which is one of its two points. Raises PlanError for a
    machine whose compiler is not here.
    """
    if plan.topology.chip.platform != "tpu":
        raise PlanError(f"--fit: {plan.topology.name} has no compiler here, so there is no figure of memory to fit")
    found = []
    for name in names:
        known = [one.peak for one in plan.steps if one.step.name == name]
        now = known[0] if known and known[0] is not None else _peak(plan.subject, plan.topology, name)
        found += [_rows_limit(plan, name, now), _length_limit(plan, name, now)]
    return found


def _rows_limit(plan: Plan, name: str, peak: float) -> Limit:
    mesh, config = mesh_of(plan.topology, plan.subject), plan.subject.config
    sampled = name.startswith(("decode", "prefill"))
    if sampled:
        assert isinstance(config, RLConfig)
        multiple = math.lcm(batch_shards(decoding_mesh(mesh)), config.group_size)
        now = config.decoding.batch_size
        field = "decoding.batch_size"
    else:
        multiple = batch_shards(mesh)
        field = "micro_rows" if config.micro_rows else "rows"
        now = rows_at_once(config)
    other = now // 2 if now % (2 * multiple) == 0 else 2 * now
    points = sorted([(now, peak), (other, _peak(_with_rows(plan.subject, field, other), plan.topology, name))])
    return Limit(name, field, tuple(points), plan.topology.chip.device.usable, multiple)


def _with_rows(subject: Subject, field: str, size: int) -> Subject:
    config = subject.config
    changes: dict[str, Any] = {field: size}
    if isinstance(config, RLConfig) and field == "decoding.batch_size":
        changes = {"decoding": dataclasses.replace(config.decoding, batch_size=size)}
    elif isinstance(config, SFTConfig | PretrainConfig) and field == "micro_rows":
        changes["rows"] = size  # one micro-batch an update: the size of the sum does not depend on how many there are
    return dataclasses.replace(subject, config=dataclasses.replace(config, **changes))


def _length_limit(plan: Plan, name: str, peak: float) -> Limit:
    config = plan.subject.config
    if isinstance(config, RLConfig):
        now, field = config.longest_response, "tokens of a response"
    else:
        now, field = row_length(config), "tokens of a row"
    half = now // 2
    points = ((half, _peak(for_responses(plan.subject, half), plan.topology, name)), (now, peak))
    return Limit(name, field, points, plan.topology.chip.device.usable, 128)


def _peak(subject: Subject, topology: Topology, name: str) -> float:
    (one,) = make_plan(subject, topology, (name,)).steps
    assert one.peak is not None
    return one.peak
