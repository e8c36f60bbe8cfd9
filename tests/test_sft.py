"""Fine-tuning: what is learnt of a sample, what packing and meshes may not change, stops, proportions, refusals."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import pathlib
import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from folders import BOS, EOS, byte_tokenizer
from tokenizers import AddedToken

from r1jax.checkpoint import CheckpointStore
from r1jax.data.chat import Message
from r1jax.data.errors import DataError
from r1jax.data.packing import Documents, pack_documents, split_microbatches
from r1jax.data.pipelines import packed_iterator
from r1jax.data.samples import Sample, write_samples
from r1jax.data.tokenizer import HuggingFaceTokenizer
from r1jax.metrics import read_rows
from r1jax.model.config import MLAConfig, ModelConfig, MoEConfig, RopeConfig
from r1jax.model.transformer import Transformer, abstract_params
from r1jax.settings import ConfigError, from_config
from r1jax.sharding import MeshConfig, make_mesh, param_shardings
from r1jax.stages import sft
from r1jax.stages.interruption import Interrupted
from r1jax.stages.next_token import Trainer, next_token_gradients
from r1jax.stages.policy import PolicySource, load_policy, save_policy
from r1jax.stages.sft import HeldOut
from r1jax.stages.sft_config import SFTConfig
from r1jax.stages.sft_data import SampleEncoder, hold_out, make_training_set, mix
from r1jax.stages.state import Accumulated, add_accumulated
from r1jax.types import PackedBatch, Params
from r1jax.weights.policy_folder import write_description

MODEL = ModelConfig(
    vocab_size=270,
    width=16,
    num_dense_layers=0,
    ffn_dim=24,
    attention=MLAConfig(
        num_heads=2, q_lora_rank=12, kv_lora_rank=8, qk_nope_head_dim=6, qk_rope_head_dim=2, v_head_dim=8
    ),
    rope=RopeConfig(interleaved=True),
    num_moe_layers=1,
    moe=MoEConfig(num_experts=4, num_active=2, expert_dim=12, num_groups=2, num_active_groups=1),
    mtp_depth=1,
    max_positions=128,
)


@pytest.fixture(scope="module", autouse=True)
def quick_programs() -> Iterator[None]:
    """Compiling is nearly all of the time here."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def tokenizer() -> HuggingFaceTokenizer:
    """A token per byte, and R1's control tokens."""
    bytes_ = byte_tokenizer()
    bytes_.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("<think>", "</think>")])
    return HuggingFaceTokenizer(bytes_, EOS, BOS)


FIELDS: dict[str, Any] = {
    "data": [{"path": "../data.jsonl"}],
    "rows": 4,
    "row_length": 64,
    "prompt": {"template": "short", "width": 48},
    "tensorboard": False,
}


def config(**fields: Any) -> SFTConfig:
    return from_config(SFTConfig, {**FIELDS, **fields})


def sums(count: int, first: int = 0) -> list[Sample]:
    """Samples of different lengths."""
    return [
        Sample(f"sum {n}", f"{n} + {n}?", f" <think> {'so ' * (n % 4)}</think> {2 * n}", task="sum")
        for n in range(first, first + count)
    ]


# What is learnt


def pieces(encoded: Any, names: HuggingFaceTokenizer) -> list[tuple[str, int]]:
    """Neighbouring tokens of the same kind as one text, control tokens by name: what the mask says, to be read."""
    tokens, mask = encoded
    told: list[tuple[str, int]] = []
    for token, learnt in zip(tokens, mask, strict=True):
        control = {names.bos_id: "BOS", names.eos_id: "EOS"}
        text = (
            control.get(token)
            or names.decode([token])
            or next(t for t in names.added_tokens if names.token_id(t) == token)
        )
        if told and told[-1][1] == learnt:
            text = told.pop()[0] + text
        told.append((text, learnt))
    return told


def test_of_a_question_with_its_completion_the_completion_and_eos_are_learnt() -> None:
    names = tokenizer()
    encode = SampleEncoder(config(prompt={"template": "short", "suffix": " Be brief."}), names)
    sample = Sample("x", "2 + 2?", " <think> easy </think> 4")
    assert pieces(encode(sample), names) == [
        ("BOSUser: 2 + 2? Be brief. Assistant:", 0),
        (" <think> easy </think> 4EOS", 1),
    ]
    chinese = Sample("x", "2 + 2?", " 4", language="zh")
    assert encode(chinese)[0][1:] == [*names.encode("用户: 2 + 2? Be brief. 助手: 4"), names.eos_id]


def test_of_messages_every_answer_is_learnt_and_only_the_last_has_its_thought() -> None:
    names = tokenizer()
    talk = (
        Message("system", "Be kind."),
        Message("user", "2 + 3?"),
        Message("assistant", "<think>\ntwo, three\n</think>\n\n5"),
        Message("user", "And 4?"),
        Message("assistant", "<think>\nnine\n</think>\n\n9"),
    )
    expected = [
        ("BOSBe kind.<｜User｜>2 + 3?<｜Assistant｜>", 0),
        ("\n\n5EOS", 1),
        ("<｜User｜>And 4?<｜Assistant｜><think>\n", 0),
        ("nine\n</think>\n\n9EOS", 1),
    ]
    encode = SampleEncoder(config(chat_format="r1", row_length=120), names)
    assert pieces(encode(Sample("talk", messages=talk)), names) == expected
    # As a policy samples it, inside the thought that the prompt has opened.
    sampled = (*talk[:-1], Message("assistant", "nine\n</think>\n\n9"))
    assert pieces(encode(Sample("talk", messages=sampled)), names) == expected
    # A question with its completion, where a chat format makes the prompt.
    chat = SampleEncoder(config(prompt={"template": "chat", "chat_format": "r1"}), names)
    assert pieces(chat(Sample("x", "2 + 2?", "easy\n</think>\n\n4")), names) == [
        ("BOS<｜User｜>2 + 2?<｜Assistant｜><think>\n", 0),
        ("easy\n</think>\n\n4EOS", 1),
    ]


def test_a_formats_own_end_of_turn_is_learnt_and_the_line_break_after_it_is_not() -> None:
    bytes_ = byte_tokenizer()
    bytes_.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    names = HuggingFaceTokenizer(bytes_, EOS, BOS)
    talk = [Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")]
    encode = SampleEncoder(config(chat_format="qwen", row_length=120), names)
    assert pieces(encode(Sample("talk", messages=tuple(talk))), names) == [
        ("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n", 0),
        ("b<|im_end|>", 1),
        ("\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n", 0),
        ("d<|im_end|>", 1),
    ]


@pytest.mark.parametrize(
    ("sample", "fields", "complaint"),
    [
        (Sample("x", "q", f" 4{EOS} 5"), {}, "its completion contains the token that ends a text"),
        (Sample("x", messages=(Message("assistant", "b"),)), {}, "it has messages, and chat_format"),
        (
            Sample("x", messages=(Message("user", "a"), Message("assistant", "b<｜User｜>c"))),
            {"chat_format": "r1"},
            r"message 2 \(assistant\) contains the control token '<｜User｜>'",
        ),
        (
            Sample("x", messages=(Message("user", f"a{EOS}"), Message("assistant", "</think>b"))),
            {"chat_format": "r1"},
            r"message 1 \(user\) contains",
        ),
        (
            Sample("x", messages=(Message("user", "a"), Message("assistant", "b"))),
            {"chat_format": "r1"},
            r"the chat format opens a thought by '<think>\\n'",
        ),
        (
            Sample("x", messages=(Message("user", "a"), Message("assistant", "<think> b</think>c"))),
            {"chat_format": "r1"},
            r"the chat format opens a thought by '<think>\\n'",
        ),
    ],
)
def test_a_sample_that_would_teach_something_else_is_refused(
    sample: Sample, fields: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        SampleEncoder(config(**fields), tokenizer())(sample)


# What packing, micro-batches and meshes may not change


def random_documents(count: int, longest: int) -> list[tuple[list[int], list[int]]]:
    """Token documents with a prompt of their own length, which is not learnt."""
    rng = np.random.default_rng(3)
    documents = []
    for length in rng.integers(4, longest + 1, count):
        prompt = int(rng.integers(1, length))
        documents.append((rng.integers(0, 256, length).tolist(), [0] * prompt + [1] * (int(length) - prompt)))
    return documents


@functools.cache
def random_params() -> Params:
    """Parameters of some size, the selection biases and the MTP module too, so that nothing is small by chance."""
    rng = np.random.default_rng(1)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        return (0.1 * rng.normal(size=leaf.shape) + (path[-1].key == "scale")).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, meta.unbox(abstract_params(MODEL)))


def relative(ours: Any, theirs: Any) -> float:
    """Largest difference of a leaf over that leaf's largest entry, over all leaves."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(float(np.abs(np.asarray(a) - b).max() / max(np.abs(b).max(), 1e-6)) for a, b in pairs if np.size(b))


def test_packed_is_unpacked_in_loss_and_gradients() -> None:
    """MLA, experts and the MTP loss: documents in shared rows, and each alone in a row; micro-batches of three rows."""
    documents = random_documents(18, 30)
    packed = pack_documents(documents, 48, rows=3)
    assert np.count_nonzero(packed.segment_ids.any(axis=1)) == 6, "three documents to a row"
    totals = np.array([sum(sum(mask[1:]) for _, mask in documents), len(documents)], np.float32)
    gradients = jax.jit(partial(next_token_gradients, Transformer(MODEL), 0.3, 0.01))

    def total(batches: list[PackedBatch]) -> Accumulated:
        parts = [jax.device_get(gradients(random_params(), batch, totals)) for batch in batches]
        return functools.reduce(add_accumulated, parts)

    rows = [pack_documents([document], 48) for document in documents]
    alone = total([jax.tree.map(lambda *parts: np.concatenate(parts), *rows[i : i + 3]) for i in range(0, 18, 3)])
    shared = total(split_microbatches(packed, 3))
    differences = relative(shared.grads, alone.grads), relative(shared.sums, alone.sums)
    print(f"\n{packed.tokens.shape[0]} rows for {len(documents)} documents: gradients and sums differ by {differences}")
    assert alone.sums["ce_tokens"] == totals[0]
    assert np.array_equal(shared.load, alone.load)
    assert max(differences) < 1e-5


# Runs

RUN = {"epochs": 1.3, "validation_share": 0.2, "validation_every": 3, "log_every": 2, "checkpoint_every": 3}
MADE: dict[str, Any] = {}


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the program sees it coming."""


def kill() -> None:
    raise Killed


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def remembered(make: Callable[..., Any], key: Callable[..., str]) -> Callable[..., Any]:
    """A constructor that gives the same object for the same key. What it makes holds data and compiled programs."""

    def get(*args: Any) -> Any:
        name = key(*args)
        if name not in MADE:
            MADE[name] = make(*args)
        return MADE[name]

    return get


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A policy to start from."""
    folder = tmp_path_factory.mktemp("base")
    write_description(folder, MODEL, tokenizer())
    one = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    save_policy(folder, jax.device_put(random_params(), param_shardings(one, abstract_params(MODEL))), 0)
    return folder


@pytest.fixture
def folder(base: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A stage's folder with a file of samples; stages start from the base and see one of the eight devices."""
    monkeypatch.setitem(FIELDS, "init", {"kind": "stage", "path": str(base)})
    (tmp_path / "sft").mkdir()
    write_samples(tmp_path / "data.jsonl", sums(40))
    monkeypatch.setattr(sft, "make_mesh", partial(make_mesh, devices=jax.devices()[:1]))
    monkeypatch.setattr(sft, "Trainer", remembered(Trainer, lambda *args: repr(args)))
    monkeypatch.setattr(sft, "HeldOut", remembered(HeldOut, lambda data, *args: data.digest() + repr(args)))
    return tmp_path / "sft"


def summary_of(folder: pathlib.Path) -> dict[str, Any]:
    """The summary without what the clock says."""
    told: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    assert told["cost"].pop("seconds") > 0
    return told


def params_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
    policy = load_policy(PolicySource("stage", str(folder)), folder, sft.make_mesh(MeshConfig()))
    leaves = jax.tree_util.tree_leaves_with_path(policy.params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def outcome(folder: pathlib.Path) -> dict[str, Any]:
    """What must not depend on stops: the last checkpoint's leaves by hash, the policy, rows without the clock."""
    step = CheckpointStore(folder / "checkpoints").steps()[-1]
    manifest = json.loads((folder / "checkpoints" / f"step_{step:08d}" / "manifest.json").read_text())
    rows = [{name: row[name] for name in row if name != "time"} for row in read_rows(folder / "metrics.jsonl")]
    params = {path: leaf.tobytes() for path, leaf in params_of(folder).items()}
    return {"step": step, "leaves": manifest["body"]["leaves"], "params": params, "rows": json.dumps(rows)}


def test_a_run_stopped_and_killed_ends_as_if_undisturbed(
    base: pathlib.Path, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = folder.parent / "undisturbed"
    reference.mkdir()
    stage = config(**RUN)
    assert sft.check(stage, folder, {}) == MODEL
    sft.run(stage, reference)
    original = Trainer.update
    for last, stop in ((4, kill), (2, terminate)):  # updates of that run: after the checkpoint of step 3; at step 5
        calls: list[int] = []

        def update(self: Trainer, *args: Any) -> Any:
            calls.append(1)  # noqa: B023  (the loop's own)
            if len(calls) == last:  # noqa: B023
                stop()  # noqa: B023
            return original(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "update", update)
            with pytest.raises((Killed, Interrupted)) as caught:
                sft.run(stage, folder)
    assert "stopped by SIGTERM at step 5 of " in str(caught.value)
    sft.run(stage, folder)
    assert outcome(folder) == outcome(reference)
    assert summary_of(folder) == summary_of(reference)
    check_figures(summary_of(reference), reference, base)


def check_figures(told: dict[str, Any], folder: pathlib.Path, base: pathlib.Path) -> None:
    """Figures of the run above, found in another way."""
    counts = {"rows": 40, "beyond_limit": 0, "too_long": 0, "beyond_share": 0, "held_out": 8, "trained": 32}
    assert told["data"] == [{"path": "../data.jsonl", **counts}]
    losses = {row["step"]: row["eval/loss"] for row in read_rows(folder / "metrics.jsonl") if "eval/loss" in row}
    assert list(losses) == sorted({*range(0, told["steps"], 3), told["steps"]})
    assert told["validation"] == {"first": losses[0], "last": losses[told["steps"]], "best": min(losses.values())}
    assert told["steps"] == -(-13 * told["packed_rows"] // 40)  # 1.3 epochs, 4 rows to a step, rounded up
    data = make_training_set(config(**RUN), folder, tokenizer())
    assert data.held_out is not None
    np.testing.assert_allclose(losses[0], mean_loss(data.held_out), rtol=1e-5)
    batches = packed_iterator(data.train, 64, 4, seed=0)
    read = sum(int(np.count_nonzero(next(batches).segment_ids)) for _ in range(told["steps"]))
    assert told["cost"]["tokens_trained"] == read
    before, after = params_of(base), params_of(folder)
    same = {path for path, leaf in before.items() if np.array_equal(leaf, after[path])}
    assert same == {path for path in before if path.startswith("mtp/") or path.endswith("router/bias")}


@partial(jax.jit, static_argnums=0)
def logits_of(model: Transformer, params: Params, tokens: Any) -> Any:
    return model.apply({"params": params}, tokens, jnp.arange(tokens.shape[1])[None]).logits[0]


def mean_loss(documents: Documents) -> float:
    """Over the learnt tokens of documents, each read alone and without segments; the softmax is numpy's."""
    model, params = Transformer(dataclasses.replace(MODEL, mtp_depth=0)), random_params()
    losses: list[float] = []
    for start, end in itertools.pairwise(documents.starts):
        tokens = np.pad(documents.tokens[start:end], (0, 64 - (end - start)))
        logits = np.asarray(logits_of(model, params, tokens[None]), np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        losses += [-logprobs[t - 1, tokens[t]] for t in np.flatnonzero(documents.loss_mask[start:end])]
    return float(np.mean(losses))


def test_the_loss_on_two_devices_is_that_of_one(folder: pathlib.Path) -> None:
    data, training = sft.prepare(config(**RUN), folder, tokenizer())
    losses = []
    for mesh in (sft.make_mesh(MeshConfig()), make_mesh(MeshConfig(), jax.devices()[:2])):
        held_out = sft.HeldOut(data.held_out, training, MODEL, mesh)
        losses.append(held_out.loss(jax.device_put(random_params(), param_shardings(mesh, abstract_params(MODEL)))))
    print(f"\n{losses}")
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


# The mix


def test_the_largest_mix_that_keeps_the_proportions_by_hand() -> None:
    assert mix([10, 3], [None, None]) == [10, 3]
    assert mix([10, 3], [3, 1]) == [9, 3]
    assert mix([10, 3], [0.75, 0.25]) == [9, 3]
    assert mix([600, 200], [0.6, 0.2]) == [600, 200]  # R1's 600k and 200k
    assert mix([7, 5], [0.7, 0.3]) == [7, 3]
    assert mix([1, 1000], [999, 1]) == [1, 0]


def test_every_sample_of_every_file_is_accounted_for(tmp_path: pathlib.Path) -> None:
    long = Sample("long", "why?", " because" * 9)
    write_samples(tmp_path / "a.jsonl", [long, *sums(9), *sums(3, 100)])
    write_samples(tmp_path / "b.jsonl", [dataclasses.replace(s, id="b " + s.id, completion=" 1") for s in sums(20)])
    files = [{"path": "a.jsonl", "share": 3, "limit": 10}, {"path": "b.jsonl", "share": 1}]
    stage = config(data=files, too_long="drop", validation_share=0.25)
    data = make_training_set(stage, tmp_path, tokenizer())
    for counts in data.counts:
        assert counts["rows"] == sum(count for name, count in counts.items() if name != "rows")
    a, b = data.counts
    assert (a["rows"], a["beyond_limit"], a["too_long"], a["beyond_share"]) == (13, 3, 1, 0)
    assert (b["rows"], b["beyond_limit"], b["too_long"], b["beyond_share"]) == (20, 0, 0, 17)
    assert len(data.train) == a["trained"] + b["trained"]
    assert data.held_out is not None
    assert len(data.held_out) == a["held_out"] + b["held_out"] > 0
    asked = [
        {
            store.tokens[s:e].tobytes().split(np.int32(ord("A")).tobytes())[0]
            for s, e in itertools.pairwise(store.starts)
        }
        for store in (data.train, data.held_out)
    ]
    assert not asked[0] & asked[1], "one question is on both sides"
    again = make_training_set(stage, tmp_path, tokenizer())
    assert again.train.digest() == data.train.digest()
    other = make_training_set(dataclasses.replace(stage, seed=1), tmp_path, tokenizer())
    assert other.train.digest() != data.train.digest(), "the seed chooses which samples of b are left out"


def test_held_out_questions_are_held_out_with_all_their_samples() -> None:
    keys = [f"question {i // 3}" for i in range(60)]
    apart = hold_out(keys, 0.1, seed=0)
    assert len(apart) == 2
    assert hold_out(keys, 0.001, seed=0) < set(keys)
    assert hold_out(keys, 0.0, seed=0) == set()
    with pytest.raises(DataError, match=r"validation_share: 0.9 of 2 questions leaves none"):
        hold_out(["a", "b", "a"], 0.9, seed=0)


# What is wrong


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"data": []}, "data: at least one file"),
        ({"data": [{"path": "a", "share": 1}, {"path": "b"}]}, "data: either every file has a share or none"),
        ({"data": [{"path": "a", "share": 0}]}, r"data\[0\]: share: 0.0 is not positive|share: 0 is not positive"),
        ({"steps": 3}, "epochs, steps: 2.0, 3; one of them"),
        ({"too_long": "cut"}, "too_long: 'cut' is not one of 'refuse', 'drop'"),
        ({"optimizer": {"total_steps": 9}}, "optimizer.total_steps: follows from"),
        ({"optimizer": {"rate": 9}}, "optimizer.rate: unknown field"),
        ({"chat_format": "r2"}, "chat_format: 'r2' is not one of"),
        ({"chat_format": "r1", "prompt": {"template": "chat", "chat_format": "qwen"}}, "chat_format: 'r1', but prompt"),
    ],
)
def test_a_config_that_cannot_be_is_refused(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        config(**fields)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"data": [{"path": "none.jsonl"}]}, "none.jsonl: No such file"),
        (
            {"row_length": 40},
            r"data.jsonl: sample 'sum 11': its 43 tokens take 42 slots, more than row_length = 40 \(and 7 more\)",
        ),
        ({"prompt": {"width": 9}}, "its prompt has [0-9]+ tokens, more than prompt.width = 9"),
        ({"row_length": 20, "too_long": "drop"}, "data.jsonl: no sample is left; sample 'sum 0': its"),
        ({"rows": 64}, "rows: 64 of one update, but the data fill [0-9]+ of row_length = 64"),
        ({"optimizer": {"warmup_steps": 50}}, r"total_steps: [0-9]+ leaves no step.* \(the run has [0-9]+ steps\)"),
        ({"row_length": 256}, "row_length: 256 exceeds the model's context, max_positions = 128"),
        ({"data": [{"path": "samples.jsonl"}]}, "data: samples.jsonl is a file that the run itself writes"),
        ({"chat_format": "llama3"}, "chat_format: the chat format llama3 needs"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_anything_is_trained(
    folder: pathlib.Path, fields: dict[str, Any], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sft, "Trainer", lambda *args: pytest.fail("training began"))
    for step in (partial(sft.check, planned={}), sft.run):
        with pytest.raises((ConfigError, DataError), match=complaint):
            step(config(**fields), folder)


def test_what_an_earlier_stage_has_yet_to_make_is_looked_at_later(base: pathlib.Path, folder: pathlib.Path) -> None:
    data = [{"path": "../curated/samples_kept.jsonl"}, {"path": "../data.jsonl"}]
    planned: dict[pathlib.Path, ModelConfig | None] = {(folder.parent / "curated").resolve(): None}
    with pytest.raises(DataError, match=r"samples_kept.jsonl: No such file"):
        sft.check(config(data=data), folder, {})
    assert sft.check(config(data=data), folder, planned) == MODEL
    with pytest.raises(DataError, match="more than row_length = 40"):  # of the file that is there
        sft.check(config(data=data, row_length=40), folder, planned)
    with pytest.raises(DataError, match=r"samples_kept.jsonl: No such file"):
        sft.run(config(data=data), folder)
    planned[base] = dataclasses.replace(MODEL, mtp_depth=0)
    with pytest.raises(ConfigError, match=r"mtp_weight: 0.3, but the model has no MTP module"):
        sft.check(config(data=data, mtp_weight=0.3), folder, planned)
    (folder.parent / "data.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"data.jsonl, line 1: id: is missing"):
        sft.check(config(data=data), folder, planned)
