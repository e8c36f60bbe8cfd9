"""The configs of the recipe: the published ones hold the papers' numbers, and the table says which those are."""

from __future__ import annotations

import importlib.util
import pathlib
from typing import Any

import pytest

from r1jax import train
from r1jax.evaluation.pipeline_report import ReportConfig
from r1jax.settings import from_config
from r1jax.stages.pipeline import PipelineConfig, stage_configs
from tools import hyperparameters

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
STUDENTS = ("qwen_1_5b", "qwen_7b", "qwen_14b", "qwen_32b", "llama_8b", "llama_70b")


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def steps_of(name: str, argument: str) -> dict[str, Any]:
    """Step -> its typed config."""
    stage, typed = train.read_config(load(name).get_config(argument))
    assert stage == "pipeline"
    assert isinstance(typed, PipelineConfig)
    return dict(zip([step.name for step in typed.steps], stage_configs(typed), strict=True))


def test_the_published_pipeline_holds_the_papers_numbers() -> None:
    """Typed from the papers' tables (R1v2 2.1, 2.3, 3.2, B.3, B.4.2; Nature, Methods), not from the config."""
    steps = steps_of("r1", "")
    zero, dev2, r1 = steps["zero"], steps["dev2"], steps["r1"]
    assert zero.rollouts * zero.updates_per_rollout == 10_400
    assert (zero.response_limit(0), zero.response_limit(8_199), zero.response_limit(8_200)) == (32_768, 32_768, 65_536)
    for rl, temperature in ((zero, 1.0), (dev2, 1.0), (r1, 0.7)):
        assert rl.optimizer.learning_rate == 3e-6
        assert rl.grpo_config.kl_coefficient == 0.001
        assert (rl.group_size, rl.prompts * rl.group_size, rl.minibatches) == (16, 8_192, 16)
        assert (rl.reference_every, rl.decoding.temperature) == (400, temperature)
    for rl in (dev2, r1):
        assert (rl.grpo_config.clip_low, rl.grpo_config.clip_high, rl.decoding.max_new_tokens) == (10, 10, 32_768)
        assert rl.rewards.language == rl.rewards.accuracy == rl.rewards.format == 1
    assert zero.rewards.language == 0
    assert abs(r1.rollouts * r1.updates_per_rollout - 1_700) < r1.minibatches
    assert (r1.rollouts - r1.late.from_rollout) * r1.updates_per_rollout == 400
    assert r1.rewards.mix("helpful").counted == {"format": 1, "language": 1, "helpfulness": 1}
    assert r1.rewards.mix("harmless").counted == {"format": 1, "language": 1, "safety": 1}
    for name in ("dev1", "dev3"):
        sft = steps[name]
        optimizer = sft.optimizer_config(100)
        assert (sft.init.kind, sft.init.path) == ("huggingface", "DeepSeek-V3-Base")  # both from the base
        assert (optimizer.learning_rate, optimizer.schedule) == (5e-5, "cosine")
        assert optimizer.learning_rate * optimizer.final_fraction == pytest.approx(5e-6)
        assert (sft.row_length, sft.rows, sft.too_long) == (32_768, 128, "drop")  # RL's longest fit without prompts
        assert 2 <= sft.epochs <= 3
    assert (steps["preferences"].times, steps["preferences"].min_gap) == (4, 1.0)
    for name in ("helpful_model", "safety_model"):
        model = steps[name]
        assert (model.batch, model.optimizer.learning_rate, model.epochs, model.max_length) == (256, 6e-6, 1, 8_192)
    assert steps["rejection"].proportions == {"reasoning": 3.0, "general": 1.0}
    for name in ("dev2", "rejection", "r1"):  # numbers in a box, programs not
        assert [steps[name].rewards.mix(domain).pattern for domain in ("math", "code")] == ["boxed", "reply"]
    asked = steps["preferences"]
    assert asked.prompt.width + asked.decoding.max_new_tokens < steps["safety_model"].max_length, "none is refused"
    assert steps["cold_start"].decontaminate.n == steps["rejection"].decontaminate.n == 10
    for name in ("zero", "dev1", "dev2", "dev3", "r1"):
        decoding = steps[f"evaluate_{name}"].decoding
        assert (decoding.temperature, decoding.top_p, decoding.max_new_tokens) == (0.6, 0.95, 32_768)


def test_each_stage_starts_where_the_paper_starts_it() -> None:
    for argument, base in (("tiny", "../pretrain"), ("", "DeepSeek-V3-Base")):
        steps = steps_of("r1", argument)
        started = {name: steps[name].init.path for name in ("zero", "dev1", "dev2", "dev3", "r1", "cold_start")}
        assert started == {
            "zero": base,
            "dev1": base,
            "dev2": "../dev1",
            "dev3": base,
            "r1": "../dev3",
            "cold_start": "../zero",
        }
        assert steps["rejection"].init.path == "../dev2"
        assert steps["dev3"].data[0].path == "../rejection/samples_kept.jsonl"


@pytest.mark.parametrize(  # R1v2, Table 6
    ("size", "rate"), list(zip(STUDENTS, (1e-4, 8e-5, 7e-5, 6e-5, 5e-5, 2e-5), strict=True))
)
def test_the_students_learning_rates_are_the_papers(size: str, rate: float) -> None:
    sft = steps_of("distill", size)["distill"]
    optimizer = sft.optimizer_config(100)
    assert (optimizer.learning_rate, optimizer.schedule, optimizer.final_fraction) == (rate, "cosine", 0.1)
    assert (sft.rows, sft.row_length, sft.too_long) == (64, 32_768, "drop")
    assert 2 <= sft.epochs <= 3


def test_the_tiny_recipe_names_its_own_steps() -> None:
    config = load("r1").get_config("tiny,seed=3")
    steps = steps_of("r1", "tiny,seed=3")
    from_config(ReportConfig, config.report.to_dict()).check_steps(list(steps))
    seeds = {name: step.seed for name, step in steps.items() if not name.startswith("evaluate")}
    assert set(seeds.values()) == {3}, "every stage draws with the seed"
    questions = {str(step.source) for name, step in steps.items() if name.startswith("evaluate")}
    assert len(questions) == 1, "every policy is asked the same questions"
    steps_of("distill", "smollm2,seed=1")


def test_arguments_that_are_none_are_refused() -> None:
    for name, argument in (("r1", "huge"), ("r1", "tiny,seed=x"), ("distill", "qwen_2b")):
        with pytest.raises(ValueError, match=rf"configs/{name}.py:{argument}: unknown argument"):
            load(name).get_config(argument)


def test_the_table_tells_what_the_papers_give() -> None:
    rows = hyperparameters.table_of(hyperparameters.read_tree(str(CONFIGS / "r1.py")))
    found = {(step, field): (value, source) for step, field, value, source in rows}
    assert found["dev2", "grpo.clip_high"] == ("10.0", "R1v2 3.2.1")
    assert found["r1", "decoding.temperature"] == ("0.7", "R1v2 3.2.2")
    assert found["helpful_model", "optimizer.learning_rate"] == ("6e-06", "Nature, Methods")
    assert found["zero", "grpo.clip_high"] == ("0.2", "")  # not published
    for place in (
        ("dev2", "rollouts"),
        ("rejection", "decoding.temperature"),
        ("cold_start", "decoding.max_new_tokens"),
    ):
        assert found[place][1] == ""  # not published
    assert {step for step, _ in found} == set(steps_of("r1", ""))


def test_every_source_in_the_published_configs_is_of_a_field() -> None:
    """A value marked as given that no stage reads would be missing from the table."""
    for name, arguments in (("r1", [""]), ("r1_zero", [""]), ("distill", list(STUDENTS))):
        for argument in arguments:
            tree = hyperparameters.read_tree(f"{CONFIGS / name}.py:{argument}" if argument else f"{CONFIGS / name}.py")
            rows = hyperparameters.table_of(tree)
            shown = sum(bool(source) for *_, source in rows)
            assert shown == len(hyperparameters.sources(tree)), f"{name}:{argument}"


def test_a_config_without_sources_is_named() -> None:
    with pytest.raises(ValueError, match=r"code_rl.py has no function published\(arg\)"):
        hyperparameters.read_tree(str(CONFIGS / "code_rl.py"))
