"""Sampler for prompts of any length, with one engine per prompt size, so that few shapes are compiled.

The size of a prompt is the power of two that holds its tokens after the common prefix of all prompts. It depends on the
prompt alone, and so does the result (with the seed and the weights): neither the batch nor its order matters.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax
from flax import nnx

from r1jax.core.errors import UserError
from r1jax.core.sharding import batch_parts, current_layout, in_layout, make_mesh, use_mesh
from r1jax.core.startup.voice import activity
from r1jax.core.structs import Completion, Program, Request, Sampling
from r1jax.models.flops import Work
from r1jax.models.rope import find_positions
from r1jax.models.transformer import Params, split
from r1jax.rollout.engine import Engine
from r1jax.rollout.layout import RULES, read_sizes
from r1jax.rollout.slots import EngineConfig
from r1jax.runs.prologue import join
from r1jax.text.tokenizer import Tokenizer
from r1jax.weights.names import find_model
from r1jax.weights.pretrained import find_description, load_pretrained

SMALLEST_SIZE = 32
LONG_COMPLETION = 256  # tokens
PREFILL_BATCH = 8
DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Shapes of the engines for a set of prompts.

    Attributes:
      prefix: ids that all prompts begin with.
      sizes: tokens after the prefix, ascending; a prompt takes the first that holds it. Empty: a power of two each.
      cache_pieces: largest number of steps in which an engine's cache grows; each compiles the decode program anew.
    """

    prefix: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    cache_pieces: int = EngineConfig.cache_pieces

    def size_of(self, tokens: int) -> int:
        """Size of a prompt of so many tokens, with the prefix."""
        rest = tokens - len(self.prefix)
        return next((size for size in self.sizes if size >= rest), None) or _size(rest)


def plan_shapes(prompts: Sequence[tuple[int, ...]], prefix: tuple[int, ...], limit: int) -> Shapes:
    """Shapes with at most two decode programs, for completions of up to `limit` tokens.

    For short completions a cache that grows saves less than the compilation of a second program costs. Two sizes of
    prompts are worth it only if they save half of what one size would fill up, and where prompts and not completions
    fill the cache. The prefix is cut to a multiple of 16, so that another choice of problems finds the same programs.
    """
    prefix = prefix[: len(prefix) - len(prefix) % 16]
    pieces = 2 if limit > LONG_COMPLETION else 1
    needed = sorted(_size(len(prompt) - len(prefix)) for prompt in prompts)
    if not needed or (pieces > 1 and needed[-1] <= limit):
        return Shapes(prefix, tuple(needed[-1:]), pieces)
    filled = lambda small: sum(small if size <= small else needed[-1] for size in needed)
    small = min(needed, key=filled)
    worth = 2 * filled(small) <= filled(needed[-1])
    return Shapes(prefix, (small, needed[-1]) if worth else (needed[-1],), 1)


class Sampler:
    """A model's structure and weights with its tokenizer (None: tokens only), stop ids, and engines.

    slots: sequences decoded at once, rounded up to a multiple of the mesh's batch shards. positions: longest sequence
    that the model was made for (0: not known).
    """

    def __init__(
        self,
        graph: nnx.GraphDef,
        params: Params,
        tokenizer: Tokenizer | None,
        stop_ids: tuple[int, ...],
        *,
        slots: int = 64,
        positions: int = 0,
    ):
        self.positions = positions
        self.graph, self.params, self.tokenizer, self.stop_ids = graph, params, tokenizer, stop_ids
        self.slots, self.layout = slots, current_layout()
        self._engines: dict[tuple[int, int, int, int, tuple[int, ...]], Engine] = {}

    def stop_at(self, stop_ids: tuple[int, ...]) -> Sampler:
        """The same sampler, engines included, with other stop ids."""
        other = copy.copy(self)
        other.stop_ids = stop_ids
        return other

    @property
    def vocab_size(self) -> int:
        """Number of the model's token ids."""
        return self.params["embed"]["embedding"].shape[0]

    @in_layout
    def generate(
        self,
        requests: Sequence[Request],
        *,
        prefix: tuple[int, ...] = (),
        slots: int = 0,
        shapes: Shapes | None = None,
        on_complete: Callable[[int, Completion], None] = lambda number, completion: None,
    ) -> list[Completion]:
        """One completion per request, in order.

        prefix: ids that all prompts begin with, computed once. slots: fewer than this sampler's, for few requests.
        shapes: sizes and cache of the engines, in place of a size for each prompt alone; its prefix is `prefix`.
        on_complete: called with (index of the request, completion) as each one ends.
        """
        shapes = shapes or Shapes(prefix)
        prefix = shapes.prefix
        slots = min(slots or self.slots, self.slots)
        limit = max((request.sampling.max_new_tokens for request in requests), default=0)
        sizes: dict[int, list[int]] = {}
        for number, request in enumerate(requests):
            sizes.setdefault(shapes.size_of(len(request.tokens)), []).append(number)
        found: list[Completion | None] = [None] * len(requests)
        for size, numbers in sizes.items():
            engine = self._engine(size, limit, slots, prefix, shapes.cache_pieces)

            def keep(place: int, completion: Completion, numbers: list[int] = numbers) -> None:
                found[numbers[place]] = completion
                on_complete(numbers[place], completion)

            engine.generate(self.params, [requests[number] for number in numbers], keep)
        return [completion for completion in found if completion is not None]

    @in_layout
    def programs(
        self, prompt_tokens: int, sampling: Sampling, work: Work, *, prefix: tuple[int, ...] = ()
    ) -> list[Program]:
        """Those of the engine for prompts of so many tokens behind the prefix, for abstract `params`."""
        engine = self._engine(_size(prompt_tokens), sampling.max_new_tokens, self.slots, prefix)
        return engine.programs(self.params, sampling, work)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of ids without special tokens; "" without a tokenizer."""
        return "" if self.tokenizer is None else self.tokenizer.decode(tokens)

    def _engine(
        self, size: int, limit: int, slots: int, prefix: tuple[int, ...], pieces: int = EngineConfig.cache_pieces
    ) -> Engine:
        key = size, limit, slots, pieces, prefix
        if key not in self._engines:
            config = make_engine_config(size, limit, slots, prefix, len(self.stop_ids))
            self._engines[key] = Engine(self.graph, dataclasses.replace(config, cache_pieces=pieces))
        return self._engines[key]


def make_engine_config(
    size: int, limit: int, slots: int, prefix: tuple[int, ...] = (), stop_ids: int = 0
) -> EngineConfig:
    """Engine config for prompts of `size` tokens after the prefix, with rows divisible by the mesh's batch axes."""
    return EngineConfig(
        slots=_round_up(slots),
        max_prompt_tokens=len(prefix) + size,
        max_new_tokens=limit,
        prefill_batch=_round_up(min(PREFILL_BATCH, slots)),
        max_stop_ids=max(EngineConfig.max_stop_ids, stop_ids),
        prefix=prefix,
    )


@contextlib.contextmanager
def place_sampler(mesh: str = "") -> Iterator[None]:
    """Context with the mesh of a sampling command: `mesh` names axes and sizes (`tensor=8,expert=64`), over which
    weights and rows are split as in the rollouts of a run (rollout/layout.py).

    Without `mesh`, the model uses one CPU, or a copy on each accelerator.
    """
    join()
    if not mesh and jax.default_backend() == "cpu" and jax.process_count() == 1:
        yield
        return
    with use_mesh(make_mesh(read_sizes(mesh, "--mesh"), key="--mesh"), RULES):
        yield


def load_sampler(
    path: str | pathlib.Path, *, dtype: str = "float32", slots: int = 64, stop_ids: tuple[int, ...] = ()
) -> Sampler:
    """Loads a MODEL for sampling, on the enclosing mesh if there is one. stop_ids: in place of the model's own.

    Raises UserError for a model that is missing or cannot be read.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if slots < 1:
        raise UserError(f"batch_size must be at least 1, got {slots}")
    with activity(f"loading {path}"):
        model, tokenizer = load_pretrained(path, dtype=dtype)
    positions = find_positions(model.config.max_positions, model.config.rope_scaling)
    if not stop_ids:
        stop_ids = read_stop_ids(find_description(find_model(path))) if tokenizer is None else tokenizer.eos_ids
    return Sampler(*split(model), tokenizer, stop_ids, slots=slots, positions=positions)


def read_stop_ids(folder: pathlib.Path) -> tuple[int, ...]:
    """EOS ids of a model without a tokenizer, from generation_config.json or config.json."""
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        if file.is_file():
            try:
                value = json.loads(file.read_text("utf-8")).get("eos_token_id")
            except (ValueError, AttributeError, RecursionError):
                raise UserError(f"{file}: not a JSON object") from None
            found += value if isinstance(value, list) else [] if value is None else [value]
            if not all(type(item) is int and item >= 0 for item in found):
                raise UserError(f"{file}: eos_token_id must be whole numbers from 0 on, got {str(value)[:60]}")
    return tuple(dict.fromkeys(found))


def _size(tokens: int) -> int:
    """Prompt size for a number of tokens."""
    return max(SMALLEST_SIZE, 1 << (tokens - 1).bit_length())


def _round_up(rows: int) -> int:
    parts = batch_parts()
    return -(-rows // parts) * parts
