"""Runs every arm of an experiment with every seed.

    python -m tools.sweep experiments/language_consistency --processes=2

Each run is a process of r1jax.train in runs/NAME/<arm>/seed<N>, its output in runs/NAME/logs. Seeds go side by side
(`--processes`), the arms of a seed one after the other: a later arm copies the steps that it shares with an earlier one
(pretraining) instead of running them. Runs that are done are skipped, stopped ones go on; the same command again does
what is left. A run that fails does not stop the others; its last lines are shown at the end, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import pathlib
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable

import rich.console
import rich.progress

from r1jax.evaluation.experiments import Experiment
from tools.command_line import run_tool
from tools.experiment_runs import (
    Run,
    all_runs,
    chosen,
    claim,
    experiment_arguments,
    is_pipeline,
    load,
    out_folder,
    still_to_do,
)

TAIL_LINES = 15


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = experiment_arguments(__doc__)
    parser.add_argument("--processes", type=int, default=1, help="seeds that run side by side")
    parser.add_argument("--arms", default="", help="only these, comma-separated")
    parser.add_argument("--seeds", default="", help="only these, comma-separated")
    parser.add_argument("--reuse", nargs="*", default=[], help="other workdirs whose finished steps may be copied")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run, and run nothing")
    arguments = parser.parse_args()
    if arguments.processes < 1:
        parser.error(f"--processes: {arguments.processes}; at least 1")
    for path in arguments.reuse:
        if not pathlib.Path(path).is_dir():
            parser.error(f"--reuse: there is no folder {path}")
    return arguments


def main() -> None:
    """Runs what is left; ends with status 1 if something failed."""
    arguments = parse_arguments()
    experiment, out = load(arguments), out_folder(arguments)
    console = rich.console.Console(stderr=True, highlight=False, soft_wrap=True)
    runs = chosen(all_runs(arguments.experiment, experiment, out), arguments.arms, arguments.seeds)
    left = [run for run in runs if still_to_do(experiment, run)]
    for run in runs:
        if run not in left:
            console.print(f"[green]{run.name}[/green]: done before")
    if arguments.dry_run:
        for run in left:
            steps = "; ".join(f"{step} ({how})" for step, how in still_to_do(experiment, run).items())
            console.print(f"[bold]{run.name}[/bold]: {' '.join(command(experiment, run, []))}")
            console.print(f"  {steps}", markup=False)
        return
    claim(out, arguments)
    sweep = Sweep(experiment, out, [str(path) for path in arguments.reuse], console)
    failed = sweep.run(left, arguments.processes)
    for run, log in failed:
        console.print(f"\n[bold red]{run.name} failed[/bold red]; the end of {log}:")
        console.print("\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:]), markup=False)
    if failed:
        console.print(f"\n{len(failed)} of {len(runs)} runs failed", style="bold red")
        sys.exit(1)
    console.print(f"all {len(runs)} runs are done: python -m tools.report {arguments.experiment}")


def command(experiment: Experiment, run: Run, reuse: list[str]) -> list[str]:
    """The command of one run."""
    config = f"--config={run.experiment / 'experiment.py'}:{run.argument}"
    shared = [f"--config.reuse={tuple(reuse)!r}"] if reuse and is_pipeline(experiment, run) else []
    return [sys.executable, "-m", "r1jax.train", config, f"--workdir={run.workdir}", *shared]


class Sweep:
    """The processes of a sweep; a signal to it is handed on to them, and they save before they end."""

    def __init__(
        self, experiment: Experiment, out: pathlib.Path, reuse: list[str], console: rich.console.Console
    ) -> None:
        self.experiment, self.out, self.reuse, self.console = experiment, out, reuse, console
        self.processes: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def run(self, runs: list[Run], processes: int) -> list[tuple[Run, pathlib.Path]]:
        """Runs them all and returns those that failed, each with its log. KeyboardInterrupt where it was stopped."""
        seeds: dict[int, list[Run]] = {}
        for run in runs:
            seeds.setdefault(run.seed, []).append(run)
        columns = (rich.progress.TextColumn("runs"), rich.progress.BarColumn(), rich.progress.MofNCompleteColumn())
        previous = {number: signal.signal(number, self.stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with (
                rich.progress.Progress(*columns, rich.progress.TimeElapsedColumn(), console=self.console) as progress,
                concurrent.futures.ThreadPoolExecutor(processes) as pool,
            ):
                bar = progress.add_task("runs", total=len(runs))
                jobs = [pool.submit(self._arms, arms, lambda: progress.advance(bar)) for arms in seeds.values()]
                failed = [item for job in jobs for item in job.result()]
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self.stopped:
            raise KeyboardInterrupt
        return failed

    def stop(self, number: int, frame: types.FrameType | None) -> None:
        """Asks every process to save and end; starts no more."""
        self.stopped = True
        for process in list(self.processes):
            process.send_signal(signal.SIGTERM)

    def _arms(self, runs: list[Run], done: Callable[[], None]) -> list[tuple[Run, pathlib.Path]]:
        """The arms of one seed, one after the other."""
        failed = []
        for run in runs:
            if self.stopped:
                break
            log = self.out / "logs" / f"{run.arm}_seed{run.seed}.log"
            began = time.monotonic()
            self.console.print(f"[bold]{run.name}[/bold]: started, log in {log}")
            status = self._process(run, log)
            took = f"{time.monotonic() - began:.0f} s"
            if self.stopped:
                self.console.print(f"[yellow]{run.name}[/yellow]: stopped after {took}")
                break
            if status:
                failed.append((run, log))
                self.console.print(f"[bold red]{run.name}[/bold red]: failed with status {status} after {took}")
            else:
                self.console.print(f"[green]{run.name}[/green]: done in {took}")
            done()
        return failed

    def _process(self, run: Run, log: pathlib.Path) -> int:
        siblings = [self.experiment.folder(self.out, arm, run.seed) for arm in self.experiment.own_runs]
        reuse = [str(path) for path in siblings if path != run.workdir and path.is_dir()] + self.reuse
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            # In a session of its own: Ctrl-C reaches it once, through `stop`, as a second signal would end it at once.
            process = subprocess.Popen(
                command(self.experiment, run, reuse),
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=os.environ | {"COLUMNS": "120"},
            )
            self.processes.add(process)
            if self.stopped:  # since `_arms` looked
                process.send_signal(signal.SIGTERM)
            status = process.wait()
        self.processes.discard(process)
        return status


if __name__ == "__main__":
    run_tool(main)
