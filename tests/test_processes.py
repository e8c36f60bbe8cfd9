"""Several processes: what is refused at the start, whose rows are whose, and that they make the run of one process."""

from __future__ import annotations

import dataclasses
import io
import pathlib
import signal
import textwrap
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from r1jax import processes, watchdog
from r1jax.processes import Launch, ProcessesError
from r1jax.sharding import MeshConfig, batch_sharding, make_mesh
from r1jax.stages.interruption import Interruption
from tools.kill_test import metrics, parameters, samples
from tools.launch.local import LocalRun

CONFIG = "tests/configs/processes_smoke.py"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"distributed": "yes"}, "--distributed=yes: not one of auto, on, off"),
        ({"coordinator": "a:1"}, "--process_id, --num_processes: missing, needed beside --coordinator"),
        ({"process_id": 0, "num_processes": 2}, "--coordinator: missing"),
        ({"coordinator": "host", "process_id": 0, "num_processes": 2}, "--coordinator=host: expected HOST:PORT"),
        ({"coordinator": "host:99999", "process_id": 0, "num_processes": 2}, "expected HOST:PORT"),
        ({"coordinator": "a:1", "process_id": 2, "num_processes": 2}, "--process_id=2: from 0 to 1"),
        ({"coordinator": "a:1", "process_id": -1, "num_processes": 2}, "--process_id=-1: from 0 to 1"),
        ({"coordinator": "a:1", "process_id": 0, "num_processes": 0}, "--num_processes=0: at least 1"),
        (
            {"coordinator": "a:1", "process_id": 0, "num_processes": 2, "distributed": "off"},
            "--distributed=off: contra",
        ),
        ({"local_devices": 0}, "--local_devices=0: at least 1"),
        ({"peer_seconds": 0.5}, "--peer_seconds=0.5: from 1"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ProcessesError, match=message.replace("(", r"\(")):
        Launch(**fields)


def test_the_environment_says_whether_there_are_others() -> None:
    assert not Launch().is_several({})
    assert not Launch().is_several({"SLURM_STEP_NUM_TASKS": "1", "TPU_WORKER_HOSTNAMES": "localhost"})
    assert not Launch().is_several({"TPU_WORKER_HOSTNAMES": "WARNING: could not determine TPU hosts, please set it"})
    assert not Launch().is_several({"SLURM_NTASKS": "8"})  # of an allocation: this may be its only process
    assert Launch().is_several({"SLURM_STEP_NUM_TASKS": "8"})
    assert Launch().is_several({"TPU_WORKER_HOSTNAMES": "host-0,host-1"})
    assert Launch().is_several({"OMPI_COMM_WORLD_SIZE": "2"})
    assert not Launch("off").is_several({"SLURM_STEP_NUM_TASKS": "8"})
    assert Launch("on").is_several({})
    assert Launch(coordinator="a:1", process_id=0, num_processes=2).is_several({})
    assert not Launch(coordinator="a:1", process_id=0, num_processes=1).is_several({})
    with pytest.raises(ProcessesError, match="SLURM_STEP_NUM_TASKS='many'"):
        Launch().is_several({"SLURM_STEP_NUM_TASKS": "many"})


def test_one_process_is_alone() -> None:
    """And asks jax for nothing that only several have."""
    assert not processes.are_several()
    assert processes.is_writer()
    assert processes.own_part(["a", "b"]) == [(0, "a"), (1, "b")]
    assert processes.gather_objects({"a": 1}) == [{"a": 1}]
    assert list(processes.gather_dicts({2: "c", 0: "a"}).items()) == [(0, "a"), (2, "c")]
    assert processes.from_writer(lambda: 3) == 3
    assert processes.ask_together([1, 2], lambda items: [2 * i for i in items]) == [2, 4]
    assert [processes.agree(flag) for flag in (True, False)] == [True, False]
    processes.wait_for_all("a test")
    processes.finish()
    assert jax.config.values["jax_cpu_collectives_implementation"] in (None, "gloo")


def test_no_size_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """As jax's own gathering does with an int64: what lies on a device has 32 bits."""
    monkeypatch.setattr(
        processes.multihost_utils, "process_allgather", lambda mine: np.stack([np.asarray(jnp.asarray(mine))] * 2)
    )
    assert processes._gather_sizes(3 * 10**9) == [3 * 10**9] * 2
    assert processes._gather_sizes(2**40 + 7) == [2**40 + 7] * 2


def test_devices_of_several_that_have_not_joined_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Cloud TPU slice libtpu counts all hosts, whether or not jax knows them."""
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ProcessesError, match=r"--distributed=auto: .* of 4 processes.* must be --distributed=on"):
        processes.start(Launch())


def test_who_finds_nobody_is_told_where_was_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*args: object, **kwargs: object) -> None:
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", nowhere)
    monkeypatch.setattr(jax.config, "update", lambda *args: None)
    with pytest.raises(ProcessesError, match=r"asks Open MPI, Slurm, .* Kubernetes.* --coordinator, --process_id and"):
        processes.start(Launch("on"))


def test_a_late_process_is_named_with_where_it_stands() -> None:
    here = watchdog.Standing(7, "checkpoint begun", 0.0)
    there = watchdog.Standing.read(watchdog.Standing(6, "what is gathered").sign())
    assert watchdog.describe_late(here, {1: here, 2: dataclasses.replace(here, since=None)}, 600) == ""
    assert watchdog.describe_late(here, {1: here, 17: there}, 600) == (
        'process 17 has not reached "checkpoint begun" for 10 min; process 17 was last at "what is gathered"'
    )
    assert watchdog.describe_late(here, {5: there, 3: there}, 9).startswith(
        "2 processes, the first of them 3, have not"
    )


def test_nobody_is_asked_for_nothing() -> None:
    def never(items: list[int]) -> list[int]:
        raise AssertionError(items)

    assert processes.ask_together([], never) == []


class Elsewhere:
    """A device of another process, as far as `own_rows` looks."""

    def __init__(self, process_index: int) -> None:
        self.process_index = process_index


class Layout:
    """Four devices of two processes over 8 rows; `pairs`: the two of a process hold the same rows."""

    def __init__(self, owners: list[int], starts: list[int]) -> None:
        self.places = {Elsewhere(owner): (slice(s, s + 4),) for owner, s in zip(owners, starts, strict=True)}

    def devices_indices_map(self, shape: tuple[int, ...]) -> dict[Any, Any]:
        assert shape == (8,)
        return self.places


def test_every_row_is_one_process_own() -> None:
    split: Any = Layout([0, 0, 1, 1], [0, 0, 4, 4])
    assert processes.own_rows(split, 8).tolist() == [True] * 4 + [False] * 4
    # Tensor parallelism across processes: both hold every row, and the first one reads them.
    shared: Any = Layout([0, 1, 0, 1], [0, 0, 4, 4])
    assert processes.own_rows(shared, 8).all()
    foreign: Any = Layout([1, 1, 1, 1], [0, 0, 4, 4])
    assert not processes.own_rows(foreign, 8).any()
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    assert processes.own_rows(batch_sharding(mesh, 1), 8).all()  # of one process, all


def test_arrays_come_back_as_they_were_placed() -> None:
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    values = np.arange(24.0).reshape(8, 3)
    for sharding in (batch_sharding(mesh, 2), NamedSharding(mesh, PartitionSpec())):
        placed = processes.place(values, sharding)
        assert placed.sharding == sharding
        np.testing.assert_array_equal(processes.here(placed), values)
        np.testing.assert_array_equal(processes.whole(placed), values)


def test_an_interruption_is_seen_where_it_is_asked_for() -> None:
    with Interruption() as interruption:
        assert not interruption.requested()
        signal.raise_signal(signal.SIGTERM)
        assert interruption.requested()


def test_the_local_launcher_ends_all_when_one_fails(tmp_path: pathlib.Path) -> None:
    """Process 1 fails; process 0 would sleep for a minute."""
    (tmp_path / "program.py").write_text(
        "import sys, time\nprint('here', flush=True)\nif '--process_id=1' in sys.argv: sys.exit(3)\ntime.sleep(60)\n",
        encoding="utf-8",
    )
    output, began = io.StringIO(), time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        run = LocalRun(["--a=b"], 2, 1, "program", output, grace=0.2)
        status = run.wait()
    assert status == 3
    assert time.monotonic() - began < 30
    assert sorted(output.getvalue().splitlines()) == ["[0] here", "[1] here"]
    assert {one.process: one.status for one in run.ended} == {1: 3, 0: -signal.SIGKILL}


TALK = """
    import os, pathlib, socket, sys, time
    import jax, numpy as np
    from jax.sharding import PartitionSpec, NamedSharding
    from r1jax import manifest, processes, watchdog
    from r1jax.checkpoint import CheckpointError, CheckpointStore, abstract_like
    from r1jax.metrics import NonFiniteError, check_finite
    from r1jax.sharding import MeshConfig, batch_sharding, make_mesh, shard_batch
    from r1jax.workdir import WorkdirError, check_shared

    own = {flag.partition("=")[0]: flag.partition("=")[2] for flag in sys.argv[1:]}
    me, folder = int(own["--process_id"]), pathlib.Path(own["--folder"])
    processes.start(processes.Launch("auto", own["--coordinator"], me, 2, 2, 5.0))
    assert jax.process_index() == me and jax.device_count() == 4
    assert processes.own_part("abc") == ([(0, "a"), (2, "c")], [(1, "b")])[me]
    assert processes.gather_objects("x" * (10 ** (3 * me))) == ["x", "x" * 1000]
    assert processes.gather_dicts({1 - me: me}) == {0: 1, 1: 0}
    counted = processes.ask_together([me] * (me + 1), lambda items: [(i, len(items)) for i in items])
    assert counted == [(me, 3)] * (me + 1)
    assert [processes.agree(flag) for flag in (False, me == 1, me == 0, False)] == [False, True, True, False]
    assert processes.from_writer(lambda: processes.from_writer(lambda: me)) == 0
    try:
        processes.from_writer(lambda: (folder / "missing").read_text())
    except FileNotFoundError:
        pass
    else:
        raise AssertionError("the writer's error is everybody's")
    processes.by_writer((folder / f"written_by_{me}").write_text)("")
    assert processes.from_each(lambda: processes.is_alone() or me) == [0, 1]
    assert processes.from_writer(lambda: processes.from_each(processes.is_alone)) == [True]
    try:
        processes.from_each(lambda: 1 // (1 - me))
    except ZeroDivisionError:
        pass
    else:
        raise AssertionError("the error of any is everybody's")
    assert processes._gather_sizes(3 * 10**9 + me) == [3 * 10**9, 3 * 10**9 + 1]

    check_shared(folder / "shared", 1.0)
    assert not list((folder / "shared").iterdir())
    own_disk = folder / f"disk_of_{me}"
    own_disk.mkdir()
    os.chdir(own_disk)
    for path, words in (
        ("run", f"--workdir: {folder}/disk_of_0/run in process 0 on {socket.gethostname()}, but {folder}/disk_of_1"),
        ("/proc/self/cwd/run", "--workdir=/proc/self/cwd/run: process 1 on"),  # the same path on two disks
    ):
        try:
            check_shared(pathlib.Path(path), 1.0)
        except WorkdirError as error:
            assert words in str(error), error
        else:
            raise AssertionError(path)

    watchdog.STUCK_SECONDS = 3.0
    if me == 1:
        time.sleep(9)
    processes.wait_for_all("a late one")
    assert processes.gather_objects(me) == [0, 1]

    mesh = make_mesh(MeshConfig(data=4))
    values = np.arange(16.0).reshape(8, 2)
    rows = shard_batch(mesh, values)
    half = np.where(np.arange(8)[:, None] // 4 == me, values, -1)
    np.testing.assert_array_equal(processes.here(rows, fill=-1), half)
    np.testing.assert_array_equal(processes.whole(rows), values)
    mine = processes.own_rows(rows.sharding, 8)
    assert mine.tolist() == (np.arange(8) // 4 == me).tolist()
    processes.fill_in_rows(mine, [half])
    np.testing.assert_array_equal(half, values)

    store, read, whole = CheckpointStore(folder / "checkpoints"), [], manifest.checksum
    for step in (1, 2):
        assert store.save(step, {"rows": rows, "step": np.int64(step)})
    manifest.checksum = lambda path: (read.append(path.name), whole(path))[1]
    assert store.latest() == CheckpointStore(folder / "checkpoints").latest() == 2
    step, tree, _ = store.restore(abstract_like({"rows": rows, "step": np.int64(0)}))
    assert step == int(tree["step"]) == 2
    np.testing.assert_array_equal(processes.here(tree["rows"], fill=-1), np.where(mine[:, None], values, -1))
    first, second = processes.gather_objects([str(path) for path in read])
    named = manifest.read_manifest(folder / "checkpoints" / "step_00000002", 2)["files"]
    assert first and second and len(first) + len(second) == len(named)  # each file by one process, once
    damaged = folder / "checkpoints" / "step_00000002" / sorted(manifest.share_out(
        {name: size for name, (size, _) in named.items()}, 2)[1])[0]
    content = damaged.read_bytes()
    processes.wait_for_all("read")
    processes.by_writer(damaged.write_bytes)(bytes([content[0] ^ 1]) + content[1:])
    processes.wait_for_all("damaged")
    assert CheckpointStore(folder / "checkpoints").latest() == 1
    try:
        store.restore(abstract_like({"rows": rows, "step": np.int64(0)}), step=2)
    except CheckpointError as error:
        assert f"{damaged.relative_to(folder / 'checkpoints' / 'step_00000002')} does not match" in str(error)
    else:
        raise AssertionError("damage goes unseen")

    try:
        check_finite({"loss": float("nan")}, 3, folder, lambda: {"x": np.arange(3)})
    except NonFiniteError as error:
        assert "nonfinite_step_3.npz" in str(error)
        assert np.load(folder / "nonfinite_step_3.npz")["x"].tolist() == [0, 1, 2]
    assert [path.name for path in folder.glob("nonfinite*")] == ["nonfinite_step_3.npz"]
    shared = make_mesh(MeshConfig(data=1, tensor=4))
    assert processes.own_rows(batch_sharding(shared, 1), 8).all() == (me == 0)
    if "--die" in own:
        if me == 1:
            import os
            os.kill(os.getpid(), 9)
        processes.wait_for_all("a process that will not come")
    processes.finish()
    print("done", flush=True)
"""


def talk(folder: pathlib.Path, *flags: str) -> tuple[int, str, LocalRun]:
    (folder / "talk_program.py").write_text(textwrap.dedent(TALK), encoding="utf-8")
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{folder}:{pathlib.Path.cwd()}")
        run = LocalRun([f"--folder={folder}", *flags], 2, 2, "talk_program", output, grace=60)
        return run.wait(), output.getvalue(), run


@pytest.mark.slow  # two processes import jax: python -m pytest -m slow -n 0 tests/test_processes.py
def test_two_processes_agree_and_share(tmp_path: pathlib.Path) -> None:
    status, output, _ = talk(tmp_path)
    assert status == 0, output
    assert output.count("done") == 2
    assert [path.name for path in tmp_path.glob("written_by_*")] == ["written_by_0"]
    late = 'process 1 has not reached "a late one" for'
    assert output.count(late) >= 2, output
    assert output.count(late) == output.count(f"[0] process 0: {late}")


@pytest.mark.slow
def test_who_is_killed_is_named_by_the_others(tmp_path: pathlib.Path) -> None:
    status, output, run = talk(tmp_path, "--die=yes")
    assert {one.process: one.status for one in run.ended} == {1: -signal.SIGKILL, 0: watchdog.PEER_LOST}, output
    assert "process 0: ends because process 1 has given no sign of life for" in output
    assert run.ended[1].seconds - run.ended[0].seconds < 5 + 3 + 5  # patience, two looks, and a busy machine
    assert status == 128 + signal.SIGKILL


def stages_of(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    return {path.name: path for path in folder.iterdir() if (path / "summary.json").exists()}


@pytest.mark.slow  # about 12 minutes
def test_every_stage_of_the_recipe_in_two_processes_leaves_what_one_leaves(tmp_path: pathlib.Path) -> None:
    """The same two devices: in one process, and one each."""
    left = []
    for count in (1, 2):
        output, workdir = io.StringIO(), tmp_path / f"in_{count}"
        command = ["--config=tests/configs/r1_smoke.py", f"--workdir={workdir}"]
        assert LocalRun(command, count, 2 // count, output=output).wait() == 0, output.getvalue()
        left.append(stages_of(workdir))
    one, two = left
    assert one.keys() == two.keys()
    assert len(one) == 11
    for what in (parameters, metrics, samples):
        for name in one:
            assert what(one[name]) == what(two[name]), (name, what.__name__)
