"""An experiment: one question, arms that differ in a few fields, seeds, and what the paper says.

A folder of `experiments/` holds one in `experiment.py`, as `EXPERIMENT`, with `get_config = EXPERIMENT.get_config`:
`experiment.py:ARM,seed=N` is then a configuration as any other. `tools.sweep` runs all arms and seeds,
`tools.report` compares them.
"""

from __future__ import annotations

import dataclasses
import runpy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from r1jax.evaluation.records import Series, read_json, read_jsonl, series
from r1jax.settings import ConfigError, to_plain

SHARE = "share"  # unit of a figure in [0, 1], shown in percent and points
DIRECTIONS = ("higher", "equal")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One setting that is compared with the others."""

    # Fields that differ: "step.field.field" of a pipeline, "field.field" of a single stage.
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    argument: str = ""  # of the config file, if it is another than the experiment's
    run: str = ""  # another arm, in whose runs this one's steps are: nothing is run for it

    def __post_init__(self) -> None:
        if self.run and (self.fields or self.argument):
            raise ValueError(f"run: {self.run!r}; an arm without runs of its own has no fields and no argument")


@dataclasses.dataclass(frozen=True)
class Metric:
    """One final figure of a run; {arm} in the path stands for the arm's name."""

    label: str
    # Step, then names in its summary.json: "evaluate_rl/pass_at_1"; "./..." where a run is a single stage. Of a list of
    # rows one is named by a field: "budgets/budget=12", "none" standing for null.
    path: str
    unit: str = SHARE

    def __post_init__(self) -> None:
        if len([part for part in self.path.split("/") if part]) < 2:
            raise ValueError(f"path: {self.path!r}; a step and a name in its summary.json, as 'evaluate_rl/pass_at_1'")


@dataclasses.dataclass(frozen=True)
class Curve:
    """One metric of a step's metrics.jsonl."""

    label: str
    step: str  # may hold {arm}; "." where a run is a single stage
    metric: str
    unit: str = SHARE


@dataclasses.dataclass(frozen=True)
class Trend:
    """Metrics over the arms in their order, where these are steps of one quantity."""

    label: str
    quantity: str  # of the arms, with its unit
    lines: Mapping[str, str]  # name in the figure -> label of a metric, all of one unit


@dataclasses.dataclass(frozen=True)
class Claim:
    """What is claimed of two arms, and where."""

    text: str
    source: str  # paper and section
    metric: str  # label of the metric that shows it
    arm: str
    than: str  # the other arm
    direction: str = "higher"  # of `arm` against `than`, or "equal"

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction: {self.direction!r} is not one of {', '.join(DIRECTIONS)}")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is run and what is looked at."""

    title: str
    question: str
    config: Path  # file with get_config
    argument: str  # for it, with {seed}
    arms: Mapping[str, Arm]  # differences are taken from the first
    seeds: tuple[int, ...]
    metrics: tuple[Metric, ...]
    curves: tuple[Curve, ...] = ()
    claims: tuple[Claim, ...] = ()
    trends: tuple[Trend, ...] = ()
    monitored: str = ""  # RL step whose preference rewards are set against rules, run by run; may hold {arm}

    def __post_init__(self) -> None:
        labels = [metric.label for metric in self.metrics]
        if not self.arms or not self.seeds or not self.metrics:
            raise ValueError("arms, seeds and metrics: at least one of each")
        if len(set(labels)) < len(labels) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"metrics and seeds: each once; there are {labels} and {list(self.seeds)}")
        for name, arm in self.arms.items():
            if "{seed}" not in (arm.argument or self.argument):
                raise ValueError(f"argument: arm {name!r} has no {{seed}} in it: all seeds would be the same run")
            if arm.run and (arm.run not in self.arms or self.arms[arm.run].run):
                raise ValueError(f"arms: {name!r} is to be found in {arm.run!r}, which is no arm with runs of its own")
        for claim in self.claims:
            if claim.metric not in labels:
                raise ValueError(f"claims: {claim.metric!r} is not the label of one of the metrics {labels}")
            for name in (claim.arm, claim.than):
                if name not in self.arms:
                    raise ValueError(f"claims: {name!r} is not one of the arms {list(self.arms)}")
        for trend in self.trends:
            shown = list(trend.lines.values())
            units = {metric.unit for metric in self.metrics if metric.label in shown}
            if not set(shown) <= set(labels) or len(units) != 1:
                raise ValueError(
                    f"trends: {trend.label!r}: {shown} must be labels of metrics, all of one unit; there are {labels}"
                )

    def get_config(self, argument: str = "") -> ConfigDict:
        """The configuration of one run; the argument is "ARM,seed=N", seed 0 if nothing is said.

        Raises:
          ConfigError: no such arm, or a field that names no step.
        """
        name, _, seed = argument.partition(",seed=")
        if name not in self.own_runs or not (seed or "0").isdecimal():
            raise ConfigError(
                f"experiment.py:{argument}: unknown argument; allowed: {', '.join(self.own_runs)}, and ',seed=N' "
                "behind it with N = 0, 1, 2, ..."
            )
        arm = self.arms[name]
        wanted = (arm.argument or self.argument).format(seed=int(seed or 0))
        config = with_fields(runpy.run_path(str(self.config))["get_config"](wanted), arm.fields)
        if "steps" in config:
            config["title"] = f"{self.title}: {name}, seed {int(seed or 0)}"
            config.setdefault("reuse", ())  # a sweep gives it on the command line
        return ConfigDict(_with_tuples(config), convert_dict=True)

    @property
    def own_runs(self) -> list[str]:
        """The arms that something is run for."""
        return [name for name, arm in self.arms.items() if not arm.run]

    def folder(self, out: Path, arm: str, seed: int) -> Path:
        """The work directory of the run that an arm's figures stand in."""
        return out / (self.arms[arm].run or arm) / f"seed{seed}"


def load_experiment(folder: Path) -> Experiment:
    """The experiment of a folder. Raises ConfigError if it holds none."""
    file = folder / "experiment.py"
    if not file.is_file():
        raise ConfigError(f"{folder} holds no experiment.py")
    found = runpy.run_path(str(file)).get("EXPERIMENT")
    if not isinstance(found, Experiment):
        raise ConfigError(f"{file} has no EXPERIMENT made of r1jax.evaluation.experiments.Experiment")
    return found


def with_fields(config: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with dotted fields set, those of a pipeline behind their step's name.

    Raises:
      ConfigError: a field names no step, or lies below one that holds no fields.
    """
    changed: dict[str, Any] = to_plain(config)
    steps = {step["name"]: step["config"] for step in changed.get("steps", ())}
    for path, value in fields.items():
        owner, names = changed, path.split(".")
        if steps:
            step = max((name for name in steps if path.startswith(f"{name}.")), key=len, default=None)
            if step is None:
                raise ConfigError(f"{path}: does not begin with one of the steps {', '.join(steps)}")
            owner, names = steps[step], path.removeprefix(f"{step}.").split(".")
        for name in names[:-1]:
            owner = owner.setdefault(name, {})
            if not isinstance(owner, dict):
                raise ConfigError(f"{path}: {name} holds {owner!r}, which has no fields")
        owner[names[-1]] = value
    return changed


def _with_tuples(value: Any) -> Any:
    """Lists as tuples: the command line can give another tuple for one, and no other list."""
    if isinstance(value, dict):
        return {name: _with_tuples(item) for name, item in value.items()}
    return tuple(_with_tuples(item) for item in value) if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True)
class Results:
    """What the runs of an experiment left."""

    values: Mapping[str, Mapping[str, Mapping[int, float]]]  # metric's label -> arm -> seed -> value
    absent: Sequence[str]  # in words, each run or figure that is missing, and why


def read_results(experiment: Experiment, out: Path) -> Results:
    """The final figures of all runs that there are.

    Raises:
      ConfigError: a summary has no figure of a metric's name; those that it has are listed.
    """
    values: dict[str, dict[str, dict[int, float]]] = {
        metric.label: {arm: {} for arm in experiment.arms} for metric in experiment.metrics
    }
    absent = []
    for arm, seed in pairs(experiment):
        folder = experiment.folder(out, arm, seed)
        undone: dict[str, None] = {}
        for metric in experiment.metrics:
            step = metric.path.format(arm=arm).split("/")[0]
            if not (folder / step / "summary.json").is_file():
                undone[step] = None
                continue
            value = _figure(folder, metric.path.format(arm=arm))
            if value is None:
                absent.append(f"{arm}, seed {seed}: {metric.label} is undefined")
            else:
                values[metric.label][arm][seed] = value
        if undone:
            absent.append(f"{arm}, seed {seed}: not done ({', '.join(undone)})")
    return Results(values, absent)


def pairs(experiment: Experiment) -> Iterator[tuple[str, int]]:
    """Every arm of every seed."""
    return ((arm, seed) for seed in experiment.seeds for arm in experiment.arms)


def _figure(folder: Path, figure: str) -> float | None:
    step, *names = figure.split("/")
    path = folder / step / "summary.json"
    value: Any = read_json(path)
    for name in names:
        items = _items(value, name)
        if name not in items:
            there = ", ".join(sorted(items)) or repr(value)
            raise ConfigError(f"metrics: {figure}: {path} has no {name!r}; there are {there}")
        value = items[name]
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise ConfigError(f"metrics: {figure}: {path} holds {value!r}, which is no number")
    return None if value is None else float(value)


def _items(value: Any, name: str) -> dict[str, Any]:
    """Name -> item of an object, or of a list's rows by the field that `name` has before its "="."""
    if isinstance(value, dict):
        return value
    field = name.partition("=")[0]
    rows = [row for row in value if isinstance(row, dict) and field in row] if isinstance(value, list) else []
    return {f"{field}={'none' if row[field] is None else row[field]}": row for row in rows}


def read_curves(experiment: Experiment, out: Path, curve: Curve) -> dict[str, dict[int, Series]]:
    """One metric over steps, arm -> seed -> series, of the runs that logged it."""
    found: dict[str, dict[int, Series]] = {arm: {} for arm in experiment.arms}
    for arm, seed in pairs(experiment):
        folder = experiment.folder(out, arm, seed) / curve.step.format(arm=arm)
        line = series(list(read_jsonl(folder / "metrics.jsonl")), curve.metric)
        if line is not None:
            found[arm][seed] = line
    return found
