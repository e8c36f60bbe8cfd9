"""Worker processes that hang, crash, raise, eat memory or are killed; this file is also what they import."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any

import pytest

from r1jax.rewards.mathematics.math_verify_alone import verify_alone
from r1jax.rewards.workers import Ending, Outcome, WorkerError, WorkerPool

WAIT = 20.0  # seconds for a healthy answer on a busy machine


def act(what: str, argument: Any = None) -> Any:
    """What a worker is asked to do here."""
    if what == "hang":
        while True:
            pass
    if what == "sleep":
        time.sleep(argument)
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "raise":
        raise ValueError("it cannot be done")
    if what == "print":
        print("noise " * 10_000)
    if what == "memory":
        return len(bytearray(argument))
    if what == "modules":
        return sorted(name for name in ("jax", "numpy", "__mp_main__") if name in sys.modules)
    if what == "write":
        with pathlib.Path(argument).open("w") as file:
            file.write("x")
    if what == "hash":
        return hash("the same in every worker")
    return argument


def done(value: Any) -> Outcome:
    return Outcome(Ending.DONE, value)


@pytest.fixture
def pool() -> Any:
    with WorkerPool(act, 2, WAIT) as opened:
        yield opened


def test_values_come_back_in_order_whoever_computed_them(pool: WorkerPool) -> None:
    assert pool.map([("echo", n) for n in range(50)]) == [done(n) for n in range(50)]
    assert pool.map([("print", n) for n in range(3)]) == [done(n) for n in range(3)]
    assert len({outcome.value for outcome in pool.map([("hash",)] * 20)}) == 1
    assert pool.counts == Counter(done=73)


def test_a_worker_imports_neither_jax_nor_the_main_module() -> None:
    with WorkerPool(act, 1, WAIT) as pool:
        assert pool.submit("modules").result() == done([])
    with WorkerPool(verify_alone, 1, WAIT) as pool:
        assert pool.submit("$x$", "$x$").result() == done(True)


def test_a_hanging_item_ends_its_worker_and_no_other_item() -> None:
    with WorkerPool(act, 2, WAIT) as pool:
        assert pool.map([("echo", 1)] * 4) == [done(1)] * 4
        pool.timeout_seconds = 0.3
        before = set(pool.process_ids())
        began = time.monotonic()
        assert pool.submit("hang").result() == Outcome(Ending.TIMED_OUT, reason="more than 0.3 s")
        assert time.monotonic() - began < 5
        pool.timeout_seconds = WAIT
        assert len(before & set(pool.process_ids())) == 1
        assert pool.map([("echo", n) for n in range(6)]) == [done(n) for n in range(6)]
        assert pool.counts == Counter(done=10, timed_out=1, replaced=1)


def test_the_time_to_start_a_worker_is_not_the_items() -> None:
    with WorkerPool(act, 1, 0.5) as pool:
        for _ in range(3):
            assert pool.submit("hang").result().ending is Ending.TIMED_OUT
            assert pool.submit("echo", 1).result() == done(1)


def test_a_crash_is_told_with_its_signal(pool: WorkerPool) -> None:
    outcome = pool.submit("crash").result()
    assert outcome == Outcome(Ending.CRASHED, reason="the grading process died with exit status -11")
    assert pool.map([("echo", n) for n in range(4)]) == [done(n) for n in range(4)]
    assert pool.counts == Counter(done=4, crashed=1, replaced=1)


def test_a_worker_killed_in_the_middle_of_an_item_is_replaced() -> None:
    with WorkerPool(act, 1, WAIT) as pool:
        assert pool.submit("echo", 1).result() == done(1)
        future = pool.submit("sleep", WAIT)
        time.sleep(0.2)
        os.kill(pool.process_ids()[0], signal.SIGKILL)
        assert future.result() == Outcome(Ending.CRASHED, reason="the grading process died with exit status -9")
        assert pool.submit("echo", 2).result() == done(2)


def test_a_worker_killed_between_items_costs_no_item() -> None:
    with WorkerPool(act, 1, WAIT) as pool:
        assert pool.submit("echo", 1).result() == done(1)
        process = pool.process_ids()[0]
        os.kill(process, signal.SIGKILL)
        deadline = time.monotonic() + WAIT
        while pathlib.Path(f"/proc/{process}/stat").read_text().split()[2] != "Z" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert pool.submit("echo", 2).result() == done(2)
        assert pool.counts == Counter(done=2, replaced=1)


def test_what_the_function_raises_is_told_and_the_worker_stays(pool: WorkerPool) -> None:
    before = pool.process_ids()
    assert pool.submit("raise").result() == Outcome(Ending.FAILED, reason="ValueError: it cannot be done")
    assert pool.process_ids() == before
    assert pool.counts["failed"] == 1


def test_memory_and_files_are_limited(tmp_path: pathlib.Path) -> None:
    with WorkerPool(act, 1, WAIT, memory_bytes=512 << 20) as pool:
        assert pool.submit("memory", 1 << 20).result() == done(1 << 20)
        assert pool.submit("memory", 1 << 30).result() == Outcome(Ending.FAILED, reason="MemoryError: ")
        assert pool.submit("write", str(tmp_path / "file")).result().ending is Ending.FAILED
        assert not (tmp_path / "file").exists() or (tmp_path / "file").read_text() == ""


def test_many_threads_may_ask_at_once(pool: WorkerPool) -> None:
    found: list[Outcome] = []
    threads = [threading.Thread(target=lambda n=n: found.append(pool.submit("echo", n).result())) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcome.value for outcome in found) == list(range(16))


def test_closing_ends_every_process_also_after_an_error() -> None:
    processes: list[int] = []

    def fail_with_a_pool() -> None:
        with WorkerPool(act, 2, WAIT) as pool:
            pool.map([("echo", 1)] * 2)
            processes.extend(pool.process_ids())
            raise KeyError

    with pytest.raises(KeyError):
        fail_with_a_pool()
    pool = WorkerPool(act, 2, WAIT)
    processes += pool.process_ids()
    pool.close()
    assert len(processes) == 4
    assert not any(pathlib.Path(f"/proc/{process}").exists() for process in processes)
    with pytest.raises(WorkerError, match="closed"):
        pool.submit("echo", 1)
    pool.close()


def test_workers_end_with_the_process_that_opened_the_pool() -> None:
    program = (
        "import sys; sys.path[:0] = sys.argv[1:]; import test_workers as t\n"
        "pool = t.WorkerPool(t.act, 1, 20); pool.submit('echo', 1).result()\n"
        "print(pool.process_ids()[0], flush=True); import os; os.kill(os.getpid(), 9)"
    )
    folders = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[1])]
    ended = subprocess.run([sys.executable, "-c", program, *folders], capture_output=True, text=True, check=False)
    process = pathlib.Path(f"/proc/{ended.stdout.strip()}")
    deadline = time.monotonic() + WAIT
    while process.exists() and process.joinpath("stat").read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ended.stdout.strip().isdigit()
    assert not process.exists() or process.joinpath("stat").read_text().split()[2] == "Z"


def broken() -> None:
    """Found by no worker once its name is changed."""


def test_a_function_that_a_worker_cannot_find_is_an_error_not_a_grade(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broken, "__name__", "no_such_function")
    with WorkerPool(broken, 1, WAIT) as pool, pytest.raises(WorkerError, match="no_such_function"):
        pool.submit().result()
    with pytest.raises(ValueError, match="not a function of a module"):
        WorkerPool(lambda: None, 1, 1.0)
    for size, seconds in ((0, 1.0), (1, 0.0)):
        with pytest.raises(ValueError, match="a pool of"):
            WorkerPool(act, size, seconds)
