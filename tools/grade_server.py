"""Runs programs in this host's sandbox for a trainer that cannot make one, such as a trainer in a Docker container.

    python -m tools.grade_server --token_file ~/.r1jax_grade_token

makes the token if the file does not exist (readable for this user only) and serves on 127.0.0.1:8571 until stopped;
without --token_file the token is read from the environment variable R1JAX_GRADE_TOKEN. It refuses to start where
isolation does not hold. Of r1jax it needs the package alone, none of its dependencies but bubblewrap.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import secrets
import signal
import sys

from r1jax.rewards.isolation.grade_service import MAX_BODY_BYTES, MAX_CONNECTIONS, PORT, GradeServer, read_token
from r1jax.rewards.isolation.sandbox import Sandbox, SandboxUnavailableError

LAST_PORT = 2**16 - 1


def make_token(path: pathlib.Path) -> None:
    """Writes a new token to `path`, which must not exist."""
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(secrets.token_urlsafe(32) + "\n", encoding="ascii")


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--token_file", type=pathlib.Path, help="file with the token, made if it does not exist")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=PORT, help=f"port to listen on ({PORT}); 0: any free one")
    parser.add_argument("--parallel", type=int, default=os.cpu_count(), help="runs at once (the number of cores)")
    parser.add_argument("--max_body_bytes", type=int, default=MAX_BODY_BYTES, help=f"({MAX_BODY_BYTES})")
    parser.add_argument("--max_connections", type=int, default=MAX_CONNECTIONS, help=f"({MAX_CONNECTIONS})")
    arguments = parser.parse_args()
    try:
        if not 0 <= arguments.port <= LAST_PORT:
            raise ValueError(f"--port: {arguments.port}; 0 to {LAST_PORT}")
        if arguments.token_file is not None and not arguments.token_file.exists():
            make_token(arguments.token_file)
            print(f"made a token in {arguments.token_file}")
        token = read_token(arguments.token_file)
        sandbox = Sandbox(parallel=arguments.parallel)
        sandbox.check()
        bounds = {"max_body_bytes": arguments.max_body_bytes, "max_connections": arguments.max_connections}
        server = GradeServer(sandbox, token, (arguments.host, arguments.port), **bounds)
    except (SandboxUnavailableError, ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job would ignore the first
        signal.signal(number, signal.default_int_handler)
    with server:
        host, port = server.server_address[:2]
        print(f"grading on http://{host!s}:{port}, {sandbox.parallel} runs at once", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
