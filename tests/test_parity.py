"""Released-style checkpoints, imported, compute what the transformers library does (goldens: tools/make_goldens.py)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from r1jax.model.cache import init_cache
from r1jax.model.config import ModelConfig
from r1jax.model.heads import logits_of, unembedding
from r1jax.model.transformer import Transformer
from r1jax.sampling.sampler import Sampler, SamplingConfig
from r1jax.weights.hf_config import model_config
from r1jax.weights.released import load_released

GOLDENS = Path(__file__).parent / "goldens"
NAMES = sorted(path.stem for path in GOLDENS.glob("*.npz"))
TOLERANCE = 1e-5  # of the largest logit
PROMPT = 9  # tokens before the greedy ones


@pytest.fixture(scope="module", autouse=True)
def quick_compilation() -> Iterator[None]:
    """These programs take much longer to compile than to run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@dataclasses.dataclass(frozen=True)
class Golden:
    """One file, taken apart."""

    fields: dict[str, Any]  # config.json
    weights: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]  # tokens, logits, ...: what the library computes


def read(name: str) -> Golden:
    with np.load(GOLDENS / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    fields = json.loads(str(arrays.pop("config")))
    names = [key for key in arrays if key.startswith("weights/")]
    weights = {key.removeprefix("weights/"): arrays.pop(key) for key in names}
    return Golden(fields, weights, arrays)


@dataclasses.dataclass(frozen=True)
class Case:
    """An imported checkpoint and what the reference computes from it."""

    name: str
    cfg: ModelConfig
    params: Any
    arrays: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    golden = read(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "config.json").write_text(json.dumps(golden.fields), encoding="utf-8")
    safetensors.numpy.save_file(golden.weights, folder / "model.safetensors")
    return Case(request.param, *load_released(folder, mesh=None), golden.arrays)


def assert_close(what: str, got: jax.Array | np.ndarray, want: np.ndarray) -> None:
    assert got.shape == want.shape
    difference, largest = np.abs(np.asarray(got) - want).max(), np.abs(want).max()
    print(f"{what}: largest difference {difference:.2e} at values up to {largest:.2f}")
    assert difference <= TOLERANCE * largest


def check_logits_and_experts(case: Case) -> None:
    """Logits, experts, and those of the prediction module, in one pass over all tokens."""
    cfg, params, arrays = case.cfg, case.params, case.arrays
    tokens = arrays["tokens"]
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    output = jax.jit(Transformer(cfg).apply)({"params": params}, tokens, positions)
    assert_close(case.name, output.logits, arrays["logits"])
    if cfg.moe is not None:
        experts = np.sort(np.asarray(output.aux.experts), axis=-1)
        np.testing.assert_array_equal(experts, arrays["experts"][: cfg.num_moe_layers])
        assert len(np.unique(arrays["experts"])) == cfg.moe.num_experts
    assert bool(cfg.mtp_depth) == ("mtp_logits" in arrays)
    if cfg.moe is not None and cfg.mtp_depth:
        logits = logits_of(output.aux.mtp_hidden[:, :-1], unembedding(params, cfg))
        assert_close(f"{case.name} MTP", logits, arrays["mtp_logits"])
        chosen = arrays["experts"][-1][:, :-1].reshape(-1)
        np.testing.assert_array_equal(output.aux.mtp_expert_load, np.bincount(chosen, minlength=cfg.moe.num_experts))


def check_greedy(case: Case) -> None:
    """Greedy tokens and their log-probs through the cached sampler."""
    prompts, greedy = case.arrays["tokens"][:, :PROMPT], case.arrays["greedy"]
    rows, new = greedy.shape
    sampler = Sampler(case.cfg, None, SamplingConfig(new, temperature=0, regroup=new), PROMPT, rows)
    rollout = sampler.sample(case.params, prompts, np.full(rows, PROMPT), jax.random.split(jax.random.key(0), rows))
    assert new == 16
    np.testing.assert_array_equal(rollout.response_tokens, greedy)
    assert_close(f"{case.name} log-probs", rollout.sampler_logprobs, case.arrays["greedy_logprobs"])


def test_weights_keep_the_type_of_the_file(case: Case) -> None:
    assert {leaf.dtype for leaf in jax.tree.leaves(case.params)} == {jnp.dtype("float32")}
    assert case.cfg.param_dtype == "float32"


def test_logits_and_experts_equal_the_reference(case: Case) -> None:
    check_logits_and_experts(case)


def test_cached_decoding_equals_the_reference(case: Case) -> None:
    cfg, tokens = case.cfg, case.arrays["tokens"]
    batch, length = tokens.shape
    cache = init_cache(cfg, jnp.full(batch, length), length, length)
    step = jax.jit(Transformer(cfg).apply)
    logits = []
    for slot in range(length):
        positions = jnp.full((batch, 1), slot)
        output = step({"params": case.params}, tokens[:, slot : slot + 1], positions, cache=cache)
        cache = output.cache
        logits.append(output.logits)
    assert_close(f"{case.name} cached", jnp.concatenate(logits, axis=1), case.arrays["logits"])


def test_greedy_tokens_of_the_sampler_equal_the_reference(case: Case) -> None:
    check_greedy(case)


def older_keys(fields: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The same configuration as checkpoints of 2024 and 2025 write it; `kind` is the key of the scaling's name."""
    rope = dict(fields["rope_parameters"])
    older = {key: value for key, value in fields.items() if key not in ("rope_parameters", "dtype", "layer_types")}
    older |= {"torch_dtype": fields["dtype"], "rope_theta": rope.pop("rope_theta")}
    name = rope.pop("rope_type")
    older["rope_scaling"] = None if name == "default" else {kind: name, **rope}
    if fields["model_type"] == "deepseek_v3":
        older |= {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}
        if fields["rope_interleave"]:
            del older["rope_interleave"]
    if fields["model_type"] == "deepseek_v2":
        older |= {"scoring_func": "softmax", "moe_layer_freq": 1}
    return older


@pytest.mark.parametrize("kind", ["type", "rope_type"])
@pytest.mark.parametrize("name", NAMES)
def test_older_keys_give_the_same_configuration(name: str, kind: str) -> None:
    fields = read(name).fields
    older = older_keys(fields, kind)
    assert not {"rope_parameters", "dtype"} & set(older)
    assert model_config(older) == model_config(fields)


def deepseek(golden: Golden) -> bool:
    return golden.fields["model_type"].startswith("deepseek")


def v3(golden: Golden) -> bool:
    return golden.fields["model_type"] == "deepseek_v3"


def mscales(golden: Golden) -> list[float | None]:
    """mscale and mscale_all_dim, None where absent; empty without yarn."""
    rope = golden.fields["rope_parameters"]
    yarn = deepseek(golden) and rope["rope_type"] == "yarn"
    return [rope.get(key) for key in ("mscale", "mscale_all_dim")] if yarn else []


def odd_head_dim(golden: Golden) -> bool:
    fields = golden.fields
    given = None if deepseek(golden) else fields.get("head_dim")
    return given is not None and given * fields["num_attention_heads"] != fields["hidden_size"]


def has_weight(golden: Golden, part: str) -> bool:
    return any(part in name and np.any(weight) for name, weight in golden.weights.items())


PROPERTIES: dict[str, Callable[[Golden], bool]] = {
    **{
        f"family {family}": lambda golden, family=family: golden.fields["model_type"] == family
        for family in ("deepseek_v3", "deepseek_v2", "llama", "qwen2", "qwen3")
    },
    "q low-rank": lambda golden: deepseek(golden) and golden.fields["q_lora_rank"] is not None,
    "q full-rank": lambda golden: deepseek(golden) and golden.fields["q_lora_rank"] is None,
    **{
        f"{kind} scores, {groups} groups": lambda golden, family=family, groups=groups: (
            golden.fields["model_type"] == family and golden.fields["n_group"] == groups
        )
        for kind, family in (("sigmoid", "deepseek_v3"), ("softmax", "deepseek_v2"))
        for groups in (1, 4, 8)
    },
    "neighbours rotated": lambda golden: v3(golden) and golden.fields["rope_interleave"],
    "halves rotated": lambda golden: v3(golden) and not golden.fields["rope_interleave"],
    "yarn, mscale equal": lambda golden: None not in mscales(golden) and len(set(mscales(golden))) == 1,
    "yarn, mscale differing": lambda golden: None not in mscales(golden) and len(set(mscales(golden))) == 2,
    "yarn, mscale absent": lambda golden: mscales(golden) == [None, None],
    "normalised gates": lambda golden: v3(golden) and golden.fields["norm_topk_prob"],
    "plain gates": lambda golden: v3(golden) and not golden.fields["norm_topk_prob"],
    "1 shared expert": lambda golden: deepseek(golden) and golden.fields["n_shared_experts"] == 1,
    "2 shared experts": lambda golden: deepseek(golden) and golden.fields["n_shared_experts"] == 2,
    "non-zero balancing bias": lambda golden: has_weight(golden, "mlp.gate.e_score_correction_bias"),
    "prediction module": lambda golden: "mtp_logits" in golden.arrays,
    "head_dim differs from width / heads": odd_head_dim,
    "tied embeddings": lambda golden: golden.fields["tie_word_embeddings"],
    "untied embeddings": lambda golden: not golden.fields["tie_word_embeddings"],
    "llama3 scaling": lambda golden: golden.fields["rope_parameters"]["rope_type"] == "llama3",
    "qkv bias": lambda golden: all(has_weight(golden, f"self_attn.{x}_proj.bias") for x in "qkv"),
    "qk norm": lambda golden: all(has_weight(golden, f"self_attn.{x}_norm.weight") for x in "qk"),
}


@pytest.mark.parametrize("prop", PROPERTIES)
def test_a_golden_has(prop: str) -> None:
    assert any(PROPERTIES[prop](read(name)) for name in NAMES)


def test_goldens_are_at_least_14_and_small() -> None:
    sizes = [(GOLDENS / f"{name}.npz").stat().st_size for name in NAMES]
    assert len(sizes) >= 14
    assert max(sizes) < 300_000
    assert sum(sizes) < 3_000_000


def test_experts_are_stored_one_by_one() -> None:
    names = [name for golden in map(read, NAMES) for name in golden.weights if ".experts." in name]
    assert names
    assert all(name.endswith(("gate_proj.weight", "up_proj.weight", "down_proj.weight")) for name in names)
