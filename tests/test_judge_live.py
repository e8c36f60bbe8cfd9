"""One judge two ways: SmolLM2 behind a real `transformers serve`, and in r1jax's own sampler (extras, slow)."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from r1jax.rewards.judges.chat_models import Endpoint, EndpointConfig, JudgeUnavailableError
from r1jax.rewards.judges.judge import GroundTruthJudge, JudgeConfig, truth_conversation
from r1jax.types import Status
from r1jax.weights.exporter import ExportOptions, export_checkpoint
from r1jax.weights.gguf import locate_smollm2
from r1jax.weights.importer import ImportOptions, import_checkpoint
from tools.chat_model import open_model
from tools.judge_agreement import judge_items, make_items

for extra in ("torch", "transformers", "openai", "uvicorn"):
    pytest.importorskip(extra)

TOKENS = 64


@contextlib.contextmanager
def transformers_serve(folder: pathlib.Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = pathlib.Path(sys.executable).with_name("transformers")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [program, "serve", folder, "--port", str(port), "--host", "127.0.0.1", "--device", "cpu"]
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        yield process, f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def wait_for(model: Endpoint) -> None:
    for _ in range(120):
        with contextlib.suppress(JudgeUnavailableError):
            model.check()
            return
        time.sleep(1)
    model.check()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_both_say_the_same_and_a_killed_server_is_no_grade(tmp_path: pathlib.Path) -> None:
    try:
        published = locate_smollm2()
    except ImportError as error:
        pytest.skip(str(error))
    import_checkpoint(published, tmp_path / "in", ImportOptions())
    export_checkpoint(tmp_path / "in", tmp_path / "out", ExportOptions())
    items = make_items(6, seed=3)
    asked = [truth_conversation(i.example.question, i.example.answer, i.prediction) for i in items]
    config = JudgeConfig(kind="sampler", path="smollm2", batch_size=8, max_new_tokens=TOKENS)
    with open_model(config) as sampler:
        own = sampler.ask(asked, seed=0)
    with transformers_serve(tmp_path / "out") as (process, url):
        settings = EndpointConfig(url, str(tmp_path / "out"), seconds=120, retries=1, max_tokens=TOKENS)
        with Endpoint(settings) as model:
            wait_for(model)
            assert [reply.text for reply in model.ask(asked, seed=0)] == [reply.text for reply in own]
            process.kill()
            process.wait()
            judge = GroundTruthJudge(model)
            scores = judge_items(judge, items)
            judge.close()
    assert {score.status for score in scores} == {Status.UNGRADABLE}
    assert all("no connection" in score.reason for score in scores)
