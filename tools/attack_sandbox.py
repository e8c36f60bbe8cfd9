"""Runs every program of the attack set in the sandbox of this host and prints a table of how each ended.

    python -m tools.attack_sandbox [--json]

Ends with 1 if any got out, forged a pass, or left something behind. 30 seconds on two cores. Run it on the host, as the
user, that will grade.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time

from r1jax.rewards.isolation.sandbox import Sandbox, python_command
from tests.sandbox_attacks import ATTACKS, Host, ending, violations


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one object with every row instead of a table")
    arguments = parser.parse_args()
    sandbox = Sandbox()
    sandbox.check()
    rows = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Host(pathlib.Path(folder)) as host:
        for attack in ATTACKS:
            outcome = host.attack(sandbox, attack)
            row = {"name": attack.name, "ended": ending(outcome), "violations": violations(attack, outcome, host)}
            rows.append(row | {"wall": round(outcome.wall_seconds, 3), "cpu": round(outcome.cpu_seconds, 3)})
            if not arguments.json:
                held = "; ".join(row["violations"]) or "held"
                print(f"{attack.name:45} {row['ended']:16} {outcome.wall_seconds:6.2f} s  {held}", flush=True)
        alive = sandbox.run(python_command("a.py"), {"a.py": b"print(6 * 7)"}).stdout == b"42\n"
    bad = sum(bool(row["violations"]) for row in rows)
    summary = {"uid": os.getuid(), "attacks": len(rows), "bad": bad, "alive": alive}
    summary["seconds"] = round(time.monotonic() - started, 1)
    print(json.dumps(summary | {"rows": rows}) if arguments.json else summary)
    return int(bad > 0 or not alive)


if __name__ == "__main__":
    sys.exit(main())
