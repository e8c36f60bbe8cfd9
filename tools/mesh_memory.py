"""Bytes on one device as each mesh axis grows, the work staying the same. Programs are compiled, nothing runs.

    JAX_NUM_CPU_DEVICES=8 python -m tools.mesh_memory [--axes fsdp expert ...] [--sizes 1 2 4 8]

Parameters, optimiser state and cache are the device's shards of what a run keeps; activations are the compiler's figure
for everything temporary in the forward and backward pass of a training batch (`temp_size_in_bytes`), weights that it
gathers on the way included; gradients are that program's result, as large as the parameters.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from r1jax.model.config import MLAConfig, ModelConfig
from r1jax.model.mesh_check import check_mesh
from r1jax.model.presets import get_preset
from r1jax.sampling.decode import SamplingConfig
from r1jax.sampling.sampler import Sampler
from r1jax.sharding import MESH_AXES, MeshConfig, batch_sharding, make_mesh
from r1jax.stages.next_token import Trainer
from r1jax.stages.state import abstract_state
from r1jax.types import PackedBatch
from tools.command_line import run_tool
from tools.mesh_equality import Work, training_of

WORK = Work(rows=8, row_length=512, prompt_width=64, new_tokens=448)


def model_of_eight() -> ModelConfig:
    """The tiny mixture of experts with eight heads and a wider MLP, so that 8 divides every axis."""
    tiny = get_preset("tiny_mla_moe")
    assert isinstance(tiny.attention, MLAConfig)
    return dataclasses.replace(tiny, attention=dataclasses.replace(tiny.attention, num_heads=8), max_positions=1024)


def bytes_here(tree: Any) -> int:
    """Bytes of one device's shards of abstract arrays with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def memory(cfg: ModelConfig, config: MeshConfig, devices: int, work: Work) -> dict[str, int]:
    """Bytes on each of `devices` devices by what they hold."""
    mesh = make_mesh(config, jax.devices()[:devices])
    check_mesh(cfg, mesh, work.row_length)
    trainer = Trainer(training_of(cfg, work), cfg, mesh)
    state = abstract_state(cfg, trainer.optimizer, mesh)
    shape, rows = (work.rows, work.row_length), batch_sharding(mesh, 2)
    ints, floats = (jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for dtype in (jnp.int32, jnp.float32))
    batch: Any = PackedBatch(ints, ints, ints, ints, floats)
    totals = jax.ShapeDtypeStruct((2,), jnp.float32)
    compiled = trainer.accumulate.first.lower(state.params, batch, totals).compile()
    sampling = SamplingConfig(work.new_tokens, chunk=work.new_tokens)
    sampler = Sampler(cfg, mesh, sampling, work.prompt_width, work.rows)
    return {
        "parameters": bytes_here(state.params),
        "optimiser": bytes_here(state.opt_state),
        "activations": compiled.memory_analysis().temp_size_in_bytes,
        "cache": bytes_here(sampler.abstract.state(work.new_tokens).cache),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table in MiB."""
    kinds = [name for name in rows[0] if name not in ("axis", "devices")]
    lines = [["axis", "devices", *(f"{kind}, MiB" for kind in kinds)]]
    lines.append(["---"] * len(lines[0]))
    lines += [[row["axis"], str(row["devices"]), *(f"{row[kind] / 2**20:.2f}" for kind in kinds)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Parses the command line, compiles, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=MESH_AXES, default=list(MESH_AXES))
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--out", type=pathlib.Path, help="also write the rows to this JSON file")
    args = parser.parse_args()
    cfg, rows, alone = model_of_eight(), [], None
    for axis in args.axes:
        for size in args.sizes:
            if size > 1 or alone is None:
                found = memory(cfg, MeshConfig(**({"data": 1} | {axis: size})), size, WORK)
                alone = found if size == 1 else alone
            else:
                found = alone  # one device is the same on every axis
            rows.append({"axis": axis, "devices": size, **found})
            print(f"{axis} = {size}: {found}", flush=True)
    print(table(rows))
    if args.out:
        args.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_tool(main)
