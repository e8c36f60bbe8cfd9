"""The runs of an experiment's folder: where each is, and what it has still to do."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib

from r1jax import train
from r1jax.evaluation.experiments import Experiment, load_experiment
from r1jax.settings import ConfigError, to_plain
from r1jax.stages import pipeline
from r1jax.workdir import differing_fields, write_atomically

OWNER = "experiment.txt"  # in the folder of an experiment's runs: its name


@dataclasses.dataclass(frozen=True)
class Run:
    """One arm of one seed."""

    experiment: pathlib.Path  # its folder
    arm: str
    seed: int
    workdir: pathlib.Path

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.arm}, seed {self.seed}"

    @property
    def argument(self) -> str:
        """What stands behind the colon of --config."""
        return f"{self.arm},seed={self.seed}"


def experiment_arguments(description: str) -> argparse.ArgumentParser:
    """The arguments that all tools on experiments have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=pathlib.Path, help="folder with experiment.py")
    parser.add_argument("--out", type=pathlib.Path, help="folder of the runs; default: runs/NAME")
    return parser


def out_folder(arguments: argparse.Namespace) -> pathlib.Path:
    """Where the runs are.

    Raises:
        ConfigError: it is the folder of one run or of another experiment, whose report would be written over.
    """
    name = arguments.experiment.resolve().name
    out: pathlib.Path = arguments.out or pathlib.Path("runs") / name
    if (out / "config.json").exists():
        raise ConfigError(f"--out: {out} is the folder of a single run, whose report would be written over")
    owner = out / OWNER
    if owner.exists() and (there := owner.read_text(encoding="utf-8").strip()) != name:
        raise ConfigError(
            f"--out: {out} holds the runs of the experiment {there!r}, whose report would be written over"
        )
    return out


def claim(out: pathlib.Path, arguments: argparse.Namespace) -> None:
    """Makes the folder and writes down whose it is, before anything is written into it."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / OWNER, f"{arguments.experiment.resolve().name}\n")


def all_runs(folder: pathlib.Path, experiment: Experiment, out: pathlib.Path) -> list[Run]:
    """Every run, seed by seed."""
    return [
        Run(folder, arm, seed, experiment.folder(out, arm, seed))
        for seed in experiment.seeds
        for arm in experiment.own_runs
    ]


def load(arguments: argparse.Namespace) -> Experiment:
    """The experiment of the command line."""
    return load_experiment(arguments.experiment)


def is_pipeline(experiment: Experiment, run: Run) -> bool:
    """Whether a run has steps."""
    return train.read_config(experiment.get_config(run.argument))[0] == "pipeline"


def still_to_do(experiment: Experiment, run: Run) -> dict[str, str]:
    """The steps of a run that are not done, and how far each is; of a single stage the step is called '.'."""
    stage, config = train.read_config(experiment.get_config(run.argument))
    if stage == "pipeline":
        return pipeline.unfinished(config, run.workdir)
    path = run.workdir / "config.json"
    if not path.is_file():
        return {".": "not begun"}
    differing = differing_fields(json.loads(path.read_text(encoding="utf-8")), {"stage": stage, **to_plain(config)})
    if differing:
        return {".": f"made by another config: {'; '.join(differing)}"}
    return {} if (run.workdir / "summary.json").is_file() else {".": "begun, not done"}


def chosen(runs: list[Run], arms: str, seeds: str) -> list[Run]:
    """The runs of the arms and seeds that are named, comma-separated; empty: all. ConfigError for a name of none."""
    for wanted, known, option in (
        (arms, {run.arm for run in runs}, "--arms"),
        (seeds, {str(run.seed) for run in runs}, "--seeds"),
    ):
        wrong = [name for name in wanted.split(",") if wanted and name not in known]
        if wrong:
            raise ConfigError(f"{option}: {wrong[0]!r} is not one of {', '.join(sorted(known))}")
    return [
        run
        for run in runs
        if (not arms or run.arm in arms.split(",")) and (not seeds or str(run.seed) in seeds.split(","))
    ]
