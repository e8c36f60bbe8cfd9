"""As test_parity, against the installed transformers library: the same shapes with other weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import test_parity as parity

from r1jax.weights.released import load_released

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.23")

SCRIPT = Path(__file__).parents[1] / "tools" / "make_goldens.py"
_spec = importlib.util.spec_from_file_location("make_goldens", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
goldens = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(goldens)

quick_compilation = parity.quick_compilation

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@pytest.mark.parametrize("name", goldens.SHAPES)
def test_logits_experts_and_greedy_tokens_equal_the_library(name: str, tmp_path: Path) -> None:
    seed = 10_000 + 100 * list(goldens.SHAPES).index(name)
    arrays = goldens.make(goldens.SHAPES[name], seed, tmp_path)
    case = parity.Case(name, *load_released(tmp_path, mesh=None), arrays)
    parity.check_logits_and_experts(case)
    parity.check_greedy(case)
