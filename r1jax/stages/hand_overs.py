"""What the steps of a pipeline read of each other, held against what those steps are going to leave.

A step that reads the wrong folder, or a file that nobody writes, would else be found out when all before it is done.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from r1jax.settings import ConfigError
from r1jax.stages.curate_config import CurateConfig
from r1jax.stages.preferences import PreferencesConfig
from r1jax.stages.pretrain import PretrainConfig
from r1jax.stages.reward_model import RewardModelConfig
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.sft_config import SFTConfig

POLICIES = (PretrainConfig, SFTConfig, RLConfig)  # stages that leave one
FILES = {CurateConfig: ("samples_kept.jsonl",), PreferencesConfig: ("pairs.jsonl", "labels.jsonl")}  # for other stages


def check_hand_overs(steps: Sequence[tuple[str, Any, pathlib.Path]]) -> None:
    """Raises ConfigError naming the step and the field that reads what another step does not leave.

    steps: name, configuration and folder of each.
    """
    owners = {folder.resolve(): (name, config) for name, config, folder in steps}
    for name, config, folder in steps:
        where = f"steps[{name}].config"
        init = getattr(config, "init", None)
        if init is not None and init.kind == "stage":
            _, owner = owners.get((folder / init.path).resolve(), ("", None))
            if owner is not None and not isinstance(owner, POLICIES):
                raise ConfigError(f"{where}.init.path: the step {init.path!r} leaves no policy")
        for field, path in _files(config):
            read = (folder / path).resolve()
            other, owner = owners.get(read.parent, ("", None))
            left = FILES.get(type(owner), ())
            if owner is not None and read.name not in left:
                told = ", ".join(left) or "no data"
                raise ConfigError(f"{where}.{field}: {path!r}: the step {other!r} leaves {told} for others")
        rewards = getattr(config, "rewards", None)
        for view, path in ({} if rewards is None else rewards.reward_models).items():
            other, owner = owners.get((folder / path).resolve(), ("", None))
            if owner is not None and getattr(owner, "view", "") != view:
                field = f"{where}.rewards.reward_models.{view}"
                raise ConfigError(f"{field}: the step {other!r} is no reward_model whose view is {view!r}")


def _files(config: Any) -> Iterator[tuple[str, str]]:
    """(field, path) of the data that a stage reads from files."""
    if isinstance(config, SFTConfig):
        yield from ((f"data[{i}].path", data.path) for i, data in enumerate(config.data))
    if isinstance(config, RewardModelConfig):
        yield from ((f"data[{i}]", path) for i, path in enumerate(config.data))
    if isinstance(config, CurateConfig):
        yield from ((f"general[{i}].path", general.path) for i, general in enumerate(config.general) if general.path)
    for i, source in enumerate(getattr(config, "contamination", ())):
        if isinstance(source, str):
            yield f"contamination[{i}]", source
