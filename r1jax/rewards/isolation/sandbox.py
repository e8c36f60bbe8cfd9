"""Runs a program that nobody has read: the code a model wrote, with its input, and nothing else of this machine.

A run is one program in bubblewrap with all namespaces unshared. It sees a read-only minimal file system (the system's
programs and libraries, this Python's standard library without installed packages) and its own /box, a tmpfs of bounded
size and its working directory, in which `files` lie, readable and executable but not writable, each in its place until
the run ends. It has no network, no environment of the host's, no capabilities, no way to new privileges, no /proc, a
seccomp filter (`seccomp`), and rlimits for CPU, address space, processes, file size and open files. A wall-clock limit
kills the whole tree, and so does too much output, memory or files. When the first process ends, all others die.

What comes out is bytes and a number. Expected outputs and hidden tests never go in: whoever asked compares, outside, so
the best a program can do is to print the right answer. It can print anything else too, and end with any exit code, as
if by any signal: read nothing into an outcome but that.

It fails closed. Where isolation is not to be had, `check` says why and `run` raises SandboxUnavailableError; a program
is never run without it. The grade server (`python -m tools.grade_server`) is for such hosts.

What it does not stop:

- a hole in the kernel: the program runs on the host's own kernel, with the system calls that the filter leaves;
- side channels: timing, caches, load; the clock, the machine's CPU, and which programs /usr/bin holds can be seen;
- using what it may use: `parallel` runs, each with its CPU seconds for each process and its memory. Memory of all
  processes together is looked at every 25 ms, and may overshoot for so long; the firm bound is `memory_bytes` times
  `processes`, plus `tmp_bytes`. Where the host's /proc does not list children, only the firm bound is left;
- a secret that is readable for all below /usr/bin, /usr/lib, /usr/include, /usr/libexec or the interpreter's lib;
- a wrong use: a test's expected output among `files` or in `stdin` is the program's to read.

Linux 5.14 or newer (where the processes of each sandbox are counted apart) on x86_64 or aarch64.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from r1jax.rewards.isolation.confinement import (
    ADVICE,
    PYTHON,
    Confinement,
    Limits,
    SandboxUnavailableError,
    find_confinement,
)
from r1jax.rewards.isolation.seccomp import filter_program
from r1jax.rewards.isolation.supervision import Ended, supervise

__all__ = ["Job", "Limits", "Outcome", "Sandbox", "SandboxUnavailableError", "check_job", "python_command"]

DEFAULT_LIMITS = Limits()
MAX_FILES = 100
MAX_COMMAND_BYTES = 100_000
_LONGEST_NAME = 200
_UNWRITABLE = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL

_COUNT = "limit of processes"  # as the probe calls it
# What `check` runs: prints the facts that do not hold.
_PROBE = """
import ctypes, json, os, time
def refused(action):
    try:
        action()
    except OSError:
        return True
    return False
import socket
children = []
def fork():
    for _ in range(8):
        child = os.fork()
        if not child:
            time.sleep(60)
        children.append(child)
facts = {
    "system call filter": ctypes.CDLL(None).prctl(21, 0, 0, 0, 0) == 2,
    "lock on privileges": ctypes.CDLL(None).prctl(39, 0, 0, 0, 0) == 1,
    "refusal of sockets": refused(socket.socket),
    "read-only root": refused(lambda: open("/x", "w")) and refused(lambda: open("/usr/lib/x", "w")),
    "absence of /proc": not os.path.exists("/proc"),
    "writable /box": not refused(lambda: open("/box/x", "w").close()),
    "empty environment": len(os.environ) < 9 and os.environ["HOME"] == "/box",
    "limit of processes": refused(fork) and len(children) == 3,
}
print(json.dumps([name for name, held in facts.items() if not held]))
"""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended. `status` is one of

    - exited: with `exit_code`;
    - signalled: by `signal`; that is how a shell tells it, so an exit code of 128 + n reads the same. SIGKILL also
      stands for too much memory or too many files of all processes together;
    - timed_out: killed at the wall-clock limit, or ended by SIGXCPU at the CPU limit;
    - output_limit: killed while writing more than `output_bytes`, which is what is kept.

    `cpu_seconds` is that of all processes, but for those that a program hides from its parent (SIGCHLD ignored).
    """

    status: str
    exit_code: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    wall_seconds: float
    cpu_seconds: float

    @property
    def ok(self) -> bool:
        """Whether the program ended by itself with 0; says nothing about what it printed."""
        return self.status == "exited" and self.exit_code == 0


class Job(NamedTuple):
    """The arguments of one `Sandbox.run`; a plain tuple does as well."""

    command: Sequence[str]
    files: Mapping[str, bytes]
    stdin: bytes = b""
    limits: Limits | None = None


def python_command(file: str, *arguments: str) -> tuple[str, ...]:
    """Runs `file` in this Python inside: UTF-8, no installed packages, /box not on the import path."""
    return (PYTHON, "-I", "-B", "-X", "utf8", file, *arguments)


def check_job(command: Sequence[str], files: Mapping[str, bytes]) -> None:
    """ValueError for a command or files that cannot be had inside, naming them."""
    if isinstance(command, str) or not command or not all(isinstance(word, str) for word in command):
        raise ValueError(f"a command is a sequence of strings, the program first, got {command!r}")
    if any("\0" in word for word in command) or sum(len(word.encode()) for word in command) > MAX_COMMAND_BYTES:
        raise ValueError(f"a command has no zero byte and at most {MAX_COMMAND_BYTES} bytes")
    if len(files) > MAX_FILES:
        raise ValueError(f"at most {MAX_FILES} files, got {len(files)}")
    for name, content in files.items():
        path = pathlib.PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts or str(path) != name or "\0" in name or name == ".":
            raise ValueError(f"a file's name is a plain path below the working directory, got {name!r}")
        if len(name.encode()) > _LONGEST_NAME or not isinstance(content, bytes):
            raise ValueError(f"file {name[:40]!r}: the name has at most {_LONGEST_NAME} bytes, the content is bytes")
        if any(str(parent) in files for parent in path.parents):
            raise ValueError(f"file {name!r} lies within another file")


def _sealed(content: bytes) -> int:
    """A descriptor to read `content` from, which no one can write to."""
    descriptor = os.memfd_create("r1jax", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(descriptor, "wb", closefd=False) as writer:
            writer.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _UNWRITABLE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _outcome(ended: Ended) -> Outcome:
    status, code, by = ended.cut, ended.exit_code, None
    if status in ("memory", "files"):
        status, by = "signalled", int(signal.SIGKILL)
    elif status:
        by = int(signal.SIGKILL)
    elif code is not None and 128 < code < 128 + signal.NSIG:
        status, by = "signalled", code - 128
        if by == signal.SIGXCPU:
            status = "timed_out"
    else:
        status = "exited"
    return Outcome(
        status=status,
        exit_code=code if status == "exited" else None,
        signal=by,
        stdout=ended.stdout,
        stderr=ended.stderr,
        wall_seconds=ended.wall_seconds,
        cpu_seconds=ended.cpu_seconds,
    )


class Sandbox:
    """Runs programs in isolation, at most `parallel` at once, whichever threads ask. Safe to share among threads."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS, parallel: int | None = os.cpu_count()) -> None:
        if parallel is not None and parallel < 1:
            raise ValueError(f"parallel must be at least 1, got {parallel}")
        self.limits = limits
        self.parallel = parallel or 1
        self._places = threading.BoundedSemaphore(self.parallel)
        self._found: Confinement | None = None

    def check(self) -> None:
        """Runs a program that looks around. SandboxUnavailableError says what of the isolation is missing and what to
        do. The first `run` does it too, but a reward should know at its start."""
        found = find_confinement()
        limits = Limits(processes=4, wall_seconds=60.0)
        with self._places:
            outcome = self._run(found, python_command("probe.py"), {"probe.py": _PROBE.encode()}, b"", limits)
        try:
            failed = json.loads(outcome.stdout)
        except ValueError as error:
            said = outcome.stderr.decode(errors="replace").strip()[-500:]
            raise SandboxUnavailableError(
                f"this Python does not run inside the sandbox ({outcome.status}, {outcome.exit_code}): {said}"
            ) from error
        if failed:
            old = "; Linux before 5.14 does not count the processes of a sandbox apart" if _COUNT in failed else ""
            raise SandboxUnavailableError(f"the sandbox does not hold here: no {', no '.join(failed)}{old}. {ADVICE}")
        self._found = found

    def run(
        self, command: Sequence[str], files: Mapping[str, bytes], stdin: bytes = b"", limits: Limits | None = None
    ) -> Outcome:
        """One run of `command` in a sandbox of its own, `files` (name: content) in its working directory.

        ValueError for a command or a file name that cannot be; SandboxUnavailableError for whatever is no program's
        fault. To compile first: `("sh", "-c", "g++ -O2 -o program main.cpp && exec ./program")`.
        """
        check_job(command, files)
        if self._found is None:
            self.check()
        assert self._found is not None
        with self._places:
            return self._run(self._found, command, files, stdin, limits or self.limits)

    def run_many(self, jobs: Iterable[Job | tuple]) -> list[Outcome]:
        """Outcomes of `jobs` (the arguments of `run`) in their order, `parallel` at once."""
        with concurrent.futures.ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(lambda job: self.run(*job), list(jobs)))

    @staticmethod
    def python_command(file: str, *arguments: str) -> tuple[str, ...]:
        """See the function of this name."""
        return python_command(file, *arguments)

    def _run(
        self,
        found: Confinement,
        command: Sequence[str],
        files: Mapping[str, bytes],
        stdin: bytes,
        limits: Limits,
    ) -> Outcome:
        with contextlib.ExitStack() as stack:

            def kept(descriptor: int) -> int:
                stack.callback(os.close, descriptor)
                return descriptor

            try:
                contents = {name: kept(_sealed(content)) for name, content in files.items()}
                source = kept(_sealed(stdin))
                filter_fd = kept(_sealed(filter_program(platform.machine())))
                status, told = os.pipe()
                kept(status)
            except OSError as error:
                raise SandboxUnavailableError(f"no descriptors for a run: {error}") from error
            line = found.command(command, limits, files=contents, filter_fd=filter_fd, status_fd=told)
            started = time.monotonic()
            try:
                process = subprocess.Popen(
                    line,
                    stdin=source,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env={},
                    cwd="/",
                    pass_fds=(*contents.values(), filter_fd, told),
                    start_new_session=True,
                )
            except OSError as error:
                raise SandboxUnavailableError(f"bubblewrap cannot be started: {error}") from error
            finally:
                os.close(told)
            with process:
                ended = supervise(process, status, limits, started)
        if ended.exit_code is None and not ended.cut:
            said = ended.stderr.decode(errors="replace").strip()[-500:]
            raise SandboxUnavailableError(f"no isolation on this host, bubblewrap said: {said or 'nothing'}. {ADVICE}")
        return _outcome(ended)
