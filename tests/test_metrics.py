from __future__ import annotations

import io
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tensorboardX.proto.event_pb2 import Event

from r1jax.metrics import (
    CompileCounter,
    MetricWriter,
    NonFiniteError,
    Progress,
    StepTimer,
    check_finite,
    read_rows,
)
from r1jax.workdir import WorkdirError, open_workdir, write_atomically


def without_time(path):
    return [json.dumps({name: value for name, value in row.items() if name != "time"}) for row in read_rows(path)]


def run(writer, first, last):
    for step in range(first, last):
        writer.write(step, {"loss": jnp.float32(1 / (step + 1)), "load": np.arange(2)}, {"rollout": 0.5})
        writer.write_samples(step, [{"text": f"问 {step}.{i}", "reward": np.float32(0.1)} for i in range(3)])


def test_a_row_holds_plain_values_and_the_clock_under_time_only(tmp_path):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(
            7, {"loss": jnp.float32(0.5), "count": np.int64(3), "load": np.arange(2), "bad": jnp.nan}, {"rollout": 2}
        )
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    clock = row.pop("time")
    assert str(row.pop("bad")) == "nan"
    assert row == {"step": 7, "loss": 0.5, "count": 3, "load": [0, 1]}
    assert clock["rollout"] == 2
    assert set(clock) == {"unix", "elapsed", "rollout"}
    with pytest.raises(ValueError, match="belong to the writer"):
        writer.write(8, {"time": 1})


@pytest.mark.parametrize("debris", ["", '{"step": 99', '{"step": 3, "loss": 0.25}\n{"st'])
def test_a_killed_and_resumed_run_leaves_the_same_files(tmp_path, debris):
    with MetricWriter(tmp_path / "undisturbed", tensorboard=False) as writer:
        run(writer, 0, 6)
    writer = MetricWriter(tmp_path / "killed", tensorboard=False)
    run(writer, 0, 2)
    state = json.loads(json.dumps(writer.state()))
    run(writer, 2, 4)  # after the checkpoint, then the kill
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (tmp_path / "killed" / name).open("a") as file:
            file.write(debris)
    with MetricWriter(tmp_path / "killed", tensorboard=False) as resumed:
        resumed.rewind(state)
        run(resumed, 2, 6)
        final = resumed.state()
    assert final == {"metrics": 6, "samples": 18, "next_step": 6}
    assert without_time(tmp_path / "killed" / "metrics.jsonl") == without_time(
        tmp_path / "undisturbed" / "metrics.jsonl"
    )
    samples = [(tmp_path / name / "samples.jsonl").read_bytes() for name in ("killed", "undisturbed")]
    assert samples[0] == samples[1]
    writer.close()


def test_a_run_killed_before_its_first_checkpoint_starts_from_nothing(tmp_path):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        run(writer, 0, 2)
    again = MetricWriter(tmp_path, tensorboard=False)
    with pytest.raises(WorkdirError, match="holds rows of an earlier run"):
        again.write(0, {"loss": 1.0})
    again.rewind(None)
    run(again, 0, 1)
    again.close()
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 1


def test_missing_rows_are_an_error(tmp_path):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        run(writer, 0, 3)
        state = writer.state()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    before = path.read_bytes()
    with pytest.raises(WorkdirError, match=r"metrics\.jsonl has 2 whole rows, but the checkpoint was written after 3"):
        MetricWriter(tmp_path).rewind(state)
    assert path.read_bytes() == before


def test_reading_rows_skips_a_half_written_end_and_names_a_broken_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert read_rows(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n{"a": 2\n{"a": 3}\n')
    with pytest.raises(WorkdirError, match=r"rows\.jsonl, line 2: not a JSON row"):
        read_rows(path)


def events(directory):
    for path in sorted(directory.iterdir()):
        content, offset = path.read_bytes(), 0
        while offset < len(content):
            (length,) = struct.unpack("<Q", content[offset : offset + 8])
            yield Event.FromString(content[offset + 12 : offset + 12 + length])
            offset += length + 16


def test_tensorboard_gets_every_number(tmp_path):
    with MetricWriter(tmp_path) as writer:
        run(writer, 0, 2)
    got = [(e.step, v.tag, v.simple_value) for e in events(tmp_path / "tensorboard") for v in e.summary.value]
    assert got == [(0, "loss", 1.0), (0, "time/rollout", 0.5), (1, "loss", 0.5), (1, "time/rollout", 0.5)]


def test_wandb_missing_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ImportError, match=r"\.\[wandb\]"):
        MetricWriter(tmp_path, wandb_project="r1jax")


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_progress_without_a_terminal_prints_a_line_now_and_then():
    output, clock = io.StringIO(), Clock()
    console = rich.console.Console(file=output, force_terminal=False, width=40)
    with Progress("rl", 10, start=2, console=console, line_seconds=10, clock=clock) as progress:
        for done in range(3, 11):
            clock.now += 4
            progress.update(done, reward=done / 16, tokens_per_second=jnp.float32(12345.6), length=1234)
    assert output.getvalue().splitlines() == [
        "rl 3/10  reward 0.1875  tokens per second 12,346  length 1,234  ETA 0:00:28",
        "rl 6/10  reward 0.375  tokens per second 12,346  length 1,234  ETA 0:00:16",
        "rl 9/10  reward 0.5625  tokens per second 12,346  length 1,234  ETA 0:00:04",
        "rl 10/10  reward 0.625  tokens per second 12,346  length 1,234  took 0:00:32",
    ]


def test_progress_in_a_terminal_draws_a_bar():
    output = io.StringIO()
    console = rich.console.Console(file=output, force_terminal=True, width=120, color_system=None)
    with Progress("pretrain", 4, console=console) as progress:
        progress.update(2, loss=0.5)
        progress.update(4, loss=0.25)
    frames = output.getvalue().splitlines()
    assert any(all(words in frame for words in ("pretrain", "4/4", "loss 0.25", "took 0:00:00")) for frame in frames)


def test_step_timer_adds_up_sections():
    clock = Clock()
    timer = StepTimer(clock)
    for _ in range(2):
        with timer("rollout") as wait:
            clock.now += 2
            assert wait({"x": jnp.ones(2)})["x"].shape == (2,)
    with timer("update"):
        clock.now += 1
    clock.now += 0.5
    assert timer.take() == {"rollout": 4.0, "update": 1.0, "step": 5.5}
    clock.now += 3
    assert timer.take() == {"step": 3.0}


def test_compilations_are_counted_once_per_shape():
    double = jax.jit(lambda x: x * 2 + 0.125)
    inputs = [jnp.ones(3), jnp.zeros(3), jnp.ones(5)]
    with CompileCounter() as counter:
        double(inputs[0])
        assert counter.count == 1
        double(inputs[1])
        assert counter.count == 1
        double(inputs[2])
    assert counter.count == 2
    assert counter.names == ["jit(<lambda>)"] * 2
    assert counter.seconds > 0
    jax.jit(lambda x: x - 0.125)(inputs[0])
    assert counter.count == 2


def test_a_non_finite_loss_stops_with_the_data_saved(tmp_path):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    tokens = jax.device_put(jnp.arange(8), NamedSharding(mesh, PartitionSpec("x")))
    data = {"batch": {"tokens": tokens}, "key": jax.random.key(1), "half": jnp.ones(2, jnp.bfloat16), "loss": jnp.nan}
    check_finite({"loss": 1.0}, 3, tmp_path, lambda: pytest.fail("dumped although finite"))
    with pytest.raises(NonFiniteError, match=r"step 3: loss is nan, norm is inf\. .*nonfinite_step_3\.npz"):
        check_finite({"loss": jnp.float32(jnp.nan), "norm": np.inf, "kl": 0.0}, 3, tmp_path, lambda: data)
    with np.load(tmp_path / "nonfinite_step_3.npz") as saved:
        assert saved["batch/tokens"].tolist() == list(range(8))
        assert saved["half"].dtype == np.float32
        assert saved["key"].shape == (2,)
        assert np.isnan(saved["loss"])


def test_a_workdir_belongs_to_its_config(tmp_path):
    config = {"stage": "rl", "optimizer": {"learning_rate": 1e-3, "betas": [0.9, 0.95]}, "limit": float("inf"), "x": {}}
    workdir = open_workdir(tmp_path / "run", config)
    assert json.loads((workdir / "config.json").read_text()) == config
    open_workdir(workdir, json.dumps(config))
    elsewhere = config | {"mesh": {"fsdp": 4}}
    assert json.loads((open_workdir(workdir, elsewhere) / "config.json").read_text()) == elsewhere  # on any mesh
    open_workdir(workdir, config)
    other = {"stage": "rl", "optimizer": {"learning_rate": 2e-3, "betas": [0.9, 0.95]}, "seed": 1, "x": {}}
    with pytest.raises(WorkdirError) as caught:
        open_workdir(workdir, other)
    assert str(caught.value).splitlines()[1:] == [
        "  limit: Infinity there, absent now",
        "  optimizer.learning_rate: 0.001 there, 0.002 now",
        "  seed: absent there, 1 now",
    ]
    (workdir / "config.json").write_text("{")
    with pytest.raises(WorkdirError, match=r"config\.json is not JSON"):
        open_workdir(workdir, config)


def test_an_atomic_write_replaces_the_whole_file(tmp_path):
    write_atomically(tmp_path / "summary.json", "old and long")
    write_atomically(tmp_path / "summary.json", "new")
    assert (tmp_path / "summary.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_a_folder_with_files_of_an_unknown_run_is_left_alone(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(WorkdirError, match=r"holds metrics.jsonl but no config.json: another run's"):
        open_workdir(tmp_path, {"steps": 1})
    assert (tmp_path / "metrics.jsonl").read_text() == "{}\n"
    with pytest.raises(WorkdirError, match=r"metrics.jsonl is a file; --workdir needs a directory"):
        open_workdir(tmp_path / "metrics.jsonl", {"steps": 1})
