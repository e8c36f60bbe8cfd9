"""Reward models: packed rows against one response at a time, planted preferences, the folder, stops, bad input."""

from __future__ import annotations

import dataclasses
import json
import random
import signal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from jax.experimental.compilation_cache import compilation_cache

from r1jax.checkpoint import CheckpointStore
from r1jax.data.errors import DataError
from r1jax.data.scored_rows import pack_units
from r1jax.data.tokenizer import SentencePieceTokenizer, train_sentencepiece
from r1jax.metrics import CompileCounter, read_rows
from r1jax.model.presets import get_preset
from r1jax.model.transformer import Transformer, abstract_params, init_params
from r1jax.optim import OptimizerConfig
from r1jax.rollout import PromptConfig
from r1jax.settings import ConfigError
from r1jax.sharding import MeshConfig, make_mesh
from r1jax.stages import reward_model, scalar_model
from r1jax.stages.interruption import Interrupted
from r1jax.stages.policy import PolicySource, load_policy, save_policy
from r1jax.stages.reward_data import Batches, split_by_prompt
from r1jax.stages.reward_model import RewardModelConfig, reward_gradients
from r1jax.stages.scalar_model import (
    Scorer,
    abstract_scored,
    add_head,
    describe_reward_model,
    load_reward_model,
    scored_model,
)
from r1jax.weights.policy_folder import read_description, write_description

WORDS = ("red", "blue", "tall", "small", "fast", "slow", "warm", "cold", "new", "old", "wet", "dry", "near", "far")
GOOD, BAD = "please", "never"


def one_device():
    return make_mesh(MeshConfig(), devices=jax.devices()[:1])


def remembered(make):
    """A constructor that gives the same object for the same arguments; what it makes holds compiled programs only."""
    made = {}

    def get(first, *rest):
        if isinstance(first, RewardModelConfig):
            first = dataclasses.replace(first, checkpoint_every=1)
        key = repr((first, rest))
        if key not in made:
            made[key] = make(first, *rest)
        return made[key]

    return get


@pytest.fixture(scope="module", autouse=True)
def stages_on_one_device(tmp_path_factory):
    """One of the eight devices; compiling is nearly all of the time here, so it is kept short."""
    changes = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("xla")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_disable_most_optimizations": True,
    }
    before = {name: jax.config.values[name] for name in changes}
    for name, value in changes.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward_model, "make_mesh", partial(make_mesh, devices=jax.devices()[:1]))
        patch.setattr(reward_model, "Trainer", remembered(reward_model.Trainer))
        for module in (reward_model, scalar_model):
            patch.setattr(module, "Scorer", remembered(Scorer))
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def response(rng, word, words=6):
    told = rng.choices(WORDS, k=words)
    told[rng.randrange(words)] = word
    return f" <think> {' '.join(rng.choices(WORDS, k=3))} </think> {' '.join(told)}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A policy of random weights, and files of pairs and labels with a planted word."""
    root = tmp_path_factory.mktemp("reward_models")
    rng = random.Random(0)
    texts = [response(rng, word) for word in (GOOD, BAD) for _ in range(50)]
    texts += [f"User: Say something {word}, number {i} Assistant:" for word in WORDS for i in range(10)]
    train_sentencepiece(texts, root / "tokenizer.model", 330, (" <think>", " </think>"))
    tokenizer = SentencePieceTokenizer(root / "tokenizer.model")
    model = small_dense(vocab_size=tokenizer.vocab_size, max_positions=128)
    (root / "dev3").mkdir()
    write_description(root / "dev3", model, tokenizer)
    save_policy(root / "dev3", init_params(model, jax.random.key(0), one_device()), 0)
    pairs, labels = [], []
    for i in range(120):
        question = f"Say something {rng.choice(WORDS)}, number {i // 2}"
        good, bad = response(rng, GOOD, rng.randint(4, 8)), response(rng, BAD, rng.randint(4, 8))
        pairs.append({"question": question, "chosen": good, "rejected": bad, "gap": 1.5})
        labels.append({"question": question, "completion": good if i % 3 else bad, "safe": bool(i % 3)})
    for name, rows in (("pairs", pairs), ("labels", labels)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def config(**changes):
    fields = {
        "data": ("../pairs.jsonl",),
        "prompt": PromptConfig("short", width=40),
        "held_out": 0.2,
        "batch": 12,
        "max_length": 80,
        "micro_rows": 12,
        "epochs": 3,
        "score_batch": 8,
        "optimizer": OptimizerConfig(learning_rate=1e-2, weight_decay=0.0),
        "tensorboard": False,
    }
    return RewardModelConfig(**{**fields, **changes})


def run(root, name, **changes):
    (root / name).mkdir(exist_ok=True)
    reward_model.run(config(**changes), root / name)
    return root / name


@pytest.fixture(scope="module")
def pairwise(folder):
    return run(folder, "rm_helpful")


def small_dense(**changes):
    dense = get_preset("tiny_dense", width=32, num_dense_layers=1, ffn_dim=48)
    return dataclasses.replace(dense, attention=dataclasses.replace(dense.attention, head_dim=16), **changes)


def test_a_head_on_a_model_with_experts_and_a_prediction_module():
    model = get_preset("tiny_mla_moe")
    params = add_head(abstract_params(model), model, one_device())
    body = abstract_scored(scored_model(model), one_device())
    assert jax.tree.structure(meta.unbox(params)) == jax.tree.structure(body)
    assert [leaf.shape for leaf in jax.tree.leaves(meta.unbox(params))] == [
        leaf.shape for leaf in jax.tree.leaves(body)
    ]
    assert "mtp" not in params["policy"]
    assert "moe_layers" in params["policy"]


def test_packed_rows_equal_one_response_at_a_time_in_reward_and_gradient(folder):
    policy = load_policy(PolicySource("stage", "dev3"), folder, one_device())
    model = policy.model
    rng = np.random.default_rng(0)
    units = [[rng.integers(0, 300, n).tolist() for n in lengths] for lengths in [(5, 9), (9, 5)] * 3]
    mesh = one_device()
    params = add_head(policy.params, model, mesh)
    params["score"]["kernel"] = jax.random.normal(jax.random.key(2), (32,))
    transformer = Transformer(scored_model(model))

    @jax.jit
    def alone(params, tokens):  # a reward and its gradient
        def reward(params):
            hidden = transformer.apply({"params": params["policy"]}, tokens[None], jnp.arange(tokens.size)[None]).hidden
            return hidden[0, -1] @ params["score"]["kernel"]

        return jax.value_and_grad(reward)(params)

    rows = pack_units(units, [1.0] * len(units), row_length=24, rows=3)
    assert rows.tokens.shape == (3, 2, 24)
    assert np.sum(rows.mask) == 6  # two units in a row
    single = [[jax.device_get(alone(params, jnp.array(tokens))) for tokens in unit] for unit in units]
    expected = np.array([[reward for reward, _ in unit] for unit in single])
    scores = Scorer(scored_model(model), mesh, 8)(params, [tokens for unit in units for tokens in unit])
    np.testing.assert_allclose(scores.reshape(-1, 2), expected, atol=2e-5)

    gradients = jax.jit(partial(reward_gradients, transformer, "pairwise", 0.0, 0.0))
    micros = [jax.tree.map(lambda x, r=row: x[r : r + 1], rows) for row in range(3)]
    parts = [jax.device_get(gradients(params, micro, np.float32(len(units)))) for micro in micros]
    total = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    ahead = expected[:, 0] - expected[:, 1]
    np.testing.assert_allclose(total.sums["preference_sum"], np.sum(np.logaddexp(0, -ahead)), rtol=1e-5)
    # Of -log sigmoid(a - b) by a: sigmoid(a - b) - 1; the mean over the units.
    slope = -1 / (1 + np.exp(ahead)) / len(units)
    terms = [
        jax.tree.map(lambda a, b, s=s: s * (a - b), one[1], two[1]) for s, (one, two) in zip(slope, single, strict=True)
    ]
    by_hand = jax.tree.map(lambda *leaves: sum(leaves), *terms)
    for (path, one), many in zip(
        jax.tree_util.tree_leaves_with_path(by_hand), jax.tree.leaves(total.grads), strict=True
    ):
        np.testing.assert_allclose(many, one, atol=3e-5, err_msg=jax.tree_util.keystr(path))


def test_a_planted_preference_is_learned(pairwise):
    summary = json.loads((pairwise / "summary.json").read_text())
    assert summary["counts"]["trained"] + summary["counts"]["held_out"] == 120
    assert summary["counts"]["empty_views"] == 0
    assert summary["held_out"]["accuracy"] > 0.95
    assert summary["held_out"]["ece"] < 0.2
    rows = read_rows(pairwise / "metrics.jsonl")
    assert rows[0]["loss"] == pytest.approx(np.log(2))  # the head starts at 0
    assert rows[0]["accuracy"] == 0.5
    assert len(rows) == summary["steps"]
    for name in ("calibration.png", "calibration.json", "length_bias.png", "reward_model.json", "tokenizer.model"):
        assert (pairwise / name).exists(), name


def test_the_folder_is_a_described_model_and_scores_as_in_training(folder, pairwise):
    stored, _ = read_description(pairwise)
    model, _, card = describe_reward_model(pairwise)
    assert model == stored
    loaded = load_reward_model(pairwise, one_device(), batch_size=8)
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    items = reward_model.read_data("pairwise", [folder / "pairs.jsonl"])
    held = np.flatnonzero(split_by_prompt(items, 0.2, 0))
    view = reward_model.VIEWS[card.view]
    asked = [(rows[i]["question"], view(rows[i][side])) for i in held for side in ("chosen", "rejected")]
    scores = loaded.score(*zip(*asked, strict=True))
    # Standardised by these very responses.
    assert scores.mean() == pytest.approx(0, abs=1e-4)
    assert scores.std() == pytest.approx(1, abs=1e-4)
    pairs = scores.reshape(-1, 2)
    accuracy = json.loads((pairwise / "summary.json").read_text())["held_out"]["accuracy"]
    assert np.mean(pairs[:, 0] > pairs[:, 1]) == accuracy
    # One at a time, in another order, or beside others: the same.
    alone = [loaded.score([q], [r])[0] for q, r in asked[:3]]
    np.testing.assert_allclose(alone, scores[:3], atol=1e-5)
    backwards = loaded.score(*zip(*asked[::-1], strict=True))
    np.testing.assert_allclose(backwards[::-1], scores, atol=1e-5)


def test_scoring_compiles_once_for_each_width(pairwise):
    loaded = load_reward_model(pairwise, one_device(), batch_size=8)
    loaded.score(["a", "a"], ["red", "red " * 15])  # widths 64 and 128
    with CompileCounter() as compiles:
        for n in (1, 5):
            loaded.score(["Say something"] * n, ["red blue " * i for i in range(n)])
            loaded.score(["Say something"] * n, ["red blue " * (7 + i) for i in range(n)])
    assert compiles.count == 0


def test_safety_labels_give_probabilities(folder):
    safe = run(folder, "rm_safe", kind="pointwise", view="safety", data=("../labels.jsonl",), epochs=4)
    summary = json.loads((safe / "summary.json").read_text())
    assert summary["held_out"]["accuracy"] > 0.95
    assert summary["held_out"]["auc"] > 0.95
    model = load_reward_model(safe, one_device(), batch_size=8)
    rng = random.Random(5)
    good, bad = ([response(rng, word) for _ in range(8)] for word in (GOOD, BAD))
    values = model.score(["Say something red, number 3"] * 16, good + bad)
    assert ((values >= 0) & (values <= 1)).all()
    assert values[:8].min() > 0.5 > values[8:].max()


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the program sees it coming."""


def kill():
    raise Killed


def terminate():
    signal.raise_signal(signal.SIGTERM)


def fail_at(patch, owner, name, call, after, action):
    """Runs `action` before or after the `call`-th call of a function."""
    original, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == call and not after:
            action()
        result = original(*args, **kwargs)
        if len(calls) == call and after:
            action()
        return result

    patch.setattr(owner, name, wrapped)


def outcome(folder):
    """All that a stop must not change."""
    _, tree, _ = CheckpointStore(folder / "model").restore(
        abstract_scored(describe_reward_model(folder)[0], one_device())
    )
    rows = [{k: v for k, v in row.items() if k != "time"} for row in read_rows(folder / "metrics.jsonl")]
    summary = json.loads((folder / "summary.json").read_text())
    summary["cost"].pop("seconds")
    files = [(folder / name).read_bytes() for name in ("calibration.json", "reward_model.json", "calibration.png")]
    return [leaf.tobytes() for leaf in map(np.asarray, jax.tree.leaves(tree))], json.dumps(rows), summary, files


def test_stopped_and_killed_it_ends_as_if_undisturbed(folder, pairwise):
    (folder / "stopped").mkdir()
    made = reward_model.Trainer(config(), describe_reward_model(pairwise)[0], one_device())
    stops = [
        (made, "update", 2, True, kill),  # before any checkpoint
        (made, "update", 3, True, terminate),
        (made, "update", 4, False, kill),  # after the one of step 5
        (reward_model, "figures_of", 1, False, kill),  # all trained
        (reward_model, "write_card", 1, True, kill),  # all but the summary
    ]
    ends = []
    for stop in stops:
        with pytest.MonkeyPatch.context() as patch:
            fail_at(patch, *stop)
            with pytest.raises((Killed, Interrupted)) as caught:
                run(folder, "stopped", checkpoint_every=5)
        ends.append(type(caught.value))
    run(folder, "stopped", checkpoint_every=5)
    assert ends == [Killed, Interrupted, Killed, Killed, Killed]
    assert outcome(folder / "stopped") == outcome(pairwise)


def test_the_split_is_by_prompt_whatever_its_spelling(folder):
    items = reward_model.read_data("pairwise", [folder / "pairs.jsonl"])
    held = split_by_prompt(items, 0.2, 0)
    sides = {}
    for item, side in zip(items, held, strict=True):
        sides.setdefault(item.question, set()).add(bool(side))
    assert all(len(side) == 1 for side in sides.values())
    assert sum(side == {True} for side in sides.values()) == round(0.2 * len(sides))
    louder = [dataclasses.replace(item, question=f"  {item.question.upper()}") for item in items]
    np.testing.assert_array_equal(split_by_prompt(louder, 0.2, 0), held)
    assert (split_by_prompt(items, 0.2, 1) != held).any()
    # What is added elsewhere does not move a prompt to the other side of the ranking.
    with pytest.raises(DataError, match=r"data: 3 different prompts, of which held_out = 0.2 is 1: at least 2"):
        split_by_prompt([item for item in items if item.question in sorted(sides)[:3]], 0.2, 0)


def test_an_epoch_takes_every_item_once_in_an_order_of_its_own():
    batches = Batches(count=10, batch=4, epochs=2, seed=3)
    assert batches.steps == 6
    epochs = [np.concatenate([batches[step] for step in steps]) for steps in ((1, 2, 3), (4, 5, 6))]
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert (epochs[0] != epochs[1]).any()
    assert [len(batches[step]) for step in range(1, 7)] == [4, 4, 2, 4, 4, 2]


def test_what_is_too_long_is_named_and_not_cut(folder, pairwise):
    with pytest.raises(
        DataError, match=r"data: 'pairs:1': prompt and response have \d+ tokens, more than max_length = 30"
    ):
        reward_model.check(config(max_length=30), folder / "x", {})
    model = load_reward_model(pairwise, one_device(), batch_size=8)
    with pytest.raises(DataError, match=r"response 1: prompt and .* tokens, more than the model's max_positions = 128"):
        model.score(["a", "a"], ["red", "red " * 200])
    assert np.isfinite(model.score(["a " * 50], ["red"])).all()  # longer than a prompt in training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "listwise"}, "kind: 'listwise' is not one of"),
        ({"view": "thought"}, "view: 'thought' is not one of"),
        ({"held_out": 0.0}, "held_out: 0.0; between 0 and 1"),
        ({"smoothing": 0.5}, "smoothing: 0.5; 0 to below 0.5"),
        ({"kind": "pointwise", "margin": 1.0}, "margin: 1.0; only a pairwise model"),
        ({"data": ()}, "data: is empty"),
        ({"batch": 0}, "batch: 0; at least 1"),
    ],
)
def test_bad_fields_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_what_is_missing_is_named_before_any_work(folder, tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: No such file"):
        reward_model.check(config(data=("../none.jsonl",)), folder / "x", {})
    with pytest.raises(ConfigError, match="max_length: 8192 exceeds the model's context, max_positions = 128"):
        reward_model.check(config(max_length=8192), folder / "x", {})
    with pytest.raises(
        ConfigError, match=r"holds no finished reward model \(reward_model.json\); run that stage first"
    ):
        load_reward_model(folder / "dev3", one_device())
    planned = {(tmp_path / "dev3").resolve(): read_description(folder / "dev3")[0], (tmp_path / "data").resolve(): None}
    later = config(init=PolicySource("stage", "../dev3"), data=("../data/pairs.jsonl",))
    assert reward_model.check(later, tmp_path / "rm", planned).mtp_depth == 0
    (tmp_path / "one.jsonl").write_text('{"question": "a", "completion": "b", "safe": true}\n' * 1)
    with pytest.raises(DataError, match="all 1 responses have the same label, safe = True"):
        reward_model.check(
            config(kind="pointwise", init=PolicySource("stage", str(folder / "dev3")), data=("../one.jsonl",)),
            tmp_path / "x",
            {},
        )
    rows = [{"question": f"number {i}", "chosen": "plain", "rejected": "text"} for i in range(20)]
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = config(init=PolicySource("stage", str(folder / "dev3")), data=("../plain.jsonl",))
    with pytest.raises(DataError, match="data: view 'helpfulness' sees nothing of the held-out responses"):
        reward_model.check(plain, tmp_path / "x", {})
    reward_model.check(dataclasses.replace(plain, view="safety"), tmp_path / "x", {})
