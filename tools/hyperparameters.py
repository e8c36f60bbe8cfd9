"""Every hyperparameter of a config, with the paper and section that gives it, or a mark that none does.

    python -m tools.hyperparameters --config=configs/r1.py

A value of the config file that is written `given(value, source)` carries its source (`r1jax.provenance`). What is not
marked so is r1jax's own choice; fields that only say how a run is carried out (logs, checkpoints, the mesh, how many
rows go through at once) are listed apart, with `--run`.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import runpy
from collections.abc import Mapping, Sequence
from typing import Any

import rich.console
import rich.table

from r1jax.provenance import plain, sources
from r1jax.settings import from_config, to_plain
from r1jax.stages.rl_config import RLConfig
from r1jax.train import STAGES
from tools.command_line import run_tool

RUN_FIELDS = frozenset(
    ("mesh", "micro_rows", "batch_size", "chunk", "log_every", "log_samples", "checkpoint_every", "keep", "tensorboard")
    + ("wandb_project", "every", "overrides", "grading_seconds", "grading_workers", "parallel", "on_device", "code")
    + ("evaluation", "path", "kind", "layout", "columns", "task", "params", "split", "few_shot", "row_length")
    + ("shuffle_rewards", "seed")
)
NOT_GIVEN = "not given by the papers"


def read_tree(config: str) -> dict[str, Any]:
    """The tree that a config file builds, sources included. ValueError if the file offers none.

    config: file, and after a colon its argument; the file has `published(arg)` beside `get_config(arg)`.
    """
    path, _, arg = config.partition(":")
    names = runpy.run_path(path)
    if "published" not in names:
        raise ValueError(f"--config={config}: {path} has no function published(arg), which tells where values are from")
    return names["published"](arg)


def table_of(tree: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(step, field, value, source) of every field of every stage, defaults included; source "" where none is given."""
    known = sources(tree)
    fields = plain(tree)
    stage = fields.pop("stage")
    if stage != "pipeline":
        return [(stage, *row) for row in _rows(_typed(stage, fields), known, "")]
    rows = []
    for step in fields["steps"]:
        path = f"steps.{step['name']}.config"
        rows += [(step["name"], *row) for row in _rows(_typed(step["stage"], step["config"]), known, path)]
    return rows


def _typed(stage: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of a stage, defaults included; of RL the whole of its GRPO preset."""
    typed = from_config(STAGES[stage].config, fields)
    resolved = to_plain(typed)
    return resolved | {"grpo": to_plain(typed.grpo_config)} if isinstance(typed, RLConfig) else resolved


def _rows(fields: Mapping[str, Any], known: Mapping[str, str], path: str) -> list[tuple[str, str, str]]:
    return [
        (name, json.dumps(value, ensure_ascii=False), known.get(f"{path}.{name}" if path else name, ""))
        for name, value in _flat(fields)
    ]


def _flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        return [leaf for name, item in value.items() for leaf in _flat(item, f"{path}.{name}" if path else name)]
    return [(path, value)]


def is_of_the_run(field: str) -> bool:
    """Whether a field only says how a run is carried out."""
    return any(part in RUN_FIELDS for part in field.split("."))


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="config file, and after a colon its argument")
    parser.add_argument("--run", action="store_true", help="also the fields that only say how the run is carried out")
    parser.add_argument("--out", type=pathlib.Path, help="write the table as Markdown here")
    arguments = parser.parse_args(argv)
    rows = table_of(read_tree(arguments.config))
    shown = [row for row in rows if arguments.run or row[3] or not is_of_the_run(row[1])]
    table = rich.table.Table("stage", title=arguments.config)
    table.add_column("hyperparameter", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("source", overflow="fold")
    for step, field, value, source in shown:
        table.add_row(step, field, value, source or f"[dim]{NOT_GIVEN}[/dim]")
    console = rich.console.Console()
    console.print(table)
    given = sum(bool(row[3]) for row in shown)
    console.print(f"{len(shown)} hyperparameters: {given} given by the papers, {len(shown) - given} not")
    if arguments.out:
        lines = ["| stage | hyperparameter | value | source |", "|---|---|---|---|"]
        lines += [f"| {step} | {field} | `{value}` | {source or NOT_GIVEN} |" for step, field, value, source in shown]
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_tool(main)
