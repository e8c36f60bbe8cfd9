"""The plan against reality, where there is one: every step of a config's RL (or other) stage on this process's devices.

    python -m tools.plan_reality --config=configs/r1_zero.py:tiny [--mesh=data=2] [--set=FIELD=VALUE ...]

Bytes of arguments: those that shapes and shardings predict, and those of the arrays once they are placed. Bytes beyond
them: the compiler's figure that a plan shows, and what the process grew by while the step was run (the high-water mark
of its resident memory, reset before; of all devices of the process). Operations, of one device: counted from the trace,
as a plan for GPUs does; in the compiled program, as a plan for TPUs does; and by XLA itself, which counts a loop once
and therefore is given the same step with its loops over layers and chunks written out, and which counts more than
matrix products. Of decoding, whose loop's end depends on data, one token is counted.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import json
import pathlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from r1jax.plan import subject
from r1jax.plan.compile import compile_here
from r1jax.plan.costs import program_cost
from r1jax.plan.jaxprs import jaxpr_cost
from r1jax.plan.steps import PlannedStep, planned_steps, tree_bytes
from r1jax.sharding import make_mesh
from tools.command_line import run_tool

STATUS = pathlib.Path("/proc/self/status")
CLEAR = pathlib.Path("/proc/self/clear_refs")


def resident(field: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at most since the mark was reset."""
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def place(leaf: jax.ShapeDtypeStruct, rng: np.random.Generator) -> jax.Array:
    """An array of that shape: small numbers, so that nothing overflows, tokens and positions 0."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        keys = jax.random.split(jax.random.key(0), leaf.shape) if leaf.shape else jax.random.key(0)
        return keys if leaf.sharding is None else jax.device_put(keys, leaf.sharding)
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        value = (rng.standard_normal(leaf.shape) * 0.02).astype(leaf.dtype)
    else:
        value = np.zeros(leaf.shape, leaf.dtype)
    return jax.device_put(value, leaf.sharding)


def grown_by(compiled: Any, arguments: Any) -> int:
    """Bytes that the process grows by, at most, while the compiled step is run once."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier steps have freed must not serve this one unseen
    CLEAR.write_text("5", encoding="ascii")  # the high-water mark starts from here
    before = resident("VmRSS")
    jax.block_until_ready(compiled(*arguments))
    return resident("VmHWM") - before


def counted_by_xla(step: PlannedStep) -> float:
    """XLA's own count of the optimised step, all loops of known length written out; of one device."""
    jax.clear_caches()  # the trace with loops
    with mock.patch.multiple(jax.lax, scan=_written_out(jax.lax.scan), map=_map_by_scan):
        analysis = step.lower().compile().cost_analysis()
    jax.clear_caches()
    return float(analysis["flops"])


def _written_out(scan: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: scan(*args, **{**kwargs, "unroll": True})


def _map_by_scan(function: Callable[..., Any], xs: Any) -> Any:
    """`jax.lax.map` by the public `scan`, which is the one that is written out."""
    return jax.lax.scan(lambda _, x: (None, function(x)), None, xs)[1]


def compare(step: PlannedStep, mesh: Mesh) -> dict[str, Any]:
    """Prediction and reality of one step."""
    traced = jaxpr_cost(dataclasses.replace(step, iterations=1.0), mesh, "cpu")
    planned = compile_here(step.lower())
    counted = program_cost(planned.program, mesh)
    compiled = step.lower().compile()
    rng = np.random.default_rng(0)
    arguments = jax.tree.map(lambda leaf: place(leaf, rng), step.arguments)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(arguments))
    grown = grown_by(compiled, arguments)
    del arguments, compiled
    return {
        "step": step.name,
        "size": step.what,
        "arguments, planned": tree_bytes(step.arguments),
        "arguments, placed": held,
        "beyond, planned": (planned.memory.outputs + planned.memory.temporaries) * mesh.devices.size,
        "beyond, grown": grown,
        "operations, trace": traced.flops,
        "operations, program": counted.flops,
        "operations, XLA": counted_by_xla(step),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: bytes in MiB, operations in 10^9."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names)]
    for row in rows:
        shown = [
            value
            if isinstance(value, str)
            else f"{value / 1e9:.3f}"
            if "operations" in name
            else f"{value / 2**20:.1f}"
            for name, value in row.items()
        ]
        lines.append(shown)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Compares and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="Python file with get_config(arg), and after a colon its arg")
    parser.add_argument("--step", default="", help="of a pipeline: the step (default: RL, else the first)")
    parser.add_argument("--mesh", default="", help="AXIS=SIZE,... (default: all devices along data)")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="FIELD=VALUE")
    parser.add_argument("--out", type=pathlib.Path, help="also write the rows to this JSON file")
    arguments = parser.parse_args()
    chosen = subject.choose(subject.read_config(arguments.config), arguments.step, "", arguments.changes)
    config = subject.mesh_config(arguments.mesh or "data=-1", chosen.config.mesh)
    chosen, mesh = chosen.with_mesh(config), make_mesh(config)
    rows = []
    for step in planned_steps(chosen.config, chosen.model, mesh):
        rows.append(compare(step, mesh))
        print(f"{step.name}: {rows[-1]}", flush=True)
    print(table(rows))
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_tool(main)
