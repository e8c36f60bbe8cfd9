"""Experiments: their configurations, the figures of made-up runs by hand, and the sweep that makes runs."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import rich.console

from r1jax import train
from r1jax.evaluation import experiment_report, experiments
from r1jax.evaluation.experiments import Arm, Claim, Curve, Experiment, Metric, Trend
from r1jax.evaluation.records import Series
from r1jax.settings import ConfigError
from tools import experiment_runs, report, sweep

ROOT = pathlib.Path(__file__).parents[1]
LANGUAGE = ROOT / "experiments" / "language_consistency"
SMOKE = ROOT / "tests" / "configs" / "r1_zero_smoke.py"


def experiment(**fields: Any) -> Experiment:
    return Experiment(
        **{
            "title": "Made up",
            "question": "Which is larger?",
            "config": ROOT / "configs" / "r1_zero.py",
            "argument": "tiny,seed={seed}",
            "arms": {"off": Arm(), "on": Arm({"r1_zero.rewards.language": 1.0})},
            "seeds": (0, 1, 2),
            "metrics": (Metric("pass@1", "evaluate/pass_at_1"), Metric("length", "evaluate/length_mean", "tokens")),
            "curves": (Curve("Accuracy", "rl", "accuracy"),),
            "claims": (Claim("More is more.", "Nowhere, section 1", "pass@1", "on", "off"),),
            **fields,
        }
    )


def leave(folder: pathlib.Path, summary: dict[str, Any], rows: list[dict[str, Any]] = []) -> None:  # noqa: B006
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    if rows:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def leave_runs(out: pathlib.Path, values: dict[str, list[float | None]]) -> None:
    for arm, each in values.items():
        for seed, value in enumerate(each):
            leave(out / arm / f"seed{seed}" / "evaluate", {"pass_at_1": value, "length_mean": 10.0 + seed})
            rows = [{"step": step, "accuracy": 0.1 * step + 0.2 * seed} for step in range(3)]
            leave(out / arm / f"seed{seed}" / "rl", {}, rows)


# Configurations -------------------------------------------------------------------------------------------------------


def test_an_arm_is_the_base_config_with_its_fields_and_its_seed() -> None:
    config = experiment().get_config("on,seed=2")
    _, typed = train.read_config(config)
    assert typed.title == "Made up: on, seed 2"
    rl = train.pipeline.stage_configs(typed)[2]
    assert (rl.rewards.language, rl.rewards.format, rl.seed) == (1.0, 0.5, 2)
    _, off = train.read_config(experiment().get_config("off,seed=2"))
    assert [a == b for a, b in zip(off.steps, typed.steps, strict=True)] == [True, True, False, True]


def test_fields_that_name_no_step_or_no_arm_are_refused() -> None:
    wrong = experiment(arms={"on": Arm({"zero.rewards.language": 1.0})}, claims=())
    with pytest.raises(
        ConfigError, match=r"zero\.rewards\.language: does not begin with one of the steps pretrain, ev"
    ):
        wrong.get_config("on")
    below = experiment(arms={"on": Arm({"r1_zero.seed.x": 1})}, claims=())
    with pytest.raises(ConfigError, match=r"r1_zero\.seed\.x: seed holds 0, which has no fields"):
        below.get_config("on")
    with pytest.raises(ConfigError, match=r"experiment\.py:of: unknown argument; allowed: off, on, and ',seed=N'"):
        experiment().get_config("of")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"argument": "tiny"}, "argument: arm 'off' has no {seed} in it: all seeds would be the same run"),
        ({"seeds": (0, 0)}, "metrics and seeds: each once"),
        ({"seeds": ()}, "at least one of each"),
        ({"claims": (Claim("", "", "pass@2", "on", "off"),)}, "'pass@2' is not the label of one of the metrics"),
        ({"claims": (Claim("", "", "pass@1", "on", "of"),)}, "claims: 'of' is not one of the arms"),
        (
            {"trends": (Trend("By arm", "", {"a": "pass@1", "b": "length"}),)},
            "trends: 'By arm': ['pass@1', 'length'] must be labels",
        ),
        (
            {"trends": (Trend("By arm", "", {"a": "pass@2"}),)},
            "must be labels of metrics, all of one unit; there are ['pa",
        ),
        ({"arms": {"a": Arm(run="b"), "b": Arm(run="a")}, "claims": ()}, "'a' is to be found in 'b', which is no arm"),
    ],
)
def test_an_experiment_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        experiment(**fields)


def test_the_experiment_of_the_language_reward_differs_in_that_reward_alone() -> None:
    found = experiments.load_experiment(LANGUAGE)
    plain = {arm: found.get_config(f"{arm},seed=1").to_dict() for arm in found.arms}
    assert all(len(config["steps"]) == 4 for config in plain.values())
    for i in (0, 1, 3):
        assert plain["on"]["steps"][i] == plain["off"]["steps"][i]
    rewards = {arm: config["steps"][2]["config"]["rewards"] for arm, config in plain.items()}
    assert rewards["on"] == {**rewards["off"], "language": 1.0}
    train.check(found.get_config("on"), None)


# The report -----------------------------------------------------------------------------------------------------------


def test_the_table_and_the_verdict_by_hand(tmp_path: pathlib.Path) -> None:
    leave_runs(tmp_path, {"off": [0.1, 0.2, 0.3], "on": [0.4, 0.4, 0.7]})
    written = experiment_report.write_experiment_report(experiment(), tmp_path)
    # off: mean .2, s .1, error .1 / sqrt(3) = .0577, t 4.303: ± .2484. on: mean .5, s .1732, error .1: ± .4303.
    # Differences .3, .2, .4: mean .3, error .0577, interval .3 ± .2484.
    assert "| pass@1 | 20.0 ± 5.8 % [-4.8, 44.8]; 0: 10.0 %, 1: 20.0 %, 2: 30.0 % |" in written.markdown
    assert "| 50.0 ± 10.0 % [7.0, 93.0]; 0: 40.0 %, 1: 40.0 %, 2: 70.0 % |" in written.markdown
    assert "| +30 ± 5.8 points [+5.16, +54.8], 3 seeds |" in written.markdown
    assert "| length tokens | 11 ± 0.58 [8.516, 13.48]; 0: 10, 1: 11, 2: 12 |" in written.markdown
    assert "Here: **agrees**. pass@1, on − off: +30 ± 5.8 points" in written.markdown
    assert "The direction is the claimed one." in written.markdown
    page = written.path.read_text()
    assert "More is more." in page
    assert "missing" not in page
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["curve0.png", "metric0.png", "metric1.png"]


@pytest.mark.parametrize(
    ("on", "direction", "word"),
    [
        ([0.4, 0.4, 0.7], "higher", "agrees"),
        ([0.2, 0.1, 0.9], "higher", "agrees, not beyond chance"),  # +.1, -.1, +.6
        ([0.0, 0.1, 0.2], "higher", "differs"),
        ([0.2, 0.1, 0.0], "higher", "differs, not beyond chance"),  # +.1, -.1, -.3
        ([0.4, 0.4, 0.7], "equal", "differs"),
        ([0.2, 0.1, 0.9], "equal", "no difference seen"),
        ([0.4, None, None], "higher", "one seed"),
        ([None, None, None], "higher", "not known"),
    ],
)
def test_what_is_said_of_a_claim(tmp_path: pathlib.Path, on: list[Any], direction: str, word: str) -> None:
    claim = Claim("x", "y", "pass@1", "on", "off", direction)
    leave_runs(tmp_path, {"off": [0.1, 0.2, 0.3], "on": on})
    made = experiment(claims=(claim,))
    found = experiment_report.verdict(made, experiments.read_results(made, tmp_path), claim)
    assert found.word == word


def test_what_is_missing_is_named_and_left_out(tmp_path: pathlib.Path) -> None:
    leave_runs(tmp_path, {"off": [0.1, 0.2], "on": [0.4, None, 0.7]})
    written = experiment_report.write_experiment_report(experiment(), tmp_path, ["on, seed 0, rl (another rate)"])
    for line in (
        "- missing: off, seed 2: not done (evaluate)",
        "- missing: on, seed 1: pass@1 is undefined",
        "- made by another config: on, seed 0, rl (another rate)",
    ):
        assert line in written.markdown
        assert line.removeprefix("- ") in written.path.read_text()
    assert "| +30 points 1 seed |" in written.markdown
    assert "**one seed**" in written.markdown


def test_a_figure_that_a_summary_does_not_have_is_named(tmp_path: pathlib.Path) -> None:
    leave(tmp_path / "off" / "seed0" / "evaluate", {"pass_at_1": 0.5, "by_group": {"3": {"pass_at_1": 0.25}}})
    made = experiment(metrics=(Metric("pass@1", "evaluate/by_group/3/pass_at_1"),))
    assert experiments.read_results(made, tmp_path).values["pass@1"]["off"] == {0: 0.25}
    made = experiment(metrics=(Metric("pass@1", "evaluate/by_group/4/pass_at_1"),))
    with pytest.raises(ConfigError, match=r"evaluate/by_group/4/pass_at_1: .* has no '4'; there are 3"):
        experiments.read_results(made, tmp_path)
    made = experiment(metrics=(Metric("pass@1", "evaluate/by_group"),))
    with pytest.raises(ConfigError, match="which is no number"):
        experiments.read_results(made, tmp_path)


BUDGETS = [{"budget": 8, "pass_at_1": 0.25}, {"budget": 12, "pass_at_1": 0.5}, {"budget": None, "pass_at_1": 0.75}]


def test_a_row_of_a_list_is_named_by_a_field(tmp_path: pathlib.Path) -> None:
    leave(tmp_path / "8" / "seed0" / "evaluate", {"budgets": BUDGETS, "k": 2})

    def values(path: str) -> dict[str, dict[int, float]]:
        arms = {"8": Arm(), "12": Arm(run="8"), "none": Arm(run="8")}
        made = experiment(arms=arms, seeds=(0,), metrics=(Metric("pass@1", path),), claims=())
        return experiments.read_results(made, tmp_path).values["pass@1"]

    assert values("evaluate/budgets/budget={arm}/pass_at_1") == {"8": {0: 0.25}, "12": {0: 0.5}, "none": {0: 0.75}}
    for path, message in {
        "evaluate/budgets/budget=16/pass_at_1": "no 'budget=16'; there are budget=12, budget=8, budget=none",
        "evaluate/budgets/1/pass_at_1": r"no '1'; there are \[",
        "evaluate/k/k=2": "no 'k=2'; there are 2",
    }.items():
        with pytest.raises(ConfigError, match=message):
            values(path)


def test_a_trend_goes_over_the_arms_in_their_order(tmp_path: pathlib.Path) -> None:
    leave_runs(tmp_path, {"off": [0.1, 0.2, 0.3], "on": [0.4, None, None], "more": []})
    trend = Trend("By arm", "arm", {"share": "pass@1"})
    made = experiment(arms={"off": Arm(), "on": Arm(), "more": Arm()}, trends=(trend,))
    drawn = experiment_report.trend_figure(trend, made, experiments.read_results(made, tmp_path))
    axes = drawn.axes[0]
    line, _, (bars,) = axes.containers[0]
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float), [0.2, 0.4, np.nan])
    # off: s .1, error .1 / sqrt(3) = .0577; on: one seed, no error.
    ends = [np.asarray(bar, float)[:, 1] for bar in bars.get_segments()[:2]]
    np.testing.assert_allclose(ends, [[0.1423, 0.2577], [0.4, 0.4]], rtol=1e-3)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["off", "on", "more"]
    experiment_report.write_experiment_report(made, tmp_path)
    assert (tmp_path / "plots" / "trend0.png").is_file()


def test_preference_rewards_of_every_run_are_set_against_rules(tmp_path: pathlib.Path) -> None:
    leave_runs(tmp_path, {"off": [0.1], "on": [0.2]})
    rows = [{"step": i, "helpful/helpfulness": i / 10, "other/accuracy": 0.9 - i / 100} for i in range(60)]
    leave(tmp_path / "on" / "seed0" / "rl", {"stage": "rl"}, rows)
    made = experiment(seeds=(0,), monitored="rl")
    page = experiment_report.write_experiment_report(made, tmp_path).path.read_text()
    assert page.count("<h3>on, seed 0</h3>") == 1
    assert "helpful/helpfulness rose from" in page
    assert "<h3>off, seed 0</h3>" not in page, "it logged no preference reward"


def test_arms_may_be_steps_of_one_run(tmp_path: pathlib.Path) -> None:
    leave(tmp_path / "short" / "seed0" / "evaluate_short", {"pass_at_1": 0.25})
    leave(tmp_path / "short" / "seed0" / "evaluate_long", {"pass_at_1": 0.5})
    made = experiment(
        arms={"short": Arm(), "long": Arm(run="short")},
        seeds=(0,),
        metrics=(Metric("pass@1", "evaluate_{arm}/pass_at_1"),),
        claims=(),
    )
    assert experiments.read_results(made, tmp_path).values["pass@1"] == {"short": {0: 0.25}, "long": {0: 0.5}}
    assert [run.arm for run in experiment_runs.all_runs(tmp_path, made, tmp_path)] == ["short"]


def test_a_curve_is_averaged_where_all_seeds_have_it() -> None:
    lines = [
        Series(np.array([0.0, 1, 2, 4]), np.array([0.0, 1, 2, 4])),
        Series(np.array([1.0, 2, 3]), np.array([3.0, 4, 5])),
    ]
    steps, table = experiment_report.common_steps(lines)
    assert steps.tolist() == [1, 2]
    assert table.tolist() == [[1, 2], [3, 4]]


# The sweep ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def swept(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., sweep.Sweep]:
    """A sweep whose runs are a few lines of Python, given each arm's program; they get workdir and reuse."""

    def make(programs: dict[str, str]) -> sweep.Sweep:
        def command(made: Experiment, run: experiment_runs.Run, reuse: list[str]) -> list[str]:
            return [sys.executable, "-I", "-S", "-c", programs[run.arm], str(run.workdir), *reuse]

        monkeypatch.setattr(sweep, "command", command)
        console = rich.console.Console(file=sys.stdout, force_terminal=False, soft_wrap=True, highlight=False)
        return sweep.Sweep(experiment(), tmp_path / "out", ["elsewhere"], console)

    return make


NOTE = "import os, sys; os.makedirs(sys.argv[1]); open(sys.argv[1] + '/ran', 'w').write(' '.join(sys.argv[2:]))"


def test_arms_of_a_seed_run_in_order_and_may_copy_from_those_before(
    swept: Callable[..., sweep.Sweep], tmp_path: pathlib.Path
) -> None:
    made = swept({"off": NOTE, "on": NOTE})
    out = tmp_path / "out"
    assert made.run(experiment_runs.all_runs(tmp_path, experiment(), out), 2) == []
    for seed in range(3):
        assert (out / "off" / f"seed{seed}" / "ran").read_text() == "elsewhere"
        assert (out / "on" / f"seed{seed}" / "ran").read_text() == f"{out}/off/seed{seed} elsewhere"


def test_a_run_that_fails_does_not_stop_the_others(
    swept: Callable[..., sweep.Sweep], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = swept({"off": "import sys; sys.exit('the reason')", "on": NOTE})
    runs = experiment_runs.all_runs(tmp_path, experiment(), tmp_path / "out")
    failed = made.run(runs, 1)
    assert [(run.arm, run.seed) for run, _ in failed] == [("off", 0), ("off", 1), ("off", 2)]
    assert failed[1][1].read_text() == "the reason\n"
    assert (tmp_path / "out" / "on" / "seed2" / "ran").exists()
    assert "off, seed 0: failed with status 1" in capsys.readouterr().out


def test_a_signal_reaches_the_runs_once_and_starts_no_more(
    swept: Callable[..., sweep.Sweep], tmp_path: pathlib.Path
) -> None:
    wait = (
        "import os, signal, sys, time\n"
        "os.makedirs(sys.argv[1])\n"
        "def save(*_):\n"
        "    open(sys.argv[1] + '/signals', 'a').write('x')\n"
        "    time.sleep(0.2)\n"
        "    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "open(sys.argv[1] + '/ready', 'w')\n"
        "time.sleep(60)\n"
    )
    made = swept({"off": wait, "on": NOTE})
    out = tmp_path / "out"

    def stop() -> None:
        while len(list(out.glob("off/*/ready"))) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        made.run(experiment_runs.all_runs(tmp_path, experiment(), out), 2)
    assert [path.read_text() for path in out.glob("off/*/signals")] == ["x", "x"]
    assert not (out / "on").exists()
    assert not (out / "off" / "seed2").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_dry_run_says_what_is_left(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sweep", str(LANGUAGE), f"--out={tmp_path}", "--dry-run", "--seeds=1", "--arms=on"]
    monkeypatch.setattr(sys, "argv", arguments)
    sweep.main()
    shown = capsys.readouterr().err
    assert f"experiment.py:on,seed=1 --workdir={tmp_path}/on/seed1" in shown
    assert "pretrain (not begun); evaluate_base (not begun); r1_zero (not begun); evaluate_zero (not begun)" in shown
    assert "off" not in shown
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(sys, "argv", ["sweep", str(LANGUAGE), "--dry-run", "--arms=onn"])
    with pytest.raises(ConfigError, match="--arms: 'onn' is not one of off, on"):
        sweep.main()


def test_a_folder_to_copy_from_must_be_there(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep", str(LANGUAGE), "--dry-run", f"--reuse={tmp_path / 'absent'}"])
    with pytest.raises(SystemExit):
        sweep.main()
    assert f"--reuse: there is no folder {tmp_path / 'absent'}" in capsys.readouterr().err


def test_the_folder_of_one_run_is_not_written_over(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("config.json", "report.html"):
        (tmp_path / name).write_text("its own")
    for tool in (sweep, report):
        monkeypatch.setattr(sys, "argv", ["tool", str(LANGUAGE), f"--out={tmp_path}"])
        with pytest.raises(ConfigError, match=f"--out: {tmp_path} is the folder of a single run"):
            tool.main()
    assert (tmp_path / "report.html").read_text() == "its own"


def test_the_folder_of_another_experiment_is_not_written_over(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["report", str(LANGUAGE), f"--out={tmp_path}"])
    report.main()
    page = (tmp_path / "report.html").read_text()
    for tool in (sweep, report):
        monkeypatch.setattr(sys, "argv", ["tool", str(LANGUAGE.parent / "test_time_budget"), f"--out={tmp_path}"])
        with pytest.raises(ConfigError, match=f"--out: {tmp_path} holds the runs of the experiment 'language_consis"):
            tool.main()
    assert (tmp_path / "report.html").read_text() == page


def test_a_report_of_nothing_names_every_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["report", str(LANGUAGE), f"--out={tmp_path / 'runs'}"])
    report.main()
    shown = capsys.readouterr().out
    assert shown.count("- missing: ") == 6
    assert "- missing: on, seed 2: not done (evaluate_zero, evaluate_base)" in shown
    assert "**not known**. No seed has both arms." in shown
    assert "| pass@1 | – | – | – |" in shown


SWEPT = """
from pathlib import Path
from r1jax.evaluation.experiments import Arm, Curve, Experiment, Metric

EXPERIMENT = Experiment(
    title="Smoke", question="Does it run?", config=Path(__file__).parent / "base.py", argument="{seed}",
    arms={"two": Arm({"r1_zero.rollouts": 2}), "one": Arm({"r1_zero.rollouts": 1})}, seeds=(0, 1),
    metrics=(Metric("length", "evaluate_zero/length_mean", "tokens"),), curves=(Curve("Reward", "r1_zero", "reward"),),
)
get_config = EXPERIMENT.get_config
"""
BASE = f"""
import runpy

def get_config(seed):
    config = runpy.run_path({str(SMOKE)!r})["get_config"]()
    for step in config.steps:
        step["config"]["seed"] = int(seed)
    return config
"""


@pytest.mark.slow
def test_a_sweep_and_its_report_end_to_end(tmp_path: pathlib.Path) -> None:
    """Two to five minutes on two cores: python -m pytest -m slow tests/test_experiments.py"""
    (tmp_path / "experiment.py").write_text(SWEPT)
    (tmp_path / "base.py").write_text(BASE)
    out = tmp_path / "out"

    def tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", f"tools.{name}", str(tmp_path), f"--out={out}", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    first = tool("sweep", "--processes=2")
    assert first.returncode == 0, first.stderr
    for seed in (0, 1):
        log = (out / "logs" / f"one_seed{seed}.log").read_text()
        for step in ("pretrain", "evaluate_base"):
            assert f"{step}: copied from {out / 'two' / f'seed{seed}' / step}" in log
    again = tool("sweep", "--processes=2")
    assert again.returncode == 0
    assert again.stderr.count("done before") == 4
    lengths = {
        arm: [json.loads((out / arm / f"seed{seed}" / "evaluate_zero" / "summary.json").read_text())["length_mean"]
              for seed in (0, 1)]
        for arm in ("two", "one")
    }  # fmt: skip
    shown = tool("report").stdout
    means = {arm: sum(each) / 2 for arm, each in lengths.items()}
    assert f"| {means['two']:.4g} ± {abs(lengths['two'][0] - lengths['two'][1]) / 2:.2g} [" in shown
    assert f"| {means['one'] - means['two']:+.3g} ± " in shown
    assert (out / "report.html").is_file()
