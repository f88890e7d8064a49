"""Layouts of a job on some chips, with memory and time by a closed form: what a planner compares before it compiles.

A job is a model, a stage and lengths; a candidate is everything that a layout may choose: mesh, micro-batch, slots,
remat and offload. Bytes of parameters follow from shapes, logical axes and rules, exactly; activations from a few
sizes of the model, to about a tenth (docs/plan.md). Time is the longer of compute, HBM and links for each phase,
at the shares of aot/timeline.py.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

import jax
from flax import nnx

from r1jax.aot.timeline import EFFICIENCY
from r1jax.core.sharding import FOLLOWS, RULES, list_leaves
from r1jax.models.flops import Work, count_work
from r1jax.models.layers import Dtypes
from r1jax.models.transformer import logical_axes, split
from r1jax.runs.abstract_model import find_sizes
from r1jax.runs.chips import Chip
from r1jax.runs.model_setup import ModelConfig

LANES = 128  # a TPU stores arrays in rows of so many elements
LARGEST_CHUNK = 512  # positions of a row whose logits exist at once, at most
DISPATCH, BUFFER = 8192, 1.25  # tokens exchanged with experts at a time, and their buffers over a balanced load
REMATS = {"full": (1.0, 4 / 3), "dots": (5.0, 1.1), "none": (14.0, 1.0)}  # kept widths a layer, executed / useful FLOPs
# HBM traffic as compiled (docs/predictions.md): how often a gradient reads or writes the widths of a layer (more often
# where products wait for pieces of gathered weights) and its logits, and a decode step the weights and the cache.
PASSES, PASSES_A_PIECE, MOST_PIECES, PASSES_WITH_EXPERTS = 15.0, 1.75, 32, 30.0
WEIGHT_PASSES, CACHE_PASSES, LOGITS_PASSES = 1.0, 2.1, 10.0
SPARE = 0.95  # of the memory that a candidate may fill by the closed form


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A layout. micro_batch: completions or rows of a device at a time. slots: of a device; 0 without sampling."""

    data: int
    fsdp: int
    expert: int
    tensor: int
    micro_batch: int
    slots: int
    remat: str
    offload: bool

    @property
    def parts(self) -> int:
        """Parts that the rows of a batch are split into."""
        return self.data * self.fsdp * self.expert

    @property
    def name(self) -> str:
        """The layout in words."""
        axes = {"data": self.data, "fsdp": self.fsdp, "expert": self.expert, "tensor": self.tensor}
        mesh = " ".join(f"{axis}={size}" for axis, size in axes.items() if size > 1) or "one device"
        slots = f", {self.slots * self.parts} slots" if self.slots else ""
        return f"{mesh}, micro-batch {self.micro_batch}{slots}, remat {self.remat}{', offload' * self.offload}"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes on a device, and seconds of a step by phase, by the closed form."""

    bytes: float
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        """Seconds of a step."""
        return sum(self.seconds.values())


class Job:
    """Figures of a model and its lengths. stage: grpo or sft. rows: completions, or rows, of a step; prompt, new:
    tokens of a row (all of a supervised row's are `new`).
    """

    def __init__(self, model: str, stage: str, *, rows: int, prompt: int, new: int):
        self.model, self.stage, self.rows, self.prompt, self.new = model, stage, rows, prompt, new
        family, self.sizes = find_sizes(ModelConfig(name=model) if "/" in model else ModelConfig(preset=model))
        built = nnx.eval_shape(lambda: family.build(self.sizes, rngs=nnx.Rngs(0), dtypes=Dtypes(), scan_layers=True))
        self.axes = logical_axes(built)
        _, self.params = split(built)
        self.work: Work = count_work(self.params, self.sizes)
        cache = jax.eval_shape(lambda: built.init_cache(1, LANES))
        padded = [(*x.shape[:-1], -(-x.shape[-1] // LANES) * LANES) for x in jax.tree.leaves(cache.layers)]
        self.cache_bytes = sum(map(math.prod, padded)) * 2 / LANES  # of a token, bf16
        self.experts = getattr(self.sizes, "num_experts", 1)
        self.width = self.sizes.intermediate_size if self.experts == 1 else 0  # of a dense layer's gate
        self.expert_width = 0.0  # of all experts that a token visits, with the buffers' spare quarter
        if self.experts > 1:
            shared = getattr(self.sizes, "shared_experts", 0)
            self.expert_width = BUFFER * self.sizes.expert_size * (self.sizes.active_experts + shared)
        latents = getattr(self.sizes, "latents", None)
        if latents is not None:
            self.heads_width = self.sizes.num_heads * (2 * (latents.plain_dim + latents.rotary_dim) + latents.value_dim)
        else:
            self.heads_width = (self.sizes.num_heads + 2 * self.sizes.num_kv_heads) * self.sizes.head_dim
        self.chunk = max(size for size in range(1, min(LARGEST_CHUNK, new) + 1) if new % size == 0)
        self.count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.params))

    def shard(self, candidate: Candidate, *axes: str) -> float | None:
        """Parameters on a device, split over these mesh axes (none: all); None where a dimension is not divisible."""
        sizes = {axis: getattr(candidate, axis, 1) for axis in ("data", "fsdp", "expert", "tensor")}
        total = 0.0
        for leaf, names in list_leaves(self.params, self.axes):
            parts = 1
            for size, name in zip(leaf.shape, names, strict=True):
                target = RULES.get(FOLLOWS.get(name, name)) if name else None
                over = [target] if isinstance(target, str) else list(target or ())
                ways = math.prod(sizes.get(axis, 1) for axis in over)
                if size % ways:
                    return None
                parts *= math.prod(sizes.get(axis, 1) for axis in over if not axes or axis in axes)
            total += math.prod(leaf.shape) / parts
        return total


def list_candidates(job: Job, devices: int) -> Iterator[Candidate]:
    """Every layout of the space that the job's numbers divide into."""
    ways = [size for size in range(1, devices + 1) if devices % size == 0]
    tensors = [size for size in ways if size <= 8]
    experts = [size for size in ways if job.experts > 1 and job.experts % size == 0 and size <= 64] or [1]
    for tensor, expert in itertools.product(tensors, experts):
        rest = devices // (tensor * expert)
        if devices % (tensor * expert):
            continue
        for fsdp in {rest, *(size for size in ways if rest % size == 0 and size >= min(rest, 8))}:
            parts = rest * expert
            slots = [s for s in (4, 8, 16, 32, 64, 128) if s * parts <= job.rows] if job.stage == "grpo" else [0]
            batches = [b for b in (1, 2, 4, 8) if job.rows % (b * parts) == 0]
            choices = itertools.product(batches, slots or [max(1, job.rows // parts)], REMATS, (False, True))
            for batch, slot, remat, offload in choices:
                yield Candidate(rest // fsdp, fsdp, expert, tensor, batch, slot, remat, offload)


def estimate(job: Job, candidate: Candidate, chip: Chip) -> Estimate | None:
    """Memory and time of a candidate; None where its mesh does not divide the model."""
    own = job.shard(candidate)
    if own is None:
        return None
    gathered = job.shard(candidate, "tensor", "expert") or own  # what a device reads of the weights
    return Estimate(_count_bytes(job, candidate, own, gathered), _count_seconds(job, candidate, chip, own, gathered))


def _count_bytes(job: Job, candidate: Candidate, own: float, gathered: float) -> float:
    """The largest program's: a gradient with the cache beside it, the update, or a decode step."""
    sizes, tensor = job.sizes, candidate.tensor
    layers, width = sizes.num_layers, sizes.hidden_size
    tokens = candidate.micro_batch * (job.prompt + job.new)
    moments = 0.0 if candidate.offload else 8 * own
    kept = REMATS[candidate.remat][0] * layers * tokens * width * 2
    working = tokens * (4 * job.width / tensor + 3 * job.heads_width / tensor + 4 * width) * 2
    working += min(tokens, DISPATCH) * 4 * job.expert_width / tensor * 2
    logits = 2 * candidate.micro_batch * job.chunk * sizes.vocab_size / tensor * 4
    weights = 4 * 2 * gathered / layers if candidate.fsdp * candidate.data > 1 else 0.0
    cache = candidate.slots * (job.prompt + job.new) * job.cache_bytes / tensor
    gradient = 8 * own + moments + kept + working + logits + weights + cache
    update = 16 * own + 4 * own / 4 + cache
    decode = 4 * own + moments + 1.1 * cache + weights + 4 * candidate.slots * sizes.vocab_size * 4 / tensor
    return max(gradient, update, decode if candidate.slots else 0.0)


def _count_seconds(job: Job, candidate: Candidate, chip: Chip, own: float, gathered: float) -> dict[str, float]:
    flops, memory = chip.flops * EFFICIENCY["products"], chip.hbm_bandwidth * EFFICIENCY["HBM"]
    links, shards = chip.ici_bandwidth * EFFICIENCY["links"], candidate.parts
    spread = (shards - 1) / shards
    length, rows = job.prompt + job.new, job.rows / candidate.parts
    turns = math.ceil(rows / candidate.micro_batch)
    useful = job.work.train(rows * length, rows * job.new, rows * length**2 / 2) / candidate.tensor
    computing = REMATS[candidate.remat][1] * useful / flops
    widths = (3 * job.width + 3 * job.heads_width + 4 * job.expert_width) / candidate.tensor + 4 * job.sizes.hidden_size
    passes = PASSES + PASSES_A_PIECE * min(candidate.fsdp, MOST_PIECES) if job.experts == 1 else PASSES_WITH_EXPERTS
    passes *= REMATS[candidate.remat][1] / REMATS["full"][1]
    traffic = passes * rows * length * job.sizes.num_layers * widths * 2 + turns * 16 * own  # and sums of gradients
    traffic += LOGITS_PASSES * rows * job.new * job.sizes.vocab_size / candidate.tensor * 4
    computing = max(computing, traffic / memory)
    slices = 8 * 2 * rows * length * job.sizes.hidden_size * job.sizes.num_layers * 2  # sums over `tensor`, both ways
    sending = turns * spread * (3 * 2 + 4) * gathered / links if shards > 1 else 0.0
    sending += slices * (candidate.tensor - 1) / candidate.tensor / links
    seconds = {"updating": max(computing, sending) + 0.1 * min(computing, sending) + 28 * own / memory}
    if candidate.offload:
        seconds["updating"] += 16 * own / 16e9  # moments over the host's bus, both ways
    if candidate.slots:
        steps = math.ceil(job.rows / (candidate.slots * candidate.parts)) * job.new
        tokens = candidate.slots
        cache = tokens * length * job.cache_bytes / candidate.tensor
        reading = (WEIGHT_PASSES * 2 * gathered + CACHE_PASSES * cache) / memory
        moving = spread * 2 * gathered / links if candidate.fsdp > 1 else 0.0
        moving += 4 * tokens * job.sizes.hidden_size * job.sizes.num_layers * 2 / links if candidate.tensor > 1 else 0.0
        multiplying = job.work.forward(tokens, tokens, tokens * length / 2) / candidate.tensor / flops
        filling = job.work.forward(rows * job.prompt, rows, rows * job.prompt**2 / 2) / candidate.tensor / flops
        seconds["sampling"] = steps * (max(reading, multiplying) + moving) + filling
    return seconds
