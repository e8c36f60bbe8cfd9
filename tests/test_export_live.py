"""transformers loads what is exported and computes the same logits (extra `parity`)."""

from __future__ import annotations

import importlib.util
import pathlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from folders import BOS, EOS, byte_tokenizer

from r1jax.checkpoint import CheckpointStore
from r1jax.data.tokenizer import HuggingFaceTokenizer
from r1jax.model.config import (
    GQAConfig,
    Llama3RopeConfig,
    MLAConfig,
    ModelConfig,
    MoEConfig,
    RopeConfig,
    YarnConfig,
)
from r1jax.model.transformer import Transformer, init_params
from r1jax.settings import from_config
from r1jax.sharding import MeshConfig, make_mesh
from r1jax.stages import pretrain
from r1jax.stages.policy import PolicySource, load_policy
from r1jax.weights.exporter import ExportOptions, export_checkpoint
from r1jax.weights.importer import ImportOptions, import_checkpoint
from r1jax.weights.policy_folder import write_description
from r1jax.weights.released import load_released

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5  # of the largest logit
SMOKE = pathlib.Path(__file__).parent / "configs" / "r1_zero_smoke.py"


def dense(**changes: Any) -> ModelConfig:
    fields: dict[str, Any] = {
        "vocab_size": 272,
        "width": 48,
        "num_dense_layers": 2,
        "ffn_dim": 80,
        "attention": GQAConfig(4, 2, 16),
        "rope": RopeConfig(theta=500000.0),
        "init_std": 0.15,
        "max_positions": 512,
    }
    return ModelConfig(**(fields | changes))


def deepseek(scoring: str) -> ModelConfig:
    v3 = scoring == "sigmoid"
    moe = MoEConfig(
        num_experts=8,
        num_active=3,
        expert_dim=24,
        num_shared=2,
        scoring=scoring,
        num_groups=4,
        num_active_groups=2,
        group_score="top2_sum" if v3 else "max",
        normalize_gates=v3,
        routed_scaling=1.5,
        selection_bias=v3,
    )
    return dense(
        num_dense_layers=1,
        num_moe_layers=2,
        attention=MLAConfig(2, 24 if v3 else None, 16, 12, 8, 10),
        rope=RopeConfig(scaling=YarnConfig(factor=8.0, original_max_positions=64), interleaved=True),
        moe=moe,
        mtp_depth=int(v3),
    )


MODELS = {
    "llama, tied, llama3 scaling": dense(
        tied_embeddings=True, norm_eps=1e-5, rope=RopeConfig(500000.0, Llama3RopeConfig(original_max_positions=64))
    ),
    "qwen2": dense(attention=GQAConfig(3, 1, 16, qkv_bias=True)),
    "qwen3": dense(attention=GQAConfig(4, 2, 24, qk_norm=True)),
    "deepseek_v3": deepseek("sigmoid"),
    "deepseek_v2": deepseek("softmax"),
}


def random_policy(folder: Path, cfg: ModelConfig) -> Any:
    """A policy folder with random parameters, those that start as ones or zeros included."""
    params = init_params(cfg, jax.random.key(0))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(structure, noisy)
    folder.mkdir()
    write_description(folder, cfg, HuggingFaceTokenizer(byte_tokenizer(), eos_token=EOS, bos_token=BOS))
    CheckpointStore(folder / "model", keep=1).save(1, params)
    return params


def compare_with_transformers(cfg: ModelConfig, params: Any, folder: Path) -> None:
    """Logits of our model and of the exported folder in transformers, on the same tokens."""
    tokens = np.random.default_rng(3).integers(0, 256, (2, 40))
    positions = jnp.broadcast_to(jnp.arange(40), tokens.shape)
    run: Any = jax.jit(Transformer(cfg).apply)
    ours = np.asarray(run({"params": params}, jnp.asarray(tokens), positions).logits)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens), use_cache=False).logits.numpy()
    difference, largest = np.abs(ours - theirs).max(), np.abs(theirs).max()
    print(f"largest difference {difference:.2e} at logits up to {largest:.2f}")
    assert difference <= TOLERANCE * largest


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore")
def test_transformers_computes_the_same_logits_from_an_export(tmp_path: Path, name: str) -> None:
    cfg = MODELS[name]
    params = random_policy(tmp_path / "policy", cfg)
    export_checkpoint(tmp_path / "policy", tmp_path / "out", ExportOptions(max_shard_bytes=150_000))
    compare_with_transformers(cfg, params, tmp_path / "out")
    text = "Two tokens, 三个字, \U0001f642."
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = HuggingFaceTokenizer.from_directory(tmp_path / "out").encode(text)
    assert theirs(text, add_special_tokens=False)["input_ids"] == ids
    assert theirs.decode(ids) == text


@pytest.mark.filterwarnings("ignore")
def test_after_training_steps_the_export_is_exact_bias_and_mtp_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("r1_zero_smoke", SMOKE)
    assert spec is not None
    assert spec.loader is not None
    smoke = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(smoke)
    step = next(step for step in smoke.get_config().steps if step["stage"] == "pretrain")
    two_steps = {"tensorboard": False, "steps": 2, "optimizer": {"warmup_steps": 1, "total_steps": 2}}
    fields = smoke.merge(step["config"], two_steps)
    one = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    monkeypatch.setattr(pretrain, "make_mesh", lambda config: one)
    (tmp_path / "stage").mkdir()
    pretrain.run(from_config(pretrain.PretrainConfig, fields), tmp_path / "stage")
    policy = load_policy(PolicySource(path=str(tmp_path / "stage")), tmp_path, one)
    assert np.abs(np.asarray(policy.params["moe_layers"]["moe"]["router"]["bias"])).max() > 0
    export_checkpoint(tmp_path / "stage", tmp_path / "out", ExportOptions())
    compare_with_transformers(policy.model, policy.params, tmp_path / "out")
    _, again = load_released(tmp_path / "out")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), again, policy.params)


@pytest.mark.filterwarnings("ignore")
def test_what_transformers_saves_is_imported_and_given_back(tmp_path: Path) -> None:
    fields = {"vocab_size": 272, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "bos_token_id": 256,
        "eos_token_id": 257,
    }
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**fields, **heads)).float().eval()
    model.save_pretrained(tmp_path / "source")
    byte_tokenizer().save(str(tmp_path / "source" / "tokenizer.json"))
    names = f'{{"bos_token": "{BOS}", "eos_token": "{EOS}"}}'
    (tmp_path / "source" / "tokenizer_config.json").write_text(names, encoding="utf-8")
    import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions())
    export_checkpoint(tmp_path / "in", tmp_path / "out", ExportOptions())
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
