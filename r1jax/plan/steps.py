"""The steps of a stage as a plan sees them: the stage's own jitted functions with abstract arguments.

Nothing is allocated and nothing is run: arguments are shapes with shardings on a mesh whose devices need not exist.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from r1jax.data.scored_rows import ScoredRows
from r1jax.model.config import ModelConfig
from r1jax.model.flops import attention_flops, forward_flops, sampling_flops, training_flops
from r1jax.optim import make_optimizer
from r1jax.sampling.decode import Decoder
from r1jax.sampling.programs import Programs, rows_together
from r1jax.sharding import batch_sharding, decoding_mesh
from r1jax.stages import next_token, reward_model, rl
from r1jax.stages.checks import check_decoded, check_divides, check_trainable
from r1jax.stages.next_token import Training
from r1jax.stages.pretrain import PretrainConfig, training_of
from r1jax.stages.reward_model import RewardModelConfig
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.scalar_model import scored_model
from r1jax.stages.sft_config import SFTConfig
from r1jax.stages.state import abstract_state, placed_abstract_params
from r1jax.types import PackedBatch, PolicyBatch

LONG_RUN = 1_000_000  # updates: how long a schedule is does not change the program
StageConfig = RLConfig | SFTConfig | PretrainConfig | RewardModelConfig


@dataclasses.dataclass(frozen=True)
class PlannedStep:
    """One compiled program of a stage."""

    name: str
    what: str  # its size, in words
    function: Any  # jitted, as the stage runs it
    arguments: tuple[Any, ...]  # ShapeDtypeStructs with shardings
    tokens: float  # of one call, on all devices
    model_flops: float  # that the model costs for them (`model.flops`), on all devices
    calls: float  # in one step of the stage: a rollout and its updates, or one update
    assignments: float = 0.0  # rows that experts are given at a time, in each layer, on all devices
    # What else lies in the devices' memory meanwhile: trees of ShapeDtypeStructs.
    beside: tuple[Any, ...] = ()
    attention_flops: float = 0.0  # of the forward pass, between tokens of whole rows, on all devices
    trains: bool = False  # a backward pass belongs to it
    compute_bytes: int = 2  # of a parameter in the type that is computed in
    params_at: int = 0  # which of the arguments are the parameters
    iterations: float = 1.0  # of the loop whose end depends on data: tokens that a call of decode draws

    def lower(self) -> Any:
        """The program for the devices of its arguments' shardings."""
        return self.function.lower(*self.arguments)


def tree_bytes(tree: Any) -> float:
    """Bytes of a tree of ShapeDtypeStructs on one device; what lies in host memory does not count."""
    return float(sum(_leaf_bytes(leaf) for leaf in jax.tree.leaves(tree)))


def _leaf_bytes(leaf: Any) -> float:
    sharding = getattr(leaf, "sharding", None)
    if getattr(sharding, "memory_kind", None) in ("pinned_host", "unpinned_host"):
        return 0.0
    shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize


def planned_steps(config: StageConfig, model: ModelConfig, mesh: Mesh) -> list[PlannedStep]:
    """All programs of a stage. Raises ConfigError or PlanError naming the field that does not fit the mesh."""
    optimizer = config.optimizer_config(LONG_RUN) if isinstance(config, SFTConfig) else config.optimizer
    check_trainable(model, optimizer)
    steps = STEPS[type(config)](config, model, mesh)
    width = jnp.dtype(model.dtype).itemsize
    return [dataclasses.replace(step, compute_bytes=width) for step in steps]


def row_length(config: StageConfig) -> int:
    """Tokens of a row that is trained on."""
    return config.max_length if isinstance(config, RewardModelConfig) else config.row_length


def rows_at_once(config: StageConfig) -> int:
    """Rows of one forward and backward pass."""
    return config.micro_rows or (config.rows if isinstance(config, SFTConfig | PretrainConfig) else 0)


def rl_steps(config: RLConfig, model: ModelConfig, mesh: Mesh) -> list[PlannedStep]:
    """Prefill, decode at the first and the last chunk, log-probs, gradients of one micro-batch, the update."""
    check_divides("micro_rows", config.micro_rows, mesh)
    check_decoded(config.decoding.batch_size, mesh, config.group_size)
    trainer = rl.Trainer(config, model, mesh)
    state = abstract_state(model, trainer.optimizer, mesh)
    reference = trainer.abstract_reference(state.params)
    tokens, length = config.micro_rows * filled_tokens(config), config.prompt.width + config.longest_response
    micro_batches = math.ceil(update_rows(config) / config.micro_rows)
    packed = packed_rows(mesh, config.micro_rows, config.row_length, config.shared_prompts)
    updates = config.updates_per_rollout
    size = f"{config.micro_rows} rows of {config.row_length:,} tokens"
    scored = PlannedStep(
        "log-probs",
        size,
        trainer.score_rows,
        (state.params, packed),
        tokens=tokens,
        model_flops=forward_flops(model, tokens, length),
        calls=2 * config.minibatches * micro_batches,  # of the policy and of the reference
        **_of_rows(model, packed),
        # The reference, or the policy while a reference from the host is scored with.
        beside=(state.opt_state, state.params),
    )
    batch = policy_batch(packed)
    arguments = (state.params, batch, jax.ShapeDtypeStruct((), jnp.float32))
    gradients = PlannedStep(
        "gradients", size, trainer.accumulate.first, arguments, tokens, training_flops(model, tokens, length), updates,
        beside=(state.opt_state, reference), trains=True, **_of_rows(model, packed),
    )  # fmt: skip
    return [
        *sampling_steps(config, model, mesh, (state.opt_state, reference)),
        scored,
        *_accumulation(gradients, trainer, micro_batches),
        _apply_step(trainer, state, arguments, updates, (reference,)),
    ]


def sequences_in_row(config: RLConfig) -> int:
    """Responses that a row holds if every prompt and response is as long as may be."""
    prompt, response = config.prompt.width, config.longest_response
    if not config.shared_prompts:
        return max(config.row_length // (prompt + response - 1), 1)
    return max((config.row_length - prompt) // response, 1)


def filled_tokens(config: RLConfig) -> int:
    """Tokens of such a row that are not filling."""
    prompt, response = config.prompt.width, config.longest_response
    if config.shared_prompts:
        return min(prompt + sequences_in_row(config) * response, config.row_length)
    return min(sequences_in_row(config) * (prompt + response), config.row_length)


def update_rows(config: RLConfig) -> int:
    """Rows that one mini-batch fills if every prompt and response is as long as may be."""
    sequences = config.prompts * config.group_size // config.minibatches
    return math.ceil(sequences / sequences_in_row(config))


def kept_bytes(config: StageConfig, model: ModelConfig, mesh: Mesh) -> float:
    """Bytes of a device that training keeps: parameters, optimiser state, the sum of gradients, and RL's reference."""
    optimizer = config.optimizer_config(LONG_RUN) if isinstance(config, SFTConfig) else config.optimizer
    state = abstract_state(model, make_optimizer(optimizer), mesh)
    width = jnp.dtype(model.param_dtype).itemsize
    sums = tree_bytes(state.params) * jnp.dtype(jnp.float32).itemsize / width
    reference = isinstance(config, RLConfig) and config.reference_memory == "device"
    return tree_bytes((state.params, state.opt_state)) + sums + reference * tree_bytes(state.params)


def sampling_steps(config: RLConfig, model: ModelConfig, mesh: Mesh, beside: tuple[Any, ...]) -> list[PlannedStep]:
    """The rollout's programs: prefill, and decode in the first chunk and in that which the response limit ends in.

    A token costs a constant and so much for every slot of the cache, so half of all tokens at either end's cost are
    what all cost together. Stop tokens and strings do not change the programs but for the table's rows.
    """
    decoding, limit = config.decoding, config.longest_response
    sampling = decoding.sampling((), config.record_experts and model.num_moe_layers > 0)
    key_impl = jax.config.values["jax_default_prng_impl"]
    decoder = Decoder(model, sampling, decoding_mesh(mesh), key_impl)
    rows, width = decoding.batch_size, config.prompt.width
    together = rows_together(rows, decoder.mesh, config.group_size)
    programs = Programs(decoder, width, rows, together, stop_states=1)
    blocks = math.ceil(config.prompts * config.group_size / rows)
    prompts = rows // together
    beside = (*beside, _kept(placed_abstract_params(model, mesh), programs.params))
    prefill = PlannedStep(
        "prefill",
        f"{prompts} prompts of {width:,} tokens",
        *programs.program("prefill", 1),
        tokens=prompts * width,
        model_flops=forward_flops(model, prompts * width, width),
        calls=blocks,
        assignments=_assignments(model, prompts * width),
        attention_flops=attention_flops(model, prompts * width, width),
        beside=beside,
    )
    reached = [end for end in programs.ends if end < limit] + [end for end in programs.ends if end >= limit][:1]
    before = dict(zip(programs.ends, (1, *programs.ends), strict=False))  # the first token comes from the prefill
    decodes = []
    for end in dict.fromkeys((reached[0], reached[-1])) if reached else ():
        slots, drawn = width + end - 1, min(end, limit) - before[end]
        decodes.append(
            PlannedStep(
                "decode" if end == reached[-1] else "decode (first chunk)",
                f"{drawn:,} tokens of {rows} rows, {slots:,} slots",
                *programs.program("decode", end),
                tokens=rows * drawn,
                model_flops=sampling_flops(model, rows * drawn, 1, prompt_length=slots - 1),
                calls=blocks * (limit - 1) / drawn * (1.0 if len(reached) == 1 else 0.5),
                assignments=_assignments(model, rows),
                beside=beside,
                iterations=drawn,
            )
        )
    return [prefill, *decodes]


def _kept(params: Any, sampled: Any) -> list[Any]:
    """Parameters that lie in memory beside those that are sampled with, which have another layout."""
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(sampled), strict=True)
    return [leaf for leaf, other in pairs if _leaf_bytes(leaf) != _leaf_bytes(other)]


def next_token_steps(training: Training, model: ModelConfig, mesh: Mesh) -> list[PlannedStep]:
    """Pretraining and fine-tuning: gradients of one micro-batch, the update."""
    next_token.check_rows(training.rows, training.micro_rows, training.row_length, model, mesh)
    trainer = next_token.Trainer(training, model, mesh)
    state = abstract_state(model, trainer.optimizer, mesh)
    rows = training.rows_at_once
    tokens = rows * training.row_length
    packed = packed_rows(mesh, rows, training.row_length, False)
    arguments = (state.params, packed, jax.ShapeDtypeStruct((2,), jnp.float32))
    flops = training_flops(model, tokens, training.row_length, mtp=bool(training.mtp_weight))
    size = f"{rows} rows of {training.row_length:,} tokens"
    gradients = PlannedStep(
        "gradients", size, trainer.accumulate.first, arguments, tokens, flops, 1, beside=(state.opt_state,),
        trains=True, **_of_rows(model, packed),
    )  # fmt: skip
    steps = _accumulation(gradients, trainer, training.rows // rows)
    return [*steps, _apply_step(trainer, state, arguments, 1, ())]


def sft_steps(config: SFTConfig, model: ModelConfig, mesh: Mesh) -> list[PlannedStep]:
    """Fine-tuning; how many updates it makes does not matter here."""
    same = ("rows", "micro_rows", "row_length", "seed", "balance", "mtp_weight", "log_every", "checkpoint_every")
    fields = {name: getattr(config, name) for name in (*same, "keep", "tensorboard", "wandb_project")}
    return next_token_steps(
        Training(name="sft", steps=1, optimizer=config.optimizer_config(LONG_RUN), **fields), model, mesh
    )


def pretrain_steps(config: PretrainConfig, model: ModelConfig, mesh: Mesh) -> list[PlannedStep]:
    """Pretraining."""
    return next_token_steps(training_of(config), model, mesh)


def reward_model_steps(config: RewardModelConfig, model: ModelConfig, mesh: Mesh) -> list[PlannedStep]:
    """A reward model: gradients of one micro-batch of pairs or labelled responses, the update."""
    check_divides("micro_rows", config.micro_rows, mesh)
    model = scored_model(model)
    trainer = reward_model.Trainer(config, model, mesh)
    state = trainer.abstract()
    lanes = 2 if config.kind == "pairwise" else 1
    rows = config.micro_rows
    tokens = lanes * rows * config.max_length
    batch = scored_rows(mesh, rows, lanes, config.max_length)
    arguments = (state.params, batch, jax.ShapeDtypeStruct((), jnp.float32))
    flops = training_flops(model, tokens, config.max_length)
    size = f"{lanes * rows} rows of {config.max_length:,} tokens"
    gradients = PlannedStep(
        "gradients", size, trainer.accumulate.first, arguments, tokens, flops, 1, beside=(state.opt_state,),
        trains=True, **_of_rows(model, batch),
    )  # fmt: skip
    steps = _accumulation(gradients, trainer, math.ceil(config.batch / rows))
    return [*steps, _apply_step(trainer, state, arguments, 1, ())]


STEPS: dict[type, Callable[..., list[PlannedStep]]] = {
    RLConfig: rl_steps,
    SFTConfig: sft_steps,
    PretrainConfig: pretrain_steps,
    RewardModelConfig: reward_model_steps,
}


def _of_rows(model: ModelConfig, batch: Any) -> dict[str, Any]:
    """What depends on all places of a batch's rows [..., T], since what fills them up is computed too."""
    shape = jax.tree.leaves(batch)[0].shape
    places = math.prod(shape)
    return {
        "assignments": _assignments(model, places),
        "attention_flops": attention_flops(model, places, shape[-1]),
    }


def _accumulation(first: PlannedStep, trainer: Any, micro_batches: int) -> list[PlannedStep]:
    """Gradients of the first micro-batch of an update, and where there are more the step that adds to them."""
    if micro_batches == 1:
        return [first]
    more = dataclasses.replace(
        first,
        name=f"{first.name} (added)",
        function=trainer.accumulate.add,
        arguments=(_accumulated(trainer, first.arguments), *first.arguments),
        params_at=1,
        calls=first.calls * (micro_batches - 1),
    )
    return [first, more]


def _accumulated(trainer: Any, arguments: tuple[Any, ...]) -> Any:
    """Shapes of the sums; gradients lie as their parameters do, the rest is small and whole."""
    sums = jax.eval_shape(trainer.accumulate.first, *arguments)
    params = arguments[0]
    grads = jax.tree.map(
        lambda leaf, like: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=like.sharding), sums.grads, params
    )
    return sums.replace(grads=grads)


def _apply_step(
    trainer: Any, state: Any, arguments: tuple[Any, ...], updates: int, beside: tuple[Any, ...]
) -> PlannedStep:
    sums = _accumulated(trainer, arguments)
    return PlannedStep("update", "optimiser and bias", trainer.apply, (state, sums), 0, 0.0, updates, 0.0, beside)


def _assignments(model: ModelConfig, tokens: float) -> float:
    return tokens * model.moe.num_active if model.moe and model.num_moe_layers else 0.0


def packed_rows(mesh: Mesh, rows: int, length: int, parents: bool) -> PackedBatch:
    """Shapes of `rows` packed rows, as `shard_batch` places them."""
    whole, real = _array(mesh, jnp.int32, rows, length), _array(mesh, jnp.float32, rows, length)
    fields: dict[str, Any] = dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), whole)
    return PackedBatch(**fields, loss_mask=real, parent_ids=whole if parents else None)


def policy_batch(packed: PackedBatch) -> PolicyBatch:
    """Shapes of a policy batch around packed rows."""
    names = ("advantages", "weights", "sampler_logprobs", "old_logprobs", "ref_logprobs")
    return PolicyBatch(packed=packed, sequence_ids=packed.tokens, **dict.fromkeys(names, packed.loss_mask))


def scored_rows(mesh: Mesh, rows: int, lanes: int, length: int) -> ScoredRows:
    """Shapes of a reward model's rows."""
    names = ("tokens", "positions", "segment_ids", "ends")
    fields: dict[str, Any] = dict.fromkeys(names, _array(mesh, jnp.int32, rows, lanes, length))
    return ScoredRows(**fields, **dict.fromkeys(("mask", "labels"), _array(mesh, jnp.float32, rows, length)))


def _array(mesh: Mesh, dtype: Any, *shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh, len(shape)))
