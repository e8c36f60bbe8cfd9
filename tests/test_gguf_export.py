"""GGUF files written here: read back by our own importer, and by transformers where it is installed."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import traverse_util

from r1jax.checkpoint import CheckpointStore, DiskFullError
from r1jax.data.tokenizer import HuggingFaceTokenizer, train_sentencepiece
from r1jax.model.config import GQAConfig, Llama3RopeConfig, ModelConfig, RopeConfig, YarnConfig
from r1jax.model.presets import get_preset
from r1jax.model.rope import rope_frequencies
from r1jax.model.transformer import Transformer
from r1jax.sampling.sampler import Sampler, SamplingConfig, left_pad
from r1jax.types import Params
from r1jax.weights import gguf_export
from r1jax.weights.gguf import (
    GGUFFile,
    gguf_config,
    gguf_tokenizer,
    llama3_factors,
    llama3_scaling,
    load_gguf,
    locate_smollm2,
)
from r1jax.weights.gguf_export import export_gguf, pre_tokenizer_name, write_gguf
from r1jax.weights.names import Source, WeightsError, flat_shapes, gguf_table, to_stored
from r1jax.weights.policy_folder import write_description

LLAMA = GQAConfig(num_heads=4, num_kv_heads=2, head_dim=16)
QWEN2 = dataclasses.replace(LLAMA, qkv_bias=True)
QWEN3 = dataclasses.replace(LLAMA, head_dim=24, qk_norm=True)  # heads wider than width / num_heads
LLAMA3_ROPE = RopeConfig(5e5, Llama3RopeConfig(32.0, 1.0, 4.0, 8192))
YARN_ROPE = RopeConfig(1e6, YarnConfig(4.0, 32768, mscale=None, mscale_all_dim=None))

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"attention": LLAMA}),
    "llama_tied_llama3": ("llama", {"attention": LLAMA, "tied_embeddings": True, "rope": LLAMA3_ROPE}),
    "qwen2": ("qwen2", {"attention": QWEN2}),
    "qwen2_tied_yarn": ("qwen2", {"attention": QWEN2, "tied_embeddings": True, "rope": YARN_ROPE}),
    "qwen3": ("qwen3", {"attention": QWEN3}),
    "qwen3_tied": ("qwen3", {"attention": QWEN3, "tied_embeddings": True}),
}

GPT_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
GPT_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def split(pattern: str, trim_offsets: bool) -> dict[str, Any]:
    """What stands in a released tokenizer.json."""
    words = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": trim_offsets, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [words, letters]}


# By tokenizer.ggml.pre: (normalizer, pre-tokenizer, ignore_merges) of the released tokenizer.json, bos.
RELEASED: dict[str, tuple[Any, Any, bool, str]] = {
    "smollm": (
        None,
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
        False,
        "<|im_start|>",
    ),
    "qwen2": ({"type": "NFC"}, split(GPT_WORDS + r"\p{N}" + GPT_REST, False), False, "<|im_start|>"),
    "deepseek-r1-qwen": (
        {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
        split(GPT_WORDS + r"\p{N}" + GPT_REST, True),
        False,
        "<｜begin▁of▁sentence｜>",
    ),
    "llama-bpe": (None, split(GPT_WORDS + r"\p{N}{1,3}" + GPT_REST, True), True, "<|begin_of_text|>"),
}
EOS, PAD, USER = "<|im_end|>", "<|pad|>", "<think>"
UNREACHABLE = "Ġunreachable"  # in the vocabulary, but no merges make it
CORPUS = [
    "the cat sat on the mat 1234 1234",
    "don't we'll I've they're",
    "我们 我们 数学 数学",
    "é è ü ñ 🦄 🦄",
    "x  =  y\n\n\n",
]
HARD_TEXTS = [
    "",
    " ",
    "12345678 1 12 123 3.14 x²=½ ٣٤٥",
    "don't we'll I'D THEY'RE 'tis o'clock's",
    "a\n\nb\t x  \r\n \n  end   ",
    "我们的数学，一二三。七加五得十二",
    "é e\u0301 Ünïcödé ﬁ Å",
    "🦄🏳️‍🌈👩‍👩‍👧 ok",
    "<think>2 + 2</think><|im_end|>x<|im_start|>user\n<｜begin▁of▁sentence｜><|begin_of_text|><|eot_id|>",
    "<|im_end |> < |pad|> <thin k> [PAD700] <|reserved",
    "unreachable the unreachable Ġunreachable \u0000\u0007\u00ad",
    "def f(x):\n    return x ** 2  # a comment\n",
]


@functools.cache
def trained_json(pre: str) -> str:
    """A tokenizer.json in the released form of `pre`, trained on a few words."""
    normalizer, pre_tokenizer, ignore_merges, bos = RELEASED[pre]
    model = {"type": "BPE", "vocab": {}, "merges": [], "ignore_merges": ignore_merges}
    letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    settings = {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": letters, "model": model}
    untrained = {"version": "1.0", "added_tokens": [], "post_processor": None, **settings}
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(untrained))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    trained = json.loads(tokenizer.to_str())
    trained["model"]["vocab"][UNREACHABLE] = len(trained["model"]["vocab"])
    trained["model"]["ignore_merges"] = ignore_merges
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(trained))
    tokenizer.add_special_tokens([bos, EOS, PAD])
    tokenizer.add_tokens([tokenizers.AddedToken(USER, normalized=False)])
    return tokenizer.to_str()


def make_tokenizer(
    pre: str = "smollm", *, bos: bool = True, change: Callable[[Any], None] = lambda s: None
) -> HuggingFaceTokenizer:
    settings = json.loads(trained_json(pre))
    change(settings)
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(settings))
    return HuggingFaceTokenizer(tokenizer, EOS, RELEASED[pre][3] if bos else None, PAD)


def make_model(**fields: Any) -> ModelConfig:
    given: dict[str, Any] = {"vocab_size": 384, "width": 64, "num_dense_layers": 2, "ffn_dim": 96, "attention": LLAMA}
    return ModelConfig(**({**given, "rope": RopeConfig(1e4), "norm_eps": 1e-5, "max_positions": 256} | fields))


def make_params(cfg: ModelConfig, scale: float = 0.1) -> dict[tuple[str, ...], np.ndarray]:
    rng = np.random.default_rng(3)
    shapes = flat_shapes(cfg).items()
    return {path: np.asarray(rng.normal(scale=scale, size=leaf.shape), leaf.dtype) for path, leaf in shapes}


class Reader:
    """Stored tensors of parameters; counts how often each is read."""

    def __init__(self, params: dict[tuple[str, ...], np.ndarray]) -> None:
        self.params, self.names = params, []

    def __call__(self, source: Source) -> np.ndarray:
        self.names.append(source.name)
        return to_stored(source, self.params[source.path][source.index])


def write(
    path: Path,
    cfg: ModelConfig,
    params: dict[tuple[str, ...], np.ndarray] | None = None,
    tokenizer: HuggingFaceTokenizer | None = None,
    quantization: str = "F32",
    chat_template: str | None = None,
) -> Reader:
    reader = Reader(make_params(cfg) if params is None else params)
    tokenizer = tokenizer or make_tokenizer()
    write_gguf(path, cfg, reader, tokenizer, quantization=quantization, name="tiny", chat_template=chat_template)
    return reader


@pytest.mark.parametrize("name", MODELS)
def test_what_was_written_in_float32_is_read_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    architecture, fields = MODELS[name]
    cfg = make_model(**fields)
    reader = write(tmp_path / "m.gguf", cfg)
    assert reader.names == [source.name for source in gguf_table(cfg, architecture)]
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]
    file = GGUFFile(tmp_path / "m.gguf")
    assert file.get("general.architecture") == architecture
    found, params = load_gguf(file)
    assert dataclasses.replace(found, init_std=cfg.init_std) == cfg
    flat = traverse_util.flatten_dict(params)
    assert flat.keys() == reader.params.keys()
    for path, value in reader.params.items():
        np.testing.assert_array_equal(flat[path], value, strict=True)


def test_bfloat16_parameters_are_read_back_bit_for_bit(tmp_path: Path) -> None:
    cfg = make_model(param_dtype="bfloat16")
    reader = write(tmp_path / "m.gguf", cfg)
    _, params = load_gguf(tmp_path / "m.gguf", param_dtype="bfloat16")
    for path, value in traverse_util.flatten_dict(params).items():
        np.testing.assert_array_equal(value, reader.params[path], strict=True)


def test_float16_is_the_nearest(tmp_path: Path) -> None:
    cfg = make_model(attention=QWEN2)
    reader = write(tmp_path / "m.gguf", cfg, quantization="F16")
    file = GGUFFile(tmp_path / "m.gguf")
    for source in gguf_table(cfg, "qwen2"):
        wanted, found = reader(source), file.read(source.name)
        if wanted.ndim == 1:
            np.testing.assert_array_equal(found, wanted)
        else:
            half_step = np.spacing(np.abs(found).astype(np.float16)).astype(np.float32) / 2
            assert (np.abs(found - wanted) <= half_step).all()
            assert (found != wanted).any()


def test_q8_0_is_within_half_a_step_of_each_block(tmp_path: Path) -> None:
    cfg = make_model(attention=QWEN2)
    reader = write(tmp_path / "m.gguf", cfg, quantization="Q8_0")
    file = GGUFFile(tmp_path / "m.gguf")
    for source in gguf_table(cfg, "qwen2"):
        wanted, found = reader(source), file.read(source.name)
        if wanted.ndim == 1:
            np.testing.assert_array_equal(found, wanted)
            continue
        wanted, found = wanted.reshape(-1, 32), found.reshape(-1, 32)
        step = np.abs(wanted).max(axis=1, keepdims=True) / 127
        rounded = np.abs(wanted / step).round() * 2.0**-11  # the step itself is stored in half precision
        assert (np.abs(found - wanted) <= (0.5 + rounded + 1e-5) * step).all()
        assert (found != wanted).any()


def test_metadata_are_those_that_llama_cpp_wants(tmp_path: Path) -> None:
    cfg = make_model(rope=LLAMA3_ROPE, attention=dataclasses.replace(LLAMA, head_dim=32))
    write(tmp_path / "m.gguf", cfg, tokenizer=make_tokenizer("llama-bpe"), quantization="Q8_0", chat_template="{{ 1 }}")
    file = GGUFFile(tmp_path / "m.gguf")
    wanted = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "tiny",
        "general.file_type": 7,  # MOSTLY_Q8_0
        "general.quantization_version": 2,
        "llama.vocab_size": 384,
        "llama.context_length": 256,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 32,
        "llama.attention.value_length": 32,
        "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
        "llama.rope.dimension_count": 32,
        "llama.rope.freq_base": 5e5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "{{ 1 }}",
    }
    assert {key: file.get(key) for key in wanted} == wanted
    ids = {name: file.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding")}
    tokens, types = file.get("tokenizer.ggml.tokens"), file.get("tokenizer.ggml.token_type")
    assert {name: tokens[i] for name, i in ids.items()} == {"bos": "<|begin_of_text|>", "eos": EOS, "padding": PAD}
    assert len(tokens) == len(types) == 384
    kinds = dict(zip(tokens, types, strict=True))
    assert [kinds[token] for token in ("the", EOS, USER, "[PAD383]")] == [1, 3, 4, 5]
    assert file.get("tokenizer.ggml.merges")[0].count(" ") == 1
    stored = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert stored["rope_freqs.weight"] == stored["blk.1.attn_norm.weight"] == "F32"
    assert stored["token_embd.weight"] == stored["output.weight"] == stored["blk.0.attn_q.weight"] == "Q8_0"


def test_rows_of_q_and_k_are_in_llama_cpp_s_order(tmp_path: Path) -> None:
    cfg = make_model(attention=dataclasses.replace(LLAMA, num_heads=1, num_kv_heads=1, head_dim=4))
    params = make_params(cfg)
    kernel = params["dense_layers", "attn", "q", "kernel"]  # [layer, width, head, dim]: dim i is turned with i + 2
    kernel[0] = np.arange(4)
    write(tmp_path / "m.gguf", cfg, params)
    assert GGUFFile(tmp_path / "m.gguf").read("blk.0.attn_q.weight")[:, 0].tolist() == [0, 2, 1, 3]


# Scaling of the frequencies.


@pytest.mark.parametrize("factor", [8.0, 10.0, 32.0])
def test_factors_divide_the_frequencies(factor: float) -> None:
    scaling = Llama3RopeConfig(factor, 1.0, 4.0, 8192)
    ratio = rope_frequencies(128, RopeConfig(5e5)) / rope_frequencies(128, RopeConfig(5e5, scaling))
    factors = llama3_factors(5e5, 128, scaling)
    np.testing.assert_allclose(factors, ratio, rtol=3e-7)
    # By hand: pairs that turn at least four times in 8192 positions stay, those that turn less than once are slowed.
    assert (factors[0], factors[-1], factors.dtype) == (1.0, factor, np.float32)
    assert llama3_scaling(5e5, 128, factors, "m.gguf") == scaling


def test_factors_of_another_scaling_are_refused(tmp_path: Path) -> None:
    factors = llama3_factors(5e5, 128, Llama3RopeConfig(8.0, 1.0, 4.0, 8192))
    factors[31] *= 1.0001
    with pytest.raises(WeightsError, match=r"m\.gguf: rope_freqs\.weight\[31\] is .*factor=8\.0"):
        llama3_scaling(5e5, 128, factors, "m.gguf")
    with pytest.raises(WeightsError, match=r"rope_freqs\.weight has shape \[64\], expected \[32\]"):
        llama3_scaling(5e5, 64, factors, "m.gguf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rope": RopeConfig(5e5, Llama3RopeConfig(8.0, 2.0, 4.0, 8192))},
            r"low_freq_factor is 2\.0, GGUF files have 1",
        ),
        (
            {"rope": RopeConfig(5e5, Llama3RopeConfig(8.0, 1.0, 3.0, 8192))},
            r"high_freq_factor is 3\.0, GGUF files have 4",
        ),
        (
            {"rope": RopeConfig(5e5, Llama3RopeConfig(8.0, 1.0, 4.0, 4096))},
            r"original_max_positions is 4096.* have 8192",
        ),
        ({"rope": RopeConfig(2.0, Llama3RopeConfig(8.0, 1.0, 4.0, 8192))}, r"factor is 8\.0, but no frequency"),
        ({"rope": LLAMA3_ROPE, "attention": QWEN2}, r"Llama 3's scaling for llama only, not qwen2"),
        (
            {"rope": RopeConfig(1e6, YarnConfig(4.0, beta_fast=16.0))},
            r"beta_fast is 16\.0, llama\.cpp takes it as 32\.0",
        ),
        (
            {"rope": RopeConfig(1e6, YarnConfig(4.0))},
            r"mscale 1\.0 and mscale_all_dim 1\.0 give the amplitude 1, .* 1\.13863",
        ),
        ({"ffn_dim": 80}, r"tensor blk\.0\.ffn_down\.weight has rows of 80 numbers, Q8_0 takes blocks of 32; use F16"),
        (
            {"attention": get_preset("tiny_mla_moe").attention},
            "of the family deepseek_v3, GGUF files hold llama, qwen2, qwen3",
        ),
        ({"vocab_size": 300}, r"the tokenizer has ids up to 309, the model 300 tokens"),
    ],
)
def test_what_the_format_cannot_say_is_refused_before_anything_is_written(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    cfg = make_model(**change)
    with pytest.raises(WeightsError, match=message):
        write_gguf(
            tmp_path / "m.gguf", cfg, _unread, make_tokenizer(), quantization="Q8_0", name="m", chat_template=None
        )
    assert not list(tmp_path.iterdir())


def _unread(source: Source) -> np.ndarray:
    raise AssertionError(f"{source.name} was read")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.add_rope_scaling_factor(2.0), r"llama\.rope\.scaling\.factor is 2\.0, but .*type is 'none'"),
        (
            lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR),
            r"scaling\.type is 'linear', known are 'none' and",
        ),
        (
            lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN),
            r"type is 'yarn', but there is no .*scaling\.factor",
        ),
        (
            lambda w: w.add_rope_scaling_yarn_attn_factor(1.0),
            r"yarn_attn_factor is 1\.0, a setting that is not supported",
        ),
        (lambda w: _add_yarn(w, beta_slow=2.0), r"scaling\.yarn_beta_slow is 2\.0, only 1\.0"),
    ],
)
def test_scalings_we_do_not_compute_are_refused(
    change: Callable[[Any], None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = gguf_export._add_settings
    monkeypatch.setattr(gguf_export, "_add_settings", lambda w, cfg: (settings(w, cfg), change(w)))
    write(tmp_path / "m.gguf", make_model())
    with pytest.raises(WeightsError, match=message):
        gguf_config(GGUFFile(tmp_path / "m.gguf"))


def _add_yarn(writer: Any, beta_slow: float) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(32768)
    writer.add_rope_scaling_yarn_beta_slow(beta_slow)


# Values.


@pytest.mark.parametrize(
    ("value", "quantization", "message"),
    [
        (65505.0, "F16", r"tensor blk\.1\.ffn_up\.weight holds 65505\.0, F16 goes up to 65504\.0; use F32"),
        (-1e7, "Q8_0", r"tensor blk\.1\.ffn_up\.weight holds 10000000\.0, Q8_0 goes up to 8319008\.0; use F32"),
        (np.nan, "F32", r"tensor blk\.1\.ffn_up\.weight holds NaN or infinity"),
        (-np.inf, "Q8_0", r"tensor blk\.1\.ffn_up\.weight holds NaN or infinity"),
    ],
)
def test_values_that_cannot_be_held_are_refused_and_leave_the_old_file(
    value: float, quantization: str, message: str, tmp_path: Path
) -> None:
    cfg = make_model()
    params = make_params(cfg)
    params["dense_layers", "mlp", "up", "kernel"][1, 5, 7] = value
    (tmp_path / "m.gguf").write_text("old")
    with pytest.raises(WeightsError, match=message):
        write(tmp_path / "m.gguf", cfg, params, quantization=quantization)
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]
    assert (tmp_path / "m.gguf").read_text() == "old"


def test_the_largest_half_precision_number_is_kept(tmp_path: Path) -> None:
    cfg = make_model()
    params = make_params(cfg)
    params["dense_layers", "mlp", "up", "kernel"][1, 5, 7] = -65504.0
    write(tmp_path / "m.gguf", cfg, params, quantization="F16")
    assert GGUFFile(tmp_path / "m.gguf").read("blk.1.ffn_up.weight")[7, 5] == -65504.0


def test_a_full_disk_is_said_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(DiskFullError, match=r"m\.gguf: 0 MiB are to be written, 0 MiB are free"):
        write(tmp_path / "m.gguf", make_model())
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_to_full_disk(writer: gguf.GGUFWriter, tensor: np.ndarray) -> None:
        with Path("/dev/full").open("wb", buffering=0) as full:
            tensor.tofile(full)

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", write_to_full_disk)
    with pytest.raises(DiskFullError, match=r"m\.gguf: the disk is full; make room"):
        write(tmp_path / "m.gguf", make_model())
    assert not list(tmp_path.iterdir())


# Tokenizers.


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("pre", RELEASED)
def test_tokenizer_comes_back_as_it_was(pre: str, bos: bool, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(pre, bos=bos)
    write(tmp_path / "m.gguf", make_model(), tokenizer=tokenizer, chat_template="{{ bos_token }}")
    file = GGUFFile(tmp_path / "m.gguf")
    assert file.get("tokenizer.ggml.pre") == pre
    found = gguf_tokenizer(file)
    for text in HARD_TEXTS:
        assert found.encode(text) == tokenizer.encode(text)
        assert found.decode(found.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    for ids in np.random.default_rng(0).integers(384, size=(20, 10)):  # of the filled-up vocabulary too
        assert found.decode(ids) == tokenizer.decode(ids)
    for field in ("vocab_size", "bos_id", "eos_id", "pad_id", "control_tokens", "added_tokens"):
        assert getattr(found, field) == getattr(tokenizer, field)
    assert found.chat_template == "{{ bos_token }}"
    # Once more: nothing is lost by what the import makes of the file.
    write(tmp_path / "again.gguf", make_model(), tokenizer=found)
    again = GGUFFile(tmp_path / "again.gguf")
    for key in (key for key in file.keys if key.startswith("tokenizer.ggml")):
        assert again.get(key) == file.get(key)


def test_whole_words_of_llama_3_need_no_merges(tmp_path: Path) -> None:
    lengths = {}
    for pre in ("llama-bpe", "qwen2"):
        write(tmp_path / "m.gguf", make_model(), tokenizer=make_tokenizer(pre))
        lengths[pre] = len(gguf_tokenizer(tmp_path / "m.gguf").encode(" unreachable"))
    assert lengths["llama-bpe"] == 1
    assert lengths["qwen2"] > 1


def test_the_released_choice_about_bos_is_kept(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("qwen2")
    for said, put_in_front in ((False, False), (True, True), (None, True)):
        tokenizer._config["add_bos_token"] = said
        write(tmp_path / "m.gguf", make_model(), tokenizer=tokenizer)
        assert GGUFFile(tmp_path / "m.gguf").get("tokenizer.ggml.add_bos_token") is put_in_front
        assert (gguf_tokenizer(tmp_path / "m.gguf").bos_id is not None) == put_in_front


def test_llama_3_files_without_a_word_on_bos_put_it_in_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As llama.cpp does; for other tokenizers its default is the opposite.
    monkeypatch.setattr(gguf.GGUFWriter, "add_add_bos_token", lambda self, value: None)
    for pre, put_in_front in (("llama-bpe", True), ("qwen2", False)):
        write(tmp_path / "m.gguf", make_model(), tokenizer=make_tokenizer(pre))
        assert (gguf_tokenizer(tmp_path / "m.gguf").bos_id is not None) == put_in_front


def _set_flag(settings: dict[str, Any]) -> None:
    settings["added_tokens"][1]["lstrip"] = True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["model"].update(ignore_merges=True), r'no known GGUF name .*"ignore_merges": true'),
        (
            lambda s: s.update(normalizer={"type": "NFKC"}),
            r'\(known are smollm, qwen2.*"normalizers": \[\{"type": "NFKC"',
        ),
        (lambda s: s["pre_tokenizer"]["pretokenizers"].pop(0), r"cuts text in a way that has no known GGUF name"),
        (lambda s: s["model"].update(merges=[]), r"the tokenizer has no merges"),
        (lambda s: s["model"].update(end_of_word_suffix="</w>"), r"end_of_word_suffix is '</w>'"),
        (_set_flag, r"the token '<\|im_end\|>' has lstrip set"),
    ],
)
def test_tokenizers_that_the_format_cannot_say_are_refused(
    change: Callable[[Any], None], message: str, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=message):
        write(tmp_path / "m.gguf", make_model(), tokenizer=make_tokenizer(change=change))
    assert not list(tmp_path.iterdir())


def test_deepseek_s_distilled_qwen_is_told_from_qwen_by_its_bos() -> None:
    assert pre_tokenizer_name(json.loads(trained_json("deepseek-r1-qwen"))) == "deepseek-r1-qwen"
    assert pre_tokenizer_name(json.loads(trained_json("qwen2"))) == "qwen2"


# From the folder of a policy.


def save_policy(folder: Path, cfg: ModelConfig, tokenizer: Any) -> dict[tuple[str, ...], np.ndarray]:
    folder.mkdir()
    params = make_params(cfg)
    write_description(folder, cfg, tokenizer)
    CheckpointStore(folder / "model", keep=1).save(7, jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(params)))
    return params


def test_the_tool_writes_a_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tools.export_gguf import main

    cfg = make_model(param_dtype="bfloat16", rope=LLAMA3_ROPE)
    tokenizer = make_tokenizer("llama-bpe")
    tokenizer._config["chat_template"] = "{{ messages }}"
    params = save_policy(tmp_path / "policy", cfg, tokenizer)
    out = tmp_path / "new" / "tiny.gguf"
    arguments = ["--checkpoint", str(tmp_path / "policy"), "--out", str(out), "--type", "F32"]
    monkeypatch.setattr(sys, "argv", ["export_gguf", *arguments])
    main()
    said = capsys.readouterr()
    assert "tiny.gguf: 0." in said.out
    assert "export to tiny.gguf (MiB)" in said.err
    found, loaded = load_gguf(out, param_dtype="bfloat16")
    assert dataclasses.replace(found, init_std=cfg.init_std) == cfg
    for path, value in traverse_util.flatten_dict(loaded).items():
        np.testing.assert_array_equal(value, params[path], strict=True)
    file = GGUFFile(out)
    assert (file.get("general.name"), file.get("tokenizer.chat_template")) == ("tiny", "{{ messages }}")
    with pytest.raises(FileExistsError, match=r"tiny\.gguf is there already"):
        main()


def test_tokenizers_of_our_own_are_refused(tmp_path: Path) -> None:
    trained = train_sentencepiece(["some words to learn from"] * 50, tmp_path / "spm.model", 300)
    save_policy(tmp_path / "policy", make_model(), trained)
    with pytest.raises(WeightsError, match=r"only the tokenizer of a released model \(tokenizer\.json\)"):
        export_gguf(tmp_path / "policy", tmp_path / "m.gguf", "F16")


# The same files, read by transformers.


@pytest.fixture(scope="module")
def transformers() -> Any:
    pytest.importorskip("torch")
    pytest.importorskip("accelerate")  # transformers reads no GGUF file without it
    library = pytest.importorskip("transformers", minversion="5.23")
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    return library


def their_model(transformers: Any, file: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name).eval()


def their_logits(model: Any, ids: list[int]) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def their_greedy(model: Any, ids: list[int], steps: int) -> list[int]:
    import torch

    prompt = torch.tensor([ids])
    everything = torch.ones_like(prompt)  # otherwise tokens of the prompt that may pad are not looked at
    tokens = model.generate(
        prompt,
        attention_mask=everything,
        max_new_tokens=steps,
        min_new_tokens=steps,
        do_sample=False,
        eos_token_id=None,
    )
    return tokens[0, len(ids) :].tolist()


def our_logits(cfg: ModelConfig, params: Params, ids: list[int]) -> np.ndarray:
    logits = Transformer(cfg).apply({"params": params}, jnp.array([ids]), jnp.arange(len(ids))[None]).logits
    return np.asarray(logits[0])


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_transformers_computes_the_same_from_the_file(name: str, tmp_path: Path, transformers: Any) -> None:
    cfg = make_model(**MODELS[name][1])
    if name == "qwen3":  # transformers takes this for the head dimension of every Qwen3, whatever the file says
        cfg = dataclasses.replace(cfg, attention=dataclasses.replace(QWEN3, head_dim=128))
    write(tmp_path / "m.gguf", cfg, make_params(cfg, scale=0.3))
    _, params = load_gguf(tmp_path / "m.gguf")
    ids = np.random.default_rng(5).integers(384, size=24).tolist()
    theirs = their_logits(their_model(transformers, tmp_path / "m.gguf"), ids)
    assert np.abs(theirs).max() > 2
    np.testing.assert_allclose(our_logits(cfg, params, ids), theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("pre", ["qwen2", "llama-bpe"])
def test_transformers_reads_the_same_tokenizer(pre: str, tmp_path: Path, transformers: Any) -> None:
    tokenizer = make_tokenizer(pre, bos=False)
    cfg = make_model(attention=QWEN2 if pre == "qwen2" else LLAMA)
    write(tmp_path / "m.gguf", cfg, tokenizer=tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in CORPUS:
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)


LETTER = 40  # a token that is shown as it is


def llama_cpp_logprobs(file: Path, ids: list[int]) -> np.ndarray:
    """Log-probabilities of all tokens after `ids`, computed by llama.cpp."""
    library = pytest.importorskip("xllamacpp")
    settings = library.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx, settings.n_parallel, settings.warmup, settings.verbosity = 512, 1, False, 0
    settings.cache_type_k = settings.cache_type_v = library.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = library.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    # The bias decides what is drawn, and is not in the probabilities.
    request = {"prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": 384, "logit_bias": [[LETTER, 1000.0]]}
    answer = library.Server(settings).handle_completions(request)
    (drawn,) = answer["choices"][0]["logprobs"]["content"]
    found = {token["id"]: token["logprob"] for token in drawn["top_logprobs"]}
    return np.array([found[i] for i in range(384)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "llama_tied_llama3", "qwen2", "qwen2_tied_yarn", "qwen3"])
def test_llama_cpp_computes_the_same_from_the_file(name: str, tmp_path: Path) -> None:
    cfg = make_model(**MODELS[name][1])
    write(tmp_path / "m.gguf", cfg, make_params(cfg, scale=0.3))
    _, params = load_gguf(tmp_path / "m.gguf")
    ids = np.random.default_rng(6).integers(256, size=200).tolist()
    theirs = llama_cpp_logprobs(tmp_path / "m.gguf", ids)
    ours = jax.nn.log_softmax(our_logits(cfg, params, ids)[-1])
    np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=0)
    if cfg.rope.scaling is not None:  # which transformers passes over: without it the difference shows
        plain = dataclasses.replace(cfg, rope=RopeConfig(cfg.rope.theta))
        assert np.abs(jax.nn.log_softmax(our_logits(plain, params, ids)[-1]) - theirs).max() > 1e-2


PROMPTS = (
    "The capital of France is",
    "Once upon a time,",
    "<|im_start|>user\nWhat is 12 + 35?<|im_end|>\n<|im_start|>assistant\n",
)
STEPS = 32


@pytest.mark.slow
def test_smollm2_is_what_transformers_reads_and_is_read_back_as_it_was(tmp_path: Path, transformers: Any) -> None:
    # Not importorskip: importing the package would want llama.cpp, of which nothing is used.
    try:
        published = locate_smollm2()
    except ImportError as error:
        pytest.skip(str(error))
    file = GGUFFile(published)
    cfg, params = load_gguf(file)
    tokenizer = gguf_tokenizer(file)

    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    width = max(len(ids) for ids in prompts)
    sampler = Sampler(cfg, None, SamplingConfig(STEPS, temperature=0, regroup=STEPS), width, len(prompts))
    keys = jax.random.split(jax.random.key(0), len(prompts))
    ours = sampler.sample(params, *left_pad(prompts, width), keys).response_tokens.tolist()
    theirs = their_model(transformers, published)
    for ids, answer in zip(prompts, ours, strict=True):
        assert their_greedy(theirs, ids, STEPS) == answer
        np.testing.assert_allclose(
            our_logits(cfg, params, ids + answer), their_logits(theirs, ids + answer), atol=5e-4, rtol=0
        )
    flat = {path: np.asarray(value) for path, value in traverse_util.flatten_dict(params).items()}
    write(tmp_path / "m.gguf", cfg, flat, tokenizer)
    theirs = their_model(transformers, tmp_path / "m.gguf")
    assert [their_greedy(theirs, ids, STEPS) for ids in prompts] == ours
    again, params_again = load_gguf(tmp_path / "m.gguf")
    assert again == cfg
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params_again, params)))
    written = GGUFFile(tmp_path / "m.gguf")
    for key in ("pre", "tokens", "token_type", "merges", "eos_token_id", "padding_token_id", "add_bos_token"):
        assert written.get(f"tokenizer.ggml.{key}") == file.get(f"tokenizer.ggml.{key}")
