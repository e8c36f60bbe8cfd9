"""Several processes that make one run: how they find each other, agree, and share what one of them has.

Every process executes the same program on the same host data, and places on its devices what belongs there. So nothing
depends on their number but who does the work on the host: a completion is decoded and graded by the process on whose
devices it was drawn, and what comes of it is gathered. Process 0, the writer, writes every file but the arrays of
checkpoints. Of one process all of this is the identity. `watchdog` ends them together.

What is said here goes over jax's coordination service (small and frequent: flags, barriers, heartbeats) or over the
devices (large: gathered objects). Every function but `is_alone`, `is_writer`, `own_part`, `own_rows`, `here`, `place`
and `await_file` must be called by all processes in the same order.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import pathlib
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from r1jax.watchdog import KEYS, Watchdog, client, waiting_at

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")

GATHERED_BYTES = 64 * 2**20  # of all processes together, on every device, at once
SHOWN_SECONDS = 90.0  # NFS may go on saying for a minute that a folder or file is not there
BARRIER_MILLISECONDS = 7 * 24 * 3600 * 1000  # whoever died is noticed by the watchdog, long before


class ProcessesError(ValueError):
    """The processes of a run were asked for in a way that cannot work."""


# Starting -------------------------------------------------------------------------------------------------------------

# Variables of environments that jax can read, and how many processes they speak of.
MANY: dict[str, Callable[[str], int]] = {
    "SLURM_STEP_NUM_TASKS": int,
    "OMPI_COMM_WORLD_SIZE": int,
    "TPU_WORKER_HOSTNAMES": lambda names: 1 if " " in names else len(names.split(",")),  # libtpu leaves a warning there
    "MEGASCALE_NUM_SLICES": int,
}

UNKNOWN_ENVIRONMENT = (
    "--distributed=on asks Open MPI, Slurm, GKE's TPU variables, a Cloud TPU VM's metadata and Kubernetes, in this "
    "order; where none of them answers, --coordinator, --process_id and --num_processes are needed"
)


@dataclasses.dataclass(frozen=True)
class Launch:
    """How this process finds the others."""

    distributed: str = "auto"  # 'on': jax asks the environment; 'off'; 'auto': on where the environment names several
    coordinator: str = ""  # HOST:PORT of process 0, where nothing else tells
    process_id: int | None = None
    num_processes: int | None = None
    local_devices: int | None = None  # that this process has; on the CPU as many are made
    peer_seconds: float = 60.0  # without a sign of life a process counts as dead, and the others end

    def __post_init__(self) -> None:
        """Raises ProcessesError naming the flag, its value and what is allowed."""
        if self.distributed not in ("auto", "on", "off"):
            raise ProcessesError(f"--distributed={self.distributed}: not one of auto, on, off")
        given = {name: getattr(self, name) for name in ("coordinator", "process_id", "num_processes")}
        missing = [f"--{name}" for name, value in given.items() if value in ("", None)]
        there = {f"--{name}" for name in given}.difference(missing)
        if 0 < len(missing) < len(given):
            raise ProcessesError(f"{', '.join(missing)}: missing, needed beside {', '.join(sorted(there))}")
        if not missing:
            self._check_explicit()
        if self.local_devices is not None and self.local_devices < 1:
            raise ProcessesError(f"--local_devices={self.local_devices}: at least 1")
        if not 1 <= self.peer_seconds < 24 * 3600:
            raise ProcessesError(f"--peer_seconds={self.peer_seconds}: from 1 to below a day")

    def _check_explicit(self) -> None:
        assert self.num_processes is not None
        assert self.process_id is not None
        if self.distributed == "off":
            raise ProcessesError("--distributed=off: contradicts --coordinator, --process_id and --num_processes")
        if self.num_processes < 1:
            raise ProcessesError(f"--num_processes={self.num_processes}: at least 1")
        if not 0 <= self.process_id < self.num_processes:
            raise ProcessesError(
                f"--process_id={self.process_id}: from 0 to {self.num_processes - 1} (--num_processes - 1)"
            )
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ProcessesError(f"--coordinator={self.coordinator}: expected HOST:PORT")

    def is_several(self, environment: Mapping[str, str]) -> bool:
        """Whether there are other processes. Raises ProcessesError where the environment's words make no sense."""
        if self.coordinator:
            return self.num_processes != 1
        if self.distributed != "auto":
            return self.distributed == "on"
        for name, count in MANY.items():
            try:
                if name in environment and count(environment[name]) > 1:
                    return True
            except ValueError as error:
                raise ProcessesError(f"{name}={environment[name]!r}: not a number of processes") from error
        return False


def start(launch: Launch) -> None:
    """Joins the run's other processes, if there are any; before anything asks jax for a device.

    Raises:
      ProcessesError: the others were not found, or this process has not the devices that `launch` says.
    """
    if launch.local_devices is not None:
        jax.config.update("jax_num_cpu_devices", launch.local_devices)
    if launch.is_several(os.environ):
        _join(launch)
    elif (
        jax.process_count() > 1
    ):  # hosts of a Cloud TPU slice stand in its metadata: libtpu joins them, and jax does not
        raise ProcessesError(
            f"--distributed={launch.distributed}: the devices are those of {jax.process_count()} processes, which have "
            "not joined each other; here it must be --distributed=on"
        )
    if launch.local_devices is not None and jax.local_device_count() != launch.local_devices:
        raise ProcessesError(
            f"--local_devices={launch.local_devices}: this process has {jax.local_device_count()} "
            f"({jax.local_devices()[0].device_kind})"
        )


def _join(launch: Launch) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Its C++ handler would take SIGTERM away from `stages.interruption`, which agrees on the step itself.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            launch.coordinator or None,
            launch.num_processes,
            launch.process_id,
            cluster_detection_method="deactivate" if launch.coordinator else None,
            # Jax aborts by itself with a long trace: only if the watchdog below could not.
            heartbeat_timeout_seconds=int(2 * launch.peer_seconds) + 10,
        )
    except (ValueError, RuntimeError) as error:
        advice = f". {UNKNOWN_ENVIRONMENT}" if not launch.coordinator else ""
        raise ProcessesError(f"the processes of this run did not find each other: {error}{advice}") from error
    joined = distributed.global_state  # jax.process_index() would already wait for the others' devices
    Watchdog.of_this_process = Watchdog(joined.process_id, joined.num_processes, launch.peer_seconds)


def finish() -> None:
    """At the end of all work: waits for the other processes, then lets them go."""
    if Watchdog.of_this_process is not None:
        wait_for_all("finish")
        Watchdog.of_this_process.stop()
        jax.distributed.shutdown()


# Who does what --------------------------------------------------------------------------------------------------------


def are_several() -> bool:
    """Whether this process has joined others."""
    return Watchdog.of_this_process is not None


def is_alone() -> bool:
    """Whether nobody else takes part in what this process does now: the writer, in what it looks up for all."""
    return jax.process_count() == 1 or _Talk.writer_is_alone


def is_writer() -> bool:
    """Whether this process writes the files of the run and shows its progress."""
    return jax.process_index() == 0


def await_file(path: pathlib.Path, seconds: float = SHOWN_SECONDS) -> None:
    """Returns once a file that another process has written shows up here. FileNotFoundError if it does not in time."""
    deadline = time.monotonic() + seconds
    while not path.is_file():
        if time.monotonic() > deadline:
            raise FileNotFoundError(errno.ENOENT, f"not there after {seconds:.0f} s", str(path))
        time.sleep(0.2)


def by_writer(write: Callable[P, object]) -> Callable[P, None]:
    """A function that writes files and does nothing else: in the other processes it does nothing."""

    @functools.wraps(write)
    def written(*args: P.args, **kwargs: P.kwargs) -> None:
        if is_writer():
            write(*args, **kwargs)

    return written


def own_part(items: Sequence[T]) -> list[tuple[int, T]]:
    """Of work that any process can do, what this one does: every `process_count`-th item with its index."""
    mine = range(jax.process_index(), len(items), jax.process_count())
    return [(index, items[index]) for index in mine]


def own_rows(sharding: Sharding, count: int) -> np.ndarray:
    """[count] bool: which rows of a batch laid out so are this process's to read: every row is exactly one's."""
    owner = np.full(count, np.iinfo(np.int64).max)
    for device, (rows, *_) in sharding.devices_indices_map((count,)).items():
        assert device is not None
        owner[rows] = np.minimum(owner[rows], device.process_index)
    return owner == jax.process_index()


# Arrays ---------------------------------------------------------------------------------------------------------------


def place(array: Any, sharding: Sharding) -> jax.Array:
    """A host array, the same in all processes, on the devices of `sharding`; each process places its shards."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    values = np.asarray(array)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def here(array: jax.Array, fill: float = 0) -> np.ndarray:
    """What of an array lies on this process's devices, in its place; `fill` elsewhere."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    found = np.full(array.shape, fill, array.dtype)
    for shard in array.addressable_shards:
        found[shard.index] = np.asarray(shard.data)
    return found


def whole(array: jax.Array) -> np.ndarray:
    """The array on every host; it passes through the memory of every device."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    with waiting_at("an array from all"):
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def fill_in_rows(own: np.ndarray, arrays: Sequence[np.ndarray]) -> None:
    """Completes host arrays of which every process has filled the rows marked by its `own` [N] bool."""
    if jax.process_count() == 1:
        return
    for rows, parts in gather_objects((np.flatnonzero(own), [array[own] for array in arrays])):
        for array, part in zip(arrays, parts, strict=True):
            array[rows] = part


# Objects and flags ----------------------------------------------------------------------------------------------------


def gather_objects(mine: T) -> list[T]:
    """What every process passes (anything that can be pickled), in the order of the processes."""
    if jax.process_count() == 1:
        return [mine]
    data = np.frombuffer(pickle.dumps(mine, protocol=5), np.uint8)
    with waiting_at("what is gathered"):
        sizes = _gather_sizes(data.size)
    # Powers of two: few shapes, so few programs that move them.
    piece = min(1 << (max(sizes) - 1).bit_length(), GATHERED_BYTES // jax.process_count())
    parts: list[list[bytes]] = [[] for _ in sizes]
    for begin in range(0, max(sizes), piece):
        sent = np.zeros(piece, np.uint8)
        own = data[begin : begin + piece]
        sent[: own.size] = own
        for part, got, size in zip(parts, multihost_utils.process_allgather(sent), sizes, strict=True):
            part.append(got[: max(0, size - begin)].tobytes())
    return [pickle.loads(b"".join(part)) for part in parts]


def _gather_sizes(mine: int) -> list[int]:
    """Numbers of bytes below 2^62, as two of 31 bits: on the devices an int64 is cut off to 32 without a word."""
    halves = multihost_utils.process_allgather(np.array(divmod(mine, 2**31), np.int32))
    return [int(high) * 2**31 + int(low) for high, low in halves]


def gather_dicts(mine: Mapping[int, T]) -> dict[int, T]:
    """The dictionaries of all processes as one, by ascending key; no key is in two of them."""
    merged = {key: value for part in gather_objects(dict(mine)) for key, value in part.items()}
    return {key: merged[key] for key in sorted(merged)}


def ask_together(mine: Sequence[T], ask: Callable[[list[T]], Sequence[R]]) -> list[R]:
    """What `ask`, called by all processes with the items of all of them, answers to this one's. Not called for none."""
    parts = gather_objects(list(mine))
    everyones = [item for part in parts for item in part]
    before = sum(len(part) for part in parts[: jax.process_index()])
    return list(ask(everyones)[before : before + len(mine)]) if everyones else []


def from_writer(make: Callable[[], T]) -> T:
    """What `make` returns, or raises, in the writer, in all processes: of files that only the writer surely sees.

    Within `make` the writer is alone: there this is just a call.
    """
    if is_alone():
        return make()
    result: tuple[T | None, Exception | None] = (None, None)
    if is_writer():
        _Talk.writer_is_alone = True
        try:
            result = _attempt(make)
        finally:
            _Talk.writer_is_alone = False
    wait_for_all("what the writer looks up")  # on the host: a wait on the devices may have a limit
    return _value_of(gather_objects(result)[0])


def from_each(make: Callable[[], T]) -> list[T]:
    """What `make` returns in each process, in their order; the first error of any of them is raised in all."""
    if is_alone():
        return [make()]
    result = _attempt(make)
    wait_for_all("what each process looks up")
    return [_value_of(one) for one in gather_objects(result)]


def _attempt(make: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return make(), None
    except Exception as error:  # noqa: BLE001  (raised again by `_value_of`, in all processes)
        return None, error


def _value_of(result: tuple[T | None, Exception | None]) -> T:
    value, failure = result
    if failure is not None:
        raise failure
    return value  # type: ignore[return-value]


def wait_for_all(what: str) -> None:
    """Returns once all processes are here; `what` tells one such place from another."""
    if jax.process_count() > 1:
        with waiting_at(what):
            client().wait_at_barrier(f"{KEYS}/{what}", BARRIER_MILLISECONDS)


def agree(flag: bool) -> bool:
    """Whether any process has its flag set: the same answer in all of them. Does not touch the devices."""
    if jax.process_count() == 1:
        return flag
    service = client()
    _Talk.agreements += 1
    key = f"{KEYS}/agree/{_Talk.agreements}"
    if flag:
        service.key_value_set(f"{key}/{jax.process_index()}", "1")
    wait_for_all("agree")
    return bool(service.key_value_dir_get(f"{key}/"))


class _Talk:
    """Where this process stands in what all say to each other."""

    agreements = 0  # questions so far: an answer is never taken for another's
    writer_is_alone = False  # in the function of a `from_writer`
