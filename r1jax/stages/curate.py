"""Curation: k samples of every question from a policy, filtered, n of each question kept, joined with other data.

Two phases of the R1 recipe are configurations of it. The **cold start** takes R1-Zero's samples at temperature 1 that
are right and readable and has them rewritten to reasoning and summary (`rewrite`). **Rejection sampling** takes right
samples of the policy that reasoning RL has trained, and joins them with general data (`general`, `proportions`).

The steps, each of which counts what it drops: questions that overlap with evaluation sets are not asked; samples pass
the filters in their order (`rewards.filters`); those that overlap with evaluation sets go, then repetitions of an
answer; n of each question stay; what is rewritten passes the filters again; then all is brought into proportion.

Answers and rewritten samples are stored part by part, so a stopped stage goes on where it was. It leaves
`samples_kept.jsonl` (`data.samples`), `data_card.json` and `data_card.md`, `dropped_samples.jsonl` with some of what
each step dropped, and `summary.json`, whose cost is that of the policy's sampling, without the writer's or a judge's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from r1jax.data import data_card
from r1jax.data.cold_start import PHRASES
from r1jax.data.decontamination import EvaluationQuestions, Overlap
from r1jax.data.errors import DataError
from r1jax.data.samples import Sample, read_samples, write_samples
from r1jax.data.selection import choose, largest_mixture
from r1jax.data.tokenizer import Tokenizer
from r1jax.data.world_samples import write_samples_of
from r1jax.evaluation.evaluator import answer_examples
from r1jax.metrics import MetricWriter, Progress
from r1jax.model.config import ModelConfig
from r1jax.model.flops import forward_flops, sampling_flops
from r1jax.rewards.filters import FILTERS, Candidate, first_failure
from r1jax.rewards.languages.language import check_language
from r1jax.rollout import Completer, GradedRollout, measure
from r1jax.settings import ConfigError, to_plain
from r1jax.sharding import make_mesh
from r1jax.stages.checks import Planned, check_asking, is_planned, known_policy, mesh_sizes, source_of
from r1jax.stages.curate_config import GENERAL, CurateConfig, GeneralData
from r1jax.stages.entries import (
    CONTAMINATED,
    Entry,
    read_entry,
    selected,
    some_dropped,
    within_questions,
    without_duplicates,
    without_overlap,
)
from r1jax.stages.graders import check_comparable, check_judge, check_rewards, open_shared_chat_model, stage_grading
from r1jax.stages.interruption import Interruption
from r1jax.stages.policy import Policy, describe_source, load_policy
from r1jax.stages.rewriting import Rewriter
from r1jax.types import Example
from r1jax.workdir import write_atomically

REWRITE = "rewrite: "  # before the name of a filter that a rewritten sample does not pass
SHOWN_OVERLAPS = 10  # in the data card


def check(config: CurateConfig, workdir: pathlib.Path, planned: Planned) -> None:
    """Everything that can be known to be wrong before the stage starts."""
    model, tokenizer = known_policy(config.init, workdir, planned)
    asked, _ = _questions(config, _known(config))
    _check_fit(config, make_mesh(mesh_sizes(config.mesh, model)), model, tokenizer, asked)
    check_rewards(config.rewards, {"source": asked}, workdir, planned)
    if config.rewrite is not None and config.rewrite.model is not None:
        try:
            check_judge(config.rewrite.model, workdir, planned)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"rewrite.model: {str(error).removeprefix('init.')}") from error
    general = [
        _general_samples(data, workdir, f"general[{index}]")
        for index, data in enumerate(config.general)
        if data.kind == "world" or not is_planned(workdir / data.path, planned)
    ]
    if config.proportions:
        _check_proportions(config, asked, general)


def _check_proportions(config: CurateConfig, asked: Sequence[Example], general: Sequence[Sequence[Sample]]) -> None:
    """That each group of samples has a proportion and the other way round: the mixture is made when all is sampled.

    general: what is to be joined, without the files that an earlier stage has yet to write.
    """
    stated = set(config.proportions)
    groups = {e.domain if e.domain in stated else data_card.REASONING for e in asked}
    groups |= {s.domain if s.domain in stated else GENERAL for samples in general for s in samples}
    without, empty = sorted(groups - stated), sorted(stated - groups)
    if without or (empty and len(general) == len(config.general)):
        told = f"{without[0]!r} has none" if without else f"there are no samples of {empty[0]!r}"
        raise ConfigError(f"proportions: {told}; stated are {sorted(stated)}, and there will be {sorted(groups)}")


def _check_fit(
    config: CurateConfig, mesh: Mesh, model: ModelConfig, tokenizer: Tokenizer | None, asked: Sequence[Example]
) -> None:
    if config.filters.wrong:
        check_comparable("source", config.rewards, asked)
    check_asking(config.prompt, config.decoding, mesh, model, tokenizer, {"source": asked}, config.samples)
    for language in sorted({example.language for example in asked}):
        if config.filters.wrong_language is not None:
            try:
                check_language(language)
            except ValueError as error:
                raise ConfigError(f"filters.wrong_language: {error}") from error
        if config.rewrite is not None and config.rewrite.kind == "rule" and language not in PHRASES:
            raise ConfigError(f"rewrite.kind: the rule has no summaries in {language!r}, only in {', '.join(PHRASES)}")


def _known(config: CurateConfig) -> EvaluationQuestions:
    """The evaluation sets, each under the name of its field and its source."""
    sets = {}
    for index, source in enumerate(config.decontaminate.sources):
        field = f"decontaminate.sources[{index}]"
        sets[f"{index}:{source.task or source.path or source.kind} {source.split}".strip()] = source_of(field, source)
    return EvaluationQuestions(sets, config.decontaminate.n)


def _questions(config: CurateConfig, known: EvaluationQuestions) -> tuple[list[Example], list[tuple[Example, Overlap]]]:
    """The examples that are asked, and those that overlap with an evaluation set. DataError if none is left."""
    asked, refused = [], []
    for example in source_of("source", config.source):
        overlap = known.overlap_of_question(example)
        if overlap is None:
            asked.append(example)
        else:
            refused.append((example, overlap))
    if not asked:
        raise DataError(f"source: all {len(refused)} questions overlap with evaluation sets (decontaminate.sources)")
    return asked, refused


def run(config: CurateConfig, workdir: pathlib.Path) -> None:
    """Curates; what is left behind stands at the head of this file. DataError if no sample is kept."""
    known = _known(config)
    asked, refused = _questions(config, known)
    model, tokenizer = describe_source(config.init, workdir)
    mesh = make_mesh(mesh_sizes(config.mesh, model))
    _check_fit(config, mesh, model, tokenizer, asked)
    began = time.monotonic()
    with Interruption() as interruption:
        parts = _sample(config, workdir, mesh, asked, interruption)
        entries = _sift(_entries(config, parts, workdir.name), config, known)
        if config.rewrite is not None:
            entries = _rewrite(config, workdir, mesh, Policy(model, None, tokenizer), entries, interruption)
    general = [entry for i in range(len(config.general)) for entry in _read_general(config, i, workdir, tokenizer)]
    general = without_overlap(general, known, config.decontaminate.completions)
    entries += within_questions(general, without_duplicates)
    entries, proportions = _mix(config, entries)
    card = _card(config, entries, refused, known, proportions)
    _write(config, workdir, entries, card)
    kept = card["by_domain"]["total"]["kept"]
    if not kept:
        raise DataError(f"no sample is left of {len(entries)}: {workdir / 'data_card.md'} says what dropped them")
    with MetricWriter(workdir, tensorboard=False) as writer:
        writer.rewind(None)
        for step, part in enumerate(parts):
            writer.write(step, measure(part))
    seconds = time.monotonic() - began
    summary = {"stage": "curate", **_figures(card), "cost": _cost(model, parts, config.samples, seconds)}
    write_atomically(workdir / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    interruption.pass_on()


# The steps ------------------------------------------------------------------------------------------------------------


def _sample(
    config: CurateConfig, workdir: pathlib.Path, mesh: Mesh, asked: Sequence[Example], interruption: Interruption
) -> list[GradedRollout]:
    """Graded answers to all questions. The policy's parameters are not kept: what comes next may need the memory."""
    policy = load_policy(config.init, workdir, mesh)
    completer = Completer(
        policy.model, mesh, policy.tokenizer, config.prompt, config.decoding, group_size=config.samples
    )
    per_batch = max(1, config.decoding.batch_size // config.samples)
    key = jax.random.key(config.seed)
    parts: list[GradedRollout] = []
    with (
        Progress("sample", len(asked)) as progress,
        stage_grading(config.rewards, workdir, mesh, policy, config.decoding) as grading,
    ):
        for start in range(0, len(asked), per_batch):
            path = workdir / "rollouts" / f"{start:06d}.npz"
            batch, own_key = asked[start : start + per_batch], jax.random.fold_in(key, start)
            parts.append(answer_examples(completer, policy.params, batch, config.samples, own_key, grading, path))
            done = start + len(batch)
            progress.update(done, **{name: measure(parts[-1])[name] for name in ("reward", "format")})
            if done < len(asked) and interruption.requested():
                interruption.stop(f"question {done} of {len(asked)}")
    return parts


def _entries(config: CurateConfig, parts: Sequence[GradedRollout], source: str) -> list[Entry]:
    """One for each sample, in the order of the questions."""
    entries = []
    for part in parts:
        for i, text in enumerate(part.texts):
            example, length = part.example_of(i), int(part.rollout.response_lengths[i])
            tokens = part.rollout.response_tokens[i, :length].tolist()
            finished = bool(part.rollout.finished[i])
            pattern = config.rewards.mix(example.domain).pattern
            candidate = Candidate(example, text, tokens, finished, part.scores[i], pattern)
            name = f"{example.id}/{i % part.samples}"
            entries.append(Entry(name, example, text, length, candidate, pattern, source=source))
    return entries


def _sift(entries: Sequence[Entry], config: CurateConfig, known: EvaluationQuestions) -> list[Entry]:
    """The same, with those dropped that do not pass, repeat another, or are more than `per_prompt`."""
    sifted = []
    for entry in entries:
        assert entry.candidate is not None
        sifted.append(dataclasses.replace(entry, drop=first_failure(entry.candidate, config.filters)))
    sifted = without_overlap(sifted, known, config.decontaminate.completions)
    sifted = within_questions(sifted, partial(without_duplicates, near=config.near_duplicates))
    return within_questions(sifted, partial(selected, count=config.per_prompt, rule=config.selection, seed=config.seed))


@contextlib.contextmanager
def _rewriter(config: CurateConfig, workdir: pathlib.Path, mesh: Mesh, policy: Policy) -> Iterator[Rewriter]:
    """Who rewrites, with graders of what is written."""
    assert config.rewrite is not None
    domains = {name: {k: v for k, v in own.items() if k != "pattern"} for name, own in config.rewards.domains.items()}
    rewards = dataclasses.replace(  # all that is rewritten has one form
        config.rewards, pattern=config.rewrite.pattern, domains=domains, on_device=False
    )
    with contextlib.ExitStack() as stack:
        model = None
        if config.rewrite.model is not None:
            model = stack.enter_context(open_shared_chat_model(config.rewrite.model, workdir, mesh))
        grading = stack.enter_context(stage_grading(rewards, workdir, mesh, policy, config.decoding))
        yield Rewriter(config.rewrite, config.filters, workdir / "rewritten", model, grading, policy.tokenizer)


def _rewrite(
    config: CurateConfig,
    workdir: pathlib.Path,
    mesh: Mesh,
    policy: Policy,
    entries: Sequence[Entry],
    interruption: Interruption,
) -> list[Entry]:
    """The same, with those that are kept rewritten, or dropped where that failed."""
    assert config.rewrite is not None
    chosen = [index for index, entry in enumerate(entries) if entry.kept]
    rewritten, size = list(entries), config.rewrite.batch_size
    with Progress("rewrite", len(chosen)) as progress, _rewriter(config, workdir, mesh, policy) as rewriter:
        for start in range(0, len(chosen), size):
            batch = chosen[start : start + size]
            pairs = [(entry.id, entry.candidate) for entry in (entries[i] for i in batch) if entry.candidate]
            for index, new in zip(batch, rewriter.rewrite(pairs, start), strict=True):
                tokens = len(policy.tokenizer.encode(new.text)) + 1
                entry = dataclasses.replace(
                    entries[index], completion=new.text, tokens=tokens, pattern=config.rewrite.pattern
                )
                rewritten[index] = entry.dropped(REWRITE + new.drop.filter, new.drop.reason) if new.drop else entry
            progress.update(start + len(batch))
            if start + len(batch) < len(chosen) and interruption.requested():
                interruption.stop(f"rewritten sample {start + len(batch)} of {len(chosen)}")
    return within_questions(rewritten, partial(without_duplicates, prefix=REWRITE))


def _general_samples(general: GeneralData, workdir: pathlib.Path, field: str) -> list[Sample]:
    """The samples of one entry of `general`. DataError or ConfigError naming the field."""
    try:
        if general.kind == "world":
            return write_samples_of(general.size, general.seed, general.quality, general.split or "rl", general.params)
        return read_samples(workdir / general.path)[: general.size or None]
    except DataError as error:
        raise DataError(f"{field}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{field}: {error}") from error


def _read_general(config: CurateConfig, index: int, workdir: pathlib.Path, tokenizer: Tokenizer) -> list[Entry]:
    """What is joined, under names that no other sample has."""
    general = config.general[index]
    samples = _general_samples(general, workdir, f"general[{index}]")
    source = general.path or general.kind
    return [read_entry(sample, f"general/{index}/{sample.id}", source, tokenizer) for sample in samples]


def _mix(config: CurateConfig, entries: Sequence[Entry]) -> tuple[list[Entry], dict[str, Any]]:
    """The same in the proportions of the config, with those dropped that are too many; and what was taken and left."""
    if not config.proportions:
        return list(entries), {}
    groups: dict[str, list[int]] = {group: [] for group in config.proportions}
    for index, entry in enumerate(entries):
        if entry.kept:
            groups.setdefault(_group(config, entry), []).append(index)
    there = {group: len(indices) for group, indices in groups.items()}
    try:
        taken = largest_mixture(there, config.proportions)
    except ValueError as error:
        raise DataError(str(error)) from error
    mixed, weights = list(entries), sum(config.proportions.values())
    for group, indices in groups.items():
        lengths = [entries[i].tokens for i in indices]
        chosen = {indices[i] for i in choose(lengths, taken[group], "random", config.seed, "mixture", group)}
        for index in set(indices) - chosen:
            mixed[index] = entries[index].dropped("not_taken", f"more than {taken[group]} of {group}")
    return mixed, {
        group: {
            "share": config.proportions[group] / weights,
            "there": there[group],
            "taken": taken[group],
            "left": there[group] - taken[group],
        }
        for group in groups
    }


def _group(config: CurateConfig, entry: Entry) -> str:
    """What an entry counts as in the proportions."""
    if entry.example.domain in config.proportions:
        return entry.example.domain
    return GENERAL if entry.candidate is None else data_card.REASONING


# What is left behind --------------------------------------------------------------------------------------------------


def _fates(entries: Sequence[Entry]) -> list[str]:
    """All that a sample can be dropped for, in the order of the steps; of rewritten ones what occurred."""
    found = sorted({entry.drop.filter for entry in entries if entry.drop and entry.drop.filter.startswith(REWRITE)})
    return [*FILTERS, CONTAMINATED, "duplicate", "near_duplicate", "not_selected", *found, "not_taken"]


def _card(
    config: CurateConfig,
    entries: Sequence[Entry],
    refused: Sequence[tuple[Example, Overlap]],
    known: EvaluationQuestions,
    proportions: dict[str, Any],
) -> dict[str, Any]:
    looked, fates = [entry.looked() for entry in entries], _fates(entries)
    overlapping = [entry for entry in entries if entry.drop is not None and entry.drop.filter == CONTAMINATED]
    sampled = [entry for entry in entries if entry.candidate is not None]
    asked = len({entry.example.id for entry in sampled})
    shown = [("question", example.question, str(overlap)) for example, overlap in refused[:SHOWN_OVERLAPS]]
    shown += [
        ("sample" if entry.candidate else "general data", entry.completion, entry.drop.reason)
        for entry in overlapping[:SHOWN_OVERLAPS]
        if entry.drop is not None
    ]
    return {
        "questions": {"source": asked + len(refused), "contaminated": len(refused), "asked": asked},
        "samples": config.samples,
        "per_prompt": config.per_prompt,
        "selection": config.selection,
        "temperature": config.decoding.temperature,
        "top_p": config.decoding.top_p,
        "seed": config.seed,
        "filters": to_plain(config.filters) | {"near_duplicates": config.near_duplicates},
        "rewritten_filters": to_plain(config.rewrite.filters) if config.rewrite and config.rewrite.filters else {},
        "rewriting": "" if config.rewrite is None else config.rewrite.told(),
        "by_domain": data_card.count(looked, data_card.domain_of, fates),
        "by_task": data_card.count(looked, data_card.task_of, fates),
        "proportions": proportions,
        "decontamination": {
            "n": known.n,
            "completions": config.decontaminate.completions,
            "sets": {name: {"questions": n, "short": known.short[name]} for name, n in known.sizes.items()},
            "overlaps": {
                "questions": len(refused),
                "samples": sum(entry.candidate is not None for entry in overlapping),
                "general data": sum(entry.candidate is None for entry in overlapping),
            },
            "examples": [{"what": what, "text": text, "overlap": overlap} for what, text, overlap in shown],
        },
    }


def _write(config: CurateConfig, workdir: pathlib.Path, entries: Sequence[Entry], card: dict[str, Any]) -> None:
    write_samples(workdir / "samples_kept.jsonl", [entry.sample() for entry in entries if entry.kept])
    rows = some_dropped(entries, _fates(entries), config.show_dropped, config.seed)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(workdir / "dropped_samples.jsonl", lines)
    write_atomically(workdir / "data_card.json", json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    write_atomically(workdir / "data_card.md", data_card.markdown(f"Data card of {workdir.name}", card))


def _figures(card: dict[str, Any]) -> dict[str, Any]:
    """What the summary tells of the card."""
    total = card["by_domain"]["total"]
    names = ("sampled", "read", "kept", "questions_kept", "dropped", "mean_tokens", "languages", "language_consistency")
    return {"questions": card["questions"], **{name: total[name] for name in names}}


def _cost(model: ModelConfig, parts: Sequence[GradedRollout], samples: int, seconds: float) -> dict[str, float]:
    """Tokens and operations of the policy's sampling; the answers to a question share the pass over its prompt."""
    responses = np.concatenate([part.rollout.response_lengths for part in parts])
    prompts = np.concatenate([part.rollout.prompt_lengths[::samples] for part in parts])
    tokens, read = int(responses.sum()), int(prompts.sum())
    flops = sampling_flops(model, tokens, float(responses.mean()), float(prompts.mean()))
    flops += forward_flops(model, read, float(prompts.mean()))
    return {"tokens_trained": 0, "tokens_sampled": tokens, "seconds": seconds, "flops": flops}
