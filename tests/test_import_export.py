"""Released weights in and out: exact both ways, resumable, and nothing damaged gets through."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from folders import DEEPSEEK, MATRICES, QWEN, byte_tokenizer, random_tensors, write_folder

import r1jax.weights.exporter as exporter
import r1jax.weights.importer as importer
from r1jax.checkpoint import CheckpointError, CheckpointStore, DiskFullError
from r1jax.model.config import ModelConfig
from r1jax.model.transformer import Transformer
from r1jax.sharding import MeshConfig, make_mesh
from r1jax.stages.policy import PolicySource, describe_policy, load_policy, save_policy
from r1jax.weights.exporter import ExportOptions, export_checkpoint
from r1jax.weights.fp8 import SCALE_SUFFIX, dequantize, quantize
from r1jax.weights.importer import ImportOptions, import_checkpoint
from r1jax.weights.names import WeightsError
from r1jax.weights.released import ReleasedFolder, load_released
from r1jax.weights.safetensors_files import open_safetensors
from r1jax.workdir import WorkdirError

ONE = MeshConfig(data=1)
FP8 = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}


def restored(folder: Path) -> dict[str, np.ndarray]:
    """The parameters of a policy folder by name, through the loader that stages use."""
    policy = load_policy(PolicySource(path=str(folder)), folder, make_mesh(ONE, jax.devices()[:1]))
    return {"/".join(path): np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(policy.params).items()}


def assert_equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def stored(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a folder as it is on disk, read by the safetensors library where it can."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= {name: np.array(tensor.map()) for name, tensor in open_safetensors(file).items()}
    return tensors


def with_fp8(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same checkpoint with its projections in FP8 blocks."""
    out: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        out[name] = value
        if name.endswith(MATRICES):
            out[name], out[name + SCALE_SUFFIX] = quantize(value.astype(np.float32))
    return out


def logits(cfg: ModelConfig, *several: Any) -> list[np.ndarray]:
    """Of the same model with several sets of parameters."""
    tokens = jnp.asarray(np.random.default_rng(5).integers(0, 256, (2, 12)))
    positions = jnp.broadcast_to(jnp.arange(12), tokens.shape)
    run: Any = jax.jit(Transformer(cfg).apply)
    return [np.asarray(run({"params": params}, tokens, positions).logits) for params in several]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fields", [DEEPSEEK, QWEN], ids=["deepseek_v3", "qwen2"])
def test_import_export_import_is_bit_equal(tmp_path: Path, fields: dict[str, Any], dtype: str) -> None:
    fields = fields | {"torch_dtype": dtype}
    tensors = random_tensors(fields)
    write_folder(tmp_path / "source", fields, tensors, shards=3)
    cfg = import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions())
    assert cfg.param_dtype == dtype
    files = export_checkpoint(tmp_path / "in", tmp_path / "out", ExportOptions(max_shard_bytes=80_000))
    assert len(files) > 1
    assert_equal(stored(tmp_path / "out"), tensors)
    import_checkpoint(tmp_path / "out", tmp_path / "again", ImportOptions())
    assert_equal(restored(tmp_path / "again"), restored(tmp_path / "in"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == fields
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in tensors.values())
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["temperature"] == 0.6


def test_one_float32_norm_makes_the_import_float32(tmp_path: Path) -> None:
    tensors = random_tensors(DEEPSEEK)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float32) + np.float32(1e-6)
    write_folder(tmp_path / "source", DEEPSEEK, tensors)
    assert import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions()).param_dtype == "float32"
    np.testing.assert_array_equal(restored(tmp_path / "in")["final_norm/scale"], tensors["model.norm.weight"])


def test_exported_files_are_what_the_safetensors_library_reads(tmp_path: Path) -> None:
    tensors = random_tensors(QWEN)
    write_folder(tmp_path / "source", QWEN, tensors)
    import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions())
    assert export_checkpoint(tmp_path / "in", tmp_path / "out", ExportOptions()) == ["model.safetensors"]
    assert_equal(safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors"), tensors)
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()
    assert not (tmp_path / "out" / "exporting.json").exists()


def test_the_import_is_an_orbax_checkpoint_like_any_other(tmp_path: Path) -> None:
    write_folder(tmp_path / "source", DEEPSEEK, random_tensors(DEEPSEEK))
    cfg = import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions(param_dtype="float32"))
    direct_cfg, direct = load_released(tmp_path / "source")
    assert cfg == direct_cfg
    flat = {"/".join(path): np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(direct).items()}
    assert_equal(restored(tmp_path / "in"), flat)
    # By hand: what the published names mean.
    tensors = random_tensors(DEEPSEEK)
    name = "model.layers.2.mlp.experts.3.down_proj.weight"
    np.testing.assert_array_equal(flat["moe_layers/moe/experts/down"][1, 3], tensors[name].T.astype(np.float32))
    kv_b = tensors["model.layers.0.self_attn.kv_b_proj.weight"].astype(np.float32).reshape(2, 28, 32)
    np.testing.assert_array_equal(flat["dense_layers/attn/kv_b/kernel"][0], kv_b.transpose(2, 0, 1))
    bias = tensors["model.layers.3.mlp.gate.e_score_correction_bias"]
    np.testing.assert_array_equal(flat["mtp/block/moe/router/bias"], bias)


def test_a_released_folder_loads_straight_onto_a_mesh(tmp_path: Path) -> None:
    write_folder(tmp_path, DEEPSEEK, with_fp8(random_tensors(DEEPSEEK)), shards=2, scatter=True)
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, expert=2, tensor=2))
    cfg, whole = load_released(tmp_path)
    source = PolicySource(kind="huggingface", path=str(tmp_path))
    policy = load_policy(source, tmp_path, mesh)
    assert policy.model == cfg
    gate = policy.params["moe_layers"]["moe"]["experts"]["gate"]
    assert gate.sharding.shard_shape(gate.shape) == (2, 2, 72, 20)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), policy.params, whole)
    assert policy.tokenizer.bos_id == 256
    bf16 = PolicySource(kind="huggingface", path=str(tmp_path), overrides={"param_dtype": "bfloat16"})
    assert load_policy(bf16, tmp_path, mesh).params["embed"]["embedding"].dtype == jnp.bfloat16


def test_fp8_with_scales_in_another_shard_and_ragged_edges(tmp_path: Path) -> None:
    fields = DEEPSEEK | {"quantization_config": FP8}
    tensors = with_fp8(random_tensors(DEEPSEEK))
    write_folder(tmp_path / "fp8", fields, tensors, shards=2, scatter=True)
    index = json.loads((tmp_path / "fp8" / "model.safetensors.index.json").read_text())["weight_map"]
    apart = [n for n in index if n.endswith(SCALE_SUFFIX) and index[n] != index[n.removesuffix(SCALE_SUFFIX)]]
    assert len(apart) > 20
    reference = {
        name: dequantize(value, tensors[name + SCALE_SUFFIX]) if name + SCALE_SUFFIX in tensors else value
        for name, value in tensors.items()
        if not name.endswith(SCALE_SUFFIX)
    }
    # The definition, element by element, on a matrix with ragged edges on both sides.
    name = "model.layers.0.mlp.gate_proj.weight"
    value, scales = tensors[name].astype(np.float32), tensors[name + SCALE_SUFFIX]
    assert (value.shape, scales.shape) == ((200, 144), (2, 2))
    rows, columns = np.arange(200)[:, None] // 128, np.arange(144)[None, :] // 128
    np.testing.assert_array_equal(reference[name], value * scales[rows, columns])
    plain = {n: v.astype(np.float32) for n, v in reference.items()}
    write_folder(tmp_path / "plain", DEEPSEEK | {"torch_dtype": "float32"}, plain)
    cfg, ours = load_released(tmp_path / "fp8", dtype="float32")
    plain_cfg, wanted = load_released(tmp_path / "plain")
    assert cfg == plain_cfg
    np.testing.assert_array_equal(*logits(cfg, ours, wanted))
    # Through the streaming import: in bfloat16, as such checkpoints are published to be read.
    cfg = import_checkpoint(tmp_path / "fp8", tmp_path / "in", ImportOptions())
    assert cfg.param_dtype == "bfloat16"
    _, params = load_released(tmp_path / "plain", param_dtype="bfloat16")
    flat = {"/".join(path): np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(params).items()}
    assert_equal(restored(tmp_path / "in"), flat)


@pytest.mark.parametrize("ue8m0", [False, True])
def test_export_to_fp8_and_import_stay_within_the_bound_of_the_format(tmp_path: Path, ue8m0: bool) -> None:
    tensors = random_tensors(DEEPSEEK | {"torch_dtype": "float32"})
    write_folder(tmp_path / "source", DEEPSEEK | {"torch_dtype": "float32"}, tensors)
    import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions())
    export_checkpoint(tmp_path / "in", tmp_path / "out", ExportOptions("fp8", ue8m0=ue8m0))
    written = stored(tmp_path / "out")
    quantized = {name.removesuffix(SCALE_SUFFIX) for name in written if name.endswith(SCALE_SUFFIX)}
    assert quantized == {name for name in tensors if name.endswith(MATRICES) and "eh_proj" not in name}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"] == FP8 | ({"scale_fmt": "ue8m0"} if ue8m0 else {})
    folder = ReleasedFolder(tmp_path / "out")
    for name in quantized:
        value = tensors[name]
        scales = written[name + SCALE_SUFFIX]
        by_value = np.repeat(np.repeat(scales, 128, 0), 128, 1)[: value.shape[0], : value.shape[1]]
        bound = np.maximum(np.abs(value) * 2.0**-4, by_value * 2.0**-10) * (1 + 1e-6)
        assert np.all(np.abs(folder.read(name) - value) <= bound), name
    assert written["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == np.float32
    assert written["model.layers.1.mlp.gate.weight"].dtype == ml_dtypes.bfloat16


def test_a_killed_import_goes_on_and_looks_unfinished_meanwhile(tmp_path: Path, monkeypatch: Any) -> None:
    write_folder(tmp_path / "source", DEEPSEEK, random_tensors(DEEPSEEK), shards=3)
    import_checkpoint(tmp_path / "source", tmp_path / "undisturbed", ImportOptions())
    written: list[str] = []
    write = importer.SliceWriter.write

    class Killed(BaseException):
        pass

    def dying(self: Any, name: str, index: tuple[int, ...], value: np.ndarray) -> None:
        if len(written) == 40:
            raise Killed
        write(self, name, index, value)
        written.append(f"{name}{index}")

    monkeypatch.setattr(importer.SliceWriter, "write", dying)
    with pytest.raises(Killed):
        import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions(threads=1))
    with pytest.raises(Exception, match="no finished policy"):
        restored(tmp_path / "in")
    with (tmp_path / "in" / "importing.txt").open("a") as file:
        file.write("model.layers.3.mlp.experts.0.up_pr")  # a line that the kill has cut
    again: list[str] = []

    def counting(self: Any, name: str, index: tuple[int, ...], value: np.ndarray) -> None:
        again.append(f"{name}{index}")
        write(self, name, index, value)

    monkeypatch.setattr(importer.SliceWriter, "write", counting)
    import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions())
    assert not set(again) & set(written)
    assert_equal(restored(tmp_path / "in"), restored(tmp_path / "undisturbed"))
    again.clear()
    import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions())
    assert again == []
    assert not (tmp_path / "in" / "importing.txt").exists()


def test_a_killed_export_goes_on_and_cannot_be_loaded_meanwhile(tmp_path: Path, monkeypatch: Any) -> None:
    tensors = random_tensors(DEEPSEEK)
    write_folder(tmp_path / "source", DEEPSEEK, tensors)
    import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions())
    read, calls = exporter.CheckpointTensors.read, []

    def dying(self: Any, source: Any) -> np.ndarray:
        calls.append(source.name)
        if len(calls) == 60:
            raise KeyboardInterrupt
        return read(self, source)

    monkeypatch.setattr(exporter.CheckpointTensors, "read", dying)
    options = ExportOptions(max_shard_bytes=100_000)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(tmp_path / "in", tmp_path / "out", options)
    with pytest.raises(ValueError, match=r"has no config\.json"):
        ReleasedFolder(tmp_path / "out")
    for other in (ExportOptions("float32"), ExportOptions(max_shard_bytes=99_000)):
        with pytest.raises(WorkdirError, match="another export that was not finished"):
            export_checkpoint(tmp_path / "in", tmp_path / "out", other)
    finished = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out").glob("*.safetensors")}
    assert finished
    export_checkpoint(tmp_path / "in", tmp_path / "out", options)
    assert_equal(stored(tmp_path / "out"), tensors)
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == time for name, time in finished.items())
    assert not list((tmp_path / "out").glob("*.partial"))


def test_an_export_does_not_go_on_with_another_checkpoint(tmp_path: Path, monkeypatch: Any) -> None:
    for seed in (0, 1):
        write_folder(tmp_path / f"source{seed}", QWEN, random_tensors(QWEN, seed))
        import_checkpoint(tmp_path / f"source{seed}", tmp_path / f"in{seed}", ImportOptions())
    monkeypatch.setattr(exporter, "_write_small_files", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(tmp_path / "in0", tmp_path / "out", ExportOptions(max_shard_bytes=80_000))
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "in0")
    (tmp_path / "in1").rename(tmp_path / "in0")  # another policy under the same name
    with pytest.raises(WorkdirError, match="another export that was not finished"):
        export_checkpoint(tmp_path / "in0", tmp_path / "out", ExportOptions(max_shard_bytes=80_000))


def interrupt(*args: Any, **kwargs: Any) -> None:
    raise KeyboardInterrupt


def test_a_shard_of_something_else_is_not_taken_for_a_finished_one(tmp_path: Path, monkeypatch: Any) -> None:
    write_folder(tmp_path / "source", QWEN, random_tensors(QWEN))
    import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions())
    monkeypatch.setattr(exporter, "_write_small_files", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(tmp_path / "in", tmp_path / "out", ExportOptions(max_shard_bytes=80_000))
    monkeypatch.undo()
    first, second = sorted((tmp_path / "out").glob("*.safetensors"))[:2]
    first.write_bytes(second.read_bytes())
    with pytest.raises(WorkdirError, match=r"model-00001-of-.* is not of this export"):
        export_checkpoint(tmp_path / "in", tmp_path / "out", ExportOptions(max_shard_bytes=80_000))


def test_an_import_does_not_go_on_with_another_tokenizer(tmp_path: Path, monkeypatch: Any) -> None:
    write_folder(tmp_path / "source", QWEN, random_tensors(QWEN))
    monkeypatch.setattr(importer, "write_description", interrupt)
    with pytest.raises(KeyboardInterrupt):
        import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions(think_tokens=True))
    monkeypatch.undo()
    larger = byte_tokenizer()
    larger.add_tokens(["more"])
    larger.save(str(tmp_path / "source" / "tokenizer.json"))
    with pytest.raises(WorkdirError, match="belongs to another import: small_files differ"):
        import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions(think_tokens=True))


def test_an_import_whose_arrays_were_removed_starts_over(tmp_path: Path, monkeypatch: Any) -> None:
    write_folder(tmp_path / "source", QWEN, random_tensors(QWEN))
    monkeypatch.setattr(importer, "write_description", interrupt)
    with pytest.raises(KeyboardInterrupt):
        import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions())
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "in" / "importing")
    import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions())
    np.testing.assert_array_equal(
        restored(tmp_path / "in")["embed/embedding"], random_tensors(QWEN)["model.embed_tokens.weight"]
    )


def test_two_processes_do_not_import_into_one_folder(tmp_path: Path, monkeypatch: Any) -> None:
    write_folder(tmp_path / "source", QWEN, random_tensors(QWEN))

    def second(*args: Any, **kwargs: Any) -> None:
        with pytest.raises(WorkdirError, match="another process is importing into it"):
            import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions())
        raise KeyboardInterrupt

    monkeypatch.setattr(importer, "write_description", second)
    with pytest.raises(KeyboardInterrupt):
        import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions())


def test_an_import_that_lacks_a_chunk_is_not_finished(tmp_path: Path, monkeypatch: Any) -> None:
    write_folder(tmp_path / "source", QWEN, random_tensors(QWEN))
    monkeypatch.setattr(importer, "write_description", interrupt)
    with pytest.raises(KeyboardInterrupt):
        import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions())
    monkeypatch.undo()
    chunk = next(file for file in (tmp_path / "in" / "importing").rglob("c/**/*") if file.is_file())
    chunk.unlink()
    with pytest.raises(FileNotFoundError, match=r"has \d+ chunks of \d+: remove it"):
        import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions())
    assert not (tmp_path / "in" / "model.json").exists()


def test_values_that_the_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    tensors = random_tensors(QWEN)
    tensors["model.norm.weight"][3] = np.finfo(np.float32).max
    write_folder(tmp_path / "source", QWEN, tensors)
    with pytest.raises(WeightsError, match=r"converted to bfloat16: tensor model\.norm\.weight holds NaN or infinity"):
        import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions(param_dtype="bfloat16"))
    import_checkpoint(tmp_path / "source", tmp_path / "single", ImportOptions())
    with pytest.raises(WeightsError, match=r"in bfloat16: tensor model\.norm\.weight holds NaN or infinity"):
        export_checkpoint(tmp_path / "single", tmp_path / "out", ExportOptions("bfloat16"))
    assert not (tmp_path / "out" / "config.json").exists()


def test_half_precision_files_become_float32(tmp_path: Path) -> None:
    tensors = {name: value.astype(np.float16) for name, value in random_tensors(QWEN).items()}
    write_folder(tmp_path / "source", QWEN | {"torch_dtype": "float16"}, tensors)
    assert import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions()).param_dtype == "float32"
    embedding = restored(tmp_path / "in")["embed/embedding"]
    np.testing.assert_array_equal(embedding, tensors["model.embed_tokens.weight"].astype(np.float32))


def test_copies_are_checked_when_a_folder_is_loaded_directly(tmp_path: Path) -> None:
    tensors = random_tensors(DEEPSEEK)
    tensors["model.layers.3.shared_head.head.weight"] = tensors["model.layers.3.shared_head.head.weight"] + 1
    write_folder(tmp_path / "source", DEEPSEEK, tensors)
    with pytest.raises(WeightsError, match=r"shared_head\.head\.weight differs from lm_head\.weight"):
        load_released(tmp_path / "source")


def test_think_tokens_are_added_and_embeddings_resized(tmp_path: Path) -> None:
    fields = QWEN | {"vocab_size": 260}  # no room: 256 bytes and four special tokens
    tensors = random_tensors(fields)
    write_folder(tmp_path / "source", fields, tensors)
    cfg = import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions(think_tokens=True))
    assert cfg.vocab_size == 262
    params = restored(tmp_path / "in")
    embedding = params["embed/embedding"]
    np.testing.assert_array_equal(embedding[:260], tensors["model.embed_tokens.weight"])
    mean = tensors["model.embed_tokens.weight"].mean(0, dtype=np.float64)
    np.testing.assert_allclose(embedding[260:], [mean, mean], rtol=1e-6)
    np.testing.assert_array_equal(params["lm_head/kernel"][:, :260], tensors["lm_head.weight"].T)
    policy = load_policy(PolicySource(path=str(tmp_path / "in")), tmp_path, make_mesh(ONE, jax.devices()[:1]))
    assert policy.tokenizer.encode("<think>a</think>")[0] == 260
    assert len(policy.tokenizer.encode("<think>a</think>")) == 3
    export_checkpoint(tmp_path / "in", tmp_path / "out", ExportOptions())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 262
    import_checkpoint(tmp_path / "out", tmp_path / "again", ImportOptions())  # the tokenizer has them now
    assert_equal(restored(tmp_path / "again"), params)
    assert '"<think>"' in (tmp_path / "again" / "tokenizer.json").read_text()


def test_think_tokens_take_padding_rows_where_there_are_some(tmp_path: Path) -> None:
    tensors = random_tensors(QWEN)
    write_folder(tmp_path / "source", QWEN, tensors)
    assert import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions(think_tokens=True)).vocab_size == 320
    embedding, before = restored(tmp_path / "in")["embed/embedding"], tensors["model.embed_tokens.weight"]
    unchanged = [i for i in range(320) if i not in (260, 261)]
    np.testing.assert_array_equal(embedding[unchanged], before[unchanged])
    np.testing.assert_allclose(embedding[261], before[:260].mean(0, dtype=np.float64), rtol=1e-6)


def test_the_mtp_layer_can_be_left_out(tmp_path: Path) -> None:
    write_folder(tmp_path / "source", DEEPSEEK, random_tensors(DEEPSEEK))
    source = PolicySource(kind="huggingface", path=str(tmp_path / "source"), overrides={"mtp_depth": 0})
    direct = load_policy(source, tmp_path, make_mesh(ONE, jax.devices()[:1]))
    assert "mtp" not in direct.params
    # transformers saves such a folder: the config names the layer, no tensor is there.
    without = {n: v for n, v in random_tensors(DEEPSEEK).items() if not n.startswith("model.layers.3.")}
    write_folder(tmp_path / "saved", DEEPSEEK, without)
    assert load_released(tmp_path / "saved", mtp_depth=0)[0] == direct.model
    cfg = import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions(mtp="drop"))
    assert cfg.mtp_depth == 0
    assert not any(name.startswith("mtp") for name in restored(tmp_path / "in"))
    export_checkpoint(tmp_path / "in", tmp_path / "out", ExportOptions())
    assert not any(name.startswith("model.layers.3.") for name in stored(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == DEEPSEEK | {"num_nextn_predict_layers": 0}


def test_training_passes_on_what_the_release_said_about_itself(tmp_path: Path) -> None:
    write_folder(tmp_path / "source", DEEPSEEK, random_tensors(DEEPSEEK))
    said = '{"temperature": 0.7, "eos_token_id": [257, 3]}'
    (tmp_path / "source" / "generation_config.json").write_text(said)
    import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions())
    for kind, path in (("stage", "in"), ("huggingface", "source")):
        source = PolicySource(kind=kind, path=str(tmp_path / path), overrides={"param_dtype": "float32"})
        policy = load_policy(source, tmp_path, make_mesh(ONE, jax.devices()[:1]))
        stage = tmp_path / kind
        stage.mkdir()
        describe_policy(stage, policy)
        save_policy(stage, policy.params, 5)
        export_checkpoint(stage, tmp_path / f"out_{kind}", ExportOptions("bfloat16"))
        assert (tmp_path / f"out_{kind}" / "generation_config.json").read_text() == said
        assert json.loads((tmp_path / f"out_{kind}" / "config.json").read_text()) == DEEPSEEK


Edit = Callable[[Path, dict[str, Any], dict[str, np.ndarray]], None]


def _drop(name: str) -> Edit:
    def edit(path: Path, fields: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        del tensors[name]

    return edit


def _set(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    def edit(path: Path, fields: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        tensors[name] = change(tensors[name])

    return edit


def _config(**changes: Any) -> Edit:
    return lambda path, fields, tensors: fields.update(changes)


def _nan(value: np.ndarray) -> np.ndarray:
    value = value.copy()
    value.reshape(-1)[7] = np.nan
    return value


EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"
DAMAGES: dict[str, tuple[Edit, str]] = {
    "wrong shape": (
        _set(EXPERT, lambda v: np.ascontiguousarray(v.T)),
        rf"tensor {EXPERT} has shape \[144, 40\], the configuration wants \[40, 144\]",
    ),
    "missing tensor": (_drop(EXPERT), rf"lacks tensors: {EXPERT}"),
    "NaN": (
        _set("model.layers.0.self_attn.kv_b_proj.weight", _nan),
        r"tensor model\.layers\.0\.self_attn\.kv_b_proj\.weight holds NaN",
    ),
    "unknown tensor": (
        lambda path, fields, tensors: tensors.update({"model.extra": np.zeros(3, np.float32)}),
        r"has unknown tensors: model\.extra",
    ),
    "more layers in the config": (
        _config(num_hidden_layers=4),
        r"has no tensors of the multi-token prediction layer \(model\.layers\.4\.\*\).* --mtp drop",
    ),
    "other width in the config": (_config(hidden_size=160), r"the configuration wants \[320, 160\]"),
    "tied in the config, two different matrices": (
        _config(tie_word_embeddings=True),
        r"tensor .* differs from model\.embed_tokens\.weight",
    ),
    "MTP copies that differ": (
        _set("model.layers.3.embed_tokens.weight", lambda v: v + 1),
        r"model\.layers\.3\.embed_tokens\.weight differs from model\.embed_tokens\.weight",
    ),
    "a vocabulary without room for the tokenizer": (
        lambda path, fields, tensors: (path / "large_tokenizer").touch(),
        r"the tokenizer has 9000 tokens, but vocab_size is 320",
    ),
    "eos of another tokenizer": (_config(eos_token_id=3), r"tokenizer's eos has id 257, .* say 3"),
    "eos outside of the vocabulary": (_config(eos_token_id=[257, 400]), r"eos_token_id 400 is outside the vocabulary"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_leaves_nothing_that_looks_whole(tmp_path: Path, damage: str) -> None:
    edit, message = DAMAGES[damage]
    fields, tensors = dict(DEEPSEEK), random_tensors(DEEPSEEK)
    edit(tmp_path, fields, tensors)
    write_folder(tmp_path / "source", fields, tensors)
    if (tmp_path / "large_tokenizer").exists():
        large = byte_tokenizer()
        large.add_tokens([f"word{i}" for i in range(9000 - 260)])
        large.save(str(tmp_path / "source" / "tokenizer.json"))
    with pytest.raises(WeightsError, match=message) as error:
        import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions())
    print(f"{damage}: {error.value}")
    assert not (tmp_path / "in" / "model").exists()
    assert not (tmp_path / "in" / "model.json").exists()


def test_damaged_files_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    def fresh(name: str, **changes: Any) -> Path:
        write_folder(tmp_path / name, DEEPSEEK | changes, with_fp8(random_tensors(DEEPSEEK)), shards=3)
        return tmp_path / name

    def refused(folder: Path, message: str) -> None:
        with pytest.raises(ValueError, match=message) as error:
            ReleasedFolder(folder)
        print(error.value)

    folder = fresh("truncated")
    shard = folder / "model-00002-of-000003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(folder, r"model-00002-of-000003\.safetensors is not a whole safetensors file")
    folder = fresh("missing")
    (folder / "model-00003-of-000003.safetensors").unlink()
    refused(folder, r"lacks shards that its index names: model-00003-of-000003\.safetensors")
    folder = fresh("index")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.layers.9.nothing.weight"] = "model-00001-of-000003.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, r"tensors of the index that its shards lack: model\.layers\.9\.nothing\.weight")
    del index["weight_map"]["model.layers.9.nothing.weight"], index["weight_map"]["model.norm.weight"]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, r"holds tensor model\.norm\.weight, which the index has nowhere")
    folder = fresh("config")
    (folder / "config.json").write_text("{")
    refused(folder, r"config\.json is not JSON")
    (folder / "config.json").unlink()
    refused(folder, r"has no config\.json")
    tensors = with_fp8(random_tensors(DEEPSEEK))
    lacking = {n: v for n, v in tensors.items() if n != f"{EXPERT}{SCALE_SUFFIX}"}
    write_folder(tmp_path / "scale", DEEPSEEK, lacking)
    refused(tmp_path / "scale", rf"FP8 tensors without _scale_inv: {EXPERT}")
    lacking[f"{EXPERT}{SCALE_SUFFIX}"] = np.ones((1, 1), np.float32)
    write_folder(tmp_path / "scale", DEEPSEEK, lacking)
    refused(tmp_path / "scale", rf"{EXPERT}_scale_inv has shape \[1, 1\], expected \[1, 2\]")
    for change, message in (
        ({"quant_method": "gptq"}, "quantization_config.quant_method is 'gptq'"),
        ({"weight_block_size": [64, 64]}, r"weight_block_size is \[64, 64\], only \[128, 128\]"),
        ({"bits": 4}, "quantization_config.bits is 4, which is not supported"),
    ):
        refused(fresh(message[:30].replace(".", "_"), quantization_config=FP8 | change), message)


def test_ue8m0_scales_must_be_powers_of_two(tmp_path: Path) -> None:
    fields = DEEPSEEK | {"quantization_config": FP8 | {"scale_fmt": "ue8m0"}}
    write_folder(tmp_path / "source", fields, with_fp8(random_tensors(DEEPSEEK)))
    with pytest.raises(WeightsError, match=r"scales that are no powers of two \(ue8m0\)"):
        import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions())


def test_folders_of_something_else_are_left_alone(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", QWEN, random_tensors(QWEN))
    write_folder(tmp_path / "b", QWEN, random_tensors(QWEN, seed=1))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(WorkdirError, match=r"mine is not empty and holds no import\.json"):
        import_checkpoint(tmp_path / "a", tmp_path / "mine", ImportOptions())
    import_checkpoint(tmp_path / "a", tmp_path / "in", ImportOptions())
    with pytest.raises(WorkdirError, match="belongs to another import: shards, source differ"):
        import_checkpoint(tmp_path / "b", tmp_path / "in", ImportOptions())
    with pytest.raises(WorkdirError, match="belongs to another import: options differ"):
        import_checkpoint(tmp_path / "a", tmp_path / "in", ImportOptions(param_dtype="bfloat16"))
    with pytest.raises(WorkdirError, match="mine is not empty"):
        export_checkpoint(tmp_path / "in", tmp_path / "mine", ExportOptions())
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_too_little_room_is_said_before_the_start(tmp_path: Path, monkeypatch: Any) -> None:
    write_folder(tmp_path / "source", QWEN, random_tensors(QWEN))
    usage = importer.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(importer.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskFullError, match=r"MiB are to be written, 0 MiB are free"):
        import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions())
    assert not (tmp_path / "in" / "importing").exists()


def test_a_damaged_import_is_not_exported(tmp_path: Path) -> None:
    write_folder(tmp_path / "source", QWEN, random_tensors(QWEN))
    import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions())
    chunk = max((tmp_path / "in" / "model").rglob("c/*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    chunk = next(p for p in [chunk, *chunk.rglob("*")] if p.is_file())
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions())  # said, not passed over
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        export_checkpoint(tmp_path / "in", tmp_path / "out", ExportOptions())
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_checkpoint_saved_by_a_stage_is_exported_the_same(tmp_path: Path) -> None:
    tensors = random_tensors(DEEPSEEK)
    write_folder(tmp_path / "source", DEEPSEEK, tensors)
    import_checkpoint(tmp_path / "source", tmp_path / "in", ImportOptions(param_dtype="float32"))
    policy = load_policy(PolicySource(path=str(tmp_path / "in")), tmp_path, make_mesh(ONE, jax.devices()[:1]))
    stage: pathlib.Path = tmp_path / "stage"
    stage.mkdir()
    for name in ("model.json", "tokenizer.json", "tokenizer_config.json"):
        (stage / name).write_bytes((tmp_path / "in" / name).read_bytes())
    CheckpointStore(stage / "model", keep=1).save(70, policy.params)  # by orbax, with its own chunks
    export_checkpoint(stage, tmp_path / "out", ExportOptions("bfloat16"))
    assert_equal(stored(tmp_path / "out"), tensors)
    # There is no released/config.json: the configuration is written from ours, and means the same model.
    assert load_released(tmp_path / "out")[0].mtp_depth == 1
    assert load_released(tmp_path / "out", init_std=0.0)[0] == load_released(tmp_path / "source", init_std=0.0)[0]
