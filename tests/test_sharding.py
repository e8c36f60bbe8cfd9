from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from r1jax.model.config import MLAConfig
from r1jax.model.mesh_check import check_mesh, model_size
from r1jax.model.presets import PRESETS, get_preset
from r1jax.model.transformer import abstract_params
from r1jax.sampling.decode import SamplingConfig
from r1jax.sampling.sampler import Sampler
from r1jax.settings import ConfigError
from r1jax.sharding import (
    BATCH_AXES,
    MESH_AXES,
    MeshConfig,
    ModelSize,
    automatic_sizes,
    batch_sharding,
    choose_mesh,
    constrain,
    decoding_mesh,
    logical_sharding,
    make_mesh,
    param_shardings,
    replicate,
    shard_batch,
)

EMBED = ("fsdp", "sequence", "expert")


def test_mesh_has_the_axes_of_the_config_and_is_auto() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=1, expert=2, tensor=2))
    assert mesh.axis_names == MESH_AXES
    assert dict(mesh.shape) == {"slice": 1, "data": 2, "fsdp": 1, "expert": 2, "sequence": 1, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (MeshConfig(data=-1), (1, 8, 1, 1, 1, 1)),
        (MeshConfig(data=2, fsdp=-1, expert=2), (1, 2, 2, 1, 2, 1)),
        (MeshConfig(data=-1, fsdp=8), (1, 1, 8, 1, 1, 1)),
    ],
)
def test_minus_one_takes_the_devices_that_are_left(config: MeshConfig, sizes: tuple[int, ...]) -> None:
    assert config.sizes(8) == sizes


def test_sizes_that_do_not_multiply_up_are_named() -> None:
    with pytest.raises(ValueError, match=r"'data': 3.*8 devices.*mends it: data = 8$"):
        make_mesh(MeshConfig(data=3))
    with pytest.raises(ValueError, match=r"'expert': 3.*8 devices.*mends it: expert = 2$"):
        make_mesh(MeshConfig(data=-1, expert=3))
    with pytest.raises(ValueError, match=r"'fsdp': 4.*8 devices.*mends it: fsdp = 2 or tensor = 2$"):
        make_mesh(MeshConfig(data=1, fsdp=4, tensor=4))
    with pytest.raises(ValueError, match=r"'expert': 5.*8 devices.*mends it: none$"):
        make_mesh(MeshConfig(data=2, fsdp=3, expert=5))
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
    names = ("experts", "expert_embed", "expert_mlp")
    assert logical_sharding(mesh, names).spec == PartitionSpec("expert", ("fsdp", "sequence"), "tensor")
    assert logical_sharding(mesh, ("batch", None)).spec == PartitionSpec(BATCH_AXES, None)
    with pytest.raises(ValueError, match="'emded'"):
        logical_sharding(mesh, ("emded",))


def test_two_axes_of_an_array_may_not_share_a_mesh_axis() -> None:
    mesh = make_mesh(MeshConfig(data=8))
    with pytest.raises(ValueError, match="mesh axis 'expert' splits both 'experts' and 'embed'"):
        logical_sharding(mesh, ("experts", "embed"))
    with pytest.raises(ValueError, match="mesh axis 'fsdp' splits both 'batch' and 'embed'"):
        constrain(jnp.ones((8, 8)), mesh, ("batch", "embed"))


def test_only_the_axes_that_the_table_names_stay_whole_where_they_do_not_divide() -> None:
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    names = ("embed", "kv_heads", "head_dim")
    assert logical_sharding(mesh, names, (16, 1, 8)).spec == PartitionSpec(EMBED, None, None)
    assert logical_sharding(mesh, names, (16, 4, 8)).spec == PartitionSpec(EMBED, "tensor", None)
    with pytest.raises(ValueError, match=r"heads: 3 does not divide into 2 equal parts \(mesh: tensor = 2\)"):
        logical_sharding(mesh, ("heads",), (3,))


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
    assert shardings["kernel"].spec == PartitionSpec(None, EMBED, "tensor")
    assert shardings["bias"].spec == PartitionSpec()


def test_constrain_lays_an_activation_out_and_is_the_identity_without_a_mesh() -> None:
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    x = jnp.ones((8, 3, 4))
    assert constrain(x, None, ("no", "such", "names")) is x
    y = jax.jit(lambda x: constrain(x, mesh, ("batch", "length", "act_mlp")))(x)
    assert {shard.data.shape for shard in y.addressable_shards} == {(2, 3, 2)}
    with pytest.raises(ValueError, match="2 logical axes"):
        constrain(x, mesh, ("batch", "length"))


# --- what a mesh does not divide ---


def problems(model: str, row_length: int | None = None, **sizes: int) -> list[str]:
    with pytest.raises(ConfigError) as error:
        check_mesh(get_preset(model), {axis: sizes.get(axis, 1) for axis in MESH_AXES}, row_length)
    return str(error.value).splitlines()


def test_a_size_that_does_not_divide_is_named_with_the_nearest_that_do() -> None:
    """SmolLM2 has 9 heads, width 576 and an MLP of 1536; the tiny model 8 experts, 2 heads and width 128."""
    assert problems("smollm2_135m", tensor=2) == [
        "attention.num_heads: 9 does not divide into 2 equal parts (mesh: tensor = 2); nearest that do: "
        "attention.num_heads = 8 or 10, or tensor = 1 or 3"
    ]
    width, experts = problems("tiny_mla_moe", expert=16, fsdp=16)
    assert width == (
        "width: 128 does not divide into 256 equal parts (mesh: fsdp = 16 x sequence = 1 x expert = 16); nearest that "
        "do: width = 256, or fsdp x sequence x expert = 128"
    )
    assert experts.startswith("moe.num_experts: 8 does not divide into 16 equal parts (mesh: expert = 16)")
    assert experts.endswith("moe.num_experts = 16, or expert = 8")
    assert problems("tiny_mla_moe", row_length=90, sequence=4) == [
        "row_length: 90 does not divide into 4 equal parts (mesh: sequence = 4); nearest that do: row_length = 88 or "
        "92, or sequence = 3 or 5"
    ]


@pytest.mark.parametrize("name", ["tiny_mla_moe", "tiny_qwen", "smollm2_135m"])
@pytest.mark.parametrize(
    "axes", [{}, {"tensor": 2}, {"tensor": 3}, {"expert": 4}, {"fsdp": 5}, {"sequence": 8}, {"expert": 4, "fsdp": 64}]
)
def test_the_check_refuses_exactly_what_no_parameter_can_be_laid_out_on(name: str, axes: dict[str, int]) -> None:
    model = get_preset(name)
    sizes = tuple(axes.get(axis, 1) for axis in MESH_AXES)
    mesh = jax.sharding.AbstractMesh(sizes, MESH_AXES)
    refusals = []
    for attempt in (
        lambda: param_shardings(mesh, abstract_params(model)),
        lambda: check_mesh(model, dict(zip(MESH_AXES, sizes, strict=True))),
    ):
        try:
            attempt()
            refusals.append(False)
        except ValueError:
            refusals.append(True)
    assert refusals[0] == refusals[1]


def test_the_released_sizes_divide_over_the_meshes_they_are_meant_for() -> None:
    whole = dict.fromkeys(MESH_AXES, 1)
    check_mesh(PRESETS["deepseek_v3_671b"], whole | {"fsdp": 16, "expert": 64}, 4096)
    check_mesh(PRESETS["deepseek_v3_671b"], whole | {"slice": 2, "fsdp": 2, "expert": 64, "sequence": 8}, 65536)
    assert isinstance(PRESETS["deepseek_v3_671b"].attention, MLAConfig)


# --- the automatic mesh ---


def test_a_small_model_is_kept_whole_and_a_large_one_split_by_experts_then_width() -> None:
    v3, tiny = model_size(PRESETS["deepseek_v3_671b"]), model_size(PRESETS["tiny_mla_moe"])
    assert (v3.width, v3.experts, tiny.experts) == (7168, 256, 8)
    assert automatic_sizes(tiny, 1, 8, None) == MeshConfig(data=8)
    assert automatic_sizes(v3, 1, 1024, 95 * 2**30) == MeshConfig(data=1, fsdp=4, expert=256)
    assert automatic_sizes(v3, 2, 64, 95 * 2**30) == MeshConfig(slice=2, data=1, fsdp=1, expert=64)
    # 16 bytes x 1e9 parameters: at most half of 32 GB, not of 31, and not of the 16 GiB of a device that does not tell
    dense = ModelSize(parameters=10**9, width=96)
    assert automatic_sizes(dense, 1, 8, 32 * 10**9) == MeshConfig(data=8)
    assert automatic_sizes(dense, 1, 8, 31 * 10**9) == MeshConfig(data=1, fsdp=8)
    assert automatic_sizes(dense, 1, 64, None) == MeshConfig(data=2, fsdp=32)  # 64 does not divide 96; 32 does


def test_auto_takes_the_devices_there_are_and_no_other_field() -> None:
    assert choose_mesh(MeshConfig(auto=True), ModelSize(1000, 64)) == MeshConfig(data=8)
    assert choose_mesh(MeshConfig(auto=True), ModelSize(1000, 64), jax.devices()[:2]) == MeshConfig(data=2)
    assert choose_mesh(MeshConfig(tensor=2), ModelSize(1000, 64)) == MeshConfig(tensor=2)
    with pytest.raises(ValueError, match=r"auto chooses the sizes.*'tensor': 2"):
        MeshConfig(auto=True, tensor=2)
    with pytest.raises(ValueError, match="depend on the model"):
        make_mesh(MeshConfig(auto=True))


# --- slices ---


class FakeDevice:
    """What `make_mesh` asks of a device of a machine that is not there."""

    platform = device_kind = "cpu"

    def __init__(self, number: int, **attributes: int) -> None:
        self.id, self.process_index = number, 0
        vars(self).update(attributes)


def slices_of(config: MeshConfig, devices: list[FakeDevice], monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Numbers of the devices at each place of the slice axis."""
    monkeypatch.setattr("r1jax.sharding.Mesh", lambda array, names, axis_types: array)
    array = make_mesh(config, devices)  # type: ignore[arg-type]
    return [[device.id for device in part.flat] for part in array]  # type: ignore[attr-defined]


def test_only_the_slice_axis_leaves_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = [FakeDevice(n, slice_index=n % 2) for n in range(8)]
    assert slices_of(MeshConfig(slice=2, fsdp=2), mixed, monkeypatch) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    with pytest.raises(ValueError, match="slice = 1, but the devices are those of 2 slices"):
        make_mesh(MeshConfig(), mixed)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"have \[4, 2\] devices, not all as many"):
        make_mesh(MeshConfig(slice=2), mixed[:5] + mixed[6:7])  # type: ignore[arg-type]


def test_without_slices_the_processes_are_told_apart_and_then_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = [FakeDevice(n, process_index=n % 4) for n in range(8)]
    assert slices_of(MeshConfig(slice=2), processes, monkeypatch) == [[0, 4, 1, 5], [2, 6, 3, 7]]
    with pytest.raises(ValueError, match="slice = 8 does not divide the 4 processes"):
        make_mesh(MeshConfig(slice=8), processes)  # type: ignore[arg-type]
    one = [FakeDevice(n) for n in range(4)]
    assert slices_of(MeshConfig(slice=2), one, monkeypatch) == [[0, 1], [2, 3]]


# --- sampling on a mesh with a sequence axis ---


def test_decoding_takes_the_sequence_axis_for_rows_and_leaves_every_parameter_where_it_is() -> None:
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, sequence=2, expert=2))
    decoding = decoding_mesh(mesh)
    assert {axis: size for axis, size in decoding.shape.items() if size > 1} == {"fsdp": 4, "expert": 2}
    for names, ndim in ((("vocab", "embed"), 2), (("experts", "expert_embed", "expert_mlp"), 3)):
        here, there = logical_sharding(mesh, names), logical_sharding(decoding, names)
        assert here.is_equivalent_to(there, ndim)
    assert batch_sharding(decoding, 1).num_devices == 8
    assert {shard.data.shape for shard in shard_batch(decoding, np.zeros(8)).addressable_shards} == {(1,)}
    flat = make_mesh(MeshConfig(data=8))
    assert decoding_mesh(flat) is flat


def test_collected_weights_are_whole_but_for_the_experts_and_the_tensor_axis() -> None:
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, expert=2, tensor=2))
    for collect, embed in ((False, EMBED), (True, None)):
        config = SamplingConfig(4, collect_weights=collect)
        params = Sampler(get_preset("tiny_mla_moe"), mesh, config, 4, 8).abstract.params
        assert params["embed"]["embedding"].sharding.spec == PartitionSpec("tensor", embed)
        gate = params["moe_layers"]["moe"]["experts"]["gate"]
        assert gate.sharding.spec == PartitionSpec(None, "expert", ("fsdp", "sequence"), "tensor")
