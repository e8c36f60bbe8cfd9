"""What a run leaves behind and shows while it goes: rows, samples, TensorBoard, progress, timings, guards.

Rows and samples are JSON lines. Everything that depends on the clock stands under the key "time", so two runs that did
the same work leave files that are equal once that key is dropped.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.progress
import tensorboardX

from r1jax.processes import from_writer, is_writer
from r1jax.workdir import WorkdirError

TIME = "time"  # the one key of a row that may differ between two runs of the same work
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class NonFiniteError(FloatingPointError):
    """A loss or norm is nan or infinite; the message says where the step's data lies."""


class RowFile:
    """An append-only file of JSON lines that a resumed run cuts back to what its checkpoint knows."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens nothing yet; the file is made by the first row."""
        self.path = pathlib.Path(path)
        self.rows = 0
        self._file: IO[bytes] | None = None

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes one row and hands it to the operating system (NaN and Infinity as Python's json writes them)."""
        if self._file is None:
            if self.rows == 0 and self.path.exists() and self.path.stat().st_size:
                raise WorkdirError(f"{self.path} holds rows of an earlier run: call rewind before writing")
            self._file = self.path.open("ab", buffering=0)
        self._file.write(json.dumps(row, ensure_ascii=False, default=_jsonable).encode() + b"\n")
        self.rows += 1

    def sync(self) -> None:
        """Returns when every row is on the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def rewind(self, rows: int) -> None:
        """Keeps the first `rows` rows; later ones and a half-written last line go.

        Raises:
            WorkdirError: the file has fewer whole rows.
        """
        self.close()
        offset = found = 0
        if self.path.exists():
            with self.path.open("rb+") as file:
                for line in file:
                    if found == rows or not line.endswith(b"\n"):
                        break
                    found, offset = found + 1, offset + len(line)
                if found == rows:
                    file.truncate(offset)
        if found < rows:
            raise WorkdirError(f"{self.path} has {found} whole rows, but the checkpoint was written after {rows}")
        self.rows = rows

    def close(self) -> None:
        """Closes the file; a later row opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, without the half-written last one of a run that is still going.

    Raises:
        WorkdirError: a line before the last is not JSON, naming file and line.
    """
    rows = []
    for number, line in enumerate(pathlib.Path(path).read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise WorkdirError(f"{path}, line {number}: not a JSON row ({error})") from error
    return rows


def elapsed_seconds(rows: Sequence[Mapping[str, Any]]) -> float:
    """Wall time that rows tell of, over all processes: one that goes on counts from 0 again."""
    elapsed = [float(row["time"]["elapsed"]) for row in rows]
    return sum(a for a, b in itertools.pairwise(elapsed) if b < a) + (elapsed[-1] if elapsed else 0.0)


class MetricWriter:
    """metrics.jsonl, samples.jsonl and TensorBoard (and W&B, if asked for) of one work directory.

    Only process 0 writes. The state goes into every checkpoint; a run that starts over an existing directory calls
    `rewind` with the state of the checkpoint it resumes from, or with None when it starts from the beginning.
    """

    def __init__(self, workdir: str | os.PathLike[str], tensorboard: bool = True, wandb_project: str = "") -> None:
        """Names the files in `workdir`, which is made if need be; W&B needs the extra `wandb`."""
        self.workdir = pathlib.Path(workdir)
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._metrics = RowFile(self.workdir / "metrics.jsonl")
        self._samples = RowFile(self.workdir / "samples.jsonl")
        self._enabled = is_writer()
        self._tensorboard_wanted = tensorboard and self._enabled
        self._tensorboard: tensorboardX.SummaryWriter | None = None
        self._wandb = _start_wandb(wandb_project, self.workdir) if wandb_project and self._enabled else None
        self._next_step = 0
        self._started = time.monotonic()

    def write(self, step: int, values: Mapping[str, Any], seconds: Mapping[str, Any] | None = None) -> None:
        """One row of metrics.

        Args:
            step: the step the values belong to.
            values: what the run computed: numbers (also 0-d arrays), strings, arrays; only numbers go to TensorBoard.
            seconds: what depends on the clock: durations, tokens per second.
        """
        row = {"step": step} | {name: _plain(value) for name, value in values.items()}
        if TIME in values or "step" in values:
            raise ValueError(f"the keys 'step' and {TIME!r} belong to the writer")
        timing = {name: _plain(value) for name, value in (seconds or {}).items()}
        row[TIME] = {"unix": time.time(), "elapsed": time.monotonic() - self._started} | timing
        self._next_step = step + 1
        if not self._enabled:
            return
        self._metrics.append(row)
        scalars = {name: value for name, value in row.items() if name != "step" and _is_number(value)}
        scalars |= {f"{TIME}/{name}": value for name, value in timing.items() if _is_number(value)}
        if self._tensorboard_wanted:
            if self._tensorboard is None:
                # Rows of a run that was killed after its last checkpoint are hidden from this step on.
                self._tensorboard = tensorboardX.SummaryWriter(str(self.workdir / "tensorboard"), purge_step=step)
            for name, value in scalars.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(scalars, step=step)

    def write_samples(self, step: int, samples: Iterable[Mapping[str, Any]]) -> None:
        """Rows of samples.jsonl, each with its step: text, rewards, whatever tells what the model wrote."""
        for sample in samples:
            if self._enabled:
                self._samples.append({"step": step} | dict(sample))

    def state(self) -> dict[str, int]:
        """Counters for the checkpoint. All rows they count are on the disk when this returns."""
        self._metrics.sync()
        self._samples.sync()
        return {"metrics": self._metrics.rows, "samples": self._samples.rows, "next_step": self._next_step}

    def rewind(self, state: Mapping[str, int] | None) -> None:
        """Cuts the files back to `state`; None: to nothing."""
        state = state or {"metrics": 0, "samples": 0, "next_step": 0}
        self._next_step = state["next_step"]
        if self._enabled:
            self._metrics.rewind(state["metrics"])
            self._samples.rewind(state["samples"])

    def close(self) -> None:
        """Flushes and closes everything."""
        self._metrics.close()
        self._samples.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Progress:
    """Where a long phase stands: a live bar in a terminal, otherwise a line every few seconds.

    Used as a context manager; `update` names any fields (reward=0.4, tokens_per_second=1234).
    """

    def __init__(
        self,
        description: str,
        total: int,
        start: int = 0,
        console: rich.console.Console | None = None,
        line_seconds: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`total` steps of which `start` are done already, e.g. before a resume."""
        self._description, self._total, self._start = description, total, start
        self._console = console or rich.console.Console(stderr=True)
        self._enabled = is_writer()
        self._line_seconds, self._clock = line_seconds, clock
        self._began = clock()
        self._last_line = -math.inf
        self._done, self._text, self._printed = start, "", ""
        self._bar: rich.progress.Progress | None = None
        if self._enabled and self._console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(bar_width=24),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TextColumn("{task.fields[text]}", style="cyan"),
                rich.progress.TextColumn("{task.fields[eta]}"),
                console=self._console,
            )
            self._task = self._bar.add_task(description, total=total, completed=start, text="", eta="")

    def update(self, done: int, **fields: Any) -> None:
        """`done` of the total steps are behind us; `fields` are shown with them."""
        self._done = done
        self._text = "  ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in fields.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=self._text, eta=self._eta())
        elif self._enabled and (done >= self._total or self._clock() - self._last_line >= self._line_seconds):
            self._line()

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._enabled and self._done > self._start:
            self._line()

    def _line(self) -> None:
        text = f"{self._description} {self._done}/{self._total}  {self._text}  {self._eta()}"
        if text.split("  ")[:-1] != self._printed.split("  ")[:-1]:  # all but the time left is new
            self._console.print(text, soft_wrap=True, highlight=False, markup=False)
        self._printed, self._last_line = text, self._clock()

    def _eta(self) -> str:
        elapsed, steps = self._clock() - self._began, self._done - self._start
        if self._done >= self._total:
            return f"took {_duration(elapsed)}"
        return f"ETA {_duration(elapsed / steps * (self._total - self._done))}" if steps > 0 else "ETA ?"


class StepTimer:
    """Seconds per named section of a step. JAX returns before the work is done: pass results to the section's `wait`.

    with timer("update") as wait:
        params, metrics = wait(update(params, batch))
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Starts counting now."""
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._began = clock()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[Callable[[Any], Any]]:
        """Adds the time spent inside to section `name`; yields `wait`, which blocks on arrays and returns them."""
        began = self._clock()
        try:
            yield jax.block_until_ready
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + self._clock() - began

    def take(self) -> dict[str, float]:
        """Seconds of every section and of the whole step under "step", since the last call; starts the next step."""
        now = self._clock()
        seconds = self._seconds | {"step": now - self._began}
        self._seconds, self._began = {}, now
        return seconds


def matrix_product_rate(dtype: str, size: int = 1024, repeats: int = 7) -> float:
    """Floating point operations per second of a [size, size] matrix product on one device: the best of `repeats`.

    What the parts of a step are held against; the data sheet of a CPU says little about what a program can reach.
    """
    matrix = jnp.full((size, size), 1.0 / size, dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(matrix, matrix))
    best = math.inf
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(product(matrix, matrix))
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best


class CompileCounter:
    """Counts XLA compilations while it is open: after warm-up a loop should add none."""

    def __init__(self) -> None:
        """Counts nothing until entered with `with`; the numbers stay afterwards."""
        self.count = 0
        self.seconds = 0.0
        self.names: list[str] = []  # of the compiled functions, in order

    def __enter__(self) -> CompileCounter:
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *exception: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **labels: str | int) -> None:
        if event == _COMPILE_EVENT:
            self.count += 1
            self.seconds += duration_secs
            self.names.append(str(labels.get("fun_name", "?")))


def check_finite(
    values: Mapping[str, Any], step: int, workdir: str | os.PathLike[str], dump: Callable[[], Any]
) -> None:
    """Stops the run at the first non-finite loss or norm, with the step's data saved by the writer.

    Args:
        values: name -> scalar, e.g. loss and gradient norm; the same in all processes.
        step: the step that computed them.
        workdir: gets `nonfinite_step_N.npz`, whose arrays are named by their path in the dumped tree.
        dump: called only when a value is not finite, and only in the writer; returns the pytree of host arrays to
            save, which all processes hold alike (an array over all devices would give the writer's shards alone).

    Raises:
        NonFiniteError: naming the values and the file.
    """
    wrong = {name: float(value) for name, value in values.items() if not math.isfinite(float(value))}
    if not wrong:
        return
    path = pathlib.Path(workdir) / f"nonfinite_step_{step}.npz"
    from_writer(lambda: _dump(path, dump))  # all wait: the first to end would end the writer in the middle of it
    listed = ", ".join(f"{name} is {value}" for name, value in wrong.items())
    raise NonFiniteError(f"step {step}: {listed}. The step's data lies in {path}; the last checkpoint is untouched.")


def _dump(path: pathlib.Path, dump: Callable[[], Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **_host_arrays(dump()))


def _start_wandb(project: str, workdir: pathlib.Path) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ImportError("logging to W&B needs the extra: python -m pip install -e '.[wandb]'") from error
    run_id = hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:16]  # the same run after a resume
    return wandb.init(project=project, dir=str(workdir), id=run_id, resume="allow")


def _plain(value: Any) -> Any:
    """Arrays as lists and numbers, everything else as it is."""
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        return np.asarray(value).tolist()
    return value


def _jsonable(value: Any) -> Any:
    plain = _plain(value)
    if plain is value:
        raise TypeError(f"a row holds numbers, strings, lists and dicts, not {type(value).__name__}")
    return plain


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value: Any) -> str:
    value = _plain(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if _is_number(value) else str(value)


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"


def _host_arrays(tree: Any) -> dict[str, Any]:
    """Every leaf as a numpy array under its path; of an array spread over processes, this process's shards."""
    arrays: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "value"
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            arrays |= {f"{name}/shard{shard.device.id}": _savable(shard.data) for shard in leaf.addressable_shards}
        else:
            arrays[name] = _savable(leaf)
    return arrays


def _savable(leaf: Any) -> np.ndarray:
    """npz knows no bfloat16: such values are widened to float32, which holds them exactly."""
    array = np.asarray(leaf)
    return array.astype(np.float32) if array.dtype.kind == "V" else array
