"""What a transformer is made of: frozen dataclasses that the model code reads and presets fill."""

from __future__ import annotations

import dataclasses
import math

REMAT = {
    "none": "everything that the backward pass needs",
    "dots": "results of products with parameters (not those of attention and experts); the rest is computed again",
    "attention": "the block's input and, of 'chunked' and the TPU's 'kernel', what spares a second forward pass",
    "block": "the block's input; all of the block is computed again",
    "offload": "the block's input, in the host's memory; all of the block is computed again",
}
"""What of a block is kept until its backward pass, from the most memory on the device to the least."""

ATTENTION = {
    "auto": "'plain' for rows within one chunk of queries and keys; longer ones: 'kernel' where there is one, else "
    "'chunked'",
    "plain": "all scores [T, T] at once",
    "chunked": "blocks of queries against chunks of keys; MLA builds keys and values chunk by chunk",
    "kernel": "a Pallas kernel, refused where it cannot do what is asked",
}
"""How attention is computed; the results differ by rounding."""

SCORING = ("sigmoid", "softmax")
"""How the router's logits become affinities: V3's, and V2's."""

GROUP_SCORES = ("top2_sum", "max")
"""What a group of experts is chosen by: V3's sum of its two best affinities, and V2's best."""

EXCHANGES = ("auto", "ragged", "dense")
"""How tokens travel along the expert axis; `auto`: 'ragged' on TPU and GPU, else 'dense'."""


@dataclasses.dataclass(frozen=True)
class YarnConfig:
    """YaRN frequency scaling (V3 section 4.3; the numbers are the released config's)."""

    factor: float = 40.0
    original_max_positions: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = 1.0  # None: the key is absent from the checkpoint's config
    mscale_all_dim: float | None = 1.0


@dataclasses.dataclass(frozen=True)
class Llama3RopeConfig:
    """Llama 3.1's frequency scaling (`rope_type: llama3`)."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding."""

    theta: float = 10000.0
    scaling: YarnConfig | Llama3RopeConfig | None = None
    interleaved: bool = False  # True: pairs (x0, x1), (x2, x3), ... as in DeepSeek; False: half-split as in Llama


@dataclasses.dataclass(frozen=True)
class MLAConfig:
    """Multi-head latent attention (V3 eq. 1-11)."""

    num_heads: int
    q_lora_rank: int | None  # None: one full-rank query projection
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int


@dataclasses.dataclass(frozen=True)
class GQAConfig:
    """Grouped-query attention of the Llama, Qwen2 and Qwen3 families."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool = False  # Qwen2
    qk_norm: bool = False  # Qwen3


@dataclasses.dataclass(frozen=True)
class MoEConfig:
    """DeepSeekMoE (V3 eq. 12-16); V2 differs in scoring, group score and normalisation."""

    num_experts: int
    num_active: int
    expert_dim: int
    num_shared: int = 1
    scoring: str = "sigmoid"  # one of `SCORING`
    num_groups: int = 1
    num_active_groups: int = 1
    group_score: str = "top2_sum"  # one of `GROUP_SCORES`
    normalize_gates: bool = True
    routed_scaling: float = 1.0
    selection_bias: bool = True  # the auxiliary-loss-free balancing bias exists
    tile_size: int = 32  # fewest rows per tile of the grouped expert product
    exchange: str = "auto"  # one of `EXCHANGES`
    buffer_factor: float = 1.5  # rows a device takes from others at a time, over the balanced share; then more rounds

    def __post_init__(self) -> None:
        for field, allowed in (("scoring", SCORING), ("group_score", GROUP_SCORES), ("exchange", EXCHANGES)):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} is {getattr(self, field)!r}, expected one of {allowed}")
        for field in ("num_experts", "num_groups", "expert_dim", "tile_size"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}, expected at least 1")
        if self.num_shared < 0:
            raise ValueError(f"num_shared is {self.num_shared}, expected 0 (none) or more")
        if not 0 < self.buffer_factor < math.inf:
            raise ValueError(f"buffer_factor is {self.buffer_factor}, expected a finite number above 0")
        self._check_groups()

    def _check_groups(self) -> None:
        if self.num_experts % self.num_groups:
            raise ValueError(f"num_groups={self.num_groups} does not divide num_experts={self.num_experts}")
        if not 1 <= self.num_active_groups <= self.num_groups:
            raise ValueError(f"num_active_groups={self.num_active_groups} is not in 1..num_groups={self.num_groups}")
        per_group = self.num_experts // self.num_groups
        if not 1 <= self.num_active <= self.num_active_groups * per_group:
            raise ValueError(
                f"num_active={self.num_active} is not in 1..{self.num_active_groups * per_group}, the experts in "
                f"num_active_groups={self.num_active_groups} groups of {per_group}"
            )
        if self.num_groups > 1 and self.group_score == "top2_sum" and per_group < 2:
            raise ValueError(f"group_score='top2_sum' needs two experts a group, got num_groups={self.num_groups}")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """One transformer: `num_dense_layers` blocks with a dense MLP, then `num_moe_layers` blocks with experts."""

    vocab_size: int
    width: int
    num_dense_layers: int
    ffn_dim: int
    attention: MLAConfig | GQAConfig
    rope: RopeConfig
    num_moe_layers: int = 0
    moe: MoEConfig | None = None  # required when num_moe_layers > 0
    mtp_depth: int = 0  # 0, or 1: the V3 multi-token prediction module (V3 eq. 21-25)
    norm_eps: float = 1e-6
    tied_embeddings: bool = False
    max_positions: int = 4096  # longest sequence the model is meant for; longer ones are refused
    init_std: float = 0.006
    dtype: str = "float32"  # of activations
    param_dtype: str = "float32"
    remat: str = "none"  # what the forward pass keeps of a block for the backward one: a key of `REMAT`
    attention_impl: str = "auto"  # a key of `ATTENTION`, for rows in one piece (training, log-probs, prefill)
    attention_query_chunk: int = 1024  # of 'chunked': queries x keys whose scores are in memory at a time
    attention_key_chunk: int = 1024

    @property
    def num_layers(self) -> int:
        return self.num_dense_layers + self.num_moe_layers

    def __post_init__(self) -> None:
        for field, value, allowed in (
            ("remat", self.remat, tuple(REMAT)),
            ("attention_impl", self.attention_impl, tuple(ATTENTION)),
            ("dtype", self.dtype, ("float32", "bfloat16")),
            ("param_dtype", self.param_dtype, ("float32", "bfloat16")),
            ("mtp_depth", self.mtp_depth, (0, 1)),
        ):
            if value not in allowed:
                raise ValueError(f"{field} is {value!r}, expected one of {allowed}")
        for field in ("attention_query_chunk", "attention_key_chunk"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}, expected at least 1 token")
        if self.num_moe_layers and self.moe is None:
            raise ValueError(f"num_moe_layers is {self.num_moe_layers}, so moe must be given")
        if isinstance(self.attention, GQAConfig) and self.attention.num_heads % self.attention.num_kv_heads:
            raise ValueError(
                f"attention.num_kv_heads={self.attention.num_kv_heads} does not divide "
                f"attention.num_heads={self.attention.num_heads}"
            )
