"""SmolLM2 from its GGUF to a Hugging Face folder and back: transformers says the same from both (extras, slow)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r1jax.weights.exporter import ExportOptions, export_checkpoint
from r1jax.weights.gguf import locate_smollm2
from r1jax.weights.importer import ImportOptions, import_checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

PROMPTS = ("The capital of France is", "def fibonacci(n):", "7 + 5 =")
NEW_TOKENS = 32


def greedy(model: Any, tokenizer: Any) -> list[list[int]]:
    """Greedy continuations of all prompts."""
    found = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        with torch.no_grad():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS)
        found.append(out[0, ids.shape[1] :].tolist())
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_export_of_smollm2_says_what_the_published_file_says(tmp_path: Path) -> None:
    try:
        published = locate_smollm2()
    except ImportError as error:
        pytest.skip(str(error))
    import_checkpoint(published, tmp_path / "in", ImportOptions())
    export_checkpoint(tmp_path / "in", tmp_path / "out", ExportOptions(max_shard_bytes=200_000_000))
    load = transformers.AutoModelForCausalLM.from_pretrained
    theirs = load(published.parent, gguf_file=published.name, dtype=torch.float32)
    ours = load(tmp_path / "out", dtype=torch.float32)
    for name, value in theirs.state_dict().items():
        np.testing.assert_array_equal(ours.state_dict()[name].numpy(), value.numpy(), err_msg=name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert greedy(ours, tokenizer) == greedy(theirs, tokenizer)
    turns = [{"role": "user", "content": "Hello"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
