"""Every program of a run from its config alone: the jitted function and its arguments as shapes with shardings.

Nothing is loaded and no array is made, so the programs of a pod can be traced and compiled anywhere. They are the
run's own: the same functions, donations and shardings, at the largest shapes that the config allows. Where a length
comes from the data (`rollout.max_prompt_tokens` = 0) 128 prompt tokens are assumed, and no common prefix of prompts.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from r1jax.core.errors import UserError
from r1jax.core.sections import to_values
from r1jax.core.sharding import batch_parts, replicated, sharding
from r1jax.core.structs import Request
from r1jax.data.packing import RowShape
from r1jax.learner.optimizer import make_optimizer
from r1jax.learner.policy_objective import Scoring, make_loss, score_rows
from r1jax.learner.state import TrainState, abstract_state
from r1jax.learner.step import Learner
from r1jax.learner.supervised import make_loss as make_supervised_loss
from r1jax.learner.trainable import Trainable
from r1jax.models.families.presets import find_preset, replace_sizes
from r1jax.models.families.registry import find_family, load_families
from r1jax.models.flops import Work, count_work
from r1jax.models.layers import Dtypes
from r1jax.models.transformer import Params, logical_axes, merge, split
from r1jax.rl.grpo_config import GRPOConfig
from r1jax.rollout.engine import Engine
from r1jax.rollout.scheduler import Scheduler
from r1jax.rollout.slots import EngineConfig
from r1jax.runs.model_setup import ModelConfig, expert_options
from r1jax.runs.sampler import make_engine_config
from r1jax.stages.distill.traces import TracesConfig
from r1jax.stages.pipeline.resolve import PipelineConfig, make_plan, trace_shapes
from r1jax.stages.rejection_sampling import CollectConfig, TeacherSampling
from r1jax.stages.sft_config import SFTConfig

PROMPT_TOKENS = 128  # where only the data would tell
# Keys of a stage's config that do not affect its programs.
NOT_IN_PROGRAMS = set("data corpus seed steps rewards filters reply judge eval checkpoint log".split())


@dataclasses.dataclass(frozen=True)
class Program:
    """`function(*arguments, **keywords)`, jitted; arguments are ShapeDtypeStructs, keywords are static.

    useful_flops: by formula, on all devices together; of decoding, for one token in every slot. resident: what the run
    holds on its devices meanwhile and this program is not given.
    """

    name: str
    function: Any
    arguments: tuple
    useful_flops: float
    keywords: dict[str, Any] = dataclasses.field(default_factory=dict)
    resident: Any = ()


@dataclasses.dataclass(frozen=True)
class Shapes:
    """A model without weights: its structure, its parameters as shapes with shardings, their axes, and its work."""

    graph: nnx.GraphDef
    params: Params
    axes: Params
    work: Work


def list_programs(settings: Any, *, prefix: tuple[int, ...] = ()) -> list[Program]:
    """The programs of a run with these settings, under the mesh in use. prefix: ids that all prompts begin with.

    Raises UserError for a stage or a model whose programs are not known, and for whatever the stage itself refuses.
    """
    stages = find_listings()
    if settings.stage not in stages:
        raise UserError(f"the programs of config.stage={settings.stage} are not known; known: {', '.join(stages)}")
    return stages[settings.stage](settings, prefix=prefix)


def find_listings() -> dict[str, Callable[..., list[Program]]]:
    """Functions that list the programs of a stage, by stage."""
    return {
        "grpo": list_grpo,
        "sft": list_sft,
        "distill": list_distill,
        "rejection_sampling": list_collect,
        "pipeline": list_pipeline,
    }


# --- Models ---


def abstract_model(config: ModelConfig) -> Shapes:
    """The model of a config as shapes, without its weights."""
    family, sizes = find_sizes(config)
    options = {"scan_layers": config.scan_layers, "remat": config.remat, **expert_options(config)}
    dtypes = Dtypes(config.param_dtype, config.dtype)
    model = nnx.eval_shape(lambda: family.build(sizes, rngs=nnx.Rngs(0), dtypes=dtypes, **options))
    graph, params = split(model)
    return Shapes(graph, params, logical_axes(model), count_work(params, sizes))


def find_sizes(config: ModelConfig) -> tuple[Any, Any]:
    """(family, sizes) of a config's model: the named preset, a local folder's config.json, or the preset that the hub
    name says; with the sizes that the config replaces.
    """
    family, sizes = _find_sizes(config)
    kept = {"num_layers": config.layers} if config.layers else {}
    return family, replace_sizes(sizes, {**kept, **config.sizes})


def _find_sizes(config: ModelConfig) -> tuple[Any, Any]:
    if config.preset:
        return find_preset(config.preset)
    file = pathlib.Path(config.path) / "config.json"
    if config.path and file.is_file():
        hf = json.loads(file.read_text(encoding="utf-8"))
        family = find_family(hf.get("model_type"), config.path)
        return family, family.from_hf(hf)
    plain = lambda name: re.sub(r"[-_]|(instruct|base|chat)$", "", name.rpartition("/")[2].lower())
    presets = {plain(name): name for family in load_families().values() for name in family.VARIANTS}
    # DeepSeek's hub names do not tell the size: "DeepSeek-V3-Base" is the one preset that is called so before its size.
    unsized = [plain(re.sub(r"_[0-9]+b$", "", name)) for name in presets.values()]
    presets |= {key: name for key, name in zip(unsized, presets.values(), strict=True) if unsized.count(key) == 1}
    for name in filter(None, (config.hub, config.path)):
        if (found := presets.get(plain(name))) is not None:
            return find_preset(found)
    raise UserError(
        f"the sizes of {config.hub or config.path} are not known without its files; set config.model.preset to one of "
        f"{', '.join(sorted(set(presets.values())))}"
    )


# --- GRPO ---


def list_grpo(settings: GRPOConfig, *, prefix: tuple[int, ...] = ()) -> list[Program]:
    """accumulate, apply, logprobs; prefill, insert, decode."""
    shapes, rollout = abstract_model(settings.model), settings.rollout
    optimizer = make_optimizer(settings.optimizer, settings.steps * settings.train.updates_per_step)
    state = abstract_state(shapes.params, shapes.axes, optimizer)
    shapes = dataclasses.replace(shapes, params=state.params)
    prompt = rollout.max_prompt_tokens or len(prefix) + PROMPT_TOKENS
    engine = EngineConfig(
        rollout.slots,
        prompt,
        rollout.max_new_tokens,
        rollout.prefill_batch,
        prefix=prefix,
        record_experts=settings.train.replay_experts,
    )
    rows = settings.row_shape(prompt, len(prefix))
    reference = state.params if settings.loss.kl_coefficient else ()
    updates = policy_programs(settings, shapes, state, optimizer, rows)
    rolls = engine_programs(shapes, engine, rollout.sampling(()))
    slots = next(program.arguments[2] for program in rolls if program.name == "decode")
    held = {
        "accumulate": (state.opt_state, reference, slots),
        "apply": (reference, slots),
        "logprobs": (state.opt_state, reference, slots),
        "prefill": (state.opt_state, reference, slots),
        "insert": (state, reference),
        "decode": (state.opt_state, reference),
    }
    return [dataclasses.replace(program, resident=held[program.name]) for program in (*updates, *rolls)]


def policy_programs(
    settings: GRPOConfig, shapes: Shapes, state: TrainState, optimizer: Any, shape: RowShape
) -> list[Program]:
    """The programs of an update on rows of `shape`."""
    train, prefix = settings.train, tuple(range(shape.prefix))
    rows = train.micro_batch_size // train.completions_per_row * batch_parts()
    fed = dict.fromkeys(("tokens", "positions", "segments"), (shape.length, jnp.int32))
    if shape.share_prompts:
        fed["prefixes"] = (shape.length, jnp.int32)
    aimed = dict.fromkeys(("index", "targets"), (shape.targets, jnp.int32))
    if settings.loss.needs_sequences:
        aimed["sequences"] = (shape.targets, jnp.int32)
    values = ["weights", "advantages", "sampler_logprobs"]
    values += ["old_logprobs"] * (train.updates_per_step > 1 and train.old_logprobs == "trainer")
    values += ["reference_logprobs"] * (settings.loss.kl_coefficient > 0)
    aimed |= dict.fromkeys(values, (shape.targets, jnp.float32))
    batch = {name: _rows((rows, length), dtype) for name, (length, dtype) in {**fed, **aimed}.items()}
    scoring = Scoring(settings.rollout.temperature, train.logits_chunk, prefix)
    graph = shapes.graph
    if train.replay_experts:
        batch["experts"] = _rows((rows, shape.targets, *merge(graph, shapes.params).routing), jnp.int16)
    loss = make_loss(graph, settings.loss, scoring, on_policy=train.updates_per_step == 1)
    learner = Learner(loss, optimizer, bias_rate=train.bias_rate)
    logprobs = jax.jit(lambda params, batch: score_rows(graph, params, batch, scoring)[0])
    counts = (rows * shape.length, rows * shape.targets, rows * shape.pairs)
    return [
        *update_programs(learner, state, {}, batch, shapes.work.train(*counts)),
        Program("logprobs", logprobs, (state.params, batch), shapes.work.forward(*counts)),
    ]


# --- SFT ---


def list_sft(settings: SFTConfig, *, prefix: tuple[int, ...] = ()) -> list[Program]:
    """accumulate, apply, measure (the held-out loss)."""
    return supervised_programs(settings)


def list_distill(settings: TracesConfig, *, prefix: tuple[int, ...] = ()) -> list[Program]:
    """The student's: accumulate, apply, measure; prefill, insert, decode. The teacher's are not listed, for its sizes
    are known to its files only. Raises UserError for other methods than `traces`.
    """
    if settings.method != "traces":
        raise UserError(f"the programs of config.method={settings.method} are not known; known: traces")
    return [
        *supervised_programs(settings.supervised(pathlib.Path())),
        *sampler_programs(settings.student, settings.generate, prefix),
    ]


def list_collect(settings: CollectConfig, *, prefix: tuple[int, ...] = ()) -> list[Program]:
    """prefill, insert, decode."""
    return sampler_programs(settings.model, settings.generate, prefix)


def sampler_programs(model: ModelConfig, generate: TeacherSampling, prefix: tuple[int, ...]) -> list[Program]:
    """The programs of a model that only samples."""
    shapes = abstract_model(model)
    shapes = dataclasses.replace(shapes, params=place_params(shapes.params, shapes.axes))
    engine = make_engine_config(PROMPT_TOKENS, generate.max_new_tokens, generate.slots, prefix)
    return engine_programs(shapes, engine, generate.sampling(()))


def list_pipeline(settings: PipelineConfig, *, prefix: tuple[int, ...] = ()) -> list[Program]:
    """Those of all stages, as STAGE.PROGRAM; of stages that differ in data, rewards, rates or temperature the first."""
    plan, _ = make_plan(settings, pathlib.Path())
    listings, seen = find_listings(), set[str]()
    programs = []
    for planned in trace_shapes(plan):
        if planned.settings.stage in listings and (key := _key_of_programs(planned.settings)) not in seen:
            seen.add(key)
            for program in list_programs(planned.settings, prefix=prefix):
                programs.append(dataclasses.replace(program, name=f"{planned.name}.{program.name}"))
    return programs


def _key_of_programs(settings: Any) -> str:
    """Key identifying a stage's compiled programs."""
    values = to_values(settings)
    rates = ("learning_rate", "warmup_updates")
    kept = {name: value for name, value in values.items() if name not in NOT_IN_PROGRAMS}
    kept["optimizer"] = {key: value for key, value in values.get("optimizer", {}).items() if key not in rates}
    kept["rollout"] = {key: value for key, value in values.get("rollout", {}).items() if key != "temperature"}
    kept["length"] = [values.get(name, {}).get("length") for name in ("data", "corpus")]
    return json.dumps(kept, sort_keys=True, default=str)


def supervised_programs(settings: SFTConfig) -> list[Program]:
    """The programs of supervised training."""
    shapes, train, length = abstract_model(settings.model), settings.train, settings.data.length
    trainable = Trainable(merge(shapes.graph, shapes.params), settings.lora)
    optimizer = make_optimizer(settings.optimizer, settings.steps or 1)
    state = abstract_state(trainable.params, trainable.axes, optimizer)
    if trainable.base is None:
        base: Any = ()
    else:
        base = trainable.base = place_params(shapes.params, shapes.axes)
    rows = train.micro_batch_size * batch_parts()
    batch: dict[str, Any] = {
        name: _rows((rows, length), jnp.int32) for name in ("tokens", "targets", "segments", "positions")
    }
    batch["weights"] = _rows((rows, length), jnp.float32)
    batch["token_share"] = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated())
    loss = make_supervised_loss(shapes.graph, settings.loss, chunk=train.logits_chunk)
    learner = Learner(trainable.wrap(loss), optimizer, bias_rate=settings.loss.bias_rate)
    frozen, counts = trainable.frozen, (rows * length, rows * length, rows * length**2 / 2)
    measure = jax.jit(lambda params, frozen, batch: learner.loss_fn(params, frozen, batch)[1])
    programs = [
        *update_programs(learner, state, frozen, batch, shapes.work.train(*counts, ahead=settings.loss.mtp_weight > 0)),
        Program("measure", measure, (state.params, frozen, batch), shapes.work.forward(*counts)),
    ]
    held = {"accumulate": state.opt_state, "apply": base, "measure": state.opt_state}
    return [dataclasses.replace(program, resident=held[program.name]) for program in programs]


def place_params(params: Params, axes: Params) -> Params:
    """Shapes of parameters with their shardings."""
    place = lambda x, axes: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(axes, x.shape))
    return jax.tree.map(place, params, axes)


def update_programs(learner: Learner, state: TrainState, frozen: Any, batch: Any, useful_flops: float) -> list[Program]:
    """A micro-batch's gradient added to the sum, and the optimizer's step; gradients are summed in float32."""
    wide = lambda p: jax.ShapeDtypeStruct(p.shape, jnp.promote_types(p.dtype, jnp.float32), sharding=p.sharding)
    gradients = jax.tree.map(wide, state.params)
    return [
        Program("accumulate", learner.accumulate, (state.params, gradients, frozen, batch), useful_flops),
        Program("apply", learner.apply, (state, gradients), 0.0),
    ]


def engine_programs(shapes: Shapes, config: EngineConfig, sampling: Any) -> list[Program]:
    """The programs of the rollout engine."""
    engine, params = Engine(shapes.graph, config), shapes.params
    empty = jax.eval_shape(lambda params: engine._init(params, config.cache_lengths[-1]), params)
    slots = with_rows(empty, config.slots)
    prefix = jax.eval_shape(engine._prefix, params) if config.prefix else None
    request = Request((*config.prefix, *range(config.prompt_columns)), sampling)
    tokens, fill = next(Scheduler([request], config).refill())
    everywhere = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated())
    tokens, fill, idle_limit = jax.tree.map(everywhere, (tokens, fill, np.zeros((), np.int32)))
    prompts = with_rows(jax.eval_shape(engine._prefill, params, prefix, tokens), config.prefill_batch)
    S, Tp, R = len(config.prefix), config.prompt_columns, config.max_new_tokens
    prefilled = config.prefill_batch * Tp
    work = shapes.work
    filtered = bool(sampling.top_k or sampling.top_p < 1 or sampling.min_p)
    return [
        Program(
            "prefill", engine._prefill, (params, prefix, tokens), work.forward(prefilled, 0, prefilled * (S + Tp / 2))
        ),
        Program("insert", engine._insert, (slots, prompts, fill), 0.0),
        Program(
            "decode",
            engine._decode,
            (params, prefix, slots, idle_limit),
            work.forward(config.slots, config.slots, config.slots * (S + Tp + R / 2)),
            {"filtered": filtered},
        ),
    ]


def with_rows(tree: Any, rows: int) -> Any:
    """Shapes with the shardings that the engine pins: rows over the batch axes, kv heads of caches over theirs."""

    def place(x: Any) -> Any:
        if x.ndim >= 4:  # caches: [L,] B, K, S, H
            axes: tuple = (*(None,) * (x.ndim - 4), "batch", "kv_heads", None, None)
        else:
            axes = ("batch", *(None,) * (x.ndim - 1)) if x.ndim and x.shape[0] == rows else (None,) * x.ndim
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(axes, x.shape, name="slots"))

    return jax.tree.map(place, tree)


def _rows(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    axes = ("batch", *[None] * (len(shape) - 1))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding(axes, shape, name="micro-batch"))
