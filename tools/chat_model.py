"""The options of tools that ask a model: an OpenAI-compatible endpoint, or a checkpoint in r1jax's own sampler."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
from collections.abc import Iterator

import jax

from r1jax.rewards.judges.chat_models import ChatModel
from r1jax.rewards.judges.judge import JudgeConfig
from r1jax.sharding import MeshConfig, make_mesh
from r1jax.stages.graders import check_judge, open_chat_model
from tools.sample import keep_compiled_programs


def add_model_options(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Options that `judge_config` reads."""
    which = parser.add_mutually_exclusive_group(required=required)
    which.add_argument("--url", help="of an OpenAI-compatible endpoint, up to /v1")
    which.add_argument("--checkpoint", help="folder of a policy, .gguf file, or smollm2: in r1jax's own sampler")
    parser.add_argument("--model", default="", help="name of the endpoint's model")
    parser.add_argument("--api-key-variable", default="", help="environment variable with the endpoint's key")
    parser.add_argument("--seconds", type=float, default=120.0, help="for one answer of an endpoint")
    parser.add_argument("--retries", type=int, default=2)
    parser.add_argument("--parallel", type=int, default=2, help="questions to an endpoint at a time")
    parser.add_argument("--format", default="own", help="chat format of the checkpoint; default: its own")
    parser.add_argument("--batch-size", type=int, default=16, help="rows that the sampler decodes at once")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="of one answer")
    parser.add_argument("--temperature", type=float, default=0.0)


def judge_config(options: argparse.Namespace) -> JudgeConfig:
    """The options as a configuration. ValueError for a bad one."""
    return JudgeConfig(
        kind="endpoint" if options.url else "sampler",
        url=options.url or "",
        model=options.model,
        api_key_variable=options.api_key_variable,
        seconds=options.seconds,
        retries=options.retries,
        parallel=options.parallel,
        path=options.checkpoint or "",
        chat_format=options.format,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
    )


@contextlib.contextmanager
def open_model(config: JudgeConfig) -> Iterator[ChatModel]:
    """The model, checked, its batches split over all devices of this host."""
    check_judge(config, pathlib.Path(), {})
    if config.kind == "sampler":
        keep_compiled_programs()
    mesh = make_mesh(MeshConfig(data=len(jax.devices())))
    with open_chat_model(config, pathlib.Path(), mesh) as model:
        yield model
