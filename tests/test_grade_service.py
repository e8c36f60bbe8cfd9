"""The grade server: who may use it, how much, and what its client says of what goes wrong."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from test_sandbox import isolated

from r1jax.rewards.isolation import confinement
from r1jax.rewards.isolation.grade_service import (
    CEILING,
    GradeServer,
    RemoteSandbox,
    job_from_json,
    job_to_json,
    outcome_from_json,
    outcome_to_json,
    read_token,
)
from r1jax.rewards.isolation.sandbox import Job, Limits, Outcome, Sandbox, SandboxUnavailableError, python_command
from tools import grade_server

ROOT = pathlib.Path(__file__).parents[1]
TOKEN = "a-token-of-the-tests"


class Recorded:
    """A sandbox that runs nothing: it counts, waits, and answers with what it was asked."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.jobs, self.parallel = seconds, [], 2

    def check(self) -> None:
        pass

    def run(self, command, files, stdin=b"", limits=None):
        self.jobs.append(Job(command, files, stdin, limits))
        time.sleep(self.seconds)
        return Outcome("exited", 0, None, stdin, b"", self.seconds, 0.0)


@contextlib.contextmanager
def serving(sandbox, **bounds):
    with GradeServer(sandbox, TOKEN, ("127.0.0.1", 0), **bounds) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def client(port, token=TOKEN, **settings):
    return RemoteSandbox(f"http://127.0.0.1:{port}", token, **settings)


def ask(port, method="POST", path="/run", body=b"", token=TOKEN, headers=()):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path, body, {"Authorization": f"Bearer {token}", **dict(headers)})
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"{}")


def test_jobs_and_outcomes_survive_the_wire():
    job = Job(("sh", "-c", "七"), {"a/b": bytes(range(256))}, b"\0\xff", Limits(wall_seconds=1.5))
    assert job_from_json(job_to_json(job, Limits())) == job
    assert job_from_json(job_to_json(Job(("x",), {}), Limits())) == Job(("x",), {}, b"", Limits())
    outcome = Outcome("signalled", None, 9, b"\xff\0", b"", 0.5, 0.25)
    assert outcome_from_json(json.loads(json.dumps(outcome_to_json(outcome)))) == outcome


@isolated
def test_the_client_is_the_sandbox():
    local = Sandbox(parallel=2)
    with serving(local) as port:
        remote = client(port)
        remote.check()
        for program, limits in (
            ("print(int(input()) + 1)", None),
            ("import os; os.abort()", None),
            ("print('x' * 5000)", Limits(output_bytes=100)),
            ("import time; time.sleep(9)", Limits(wall_seconds=0.5)),
        ):
            job = (remote.python_command("m.py"), {"m.py": program.encode()}, b"6", limits)
            ours, theirs = (
                dataclasses.replace(box.run(*job), wall_seconds=0, cpu_seconds=0) for box in (local, remote)
            )
            assert ours == theirs


def test_the_tokens_of_others_are_refused():
    sandbox = Recorded()
    with serving(sandbox) as port:
        for token in ("another-token-entirely", TOKEN + "x", TOKEN[:-1] + "S", TOKEN.upper()):
            with pytest.raises(SandboxUnavailableError, match="401: wrong or missing token"):
                client(port, token).check()
            with pytest.raises(SandboxUnavailableError, match="401"):
                client(port, token).run(("true",), {})
        for headers in ({"Authorization": ""}, {"Authorization": TOKEN}, {"Authorization": "Bearer \u00e9"}):
            assert ask(port, headers=headers)[0] == 401
        assert ask(port, path="/nothing", token="")[0] == 401  # what there is, only those with the token learn
    assert sandbox.jobs == []


@pytest.mark.parametrize("token", ["", "short", "with blanks in between", "with-a-t\u00e9l\u00e9phone-in-it"])
def test_a_server_without_a_proper_token_does_not_start(token, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="token"):
        GradeServer(Recorded(), token, ("127.0.0.1", 0))
    (tmp_path / "token").write_text(token + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="token"):
        read_token(tmp_path / "token")
    monkeypatch.setenv("R1JAX_GRADE_TOKEN", token)
    with pytest.raises(ValueError, match="R1JAX_GRADE_TOKEN"):
        read_token()


def test_a_token_is_read_from_file_or_environment(tmp_path, monkeypatch):
    (tmp_path / "token").write_text(TOKEN + "\n", encoding="utf-8")
    assert read_token(tmp_path / "token") == TOKEN
    monkeypatch.setenv("R1JAX_GRADE_TOKEN", TOKEN)
    assert read_token() == TOKEN


def test_an_oversized_body_is_refused_unread():
    sandbox = Recorded()
    with serving(sandbox, max_body_bytes=1000) as port:
        with pytest.raises(ValueError, match="at most 1000 bytes"):
            client(port).run(("true",), {"a": bytes(5_000_000)})
        status, said = ask(port, body=b"x" * 1001)
        assert (status, said["error"]) == (413, "a body has at most 1000 bytes")
        for length in ("9" * 30, str(10**12)):  # announced, never sent: the answer does not wait for it
            with socket.create_connection(("127.0.0.1", port), 5) as raw:
                raw.sendall(
                    f"POST /run HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {length}\r\n\r\n".encode()
                )
                assert b" 413 " in raw.recv(100)
        for length in ("", "-1", "1e3", "\u00b2"):
            assert ask(port, method="POST", headers={"Content-Length": length.encode("latin-1")})[0] in (400, 411)
    assert sandbox.jobs == []


def change(**fields):
    body = json.loads(job_to_json(Job(("true",), {"a": b"x"}), Limits()))
    return json.dumps(body | fields).encode()


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "JSON"),
        (b"\xff", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b"[]", "object"),
        (b"{}", "object"),
        (change(more=1), "object"),
        (change(command="ls"), "list"),
        (change(command=[]), "command"),
        (change(command=[1]), "command"),
        (change(files=[]), "object"),
        (change(files={"a": "!"}), "base64"),
        (change(files={"a": 1}), "base64"),
        (change(files={"../a": ""}), "plain path"),
        (change(stdin=None), "base64"),
        (change(limits={}), "limits"),
        (change(limits=dataclasses.asdict(Limits()) | {"processes": 0}), "processes"),
        (change(limits=dataclasses.asdict(Limits()) | {"processes": 10**6}), "processes is at most 64"),
        (change(limits=dataclasses.asdict(Limits()) | {"wall_seconds": 1e6}), "wall_seconds is at most"),
    ],
)
def test_a_bad_body_is_told_what_is_wrong(body, complaint):
    with pytest.raises(ValueError, match=complaint):
        job_from_json(body, CEILING)


def test_bad_requests_leave_the_server_serving():
    sandbox = Recorded()
    with serving(sandbox) as port:
        assert ask(port, body=b"{")[0] == 400
        assert ask(port, path="/else")[0] == 404
        assert ask(port, method="GET", path="/run")[0] == 404
        assert ask(port, method="DELETE")[0] == 501
        with socket.create_connection(("127.0.0.1", port), 5) as raw:
            raw.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
            raw.recv(100)
        with socket.create_connection(("127.0.0.1", port), 5) as raw:  # hangs up in the middle of its body
            raw.sendall(f"POST /run HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 99\r\n\r\n{{".encode())
        assert client(port).run(("true",), {}, b"still here").stdout == b"still here"
    assert len(sandbox.jobs) == 1


@isolated
def test_fifty_requests_at_once():
    with serving(Sandbox(Limits(wall_seconds=60.0), parallel=2)) as port:
        remote = client(port, parallel=50, limits=Limits(wall_seconds=60.0))
        jobs = [Job(("sh", "-c", f"cat; echo {number}"), {}, b"number ") for number in range(50)]
        outcomes = remote.run_many(jobs)
    assert [outcome.stdout for outcome in outcomes] == [f"number {number}\n".encode() for number in range(50)]


def test_connections_are_bounded_and_a_client_waits_for_its_turn():
    sandbox = Recorded(0.05)
    with serving(sandbox, max_connections=3) as port:
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda n: client(port).run(("x",), {}, str(n).encode()).stdout, range(12)))
        assert [int(answer) for answer in answers] == list(range(12))
        with contextlib.ExitStack() as stack:  # three who connect and say nothing
            for _ in range(3):
                stack.enter_context(socket.create_connection(("127.0.0.1", port), 5))
            time.sleep(0.2)
            with pytest.raises(SandboxUnavailableError, match="busy"):
                client(port, patience_seconds=0.3).run(("x",), {})


def test_what_is_no_grade_server_is_said_so():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(SandboxUnavailableError, match=r"tools\.grade_server` running there"):
        client(port).check()
    with pytest.raises(SandboxUnavailableError, match="ConnectionRefusedError"):
        client(port).run(("true",), {})
    for url in ("https://host:1", "host:1", "http://", "http://host/path", ""):
        with pytest.raises(ValueError, match="url"):
            RemoteSandbox(url, TOKEN)


def test_a_server_whose_sandbox_does_not_hold_says_so(tmp_path, monkeypatch):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: Creating new namespace failed: Operation not permitted' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with serving(Sandbox()) as port:
        for action in (client(port).check, lambda: client(port).run(("true",), {})):
            with pytest.raises(SandboxUnavailableError, match="500: no isolation on this host"):
                action()


# --- the tool


@isolated
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_tool_makes_a_token_and_serves(tmp_path, number):
    command = [sys.executable, "-m", "tools.grade_server", "--token_file", str(tmp_path / "token"), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline().startswith("made a token")
            url = server.stdout.readline().split()[2].rstrip(",")
            assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
            remote = RemoteSandbox(url, read_token(tmp_path / "token"))
            remote.check()
            assert remote.run(python_command("a.py"), {"a.py": b"print(42)"}).stdout == b"42\n"
            server.send_signal(number)
            assert server.wait(20) == 0
        finally:
            server.kill()  # whatever failed: nothing waits for it for ever


@pytest.mark.parametrize("why", ["no token", "no isolation"])
def test_the_tool_refuses_to_start(why, tmp_path):
    environment = {**os.environ, "R1JAX_GRADE_TOKEN": TOKEN if why == "no isolation" else ""}
    if why == "no isolation":
        fake = tmp_path / "bwrap"
        fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
        fake.chmod(0o755)
        environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    command = [sys.executable, "-m", "tools.grade_server", "--port", "0"]
    tried = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert tried.returncode == 1
    assert ("No permissions" if why == "no isolation" else "R1JAX_GRADE_TOKEN") in tried.stderr
    assert "Traceback" not in tried.stderr


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_a_port_that_is_none_is_named(port, monkeypatch, capsys):
    monkeypatch.setenv("R1JAX_GRADE_TOKEN", TOKEN)
    monkeypatch.setattr(sys, "argv", ["grade_server", f"--port={port}"])
    assert grade_server.main() == 1
    assert capsys.readouterr().err == f"ValueError: --port: {port}; 0 to 65535\n"


@isolated
def test_a_service_needs_no_jax():
    code = "import sys, r1jax.rewards.isolation.grade_service\nassert not {'jax', 'numpy', 'flax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert confinement.find_bwrap()
