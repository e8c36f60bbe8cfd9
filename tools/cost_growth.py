"""What a step costs as its tokens, their rows' length, the answers to a question, or the devices become more.

    taskset -c 1 python -m tools.cost_growth --axes tokens length group
    JAX_NUM_CPU_DEVICES=8 python -m tools.cost_growth --axes devices

tokens   gradients of rows of 128 tokens, more and more rows
length   gradients of 4,096 tokens in fewer and longer rows
group    32 tokens drawn for each of more and more answers to four questions
devices  gradients of 32 rows, split over more and more (fake) devices: all their processor time together

Prints for each a table of the least processor time of the repeats and the exponent fitted to it: 1 is in proportion, 0
is no growth. The experts' number is `tools.expert_cost`.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console

from r1jax.model.config import ModelConfig
from r1jax.model.presets import get_preset
from r1jax.sampling.decode import SamplingConfig
from r1jax.sampling.sampler import Sampler, left_pad
from r1jax.sharding import MeshConfig, make_mesh, shard_batch
from r1jax.stages.next_token import Trainer
from r1jax.stages.state import create_state
from r1jax.types import PackedBatch
from tools.command_line import run_tool
from tools.mesh_equality import Work, training_of
from tools.processor_time import Step, growth_table, least_seconds

ROW = 128  # tokens
TOKENS = 4096  # of a step whose rows become longer
QUESTIONS, PROMPT, DRAWN = 4, 64, 32


def gradients(cfg: ModelConfig, rows: int, length: int, devices: int = 1) -> Step:
    """Forward and backward pass of so many rows on `data=devices`."""
    mesh = make_mesh(MeshConfig(data=devices), jax.devices()[:devices])
    trainer = Trainer(training_of(cfg, Work(rows=rows, row_length=length)), cfg, mesh)
    params = create_state(cfg, trainer.optimizer, jax.random.key(0), mesh).params
    tokens = np.random.default_rng(0).integers(0, cfg.vocab_size, (rows, length + 1), dtype=np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    ones = np.ones((rows, length), np.float32)
    batch: Any = PackedBatch(tokens[:, :-1], tokens[:, 1:], ones.astype(np.int32), positions, ones)
    batch, totals = shard_batch(mesh, batch), jnp.full((2,), ones.sum(), jnp.float32)
    return lambda: trainer.accumulate.first(params, batch, totals)


def answers(cfg: ModelConfig, group: int) -> Step:
    """Answers of one length to the questions."""
    rows, mesh = QUESTIONS * group, make_mesh(MeshConfig(data=1), jax.devices()[:1])
    sampler = Sampler(cfg, mesh, SamplingConfig(DRAWN, chunk=DRAWN), PROMPT, rows, group_size=group)
    trainer = Trainer(training_of(cfg, Work()), cfg, mesh)
    params = create_state(cfg, trainer.optimizer, jax.random.key(0), mesh).params
    drawn = np.random.default_rng(0).integers(0, cfg.vocab_size, (QUESTIONS, PROMPT))
    tokens, lengths = left_pad(np.repeat(drawn, group, axis=0).tolist(), PROMPT)
    keys = jax.random.split(jax.random.key(1), rows)
    return lambda: sampler.sample(params, tokens, lengths, keys).response_tokens


AXES: dict[str, tuple[str, tuple[int, ...], Callable[[ModelConfig, int], Step]]] = {
    "tokens": ("tokens", (1024, 2048, 4096, 8192), lambda cfg, size: gradients(cfg, size // ROW, ROW)),
    "length": ("tokens a row", (128, 256, 512, 1024, 2048), lambda cfg, size: gradients(cfg, TOKENS // size, size)),
    "group": ("answers", (4, 8, 16, 32), answers),
    "devices": ("devices", (1, 2, 4, 8), lambda cfg, size: gradients(cfg, 32, ROW, size)),
}


def main() -> None:
    """Prints a table for each axis."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=["tokens", "length", "group"])
    parser.add_argument("--preset", default="tiny_mla_moe")
    parser.add_argument("--repeats", type=int, default=3)
    flags = parser.parse_args()
    cfg = dataclasses.replace(get_preset(flags.preset), max_positions=TOKENS)
    for axis in flags.axes:
        what, sizes, make = AXES[axis]
        if axis == "devices" and len(jax.devices()) < max(sizes):
            parser.error(f"--axes devices: {len(jax.devices())} devices; set JAX_NUM_CPU_DEVICES={max(sizes)}")
        seconds = least_seconds({size: make(cfg, size) for size in sizes}, flags.repeats)
        rich.console.Console().print(growth_table(what, f"{axis}, {flags.preset}", seconds))


if __name__ == "__main__":
    run_tool(main)
