"""A plan in words and numbers: on the terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import rich.console
import rich.table

from r1jax.model.transformer import param_count
from r1jax.plan.chips import GIB, Topology
from r1jax.plan.collectives import Collective
from r1jax.plan.compile import tpu_compiler
from r1jax.plan.limits import Limit
from r1jax.plan.planner import Plan, StepPlan
from r1jax.plan.steps import tree_bytes
from r1jax.settings import to_plain
from r1jax.workdir import write_atomically

ASSUMPTIONS = (
    "Rates are those of the spec sheets, so a real run is slower. Predicted: matrix products and HBM overlap, the "
    "network is waited for; overlapped: everything overlaps, the bound that no run beats.",
    "Operations are counted in the compiled program, loops multiplied out; products of experts at balanced load, "
    "attention kernels as the model's products.",
    "Model use: the model's own operations (r1jax/model/flops.py: no recomputation, no hidden scores) over what the "
    "chips could do in the predicted time.",
    "RL: every prompt and response is as long as may be, and nothing is regrouped. Of decoding the first and the last "
    "chunk are planned, and each stands for half of the tokens, which makes its calls a fraction.",
    "Time is that of bytes and operations at full rate; what a message or a kernel takes however small it is does not "
    "count. Products in float32 count as one in bfloat16 where the program does not ask for more.",
)
NO_COMPILER = (
    "There is no compiler for GPUs here: memory is that of arguments only, HBM traffic a lower bound (arguments read "
    "once), the program's operations are split evenly, and collectives are those of shard_map with an estimate of what "
    "sharded parameters need."
)
SIZES = ("calls a step", "arguments", "made meanwhile", "beside them", "all together", "fits", "TFLOP", "HBM", "sent")
TIMES = ("compute", "memory", "network", "predicted", "tokens/s/chip")
COLUMNS = ("step", "size", *SIZES, *TIMES)


def step_row(one: StepPlan, topology: Topology) -> tuple[str, ...]:
    """The cells of a step."""
    device = topology.chip.device
    fits = {True: "yes", False: "NO", None: "?"}[one.fits(device.usable)]
    memory = one.memory
    made = "?" if memory is None else gib(memory.temporaries + memory.outputs)
    peak = f"> {gib(one.arguments + one.beside)}" if one.peak is None else gib(one.peak)
    speed = one.step.tokens / one.time.predicted / topology.chips if one.step.tokens else 0.0
    return (
        one.step.name,
        one.step.what,
        f"{one.step.calls:,.4g}",
        gib(one.arguments if memory is None else memory.arguments),
        made,
        gib(one.beside),
        peak,
        fits,
        f"{one.flops / 1e12:.4g}",
        gib(one.cost.bytes),
        gib(one.cost.network_bytes),
        seconds(one.time.compute),
        seconds(one.time.memory),
        seconds(one.time.network),
        seconds(one.time.predicted),
        f"{speed:,.1f}" if one.step.tokens else "",
    )


def gib(size: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, value in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= value:
            return f"{size / value:.4g} {unit}"
    return f"{size:.0f} B"


def seconds(time: float) -> str:
    """In the unit that suits them."""
    for unit, value in (("s", 1.0), ("ms", 1e-3)):
        if time >= value:
            return f"{time / value:.4g} {unit}"
    return f"{time / 1e-6:.4g} us"


def headline(plan: Plan) -> list[str]:
    """What is planned, and what comes out."""
    chip, mesh = plan.topology.chip, ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1)
    lines = [
        f"{plan.subject.name} ({plan.subject.stage}), {param_count(plan.subject.model) / 1e9:.4g}B parameters, on "
        f"{plan.topology.name}: {plan.topology.chips} chips of {gib(chip.memory)} ({gib(chip.usable)} usable), "
        f"{chip.bf16 / 1e12:g} bf16 TFLOP/s",
        f"mesh: {mesh or 'one device'}",
    ]
    if plan.topology.chip.platform == "tpu":
        lines.append(f"compiled by {tpu_compiler()}")
    verdict = {True: "Everything fits.", False: "It does NOT fit.", None: "What compiled temporaries need is unknown."}
    lines.append(verdict[plan.fits])
    what = "One step of the stage" if plan.whole else "These programs' part of a step of the stage"
    lines.append(
        f"{what}: {seconds(plan.step_seconds)} predicted, model use {plan.use:.1%}, "
        f"{plan.model_flops / 1e15:,.4g} PFLOP of the model"
    )
    return lines


def refusals(plan: Plan) -> list[str]:
    """Of every step that does not fit: by how much, the first buffer that is too many, the largest, what to change."""
    usable, lines = plan.topology.chip.device.usable, []
    for one in plan.steps:
        if one.fits(usable) is not False:
            continue
        needed = one.arguments + one.beside if one.peak is None else one.peak
        lines.append(
            f"{one.step.name} does not fit: {gib(needed)} of a device's {gib(usable)} "
            f"({gib(one.arguments)} arguments, {gib(one.beside)} beside them)."
        )
        if one.refused:
            lines.append(f"  the compiler: {one.refused.splitlines()[0]}")
        if one.first_too_many is not None:
            buffer = one.first_too_many
            lines.append(f"  first buffer beyond the end: {buffer.shape}, {gib(buffer.bytes)}, of {buffer.source}")
        lines += [f"  large: {buffer.shape}, {gib(buffer.bytes)}, of {buffer.source}" for buffer in one.largest[:5]]
        lines.append(f"  {advice(one, plan)}")
    return lines


def advice(one: StepPlan, plan: Plan) -> str:
    """What to change so that a step fits."""
    usable = plan.topology.chip.device.usable
    params = tree_bytes(one.step.arguments[one.step.params_at])
    rows = one.arguments - params  # of sampling: the cache
    sampled = one.step.name.startswith(("decode", "prefill"))
    if one.arguments + one.beside > usable and not (sampled and params + one.beside < usable):
        return (
            "change: already parameters, optimiser and reference are too much: more chips, a larger mesh.fsdp or "
            "mesh.expert, moments in bfloat16, the reference or the optimiser in host memory"
        )
    if sampled:
        return (
            f"change: a smaller decoding.batch_size (the rows' cache is {gib(rows)} of the arguments), a shorter "
            "response, or more chips"
        )
    return "change: fewer micro_rows, a larger mesh.sequence for long rows, remat 'block', or more chips"


def show(plan: Plan, console: rich.console.Console) -> None:
    """Prints the plan."""
    for line in headline(plan):
        console.print(line, highlight=False)
    # A column for each step: there are few steps, and many figures.
    rows = [step_row(one, plan.topology) for one in plan.steps]
    table = rich.table.Table("per device and call", *(row[0] for row in rows))
    for index, figure in enumerate(COLUMNS[1:], 1):
        table.add_row(figure, *(row[index] for row in rows))
    console.print(table)
    for one in plan.steps:
        shown = rich.table.Table("collective", "axes", "devices", "sent a call", "calls", "sent in all", "of",
                                 title=f"{one.step.name}: collectives")  # fmt: skip
        for row in collective_rows(one.cost.collectives):
            shown.add_row(*row)
        if one.cost.collectives:
            console.print(shown)
    for line in refusals(plan):
        console.print(line, style="red", highlight=False, markup=False, soft_wrap=True)


def show_search(plans: Sequence[Plan], console: rich.console.Console) -> None:
    """The meshes that were compiled, the chosen one first."""
    table = rich.table.Table("mesh", "fits", "largest peak", "step of the stage", "model use", title="mesh shapes")
    for plan in plans:
        peaks = [one.peak for one in plan.steps if one.peak is not None]
        mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1)
        fits = {True: "yes", False: "NO", None: "?"}[plan.fits]
        table.add_row(mesh, fits, gib(max(peaks)) if peaks else "?", seconds(plan.step_seconds), f"{plan.use:.1%}")
    console.print(table)


def limit_lines(limits: Sequence[Limit]) -> list[str]:
    """One line for every size that can grow."""
    lines = []
    for one in limits:
        (x, low), (y, high) = one.points
        largest = "memory does not grow with it" if one.largest is None else f"at most {one.largest:,} fit"
        lines.append(
            f"{one.step}, {one.field}: {largest} ({gib(low)} at {x:,}, {gib(high)} at {y:,}, compiled; the rest is the "
            f"line through them, against {gib(one.usable)})"
        )
    return lines


def show_limits(limits: Sequence[Limit], console: rich.console.Console) -> None:
    """Prints them."""
    for line in limit_lines(limits):
        console.print(line, highlight=False, soft_wrap=True)


def collective_rows(collectives: Sequence[Collective], count: int = 8) -> list[tuple[str, ...]]:
    """The cells of the largest, and one line for the rest."""
    rows: list[tuple[str, ...]] = [
        (one.kind, " ".join(one.axes) or "mixed", str(one.group), gib(one.bytes), f"{one.times:g}", gib(one.total),
         shortened(one.source))
        for one in collectives[:count]
    ]  # fmt: skip
    rest = collectives[count:]
    if rest:
        rows.append(
            ("others", "", "", "", f"{sum(one.times for one in rest):g}", gib(sum(one.total for one in rest)), "")
        )
    return rows


def shortened(source: str, length: int = 60) -> str:
    """The end of a long name, which says the most."""
    return source if len(source) <= length else "..." + source[-length:]


def markdown(plan: Plan, limits: Sequence[Limit] = ()) -> str:
    """The plan as a page."""
    lines = [f"# Plan: {plan.subject.name} on {plan.topology.name}", "", *(f"{line}  " for line in headline(plan)), ""]
    lines += table_lines(COLUMNS, [step_row(one, plan.topology) for one in plan.steps])
    refused = refusals(plan)
    if refused:
        lines += ["", "## What does not fit", "", "```", *refused, "```"]
    if limits:
        lines += ["", "## The largest that fits", "", *(f"- {line}" for line in limit_lines(limits))]
    for one in plan.steps:
        if one.cost.collectives:
            lines += ["", f"## {one.step.name}: collectives", ""]
            lines += table_lines(
                ("collective", "axes", "devices", "sent a call", "calls", "sent in all", "of"),
                collective_rows(one.cost.collectives),
            )
        if one.cost.unknown:
            lines += ["", f"Kernels that do not say what they compute: {', '.join(one.cost.unknown)}"]
    lines += ["", "## Assumptions", "", *(f"- {line}" for line in ASSUMPTIONS)]
    if plan.topology.chip.platform != "tpu":
        lines.append(f"- {NO_COMPILER}")
    return "\n".join([*lines, ""])


def table_lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of Markdown."""
    rule = "|".join("---" for _ in columns)
    return ["| " + " | ".join(columns) + " |", f"|{rule}|", *("| " + " | ".join(row) + " |" for row in rows)]


def as_json(plan: Plan) -> dict[str, Any]:
    """Every number of the plan."""
    return {
        "stage": plan.subject.stage,
        "name": plan.subject.name,
        "topology": plan.topology.name,
        "mesh": plan.mesh,
        "compiler": tpu_compiler() if plan.topology.chip.platform == "tpu" else None,
        "model": to_plain(plan.subject.model),
        "config": to_plain(plan.subject.config),
        "fits": plan.fits,
        "step_seconds": plan.step_seconds,
        "model_flops": plan.model_flops,
        "model_flop_use": plan.use,
        "planning_seconds": plan.seconds,
        "steps": [_step_json(one, plan.topology) for one in plan.steps],
    }


def _step_json(one: StepPlan, topology: Topology) -> dict[str, Any]:
    memory = one.memory
    return {
        "name": one.step.name,
        "size": one.step.what,
        "calls": one.step.calls,
        "tokens": one.step.tokens,
        "fits": one.fits(topology.chip.device.usable),
        "refused": one.refused,
        "bytes": {
            "arguments": one.arguments if memory is None else memory.arguments,
            "outputs": None if memory is None else memory.outputs,
            "temporaries": None if memory is None else memory.temporaries,
            "beside": one.beside,
            "peak": one.peak,
            "usable": topology.chip.device.usable,
        },
        "flops": one.flops,
        "grouped_flops_of_full_buffers": one.cost.grouped_flops,
        "model_flops_all_devices": one.step.model_flops,
        "hbm_bytes": one.cost.bytes,
        "network_bytes": one.cost.network_bytes,
        "collectives": [
            {"kind": c.kind, "axes": c.axes, "devices": c.group, "bytes": c.bytes, "calls": c.times, "of": c.source}
            for c in one.cost.collectives
        ],
        "kernels_without_count": one.cost.unknown,
        "seconds": {
            "compute": one.time.compute,
            "memory": one.time.memory,
            "network": one.time.network,
            "overlapped": one.time.overlapped,
            "predicted": one.time.predicted,
            "compile": one.seconds,
        },
        "largest_buffers": [{"bytes": b.bytes, "shape": b.shape, "of": b.source} for b in one.largest],
    }


def write(plan: Plan, limits: Sequence[Limit], folder: pathlib.Path) -> None:
    """plan.md and plan.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "plan.md", markdown(plan, limits))
    write_atomically(
        folder / "plan.json", json.dumps(as_json(plan) | {"limits": to_plain(list(limits))}, indent=2) + "\n"
    )
