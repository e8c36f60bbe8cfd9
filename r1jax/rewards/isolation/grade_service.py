"""The sandbox of another process: a small authenticated HTTP service, and a client with the methods of `Sandbox`.

For a trainer on a host (often a container) where user namespaces are blocked: `python -m tools.grade_server` runs
outside of it and makes the sandboxes. One request is one run, `POST /run` with the command, the files and the input as
JSON (bytes in base64); `GET /check` runs the sandbox's own check. Every request carries the token as
`Authorization: Bearer ...`. Whoever has it can run programs in that host's sandbox, and nothing else.

Expected outputs never cross the wire. Nor is anything encrypted: over a network that others share, use a tunnel.
"""

from __future__ import annotations

import base64
import binascii
import concurrent.futures
import contextlib
import dataclasses
import hmac
import http.client
import http.server
import json
import os
import pathlib
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from r1jax.rewards.isolation.sandbox import (
    DEFAULT_LIMITS,
    Job,
    Limits,
    Outcome,
    Sandbox,
    SandboxUnavailableError,
    check_job,
    python_command,
)

PORT = 8571
TOKEN_VARIABLE = "R1JAX_GRADE_TOKEN"
SHORTEST_TOKEN = 16
MAX_BODY_BYTES = 16 * 2**20
MAX_CONNECTIONS = 256
IDLE_SECONDS = 30.0  # of a connection that sends nothing
# The most a request may ask for, whatever the client is configured to.
CEILING = Limits(
    wall_seconds=120.0,
    cpu_seconds=120,
    memory_bytes=4 * 2**30,
    processes=64,
    file_bytes=256 * 2**20,
    output_bytes=32 * 2**20,
    tmp_bytes=2**30,
)


def read_token(path: str | os.PathLike[str] | None = None) -> str:
    """The token in the file `path`, else in the environment variable R1JAX_GRADE_TOKEN. ValueError if it is too short
    or could not be sent in a header."""
    source = f"file {os.fspath(path)}" if path is not None else f"environment variable {TOKEN_VARIABLE}"
    token = pathlib.Path(path).read_text(encoding="utf-8") if path is not None else os.environ.get(TOKEN_VARIABLE, "")
    return check_token(token.strip(), source)


def check_token(token: str, source: str = "argument") -> str:
    """`token`, or ValueError."""
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"the token of the {source} must have {SHORTEST_TOKEN} or more ASCII characters, none blank")
    return token


def check_address(url: str) -> tuple[str, int]:
    """Host and port of a grade server's address. ValueError for anything but http://host:port."""
    parts = urllib.parse.urlsplit(url)
    try:
        port = parts.port or PORT
    except ValueError as error:
        raise ValueError(f"the grade server's url must be http://host:port, got {url!r}: {error}") from error
    if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/") or parts.query:
        raise ValueError(f"the grade server's url must be http://host:port, got {url!r}")
    return parts.hostname, port


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _decoded(content: object, name: str) -> bytes:
    if not isinstance(content, str):
        raise ValueError(f"{name} must be base64 text, got {type(content).__name__}")
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name} is not base64") from error


def job_to_json(job: Job, limits: Limits) -> bytes:
    """The body of a request."""
    said = {
        "command": list(job.command),
        "files": {name: _encoded(content) for name, content in job.files.items()},
        "stdin": _encoded(job.stdin),
        "limits": dataclasses.asdict(job.limits or limits),
    }
    return json.dumps(said).encode()


def job_from_json(body: bytes, ceiling: Limits = CEILING) -> Job:
    """The run that a request asks for. ValueError says what is wrong with it."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError("the body is not JSON") from error
    names = {"command", "files", "stdin", "limits"}
    if not isinstance(said, dict) or set(said) != names:
        raise ValueError(f"the body must be an object of {', '.join(sorted(names))}")
    if not isinstance(said["command"], list) or not isinstance(said["files"], dict):
        raise ValueError("command must be a list and files an object")
    files = {name: _decoded(content, f"file {name[:40]!r}") for name, content in said["files"].items()}
    check_job(said["command"], files)
    fields = [field.name for field in dataclasses.fields(Limits)]
    if not isinstance(said["limits"], dict) or set(said["limits"]) != set(fields):
        raise ValueError(f"limits must be an object of {', '.join(fields)}")
    limits = Limits(**said["limits"])
    for name in fields:
        if getattr(limits, name) > getattr(ceiling, name):
            raise ValueError(f"{name} is at most {getattr(ceiling, name)} here, got {getattr(limits, name)}")
    return Job(tuple(said["command"]), files, _decoded(said["stdin"], "stdin"), limits)


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    """An outcome as an answer tells it."""
    said = dataclasses.asdict(outcome)
    return said | {"stdout": _encoded(outcome.stdout), "stderr": _encoded(outcome.stderr)}


def outcome_from_json(said: Mapping[str, Any]) -> Outcome:
    """The inverse of `outcome_to_json`."""
    streams = {name: _decoded(said[name], name) for name in ("stdout", "stderr")}
    return Outcome(**{**said, **streams})


class _Handler(http.server.BaseHTTPRequestHandler):
    """One request on one connection."""

    server: GradeServer
    timeout = IDLE_SECONDS
    server_version, sys_version = "r1jax-grade", ""

    def do_GET(self) -> None:
        """`/check`: 200 if the sandbox holds."""
        if self._admitted("/check"):
            self._answer_with(self._check)

    def do_POST(self) -> None:
        """`/run`: 200 with the outcome."""
        if not self._admitted("/run"):
            return
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            self._say(411, {"error": "a Content-Length is needed"})
        elif len(length) > 15 or int(length) > self.server.max_body_bytes:
            self._say(413, {"error": f"a body has at most {self.server.max_body_bytes} bytes"})
        else:
            body = self.rfile.read(int(length))
            if len(body) == int(length):
                self._answer_with(lambda: outcome_to_json(self.server.sandbox.run(*job_from_json(body))))

    def _check(self) -> dict[str, Any]:
        self.server.sandbox.check()
        return {}

    def _admitted(self, path: str) -> bool:
        """Answers whoever has no token, then whoever asks for what there is not; before the body is read."""
        given = self.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, f"Bearer {self.server.token}".encode()):
            self._say(401, {"error": "wrong or missing token"})
        elif self.path != path:
            self._say(404, {"error": "there are POST /run and GET /check"})
        else:
            return True
        return False

    def _answer_with(self, action: Any) -> None:
        try:
            self._say(200, action())
        except ValueError as error:
            self._say(400, {"error": str(error)})
        except SandboxUnavailableError as error:
            self._say(500, {"error": str(error)})

    def _say(self, status: int, answer: Mapping[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError, TimeoutError):  # the client has gone
            self.wfile.write(body)
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            if status != 200:  # what was not read, lest closing the connection take the answer along
                self.connection.settimeout(1.0)
                for _ in range(64):
                    if not self.connection.recv(2**16):
                        break

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library finds wrong with a request, in the form of the other answers."""
        self._say(int(code), {"error": message or "bad request"})

    def log_message(self, *arguments: Any) -> None:
        """Nothing: a run is no news, and an answer tells its error."""


class GradeServer(http.server.ThreadingHTTPServer):
    """Serves `sandbox` to whoever has `token`. Runs wait for a place in the sandbox; connections beyond
    `max_connections` are told 503 at once."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        sandbox: Sandbox,
        token: str,
        address: tuple[str, int] = ("127.0.0.1", PORT),
        *,
        max_body_bytes: int = MAX_BODY_BYTES,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self.sandbox = sandbox
        self.token = check_token(token)
        self.max_body_bytes = max_body_bytes
        self._connections = threading.BoundedSemaphore(max_connections)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection, or 503."""
        if self._connections.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except BaseException:
                self._connections.release()
                raise
        else:
            with contextlib.suppress(OSError):
                request.settimeout(0.2)
                request.sendall(b"HTTP/1.0 503 Busy\r\nContent-Length: 0\r\nRetry-After: 1\r\n\r\n")
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """What the thread does."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is the client's affair."""


class _BusyError(Exception):
    """The server has no room for another connection."""


class RemoteSandbox:
    """`Sandbox` by way of a grade server at `url` (http://host:port). Whatever keeps it from an outcome (no server, a
    wrong token, a server whose own sandbox does not hold) is a SandboxUnavailableError."""

    def __init__(
        self,
        url: str,
        token: str,
        limits: Limits = DEFAULT_LIMITS,
        parallel: int | None = os.cpu_count(),
        patience_seconds: float = 600.0,  # for a place on a busy server, on top of the run's own limit
    ) -> None:
        host, port = check_address(url)
        if parallel is not None and parallel < 1:
            raise ValueError(f"parallel must be at least 1, got {parallel}")
        self.url, self.limits, self.parallel = url, limits, parallel or 1
        self._host, self._port, self._token = host, port, check_token(token)
        self._patience = patience_seconds
        self._places = threading.BoundedSemaphore(self.parallel)

    def check(self) -> None:
        """Has the server check its sandbox. SandboxUnavailableError says what is wrong, and where."""
        self._ask("GET", "/check", b"", 60.0)

    def run(
        self, command: Sequence[str], files: Mapping[str, bytes], stdin: bytes = b"", limits: Limits | None = None
    ) -> Outcome:
        """See `Sandbox.run`. ValueError also for what the server takes for too large."""
        check_job(command, files)
        limits = limits or self.limits
        body = job_to_json(Job(command, files, stdin), limits)
        with self._places:
            said = self._ask("POST", "/run", body, limits.wall_seconds)
        try:
            return outcome_from_json(said)
        except (KeyError, TypeError, ValueError) as error:
            raise SandboxUnavailableError(f"the grade server at {self.url} answered no outcome: {error}") from error

    def run_many(self, jobs: Iterable[Job | tuple]) -> list[Outcome]:
        """See `Sandbox.run_many`."""
        with concurrent.futures.ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(lambda job: self.run(*job), list(jobs)))

    @staticmethod
    def python_command(file: str, *arguments: str) -> tuple[str, ...]:
        """See `sandbox.python_command`; the interpreter is the server's."""
        return python_command(file, *arguments)

    def _ask(self, method: str, path: str, body: bytes, seconds: float) -> dict[str, Any]:
        """The answer; asks again while the server is busy."""
        deadline = time.monotonic() + self._patience
        pause = 0.05
        while True:
            try:
                return self._ask_once(method, path, body, seconds + self._patience)
            except _BusyError as error:
                if time.monotonic() + pause > deadline:
                    raise SandboxUnavailableError(f"the grade server at {self.url} is busy") from error
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    def _ask_once(self, method: str, path: str, body: bytes, seconds: float) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=seconds)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        try:
            connection.connect()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused early: the answer says why
                connection.request(method, path, body or None, headers)
            response = connection.getresponse()
            status, content = response.status, response.read()
        except (ConnectionResetError, http.client.RemoteDisconnected) as error:
            raise _BusyError from error
        except (OSError, http.client.HTTPException) as error:
            raise SandboxUnavailableError(
                f"no answer from the grade server at {self.url} ({type(error).__name__}: {error}); "
                "is `python -m tools.grade_server` running there?"
            ) from error
        finally:
            connection.close()
        if status == 503:
            raise _BusyError
        try:
            said = json.loads(content)
            told = str(said.get("error", ""))
        except (ValueError, AttributeError) as error:
            raise SandboxUnavailableError(f"{self.url} answered {status} and no JSON: no grade server") from error
        if status == 200:
            return said
        if status in (400, 413):
            raise ValueError(f"the grade server at {self.url} refused the job: {told}")
        raise SandboxUnavailableError(f"the grade server at {self.url} answered {status}: {told}")
