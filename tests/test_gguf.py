"""Models and tokenizers from GGUF files: tiny ones written here, and SmolLM2 where its package is installed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.data.tokenizer import _byte_of_character
from r1jax.model.config import GQAConfig
from r1jax.model.presets import get_preset
from r1jax.model.transformer import Transformer
from r1jax.sharding import MeshConfig, make_mesh
from r1jax.weights import names
from r1jax.weights.gguf import GGUFFile, gguf_config, gguf_tokenizer, load_gguf, locate_smollm2
from r1jax.weights.names import WeightsError

WIDTH, HEADS, KV_HEADS, HEAD_DIM, FFN, LAYERS = 64, 4, 2, 16, 96, 2
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ a", "a b", "Ġ ab", "Ã ©"]  # the last one makes é of its two bytes
VOCABULARY = CONTROLS + sorted(_byte_of_character()) + [merge.replace(" ", "") for merge in MERGES] + ["<think>"]
VOCAB = len(VOCABULARY)


def released_tensors(architecture: str, *, tied: bool) -> dict[str, np.ndarray]:
    """Random tensors in the layout of a released checkpoint: [out, in], rotated dimensions in halves."""
    rng = np.random.default_rng(7)

    def matrix(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    tensors = {"token_embd.weight": matrix(VOCAB, WIDTH), "output_norm.weight": matrix(WIDTH)}
    if not tied:
        tensors["output.weight"] = matrix(VOCAB, WIDTH)
    for layer in range(LAYERS):
        block = {
            "attn_norm.weight": matrix(WIDTH),
            "attn_q.weight": matrix(HEADS * HEAD_DIM, WIDTH),
            "attn_k.weight": matrix(KV_HEADS * HEAD_DIM, WIDTH),
            "attn_v.weight": matrix(KV_HEADS * HEAD_DIM, WIDTH),
            "attn_output.weight": matrix(WIDTH, HEADS * HEAD_DIM),
            "ffn_norm.weight": matrix(WIDTH),
            "ffn_gate.weight": matrix(FFN, WIDTH),
            "ffn_up.weight": matrix(FFN, WIDTH),
            "ffn_down.weight": matrix(WIDTH, FFN),
        }
        if architecture == "qwen2":
            block |= {
                "attn_q.bias": matrix(HEADS * HEAD_DIM),
                "attn_k.bias": matrix(KV_HEADS * HEAD_DIM),
                "attn_v.bias": matrix(KV_HEADS * HEAD_DIM),
            }
        if architecture == "qwen3":
            block |= {"attn_q_norm.weight": matrix(HEAD_DIM), "attn_k_norm.weight": matrix(HEAD_DIM)}
        tensors |= {f"blk.{layer}.{name}": value for name, value in block.items()}
    return tensors


def as_llama_cpp_stores(name: str, value: np.ndarray) -> np.ndarray:
    """llama.cpp's converter: W.reshape(heads, 2, head_dim / 2, in).swapaxes(1, 2) of q and k."""
    heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.split(".")[-2])
    if heads is None:
        return value
    return value.reshape(heads, 2, HEAD_DIM // 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def write_gguf(
    path: Path,
    architecture: str = "llama",
    *,
    tied: bool = True,
    quantization: gguf.GGMLQuantizationType | None = None,
    change: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    edit: Callable[[dict[str, np.ndarray]], Any] = lambda tensors: None,
) -> dict[str, np.ndarray]:
    """Writes a tiny model and returns its tensors in the released layout."""
    released = released_tensors(architecture, tied=tied)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3] * len(CONTROLS) + [1] * (VOCAB - len(CONTROLS) - 1) + [4])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    change(writer)
    stored = {
        name: as_llama_cpp_stores(name, value) if architecture == "llama" else value for name, value in released.items()
    }
    edit(stored)
    for name, value in stored.items():
        if quantization is not None and value.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(value, quantization), raw_dtype=quantization)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return released


def test_order_of_rotated_dimensions_by_hand() -> None:
    # Two heads of 4 dimensions: llama.cpp stores 0, 2, 1, 3 of each head, so that pairs (0, 2) and (1, 3) touch.
    stored = np.array([0, 2, 1, 3, 10, 12, 11, 13], np.float32)
    split = names.to_parameter(names.Source("attn_q.bias", (8,), ("q", "bias"), "rotary"), stored, (2, 4))
    np.testing.assert_array_equal(split, [[0, 1, 2, 3], [10, 11, 12, 13]])


@pytest.mark.parametrize(
    ("architecture", "tied"), [("llama", True), ("llama", False), ("qwen2", False), ("qwen3", True)]
)
def test_parameters_are_those_of_the_released_checkpoint(tmp_path: Path, architecture: str, tied: bool) -> None:
    released = write_gguf(tmp_path / "m.gguf", architecture, tied=tied)
    cfg, params = load_gguf(tmp_path / "m.gguf")
    assert cfg.attention == GQAConfig(HEADS, KV_HEADS, HEAD_DIM, architecture == "qwen2", architecture == "qwen3")
    assert (cfg.tied_embeddings, cfg.norm_eps, cfg.max_positions, cfg.rope.theta) == (tied, 1e-5, 256, 10000.0)
    np.testing.assert_array_equal(params["embed"]["embedding"], released["token_embd.weight"])
    if not tied:
        np.testing.assert_array_equal(params["lm_head"]["kernel"], released["output.weight"].T)
    layers = params["dense_layers"]
    for layer in range(LAYERS):
        x = np.random.default_rng(layer).normal(size=WIDTH).astype(np.float32)
        for short, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            ours = np.einsum("d,dnh->nh", x, layers["attn"][short]["kernel"][layer])
            theirs = (released[f"blk.{layer}.attn_{short}.weight"] @ x).reshape(heads, HEAD_DIM)
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
            if architecture == "qwen2":
                bias = released[f"blk.{layer}.attn_{short}.bias"].reshape(heads, HEAD_DIM)
                np.testing.assert_array_equal(layers["attn"][short]["bias"][layer], bias)
        out = np.random.default_rng(layer).normal(size=(HEADS, HEAD_DIM)).astype(np.float32)
        ours = np.einsum("nh,nhd->d", out, layers["attn"]["o"]["kernel"][layer])
        theirs = released[f"blk.{layer}.attn_output.weight"] @ out.ravel()
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
        for short in ("gate", "up", "down"):
            kernel = released[f"blk.{layer}.ffn_{short}.weight"].T
            np.testing.assert_array_equal(layers["mlp"][short]["kernel"][layer], kernel)
        np.testing.assert_array_equal(layers["ffn_norm"]["scale"][layer], released[f"blk.{layer}.ffn_norm.weight"])
        if architecture == "qwen3":
            norm = released[f"blk.{layer}.attn_k_norm.weight"]
            np.testing.assert_array_equal(layers["attn"]["k_norm"]["scale"][layer], norm)
    tokens = jnp.array([[1, 5, 9]])
    logits = Transformer(cfg).apply({"params": params}, tokens, jnp.array([[0, 1, 2]])).logits
    assert logits.shape == (1, 3, VOCAB)
    assert bool(jnp.isfinite(logits).all())


def test_quantized_tensors_are_dequantized(tmp_path: Path) -> None:
    released = write_gguf(tmp_path / "m.gguf", quantization=gguf.GGMLQuantizationType.Q8_0)
    _, params = load_gguf(tmp_path / "m.gguf")
    gate = np.asarray(params["dense_layers"]["mlp"]["gate"]["kernel"][1])
    stored = released["blk.1.ffn_gate.weight"].T
    # Q8_0: blocks of 32 with a half-precision scale max/127, so the error is at most half a step (and the scale's own).
    assert np.abs(gate - stored).max() <= 0.51 * np.abs(stored).max() / 127
    assert np.abs(gate - stored).max() > 0


def test_parameters_are_placed_on_the_mesh_in_the_asked_type(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    cfg, params = load_gguf(tmp_path / "m.gguf", mesh=mesh, param_dtype="bfloat16", remat="block")
    kernel = params["dense_layers"]["mlp"]["gate"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    assert cfg.remat == "block"
    assert kernel.addressable_shards[0].data.size < kernel.size


def test_missing_unknown_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, edit=lambda tensors: tensors.pop("blk.1.ffn_up.weight"))
    with pytest.raises(WeightsError, match=r"lacks tensors: blk\.1\.ffn_up\.weight"):
        load_gguf(path)
    write_gguf(path, edit=lambda tensors: tensors.update({"rope_factors_long.weight": np.ones(8, np.float32)}))
    with pytest.raises(WeightsError, match=r"has unknown tensors: rope_factors_long\.weight"):
        load_gguf(path)
    write_gguf(path, edit=lambda tensors: tensors.update({"blk.0.ffn_gate.weight": np.ones((FFN, 8), np.float32)}))
    with pytest.raises(WeightsError, match=r"tensor blk\.0\.ffn_gate\.weight has shape \[96, 8\]"):
        load_gguf(path)
    # The transpose has as many elements: it must not pass for the right one.
    write_gguf(path, edit=lambda tensors: tensors.update({"blk.0.ffn_gate.weight": np.ones((WIDTH, FFN), np.float32)}))
    with pytest.raises(WeightsError, match=r"tensor blk\.0\.ffn_gate\.weight has shape \[64, 96\]"):
        load_gguf(path)
    write_gguf(path, edit=lambda tensors: tensors.update({"blk.0.attn_v.weight": np.ones((16, 128), np.float32)}))
    with pytest.raises(WeightsError, match=r"tensor blk\.0\.attn_v\.weight has shape \[16, 128\]"):
        load_gguf(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), r"llama\.rope\.scaling\.type is 'yarn'"),
        (lambda w: w.add_sliding_window(4096), r"llama\.attention\.sliding_window is 4096"),
        (lambda w: w.add_expert_count(8), r"llama\.expert_count is 8"),
        (lambda w: w.add_rope_dimension_count(8), r"llama\.rope\.dimension_count is 8, the head dimension is 16"),
        (lambda w: w.add_value_length(32), r"llama\.attention\.value_length is 32, the head dimension is 16"),
        (lambda w: w.add_vocab_size(17), r"llama\.vocab_size is 17, but the tokenizer has 264 tokens"),
    ],
)
def test_settings_we_do_not_compute_are_refused_by_name_and_value(
    tmp_path: Path, change: Callable[[gguf.GGUFWriter], None], message: str
) -> None:
    write_gguf(tmp_path / "m.gguf", change=change)
    with pytest.raises(WeightsError, match=message):
        load_gguf(tmp_path / "m.gguf")


def test_other_architectures_and_broken_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with pytest.raises(FileNotFoundError, match="no GGUF file"):
        load_gguf(path)
    write_gguf(path, "gemma")
    with pytest.raises(WeightsError, match=r"general\.architecture is 'gemma', known are llama, qwen2, qwen3"):
        load_gguf(path)
    path.write_bytes(b"not a model")
    with pytest.raises(WeightsError, match="is not a whole GGUF file"):
        load_gguf(path)
    write_gguf(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="is not a whole GGUF file"):
        load_gguf(path)


def test_tokenizer_by_hand(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    tokenizer = gguf_tokenizer(tmp_path / "m.gguf")
    place = {token: i for i, token in enumerate(VOCABULARY)}
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id) == (VOCAB, 2, None, 2)
    # " ab": "Ġ a" is merged first (rank 0), and then no merge of "Ġa" and "b" exists.
    assert tokenizer.encode(" ab") == [place["Ġa"], place["b"]]
    assert tokenizer.encode("ab") == [place["ab"]]
    assert tokenizer.encode("12") == [place["1"], place["2"]]
    assert tokenizer.encode(" 1") == [place["Ġ"], place["1"]]  # SmolLM2 cuts the space off a digit
    assert tokenizer.encode("é<think><|im_end|>") == [place["Ã©"], place["<think>"], 2]
    text = "ab  é 12\n\t家 <think>"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bos_is_put_in_front_only_where_the_file_says_so(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", change=lambda w: w.add_add_bos_token(True))
    assert gguf_tokenizer(tmp_path / "m.gguf").bos_id == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.add_tokenizer_model("llama"), r"tokenizer\.ggml\.model is 'llama', known are gpt2"),
        (lambda w: w.add_tokenizer_pre("tekken"), r"tokenizer\.ggml\.pre is 'tekken', known are smollm"),
    ],
)
def test_other_tokenizers_are_refused(tmp_path: Path, change: Callable[[gguf.GGUFWriter], None], message: str) -> None:
    write_gguf(tmp_path / "m.gguf", change=change)
    with pytest.raises(WeightsError, match=message):
        gguf_tokenizer(tmp_path / "m.gguf")


def test_smollm2_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"r1jax\[smollm2\]"):
        locate_smollm2()


@pytest.fixture(scope="module")
def smollm2() -> GGUFFile:
    # Not importorskip: importing the package would want llama.cpp, of which nothing is used.
    try:
        return GGUFFile(locate_smollm2())
    except ImportError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_smollm2_is_the_preset(smollm2: GGUFFile) -> None:
    preset = get_preset("smollm2_135m")
    assert gguf_config(smollm2, init_std=preset.init_std, remat=preset.remat) == preset


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(smollm2: GGUFFile) -> None:
    cfg, params = load_gguf(smollm2)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 134_515_008
    tokenizer = gguf_tokenizer(smollm2)
    ids = tokenizer.encode("The capital of France is")
    logits = Transformer(cfg).apply({"params": params}, jnp.array([ids]), jnp.arange(len(ids))[None]).logits[0, -1]
    assert tokenizer.decode([int(logits.argmax())]) == " Paris"


@pytest.mark.slow
def test_smollm2_logits_equal_those_of_transformers(smollm2: GGUFFile) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def read(name: str, heads: int = 0) -> Any:
        value = smollm2.read(name)
        if heads:
            value = value.reshape(heads, 32, 2, 576).swapaxes(1, 2).reshape(value.shape)
        return torch.tensor(np.ascontiguousarray(value))

    same = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    state = {"model.embed_tokens.weight": read("token_embd.weight"), "model.norm.weight": read("output_norm.weight")}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    for i in range(30):
        state |= {f"model.layers.{i}.{k}.weight": read(f"blk.{i}.{v}.weight") for k, v in same.items()}
        state[f"model.layers.{i}.self_attn.q_proj.weight"] = read(f"blk.{i}.attn_q.weight", heads=9)
        state[f"model.layers.{i}.self_attn.k_proj.weight"] = read(f"blk.{i}.attn_k.weight", heads=3)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 1e5},
            tie_word_embeddings=True,
        )
    ).eval()
    model.load_state_dict(state)
    cfg, params = load_gguf(smollm2)
    ids = gguf_tokenizer(smollm2).encode("Once upon a time, 12 + 35 = 47. The quick brown fox jumps; 我们。" * 3)
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits.numpy()
    ours = Transformer(cfg).apply({"params": params}, jnp.array([ids]), jnp.arange(len(ids))[None]).logits
    assert np.abs(theirs).max() > 20
    np.testing.assert_allclose(ours, theirs, atol=5e-4, rtol=0)


@pytest.mark.slow
def test_smollm2_tokenizer_equals_byte_pair_encoding_written_out(smollm2: GGUFFile) -> None:
    regex = pytest.importorskip("regex")
    tokenizer = gguf_tokenizer(smollm2)
    place = {token: i for i, token in enumerate(smollm2.require("tokenizer.ggml.tokens"))}
    ranks = {tuple(m.split(" ")): r for r, m in enumerate(smollm2.require("tokenizer.ggml.merges"))}
    character_of = {byte: character for character, byte in _byte_of_character().items()}
    # llama.cpp's two expressions for "smollm": single digits first, then GPT-2's.
    words = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

    def reference(text: str) -> list[int]:
        ids = []
        for part in regex.split(r"(\p{N})", text):
            for word in regex.findall(words, part):
                pieces = [character_of[b] for b in word.encode()]
                while len(pieces) > 1:
                    rank, at = min((ranks.get(pair, 10**9), i) for i, pair in enumerate(itertools.pairwise(pieces)))
                    if rank == 10**9:
                        break
                    pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
                ids += [place[piece] for piece in pieces]
        return ids

    texts = [
        "compute 7 + 5 - 3 ? <think> 12 - 4 = 8 </think> <answer> 8 </answer>",
        "  12345 a\n\nb\t x  ",
        "don't we'll I'D 3.14 x²=½ ٣",
        "State the final answer to the following arithmetic problem: 47 + 8 - 13 =",
        "七加五得十二，减三得九。 Ünïcödé 🦄🏳️‍🌈",
        "def f(x):\n    return x ** 2  # a comment\n",
    ]
    for text in texts:
        assert tokenizer.encode(text) == reference(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
