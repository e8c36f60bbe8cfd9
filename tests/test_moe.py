from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from r1jax.model import config, moe
from r1jax.model.config import GQAConfig, ModelConfig, MoEConfig, RopeConfig
from r1jax.model.moe import (
    MoE,
    Routing,
    group_limited_topk,
    moe_config,
    route,
    sequence_balance_loss,
)
from r1jax.sharding import MeshConfig, make_mesh, shard_batch
from r1jax.types import Array, Params

D = 16
V3 = MoEConfig(num_experts=8, num_active=3, expert_dim=12, num_groups=4, num_active_groups=2, routed_scaling=2.5)
V2 = dataclasses.replace(
    V3, scoring="softmax", group_score="max", normalize_gates=False, selection_bias=False, routed_scaling=16.0
)
LITE = dataclasses.replace(V2, num_groups=1, num_active_groups=1, routed_scaling=1.0)


def model_config(moe: MoEConfig | None, **fields: Any) -> ModelConfig:
    return ModelConfig(
        vocab_size=8,
        width=D,
        num_dense_layers=0,
        ffn_dim=8,
        attention=GQAConfig(1, 1, 8),
        rope=RopeConfig(),
        num_moe_layers=1,
        moe=moe,
        **fields,
    )


def random_params(moe: MoEConfig, seed: int = 0, **fields: Any) -> Params:
    x, mask, ids = jnp.zeros((1, 2, D)), jnp.ones((1, 2), bool), jnp.ones((1, 2), jnp.int32)
    abstract = jax.eval_shape(MoE(model_config(moe, **fields)).init, jax.random.key(0), x, mask, ids)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype), meta.unbox(abstract))


@functools.cache
def layer(cfg: ModelConfig) -> Any:
    return jax.jit(MoE(cfg).apply)


def apply(moe: MoEConfig, params: Params, x: Any, mask: Any, ids: Any, **fields: Any) -> Any:
    return layer(model_config(moe, **fields))({"params": params}, x, mask, ids)


# --- an independent reference, one token at a time, in float64 ---


def reference_topk(scores: np.ndarray, cfg: MoEConfig) -> list[int]:
    size = cfg.num_experts // cfg.num_groups
    groups = [list(range(g * size, (g + 1) * size)) for g in range(cfg.num_groups)]
    counted = 2 if cfg.group_score == "top2_sum" else 1
    by_score = sorted(range(cfg.num_groups), key=lambda g: -sum(sorted(scores[e] for e in groups[g])[-counted:]))
    allowed = by_score[: cfg.num_active_groups] if cfg.num_groups > 1 else range(cfg.num_groups)
    return sorted((e for g in allowed for e in groups[g]), key=lambda e: -scores[e])[: cfg.num_active]


def reference_route(logits: np.ndarray, bias: np.ndarray, cfg: MoEConfig) -> tuple[np.ndarray, list[int], np.ndarray]:
    scores = 1 / (1 + np.exp(-logits)) if cfg.scoring == "sigmoid" else np.exp(logits) / np.exp(logits).sum()
    experts = reference_topk(scores + bias, cfg)
    gates = scores[experts]
    if cfg.normalize_gates:
        gates = gates / gates.sum()
    return scores, experts, gates * cfg.routed_scaling


def swiglu(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    hidden = x @ gate
    return (hidden / (1 + np.exp(-hidden)) * (x @ up)) @ down


def reference_moe(params: Params, x: np.ndarray, cfg: MoEConfig) -> tuple[np.ndarray, np.ndarray]:
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    bias = p["router"].get("bias", np.zeros(cfg.num_experts))
    y, chosen = np.zeros_like(x), np.zeros((*x.shape[:-1], cfg.num_active), int)
    for place in np.ndindex(x.shape[:-1]):
        _, experts, gates = reference_route(x[place] @ p["router"]["kernel"], bias, cfg)
        chosen[place] = experts
        for expert, gate in zip(experts, gates, strict=True):
            y[place] += gate * swiglu(x[place], *(p["experts"][name][expert] for name in ("gate", "up", "down")))
        if cfg.num_shared:
            y[place] += swiglu(x[place], *(p["shared"][name]["kernel"] for name in ("gate", "up", "down")))
    return y, chosen


# --- selection ---


def test_groups_are_chosen_by_their_two_best_then_experts_within_them() -> None:
    scores = jnp.array([0.9, 0.1, 0.6, 0.5, 0.8, 0.0, 0.4, 0.45])  # groups: 1.0, 1.1, 0.8, 0.85
    np.testing.assert_array_equal(group_limited_topk(scores, V3), [0, 2, 3])  # 4, the second best of all, is out
    np.testing.assert_array_equal(group_limited_topk(scores, V2), [0, 4, 1])  # best of each: 0.9, 0.6, 0.8, 0.45


def test_masked_experts_lose_to_negative_scores() -> None:
    cfg = MoEConfig(num_experts=4, num_active=2, expert_dim=1, num_groups=2)
    scores = jnp.array([-0.1, -0.2, -0.5, 0.1])  # groups: -0.3, -0.4; masked with 0, experts 2 and 3 would win
    np.testing.assert_array_equal(group_limited_topk(scores, cfg), [0, 1])


def test_the_lower_index_wins_a_tie() -> None:
    np.testing.assert_array_equal(group_limited_topk(jnp.ones(8), V3), [0, 1, 2])


@pytest.mark.parametrize("cfg", [V3, V2, LITE, dataclasses.replace(V3, group_score="max", num_active_groups=3)])
def test_selection_equals_a_literal_reference(cfg: MoEConfig) -> None:
    scores = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    ours = jax.jit(functools.partial(group_limited_topk, cfg=cfg))(scores)
    np.testing.assert_array_equal(ours, [reference_topk(row, cfg) for row in scores])


def test_selection_of_the_released_shape_equals_the_reference() -> None:
    cfg = MoEConfig(num_experts=256, num_active=8, expert_dim=1, num_groups=8, num_active_groups=4)
    scores = np.random.default_rng(1).random((64, 256)).astype(np.float32)
    ours = jax.jit(functools.partial(group_limited_topk, cfg=cfg))(scores)
    np.testing.assert_array_equal(ours, [reference_topk(row, cfg) for row in scores])


def test_gates_of_a_hand_worked_sigmoid_case() -> None:
    """Scores 0.75, 0.5, 0.25, 0.1. The bias brings expert 2 in, yet its gate is made of 0.25."""
    cfg = MoEConfig(num_experts=4, num_active=2, expert_dim=1, routed_scaling=2.5)
    logits = jnp.array([jnp.log(3.0), 0.0, -jnp.log(3.0), -jnp.log(9.0)])
    scores, experts, gates = route(logits, jnp.array([0.0, 0.0, 0.3, 0.0]), cfg)
    np.testing.assert_allclose(scores, [0.75, 0.5, 0.25, 0.1], rtol=1e-6)
    np.testing.assert_array_equal(experts, [0, 2])
    np.testing.assert_allclose(gates, [2.5 * 0.75, 2.5 * 0.25], rtol=1e-6)


def test_gates_of_a_hand_worked_softmax_case() -> None:
    cfg = MoEConfig(4, 2, 1, scoring="softmax", normalize_gates=False, routed_scaling=16.0, selection_bias=False)
    _, experts, gates = route(jnp.log(jnp.array([2.0, 4.0, 1.0, 1.0])), None, cfg)
    np.testing.assert_array_equal(experts, [1, 0])
    np.testing.assert_allclose(gates, [8.0, 4.0], rtol=1e-6)


def test_gates_stay_finite_where_all_scores_vanish() -> None:
    gates = route(jnp.full(8, -200.0), None, V3).gates
    np.testing.assert_array_equal(gates, [0, 0, 0])


# --- the layer ---


@pytest.mark.parametrize("cfg", [V3, V2, LITE, dataclasses.replace(V3, num_shared=0, tile_size=4)])
def test_the_layer_equals_a_token_by_token_reference(cfg: MoEConfig) -> None:
    params = random_params(cfg)
    x = np.random.default_rng(1).normal(size=(3, 7, D))
    y, aux = apply(cfg, params, jnp.asarray(x, jnp.float32), jnp.ones((3, 7), bool), jnp.ones((3, 7), jnp.int32))
    expected, chosen = reference_moe(params, x, cfg)
    np.testing.assert_array_equal(aux.experts, chosen)
    np.testing.assert_allclose(y, expected, rtol=2e-4, atol=2e-4)
    np.testing.assert_array_equal(aux.load, np.bincount(chosen.ravel(), minlength=8))


def test_no_token_is_dropped_when_all_choose_the_same_experts() -> None:
    params = random_params(V3)
    params["router"]["bias"] = jnp.array([0.0, 0, 0, 0, 50, 60, 70, 0])
    x = np.random.default_rng(2).normal(size=(4, 30, D))
    y, aux = apply(V3, params, jnp.asarray(x, jnp.float32), jnp.ones((4, 30), bool), jnp.ones((4, 30), jnp.int32))
    np.testing.assert_array_equal(aux.load, [0, 0, 0, 0, 120, 120, 120, 0])
    np.testing.assert_allclose(y, reference_moe(params, x, V3)[0], rtol=2e-4, atol=2e-4)


def test_gradients_equal_those_of_the_dense_form() -> None:
    """The dense form runs every expert on every token and weighs the outputs."""
    params = random_params(V3)
    x = jnp.asarray(np.random.default_rng(3).normal(size=(2, 9, D)), jnp.float32)
    mask, ids = jnp.ones((2, 9), bool), jnp.ones((2, 9), jnp.int32)

    def dense(params: Params, x: Array) -> Array:
        p, s = params["experts"], params["shared"]
        _, experts, gates = route(x @ params["router"]["kernel"], params["router"]["bias"], V3)
        weight = jnp.sum(jax.nn.one_hot(experts, 8) * gates[..., None], axis=-2)
        hidden = jax.nn.silu(jnp.einsum("btd,edf->btef", x, p["gate"])) * jnp.einsum("btd,edf->btef", x, p["up"])
        y = jnp.einsum("btef,efd,bte->btd", hidden, p["down"], weight)
        return y + (jax.nn.silu(x @ s["gate"]["kernel"]) * (x @ s["up"]["kernel"])) @ s["down"]["kernel"]

    def ours(params: Params, x: Array) -> Array:
        return MoE(model_config(V3)).apply({"params": params}, x, mask, ids)[0]  # type: ignore[no-any-return]

    def loss(function: Any, params: Params, x: Array) -> Array:
        return jnp.sum(jnp.sin(function(params, x)))

    theirs = jax.jit(jax.grad(functools.partial(loss, dense), argnums=(0, 1)))(params, x)
    mine = jax.jit(jax.grad(functools.partial(loss, ours), argnums=(0, 1)))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), mine, theirs)
    assert np.abs(mine[0]["router"]["kernel"]).max() > 1e-3


def test_the_selection_bias_takes_no_gradient() -> None:
    params = random_params(V3)
    x = jnp.asarray(np.random.default_rng(4).normal(size=(2, 9, D)), jnp.float32)

    def loss(params: Params) -> Array:
        y, aux = MoE(model_config(V3)).apply({"params": params}, x, jnp.ones((2, 9), bool), jnp.ones((2, 9), jnp.int32))
        return jnp.sum(y**2) + aux.balance_loss

    gradient = jax.jit(jax.grad(loss))(params)["router"]
    np.testing.assert_array_equal(gradient["bias"], np.zeros(8))
    assert np.abs(gradient["kernel"]).max() > 1e-3


def test_padding_is_outside_the_load_and_leaves_the_other_rows_alone() -> None:
    params = random_params(V3)
    x = np.random.default_rng(5).normal(size=(2, 6, D)).astype(np.float32)
    mask = np.array([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]], bool)
    y, aux = apply(V3, params, x, mask, mask.astype(np.int32))
    other_y, other_aux = apply(
        V3, params, np.where(mask[..., None], x, 77).astype(np.float32), mask, mask.astype(np.int32)
    )
    np.testing.assert_array_equal(aux.load, np.bincount(np.asarray(aux.experts)[mask].ravel(), minlength=8))
    assert aux.load.sum() == 8 * V3.num_active
    np.testing.assert_array_equal(np.asarray(y)[mask], np.asarray(other_y)[mask])
    np.testing.assert_array_equal(aux.load, other_aux.load)
    assert aux.balance_loss == other_aux.balance_loss


def test_a_tokens_output_does_not_depend_on_the_batch_around_it() -> None:
    params = random_params(V3)
    rng = np.random.default_rng(6)
    x, ones = rng.normal(size=(40, 1, D)).astype(np.float32), np.ones((40, 1), np.int32)
    y, _ = apply(V3, params, x, ones == 1, ones)
    for _ in range(3):
        order = rng.permutation(40)
        np.testing.assert_array_equal(apply(V3, params, x[order], ones == 1, ones)[0], np.asarray(y)[order])
        other = rng.normal(size=x.shape).astype(np.float32)
        other[:20] = x[:20]
        np.testing.assert_array_equal(np.asarray(apply(V3, params, other, ones == 1, ones)[0])[:20], y[:20])


def test_the_router_stays_in_float32_in_a_bfloat16_model() -> None:
    types = {"dtype": "bfloat16", "param_dtype": "bfloat16"}
    params = random_params(V3, **types)
    assert params["router"]["kernel"].dtype == params["router"]["bias"].dtype == jnp.float32
    assert params["experts"]["gate"].dtype == jnp.bfloat16
    x = jnp.asarray(np.random.default_rng(7).normal(size=(2, 9, D)), jnp.bfloat16)
    ones = jnp.ones((2, 9), jnp.int32)
    y, aux = apply(V3, params, x, ones == 1, ones, **types)
    expected, chosen = reference_moe(params, np.asarray(x, np.float64), V3)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(aux.experts, chosen)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, atol=0.05 * np.abs(expected).max())


# --- the balance loss ---

TWO = MoEConfig(num_experts=2, num_active=1, expert_dim=1)


def routing_of(scores: Any, experts: Any = None) -> Routing:
    scores = jnp.asarray(scores, jnp.float32)
    return Routing(
        scores, jnp.zeros((*scores.shape[:-1], 1), jnp.int32) if experts is None else experts, scores[..., :1]
    )


def test_balance_loss_of_a_hand_worked_sequence() -> None:
    """f = 2 / (1 * 2) * (2, 0), P = (0.675, 0.325): 2 * 0.675. A third token is padding."""
    routing = routing_of([[[0.75, 0.25], [0.3, 0.2], [0.0, 0.9]]])
    mask, ids = jnp.array([[True, True, False]]), jnp.array([[1, 1, 0]])
    loss, count = sequence_balance_loss(routing, mask, ids, TWO)
    np.testing.assert_allclose(loss, 1.35, rtol=1e-6)
    assert count == 1


def test_balance_loss_is_one_for_even_use() -> None:
    scores = np.full((1, 8, 4), 0.25) + 0.01 * np.tile(np.eye(4), (2, 1))[None]
    cfg = MoEConfig(num_experts=4, num_active=1, expert_dim=1)
    loss, _ = sequence_balance_loss(routing_of(scores), jnp.ones((1, 8), bool), jnp.ones((1, 8), jnp.int32), cfg)
    np.testing.assert_allclose(loss, 1.0, rtol=1e-6)


def test_balance_loss_counts_the_best_unbiased_scores_or_without_a_bias_the_chosen() -> None:
    routing = routing_of([[[0.75, 0.25]]], experts=jnp.array([[[1]]]))  # a bias or group limit chose expert 1
    ones = jnp.ones((1, 1), jnp.int32)
    np.testing.assert_allclose(sequence_balance_loss(routing, ones == 1, ones, TWO)[0], 2 * 0.75)
    without = dataclasses.replace(TWO, selection_bias=False)
    np.testing.assert_allclose(sequence_balance_loss(routing, ones == 1, ones, without)[0], 2 * 0.25)


def test_packing_and_splitting_leave_the_balance_loss_and_its_gradient_alone() -> None:
    lengths = [5, 3, 1, 6]
    logits = np.random.default_rng(8).normal(size=(sum(lengths), 8)).astype(np.float32)
    pieces = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])

    def rows(layout: list[list[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
        index, ids = np.zeros((len(layout), width), int), np.zeros((len(layout), width), np.int32)
        for row, sequences in enumerate(layout):
            start = 0
            for number, sequence in enumerate(sequences):
                piece = pieces[sequence]
                index[row, start : start + len(piece)], ids[row, start : start + len(piece)] = piece, number + 1
                start += len(piece)
        return index, ids

    @functools.partial(jax.jit, static_argnums=1)
    def loss(logits: Array, layout: tuple[Any, ...]) -> Array:
        index, ids = rows([list(row) for row in layout[1]], layout[0])
        total, count = sequence_balance_loss(route(logits[index], None, V3), jnp.asarray(ids > 0), jnp.asarray(ids), V3)
        return total / count

    expected, gradient = jax.value_and_grad(loss)(logits, (6, ((0,), (1,), (2,), (3,))))
    for layout in ((8, ((0, 1), (2, 3))), (20, ((3, 2, 1, 0),)), (15, ((0, 1, 2, 3), ()))):
        value, other = jax.value_and_grad(loss)(logits, layout)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(other, gradient, rtol=1e-4, atol=1e-7)


# --- meshes ---


def test_a_mesh_that_does_not_divide_the_experts_is_named() -> None:
    params = random_params(dataclasses.replace(V3, num_experts=6, num_groups=3))
    mesh = make_mesh(MeshConfig(expert=4), jax.devices()[:4])
    moe = MoE(model_config(dataclasses.replace(V3, num_experts=6, num_groups=3)), mesh)
    ones = jnp.ones((4, 2), jnp.int32)
    with pytest.raises(ValueError, match=r"\(6, 16, 12\).*expert = 4"):
        moe.apply({"params": params}, jnp.ones((4, 2, D)), ones == 1, ones)


@pytest.mark.parametrize(
    "sizes", [{"data": 2, "fsdp": 2, "expert": 2}, {"slice": 2, "data": 1, "sequence": 4}], ids=str
)
def test_load_and_balance_loss_on_a_mesh_are_those_of_the_whole_batch(sizes: dict[str, int]) -> None:
    """Rows of two sequences and padding; a sequence lies on several devices where the length is split."""
    mesh = make_mesh(MeshConfig(**sizes))
    moe = dataclasses.replace(V3, expert_dim=16)
    params = random_params(moe)
    x = np.random.default_rng(10).normal(size=(8, 8, D)).astype(np.float32)
    ends = np.arange(1, 9)[:, None]
    ids = np.where(np.arange(8) < ends, 1 + (np.arange(8) >= ends // 2), 0).astype(np.int32)
    _, alone = apply(moe, params, x, ids > 0, ids)
    placed = shard_batch(mesh, (x, ids > 0, ids))
    _, meshed = jax.jit(MoE(model_config(moe), mesh).apply)({"params": params}, *placed)
    np.testing.assert_array_equal(meshed.load, alone.load)
    np.testing.assert_array_equal(meshed.experts, alone.experts)
    np.testing.assert_allclose(meshed.balance_loss, alone.balance_loss, rtol=1e-6)
    assert meshed.num_sequences == alone.num_sequences == 15


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_layer_and_its_gradient_lower_for_accelerators(platform: str) -> None:
    params = random_params(V3)
    ones = jnp.ones((2, 9), jnp.int32)

    def loss(params: Params, x: Array) -> Array:
        return jnp.sum(MoE(model_config(V3)).apply({"params": params}, x, ones == 1, ones)[0])

    exported = jax.export.export(jax.jit(jax.grad(loss)), platforms=[platform])(params, jnp.ones((2, 9, D)))
    assert "ragged_dot" in exported.mlir_module()


# --- configurations ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scoring": "tanh"}, "scoring is 'tanh', expected one of .*sigmoid.*softmax"),
        ({"group_score": "sum"}, "group_score is 'sum', expected one of .*top2_sum.*max"),
        ({"exchange": "x"}, "exchange is 'x', expected one of .*auto.*ragged.*dense"),
        ({"buffer_factor": -1.0}, "buffer_factor is -1.0, expected a finite number above 0"),
        ({"buffer_factor": float("nan")}, "buffer_factor is nan"),
        ({"expert_dim": 0}, "expert_dim is 0, expected at least 1"),
        ({"num_groups": 0}, "num_groups is 0, expected at least 1"),
        ({"num_groups": 3}, "num_groups=3 does not divide num_experts=8"),
        ({"num_active_groups": 5}, "num_active_groups=5"),
        ({"num_active": 5}, "num_active=5 is not in 1..4"),
        ({"num_groups": 8, "num_active_groups": 4}, "needs two experts a group"),
    ],
)
def test_what_cannot_be_routed_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    """When the configuration is made, not when the model is."""
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(V3, **change)


def test_every_choice_that_is_allowed_has_its_function() -> None:
    assert set(config.SCORING) == set(moe.SCORING)
    assert set(config.GROUP_SCORES) == set(moe.GROUP_SCORES)


def test_a_missing_moe_config_is_refused() -> None:
    with pytest.raises(ValueError, match="moe"):
        moe_config(model_config(None))
