"""Several processes of one run on this machine, over gloo: to try a pod's program where there is none.

    python -m tools.launch.local --processes 2 --devices 4 -- --config=configs/r1_zero.py:tiny --workdir=runs/two

What stands behind `--` goes to `python -m r1jax.train` of every process; `--module` names another program that takes
the same flags of processes (--coordinator, --process_id, --num_processes, --local_devices). Their output comes with the
number of the process in front. SIGTERM, SIGHUP and Ctrl-C are handed to all of them, once. When one fails, the others
have `--grace` seconds to end by themselves, which r1jax does, and are killed after that. The exit status is that of
the process that ended first with another than 0.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Sequence
from typing import IO

POLL_SECONDS = 0.1


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended."""

    process: int
    status: int  # negative: the signal that killed it
    seconds: float  # since the start


class LocalRun:
    """The processes of one run; `wait` returns when all have ended."""

    def __init__(
        self,
        arguments: Sequence[str],
        processes: int,
        devices: int,
        module: str = "r1jax.train",
        output: IO[str] | None = None,
        grace: float = 60.0,
    ) -> None:
        """Starts them.

        Args:
          arguments: of the program, for all alike.
          processes: how many.
          devices: CPU devices of each.
          module: the program.
          output: where their output goes, a line at a time; default: stderr.
          grace: seconds that the others have after one has failed.
        """
        self.grace, self.ended = grace, list[Ended]()
        self._output, self._lock = output or sys.stderr, threading.Lock()
        self._began = time.monotonic()
        join = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={processes}", f"--local_devices={devices}"]
        command = [sys.executable, "-u", "-m", module, *arguments]
        if processes == 1:
            join = join[2:]
        self.processes = [
            subprocess.Popen(
                [*command, *join, *([f"--process_id={index}"] if processes > 1 else [])],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
                start_new_session=True,  # a terminal's Ctrl-C goes to its whole group: it would reach them twice
            )
            for index in range(processes)
        ]
        self._readers = [threading.Thread(target=self._forward, args=(index,)) for index in range(processes)]
        for reader in self._readers:
            reader.start()

    def _forward(self, index: int) -> None:
        stream = self.processes[index].stdout
        assert stream is not None
        with stream:
            for line in stream:
                with self._lock:
                    self._output.write(f"[{index}] {line}")
                    self._output.flush()

    def signal(self, number: int) -> None:
        """Sends a signal to all that run."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def running(self) -> bool:
        """Whether any process still runs; notes those that have ended since the last look."""
        known = {one.process for one in self.ended}
        for index, process in enumerate(self.processes):
            if index not in known and process.poll() is not None:
                self.ended.append(Ended(index, process.returncode, time.monotonic() - self._began))
        return len(self.ended) < len(self.processes)

    def wait(self) -> int:
        """Waits for all; kills those that are left `grace` seconds after one has failed. The exit status of the run.

        Whatever ends the wait ends them too: no terminal does.
        """
        try:
            while self.running():
                failed = [one for one in self.ended if one.status]
                if failed and time.monotonic() - self._began > failed[0].seconds + self.grace:
                    self.signal(signal.SIGKILL)
                time.sleep(POLL_SECONDS)
        except BaseException:
            self.signal(signal.SIGKILL)
            raise
        for reader in self._readers:
            reader.join()
        first = next((one.status for one in self.ended if one.status), 0)
        return first if first >= 0 else 128 - first  # as a shell says it


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=1, help="CPU devices of each process")
    parser.add_argument("--module", default="r1jax.train")
    parser.add_argument("--grace", type=float, default=60.0, help="seconds")
    parser.add_argument("arguments", nargs="+", help="of the program, behind --")
    return parser.parse_args()


def main() -> int:
    """Runs them and passes signals on."""
    arguments = parse_arguments()
    run = LocalRun(arguments.arguments, arguments.processes, arguments.devices, arguments.module, grace=arguments.grace)

    def pass_on(number: int, frame: types.FrameType | None) -> None:
        run.signal(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, pass_on)
    return run.wait()


if __name__ == "__main__":
    sys.exit(main())
