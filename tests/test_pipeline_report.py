"""The page of a pipeline from a workdir with made-up numbers."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r1jax.data import data_card
from r1jax.data.data_card import Looked
from r1jax.evaluation import expectations, page, plots, sections
from r1jax.evaluation.expectations import Expectation, figure_at, verdict
from r1jax.evaluation.held_out_rewards import HeldOut, figures_of, write_plots
from r1jax.evaluation.pipeline_report import ReportConfig, StageColumn, Student, write_pipeline_report
from r1jax.settings import ConfigError, from_config, to_plain

LABELS = {"Zero": "eval_zero", "Dev1": "eval_dev1", "Dev2": "eval_dev2", "Dev3": "eval_dev3", "R1": "eval_r1"}
STEPS = [
    "pretrain",
    "r1_zero",
    "cold_start",
    "dev1",
    "rm_helpful",
    "r1",
    *LABELS.values(),
    "student_base",
    "student_distill",
    "eval_student_base",
    "eval_distill",
    "student_rl",
    "eval_rl",
]
CONFIG = ReportConfig(
    stages=tuple(StageColumn(label, step) for label, step in LABELS.items()),
    students=(
        Student("Qwen", "eval_student_base", "eval_distill", "student_distill", "eval_rl", "student_rl"),
        Student("Llama", "eval_student_base", "eval_llama", "llama_distill"),
    ),
    expectations=(
        Expectation("Cold start makes summaries readable.", "Zero", "Dev1", "readable_summary"),
        Expectation("RL raises accuracy over Dev1.", "Dev1", "R1", "by_domain/reasoning/pass_at_1"),
        Expectation("RL for all scenarios raises safety.", "Zero", "R1", "by_domain/harmless/pass_at_1"),
        Expectation("Format is not lower.", "Zero", "Dev1", "format", "not_down"),
        Expectation("Accuracy is told.", "Zero", "R1", "by_domain/reasoning/pass_at_1", "state"),
        Expectation("Responses get longer.", "Zero", "R1", "length_mean"),
        Expectation("Distillation beats RL.", "Qwen RL", "Qwen distilled", "pass_at_1"),
        Expectation("The second SFT keeps accuracy.", "Dev1", "Dev3", "pass_at_1", "not_down"),
    ),
)


BUDGETS = [
    {"budget": b, "thinking_tokens": 20.0 * (b or 4), "pass_at_1": 0.4, "pass_at_1_se": 0.1, "cons_at_k": 0.5, "k": 8}
    for b in (1, 2, None)
]
CARD = {
    "questions": {"source": 12, "contaminated": 2, "asked": 10},
    "samples": 3,
    "per_prompt": 1,
    "selection": "random",
    "temperature": 1.0,
    "top_p": 1.0,
    "rewriting": "a stated rule",
    "decontamination": {
        "n": 10,
        "sets": {"evaluation": {"questions": 64, "short": 3}},
        "overlaps": {"questions": 2, "samples": 5, "general data": 0},
    },
}


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = value if isinstance(value, list) else None
    text = "".join(json.dumps(row) + "\n" for row in rows) if rows is not None else json.dumps(value)
    path.write_text(text, encoding="utf-8")


def figures(pass_at_1: float, readable: float, length: float = 40.0) -> dict[str, Any]:
    return {
        "problems": 64,
        "k": 8,
        "pass_at_1": pass_at_1,
        "pass_at_1_se": 0.02,
        "cons_at_k": pass_at_1 + 0.05,
        "cons_at_k_low": pass_at_1,
        "cons_at_k_high": pass_at_1 + 0.1,
        "length_mean": length,
        "length_mean_se": 0.5,
        "truncation_rate": 0.011,
        "truncation_rate_se": 0.004,
        "format": 0.98,
        "format_se": 0.01,
        "language": 0.97,
        "language_se": 0.01,
        "single_language": 0.9,
        "single_language_se": 0.02,
        "readable_summary": readable,
        "readable_summary_se": 0.01,
        "rewards": {},
    }


def evaluation(pass_at_1: float, readable: float, helpful: float, safe: float) -> dict[str, Any]:
    domains = {
        "reasoning": figures(pass_at_1, readable),
        "helpful": figures(helpful, readable) | {"rewards": {"helpfulness": {"mean": 1.234, "mean_se": 0.05}}},
        "harmless": figures(safe, readable) | {"safe": safe + 0.05, "safe_se": 0.01},
    }
    groups = {"chain, 3 steps": figures(pass_at_1 + 0.013, 0.5), "poems": figures(0.0, 0.5) | {"pass_at_1": None}}
    return {
        "stage": "evaluate",
        **figures((pass_at_1 + helpful + safe) / 3, readable),
        "by_domain": domains,
        "by_group": groups,
        "temperature": 0.6,
        "top_p": 0.95,
        "contamination": {"questions": 64, "equal": 0, "overlap": 3, "words": 10, "trained": {}},
        "cost": {"tokens_trained": 0, "tokens_sampled": 20_000, "seconds": 30.0, "flops": 5e10},
    }


def samples(stage: str) -> list[dict[str, Any]]:
    rows = []
    for domain in ("", "helpful", "harmless"):
        for index in range(9):
            for k in range(2):
                row = {
                    "step": 0,
                    "id": f"{domain or 'chain'}:{index}",
                    "prompt": f"{domain} question {index}",
                    "completion": f"<think> {stage} {k} </think> <b>{index}</b>",
                    "answer": "9",
                    "rewards": {"format": {"value": 1.0, "status": "graded", "reason": ""}},
                    "total": 1.0,
                    "length": 12,
                    "finished": True,
                }
                rows.append(row | ({"domain": domain} if domain else {}))
    return rows


def rl_rows(hacked: bool) -> list[dict[str, Any]]:
    rows = []
    for step in range(40):
        fall = 0.4 * max(0, step - 25) / 15 if hacked else 0.0
        row = {"step": step, "reward": 1.0, "accuracy": 0.8 - fall + 0.01 * math.sin(step), "length_mean": 30 + step}
        rows.append(row | ({"helpful/helpfulness": step / 10} if hacked else {}) | {"time": {"elapsed": 1.0 + step}})
    return rows


def pipeline_folder(root: Path) -> Path:
    cost = {"tokens_trained": 1_000_000, "tokens_sampled": 0, "seconds": 100.0, "flops": 2e12}
    write(root / "pretrain/metrics.jsonl", [{"step": s, "loss": 3.0 - s / 40} for s in range(20)])
    write(root / "pretrain/summary.json", {"stage": "pretrain", "cost": cost})
    for name in ("dev1", "student_distill"):
        write(root / name / "metrics.jsonl", [{"step": s, "loss": 1.0 - s / 40} for s in range(20)])
        write(root / name / "summary.json", {"stage": "sft", "cost": cost})
    for name in ("r1_zero", "r1", "student_rl"):
        write(root / name / "metrics.jsonl", rl_rows(hacked=name == "r1"))
        of_rl = cost | {"tokens_sampled": 2_340_000, "flops": 3e12}
        write(root / name / "summary.json", {"stage": "rl", "cost": of_rl})
    looked = [
        Looked(str(i), ["kept", "wrong", "mixed_language"][i % 3], True, tokens=20 + i, share=1.0) for i in range(30)
    ]
    rows = data_card.count(looked, data_card.domain_of, ["wrong", "mixed_language", "code"])
    write(root / "cold_start/data_card.json", CARD | {"by_domain": rows})
    write(root / "cold_start/summary.json", {"stage": "curate", "cost": cost})
    rng = np.random.default_rng(0)
    held = HeldOut(
        rng.normal(size=(321, 2)), rng.integers(5, 40, (321, 2)), np.ones(321, bool), list(map(str, range(321)))
    )
    write(
        root / "rm_helpful/summary.json",
        {
            "stage": "reward_model",
            "kind": "pairwise",
            "view": "helpfulness",
            "counts": {"held_out": 321},
            **figures_of(held),
            "cost": cost,
        },
    )
    write_plots(root / "rm_helpful", held)
    for step, numbers in {
        "eval_zero": (0.779, 0.031, 0.2, 0.61),
        "eval_dev1": (0.59, 0.962, 0.4, 0.6),
        "eval_dev2": (0.74, 0.95, 0.41, 0.6),
        "eval_dev3": (0.781, 0.96, 0.6, 0.7),
        "eval_r1": (0.793, 0.97, 0.88, 0.64),
        "eval_student_base": (0.1, 0.5, 0.1, 0.5),
        "eval_distill": (0.6, 0.9, 0.5, 0.5),
        "eval_rl": (0.4, 0.2, 0.5, 0.5),
    }.items():
        if step != "eval_dev2":  # not done yet
            tried = {"budgets": BUDGETS} if step == "eval_r1" else {}
            write(root / step / "summary.json", evaluation(*numbers) | tried)
            write(root / step / "samples.jsonl", samples(step))
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline_folder(tmp_path_factory.mktemp("runs") / "r1")


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return write_pipeline_report(run, STEPS, CONFIG, title="Tiny <R1>").read_text(encoding="utf-8")


def cells(html: str, heading: str) -> list[str]:
    """The cells of the first table row that begins with a heading, without tags."""
    row = re.search(rf"<tr><th scope=row>{re.escape(heading)}.*?</tr>", html)
    assert row, heading
    found = re.findall(r"<td>(.*?)</td>", row.group())
    return [
        re.sub(r"<br>", " | ", cell).replace("&nbsp;", " ").replace("<small>", "").replace("</small>", "")
        for cell in found
    ]


def test_the_stage_table_has_the_numbers_of_the_files(html: str) -> None:
    assert cells(html, "pass@1") == ["77.9 % ± 2.0", "59.0 % ± 2.0", "–", "78.1 % ± 2.0", "79.3 % ± 2.0"]
    assert cells(html, "cons@8")[0] == "82.9 % [77.9, 87.9]"
    assert cells(html, "<small>pass@1:</small> chain, 3 steps")[1] == "60.3 % ± 2.0"
    assert "poems" not in html  # nothing is right or wrong there
    assert cells(html, "Helpful, by the world's own rule")[4] == "88.0 % ± 2.0"
    assert cells(html, "Refused in good words, by the world's own rule")[3] == "70.0 % ± 2.0"
    unsafe = cells(html, "Nothing unsafe is said")
    assert (unsafe[0], unsafe[2], unsafe[3]) == ("66.0 % ± 1.0", "–", "75.0 % ± 1.0")
    assert cells(html, "helpfulness")[4] == "1.23 ± 0.05"
    assert cells(html, "Readable summaries") == ["3.1 % ± 1.0", "96.2 % ± 1.0", "–", "96.0 % ± 1.0", "97.0 % ± 1.0"]
    assert cells(html, "Cut by the length limit")[0] == "1.1 % ± 0.4"
    assert cells(html, "Questions seen in training <small>10 words")[2:4] == ["–", "3 of 64"]
    assert "Dev2 <small>eval_dev2 missing</small>" in html


def test_the_papers_numbers_stand_below_its_stages(html: str) -> None:
    assert cells(html, "AIME 2024, pass@1") == ["77.9", "59.0", "74.0", "78.1", "79.8"]
    assert cells(html, "ArenaHard") == ["53.6", "77.0", "73.2", "75.6", "92.3"]


def test_stages_of_other_names_have_no_numbers_of_the_papers(run: Path) -> None:
    page_of = write_pipeline_report(run, ["eval_r1"], ReportConfig((StageColumn("mine", "eval_r1"),)))
    assert "The paper's stages" not in page_of.read_text(encoding="utf-8")


def test_expectations_say_whether_they_held(html: str) -> None:
    said = {claim: word for word, claim in re.findall(r'<span class="chip \w*">([\w ]+)</span> ([^<]*): <span', html)}
    assert said == {
        "Cold start makes summaries readable": "held",
        "RL raises accuracy over Dev1": "held",
        "RL for all scenarios raises safety": "within error",  # +3.0 points, errors of 2.0 each
        "Format is not lower": "held",
        "Accuracy is told": "measured",
        "Responses get longer": "within error",
        "Distillation beats RL": "held",
        "The second SFT keeps accuracy": "held",
    }
    assert "Zero 3.1 ± 1.0&nbsp;%, Dev1 96.2 ± 1.0&nbsp;%: +93.1 ± 1.4 points" in html


def test_verdicts_by_hand() -> None:
    def word(old: float, new: float, direction: str, error: float | None = 0.03) -> str:
        spread = {} if error is None else {"x_se": error}
        return verdict(Expectation("c", "a", "b", "x", direction), {"x": old} | spread, {"x": new} | spread).word

    two_errors = 2 * math.hypot(0.03, 0.03)  # 0.0849
    assert word(0.5, 0.5 + two_errors + 0.001, "up") == "held"
    assert word(0.5, 0.5 + two_errors - 0.001, "up") == "within error"
    assert word(0.5, 0.5 - two_errors - 0.001, "up") == "did not hold"
    assert word(0.5, 0.5 - two_errors - 0.001, "down") == "held"
    assert word(0.5, 0.5 + two_errors + 0.001, "down") == "did not hold"
    assert word(0.5, 0.5, "not_down") == "held"
    assert word(0.5, 0.5 - two_errors + 0.001, "not_down") == "within error"
    assert word(0.5, 0.5 - two_errors - 0.001, "not_down") == "did not hold"
    assert word(0.5, 0.4, "up", error=None) == "did not hold"
    missing = verdict(
        Expectation("c", "a", "b", "by_domain/helpful/x"), {"x": 1.0}, {"by_domain": {"helpful": {"x": 1}}}
    )
    assert missing == expectations.Verdict("missing", "no figure by_domain/helpful/x of a")


def test_a_consensus_has_the_error_of_its_interval() -> None:
    value, error = figure_at({"cons_at_k": 0.5, "cons_at_k_low": 0.402, "cons_at_k_high": 0.598}, "cons_at_k")
    assert (value, error) == (0.5, pytest.approx(0.05, abs=1e-3))


def test_the_distillation_table_has_costs_and_says_what_is_missing(html: str) -> None:
    before, distilled, rl, change, distilling, training = cells(html, "Qwen")
    assert (before, distilled, rl) == ("10.0 % ± 2.0", "60.0 % ± 2.0", "40.0 % ± 2.0")
    assert change == "+20.0 points ± 2.8"
    assert distilling == "1 M tokens trained, 0 sampled | 1 min 40 s, 2 TFLOP"
    assert training == "1 M tokens trained, 2.34 M sampled | 1 min 40 s, 3 TFLOP"
    assert cells(html, "Llama") == ["10.0 % ± 2.0", "–", "–", "–", "–", "–"]
    assert cells(html, "Distill-Qwen-32B") == ["72.6", "83.3", "94.3", "62.1", "57.2"]


def test_costs_are_added_up(html: str) -> None:
    assert cells(html, "r1_zero") == ["rl", "1 M", "2.34 M", "1 min 40 s", "3 T"]
    assert cells(html, "eval_dev2")[1] == "missing"
    # 8 trainings (3 of them RL) and 7 evaluations.
    assert cells(html, "all") == ["", "8 M", "7.16 M", "16 min 50 s", "19.4 T"]


def test_the_data_card_tells_what_each_filter_dropped(html: str) -> None:
    assert cells(html, "wrong") == ["10", "10"]
    assert cells(html, "mixed language") == ["10", "10"]
    assert "Nothing was dropped for: code." in html
    assert "12 questions, 3 samples of each at temperature 1, top-p 1; at most 1 of each question kept" in html
    assert "10 words in a row of an evaluation&#x27;s question: 2 questions, 5 samples, 0 general data." in html


def test_a_reward_model_is_told_with_its_plots(run: Path, html: str) -> None:
    told = json.loads((run / "rm_helpful/summary.json").read_text())
    held, bias = told["held_out"], told["length_bias"]
    count, accuracy, base, ece, length = cells(html, "rm_helpful <small>helpfulness</small>")
    assert (count, base, ece) == ("321 pairs", "50.0 %", f"{held['ece']:.3f}")
    assert accuracy == f"{100 * held['accuracy']:.1f} % ± {100 * held['accuracy_se']:.1f}"
    judge, model = (f"{100 * bias[f'longer_by_{who}']:.1f} %" for who in ("judge", "model"))
    assert length == f"ρ {bias['spearman']:.2f} longer is better: judge {judge}, model {model}"
    assert re.findall(r'alt="rm_helpful: (\w+)"', html) == ["calibration", "length_bias"]


def test_reward_hacking_is_flagged_in_the_stage_that_has_it(html: str) -> None:
    part = html[html.index("Preference reward against rules") : html.index("<h2>Reward models</h2>")]
    assert "<h3>r1</h3>" in part
    assert "r1_zero" not in part
    assert part.count('<span class="chip bad">reward hacking</span>') == 1
    assert "helpful/helpfulness rose from" in part


def test_samples_answer_the_same_questions_side_by_side(html: str) -> None:
    part = html[html.index("<h2>Samples of every stage</h2>") : html.index("<h2>Cost</h2>")]
    blocks = part.split('<div class="sample">')[1:]
    assert len(blocks) == 3 * 4
    for block in blocks:
        assert re.findall(r"</span> (\w+) 0 <", block) == ["eval_zero", "eval_dev1", "eval_dev3", "eval_r1"]
        assert "&lt;b&gt;" in block
    assert re.findall(r"<h3>(\w+)</h3>", part) == ["reasoning", "harmless", "helpful"]


def test_budgets_are_drawn_where_they_were_tried(html: str) -> None:
    assert re.findall(r'alt="(\w+): budgets"', html) == ["eval_r1"]


def test_the_page_needs_nothing_else(html: str) -> None:
    assert "<script" not in html
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)""", html)
    assert "<h1>Tiny &lt;R1&gt;</h1>" in html


def test_a_pipeline_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    write(tmp_path / "pretrain/metrics.jsonl", [{"step": 0, "loss": 3.0}])
    html = write_pipeline_report(tmp_path, STEPS, CONFIG).read_text(encoding="utf-8")
    assert html.count('<span class="chip warn">missing</span>') == len(CONFIG.expectations)
    assert "No stage was evaluated yet." in html
    assert cells(html, "pretrain") == ["pretrain", "missing", "", "", ""]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": []}, "stages: is empty"),
        ({"stages": [{"label": "A", "step": "a"}, {"label": "A", "step": "b"}]}, "label 'A' is used twice"),
        (
            {"expectations": [{"claim": "c", "before": "Zero", "after": "Dev9", "metric": "format"}]},
            r"expectations\[0\].after: 'Dev9' is not one of Zero",
        ),
        (
            {"expectations": [{"claim": "c", "before": "Zero", "after": "R1", "metric": "x", "direction": "left"}]},
            "direction: 'left' is not one of up, down, not_down, state",
        ),
        (
            {"students": [{"label": "A", "base": "a", "distilled": "b", "distilled_by": "c", "rl": "d"}]},
            "need each other",
        ),
        ({"hacking_drop": 0.0}, "hacking_drop: 0.0"),
    ],
)
def test_bad_configurations_are_refused(changes: dict[str, Any], message: str) -> None:
    assert from_config(ReportConfig, to_plain(CONFIG)) == CONFIG
    with pytest.raises(ConfigError, match=message):
        from_config(ReportConfig, to_plain(CONFIG) | changes)


def test_a_step_that_the_pipeline_does_not_have_is_named() -> None:
    CONFIG.check_steps([*STEPS, "eval_llama", "llama_distill"])
    with pytest.raises(ValueError, match="report: the step 'eval_llama' is not one of pretrain"):
        CONFIG.check_steps(STEPS)


def test_large_numbers_have_a_prefix() -> None:
    values = (0, 999, 999.7, 1_000, 1_234_000, 5.6789e13, 3e30)
    assert [sections.scaled(value).replace("&nbsp;", " ") for value in values] == [
        "0",
        "999",
        "1 k",
        "1 k",
        "1.23 M",
        "56.8 T",
        "3e+06 Y",
    ]


def test_a_row_of_one_cell_heads_those_below() -> None:
    html = page.table(["a", "b"], [["group"], ["x", "1"]])
    assert (
        '<tr><th scope=rowgroup class="group" colspan=2>group</th></tr><tr><th scope=row>x</th><td>1</td></tr>' in html
    )


def test_every_kind_of_stage_has_its_own_figures() -> None:
    rows = [{"step": s, "loss": 1.0, "accuracy": 0.5 + s / 10, "difference": float(s)} for s in range(3)]
    assert set(plots.stage_figures("reward_model", rows)) == {"loss", "accuracy", "difference"}
    assert set(plots.stage_figures("sft", rows)) == {"loss"}
    assert np.isfinite(rows[0]["loss"])
