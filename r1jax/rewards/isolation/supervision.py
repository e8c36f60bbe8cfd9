"""One confined program from its start to the death of its last process: output in bounded pieces, limits that the
kernel does not keep for a whole tree of processes.

Everything happens in the calling thread, around one selector. Ending a run means killing the first process of its
process namespace, upon which the kernel kills all others there, whatever they did to sessions, groups and signals;
bubblewrap ends only after that, so when it is gone, they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import selectors
import signal
import subprocess
import time

from r1jax.rewards.isolation.confinement import WORK, Limits, SandboxUnavailableError

FILES = 20_000  # in /box; the size of a tmpfs does not bound them, and each takes about 1 KB of the kernel's memory
WATCH_SECONDS = 0.025
GRACE_SECONDS = 5.0
_PIECE = 2**16
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclasses.dataclass(frozen=True)
class Ended:
    """What is left of a run. `cut` is why it was killed: timed_out, output_limit, memory, files, or empty."""

    cut: str
    exit_code: int | None  # as bubblewrap reports it: 128 + signal; None if the program never started
    stdout: bytes
    stderr: bytes
    wall_seconds: float
    cpu_seconds: float


def _tree(pid: int) -> list[int]:
    """`pid` and its descendants; those that end meanwhile may be left out."""
    found, position = [pid], 0
    while position < len(found):
        with contextlib.suppress(OSError):
            for thread in pathlib.Path(f"/proc/{found[position]}/task").iterdir():
                found += map(int, (thread / "children").read_text(encoding="ascii").split())
        position += 1
    return found


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(pathlib.Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE
    return 0


def _proportional(pid: int) -> int:
    """Resident memory with each shared page divided among those who share it; 0 where it may not be read."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def overuse(first: int, limits: Limits) -> str:
    """What the processes from `first` on use too much of together: "memory", "files", or nothing."""
    tree = _tree(first)
    if sum(map(_resident, tree)) > limits.memory_bytes and sum(map(_proportional, tree)) > limits.memory_bytes:
        return "memory"
    with contextlib.suppress(OSError):
        room = os.statvfs(f"/proc/{first}/root{WORK}")
        inside = 0 <= room.f_blocks * room.f_frsize - limits.tmp_bytes < _PAGE  # at first the root is still the host's
        if inside and room.f_files - room.f_ffree > FILES:
            return "files"
    return ""


class _Run:
    """The state of one run while it lasts."""

    def __init__(self, process: subprocess.Popen[bytes], status: int, limits: Limits, started: float) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.process, self.limits, self.started = process, limits, started
        self.status_fd = status
        self.pieces = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray(), status: bytearray()}
        self.monitor = os.pidfd_open(process.pid)
        self.first: int | None = None  # the first process of the namespace
        self.first_fd: int | None = None
        self.cut = ""
        self.cut_at = 0.0

    def close(self) -> None:
        for descriptor in (self.monitor, self.first_fd):
            if descriptor is not None:
                os.close(descriptor)

    def kill(self, cut: str) -> None:
        """Ends the run for the reason `cut`, unless it is being ended already."""
        if self.cut:
            return
        self.cut, self.cut_at = cut, time.monotonic()
        if self.first_fd is None:
            self.kill_group()
        else:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.first_fd, signal.SIGKILL)

    def kill_group(self) -> None:
        """The hard way: without bubblewrap's account of the run."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def read(self, descriptor: int) -> bool:
        """Takes what is there; False at the end of the pipe."""
        try:
            piece = os.read(descriptor, _PIECE)
        except BlockingIOError:
            return True
        if descriptor == self.status_fd:
            self.pieces[descriptor] += piece
            if self.first is None and b"\n" in self.pieces[descriptor]:
                self.first = int(self.status()["child-pid"])
                with contextlib.suppress(ProcessLookupError):
                    self.first_fd = os.pidfd_open(self.first)
            return bool(piece)
        room = self.limits.output_bytes - sum(
            len(read) for source, read in self.pieces.items() if source != self.status_fd
        )
        self.pieces[descriptor] += piece[:room]
        if len(piece) > room:
            self.kill("output_limit")
        return bool(piece)

    def status(self) -> dict[str, int]:
        """What bubblewrap said of the run so far."""
        said: dict[str, int] = {}
        for line in self.pieces[self.status_fd].rpartition(b"\n")[0].splitlines():
            said |= json.loads(line)
        return said

    def look(self) -> float:
        """Checks the clock and what is used; seconds until the next look."""
        now = time.monotonic()
        left = self.started + self.limits.wall_seconds - now
        if self.cut:
            if now > self.cut_at + 2 * GRACE_SECONDS:
                raise SandboxUnavailableError(f"process {self.process.pid} of the sandbox cannot be ended")
            if now > self.cut_at + GRACE_SECONDS:
                self.kill_group()
            return 0.1
        if left <= 0:
            self.kill("timed_out")
            return 0.1
        if self.first is not None and now - self.started > 2 * WATCH_SECONDS:
            used = overuse(self.first, self.limits)
            if used:
                self.kill(used)
        return min(left, WATCH_SECONDS)

    def follow(self) -> None:
        """Returns when bubblewrap has ended and all that was written is read."""
        with selectors.DefaultSelector() as selector:
            for descriptor in (*self.pieces, self.monitor):
                selector.register(descriptor, selectors.EVENT_READ)
            running = True
            while running:
                for key, _ in selector.select(self.look()):
                    if key.fd == self.monitor:
                        running = False
                    elif not self.read(key.fd):
                        selector.unregister(key.fd)
        for descriptor in self.pieces:  # every writer is dead: what the pipes hold is all there will be
            while _is_readable(descriptor) and self.read(descriptor):
                pass


def _is_readable(descriptor: int) -> bool:
    """Whether a read returns at once."""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        return bool(selector.select(0))


def supervise(process: subprocess.Popen[bytes], status: int, limits: Limits, started: float) -> Ended:
    """Follows a run to its end, within `limits`. `status` is the reading end of bubblewrap's `--json-status-fd`.

    SandboxUnavailableError if processes remain; then and on any other exception the group has been killed.
    """
    run = None
    try:
        run = _Run(process, status, limits, started)
        for descriptor in run.pieces:
            os.set_blocking(descriptor, False)
        run.follow()
        _, ended, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(ended)
        stdout, stderr, _ = run.pieces.values()
        return Ended(
            cut=run.cut,
            exit_code=run.status().get("exit-code"),
            stdout=bytes(stdout),
            stderr=bytes(stderr),
            wall_seconds=time.monotonic() - started,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
        )
    except OSError as error:
        raise SandboxUnavailableError(f"a run cannot be followed: {error}") from error
    finally:
        if process.returncode is None:
            if run is not None:
                run.kill("abandoned")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if run is not None:
            run.close()
