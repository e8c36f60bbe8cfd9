"""What `tools.plan` is asked in a wrong way is refused before the plan, with the flag's name."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from r1jax.plan import subject
from r1jax.plan.chips import parse_topology
from r1jax.plan.compile import PlanError, _only, tpu_devices
from r1jax.sharding import MeshConfig
from tools import plan


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fsdp=--3", r"--mesh: 'fsdp=--3'; expected AXIS=SIZE .*at least 1"),
        ("fsdp=0", r"--mesh: 'fsdp=0'; expected"),
        ("fsdp=²", r"--mesh: 'fsdp=²'; expected"),
        ("fsdp=2,fsdp=4", r"--mesh: 'fsdp=2,fsdp=4' names 'fsdp' twice"),
    ],
)
def test_a_mesh_that_is_none_is_refused_by_its_flag(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        subject.mesh_config(text, MeshConfig())
    assert subject.mesh_config("fsdp=-1,expert=2", MeshConfig()) == MeshConfig(data=1, fsdp=-1, expert=2)


def test_a_length_beyond_the_context_is_refused_by_its_flag() -> None:
    chosen = subject.choose(subject.read_config("configs/r1_zero.py:tiny"), "", "", ("prompt.width=12",))
    longest = chosen.model.max_positions - 12
    assert subject.for_responses(chosen, longest).config.row_length == chosen.model.max_positions
    for length in (1, longest + 1):
        with pytest.raises(PlanError, match=rf"--length: {length}; 2 to {longest}, .*max_positions = 512 less prompt"):
            subject.for_responses(chosen, length)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--search=-1", r"--search: -1; expected how many mesh shapes to compile, at least 1"),
        ("--fit", r"--fit: h100:8x1 has no compiler here"),
    ],
)
def test_flags_that_make_no_plan_are_refused_before_the_plan(
    flag: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["plan", "--config=nowhere.py", "--topology=h100:8x1", flag])
    with pytest.raises(PlanError, match=message):
        plan.main()


def test_a_compiler_that_leaves_no_files_is_told_of(tmp_path: pathlib.Path) -> None:
    with pytest.raises(PlanError, match=r"the compiler left no \*buffer-assignment\.txt in .*so its memory"):
        _only(tmp_path, "*buffer-assignment.txt")


@pytest.mark.slow  # 10 s, and the extra `plan`
def test_an_unknown_topology_is_told_of_in_one_line() -> None:
    """libtpu says pages about a machine that is no TPU, unless it is told that it need not look."""
    pytest.importorskip("libtpu")
    command = [sys.executable, "-m", "tools.plan", "--config=configs/r1_zero.py:tiny", "--topology=v5p:3x5x7"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TPU_")}
    root = pathlib.Path(__file__).parents[1]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, timeout=300, check=False)
    (line,) = (ended.stdout + ended.stderr).splitlines()
    assert ended.returncode == 1
    assert line.startswith("PlanError: topology: libtpu does not know v5p:3x5x7: INVALID_ARGUMENT: Topology layout")


@pytest.mark.slow  # 20 s, and the extra `plan`
@pytest.mark.parametrize(("topology", "devices"), [("v6e:1x1", 1), ("v5e:2x2", 4), ("v4:2x2x1", 4), ("2*v5e:2x2", 8)])
def test_machines_of_any_size_have_as_many_devices_as_they_say(topology: str, devices: int) -> None:
    pytest.importorskip("libtpu")
    found = tpu_devices(parse_topology(topology))
    assert len(found) == parse_topology(topology).devices == devices
