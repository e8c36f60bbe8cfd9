"""Pipelines whose stages only note that they ran: what is done, repeated, moved aside, brought back and copied."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from absl import flags
from ml_collections import ConfigDict

from r1jax import train
from r1jax.data.errors import DataError
from r1jax.data.tokenizer import ByteTokenizer
from r1jax.model.presets import get_preset
from r1jax.settings import ConfigError, from_config
from r1jax.stages import pipeline, pretrain, step_folders, step_keys
from r1jax.workdir import WorkdirError

QUESTION = '{"question": "compute 1 + 1 ?", "answer": "2"}\n'


class Killed(BaseException):
    """Stands for SIGKILL."""


class Stages:
    """In place of the real stages: each run leaves a number that no other run leaves."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.checked: list[str] = []
        self.killed_in = ""

    def run(self, config: Any, folder: pathlib.Path, *hook: Any) -> None:
        self.ran.append(folder.name)
        (folder / "half").write_text("done")
        if folder.name == self.killed_in:
            raise Killed
        (folder / "summary.json").write_text(json.dumps({"run": len(self.ran)}))

    def check(self, config: Any, folder: pathlib.Path, planned: Any) -> None:
        self.checked.append(folder.name)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    made = Stages()
    replaced = {
        name: dataclasses.replace(stage, run=made.run, check=made.check)
        for name, stage in pipeline.SINGLE_STAGES.items()
    }
    monkeypatch.setattr(pipeline, "SINGLE_STAGES", replaced)
    monkeypatch.setattr(pretrain, "run", made.run)
    monkeypatch.setattr(pipeline, "write_report", lambda workdir, *args, **kwargs: workdir / "report.html")
    return made


@pytest.fixture
def questions(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "questions.jsonl"
    path.write_text(QUESTION)
    return path


def fields(questions: pathlib.Path, **top: Any) -> dict[str, Any]:
    """base -> before (evaluation), base -> rl (with a file of questions) -> after (evaluation); other (alone)."""
    source = {"kind": "jsonl", "path": str(questions), "split": "", "size": 0, "seed": 0}
    init = {"kind": "stage", "path": "../base"}
    return {
        "stage": "pipeline",
        "steps": [
            {"name": "base", "stage": "pretrain", "config": {"steps": 10}},
            {"name": "before", "stage": "evaluate", "config": {"init": init}},
            {"name": "rl", "stage": "rl", "config": {"init": init, "source": source, "prompts": 2, "row_length": 512}},
            {"name": "after", "stage": "evaluate", "config": {"init": {"kind": "stage", "path": "../rl"}}},
            {"name": "other", "stage": "pretrain", "config": {"steps": 7}},
        ],
        **top,
    }


def changed(config: dict[str, Any], step: str, **changes: Any) -> dict[str, Any]:
    config = copy.deepcopy(config)
    next(item for item in config["steps"] if item["name"] == step)["config"].update(changes)
    return config


def run(config: dict[str, Any], workdir: pathlib.Path) -> None:
    train.run(ConfigDict(config), workdir)


def keys(config: dict[str, Any], workdir: pathlib.Path) -> dict[str, str]:
    told = [
        (step["name"], step["stage"], pipeline.to_plain(stage))
        for step, stage in zip(config["steps"], pipeline.stage_configs(typed(config)), strict=True)
    ]
    return {name: key.digest for name, key in step_keys.step_keys(told, workdir).items()}


def typed(config: dict[str, Any]) -> pipeline.PipelineConfig:
    return from_config(pipeline.PipelineConfig, {name: config[name] for name in config if name != "stage"})


def differing(a: dict[str, str], b: dict[str, str]) -> set[str]:
    return {name for name in a if a[name] != b[name]}


ALL = ["base", "before", "rl", "after", "other"]


def test_a_key_changes_with_the_config_and_with_what_is_read_and_with_nothing_else(
    questions: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    config = fields(questions)
    first = keys(config, tmp_path / "run")
    assert first == keys(config, tmp_path / "elsewhere" / "run"), "the place of the run is in the keys"
    assert first == keys(fields(questions, title="another", only="rl"), tmp_path / "run")
    assert len(set(first.values())) == 5
    assert differing(first, keys(changed(config, "base", steps=11), tmp_path)) == {"base", "before", "rl", "after"}
    assert differing(first, keys(changed(config, "rl", prompts=4), tmp_path)) == {"rl", "after"}
    assert differing(first, keys(changed(config, "after", samples=3), tmp_path)) == {"after"}
    assert first == keys(changed(config, "base", seed=0), tmp_path), "a default that is spelt out is the same config"
    other = keys(changed(config, "rl", mesh={"data": 1, "fsdp": -1}), tmp_path)
    assert first == other, "a step goes on, and is done, on any mesh"
    os.utime(questions, (0, 0))
    assert first == keys(config, tmp_path), "a file's content counts, not its date"
    questions.write_text(QUESTION + QUESTION)
    assert differing(first, keys(config, tmp_path)) == {"rl", "after"}


def test_a_file_in_a_steps_folder_stands_for_the_step(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to the step's own folder, absolute, or relative to where the program runs; in a list too."""
    monkeypatch.chdir(tmp_path)
    workdir = tmp_path / "run"
    forms = ("../one/kept.jsonl", str(workdir / "one" / "kept.jsonl"), "run/one/kept.jsonl")
    told = [("one", "curate", {"k": 1})]
    for form in forms:
        found = step_keys.step_keys([*told, ("two", "sft", {"data": [form]})], workdir)["two"]
        assert found.steps == ("one",)
        assert found.inputs == {"data[0]": "step " + step_keys.step_keys(told, workdir)["one"].digest}
    for text in (
        "one",
        "/",
        "..",
        "./kept.jsonl",
        "</answer>",
        "a/b\nc",
        "x" * 5000,
        "x" * 300,
        "思" * 100,
        "a\0b",
        "",
    ):
        assert not step_keys.step_keys([*told, ("two", "sft", {"data": [text]})], workdir)["two"].inputs, text


def test_a_step_that_reads_a_later_one_is_refused(tmp_path: pathlib.Path) -> None:
    told = [("one", "rl", {"init": {"path": "../two"}}), ("two", "rl", {})]
    with pytest.raises(ConfigError, match=r"steps\[one\]\.config\.init\.path: '\.\./two' is of the step 'two', which"):
        step_keys.step_keys(told, tmp_path)


def test_fingerprints_of_what_lies_outside(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tmp_path / "policy"
    (policy / "model" / "step_00000001").mkdir(parents=True)
    (policy / "model.json").write_text("{}")
    manifest = policy / "model" / "step_00000001" / "manifest.json"
    manifest.write_text("checksums")
    told = [("rl", "rl", {"reward": str(policy)})]
    assert step_keys.step_keys(told, tmp_path / "run")["rl"].inputs.keys() == {"reward"}
    told = [("rl", "rl", {"init": {"path": str(policy)}})]
    first = step_keys.step_keys(told, tmp_path / "run")["rl"].digest
    (policy / "metrics.jsonl").write_text("not what it is")
    assert step_keys.step_keys(told, tmp_path / "run")["rl"].digest == first
    manifest.write_text("other checksums")
    assert step_keys.step_keys(told, tmp_path / "run")["rl"].digest != first
    monkeypatch.setattr(step_keys, "HASHED_BYTES", 3)
    file = tmp_path / "large"
    file.write_text("1234")
    os.utime(file, ns=(5, 5))
    assert step_keys.fingerprint(file) == "4 bytes, changed at 5 ns"
    for part in ("b", "a"):
        (tmp_path / f"{part}.jsonl").write_text(part)
    pattern = step_keys.fingerprint(tmp_path / "*.jsonl")
    assert pattern.startswith("2 files, sha256 ")
    (tmp_path / "c.jsonl").write_text("c")
    assert step_keys.fingerprint(tmp_path / "*.jsonl").startswith("3 files")


def test_what_is_done_is_skipped_and_what_changed_is_repeated_and_told(
    stages: Stages, questions: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir, config = tmp_path / "run", fields(questions)
    run(config, workdir)
    assert stages.ran == ALL
    assert stages.checked == ALL
    stages.checked.clear()
    run(config, workdir)
    assert stages.ran == ALL
    assert stages.checked == [], "what is done needs no check"
    assert pipeline.unfinished(typed(config), workdir) == {}
    capsys.readouterr()

    other = changed(config, "rl", prompts=4)
    told = json.loads((workdir / "rl" / "stage_key.json").read_text())
    unfinished = pipeline.unfinished(typed(other), workdir)
    assert unfinished["rl"] == "made by another config: prompts: 2 there, 4 now"
    assert list(unfinished) == ["rl", "after"]
    stages.ran.clear()
    run(other, workdir)
    assert stages.ran == ["rl", "after"]
    assert stages.checked == ["rl", "after"]
    shown = capsys.readouterr().err
    aside = workdir / f"rl.{told['key'][:8]}"
    assert f"rl: changed; {aside} keeps what was there\n  prompts: 2 there, 4 now\n" in shown
    assert "  what init.path names is another: step " in shown
    assert "other: done before" in shown
    assert json.loads((aside / "summary.json").read_text()) == {"run": 3}
    first = json.loads((workdir / "config.json").read_text())
    assert first["steps"][2]["config"]["prompts"] == 4
    (kept,) = workdir.glob("config.????????.json")
    assert json.loads(kept.read_text())["steps"][2]["config"]["prompts"] == 2


def test_a_folder_moved_aside_comes_back_when_its_key_is_asked_for_again(
    stages: Stages, questions: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir, config = tmp_path / "run", fields(questions)
    run(config, workdir)
    run(changed(config, "rl", prompts=4), workdir)
    stages.ran.clear()
    stages.checked.clear()
    (aside,) = workdir.glob("rl.*")
    run(config, workdir)
    assert stages.ran == []
    assert stages.checked == []
    assert "rl: " + str(aside) + ", moved aside earlier, is back" in capsys.readouterr().err
    assert json.loads((workdir / "rl" / "summary.json").read_text()) == {"run": 3}
    assert json.loads((workdir / "after" / "summary.json").read_text()) == {"run": 4}
    assert len(list(workdir.glob("rl.*"))) == 1
    questions.write_text(QUESTION + QUESTION)
    run(config, workdir)
    assert stages.ran == ["rl", "after"], "the file of questions changed"
    assert len(list(workdir.glob("rl.*"))) == 2


def test_a_half_done_folder_goes_on_with_its_key_and_is_moved_aside_with_another(
    stages: Stages, questions: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir, config = tmp_path / "run", fields(questions)
    stages.killed_in = "rl"
    with pytest.raises(Killed):
        run(config, workdir)
    (workdir / "rl" / "progress").write_text("12")
    with pytest.raises(Killed):
        run(changed(config, "rl", prompts=4), workdir)
    assert not (workdir / "rl" / "progress").exists()
    stages.killed_in = ""
    run(config, workdir)
    assert (workdir / "rl" / "progress").read_text() == "12", "what had been begun went on"


MOMENTS = (
    (step_folders, "write_key"),
    (step_folders, "write_atomically"),
    (step_folders, "sync"),
    (step_folders, "sync_tree"),
    (step_folders.shutil, "copytree"),
    (step_folders, "open_workdir"),
    (pipeline, "open_workdir"),
    (pathlib.Path, "mkdir"),
    (pathlib.Path, "rename"),
    (pathlib.Path, "replace"),
)


def killed_at(moment: int, action: Callable[[], None]) -> bool:
    """Runs `action` and stops it at the n-th change of a folder or file, before or after it; False: it ended."""
    passed: list[int] = []

    def counted(function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            passed.append(1)
            if len(passed) == moment:
                raise Killed
            result = function(*args, **kwargs)
            passed.append(1)
            if len(passed) == moment:
                raise Killed
            return result

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in MOMENTS:
            patch.setattr(owner, name, counted(getattr(owner, name)))
        try:
            action()
        except Killed:
            return True
    return False


def test_a_kill_at_any_moment_between_two_changes_is_gone_on_from(tmp_path: pathlib.Path) -> None:
    """From A to B, of which one step is to be had elsewhere, and back to A."""
    a = {name: step_keys.StepKey("rl", {"of": "A", "name": name}, {}) for name in ("rl", "other")}
    b = {name: step_keys.StepKey("rl", {"of": "B", "name": name}, {}) for name in ("rl", "other")}
    donor = tmp_path / "donor"
    ran: list[str] = []

    def go(workdir: pathlib.Path, keys: dict[str, step_keys.StepKey]) -> None:
        with step_folders.sole_user(workdir):
            step_folders.record_config(workdir, {"stage": "pipeline", "of": keys["rl"].config["of"]})
            for name, key in keys.items():
                step_folders.place(workdir / name, key, [donor], list(keys))
                if not step_folders.is_done(workdir / name, key):
                    ran.append(name)
                    (workdir / name / "summary.json").write_text(key.digest)

    def there_and_back(workdir: pathlib.Path) -> None:
        go(workdir, b)
        go(workdir, a)

    go(donor, {"a name of its own": b["other"]} | {"rl": b["rl"]})
    for moment in itertools.count(1):
        workdir = tmp_path / f"run{moment}"
        go(workdir, a)
        ran.clear()
        killed = killed_at(moment, lambda workdir=workdir: there_and_back(workdir))  # type: ignore[misc]
        there_and_back(workdir)
        assert ran == [], f"moment {moment}: all of A was kept, and all of B was at the donor's"
        for name, key in a.items():
            assert (workdir / name / "summary.json").read_text() == key.digest
            assert (workdir / f"{name}.{b[name].digest[:8]}" / "summary.json").read_text() == b[name].digest
        assert len(list(workdir.iterdir())) == 8, "four folders, config.json, two earlier ones, the lock"
        if not killed:
            break
    assert moment > 40


def test_a_finished_step_of_another_workdir_is_copied(
    stages: Stages, questions: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = fields(questions)
    run(config, tmp_path / "first")
    stages.ran.clear()
    stages.checked.clear()
    second = changed(config, "rl", prompts=4) | {"reuse": [str(tmp_path / "first")]}
    run(second, tmp_path / "second")
    assert stages.ran == ["rl", "after"]
    assert stages.checked == ["rl", "after"]
    shown = capsys.readouterr().err
    assert f"base: copied from {tmp_path / 'first' / 'base'}" in shown
    assert f"rl: not taken from {tmp_path / 'first' / 'rl'}:\n  prompts: 2 there, 4 now\n" in shown
    assert "base: not taken" not in shown
    (tmp_path / "second" / "base" / "half").write_text("changed")
    assert (tmp_path / "first" / "base" / "half").read_text() == "done", "it is a copy, not a link"
    assert "reuse" not in json.loads((tmp_path / "second" / "config.json").read_text())


def test_a_workdir_to_copy_from_must_be_there(stages: Stages, questions: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match=f"^reuse: there is no folder {tmp_path}/absent "):
        run(fields(questions, reuse=[str(tmp_path / "absent")]), tmp_path / "second")
    assert stages.ran == []


def test_only_half_of_a_step_elsewhere_is_not_copied(
    stages: Stages, questions: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    config = fields(questions)
    stages.killed_in = "rl"
    with pytest.raises(Killed):
        run(config, tmp_path / "first")
    stages.killed_in = ""
    stages.ran.clear()
    run(config | {"reuse": [str(tmp_path / "first")]}, tmp_path / "second")
    assert stages.ran == ["rl", "after", "other"]


def test_a_report_compares_evaluations(questions: pathlib.Path) -> None:
    right, wrong = ({"stages": [{"label": "R1", "step": step}]} for step in ("after", "rl"))
    train.read_config(ConfigDict(fields(questions, report=right)))
    with pytest.raises(ConfigError, match=r"^PipelineConfig: report: 'R1': the step 'rl' is 'rl', no 'evaluate'$"):
        train.read_config(ConfigDict(fields(questions, report=wrong)))


def test_one_step_alone(stages: Stages, questions: pathlib.Path, tmp_path: pathlib.Path) -> None:
    workdir, config = tmp_path / "run", fields(questions)
    with pytest.raises(ConfigError, match=r"only: 'rl' reads steps that are not there: base \(not begun\)$"):
        run(config | {"only": "rl"}, workdir)
    assert not workdir.exists()
    run(config | {"only": "base"}, workdir)
    run(config | {"only": "rl"}, workdir)
    assert stages.ran == ["base", "rl"]
    assert stages.checked == ["base", "rl"]
    other = changed(config, "base", steps=11)
    message = r"only: 'rl' reads steps that are not there: base \(made by another config: steps: 10 there, 11 now\)"
    with pytest.raises(ConfigError, match=message):
        run(other | {"only": "rl"}, workdir)
    run(other | {"only": "base"}, workdir)
    assert stages.ran == ["base", "rl", "base"]
    assert (workdir / "rl" / "summary.json").exists(), "the others are untouched"
    with pytest.raises(ConfigError, match="only: 'lr' is not one of the steps base, before, rl, after, other"):
        run(config | {"only": "lr"}, workdir)


def test_folders_that_no_pipeline_left(stages: Stages, questions: pathlib.Path, tmp_path: pathlib.Path) -> None:
    workdir, config = tmp_path / "run", fields(questions)
    (workdir / "base").mkdir(parents=True)
    (workdir / "base" / "thesis.tex").write_text("all of it")
    with pytest.raises(WorkdirError, match=r"base holds thesis\.tex but no stage_key\.json: another program's\?"):
        run(config, workdir)
    (workdir / "base" / "config.json").write_text("{}")  # a stage that was run there by itself
    run(config, workdir)
    (aside,) = workdir.glob("base.????????")
    assert (aside / "thesis.tex").read_text() == "all of it"
    (workdir / "base" / "stage_key.json").write_text("{}")
    with pytest.raises(WorkdirError, match=r"base/stage_key\.json cannot be read \(it has no key"):
        run(config, workdir)


def test_a_workdir_of_a_single_stage_is_refused(
    stages: Stages, questions: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"stage": "pretrain", "steps": 3}')
    with pytest.raises(WorkdirError, match="was made by another config"):
        run(fields(questions), tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError, match="is a file; --workdir needs a directory"):
        run(fields(questions), tmp_path / "file")


def test_two_processes_do_not_share_a_workdir(tmp_path: pathlib.Path) -> None:
    held = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", held, str(tmp_path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "1\n"
        with (
            pytest.raises(WorkdirError, match="another process is running a pipeline there"),
            step_folders.sole_user(tmp_path),
        ):
            pass
        other.kill()
    with step_folders.sole_user(tmp_path):
        pass


@pytest.mark.filterwarnings("ignore:the load_module")  # ml_collections reads config files by it
def test_fields_that_the_file_leaves_out_can_be_set_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [
        "train",
        "--config=configs/r1_zero.py:tiny",
        "--config.only=r1_zero",
        "--config.reuse=('runs/a',)",
        "--config.steps[2].config.mesh.fsdp=2",
        "--config.steps[2].config.init.overrides.remat=block",
        "--config.steps[2].config.record_experts=False",
    ]
    monkeypatch.chdir(pathlib.Path(__file__).parents[1])
    monkeypatch.setattr(sys, "argv", arguments)
    try:
        assert train.parse_flags(arguments) == ["train"]
        _, read = train.read_config(train.CONFIG.value)
    finally:
        for name in [name for name in flags.FLAGS if name.startswith("config.")]:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
    assert (read.only, read.reuse) == ("r1_zero", ("runs/a",))
    changed = pipeline.stage_configs(read)[2]
    assert (changed.mesh.fsdp, changed.init.overrides, changed.record_experts) == (2, {"remat": "block"}, False)


@pytest.mark.filterwarnings("ignore:the load_module")
@pytest.mark.parametrize("field", ["steps.0.config.steps", "steps.zero.config.rollouts", "steps[99].config.rollouts"])
def test_a_field_that_is_no_ones_is_told_of_in_one_line(
    field: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--config=configs/r1.py:tiny", f"--config.{field}=3"]
    monkeypatch.chdir(pathlib.Path(__file__).parents[1])
    monkeypatch.setattr(sys, "argv", arguments)
    try:
        with pytest.raises(SystemExit):
            train.parse_flags(arguments)
    finally:
        for name in [name for name in flags.FLAGS if name.startswith("config.")]:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1
    assert "of a pipeline's third step: --config.steps[2].config.A=..." in shown


def test_prompts_behind_fine_tuning_are_looked_at_with_the_bases_tokenizer(tmp_path: pathlib.Path) -> None:
    tuned = {"data": [{"path": "../kept.jsonl"}], "init": {"kind": "stage", "path": "../base"}}
    asked = {"init": {"kind": "stage", "path": "../tuned"}, "source": {"size": 2}, "prompt": {"width": 16}}
    config = {
        "steps": [
            {"name": "base", "stage": "pretrain", "config": {}},
            {"name": "other", "stage": "pretrain", "config": {}},
            {"name": "tuned", "stage": "sft", "config": tuned},
            {"name": "after", "stage": "evaluate", "config": asked},
        ]
    }
    parts = pipeline._parts(from_config(pipeline.PipelineConfig, config), tmp_path)
    message = r"^steps\[after\]\.config\.source: the prompt of example .* more than prompt\.width = 16"
    with pytest.raises(DataError, match=message):
        pipeline._PromptCheck(parts, 0)(get_preset("tiny_dense"), ByteTokenizer())
    pipeline._PromptCheck(parts, 1)(get_preset("tiny_dense"), ByteTokenizer())
