"""Stages end to end on a model of a few thousand parameters: stops and resumes, what is stored, what a rollout does."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pathlib
import signal
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from r1jax import train
from r1jax.checkpoint import CheckpointStore
from r1jax.data.corpus import write_corpus
from r1jax.data.errors import DataError
from r1jax.metrics import StepTimer, read_rows
from r1jax.rewards import grading
from r1jax.rewards.combine import Scores
from r1jax.rollout import Completer, load_graded
from r1jax.settings import ConfigError, from_config
from r1jax.sharding import MeshConfig, make_mesh
from r1jax.stages import evaluate, experience, pretrain, rl
from r1jax.stages.interruption import Interrupted
from r1jax.stages.policy import PolicySource
from r1jax.stages.rl_config import InRunEvaluation
from r1jax.types import Example, Score, Status

_spec = importlib.util.spec_from_file_location(
    "r1_zero_smoke", pathlib.Path(__file__).parent / "configs" / "r1_zero_smoke.py"
)
assert _spec is not None
assert _spec.loader is not None
smoke = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(smoke)


RLTrainer, PretrainTrainer = rl.Trainer, pretrain.Trainer
MADE: dict[Any, Any] = {}


def stage_fields(stage: str, **changes: Any) -> dict[str, Any]:
    """The fields of the first stage of that kind in the smoke configuration."""
    step = next(step for step in smoke.get_config().steps if step["stage"] == stage)
    fields: dict[str, Any] = smoke.merge({**step["config"], "tensorboard": False}, changes)
    if stage == "evaluate":
        del fields["tensorboard"]
    return fields


def pretrain_config(**changes: Any) -> pretrain.PretrainConfig:
    return from_config(pretrain.PretrainConfig, stage_fields("pretrain", **changes))


def rl_config(**changes: Any) -> rl.RLConfig:
    return from_config(rl.RLConfig, stage_fields("rl", **changes))


@pytest.fixture(scope="module", autouse=True)
def one_device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """Stages see one of the eight devices; what was traced and compiled for one run serves the next ones too."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_disable_most_optimizations",
    )
    before = {name: jax.config.values[name] for name in names}
    jax.config.update(names[0], str(tmp_path_factory.mktemp("xla")))
    jax.config.update(names[1], 0.0)
    jax.config.update(names[2], True)  # compiling is nearly all of the time here
    compilation_cache.reset_cache()
    with pytest.MonkeyPatch.context() as patch:
        for stage in (pretrain, rl, evaluate):
            patch.setattr(stage, "make_mesh", partial(make_mesh, devices=jax.devices()[:1]))
        for stage in (rl, evaluate):
            patch.setattr(stage, "Completer", remembered(completer_key, partial(Completer, record_experts=True)))
        patch.setattr(rl, "Trainer", remembered(trainer_key, RLTrainer))
        patch.setattr(pretrain, "Trainer", remembered(lambda *args: repr(args), PretrainTrainer))
        patch.setattr(pretrain, "write_corpus", remembered(repr, lambda config: tuple(write_corpus(config))))
        yield patch
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def remembered(key: Callable[..., Any], make: Callable[..., Any]) -> Callable[..., Any]:
    """A constructor that gives the same object for the same key. What it makes holds nothing but compiled programs."""

    def get(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("record_experts", None)
        name = key(*args, **kwargs)
        if name not in MADE:
            MADE[name] = make(*args, **kwargs)
        return MADE[name]

    return get


def completer_key(model: Any, mesh: Any, tokenizer: Any, *rest: Any, **fields: Any) -> str:
    return repr((model, mesh, mesh.devices.tolist(), tokenizer.fingerprint, rest, fields))


def trainer_key(config: rl.RLConfig, model: Any, mesh: Any) -> str:
    same = dataclasses.replace(config, rollouts=1, checkpoint_every=1, evaluation=InRunEvaluation())
    return repr((same, model, mesh, mesh.devices.tolist()))


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the program sees it coming."""


def fail_at(
    patch: pytest.MonkeyPatch, owner: Any, name: str, call: int, after: bool, action: Callable[[], None]
) -> None:
    """Runs `action` before or after the `call`-th call of a function."""
    original, calls = getattr(owner, name), []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call and not after:
            action()
        result = original(*args, **kwargs)
        if len(calls) == call and after:
            action()
        return result

    patch.setattr(owner, name, wrapped)


def kill() -> None:
    raise Killed


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def outcome(folder: pathlib.Path) -> dict[str, Any]:
    """What must not depend on stops: parameters bit by bit, rows without the clock, samples."""
    step = CheckpointStore(folder / "checkpoints").steps()[-1]
    manifest = json.loads((folder / "checkpoints" / f"step_{step:08d}" / "manifest.json").read_text())
    rows = [
        {name: value for name, value in row.items() if name != "time"} for row in read_rows(folder / "metrics.jsonl")
    ]
    samples = folder / "samples.jsonl"
    return {
        "step": step,
        "leaves": manifest["body"]["leaves"],
        "params": params_of(folder),
        "metrics": json.dumps(rows),
        "samples": samples.read_text(encoding="utf-8") if samples.exists() else "",
    }


def params_of(folder: pathlib.Path) -> dict[str, bytes]:
    """Every leaf of the final policy as bytes."""
    model, _ = rl.describe_source(PolicySource("stage", folder.name), folder.parent)
    policy = rl.load_policy(PolicySource("stage", folder.name), folder.parent, rl.make_mesh(MeshConfig()))
    assert policy.model == model
    leaves = jax.tree_util.tree_leaves_with_path(policy.params)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def made_up_score(text: str, example: Example) -> Scores:
    """A grade that only depends on the text, so that a model of noise has groups of different reward."""
    value = float(zlib.crc32(text.encode()) % 3 == 0)
    part = Score(value, Status.GRADED, "")
    return Scores(value, {"accuracy": part, "format": part, "language": part})


class MadeUpBatch:
    """In place of `grading.Batch`: completions get the scores of a function."""

    def __init__(self, score: Callable[[str, Example], Scores]) -> None:
        self.score = score
        self.given: dict[int, tuple[str, Example]] = {}

    def add(self, index: int, text: str, tokens: Sequence[int], example: Example) -> None:
        self.given[index] = text, example

    def scores(self) -> tuple[Scores, ...]:
        return tuple(self.score(*self.given[index]) for index in range(len(self.given)))


def grade_by(patch: pytest.MonkeyPatch, score: Callable[[str, Example], Scores]) -> None:
    """From now on stages grade with `score`."""
    patch.setattr(grading, "Batch", lambda opened: MadeUpBatch(score))


@pytest.fixture
def graded_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is graded from now on, in order, once for each time."""
    seen: list[str] = []

    def score(text: str, example: Example) -> Scores:
        seen.append(example.id + text)
        return made_up_score(text, example)

    grade_by(monkeypatch, score)
    return seen


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, one_device: pytest.MonkeyPatch) -> pathlib.Path:
    """A pretrained base, made without a stop."""
    folder = tmp_path_factory.mktemp("undisturbed") / "pretrain"
    folder.mkdir()
    pretrain.run(pretrain_config(), folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed_rl(base: pathlib.Path, one_device: pytest.MonkeyPatch) -> tuple[pathlib.Path, list[str]]:
    """An RL run from the base without a stop, and what was graded in it."""
    folder = base.parent / "rl"
    folder.mkdir()
    seen: list[str] = []

    def score(text: str, example: Example) -> Scores:
        seen.append(example.id + text)
        return made_up_score(text, example)

    with pytest.MonkeyPatch.context() as patch:
        grade_by(patch, score)
        rl.run(rl_config(), folder)
    return folder, seen


def run_with_stops(
    run: Callable[[], None], stops: list[tuple[Any, str, int, bool, Callable[[], None]]]
) -> list[BaseException]:
    """Runs once for every stop, then to the end. Returns how each disturbed run ended."""
    ends: list[BaseException] = []
    for stop in stops:
        with pytest.MonkeyPatch.context() as patch:
            fail_at(patch, *stop)
            with pytest.raises((Killed, Interrupted)) as caught:
                run()
        ends.append(caught.value)
    run()
    return ends


def test_pretraining_stopped_and_killed_ends_as_if_undisturbed(base: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "pretrain"
    folder.mkdir()
    ends = run_with_stops(
        lambda: pretrain.run(pretrain_config(), folder),
        [
            (pretrain, "write_description", 1, True, kill),  # the tokenizer is there, nothing else
            (PretrainTrainer, "update", 3, True, kill),  # before any checkpoint: from the beginning
            (PretrainTrainer, "update", 2, True, terminate),  # saves at a step that is no multiple of anything
            (PretrainTrainer, "update", 4, False, kill),  # after the checkpoint of step 4
            (pretrain, "save_policy", 1, False, kill),  # all steps done
            (pretrain, "save_policy", 1, True, kill),  # all but the summary
        ],
    )
    assert [type(end) for end in ends] == [Killed, Killed, Interrupted, Killed, Killed, Killed]
    assert str(ends[2]) == "stopped by SIGTERM at step 2 of 10; everything is saved, run the same command to go on"
    assert outcome(folder) == outcome(base)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (folder, base)]
    assert all(summary["cost"].pop("seconds") > 0 for summary in summaries)
    assert summaries[0] == summaries[1]


def test_rl_stopped_and_killed_anywhere_ends_as_if_undisturbed(
    undisturbed_rl: tuple[pathlib.Path, list[str]], graded_texts: list[str]
) -> None:
    reference, graded_once = undisturbed_rl
    folder = reference.parent / "rl_stopped"
    folder.mkdir()
    ends = run_with_stops(
        lambda: rl.run(rl_config(), folder),
        [
            (experience, "save_graded", 1, True, kill),  # the first rollout is stored, the evaluation before it too
            (RLTrainer, "update", 2, True, terminate),  # between the updates of a rollout
            (RLTrainer, "update", 1, True, kill),  # a checkpoint in the middle of the rollout is gone on from
            (rl.Collector, "collect", 2, False, kill),  # between rollouts
            (experience, "save_graded", 1, True, terminate),  # sampled and graded, no update made
            (rl, "attach_logprobs", 1, False, kill),  # before the log-probs of a stored rollout
            (rl, "answer_examples", 1, False, kill),  # in the evaluation after the second rollout
            (rl, "answer_examples", 1, True, kill),  # evaluated, not yet written
            (rl.CheckpointStore, "save", 1, True, kill),  # right after a checkpoint
            (rl.CheckpointStore, "save", 1, False, kill),  # all updates made, not saved
            (rl, "save_policy", 1, True, kill),  # all but the summary
        ],
    )
    assert [type(end) for end in ends].count(Interrupted) == 2
    assert str(ends[1]) == "stopped by SIGTERM at update 2 of 12; everything is saved, run the same command to go on"
    assert str(ends[4]) == (
        "stopped by SIGTERM at rollout 2 of 3, sampled and graded; everything is saved, run the same command to go on"
    )
    assert outcome(folder) == outcome(reference)
    assert graded_texts == graded_once, "a score was computed twice, or not at all"


def test_evaluation_stopped_and_killed_grades_every_answer_once(base: pathlib.Path, graded_texts: list[str]) -> None:
    config = from_config(evaluate.EvaluateConfig, stage_fields("evaluate"))
    whole, parts = base.parent / "evaluation", base.parent / "evaluation_stopped"
    whole.mkdir(), parts.mkdir()
    evaluate.run(config, whole)
    graded_once = list(graded_texts)
    graded_texts.clear()
    ends = run_with_stops(
        lambda: evaluate.run(config, parts),
        [(evaluate, "answer_examples", 1, True, terminate), (evaluate, "answer_examples", 1, True, kill)],
    )
    assert str(ends[0]) == "stopped by SIGTERM at question 4 of 8; everything is saved, run the same command to go on"
    assert graded_texts == graded_once
    assert (parts / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    figures = [json.loads((folder / "summary.json").read_text()) for folder in (whole, parts)]
    for summary in figures:
        assert summary.pop("seconds") == summary["cost"].pop("seconds") > 0
    assert figures[0] == figures[1]


def test_a_signal_at_the_very_end_of_a_stage_stops_what_comes_after(base: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = from_config(
        evaluate.EvaluateConfig, stage_fields("evaluate", init={"kind": "stage", "path": str(base)}, source={"size": 4})
    )
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, evaluate, "answer_examples", 1, True, terminate)  # of one
        with pytest.raises(Interrupted, match="stopped by SIGTERM as the stage ended"):
            evaluate.run(config, tmp_path)
    assert (tmp_path / "summary.json").exists()


def test_a_damaged_checkpoint_is_announced_and_the_one_before_it_used(
    undisturbed_rl: tuple[pathlib.Path, list[str]], graded_texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    reference, _ = undisturbed_rl
    folder = reference.parent / "rl_damaged"
    folder.mkdir()

    def damage() -> None:
        newest = sorted((folder / "checkpoints").glob("step_*"))[-1]
        victim = max(
            (file for file in (newest / "arrays").rglob("*") if file.is_file()), key=lambda f: f.stat().st_size
        )
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
        raise Killed

    config = rl_config(checkpoint_every=1)
    ends = run_with_stops(lambda: rl.run(config, folder), [(rl.CheckpointStore, "save", 2, True, damage)])
    assert isinstance(ends[0], Killed)
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "damaged checkpoint" in shown
    assert "step_00000008 is damaged and will not be used" in shown
    assert outcome(folder) == outcome(reference)


def test_the_run_is_over_a_mesh_of_data_fsdp_and_expert(
    undisturbed_rl: tuple[pathlib.Path, list[str]], graded_texts: list[str], one_device: pytest.MonkeyPatch
) -> None:
    """All eight devices; the sums are taken in another order, so the figures are equal up to rounding."""
    reference, _ = undisturbed_rl
    folder = reference.parent / "rl_mesh"
    folder.mkdir()
    mesh = {"data": 2, "fsdp": 2, "expert": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rl, "make_mesh", make_mesh)
        rl.run(
            rl_config(mesh=mesh, micro_rows=8, decoding={"batch_size": 32}, rollouts=1, evaluation={"every": 0}), folder
        )
    rows, expected = read_rows(folder / "metrics.jsonl"), read_rows(reference / "metrics.jsonl")[1:5]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["length_mean"] == expected[-1]["length_mean"]
    for name in ("loss", "entropy", "grad_norm", "reward", "expert_load_max_over_mean"):
        np.testing.assert_allclose(
            [row[name] for row in rows if name in row],
            [row[name] for row in expected if name in row],
            rtol=2e-3,
            atol=1e-5,
        )
    assert max(row.get("logprob_gap_max", 0) for row in rows) < 1e-4


def test_the_reference_is_refreshed_every_so_many_updates(undisturbed_rl: tuple[pathlib.Path, list[str]]) -> None:
    """`reference_every` = 3, 4 updates a rollout: in rollout 1 the reference is the start, from then on it is not."""
    folder, _ = undisturbed_rl
    logprobs = {index: np.load(folder / "rollouts" / f"{index:06d}.logprobs.npz") for index in stored_rollouts(folder)}
    state = saved_state(folder)
    assert int(state.train.step) == 12
    same = [
        np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (state.reference, state.train.params)), strict=True)
    ]
    assert all(same), "update 12 is a multiple of 3: the reference has just become the policy"
    for index, arrays in logprobs.items():
        refreshed_at, updates = 3 * (4 * index // 3), 4 * index
        equal = np.array_equal(arrays["old_0"], arrays["ref_0"])
        assert equal == (refreshed_at == updates), index


def stored_rollouts(folder: pathlib.Path) -> list[int]:
    return sorted(int(path.name.split(".")[0]) for path in (folder / "rollouts").glob("*.logprobs.npz"))


def saved_state(folder: pathlib.Path) -> rl.RLState:
    mesh = rl.make_mesh(MeshConfig())
    policy = rl.load_policy(PolicySource("stage", folder.name), folder.parent, mesh)
    trainer = rl.Trainer(rl_config(), policy.model, mesh)
    abstract = rl.abstract_state(policy.model, trainer.optimizer, mesh)
    _, state, _ = CheckpointStore(folder / "checkpoints").restore(rl.RLState(abstract, abstract.params))
    return state


def test_rollouts_that_no_checkpoint_needs_are_removed(undisturbed_rl: tuple[pathlib.Path, list[str]]) -> None:
    folder, _ = undisturbed_rl
    assert CheckpointStore(folder / "checkpoints").steps() == [8, 12]
    assert stored_rollouts(folder) == [2], "the checkpoint of step 8 stands before rollout 2"
    assert [path.name for path in sorted((folder / "evaluations").iterdir())] == ["000008.npz", "000012.npz"]


class FakeCompleter:
    """Writes prompts and answers without a model: the text is a number drawn from the key."""

    def __init__(self, template: Any) -> None:
        self.template = template
        self.limits: list[int | None] = []

    def lay_out(self, params: Any) -> Any:
        return params

    def complete(self, params: Any, examples: Any, samples: int, key: Any, limit: int | None, batch: Any) -> Any:
        self.limits.append(limit)
        count = len(examples) * samples
        seed = int(jax.random.randint(key, (), 0, 2**30))
        texts = tuple(str(n) for n in np.random.default_rng(seed).integers(0, 1000, count))
        for index, text in enumerate(texts):
            batch.add(index, text, [], examples[index // samples])
        repeat = np.resize(np.arange(len(self.template.prompt_lengths)), count)
        return jax.tree.map(lambda array: np.asarray(array)[repeat], self.template), texts


@pytest.fixture
def collector(
    undisturbed_rl: tuple[pathlib.Path, list[str]], tmp_path: pathlib.Path
) -> Callable[..., tuple[experience.Collector, FakeCompleter]]:
    folder, _ = undisturbed_rl
    template = load_graded(next((folder / "rollouts").glob("*[0-9].npz")))[0].rollout

    def make(config: rl.RLConfig) -> tuple[experience.Collector, FakeCompleter]:
        completer: Any = FakeCompleter(template)
        questions = experience.Questions(config, rl.sources_of(config))
        opened = grading.Grading(config.rewards, None, None, None, grading.Models())
        return experience.Collector(config, completer, questions, tmp_path, opened), completer

    return make


def test_dynamic_sampling_draws_questions_until_enough_groups_differ(
    collector: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(text: str, example: Example) -> Scores:
        easy = zlib.crc32(example.id.encode()) % 2 == 0  # always right: nothing to learn from
        value = 1.0 if easy else float(int(text) % 2)
        # Other rewards differ everywhere: whether a group teaches something is for the accuracy to say.
        return Scores(value + int(text) / 1000, {"accuracy": Score(value, Status.GRADED, "")})

    grade_by(monkeypatch, score)
    config = rl_config(preset="dapo", grpo={"overlong_cache": 0}, group_size=8)
    maker, completer = collector(config)
    graded, drawn = maker.collect(0, 0, None, StepTimer())
    assert len(graded.examples) == config.prompts
    assert len(completer.limits) > 1, "one draw gives about half of the groups"
    right = np.array([s.parts["accuracy"].value for s in graded.scores]).reshape(config.prompts, config.group_size)
    assert (right.std(axis=1) > 0).all()
    assert drawn["draws"] == len(completer.limits)
    assert drawn["accuracy_drawn"] > right.mean(), "the groups that were dropped are all right"
    again, extra = load_graded(maker.path(0))
    assert extra["drawn"] == drawn == maker.collect(0, 0, None, StepTimer())[1]
    assert [e.id for e in again.examples] == [e.id for e in graded.examples]
    # After the stored rollout the stream of questions goes on where the draws had left it.
    fresh, _ = collector(config)
    fresh.collect(0, 0, None, StepTimer())
    assert fresh.questions.get_state() == maker.questions.get_state()


def test_dynamic_sampling_without_anything_to_learn_from_says_so(
    collector: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Scores(0.0, {"accuracy": Score(0.0, Status.GRADED, "")})
    grade_by(monkeypatch, lambda *args: wrong)
    maker, _ = collector(rl_config(preset="dapo", grpo={"overlong_cache": 0}, max_draws=3))
    with pytest.raises(DataError, match="after max_draws = 3 draws only 0 of 4 groups"):
        maker.collect(0, 0, None, StepTimer())


def test_the_response_limit_follows_its_schedule(collector: Any, graded_texts: list[str]) -> None:
    config = rl_config(length_schedule=((0, 4), (4, 8), (8, 12)))
    maker, completer = collector(config)
    for index in range(3):
        maker.collect(index, index * config.updates_per_rollout, None, StepTimer())
    assert completer.limits == [4, 8, 12]


def test_shuffled_rewards_are_the_same_rewards_in_another_order(collector: Any, graded_texts: list[str]) -> None:
    config = rl_config(group_size=8)
    maker, _ = collector(config)
    graded, _ = maker.collect(0, 0, None, StepTimer())
    plain, _ = experience.rollout_rewards(graded, config, 12, (0, 0))
    control = dataclasses.replace(config, shuffle_rewards=True)
    shuffled, _ = experience.rollout_rewards(graded, control, 12, (0, 0))
    assert plain.shape == shuffled.shape == (4, 8)
    assert not np.array_equal(plain, shuffled)
    np.testing.assert_array_equal(np.sort(plain, axis=1), np.sort(shuffled, axis=1))
    np.testing.assert_array_equal(shuffled, experience.rollout_rewards(graded, control, 12, (0, 0))[0])


def test_a_pipeline_skips_what_is_done(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def fake(config: Any, folder: pathlib.Path, *hook: Any) -> None:
        ran.append(folder.name)
        (folder / "summary.json").write_text("{}")
        if folder.name == "evaluate_base" and ran.count("evaluate_base") == 1:
            (folder / "summary.json").unlink()
            raise Killed

    monkeypatch.setattr(pretrain, "run", fake)
    stages = {name: dataclasses.replace(stage, run=fake) for name, stage in train.pipeline.SINGLE_STAGES.items()}
    monkeypatch.setattr(train.pipeline, "SINGLE_STAGES", stages)
    monkeypatch.setattr(train.pipeline, "write_report", lambda *args, **kwargs: tmp_path / "report.html")
    unchecked = dataclasses.replace(train.STAGES["pipeline"], check=lambda *args: None)
    monkeypatch.setitem(train.STAGES, "pipeline", unchecked)
    with pytest.raises(Killed):
        train.run(smoke.get_config(), tmp_path)
    train.run(smoke.get_config(), tmp_path)
    assert ran == ["pretrain", "evaluate_base", "evaluate_base", "r1_zero", "evaluate_zero"]


def test_late_questions_come_from_their_rollout_on_and_go_on_after_a_stop() -> None:
    late = {"from_rollout": 2, "source": {"kind": "tasks", "split": "corpus", "size": 12}}
    config = rl_config(rollouts=4, late=late, prompts=4, group_size=2)
    sources = rl.sources_of(config)
    questions = experience.Questions(config, sources)
    drawn = [[example.id for example in questions.draw(index)] for index in (0, 1)]
    saved = questions.get_state()
    drawn += [[example.id for example in questions.draw(index)] for index in (2, 3)]
    early, later = ({example.id for example in sources[name]} for name in ("source", "late.source"))
    assert not early & later
    assert all(set(ids) <= early for ids in drawn[:2])
    assert all(set(ids) <= later for ids in drawn[2:])
    assert len({tuple(ids) for ids in drawn}) == 4
    again = experience.Questions(config, sources)
    again.set_state(saved)
    assert [[example.id for example in again.draw(index)] for index in (2, 3)] == drawn[2:]


def test_late_questions_that_never_come_are_refused() -> None:
    late = {"from_rollout": 4, "source": {"kind": "tasks", "size": 12}}
    with pytest.raises(ConfigError, match=r"late.from_rollout: 4 is not one of the rollouts 0 to 3"):
        rl_config(rollouts=4, late=late)
