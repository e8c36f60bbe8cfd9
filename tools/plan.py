"""What a stage of a config needs and how long it takes on a machine that need not be there.

    python -m tools.plan --config=configs/r1_zero.py --topology=v5p:8x8x16 --out=runs/plan

Compiles the stage's own steps for the machine (TPUs: libtpu, extra `plan`; no TPU is needed) and says of each: bytes of
a device against its HBM, operations, bytes moved, collectives with their mesh axes, and the time that follows; writes
plan.md and plan.json. Ends with status 1 where a step does not fit.

    --length=32768           responses (RL) or rows (others) of another length
    --mesh=fsdp=16,expert=64 another mesh than the config's; axes not named are 1
    --set=micro_rows=64      any field of the stage, with dots; may be given several times
    --topology=h100:8x16     GPUs (of a host x hosts): counted from the trace, no compiler's figure of memory
"""

from __future__ import annotations

import argparse
import pathlib
import resource
import sys

import jax
import rich.console

from r1jax.plan.chips import CHIPS, GIB, Topology, parse_topology
from r1jax.plan.compile import PlanError
from tools.command_line import run_tool


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="Python file with get_config(arg), and after a colon its arg")
    parser.add_argument("--topology", required=True, help=f"CHIP:AxBxC with a chip of {', '.join(CHIPS)}")
    parser.add_argument("--step", default="", help="of a pipeline: the step to plan (default: RL, else the first)")
    parser.add_argument("--preset", default="", help="the model, where the config does not name it")
    parser.add_argument("--mesh", default="", help="AXIS=SIZE,... in place of the config's mesh")
    parser.add_argument("--length", type=int, default=0, help="tokens of a response (RL) or of a row (others)")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="FIELD=VALUE")
    parser.add_argument("--only", default="", help="steps of the stage, comma-separated (default: all)")
    parser.add_argument("--fit", action="store_true", help="also find the largest batch and length that fit")
    parser.add_argument("--search", type=int, default=0, metavar="N", help="compile the N most promising mesh shapes")
    parser.add_argument("--out", type=pathlib.Path, default=None, help="folder for plan.md and plan.json")
    return parser.parse_args()


def check_arguments(arguments: argparse.Namespace, topology: Topology) -> None:
    """What would only be refused once all is planned. Raises PlanError naming the flag."""
    if arguments.search < 0:
        raise PlanError(f"--search: {arguments.search}; expected how many mesh shapes to compile, at least 1 (0: none)")
    if arguments.fit and topology.chip.platform != "tpu":
        raise PlanError(f"--fit: {topology.name} has no compiler here, so there is no figure of memory to fit")


def main() -> None:
    """Plans, prints, writes; ends with status 1 if a step does not fit."""
    arguments = parse_arguments()
    topology = parse_topology(arguments.topology)
    check_arguments(arguments, topology)
    jax.config.update("jax_platforms", "cpu")
    if topology.chip.platform != "tpu":
        jax.config.update("jax_num_cpu_devices", topology.devices)  # they stand for the GPUs
    # These read the backend's devices, so only now.
    from r1jax.plan import limits, planner, report, search, subject

    chosen = subject.choose(subject.read_config(arguments.config), arguments.step, arguments.preset, arguments.changes)
    if arguments.length:
        chosen = subject.for_responses(chosen, arguments.length)
    chosen = chosen.with_mesh(subject.mesh_config(arguments.mesh, chosen.config.mesh))
    console = rich.console.Console(soft_wrap=False)
    progress = rich.console.Console(stderr=True, highlight=False, soft_wrap=True)
    names = [name for name in arguments.only.split(",") if name]

    def tell(line: str) -> None:
        progress.print(line, style="dim")

    if arguments.search:
        plans = search.search(chosen, topology, arguments.search, tuple(names), tell)
        report.show_search(plans, console)
        plan = plans[0]
    else:
        plan = planner.make_plan(chosen, topology, names, tell)
    report.show(plan, console)
    found = []
    if arguments.fit:
        found = limits.find_limits(plan, tuple(names) or limits.FITTED)
        report.show_limits(found, console)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    progress.print(f"planned in {plan.seconds:.0f} s with {used / GIB:.1f} GiB", style="dim")
    if arguments.out is not None:
        report.write(plan, found, arguments.out)
        progress.print(f"written: {arguments.out / 'plan.md'}, {arguments.out / 'plan.json'}")
    if plan.fits is False:
        sys.exit(1)


if __name__ == "__main__":
    run_tool(main)
