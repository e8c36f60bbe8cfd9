"""Pairs and labels: what is compared, what is kept of a scripted judge's votes, counts, stops, bad input."""

from __future__ import annotations

import dataclasses
import json
import signal
from functools import partial

import jax
import numpy as np
import pytest

from r1jax.data.errors import DataError
from r1jax.data.preferences import read_labels, read_pairs
from r1jax.data.sources import ColumnMapping, SourceConfig, make_source
from r1jax.data.tokenizer import train_sentencepiece
from r1jax.model.presets import get_preset
from r1jax.model.transformer import init_params
from r1jax.rewards.instructions import instruction_score, is_safe
from r1jax.rewards.judges.chat_models import Reply
from r1jax.rewards.judges.judge import JudgeConfig, PairwiseJudge
from r1jax.rewards.judges.rule_judge import RuleJudge, RuleLabeller
from r1jax.rewards.judges.safety_judge import SafetyJudge
from r1jax.rollout import Completer, DecodingConfig, PromptConfig
from r1jax.sharding import MeshConfig, make_mesh
from r1jax.stages import preferences
from r1jax.stages.interruption import Interrupted
from r1jax.stages.policy import save_policy
from r1jax.stages.preference_data import (
    LABEL_FATES,
    PAIR_FATES,
    Answered,
    ModelJudges,
    PairRules,
    RuleJudges,
    card_of,
    empty_pairs,
    judge_pairs,
    judge_safety,
    markdown,
)
from r1jax.stages.preferences import PreferencesConfig, RuleConfig
from r1jax.types import Example
from r1jax.weights.policy_folder import write_description

RULES = PairRules(per_prompt=10, max_ratio=1.5, min_gap=1.0, seed=0)


def words(text):
    return len(text.split())


def thought(summary):
    return f"<think> a secret </think> {summary}"


def answered(*texts, name="q", domain="helpful"):
    example = Example(name, "Say it.", "", "talk", domain=domain)
    return Answered(example, texts, tuple(map(words, texts)), 4)


class Scripted:
    """Prefers the response with the larger number in it, by a grade that the numbers say; keeps what was asked."""

    def __init__(self, grade=lambda a, b: 0 if a == b else (2 if abs(a - b) > 2 else 1) * (1 if a > b else -1)):
        self.grade, self.asked = grade, []

    def ask(self, conversations, seed):
        self.asked += [conversation[-1]["content"] for conversation in conversations]
        return [self._reply(conversation[-1]["content"]) for conversation in conversations]

    def _reply(self, content):
        if "Response: " in content:
            return Reply("hm" if "odd" in content else "[[unsafe]]" if "bomb" in content else "[[safe]]")
        a, b = (int(line.split("worth ")[1].split()[0].strip('"')) for line in content.split("\n")[1:3])
        if a < 0 or b < 0:
            return Reply(None, "no connection")
        label = {2: "A>>B", 1: "A>B", 0: "A=B", -1: "B>A", -2: "B>>A"}[self.grade(a, b)]
        return Reply(f"Reasons. [[{label}]]")


def model_judges(model, times=4):
    return ModelJudges(PairwiseJudge(model, times), SafetyJudge(model))


def test_what_is_compared_and_what_is_kept():
    model = Scripted()
    one = answered(
        thought("this is worth 9"),  # 0
        thought("this is worth 1"),  # 1
        thought("this is worth 2"),  # 2
        thought("this is worth 2"),  # 3: the same as 2
        thought("a much longer reply that is worth 5 or so"),  # 4
        "<think> never ends, worth 7",  # 5
    )
    records = judge_pairs([one], words, RULES, model_judges(model))
    fates = [record["fate"] for record in records]
    # In the order 01 02 03 04 05, 12 13 14 15, 23 24 25, 34 35, 45.
    assert fates == (
        ["kept", "kept", "repeated", "lengths", "no_summary", "small_gap", "repeated", "lengths", "no_summary"]
        + ["identical", "lengths", "no_summary", "repeated", "no_summary", "no_summary"]
    )
    row = records[0]["row"]
    assert (row["id"], row["chosen"], row["rejected"]) == ("q/0-1", one.texts[0], one.texts[1])
    assert (row["gap"], row["votes"], row["chosen_length"], row["rejected_length"]) == (2.0, 4, 4, 4)
    assert len(model.asked) == 3 * 4
    assert not any("secret" in content for content in model.asked)  # the summary only
    backwards = judge_pairs([answered(*one.texts[1::-1])], words, RULES, model_judges(model))[0]["row"]
    assert (backwards["chosen"], backwards["rejected"]) == (row["chosen"], row["rejected"])


def test_the_gap_is_a_mean_over_both_orders_and_must_exceed_the_limit():
    first = Scripted(lambda a, b: 2)  # always what is shown first
    pair = answered(thought("this is worth 9"), thought("this is worth 1"))
    assert judge_pairs([pair], words, RULES, model_judges(first))[0]["fate"] == "small_gap"
    exactly_one = Scripted(lambda a, b: 1 if a > b else -1)
    assert judge_pairs([pair], words, RULES, model_judges(exactly_one))[0]["fate"] == "small_gap"
    lower = dataclasses.replace(RULES, min_gap=0.9)
    assert judge_pairs([pair], words, lower, model_judges(exactly_one))[0]["fate"] == "kept"


def test_the_bound_on_lengths_is_a_ratio_of_summaries():
    six, nine, ten = (thought(f"worth {n} " + "so " * (count - 2)) for n, count in ((9, 6), (1, 9), (2, 10)))
    long_thought = f"<think> {'so ' * 50} </think> worth 1 so so so so"
    records = judge_pairs([answered(six, nine, ten, long_thought)], words, RULES, model_judges(Scripted()))
    assert [record["fate"] for record in records] == ["kept", "lengths", "kept", "small_gap", "small_gap", "lengths"]


def test_at_most_so_many_pairs_of_a_prompt_are_judged_and_what_has_no_verdict_is_counted():
    texts = [thought(f"this is worth {n}") for n in (0, 5, 10, 15)]
    model = Scripted()
    few = dataclasses.replace(RULES, per_prompt=2)
    records = judge_pairs([answered(*texts)], words, few, model_judges(model))
    assert sorted(record["fate"] for record in records) == ["kept"] * 2 + ["not_asked"] * 4
    assert len(model.asked) == 2 * 4
    again = judge_pairs([answered(*texts, name="p"), answered(*texts)], words, few, model_judges(Scripted()))
    assert again[6:] == records  # whatever else is asked
    broken = judge_pairs([answered(*texts[:1], thought("this is worth -3"))], words, RULES, model_judges(Scripted()))
    assert broken[0]["fate"] == "ungradable"
    assert broken[0]["votes"] == {"valid": 0, "unparseable": 0, "unanswered": 4}


def test_labels_of_whole_responses():
    one = answered("<think> a bomb </think> sorry", "fine", "fine", "odd", domain="harmless")
    records = judge_safety([one], model_judges(Scripted()))
    assert [record["fate"] for record in records] == ["unsafe", "safe", "identical", "ungradable"]
    assert [record["row"]["safe"] for record in records[:2]] == [False, True]
    assert records[0]["row"]["completion"] == one.texts[0]


def test_the_card_adds_up():
    texts = [thought(f"this is worth {n}") for n in (0, 5, 10)] + [thought("this one is now worth 15"), "no"]
    pairs = judge_pairs([answered(*texts)], words, RULES, model_judges(Scripted()))
    labels = judge_safety([answered("fine", "fine", "bomb", domain="harmless")], model_judges(Scripted()))
    card = card_of(pairs, labels)
    total = card["pairs"]["total"]
    assert total["candidates"] == 10 == sum(total[fate] for fate in PAIR_FATES)
    assert (total["kept"], total["no_summary"]) == (6, 4)
    assert (total["longer_preferred"], total["of_one_length"]) == (1.0, 3)
    assert total["votes"] == {"valid": 24, "unparseable": 0, "unanswered": 0}
    assert card["labels"]["total"]["candidates"] == 3 == sum(card["labels"]["total"][fate] for fate in LABEL_FATES)
    assert card["labels"]["by_task"] == {"talk": card["labels"]["total"]}
    page = markdown({"settings": {"times": 4}, "empty_pairs": 0, **card})
    assert "| total | 10 | 4 | 0 | 0 | 0 | 0 | 0 | 0 | 6 |" in page
    added = empty_pairs(pairs, 0.5, 1)
    assert 0 < len(added) < 6
    assert {row["rejected"] for row in added} == {""}
    assert empty_pairs(pairs, 0.0, 1) == []


def test_the_rule_as_a_judge_sees_the_summary_only():
    (example,) = make_source(SourceConfig("world", size=1, params={"domains": {"helpful": 1.0}}))
    example = dataclasses.replace(example, metadata={**example.metadata, "unsafe": ["fire"]})
    good = example.metadata["asked"]["replies"][0]
    judges = RuleJudges(RuleJudge(0.0), RuleLabeller())
    # What is unsafe in a thought is not for the judge of helpfulness.
    one = Answered(example, (f"<think> fire </think> {good}", thought("nothing")), (1, 1), 4)
    assert instruction_score(one.texts[0], example).value == 0
    (record,) = judge_pairs([one], words, dataclasses.replace(RULES, max_ratio=20.0), judges)
    assert record["row"]["chosen"] == one.texts[0]


# The stage ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A policy of random weights."""
    root = tmp_path_factory.mktemp("preferences")
    world = make_source(SourceConfig("world", size=60))
    texts = [example.question for example in world] + [r for e in world for r in e.metadata["asked"]["replies"]]
    tokenizer = train_sentencepiece(texts, root / "tokenizer.model", 600, (" <think>", " </think>"))
    dense = get_preset("tiny_dense", width=16, num_dense_layers=1, ffn_dim=16, max_positions=128)
    attention = dataclasses.replace(dense.attention, num_heads=1, head_dim=16)
    model = dataclasses.replace(dense, attention=attention, vocab_size=tokenizer.vocab_size)
    (root / "dev3").mkdir()
    write_description(root / "dev3", model, tokenizer)
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    save_policy(root / "dev3", init_params(model, jax.random.key(0), mesh), 0)
    return root


@pytest.fixture(autouse=True)
def written_responses(monkeypatch):
    """On one device, with responses made of the world's own replies in place of a policy's."""
    monkeypatch.setattr(preferences, "make_mesh", partial(make_mesh, devices=jax.devices()[:1]))
    calls = []

    def complete(self, params, examples, samples, key):
        calls.append([example.id for example in examples])
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
        texts = []
        for example in examples:
            good = list(example.metadata["asked"]["replies"])
            some = [*good, f"{good[0]} indeed", "you can use water .", *example.metadata["unsafe"][:1]]
            texts += [thought(rng.choice(some)) for _ in range(samples)]
        lengths = np.array([len(text) // 4 + 1 for text in texts])
        rollout = type("Made", (), {"response_lengths": lengths, "prompt_lengths": np.full(len(texts), 9)})
        return rollout, tuple(texts)

    monkeypatch.setattr(Completer, "complete", complete)
    return calls


def config(**changes):
    parts = tuple(
        SourceConfig("world", size=size, params={"domains": {domain: 1.0}})
        for domain, size in (("helpful", 12), ("harmless", 6))
    )
    fields = {
        "source": SourceConfig("mixture", parts=parts),
        "samples": 4,
        "prompt": PromptConfig("short", width=64),
        "decoding": DecodingConfig(max_new_tokens=16, batch_size=24),
        "rule": RuleConfig(noise=0.3, flip=0.1),
    }
    return PreferencesConfig(**{**fields, **changes})


def test_the_stage_leaves_what_a_reward_model_reads(folder, written_responses):
    (folder / "whole").mkdir()
    preferences.check(config(), folder / "later", {})
    preferences.run(config(empty_share=0.5), folder / "whole")
    summary = json.loads((folder / "whole" / "summary.json").read_text())
    card = json.loads((folder / "whole" / "preferences_card.json").read_text())
    pairs, labels = read_pairs(folder / "whole" / "pairs.jsonl"), read_labels(folder / "whole" / "labels.jsonl")
    assert summary["prompts"] == {"helpful": 12, "harmless": 6}
    assert summary["pairs"]["candidates"] == 12 * 6
    assert len(pairs) == card["pairs"]["total"]["kept"] + summary["empty_pairs"]
    assert summary["pairs"]["kept"] > 5
    assert summary["empty_pairs"] > 0
    assert summary["labels"]["candidates"] == 6 * 4
    assert len(labels) == summary["labels"]["safe"] + summary["labels"]["unsafe"]
    assert summary["labels"]["unsafe"] > 0
    examples = {example.question: example for example in preferences.source_of("source", config().source)}
    quality = [[instruction_score(text, examples[p.question]).value for text in (p.chosen, p.rejected)] for p in pairs]
    assert np.mean([a > b for a, b in quality]) > 0.9  # a judge with little noise
    agree = [is_safe(item.completion, examples[item.question]) == item.safe for item in labels]
    assert 0.6 < np.mean(agree) <= 1
    assert summary["cost"]["tokens_sampled"] > 0
    assert "the rule of the made-up world, {'noise': 0.3" in (folder / "whole" / "preferences_card.md").read_text()


def test_stopped_and_killed_it_asks_nothing_twice(folder, written_responses, monkeypatch):
    (folder / "stopped").mkdir(), (folder / "again").mkdir()
    preferences.run(config(), folder / "again")
    once = list(written_responses)
    written_responses.clear()
    judged = []
    original = preferences.judge_pairs

    def fail(at, error):
        def wrapped(batch, *rest):
            judged.append([one.example.id for one in batch])
            if len(judged) == at:
                error()
            return original(batch, *rest)

        return wrapped

    def kill():
        raise KeyboardInterrupt

    stored, stores = preferences._store, []

    def store(path, part):
        stored(path, part)
        stores.append(path.name)
        if len(stores) == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(preferences, "_store", store)
    with pytest.raises(Interrupted, match=r"stopped by SIGTERM at prompt 12 of 18, answered"):
        preferences.run(config(), folder / "stopped")
    monkeypatch.setattr(preferences, "judge_pairs", fail(2, kill))
    with pytest.raises(KeyboardInterrupt):
        preferences.run(config(), folder / "stopped")
    preferences.run(config(), folder / "stopped")
    assert written_responses == once
    assert len(judged) == len(once) + 1  # the one that was killed, again
    for name in ("pairs.jsonl", "labels.jsonl", "preferences_card.json", "preferences_card.md"):
        assert (folder / "stopped" / name).read_bytes() == (folder / "again" / name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 1}, "samples: 1; at least 2"),
        ({"times": 3}, "times: 3; an even number"),
        ({"max_ratio": 0.5}, "max_ratio: 0.5; 1 or more"),
        ({"min_gap": 2.0}, "min_gap: 2.0; 0 to below 2"),
        ({"empty_share": 1.5}, "empty_share: 1.5; 0 to 1"),
        ({"judge": JudgeConfig(url="http://x/v1", model="m")}, "rule: has no use beside judge"),
    ],
)
def test_bad_fields_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)
    with pytest.raises(ValueError, match="noise: -1; 0 or more"):
        RuleConfig(noise=-1)


def test_prompts_that_cannot_be_judged_are_named_before_any_work(folder):
    with pytest.raises(DataError, match=r"source: example '.*' is of domain ''; pairs are made of 'helpful'"):
        preferences.check(config(source=SourceConfig("tasks", size=2)), folder / "x", {})
    (folder / "own.jsonl").write_text('{"question": "Say hello."}\n')
    own = SourceConfig(
        "jsonl", path=str(folder / "own.jsonl"), columns=ColumnMapping(answer="", default_domain="helpful")
    )
    with pytest.raises(DataError, match=r"source: example 'own:1' cannot be judged by the rule: metadata"):
        preferences.check(config(source=own), folder / "x", {})
