"""Kills a run again and again at random moments and checks that it ends as if nothing had happened.

    python tools/kill_test.py --config=tests/configs/r1_zero_smoke.py:long --workdir=runs/kill_test --kills=10
    python tools/kill_test.py --config=configs/r1_zero.py:tiny --workdir=runs/kill_test_tiny --undisturbed=runs/r1_zero

The config is first run to its end undisturbed, unless `--undisturbed` names a run of it, then again with SIGKILL at
moments drawn from `--seed`; a killed run is started again with the same command. Compared: the final parameters of
every stage bit by bit, metrics.jsonl without the clock ("time"), other .jsonl byte by byte. Kills are spread over the
stages of `--stages`; what the others do is undisturbed. The exit status is 0 if everything is equal.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import pathlib
import subprocess
import sys
import time

import ml_dtypes  # noqa: F401 (numpy knows bfloat16 by it)
import numpy as np
import rich.console
import rich.table

from r1jax.checkpoint import CheckpointStore

TRAINING = ("pretrain", "sft", "rl", "reward_model")  # stages with rows of metrics, of which kills are drawn
POLL_SECONDS = 0.05
STARTING_SECONDS = 8.0  # programs are in the compilation cache by then: longer, and the run may be over


@dataclasses.dataclass(frozen=True)
class Kill:
    """One SIGKILL and what the run had done by then."""

    stage: str
    after_seconds: float  # since the process began to work in that stage
    rows: int  # of metrics.jsonl
    checkpoints: int


def main() -> int:
    """Runs, kills, compares and prints a table."""
    arguments = parse_arguments()
    console = rich.console.Console(soft_wrap=True)
    own, disturbed = arguments.workdir / "undisturbed", arguments.workdir / "killed"
    if own.exists() or disturbed.exists():
        console.print(f"{arguments.workdir} holds an earlier kill test: choose another --workdir")
        return 2
    undisturbed = arguments.undisturbed or own
    began = time.monotonic()
    run_to_end(arguments.config, undisturbed)  # of a finished run it checks that it is one, and of this config
    console.print(f"undisturbed run: {time.monotonic() - began:.0f} s")
    names = [name for name in stages_of(undisturbed) if not arguments.stages or name in arguments.stages]
    if not names or set(arguments.stages) - set(names):
        console.print(f"--stages={','.join(arguments.stages)}: the stages that train are {stages_of(undisturbed)}")
        return 2
    kills = run_with_kills(arguments, disturbed, undisturbed, names, console)
    print_kills(kills, console)
    if len(kills) < arguments.kills:
        console.print(f"only {len(kills)} of {arguments.kills} kills fell into the run: take a longer config")
        return 2
    return print_comparison(undisturbed, disturbed, console)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="as for r1jax.train; a pipeline")
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--undisturbed", type=pathlib.Path, help="a run of the config; default: it is made first")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--stages", type=lambda text: text.split(","), default=[], help="names; default: all that train"
    )
    return parser.parse_args()


def command(config: str, workdir: pathlib.Path) -> list[str]:
    """The command of one run."""
    return [sys.executable, "-m", "r1jax.train", f"--config={config}", f"--workdir={workdir}"]


def run_to_end(config: str, workdir: pathlib.Path) -> None:
    """Runs without a kill. Raises RuntimeError with the end of its output if it fails."""
    result = subprocess.run(command(config, workdir), capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"the run in {workdir} ended with status {result.returncode}:\n{result.stderr[-3000:]}")


def stages_of(workdir: pathlib.Path) -> list[str]:
    """Names of the stages that train, in order."""
    steps = json.loads((workdir / "config.json").read_text(encoding="utf-8"))["steps"]
    return [step["name"] for step in steps if step["stage"] in TRAINING]


def run_with_kills(
    arguments: argparse.Namespace,
    workdir: pathlib.Path,
    reference: pathlib.Path,
    names: list[str],
    console: rich.console.Console,
) -> list[Kill]:
    """Runs to the end through all kills: evenly over the stages, at a random share of the stage's way.

    A moment is drawn as a number of rows of metrics.jsonl that must be there, and a part of the time between two rows
    on top; so the kills fall anywhere, whatever the speed of the machine and however often the run has to start again.
    """
    rng = np.random.default_rng(arguments.seed)
    kills: list[Kill] = []
    for i, name in enumerate(names):
        count = arguments.kills // len(names) + (i < arguments.kills % len(names))
        rows = row_times(reference / name)
        gap = float(np.median(np.diff(rows))) if len(rows) > 1 else 1.0
        # A negative number: while the process starts, prepares and compiles.
        moments = np.sort(rng.integers(-max(1, len(rows) // 5), len(rows), count))
        for row in moments:
            wait = rng.uniform(0, 2 * gap if row >= 0 else STARTING_SECONDS)
            kill = run_until(arguments.config, workdir, workdir / name, int(row), float(wait))
            if kill is not None:
                kills.append(kill)
                console.print(f"kill {len(kills)}: {name}, {kill.rows} rows, {kill.checkpoints} checkpoints")
    run_to_end(arguments.config, workdir)
    return kills


def row_times(folder: pathlib.Path) -> list[float]:
    """When each row was written, in seconds."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["time"]["unix"] for line in lines]


def run_until(config: str, workdir: pathlib.Path, folder: pathlib.Path, rows: int, wait: float) -> Kill | None:
    """Starts a run and kills it `wait` seconds after it has gone beyond `rows` rows; None if it ended before."""
    began = time.monotonic()
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir.parent / "killed.log").open("ab") as log:
        process = subprocess.Popen(command(config, workdir), stdout=log, stderr=log)
        try:
            start = modified(folder)
            while rows >= 0 and process.poll() is None and (count_rows(folder) < rows or modified(folder) == start):
                time.sleep(POLL_SECONDS)
            time.sleep(wait)
            if process.poll() is not None:
                if process.returncode:
                    raise RuntimeError(
                        f"the run ended with status {process.returncode}; see {workdir.parent}/killed.log"
                    )
                return None
        finally:
            process.kill()
            process.wait()
    checkpoints = len(list((folder / "checkpoints").glob("step_*[0-9]")))
    return Kill(folder.name, time.monotonic() - began, count_rows(folder), checkpoints)


def modified(folder: pathlib.Path) -> int:
    """When metrics.jsonl was last written, in nanoseconds; 0 if it is not there."""
    path = folder / "metrics.jsonl"
    return path.stat().st_mtime_ns if path.exists() else 0


def count_rows(folder: pathlib.Path) -> int:
    """Whole rows of metrics.jsonl."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else -1


def print_kills(kills: list[Kill], console: rich.console.Console) -> None:
    """One line for each kill."""
    table = rich.table.Table("kill", "stage", "rows written", "checkpoints", "seconds after start")
    for number, kill in enumerate(kills, start=1):
        table.add_row(str(number), kill.stage, str(kill.rows), str(kill.checkpoints), f"{kill.after_seconds:.1f}")
    console.print(table)


def print_comparison(undisturbed: pathlib.Path, disturbed: pathlib.Path, console: rich.console.Console) -> int:
    """What is equal in every stage. Returns the exit status."""
    table = rich.table.Table("stage", "what", "undisturbed", "killed", "equal")
    equal = True
    for folder in sorted(path for path in undisturbed.iterdir() if (path / "config.json").exists()):
        theirs = disturbed / folder.name
        for what, digest in (("parameters", parameters), ("metrics", metrics), ("samples", samples)):
            ours_digest, theirs_digest = digest(folder), digest(theirs)
            if ours_digest == theirs_digest == "":
                continue
            same = ours_digest == theirs_digest
            equal &= same
            table.add_row(folder.name, what, ours_digest[:16], theirs_digest[:16], "yes" if same else "NO")
    console.print(table)
    console.print("everything is equal" if equal else "THE RUNS DIFFER")
    return 0 if equal else 1


def parameters(folder: pathlib.Path) -> str:
    """SHA-256 of the names, shapes and bytes of the final parameters; empty if the stage leaves none."""
    if not (folder / "model").is_dir():
        return ""
    store = CheckpointStore(folder / "model")
    _, _, leaves = store.open_arrays()
    _, arrays, _ = store.restore({name: np.empty(shape, dtype) for name, (shape, dtype) in leaves.items()})
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.asarray(array).tobytes())
    return digest.hexdigest()


def metrics(folder: pathlib.Path) -> str:
    """SHA-256 of metrics.jsonl without the key "time"; empty if there is none."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return ""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    plain = [{name: value for name, value in row.items() if name != "time"} for row in rows]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


def samples(folder: pathlib.Path) -> str:
    """SHA-256 of all .jsonl but the metrics: samples, and what a stage of curation kept; empty if there is none."""
    files = [path for path in sorted(folder.glob("*.jsonl")) if path.name != "metrics.jsonl"]
    digests = [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest() if digests else ""


if __name__ == "__main__":
    sys.exit(main())
