from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from r1jax.sharding import (
    MESH_AXES,
    MeshConfig,
    batch_sharding,
    constrain,
    logical_sharding,
    make_mesh,
    param_shardings,
    replicate,
    shard_batch,
)

BATCH = ("slice", "data", "fsdp", "expert")


def test_mesh_has_the_axes_of_the_config_and_is_auto() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=1, expert=2, tensor=2))
    assert mesh.axis_names == MESH_AXES
    assert dict(mesh.shape) == {"slice": 1, "data": 2, "fsdp": 1, "expert": 2, "sequence": 1, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (MeshConfig(data=-1), (1, 8, 1, 1, 1, 1)),
        (MeshConfig(data=2, fsdp=-1, expert=2), (1, 2, 2, 2, 1, 1)),
        (MeshConfig(data=-1, fsdp=8), (1, 1, 8, 1, 1, 1)),
    ],
)
def test_minus_one_takes_the_devices_that_are_left(config: MeshConfig, sizes: tuple[int, ...]) -> None:
    assert config.sizes(8) == sizes


def test_sizes_that_do_not_multiply_up_are_named() -> None:
    with pytest.raises(ValueError, match=r"'data': 3.*8 devices"):
        make_mesh(MeshConfig(data=3))
    with pytest.raises(ValueError, match=r"'expert': 3.*8 devices"):
        make_mesh(MeshConfig(data=-1, expert=3))
    with pytest.raises(ValueError, match="one of data and fsdp"):
        make_mesh(MeshConfig(data=-1, fsdp=-1))
    with pytest.raises(ValueError, match="one of data and fsdp"):
        make_mesh(MeshConfig(expert=-1))
    with pytest.raises(ValueError, match="positive"):
        make_mesh(MeshConfig(data=0))


def test_a_mesh_over_some_devices() -> None:
    mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
    assert mesh.devices.size == 2


def test_logical_names_give_mesh_axes() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert logical_sharding(mesh, ("experts", "embed", "expert_mlp")).spec == PartitionSpec("expert", "fsdp", "tensor")
    assert logical_sharding(mesh, ("batch", None)).spec == PartitionSpec(BATCH, None)
    with pytest.raises(ValueError, match="'emded'"):
        logical_sharding(mesh, ("emded",))


def test_an_axis_that_does_not_divide_stays_whole() -> None:
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    names = ("embed", "kv_heads", "head_dim")
    assert logical_sharding(mesh, names, (16, 1, 8)).spec == PartitionSpec("fsdp", None, None)
    assert logical_sharding(mesh, names, (16, 4, 8)).spec == PartitionSpec("fsdp", "tensor", None)


def test_shard_batch_splits_rows_and_replicates_scalars() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, expert=2))
    rows = np.arange(32).reshape(16, 2)
    placed = shard_batch(mesh, {"rows": rows, "step": 3})
    np.testing.assert_array_equal(placed["rows"], rows)
    assert placed["rows"].sharding == batch_sharding(mesh, 2)
    assert {shard.data.shape for shard in placed["rows"].addressable_shards} == {(2, 2)}
    assert placed["step"].sharding.is_fully_replicated


def test_rows_that_do_not_divide_are_named() -> None:
    mesh = make_mesh(MeshConfig(data=4, expert=2))
    with pytest.raises(ValueError, match=r"\['tokens'\] has 12 rows.*8 parts.*'data': 4"):
        shard_batch(mesh, {"tokens": np.zeros((12, 3))})


def test_replicate_puts_the_whole_array_on_every_device() -> None:
    mesh = make_mesh(MeshConfig(data=4, expert=2))
    placed = replicate(mesh, {"x": np.ones(3)})["x"]
    assert placed.sharding.is_fully_replicated
    assert len(placed.addressable_shards) == 8


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        init = nn.with_logical_partitioning(nn.initializers.ones, ("embed", "mlp"))
        return x @ self.param("kernel", init, (8, 8)) + self.param("bias", nn.initializers.zeros, (8,)), None


def test_param_shardings_read_the_logical_names_of_a_scanned_module() -> None:
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    stack = nn.scan(
        Layer,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=3,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )()
    abstract = jax.eval_shape(stack.init, jax.random.key(0), jnp.ones((2, 8)), None)["params"]
    shardings = param_shardings(mesh, abstract)
    assert shardings["kernel"].spec == PartitionSpec(None, "fsdp", "tensor")
    assert shardings["bias"].spec == PartitionSpec()


def test_constrain_lays_an_activation_out_and_is_the_identity_without_a_mesh() -> None:
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    x = jnp.ones((8, 3, 4))
    assert constrain(x, None, ("no", "such", "names")) is x
    y = jax.jit(lambda x: constrain(x, mesh, ("batch", "length", "act_mlp")))(x)
    assert {shard.data.shape for shard in y.addressable_shards} == {(2, 3, 2)}
    with pytest.raises(ValueError, match="2 logical axes"):
        constrain(x, mesh, ("batch", "length"))
