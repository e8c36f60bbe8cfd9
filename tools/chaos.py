"""Kills one process of several in the midst of a run, or tells it to stop, and checks that nothing is lost.

    python -m tools.chaos --config=tests/configs/processes_smoke.py --workdir=runs/chaos

The step of RL of a pipeline is run to its end in `--processes` processes of `--devices` CPU devices each (the step that
it starts from in one), then again with one process killed (SIGKILL): in a rollout, in an update, in the writing of a
checkpoint. The others have to end by themselves. Once more one of them is only told to stop (SIGTERM, as before a
preemption): all have to save and end. A copy of what each leaves is then gone on with on the same processes, in one
process and in four, over as many devices in all. Compared with the undisturbed run: the final parameters, metrics.jsonl
without the clock and the samples. On the same processes all must be equal bit by bit; on others sums are added up in
another order, and the largest relative differences are shown. The exit status is 0 if the same processes give the same
bits, others differ by no more than `--tolerance`, and no row is missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import shutil
import signal
import sys
import time
from collections.abc import Callable

import jax
import ml_dtypes  # noqa: F401 (numpy knows bfloat16 by it)
import numpy as np
import rich.console
import rich.table

from r1jax.checkpoint import CheckpointStore
from tools.kill_test import count_rows, metrics, parameters, samples
from tools.launch.local import LocalRun

POLL_SECONDS = 0.002
MOMENTS = ["in rollout", "in update", "in checkpoint", "told to stop"]
SAVED = 143  # status of a run that was told to stop


@dataclasses.dataclass(frozen=True)
class Moment:
    """When to kill, and which process."""

    name: str
    victim: int
    is_there: Callable[[pathlib.Path], bool]  # from what lies in the step's folder; still so after the kill
    signal: signal.Signals = signal.SIGKILL


@dataclasses.dataclass(frozen=True)
class Kill:
    """What a kill did."""

    moment: str
    victim: int
    rows: int  # of metrics.jsonl
    seconds: float  # until the last of the others had ended
    statuses: list[int]  # of the others
    said: str  # their last words


def main() -> int:
    """Runs, kills, goes on, compares and prints tables."""
    arguments = parse_arguments()
    jax.config.update("jax_platforms", "cpu")  # reading parameters must not wake an accelerator
    console = rich.console.Console(soft_wrap=True, width=200)
    root: pathlib.Path = arguments.workdir
    if root.exists():
        console.print(f"{root} exists: choose another --workdir")
        return 2
    root.mkdir(parents=True)
    run_to_end(arguments, root / "base", arguments.before, 1, root)
    updates = updates_per_rollout(root / "base", arguments.step)
    whole = root / "undisturbed"
    shutil.copytree(root / "base", whole)
    began = time.monotonic()
    run_to_end(arguments, whole, arguments.step, arguments.processes, root)
    console.print(f"undisturbed, {arguments.processes} processes: {time.monotonic() - began:.0f} s")
    kills, lines, passed = [], [], True
    for moment in moments(updates, arguments.processes):
        if moment.name not in arguments.moments:
            continue
        killed = root / moment.name.replace(" ", "_")
        shutil.copytree(root / "base", killed)
        kills.append(kill_at(arguments, killed, moment, root))
        console.print(f"{moment.name}: the others ended after {kills[-1].seconds:.1f} s: {kills[-1].said}")
        for processes in arguments.on:
            again = killed.with_name(f"{killed.name}_on_{processes}")
            shutil.copytree(killed, again)
            run_to_end(arguments, again, arguments.step, processes, root)
            line, fits = compared(arguments, whole / arguments.step, again / arguments.step, processes)
            lines.append([moment.name, str(processes), *line])
            console.print(*lines[-1], sep=", ")
            passed &= fits
    print_tables(kills, lines, console)
    console.print("nothing was lost" if passed else "SOMETHING DIFFERS")
    return 0 if passed else 1


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="as for r1jax.train; a pipeline")
    parser.add_argument("--before", default="pretrain", help="name of the step whose policy it starts from")
    parser.add_argument("--step", default="rl", help="name of its step of RL")
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=2, help="CPU devices of each process")
    parser.add_argument("--moments", nargs="+", choices=MOMENTS, default=MOMENTS)
    parser.add_argument("--on", nargs="+", type=int, default=[2, 1, 4], help="processes that go on after each kill")
    parser.add_argument("--peer_seconds", type=float, default=10.0)
    parser.add_argument("--tolerance", type=float, default=1e-3, help="relative, of metrics, on other processes")
    return parser.parse_args()


def updates_per_rollout(workdir: pathlib.Path, step: str) -> int:
    """Of the step of a pipeline that has run in `workdir`."""
    steps = json.loads((workdir / "config.json").read_text(encoding="utf-8"))["steps"]
    fields = next(one["config"] for one in steps if one["name"] == step)
    return int(fields.get("minibatches", 1) * fields.get("inner_epochs", 1))


def moments(updates: int, processes: int) -> list[Moment]:
    """In the second rollout, in its second update, at the first checkpoint, in the second rollout without violence.

    Process 0 is killed in the update, else the last one.
    """

    def in_rollout(folder: pathlib.Path) -> bool:
        return training_rows(folder) >= updates and not (folder / "rollouts" / "000001.npz").exists()

    def in_update(folder: pathlib.Path) -> bool:
        return updates < training_rows(folder) < 2 * updates

    def in_checkpoint(folder: pathlib.Path) -> bool:
        return any((folder / "checkpoints").glob("step_*.partial"))

    last = processes - 1
    rollout, update, checkpoint, told = MOMENTS
    return [
        Moment(rollout, last, in_rollout),
        Moment(update, 0, in_update),
        Moment(checkpoint, last, in_checkpoint),
        Moment(told, last, in_rollout, signal.SIGTERM),
    ]


def training_rows(folder: pathlib.Path) -> int:
    """Rows of metrics.jsonl that updates have left."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b'"grad_norm"') if path.exists() else 0


def start(
    arguments: argparse.Namespace, workdir: pathlib.Path, step: str, processes: int, log: pathlib.Path
) -> LocalRun:
    """Starts one step of the pipeline; all devices together are as many, whatever the number of processes."""
    devices = arguments.processes * arguments.devices
    if devices % processes:
        raise ValueError(f"{devices} devices cannot be shared out to {processes} processes")
    command = [f"--config={arguments.config}", f"--config.only={step}", f"--workdir={workdir}"]
    command.append(f"--peer_seconds={arguments.peer_seconds}")
    output = (log / f"{workdir.name}_{step}_{processes}.log").open("a")
    return LocalRun(command, processes, devices // processes, output=output, grace=600)


def run_to_end(
    arguments: argparse.Namespace, workdir: pathlib.Path, step: str, processes: int, log: pathlib.Path
) -> None:
    """Runs a step. Raises RuntimeError if it fails."""
    status = start(arguments, workdir, step, processes, log).wait()
    if status:
        raise RuntimeError(f"{step} in {workdir} ended with status {status}; see the logs in {log}")


def kill_at(arguments: argparse.Namespace, workdir: pathlib.Path, moment: Moment, log: pathlib.Path) -> Kill:
    """Starts the step, kills a process at the moment, waits for the others. RuntimeError if the moment was missed."""
    folder = workdir / arguments.step
    run = start(arguments, workdir, arguments.step, arguments.processes, log)
    try:
        while run.running() and not moment.is_there(folder):
            time.sleep(POLL_SECONDS)
    except BaseException:
        run.signal(signal.SIGKILL)  # a terminal's Ctrl-C does not reach them
        raise
    run.processes[moment.victim].send_signal(moment.signal)
    killed = time.monotonic()
    fell, rows = moment.is_there(folder), count_rows(folder)
    run.wait()
    others = [one for one in run.ended if one.process != moment.victim]
    if not fell or any(one.status == 0 for one in others):
        raise RuntimeError(f"{moment.name}: the kill did not fall there; see the logs in {log}")
    if moment.signal == signal.SIGTERM and any(one.status != SAVED for one in run.ended):
        raise RuntimeError(f"{moment.name}: not all ended with status {SAVED}: {run.ended}; see the logs in {log}")
    text = (log / f"{workdir.name}_{arguments.step}_{arguments.processes}.log").read_text(encoding="utf-8")
    words = [line for line in text.splitlines() if "process " in line and "] process" in line]
    return Kill(
        moment.name,
        moment.victim,
        rows,
        time.monotonic() - killed,
        [one.status for one in others],
        words[-1] if words else text.splitlines()[-1][:200],
    )


def compared(
    arguments: argparse.Namespace, whole: pathlib.Path, again: pathlib.Path, processes: int
) -> tuple[list[str], bool]:
    """What differs from the undisturbed run, in words, and whether that is allowed."""
    missing = count_rows(whole) - count_rows(again)
    equal = {what.__name__: what(whole) == what(again) for what in (parameters, metrics, samples)}
    by_metrics, name = largest_metric_difference(whole, again)
    by_parameters = largest_parameter_difference(whole, again)
    words = [str(missing), *("yes" if same else "no" for same in equal.values())]
    words += [f"{by_parameters:.1e}", f"{by_metrics:.1e} {name}"]
    same_topology = processes == arguments.processes
    fits = all(equal.values()) if same_topology else by_metrics <= arguments.tolerance
    return words, fits and not missing


def largest_metric_difference(whole: pathlib.Path, again: pathlib.Path) -> tuple[float, str]:
    """Over all rows and names: |a - b| / max(|a|, |b|, 1e-3), and the name where that is largest."""
    worst = (0.0, "")
    for ours, theirs in zip(rows_of(whole), rows_of(again), strict=False):
        for name in ours.keys() & theirs.keys():
            a, b = ours[name], theirs[name]
            if isinstance(a, (int, float)) and isinstance(b, (int, float)):
                worst = max(worst, (abs(a - b) / max(abs(a), abs(b), 1e-3), name))
    return worst


def rows_of(folder: pathlib.Path) -> list[dict]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def largest_parameter_difference(whole: pathlib.Path, again: pathlib.Path) -> float:
    """Of the final parameters: the largest difference over the largest value, leaf by leaf; the worst leaf."""
    ours, theirs = arrays_of(whole), arrays_of(again)
    return max(
        float(np.max(np.abs(ours[name] - theirs[name])) / max(np.max(np.abs(ours[name])), 1e-30)) for name in ours
    )


def arrays_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The final parameters in float64."""
    store = CheckpointStore(folder / "model")
    _, _, leaves = store.open_arrays()
    _, arrays, _ = store.restore({name: np.empty(shape, dtype) for name, (shape, dtype) in leaves.items()})
    return {name: np.asarray(array, np.float64) for name, array in arrays.items() if np.size(array)}


def print_tables(kills: list[Kill], lines: list[list[str]], console: rich.console.Console) -> None:
    """What the kills did, and what came of going on."""
    table = rich.table.Table("killed", "process", "rows written", "others ended after", "with status")
    for kill in kills:
        statuses = ", ".join(map(str, kill.statuses))
        table.add_row(kill.moment, str(kill.victim), str(kill.rows), f"{kill.seconds:.1f} s", statuses)
    console.print(table)
    names = ("killed", "gone on with on", "rows missing", "parameters equal", "metrics equal", "samples equal")
    table = rich.table.Table(*names, "parameters differ by", "metrics differ by")
    for line in lines:
        table.add_row(*line)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
