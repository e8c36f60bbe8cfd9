"""A report from workdirs with made-up numbers."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r1jax.evaluation import page, plots, records, report, sections


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def pretrain_rows(steps: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "loss": 0.9 + 4 * np.exp(-step / 80) + 0.04 * rng.normal(),
            "mtp_loss": 1.6 + 4 * np.exp(-step / 90) + 0.05 * rng.normal(),
            "mtp_acceptance": 0.55 * (1 - np.exp(-step / 120)),
            "expert_load_max_over_mean": [1.2 + 2 * np.exp(-step / (40 + 30 * m)) for m in range(3)],
            "learning_rate": 3e-3 * min(1, (step + 1) / 50) * (0.05 + 0.95 * np.cos(np.pi / 2 * step / steps) ** 2),
            "grad_norm": 1 / (1 + step / 100) + 0.2 * rng.random(),
            "time": {
                "data": 0.002,
                "update": 0.18 + 0.01 * rng.random(),
                "tokens_per_second": 11000 + 300 * rng.normal(),
            },
        }
        for step in range(steps)
    ]


def rl_rows(steps: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for step in range(steps):
        share = 1 - np.exp(-step / 9)
        row = {
            "step": step,
            "reward": 0.5 + 0.9 * share + 0.02 * rng.normal(),
            "accuracy": 0.13 + 0.77 * share + 0.03 * rng.normal(),
            "format": 0.72 + 0.27 * share,
            "language": 0.7 - 0.5 * share,
            "length_mean": 20 + 12 * share + 0.4 * rng.normal(),
            "length_std": 9 - 5 * share,
            "length_max": 80,
            "truncation_rate": 0.03 * (1 - share),
            "ungradable": 0,
            "reflection_words": 0.2 + 0.5 * share,
            "kl_ref": 0.05 * share,
            "entropy": 0.35 - 0.3 * share,
            "clip_high": 0.004 * rng.random(),
            "ratio_max": 1.2 + 0.3 * rng.random(),
            "logprob_gap_mean": 2e-6 * (1 + 0.2 * rng.random()),
            "logprob_gap_max": 8e-5 * (1 + rng.random()),
            "expert_difference": 2e-4 * rng.random(),
            "expert_load_max_over_mean": 1.5,
            "expert_load_max_over_mean/layer_1": 1.3 + 0.1 * rng.random(),
            "expert_load_max_over_mean/layer_2": 1.5 + 0.1 * rng.random(),
            "grad_norm": 0.3 + 0.2 * rng.random(),
            "zero_variance_groups": 0.4 * share,
            "time": {
                "rollout": 1.4,
                "logprobs": 0.5,
                "update": 1.2,
                "rewards": 0.05,
                "tokens_per_second": 9000,
                "step": 3.2,
                "compilations": 0,
            },
        }
        if step % 6 == 0 or step == steps - 1:
            row |= {
                "eval/pass_at_1": 0.128 + 0.79 * share,
                "eval/pass_at_1_se": 0.02,
                "eval/cons_at_k": 0.3 + 0.66 * share,
                "eval/length_mean": 20 + 12 * share,
            }
        rows.append(row)
    return rows


def sample_row(index: int, completion: str, value: float, **changes: Any) -> dict[str, Any]:
    row = {
        "step": 0,
        "id": f"chain:{index}",
        "prompt": "User: compute 7 + 5 - 3 ?\nAssistant:",
        "completion": completion,
        "answer": "9",
        "rewards": {
            "accuracy": {"value": value, "status": "graded", "reason": ""},
            "format": {"value": 1.0, "status": "graded", "reason": ""},
        },
        "total": value + 0.5,
        "length": 21,
        "finished": True,
    }
    return row | changes


def evaluation_summary(pass_at_1: float, length: float) -> dict[str, Any]:
    return {
        "stage": "evaluate",
        "problems": 256,
        "k": 16,
        "temperature": 1.0,
        "top_p": 1.0,
        "pass_at_1": pass_at_1,
        "pass_at_1_se": 0.015,
        "cons_at_k": pass_at_1 + 0.05,
        "cons_at_k_low": pass_at_1 + 0.01,
        "cons_at_k_high": pass_at_1 + 0.09,
        "length_mean": length,
        "length_mean_se": 0.2,
        "truncation_rate": 0.01,
        "format": 0.75,
        "language": None,
        "reflection_words": 0.2,
        "ungradable": 3,
        "by_group": {
            str(s): {"problems": 64, "pass_at_1": pass_at_1, "pass_at_1_se": 0.03, "cons_at_k": 0.5} for s in (3, 4, 5)
        },
    }


def fake_workdir(root: Path, pretrain_steps: int = 150, rl_steps: int = 37) -> Path:
    rng = np.random.default_rng(0)
    names = ("1_pretrain", "2_evaluate", "3_rl", "4_evaluate")
    for name, kind in zip(names, ("pretrain", "evaluate", "rl", "evaluate"), strict=True):
        (root / name).mkdir(parents=True)
        (root / name / "config.json").write_text(
            json.dumps({"stage": kind, "seed": 0, "group_size": 4}), encoding="utf-8"
        )
    write_jsonl(root / "1_pretrain/metrics.jsonl", pretrain_rows(pretrain_steps, rng))
    write_jsonl(root / "3_rl/metrics.jsonl", rl_rows(rl_steps, rng))
    for name, figures in (
        ("2_evaluate", evaluation_summary(0.128, 20)),
        ("4_evaluate", evaluation_summary(0.906, 31.5)),
    ):
        (root / name / "summary.json").write_text(json.dumps(figures), encoding="utf-8")
    thought = "<think> 七 加 五 得 十二 , minus three is nine </think> <answer> 9 </answer>"
    rows = [sample_row(i, thought, float(i % 2)) for i in range(40)]
    write_jsonl(
        root / "2_evaluate/samples.jsonl",
        [sample_row(i, "<think> five <script>alert(1)</script>", 0.0) for i in range(12)],
    )
    write_jsonl(root / "4_evaluate/samples.jsonl", rows)
    write_jsonl(root / "3_rl/samples.jsonl", rows + [row | {"step": 36} for row in rows])
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = fake_workdir(tmp_path_factory.mktemp("runs") / "r1_zero")
    report.write_report(root)
    return root


def test_report_is_one_file_with_every_figure_inside(run: Path) -> None:
    html = (run / "report.html").read_text(encoding="utf-8")
    pngs = {path.stem for path in (run / "plots").iterdir()}
    assert {"3_rl_accuracy", "3_rl_length", "3_rl_kl", "3_rl_logprob_gap", "3_rl_expert_load", "3_rl_time"} <= pngs
    assert {"1_pretrain_loss", "1_pretrain_mtp_loss", "1_pretrain_mtp_acceptance", "1_pretrain_expert_load"} <= pngs
    assert html.count("data:image/png;base64,") == len(pngs)
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)""", html)
    assert "<script" not in html


def test_pngs_are_pictures_of_a_readable_size(run: Path) -> None:
    for path in (run / "plots").iterdir():
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", data[16:24])
        assert width > 600
        assert height > 350


def test_headline_table_compares_before_with_after(run: Path) -> None:
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "12.8&nbsp;% <small>± 1.5</small>" in html
    assert "90.6&nbsp;% <small>± 1.5</small>" in html
    assert "+77.8 points <small>± 2.1</small>" in html  # sqrt(1.5^2 + 1.5^2) = 2.12
    assert "× 1.57" in html or "× 1.58" in html  # 31.5 / 20
    assert "before RL <small>2_evaluate" in html
    assert "after RL <small>4_evaluate" in html
    assert "3 <small>of 4,096</small>" in html
    assert "256 problems × 16, T 1, top-p 1" in html


def test_model_text_is_escaped_and_its_tags_stand_out(run: Path) -> None:
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert '<span class="tag">&lt;think&gt;</span>' in html
    assert "七 加 五 得 十二" in html
    assert page.text("a\x00b\x1b[0m\ud800&") == "a\\x00b\\x1b[0m\\ud800&amp;"
    assert page.text("line\n\tnext") == "line\n\tnext"


def test_a_sample_shows_each_reward_and_its_status() -> None:
    rewards = {
        "accuracy": {"value": 0.0, "status": "ungradable", "reason": "no <gold>"},
        "format": {"value": 1.0, "status": "graded", "reason": ""},
    }
    html = sections.sample(sample_row(1, "text", 0.0, rewards=rewards, finished=False, prompt="few-shot " * 100))
    assert 'class="chip warn">accuracy ungradable: no &lt;gold&gt;<' in html
    assert 'class="chip good">format 1<' in html
    assert "cut by the length limit" in html
    assert "<details><summary>prompt, 900 characters" in html


def test_samples_are_random_and_the_same_for_the_same_seed(run: Path) -> None:
    record = records.StageRecord("4_evaluate", run / "4_evaluate")
    ids = [row["id"] for row in records.random_samples(record, 10, seed=0)]
    assert len(set(ids)) == 10
    assert ids == [row["id"] for row in records.random_samples(record, 10, seed=0)]
    assert ids != [f"chain:{i}" for i in range(10)]
    assert len(records.random_samples(record, 100, seed=0)) == 40


def test_missing_metrics_are_not_drawn(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "metrics.jsonl", [{"step": s, "loss": 2.0 - s, "mtp_loss": float("nan")} for s in range(2)])
    report.write_report(tmp_path)
    assert [path.name for path in (tmp_path / "plots").iterdir()] == [f"{tmp_path.name}_loss.png"]


def test_a_metric_that_is_always_zero_is_said_and_not_drawn(run: Path) -> None:
    assert not (run / "plots/3_rl_ungradable.png").exists()
    assert "Zero at every step: ungradable responses." in (run / "report.html").read_text(encoding="utf-8")


def test_without_evaluate_stages_the_evaluations_inside_rl_are_compared(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rl/metrics.jsonl", rl_rows(13, np.random.default_rng(0)))
    html = report.write_report(tmp_path).read_text(encoding="utf-8")
    assert "step 0 <small>evaluation inside RL" in html
    assert "step 12 <small>evaluation inside RL" in html


def test_nothing_to_report_and_malformed_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no stage folder"):
        report.write_report(tmp_path)
    (tmp_path / "rl").mkdir()
    (tmp_path / "rl/metrics.jsonl").write_text('{"step": 0, "reward": 1.0}\n{"step": \n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not a JSON object"):
        report.write_report(tmp_path)


def test_a_line_still_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1, "rew', encoding="utf-8")
    assert list(records.read_jsonl(path)) == [{"step": 0}]


def test_stages_come_in_natural_order(tmp_path: Path) -> None:
    for name in ("10_rl", "2_evaluate", "plots"):
        (tmp_path / name).mkdir()
        if name != "plots":
            (tmp_path / name / "summary.json").write_text("{}", encoding="utf-8")
    assert [stage.name for stage in records.find_stages(tmp_path)] == ["2_evaluate", "10_rl"]
    assert [stage.name for stage in records.find_stages(tmp_path, ["10_rl", "2_evaluate"])] == ["10_rl", "2_evaluate"]


def test_running_mean_by_hand() -> None:
    np.testing.assert_allclose(plots.running_mean(np.array([0.0, 3.0, 6.0, 0.0]), 3), [1.5, 3.0, 3.0, 3.0])


def test_layers_are_read_from_lists_and_from_names() -> None:
    listed = records.layer_series([{"step": 0, "load": [1.0, 2.0]}], "load")
    assert {label: line.last for label, line in listed.items()} == {"layer 0": 1.0, "layer 1": 2.0}
    named = records.layer_series([{"step": 0, "load/layer_10": 3.0, "load/layer_2": 2.0}], "load")
    assert list(named) == ["layer 2", "layer 10"]
    both = records.layer_series([{"step": 0, "load": 3.0, "load/layer_0": 3.0}], "load")
    assert list(both) == ["layer 0"]
    assert list(records.layer_series([{"step": 0, "load": 3.0}], "load")) == ["all layers"]


def test_parts_of_a_step_exclude_rates_and_totals() -> None:
    rows = [{"step": 0, "time": {"rollout": 2.0, "update": 3.0, "tokens_per_second": 9.0, "step": 5.0}}]
    assert list(plots.time_sections(rows)) == ["update", "rollout"]


def test_short_parts_of_a_step_are_drawn_as_one() -> None:
    rows = [{"step": 1, "time": {"update": 5.0, "rollout": 4.0, "logprobs": 3.0, "pack": 0.5, "rewards": 0.25}}]
    parts = plots._main_parts(np.array([1.0]), plots.time_sections(rows))
    assert {name: float(values[0]) for name, values in parts.items()} == {
        "update": 5.0,
        "rollout": 4.0,
        "logprobs": 3.0,
        "other": 0.75,
    }


def test_the_wall_time_of_a_stage_adds_up_over_its_processes(tmp_path: Path) -> None:
    rows = [{"step": i, "time": {"elapsed": t}} for i, t in enumerate((5.0, 60.0, 4.0, 30.0, 2.0, 11.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = records.StageRecord("rl", tmp_path)
    assert sections.stage_seconds(stage) == 60 + 30 + 11
    assert sections.duration(sections.stage_seconds(stage)) == "1 min 41 s"


def test_a_single_stage_without_metrics_is_found_by_its_summary(tmp_path):
    (tmp_path / "summary.json").write_text('{"stage": "evaluate"}')
    assert [(stage.name, stage.folder) for stage in records.find_stages(tmp_path)] == [(tmp_path.name, tmp_path)]
