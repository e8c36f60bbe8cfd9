"""The files of tools/launch, with stand-ins for the programs that they call."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import stat
import subprocess
import sys
import time

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "tools" / "launch"


def stand_in(folder: pathlib.Path, name: str, script: str) -> None:
    """A program that writes down how it was called."""
    path = folder / name
    path.write_text(f'#!/bin/bash\nprintf "%s\\n" "{name} $*" >> "{folder}/calls"\n{script}\n', encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def call(folder: pathlib.Path, script: str, *arguments: str, **variables: str) -> tuple[int, list[str], str]:
    """(status, calls of the stand-ins, stderr)."""
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **variables}
    done = subprocess.run(
        ["bash", FOLDER / script, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    calls = folder / "calls"
    return done.returncode, calls.read_text(encoding="utf-8").splitlines() if calls.exists() else [], done.stderr


@pytest.mark.parametrize(
    ("status", "restarts", "again"),
    [(0, 0, False), (1, 0, False), (2, 0, False), (70, 0, True), (137, 0, True), (139, 3, True), (253, 0, True)]
    + [(143, 99, True), (143, 100, False)],
)
def test_slurm_queues_again_what_an_error_has_not_ended(
    tmp_path: pathlib.Path, status: int, restarts: int, again: bool
) -> None:
    stand_in(tmp_path, "srun", f"exit {status}")
    stand_in(tmp_path, "scontrol", "")
    variables = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": str(restarts)}
    ended, calls, said = call(tmp_path, "slurm.sbatch", "--config=a b", **variables)
    assert ended == status
    assert ("scontrol requeue 17" in calls) == again
    assert ("not queued again" in said) == (restarts == 100)


def test_xpk_starts_again_those_that_lost_another(tmp_path: pathlib.Path) -> None:
    stand_in(tmp_path, "xpk", "")
    variables = dict.fromkeys(("PROJECT", "ZONE", "CLUSTER", "IMAGE"), "x")
    status, (line,), _ = call(tmp_path, "xpk.sh", "--config=a", **variables)
    assert status == 0
    assert "--restart-on-exit-codes=70 " in line
    assert "--termination-grace-period-seconds=300 " in line


def test_a_slice_is_waited_for(tmp_path: pathlib.Path) -> None:
    count = f'[[ "$*" == *describe* ]] && {{ n=$(grep -c describe {tmp_path}/calls); '
    stand_in(
        tmp_path, "gcloud", count + "[ $n -lt 3 ] && echo WAITING_FOR_RESOURCES || echo ${LAST:-ACTIVE}; }; exit 0"
    )
    variables = {"PROJECT": "p", "ZONE": "z", "SHARE": "10.0.0.2:/a share", "POLL_SECONDS": "0"}
    status, calls, _ = call(tmp_path, "tpu_pod.sh", "create", **variables)
    assert status == 0
    assert ["describe" in line for line in calls] == [False, True, True, True]
    status, calls, _ = call(tmp_path, "tpu_pod.sh", "install", **variables)
    assert status == 0
    assert "mount -t nfs -o hard 10.0.0.2:/a\\ share /shared" in "\n".join(calls)
    status, calls, _ = call(tmp_path, "tpu_pod.sh", "run", "--config=a b", **variables)
    assert "-m r1jax.train --distributed=on --config=a\\ b" in calls[-1]
    status, _, said = call(tmp_path, "tpu_pod.sh", "install", **variables, LAST="FAILED")
    assert status == 1
    assert "is FAILED: delete it and create it again" in said


def test_a_terminal_signal_reaches_every_process_once(tmp_path: pathlib.Path) -> None:
    """Ctrl-C goes to the whole group of the launcher; each process says how often it was told, a second later."""
    (tmp_path / "told.py").write_text(
        "import signal, time\ntold = []\nsignal.signal(signal.SIGINT, lambda *_: told.append(1))\n"
        "print('here', flush=True)\n"
        "while not told: time.sleep(0.01)\n"
        "end = time.monotonic() + 1\n"
        "while time.monotonic() < end: time.sleep(0.01)\n"
        "print('told', len(told), flush=True)\n",
        encoding="utf-8",
    )
    launcher = subprocess.Popen(
        [sys.executable, "-m", "tools.launch.local", "--module", "told", "--", "--a=b"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{FOLDER.parents[1]}"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert launcher.stderr is not None
    with launcher.stderr:
        seen = [launcher.stderr.readline(), launcher.stderr.readline()]
        time.sleep(0.5)  # until the launcher hands signals on
        os.killpg(launcher.pid, signal.SIGINT)
        seen += launcher.stderr.readlines()
    assert launcher.wait() == 0
    assert sorted(seen) == ["[0] here\n", "[0] told 1\n", "[1] here\n", "[1] told 1\n"]


def test_the_job_set_ends_where_an_error_would_come_again() -> None:
    yaml = pytest.importorskip("yaml")
    job_set = yaml.safe_load((FOLDER / "jobset.yaml").read_text(encoding="utf-8"))["spec"]
    job = job_set["replicatedJobs"][0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    container = job["template"]["spec"]["containers"][0]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [1, 2]}
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # what a podFailurePolicy needs
    assert json.dumps(job_set["failurePolicy"]["rules"][0]["onJobFailureReasons"]) == '["PodFailurePolicy"]'
    assert {"containerPort": 8482} in container["ports"]
