"""The same work on meshes of many shapes and on one device: how far losses, gradients, updates and log-probs differ.

    JAX_NUM_CPU_DEVICES=8 python -m tools.mesh_equality [--model PRESET] [--shapes fsdp=2,expert=4 tensor=2 ...]

For every shape: loss and gradients of a training step and what the balancing bias becomes, 20 updates, the trainer's
log-probs of recorded answers, and answers drawn freely with the same keys, with the first token that differs. A number
is the largest difference of an array over its largest entry, the largest over all arrays; 0 means the same bits.

With several processes (`--coordinator HOST:PORT --num_processes N --process_id I --local_devices D`, one command for
each) the reference is one device of each process, and only meshes over all devices are possible.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax.core import meta
from jax.sharding import Mesh

from r1jax.data.packing import pack_policy
from r1jax.model.config import MLAConfig, ModelConfig, MoEConfig, RopeConfig
from r1jax.model.mesh_check import check_mesh
from r1jax.model.presets import get_preset
from r1jax.model.transformer import Transformer, abstract_params
from r1jax.optim import OptimizerConfig
from r1jax.processes import Launch, are_several, finish, is_writer, place, start, whole
from r1jax.sampling.decode import SamplingConfig
from r1jax.sampling.sampler import Sampler
from r1jax.sharding import MESH_AXES, MeshConfig, make_mesh, param_shardings, shard_batch
from r1jax.stages.next_token import BalanceConfig, Trainer, Training
from r1jax.stages.rl import score_tokens
from r1jax.stages.state import state_from_params
from r1jax.types import PackedBatch, Params, Rollout
from tools.command_line import run_tool

SHAPES = (
    "data=1",
    "data=2",
    "fsdp=2",
    "expert=2",
    "sequence=2",
    "tensor=2",
    "slice=2",
    "fsdp=2,expert=2",
    "sequence=2,tensor=2",
    "data=8",
    "fsdp=8",
    "expert=8",
    "sequence=4,expert=2",
    "data=2,fsdp=2,expert=2",
    "slice=2,expert=2,tensor=2",
    "fsdp=2,sequence=2,expert=2",
    "data=2,sequence=2,tensor=2",
)


SMALL = ModelConfig(  # every part of the large model, at the size of a test
    vocab_size=40,
    width=32,
    num_dense_layers=0,
    ffn_dim=48,
    attention=MLAConfig(
        num_heads=2, q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=12, qk_rope_head_dim=4, v_head_dim=16
    ),
    rope=RopeConfig(interleaved=True),
    num_moe_layers=2,
    moe=MoEConfig(num_experts=8, num_active=2, expert_dim=24, num_groups=4, num_active_groups=2, routed_scaling=2.5),
    mtp_depth=1,
)


@dataclasses.dataclass(frozen=True)
class Work:
    """What is done on every mesh: sizes small enough for many fake devices on one CPU."""

    updates: int = 20
    rows: int = 16
    row_length: int = 32
    prompt_width: int = 8
    new_tokens: int = 24
    learning_rate: float = 1e-3
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Seen:
    """What one mesh gave, as host arrays."""

    loss: np.ndarray  # [] of the first batch
    gradients: Params
    load: np.ndarray  # [M, E] of the first batch
    bias: np.ndarray  # [M, E] after the first update
    losses: np.ndarray  # [updates]
    params: Params  # after the last update
    rollout: Rollout  # drawn with the reference's parameters after the last update
    logprobs: np.ndarray  # [rows, T] of the reference's rollout


def parse_shape(text: str) -> MeshConfig:
    """'fsdp=2,expert=4' -> MeshConfig with data=1 unless it is named. ValueError names the part that is wrong."""
    sizes = {"data": 1}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in MESH_AXES or not size.isdecimal() or int(size) < 1:
            raise ValueError(
                f"--shapes: {part!r} in {text!r}, expected AXIS=SIZE with an axis of {', '.join(MESH_AXES)}"
            )
        sizes[axis] = int(size)
    return MeshConfig(**sizes)


def num_devices(config: MeshConfig) -> int:
    """Devices of a mesh whose sizes are all given."""
    return math.prod(getattr(config, axis) for axis in MESH_AXES)


def random_params(cfg: ModelConfig, seed: int) -> Params:
    """Random numbers for every parameter, the selection biases too: nothing may hide behind a zero."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        return (0.1 * rng.normal(size=leaf.shape) + (path[-1].key == "scale")).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, meta.unbox(abstract_params(cfg)))


def random_rows(vocab: int, rows: int, length: int, seed: int) -> PackedBatch:
    """Rows of two documents and some padding, of different lengths in every row."""
    rng = np.random.default_rng(seed)
    shape = (rows, length)
    tokens, ids = rng.integers(1, vocab, shape).astype(np.int32), np.zeros(shape, np.int32)
    positions, mask = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    for row in range(rows):
        first, second = rng.integers(2, length // 2, 2)
        for number, (begin, end) in enumerate([(0, first), (first, first + second)]):
            ids[row, begin:end], positions[row, begin:end] = number + 1, np.arange(end - begin)
            mask[row, begin : end - 1] = 1
    tokens = np.where(ids > 0, tokens, 0).astype(np.int32)
    targets = np.where(mask > 0, np.roll(tokens, -1, axis=1), 0).astype(np.int32)
    return PackedBatch(tokens, targets, ids, positions, mask)  # type: ignore[arg-type]


def training_of(cfg: ModelConfig, work: Work) -> Training:
    """Pretraining with every term of its loss."""
    return Training(
        name="mesh_equality",
        steps=work.updates,
        rows=work.rows,
        micro_rows=0,
        row_length=work.row_length,
        seed=work.seed,
        optimizer=OptimizerConfig(learning_rate=work.learning_rate),
        balance=BalanceConfig(),
        mtp_weight=0.3 if cfg.mtp_depth else 0.0,
        log_every=1,
        checkpoint_every=work.updates,
        keep=1,
        tensorboard=False,
        wandb_project="",
    )


def on_hosts(tree: Any) -> Any:
    """The arrays whole, as numpy arrays, in every process."""
    return jax.tree.map(whole, tree)


def see(cfg: ModelConfig, mesh: Mesh, work: Work, reference: Seen | None) -> Seen:
    """Does the work on a mesh; `reference` is None for the first one, whose answers the others are asked about."""
    shardings = param_shardings(mesh, abstract_params(cfg))
    trainer = Trainer(training_of(cfg, work), cfg, mesh)

    def placed(params: Params) -> Params:
        return jax.tree.map(place, params, shardings)

    state = state_from_params(trainer.optimizer, placed(random_params(cfg, work.seed)), mesh)
    batches = [random_rows(cfg.vocab_size, work.rows, work.row_length, work.seed + i) for i in range(work.updates)]
    totals = np.array([batches[0].loss_mask.sum(), 2 * work.rows], np.float32)
    first = on_hosts(trainer.accumulate(None, state.params, shard_batch(mesh, batches[0]), totals))
    losses, bias = [], None
    for batch in batches:
        state, metrics = trainer.update(state, batch)
        losses.append(whole(metrics["loss"]))
        bias = router_bias(state.params) if bias is None else bias
    params = on_hosts(state.params)
    trained = params if reference is None else reference.params
    rollout = draw(cfg, mesh, work, placed(trained))
    answers = rollout if reference is None else reference.rollout
    assert bias is not None
    return Seen(
        loss=first.sums["ce_sum"] / first.sums["ce_tokens"],
        gradients=first.grads,
        load=first.load,
        bias=bias,
        losses=np.stack(losses),
        params=params,
        rollout=rollout,
        logprobs=score(cfg, mesh, work, placed(trained), answers),
    )


def router_bias(params: Params) -> np.ndarray:
    """The selection biases of the layers with experts; nothing for a model without."""
    return whole(params["moe_layers"]["moe"]["router"]["bias"]) if "moe_layers" in params else np.zeros((0, 0))


def draw(cfg: ModelConfig, mesh: Mesh, work: Work, params: Params) -> Rollout:
    """Answers to random prompts at temperature 1."""
    rng = np.random.default_rng(work.seed)
    prompts = rng.integers(1, cfg.vocab_size, (work.rows, work.prompt_width)).astype(np.int32)
    lengths = (np.arange(work.rows) % work.prompt_width + 1).astype(np.int32)
    sampling = SamplingConfig(work.new_tokens, stop_tokens=(0,), chunk=work.new_tokens)
    sampler = Sampler(cfg, mesh, sampling, work.prompt_width, work.rows)
    return sampler.sample(params, prompts, lengths, jax.random.split(jax.random.key(work.seed), work.rows))


def score(cfg: ModelConfig, mesh: Mesh, work: Work, params: Params, rollout: Rollout) -> np.ndarray:
    """The trainer's log-probs of a rollout's tokens, 0 elsewhere."""
    policy = pack_policy(
        rollout.prompt_tokens,
        rollout.prompt_lengths,
        rollout.response_tokens,
        rollout.response_lengths,
        work.prompt_width + work.new_tokens,
        rows=work.rows,
    )
    scored = jax.jit(functools.partial(score_tokens, Transformer(cfg, mesh), 1.0))
    return whole(scored(params, shard_batch(mesh, policy.packed))[0]) * np.asarray(policy.loss_mask)


def relative_difference(ours: Any, theirs: Any) -> float:
    """Largest difference of a leaf over that leaf's largest entry, over all leaves."""

    def difference(a: Any, b: Any) -> float:
        return float(np.abs(np.asarray(a) - np.asarray(b)).max(initial=0) / max(np.abs(b).max(initial=0), 1e-9))

    return max(jax.tree.leaves(jax.tree.map(difference, ours, theirs)))


def first_difference(ours: Rollout, theirs: Rollout) -> str:
    """The first drawn token that differs, as 'token T of row R' with the least T; 'none of N' if all are the same."""
    differ = np.asarray(ours.response_tokens) != np.asarray(theirs.response_tokens)
    if not differ.any():
        return f"none of {int(np.sum(theirs.response_lengths))}"
    token = int(np.flatnonzero(differ.any(axis=0))[0])
    return f"token {token} of row {int(np.flatnonzero(differ[:, token])[0])}"


def differences(ours: Seen, theirs: Seen) -> dict[str, Any]:
    """One row of the table."""
    same = np.asarray(ours.rollout.response_tokens) == np.asarray(theirs.rollout.response_tokens)
    before = np.cumprod(same, axis=1).astype(bool)
    drawn = [np.where(before, np.asarray(seen.rollout.sampler_logprobs), 0) for seen in (ours, theirs)]
    return {
        "loss": relative_difference(ours.loss, theirs.loss),
        "gradients": relative_difference(ours.gradients, theirs.gradients),
        "load": relative_difference(ours.load, theirs.load),
        "bias update": relative_difference(ours.bias, theirs.bias),
        "log-probs": relative_difference(ours.logprobs, theirs.logprobs),
        "losses of all updates": relative_difference(ours.losses, theirs.losses),
        "parameters after them": relative_difference(ours.params, theirs.params),
        "sampler's log-probs": relative_difference(*drawn),
        "first token that differs": first_difference(ours.rollout, theirs.rollout),
    }


def compare(cfg: ModelConfig, shapes: Sequence[str], work: Work) -> list[dict[str, Any]]:
    """One row for every shape, the reference being one device."""
    configs = [parse_shape(shape) for shape in shapes]
    count = jax.device_count()
    for shape, config in zip(shapes, configs, strict=True):
        needed = num_devices(config)
        if needed > count or (are_several() and needed != count):
            raise ValueError(f"--shapes: {shape} is of {needed} devices, and there are {count}")
        check_mesh(cfg, {axis: getattr(config, axis) for axis in MESH_AXES}, work.row_length)
    alone = see(cfg, make_mesh(MeshConfig(data=1), jax.local_devices()[:1]), work, None)
    rows = []
    for shape, config in zip(shapes, configs, strict=True):
        began = time.monotonic()
        seen = see(cfg, make_mesh(config, jax.devices()[: num_devices(config)]), work, alone)
        row = {"mesh": shape, "devices": num_devices(config), **differences(seen, alone)}
        rows.append(row)
        if is_writer():
            print(f"{time.monotonic() - began:.0f} s: {json.dumps(row)}", flush=True)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""

    def shown(value: Any) -> str:
        return f"{value:.1e}" if isinstance(value, float) and value else str(value)

    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([shown(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Parses the command line, measures, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", help="a preset, computed in float32, or 'small'")
    parser.add_argument("--shapes", nargs="+", help="such as fsdp=2,expert=4; default: all that the devices allow")
    parser.add_argument("--updates", type=int, default=Work.updates)
    parser.add_argument("--rows", type=int, default=Work.rows, help="a multiple of the batch shards of every shape")
    parser.add_argument("--out", type=pathlib.Path, help="also write the rows to this JSON file")
    parser.add_argument("--coordinator", default="")
    for name in ("num_processes", "process_id", "local_devices"):
        parser.add_argument(f"--{name}", type=int)
    args = parser.parse_args()
    start(
        Launch(
            coordinator=args.coordinator,
            num_processes=args.num_processes,
            process_id=args.process_id,
            local_devices=args.local_devices,
        )
    )
    cfg = SMALL if args.model == "small" else get_preset(args.model, dtype="float32")
    allowed = {jax.device_count()} if are_several() else range(1, jax.device_count() + 1)
    shapes = args.shapes or [shape for shape in SHAPES if num_devices(parse_shape(shape)) in allowed]
    rows = compare(cfg, shapes, Work(updates=args.updates, rows=args.rows))
    if is_writer():
        print(table(rows))
        if args.out:
            args.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    finish()


if __name__ == "__main__":
    run_tool(main)
