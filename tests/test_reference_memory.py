"""A reference model in the host's memory scores as one on the device, to the last bit, and survives a checkpoint."""

from __future__ import annotations

import pathlib

import jax
import numpy as np
import pytest

from r1jax.checkpoint import CheckpointStore
from r1jax.model.config import GQAConfig, ModelConfig, RopeConfig
from r1jax.model.transformer import init_params
from r1jax.rollout import DecodingConfig, PromptConfig
from r1jax.sharding import MeshConfig, make_mesh
from r1jax.stages.rl import Trainer
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.state import placed_abstract_params
from r1jax.types import PackedBatch

ROWS, LENGTH = 2, 8
MODEL = ModelConfig(
    vocab_size=16,
    width=8,
    num_dense_layers=1,
    ffn_dim=8,
    attention=GQAConfig(num_heads=2, num_kv_heads=1, head_dim=4),
    rope=RopeConfig(),
)


def config(reference_memory: str) -> RLConfig:
    return RLConfig(
        mesh=MeshConfig(data=1, fsdp=2),
        micro_rows=ROWS,
        row_length=LENGTH,
        prompt=PromptConfig(width=4),
        decoding=DecodingConfig(max_new_tokens=4),
        reference_memory=reference_memory,
    )


def packed() -> PackedBatch:
    tokens = np.random.default_rng(0).integers(0, 16, (ROWS, LENGTH)).astype(np.int32)
    ones = np.ones_like(tokens)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
    return PackedBatch(tokens, np.roll(tokens, -1, 1), ones, positions, ones.astype(np.float32))


def test_a_reference_on_the_host_scores_as_on_the_device_and_survives_a_checkpoint(tmp_path: pathlib.Path) -> None:
    mesh = make_mesh(MeshConfig(data=1, fsdp=2), jax.devices()[:2])
    trainer = Trainer(config("host"), MODEL, mesh)
    params = init_params(MODEL, jax.random.key(0), mesh)
    reference = trainer.keep(params)
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(reference)} == {"pinned_host"}
    want, _ = trainer.score(params, packed())
    np.testing.assert_array_equal(trainer.score(reference, packed())[0], want)
    store = CheckpointStore(tmp_path)
    store.save(1, reference)
    _, restored, _ = store.restore(trainer.abstract_reference(placed_abstract_params(MODEL, mesh)))
    for got, leaf in zip(jax.tree.leaves(restored), jax.tree.leaves(params), strict=True):
        assert got.sharding.memory_kind == "pinned_host"
        np.testing.assert_array_equal(got, leaf)


def test_another_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="reference_memory: 'disk' is neither 'device' nor 'host'"):
        config("disk")
