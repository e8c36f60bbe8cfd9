"""A local server that speaks the chat completions API and does what a script says, one entry for each request."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator


def completion(text: str | None, finish_reason: str = "stop") -> bytes:
    """The body of a chat completion, written down from the API's description."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return json.dumps(
        {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    ).encode()


@dataclasses.dataclass(frozen=True)
class Act:
    """What the server does with a request."""

    body: bytes | Callable[[dict], bytes] = b"{}"  # or what makes it of the request
    status: int = 200
    content_type: str = "application/json"
    seconds: float = 0.0  # before it answers
    trickle: float = 0.0  # between two bytes


def says(text: str | None, finish_reason: str = "stop") -> Act:
    return Act(completion(text, finish_reason))


def error(status: int, message: str = "no") -> Act:
    return Act(json.dumps({"error": {"message": message}}).encode(), status)


class Scripted(http.server.ThreadingHTTPServer):
    """`requests` are the bodies that came in, `keys` their Authorization headers."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int, script: list[Act]) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.script, self.requests, self.keys = script, [], []
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.connections = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def die(self) -> None:
        """As a killed server: the port is closed, and so is every connection."""
        self.ended.set()
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(2)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.server.connections.append(self.connection)

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            act = server.script[min(len(server.requests), len(server.script) - 1)]  # the last one goes on
            server.requests.append(body)
            server.keys.append(self.headers["Authorization"])
        server.ended.wait(act.seconds)
        with contextlib.suppress(OSError):
            self._send(act, act.body if isinstance(act.body, bytes) else act.body(body))

    def _send(self, act: Act, body: bytes) -> None:
        self.send_response(act.status)
        self.send_header("Content-Type", act.content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("retry-after-ms", "10")
        self.end_headers()
        if not act.trickle:
            self.wfile.write(body)
            return
        for byte in body:
            self.wfile.write(bytes([byte]))
            time.sleep(act.trickle)
            if self.server.ended.is_set():
                return

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(*script: Act, port: int = 0) -> Iterator[Scripted]:
    server = Scripted(port, list(script))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.die()
        thread.join()
