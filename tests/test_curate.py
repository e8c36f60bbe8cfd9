"""Curation end to end: every sample of a scripted policy meets the fate that was planned for it, also after stops."""

from __future__ import annotations

import contextlib
import json
import pathlib
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from r1jax.data.chat import Message
from r1jax.data.corpus import CorpusConfig, write_corpus
from r1jax.data.errors import DataError
from r1jax.data.samples import Sample, read_samples, write_samples
from r1jax.data.sources import make_source
from r1jax.data.tokenizer import SentencePieceTokenizer, train_sentencepiece
from r1jax.metrics import read_rows
from r1jax.model.config import ModelConfig
from r1jax.model.transformer import init_params
from r1jax.rewards.answer import parse_response
from r1jax.rewards.judges.chat_models import Reply
from r1jax.rewards.patterns import parse_summary
from r1jax.settings import ConfigError, from_config
from r1jax.sharding import MeshConfig, make_mesh
from r1jax.stages import curate
from r1jax.stages.curate_config import CurateConfig
from r1jax.stages.interruption import Interrupted
from r1jax.stages.policy import ModelChoice, Policy, save_policy
from r1jax.stages.rewriting import Rewriter
from r1jax.types import Example, Rollout
from r1jax.weights.policy_folder import write_description

MODEL = {
    "width": 32,
    "num_dense_layers": 1,
    "num_moe_layers": 0,
    "moe": None,
    "mtp_depth": 0,
    "ffn_dim": 48,
    "attention": {"num_heads": 2, "q_lora_rank": 16, "kv_lora_rank": 16, "v_head_dim": 16},
}
SOURCE = {"kind": "tasks", "split": "rl", "size": 6, "seed": 3, "params": {"tasks": (("chain_sum", 1.0),)}}
ENGLISH = ("so", "just", "check", "carefully")
CHINESE = ("所以", "就是", "检查", "仔细")


def words(example: Example, other: bool = False) -> tuple[str, ...]:
    """Words of the example's language, or of the other one."""
    return CHINESE if (example.language == "zh") != other else ENGLISH


def completion(thought: str, answer: str) -> str:
    return f" <think> {thought} </think> <answer> {answer} </answer>"


def wrong(example: Example) -> str:
    return str(int(example.answer) + 1)


# The k = 8 samples of every question, in order, and what becomes of each.
PLAN: tuple[tuple[str, Callable[[Example], str]], ...] = (
    ("good", lambda e: completion(" ".join(words(e)), e.answer)),
    ("wrong", lambda e: completion(" ".join(words(e)), wrong(e))),
    ("good", lambda e: completion(" ".join(reversed(words(e))), e.answer)),
    ("truncated", lambda e: completion(" ".join(words(e) * 2), e.answer)),
    ("format", lambda e: f"{' '.join(words(e))} <answer> {e.answer} </answer>"),
    ("mixed_language", lambda e: completion(" ".join(ENGLISH + CHINESE), e.answer)),
    ("wrong_language", lambda e: completion(" ".join(words(e, other=True)[2:] + words(e, other=True)[:2]), e.answer)),
    ("duplicate", lambda e: completion("  ".join(words(e)), e.answer)),
)
K = len(PLAN)


class Scripted:
    """A completer that says what was planned; `asked` counts how often it was called."""

    asked: Sequence[str] = ()

    def __init__(self, model: Any, mesh: Any, tokenizer: Any, prompt: Any, decoding: Any, group_size: int) -> None:
        self.tokenizer = tokenizer

    def complete(
        self, params: Any, examples: Sequence[Example], samples: int, key: Any, limit: Any, batch: Any
    ) -> tuple[Rollout, tuple[str, ...]]:
        Scripted.asked = [*Scripted.asked, *(example.id for example in examples)]
        texts = [PLAN[i][1](example) for example in examples for i in range(samples)]
        finished = np.array([PLAN[i][0] != "truncated" for _ in examples for i in range(samples)])
        tokens = [self.tokenizer.encode(text) for text in texts]
        lengths = np.array([len(row) for row in tokens], np.int32)
        padded = np.zeros((len(texts), 128), np.int32)
        for row, own in zip(padded, tokens, strict=True):
            row[: len(own)] = own
        for i, text in enumerate(texts):
            batch.add(i, text, tokens[i], examples[i // samples])
        ones = np.ones((len(texts), 4), np.int32)
        widths = np.full(len(texts), 4, np.int32)
        rollout = Rollout(ones, widths, padded, lengths, np.zeros(padded.shape, np.float32), finished)
        return rollout, tuple(texts)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    texts = [document.text for document in write_corpus(CorpusConfig(documents=200))]
    return train_sentencepiece(texts, tmp_path_factory.mktemp("tokenizer") / "t.model", 420)


@pytest.fixture(scope="module")
def model(tokenizer: SentencePieceTokenizer) -> ModelConfig:
    return ModelChoice("tiny_mla_moe", MODEL).build(vocab_size=tokenizer.vocab_size)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, model: ModelConfig, tokenizer: SentencePieceTokenizer) -> None:
    """Stages sample from `Scripted`."""
    Scripted.asked = ()
    monkeypatch.setattr(curate, "make_mesh", partial(make_mesh, devices=jax.devices()[:1]))
    monkeypatch.setattr(curate, "describe_source", lambda source, workdir: (model, tokenizer))
    monkeypatch.setattr(curate, "known_policy", lambda source, workdir, planned: (model, tokenizer))
    monkeypatch.setattr(curate, "load_policy", lambda source, workdir, mesh: Policy(model, None, tokenizer))
    monkeypatch.setattr(curate, "Completer", Scripted)


def config_of(**changes: Any) -> CurateConfig:
    fields: dict[str, Any] = {
        "source": SOURCE,
        "samples": K,
        "per_prompt": 1,
        "prompt": {"template": "short", "width": 64},
        "decoding": {"max_new_tokens": 96, "batch_size": 2 * K},
        "show_dropped": 2,
    }
    return from_config(CurateConfig, fields | changes)


def curated(folder: pathlib.Path, **changes: Any) -> dict[str, Any]:
    """The data card of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    curate.run(config_of(**changes), folder)
    card: dict[str, Any] = json.loads((folder / "data_card.json").read_text(encoding="utf-8"))
    return card


def examples() -> Sequence[Example]:
    return make_source(config_of().source)


def left(folder: pathlib.Path) -> dict[str, Any]:
    """What must not depend on stops."""
    names = ("samples_kept.jsonl", "data_card.json", "data_card.md", "dropped_samples.jsonl")
    summary = json.loads((folder / "summary.json").read_text())
    summary["cost"].pop("seconds")
    rows = [
        {name: value for name, value in row.items() if name != "time"} for row in read_rows(folder / "metrics.jsonl")
    ]
    return {name: (folder / name).read_bytes() for name in names} | {"summary": summary, "metrics": rows}


def test_every_sample_meets_its_fate(scripted: None, tmp_path: pathlib.Path) -> None:
    card = curated(tmp_path / "curated")
    total = card["by_domain"]["total"]
    assert card["questions"] == {"source": 6, "contaminated": 0, "asked": 6}
    assert {fate: n for fate, n in total["dropped"].items() if n} == {
        **dict.fromkeys(("wrong", "truncated", "format", "mixed_language", "wrong_language", "duplicate"), 6),
        "not_selected": 6,  # two good ones of each question, of which one is kept
    }
    assert (total["sampled"], total["kept"], total["questions_kept"]) == (6 * K, 6, 6)
    assert total["sampled"] == total["kept"] + sum(total["dropped"].values())
    assert list(card["by_domain"]) == ["reasoning", "total"]
    assert list(card["by_task"]) == ["reasoning/chain_sum", "total"]
    kept = read_samples(tmp_path / "curated" / "samples_kept.jsonl")
    for sample, example in zip(kept, examples(), strict=True):
        assert (sample.question, sample.answer, sample.language) == (example.question, example.answer, example.language)
        good = [make(example) for fate, make in PLAN if fate == "good"]
        assert sample.completion in good
        assert sample.source == "curated"
    chinese = sum(sample.language == "zh" for sample in kept)
    assert total["languages"] == {"en": (6 - chinese) / 6, "zh": chinese / 6}
    assert total["language_consistency"] == 1.0
    assert total["mean_tokens"] == sum(sample.metadata["tokens"] for sample in kept) / 6
    shown = [json.loads(line) for line in (tmp_path / "curated" / "dropped_samples.jsonl").read_text().splitlines()]
    assert [row["dropped_for"] for row in shown] == [
        fate for fate, n in total["dropped"].items() if n for _ in range(2)
    ]
    page = (tmp_path / "curated" / "data_card.md").read_text(encoding="utf-8")
    assert "| total | 6 | 48 | 0 | 6 | 6 | 6 | 6 | 6 | 6 | 6 | 6 | 6 |" in page


def test_selection_is_by_the_seed_or_the_shortest(scripted: None, tmp_path: pathlib.Path) -> None:
    texts = {}
    for name, changes in (("a", {}), ("b", {}), ("c", {"seed": 5}), ("s", {"selection": "shortest"})):
        curated(tmp_path / name, **changes)
        texts[name] = [sample.completion for sample in read_samples(tmp_path / name / "samples_kept.jsonl")]
    assert texts["a"] == texts["b"] != texts["c"]
    card = curated(tmp_path / "all", per_prompt=K)
    assert card["by_domain"]["total"]["kept"] == 12
    lengths = {s.id: s.metadata["tokens"] for s in read_samples(tmp_path / "all" / "samples_kept.jsonl")}
    shortest = {s.id: s.metadata["tokens"] for s in read_samples(tmp_path / "s" / "samples_kept.jsonl")}
    for name, tokens in shortest.items():
        question = name.rpartition("/")[0]
        assert tokens == min(n for other, n in lengths.items() if other.rpartition("/")[0] == question)


def test_the_rule_rewrites_to_reasoning_and_summary(scripted: None, tmp_path: pathlib.Path) -> None:
    curated(tmp_path / "plain")
    card = curated(tmp_path / "rewritten", rewrite={"kind": "rule"})
    before, after = (read_samples(tmp_path / name / "samples_kept.jsonl") for name in ("plain", "rewritten"))
    for old, new in zip(before, after, strict=True):
        parsed = parse_summary(new.completion)
        assert parsed.well_formed
        assert not parse_response(new.completion).well_formed
        assert (parsed.thought, parsed.answer) == (parse_response(old.completion).thought, old.answer)
    assert card["by_domain"]["total"]["kept"] == 6
    assert card["rewriting"] == "the rule of data.cold_start"


def test_the_rule_translates_what_the_first_filters_let_through(scripted: None, tmp_path: pathlib.Path) -> None:
    """So of each question the samples in the other language and in both are kept, beside the two good ones."""
    writer = {"kind": "rule", "translate": True, "filters": {}}
    lax = {"wrong_language": None, "mixed_language": None}
    card = curated(tmp_path / "translated", rewrite=writer, filters=lax, per_prompt=K)
    total = card["by_domain"]["total"]
    assert {fate for fate, n in total["dropped"].items() if n} == {"wrong", "truncated", "format", "duplicate"}
    assert total["kept"] == 6 * 4
    assert total["language_consistency"] == 1.0
    thoughts = {
        parse_summary(s.completion).thought for s in read_samples(tmp_path / "translated" / "samples_kept.jsonl")
    }
    page = (tmp_path / "translated" / "data_card.md").read_text(encoding="utf-8")
    assert page.index("- wrong_language: off") < page.index("rewritten") < page.index("- wrong_language: 0.9")
    assert {"check carefully so just", "检查 仔细 所以 就是"} <= thoughts
    card = curated(tmp_path / "kept", rewrite={"kind": "rule", "filters": {}}, filters=lax, per_prompt=K)
    dropped = card["by_domain"]["total"]["dropped"]
    assert {name: n for name, n in dropped.items() if "language" in name and n} == {
        "rewrite: mixed_language": 6,
        "rewrite: wrong_language": 6,
    }


class Killed(BaseException):
    """Stands for SIGKILL."""


def kill() -> None:
    raise Killed


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def stopped_at(owner: Any, name: str, call: int, action: Callable[[], None], run: Callable[[], Any]) -> BaseException:
    """How a run ends of which `action` befalls the `call`-th call of a function, after it."""
    original, calls = getattr(owner, name), []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        calls.append(1)
        if len(calls) == call:
            action()
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, wrapped)
        with pytest.raises((Killed, Interrupted)) as end:
            run()
    return end.value


def test_a_stopped_stage_goes_on_where_it_was(scripted: None, tmp_path: pathlib.Path) -> None:
    changes: dict[str, Any] = {"rewrite": {"kind": "rule", "batch_size": 2}, "per_prompt": 2}
    whole, stopped = tmp_path / "whole" / "curated", tmp_path / "stopped" / "curated"
    curated(whole, **changes)
    asked, Scripted.asked = Scripted.asked, ()
    stopped.mkdir(parents=True)
    run = partial(curate.run, config_of(**changes), stopped)
    ends = [
        stopped_at(curate, "answer_examples", 1, terminate, run),
        stopped_at(curate, "answer_examples", 2, kill, run),
        stopped_at(Rewriter, "rewrite", 1, terminate, run),
        stopped_at(Rewriter, "rewrite", 3, kill, run),
        stopped_at(curate, "_write", 1, kill, run),
    ]
    assert str(ends[0]).startswith("stopped by SIGTERM at question 2 of 6;")
    assert str(ends[2]).startswith("stopped by SIGTERM at rewritten sample 2 of 12;")
    assert not (stopped / "summary.json").exists()
    run()
    assert Scripted.asked == asked
    assert left(stopped) == left(whole)


def write_general(path: pathlib.Path, planted: str) -> None:
    rounds = (Message("user", "hello"), Message("assistant", "hi"), Message("user", "bye"), Message("assistant", "so"))
    write_samples(
        path,
        [
            Sample("a", "say so .", " <think> say </think> so .", domain="helpful", task="copy"),
            Sample("b", "say so .", " <think> say </think>  so .", domain="helpful", task="copy"),  # a duplicate
            Sample("c", "say so .", " <think> say </think> so !", domain="helpful", task="copy"),
            Sample("d", planted, "no", domain="helpful", task="copy"),  # an evaluation question
            Sample("e", "what is it ?", f"it is {planted}", domain="helpful", task="copy"),  # quotes it
            Sample("f", "burn it ?", "no", domain="harmless", task="harm"),
            Sample("g", messages=rounds, domain="harmless", task="harm"),
        ],
    )


def test_general_data_is_joined_in_proportion_and_decontaminated(scripted: None, tmp_path: pathlib.Path) -> None:
    evaluation = {"kind": "tasks", "split": "rl", "size": 60, "seed": 3, "params": SOURCE["params"]}
    others = make_source(from_config(CurateConfig, {"source": evaluation}).source)
    planted = next(e for e in others if e.metadata["steps"] == 5)
    path = tmp_path / "evaluation.jsonl"
    in_source = examples()[2]
    rows = [{"question": e.question, "answer": e.answer} for e in (planted, in_source)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_general(tmp_path / "general.jsonl", planted.question)
    card = curated(
        tmp_path / "joined",
        general=({"path": "../general.jsonl"},),
        proportions={"reasoning": 2, "helpful": 2, "general": 1},
        decontaminate={"sources": ({"kind": "jsonl", "path": str(path)},)},
    )
    asked = 6 - card["questions"]["contaminated"]
    assert card["questions"]["asked"] == asked
    assert card["questions"]["contaminated"] == 1 + (planted.id in [e.id for e in examples()])
    assert in_source.id not in Scripted.asked
    assert card["decontamination"]["overlaps"] == {"questions": 6 - asked, "samples": 0, "general data": 2}
    assert card["proportions"] == {
        "reasoning": {"share": 0.4, "there": asked, "taken": 2, "left": asked - 2},
        "helpful": {"share": 0.4, "there": 2, "taken": 2, "left": 0},
        "general": {"share": 0.2, "there": 2, "taken": 1, "left": 1},
    }
    domains = card["by_domain"]
    assert {name: row["kept"] for name, row in domains.items()} == {
        "reasoning": 2,
        "helpful": 2,
        "harmless": 1,
        "total": 5,
    }
    assert domains["helpful"]["read"] == 5
    for row in domains.values():
        assert row["sampled"] + row["read"] == row["kept"] + sum(row["dropped"].values())
    kept = read_samples(tmp_path / "joined" / "samples_kept.jsonl")
    assert [sample.id for sample in kept if sample.domain == "helpful"] == ["general/0/a", "general/0/c"]
    assert {row["overlap"].partition(" of ")[0] for row in card["decontamination"]["examples"]} <= {
        "same question",
        "n words",
        "all words",
    }


def test_a_completion_that_quotes_an_evaluation_question_goes(
    scripted: None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quote = "now alice has three red apples and bob takes two of them away from her"
    path = tmp_path / "evaluation.jsonl"
    path.write_text(json.dumps({"question": quote, "answer": "1"}) + "\n")
    monkeypatch.setattr(curate, "Completer", quoting(quote))
    changes: dict[str, Any] = {
        "filters": {"wrong_language": None, "mixed_language": None},
        "decontaminate": {"sources": ({"kind": "jsonl", "path": str(path)},)},
    }
    card = curated(tmp_path / "one", **changes)
    assert card["by_domain"]["total"]["dropped"]["contaminated"] == 6
    changes["decontaminate"] = {**changes["decontaminate"], "completions": False}
    card = curated(tmp_path / "two", **changes)
    assert card["by_domain"]["total"]["dropped"]["contaminated"] == 0


def quoting(quote: str) -> type[Scripted]:
    """A completer whose first sample of each question quotes a text."""

    class Quoting(Scripted):
        def complete(self, params: Any, examples: Any, samples: int, *rest: Any) -> Any:
            with pytest.MonkeyPatch.context() as patch:
                first = ("good", lambda e: completion(quote, e.answer))
                patch.setitem(globals(), "PLAN", (first, *PLAN[1:]))
                return super().complete(params, examples, samples, *rest)

    return Quoting


def reply(reasoning: str, summary: str) -> str:
    return f"REASONING:\n{reasoning}\n\nSUMMARY:\n{summary}"


class Writer:
    """A chat model that answers by a list of functions of the example, in turn."""

    def __init__(self, script: Sequence[Callable[[str, bool], str | None]]) -> None:
        self.script, self.asked = script, 0

    def ask(self, conversations: Sequence[Any], seed: int) -> list[Reply]:
        replies = []
        for messages in conversations:
            case = messages[-1]["content"]
            answer = json.loads(case.rpartition("Final answer: ")[2])
            chinese = "计算" in case.partition("\n")[0]
            said = self.script[self.asked % len(self.script)](answer, chinese)
            replies.append(Reply(said, "" if said else "no connection"))
            self.asked += 1
        return replies


def own_words(chinese: bool) -> str:
    return "我 先 加 起来" if chinese else "first I add them"


WRITINGS: dict[str, Callable[[str, bool], str | None]] = {
    "kept": lambda a, zh: f"<think>hm</think>\n{reply(own_words(zh), f'<answer> {a} </answer>')}\n",
    "rewrite: no reply": lambda a, zh: None,
    "rewrite: form": lambda a, zh: reply(own_words(zh), f"it is {a}"),
    "rewrite: wrong": lambda a, zh: reply(own_words(zh), f"<answer> {int(a) + 1} </answer>"),
    "rewrite: wrong_language": lambda a, zh: reply(own_words(not zh), f"<answer> {a} </answer>"),
    "rewrite: code_block": lambda a, zh: reply(f"{own_words(zh)}\n```\n9\n```", f"<answer> {a} </answer>"),
}


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def use(*script: Callable[[str, bool], str | None]) -> None:
        @contextlib.contextmanager
        def opened(*args: Any) -> Iterator[Writer]:
            yield Writer(script)

        monkeypatch.setattr(curate, "open_shared_chat_model", opened)

    return use


MODEL_WRITER = {"kind": "model", "model": {"url": "http://127.0.0.1:9/v1", "model": "m"}}


def test_what_a_writer_spoils_is_dropped_and_counted(
    scripted: None, tmp_path: pathlib.Path, writer: Callable[..., None]
) -> None:
    writer(*WRITINGS.values())
    card = curated(tmp_path / "written", rewrite=MODEL_WRITER)
    dropped = card["by_domain"]["total"]["dropped"]
    assert {name: n for name, n in dropped.items() if name.startswith("rewrite")} == dict.fromkeys(
        sorted(set(WRITINGS) - {"kept"}), 1
    )
    (kept,) = read_samples(tmp_path / "written" / "samples_kept.jsonl")
    assert parse_summary(kept.completion).thought == own_words(kept.language == "zh")
    assert parse_summary(kept.completion).answer == kept.answer
    assert kept.metadata["tokens"] == card["by_domain"]["total"]["mean_tokens"]


def test_the_same_text_written_twice_is_kept_once(
    scripted: None, tmp_path: pathlib.Path, writer: Callable[..., None]
) -> None:
    writer(WRITINGS["kept"])
    card = curated(tmp_path / "written", rewrite=MODEL_WRITER, per_prompt=2)
    assert card["by_domain"]["total"]["dropped"]["rewrite: duplicate"] == 6
    assert card["by_domain"]["total"]["kept"] == 6


def test_a_writer_that_never_answers_stops_the_stage_and_is_asked_again(
    scripted: None, tmp_path: pathlib.Path, writer: Callable[..., None]
) -> None:
    writer(lambda answer, chinese: None)
    with pytest.raises(ConfigError, match=r"rewrite.model: none of 6 samples was answered: no connection"):
        curated(tmp_path / "written", rewrite=MODEL_WRITER)
    writer(WRITINGS["kept"])
    card = curated(tmp_path / "written", rewrite=MODEL_WRITER)
    assert card["by_domain"]["total"]["kept"] == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_prompt": K + 1}, "per_prompt: 9; there are only samples = 8"),
        ({"selection": "best"}, "selection: 'best' is not one of"),
        ({"proportions": {"reasoning": 0}}, "proportions: the weight of 'reasoning' is 0"),
        ({"near_duplicates": 0.0}, "near_duplicates: 0.0"),
        ({"general": ({"kind": "samples"},)}, r"general\[0\]: path: ''; general data of kind 'samples' needs one"),
        ({"general": ({"kind": "world"},)}, r"general\[0\]: size: 0; at least 1"),
        ({"general": ({"path": "x", "seed": 1},)}, "seed: general data of kind 'samples' does not use"),
        ({"rewrite": {"kind": "model"}}, "kind 'model' and the field model need each other"),
        ({"rewrite": {"kind": "rule", "pattern": "boxed"}}, "pattern: 'boxed'; the rule writes 'summary'"),
        ({"decontaminate": {"n": 0}}, "decontaminate: n: 0; at least 1"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(**changes)


def test_what_can_be_known_is_said_before_the_stage_starts(scripted: None, tmp_path: pathlib.Path) -> None:
    check = partial(curate.check, workdir=tmp_path / "c", planned={})
    check(config_of())
    with pytest.raises(DataError, match=r"general\[0\]: .*none.jsonl: No such file"):
        check(config_of(general=({"path": "../none.jsonl"},)))
    planned: dict[pathlib.Path, Any] = {(tmp_path / "earlier").resolve(): None}
    curate.check(config_of(general=({"path": "../earlier/samples_kept.jsonl"},)), tmp_path / "c", planned)
    with pytest.raises(ConfigError, match=r"proportions: 'reasoning' has none; stated are \['general'\]"):
        check(config_of(proportions={"general": 1.0}))
    with pytest.raises(ConfigError, match="proportions: there are no samples of 'general'; stated are"):
        check(config_of(proportions={"reasoning": 3.0, "general": 1.0}))
    later = config_of(
        proportions={"reasoning": 3.0, "general": 1.0}, general=({"path": "../earlier/samples_kept.jsonl"},)
    )
    curate.check(later, tmp_path / "c", planned)
    with pytest.raises(DataError, match="source: all 6 questions overlap"):
        check(config_of(decontaminate={"sources": (SOURCE,)}))
    with pytest.raises(DataError, match=r"decontaminate.sources\[0\]: none.jsonl: No such file"):
        check(config_of(decontaminate={"sources": ({"kind": "jsonl", "path": "none.jsonl"},)}))
    with pytest.raises(ConfigError, match=r"rewrite.model: .*cannot be asked"):
        check(config_of(rewrite=MODEL_WRITER | {"model": {**MODEL_WRITER["model"], "retries": 0}}))
    with pytest.raises(ConfigError, match=r"general\[0\]: size"):
        check(config_of(general=({"kind": "world", "size": 10**6, "params": {"kinds": {"greeting": 1}}},)))


def test_a_stage_of_which_nothing_is_left_fails_and_says_why(scripted: None, tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"no sample is left of 48: .*data_card.md says what dropped them"):
        curated(tmp_path / "empty", filters={"paragraph": 1})
    assert not (tmp_path / "empty" / "summary.json").exists()
    card = json.loads((tmp_path / "empty" / "data_card.json").read_text())
    assert card["by_domain"]["total"]["dropped"]["paragraph"] == 18
    with pytest.raises(DataError, match=r"proportions: .* 'general'"):
        curated(tmp_path / "none", proportions={"reasoning": 3, "general": 1})


def test_a_random_policy_through_the_sampler(
    model: ModelConfig,
    tokenizer: SentencePieceTokenizer,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Without filters all that it says is kept, apart from what is blank or said twice; with them nothing."""
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    monkeypatch.setattr(curate, "make_mesh", lambda config: mesh)
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)  # compiling is nearly all of the time here
    request.addfinalizer(lambda: jax.config.update("jax_disable_most_optimizations", before))
    folder = tmp_path / "policy"
    folder.mkdir()
    write_description(folder, model, tokenizer)
    save_policy(folder, init_params(model, jax.random.key(0), mesh), 0)
    off = dict.fromkeys(("wrong", "ungraded", "truncated", "format", "code_block"), False)
    off |= dict.fromkeys(("mixed_language", "wrong_language", "repetition", "paragraph"))
    changes: dict[str, Any] = {
        "init": {"path": "../policy"},
        "samples": 4,
        "per_prompt": 4,
        "decoding": {"max_new_tokens": 6, "chunk": 6, "batch_size": 24},
        "filters": off,
        "general": ({"kind": "world", "size": 8},),
        "proportions": {"reasoning": 3, "general": 1},
    }
    curate.check(config_of(**changes), tmp_path / "curated", {})
    card = curated(tmp_path / "curated", **changes)
    total = card["by_domain"]["total"]
    assert (total["sampled"], total["read"]) == (24, 8)
    taken = {group: row["taken"] for group, row in card["proportions"].items()}
    assert taken["reasoning"] // 3 == taken["general"]
    assert sum(taken.values()) == total["kept"]
    summary = json.loads((tmp_path / "curated" / "summary.json").read_text())
    assert 24 <= summary["cost"]["tokens_sampled"] <= 24 * 6
    assert summary["cost"]["flops"] > 2 * summary["cost"]["tokens_sampled"] * model.width * model.vocab_size
    assert len(read_samples(tmp_path / "curated" / "samples_kept.jsonl")) == total["kept"] == summary["kept"]
    with pytest.raises(DataError, match="no sample is left"):
        curated(tmp_path / "curated", **changes | {"filters": {}, "general": (), "proportions": {}})
