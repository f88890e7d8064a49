"""GRPO: sample groups of answers, reward them, raise what beat its siblings (DeepSeekMath 2402.03300, DeepSeek-R1
2501.12948).

A step is one rollout batch and the updates made from it:

    prompts -> engine -> texts -> rewards -> group advantages -> packed rows -> updates -> metrics

Sampler and trainer share one model and its weights, so nothing is converted or synchronised. Everything random is a
function of (seed, step), and a checkpoint holds weights, moments and data position: a resumed run equals an
uninterrupted one. Held-out problems are answered before, every N steps, and after.
"""

from __future__ import annotations

import logging
import pathlib
import time
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from r1jax.core import console, distributed
from r1jax.core.errors import UserError
from r1jax.core.hardware import peak_flops
from r1jax.core.sharding import batch_parts, make_mesh, sharding, use_mesh
from r1jax.core.structs import Request
from r1jax.core.tree import count_parameters
from r1jax.data.loader import PromptLoader
from r1jax.data.packing import PackedRows, RowShape, pack_completions
from r1jax.data.tasks import load_task
from r1jax.eval.held_out import evaluate, make_problems
from r1jax.learner.optimizer import make_optimizer, make_schedule
from r1jax.learner.policy import Scoring, make_loss, score_rows, summarize
from r1jax.learner.state import TrainState, abstract_state, init_state
from r1jax.learner.step import Learner
from r1jax.losses.advantage import group_advantages
from r1jax.losses.policy import token_weights
from r1jax.models.pretrained import require_tokenizer
from r1jax.models.transformer import Params, logical_axes, split
from r1jax.rewards.base import Scores, load_rewards, score
from r1jax.rollout.engine import Engine
from r1jax.rollout.slots import EngineConfig
from r1jax.stages.groups import Groups, describe_rewards, describe_samples
from r1jax.stages.grpo_config import GRPOConfig, read_config
from r1jax.stages.loop import Loop
from r1jax.stages.settings import load_model
from r1jax.stages.workdir import describe_change
from r1jax.text.encoding import PromptEncoder, find_prefix

log = logging.getLogger(__name__)


class Work(NamedTuple):
    """What the updates of a step computed: completion tokens trained on, and useful FLOPs (6 a parameter and token)."""

    tokens: int
    flops: float


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains as `config` says, resuming from `workdir` if it holds a checkpoint."""
    settings = read_config(config)
    console.set_up_logging()
    distributed.start()
    with use_mesh(make_mesh(settings.mesh), settings.mesh.rules):
        Run(settings, config, workdir).train()


class Run:
    """One run: the parts, built once, and the loop over steps."""

    def __init__(self, settings: GRPOConfig, config: ConfigDict, workdir: pathlib.Path):
        self.settings, self.config, self.workdir = settings, config, workdir
        self.rewards = load_rewards(settings.rewards)
        task = load_task(settings.data)
        for note in task.notes:
            log.warning(note)
        model_config = settings.model
        model, tokenizer = load_model(model_config)
        self.tokenizer = require_tokenizer(tokenizer, model_config.path)
        self.graph, params = split(model)
        self.axes, self.sizes = logical_axes(model), count_parameters(params)
        self.encode = PromptEncoder(self.tokenizer)
        self.loader = PromptLoader(task.train, settings.rollout.prompts_per_step, seed=settings.seed)
        self._build_engine([*task.train, *task.held_out])
        self._build_learner(params)
        self.problems = make_problems(task.held_out, self.encode, settings.eval)
        self.num_tokens = 0
        log.info(
            "%s: %.1f M parameters; %d problems to train on, %d held out; prompts up to %d tokens, %d of them shared",
            model_config.path,
            self.sizes.total / 1e6,
            len(task.train),
            len(task.held_out),
            self.shape.prefix + self.shape.prompt_tokens,
            self.shape.prefix,
        )

    def _build_engine(self, rows: Sequence[dict[str, Any]]) -> None:
        rollout = self.settings.rollout
        prompts = [self.encode(row["prompt"]) for row in rows]
        self.prefix = find_prefix(prompts)
        needed = max(map(len, prompts))
        if 0 < rollout.max_prompt_tokens < needed:
            raise UserError(
                f"config.rollout.max_prompt_tokens = {rollout.max_prompt_tokens}, but a prompt of config.data has "
                f"{needed} tokens; 0 takes as many as the data needs"
            )
        behind = -(-(needed - len(self.prefix)) // 8) * 8  # rounded up to a multiple of 8
        longest = rollout.max_prompt_tokens or len(self.prefix) + behind
        self.shape = RowShape(
            longest - len(self.prefix),
            rollout.max_new_tokens,
            self.settings.train.completions_per_row,
            len(self.prefix),
        )
        self.engine = Engine(
            self.graph,
            EngineConfig(
                slots=rollout.slots,
                max_prompt_tokens=longest,
                max_new_tokens=rollout.max_new_tokens,
                prefill_batch=rollout.prefill_batch,
                prefix=self.prefix,
            ),
        )

    def _build_learner(self, params: Params) -> None:
        settings, updates = self.settings, self.settings.train.updates_per_step
        total = settings.steps * updates
        self.schedule = make_schedule(settings.optimizer, total)
        self.optimizer = make_optimizer(settings.optimizer, total)
        scoring = Scoring(settings.rollout.temperature, settings.train.logits_chunk, self.prefix)
        loss = make_loss(self.graph, settings.loss, scoring, on_policy=updates == 1)
        self.learner = Learner(loss, self.optimizer)
        self.logprobs = jax.jit(lambda params, batch: score_rows(self.graph, params, batch, scoring)[0])
        self.reference = jax.tree.map(jnp.copy, params) if settings.loss.kl_coefficient else None
        self.state: TrainState = init_state(params, self.axes, self.optimizer)

    # --- The loop's parts of this stage ---

    def train(self) -> None:
        """All steps from where the workdir stands."""
        settings = self.settings
        every = settings.eval.every_steps
        Loop(self.config, self.workdir, settings.steps, every, settings.checkpoint, settings.log).run(self)
        if distributed.is_writer():
            console.show_table("before and after", describe_change(self.workdir, settings.eval.name))

    def abstract_state(self) -> TrainState:
        """Shapes with shardings of what a checkpoint holds."""
        return abstract_state(self.state.params, self.axes, self.optimizer)

    def facts(self) -> dict[str, Any]:
        """The position in the data, and the tokens so far."""
        return {"loader": self.loader.get_state(), "num_tokens": self.num_tokens}

    def resume(self, facts: dict[str, Any]) -> None:
        """Goes on from a checkpoint's facts."""
        self.loader.set_state(facts["loader"])
        self.num_tokens = facts["num_tokens"]

    # --- One step ---

    def step(self, step: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Rolls out, rewards, updates -> (metrics row, sample rows)."""
        begin = time.perf_counter()
        groups = self._roll_out(next(self.loader), step)
        rolled = time.perf_counter()
        scores = self._reward(groups)
        G = self.settings.rollout.group_size
        advantages_PG, flat_P = group_advantages(
            scores.total.reshape(-1, G), zero_spread=self.settings.train.zero_spread
        )
        rewarded = time.perf_counter()
        learned, work = self._learn(groups, advantages_PG, flat_P)
        end = time.perf_counter()
        lengths = np.array([len(c.tokens) for c in groups.completions])
        self.num_tokens += int(sum(map(len, groups.prompts)) * G + lengths.sum())
        metrics = {
            **learned,
            **describe_rewards(scores, G),
            "frac_reward_zero_std": float(flat_P.mean()),
            "completions/mean_length": float(lengths.mean()),
            "completions/clipped_ratio": float(np.mean([c.finish_reason == "length" for c in groups.completions])),
            "learning_rate": float(self.schedule(int(self.state.updates) - 1)),
            "num_tokens": self.num_tokens,
            "step_time": end - begin,
            "time/rollout": rolled - begin,
            "time/reward": rewarded - rolled,
            "time/train": end - rewarded,
            "rollout/tokens_per_second": float(lengths.sum() / (rolled - begin)),
            "train/tokens_per_second": work.tokens / (end - rewarded),
            "mfu": work.flops / (end - rewarded) / (peak_flops() * jax.device_count()),
        }
        self._check_difference(metrics)
        return metrics, describe_samples(groups, scores, advantages_PG)

    def _roll_out(self, rows: list[dict[str, Any]], step: int) -> Groups:
        rollout = self.settings.rollout
        sampling = rollout.sampling(self.tokenizer.eos_ids)
        prompts = [self.encode(row["prompt"]) for row in rows]
        requests = [
            Request(prompt, sampling, zlib.crc32(f"{self.settings.seed} {step} {p} {g}".encode()))
            for p, prompt in enumerate(prompts)
            for g in range(rollout.group_size)
        ]
        completions = self.engine.generate(self.state.params, requests)
        return Groups(rows, prompts, completions, [self.tokenizer.decode(c.tokens) for c in completions])

    def _reward(self, groups: Groups) -> Scores:
        repeated = [row for row in groups.rows for _ in range(self.settings.rollout.group_size)]
        names = dict.fromkeys(key for row in groups.rows for key in row if key != "prompt")
        return score(
            self.rewards,
            prompts=[row["prompt"] for row in repeated],
            completions=groups.texts,
            completion_ids=[list(c.tokens) for c in groups.completions],
            columns={name: [row.get(name) for row in repeated] for name in names},
        )

    def _learn(self, groups: Groups, advantages_PG: np.ndarray, flat_P: np.ndarray) -> tuple[dict[str, float], Work]:
        """All updates of the step. Groups without spread have no gradient (without KL) and are not computed."""
        settings, G = self.settings, self.settings.rollout.group_size
        skip_P = np.zeros_like(flat_P) if settings.loss.kl_coefficient else flat_P.copy()
        P = len(groups.prompts) // settings.train.updates_per_step
        plans = []
        for first in range(0, len(groups.prompts), P):
            part = slice(first, first + P)
            if skip_P[part].all():
                skip_P[first] = False  # one group stays, so that every step measures entropy and log-prob difference
            plans.append(self._plan(groups, part, advantages_PG[part].ravel(), np.repeat(skip_P[part], G)))
        if settings.train.updates_per_step > 1 and settings.train.old_logprobs == "trainer":
            plans = [self._add_logprobs("old_logprobs", self.state.params, *plan) for plan in plans]
        if self.reference is not None:
            plans = [self._add_logprobs("reference_logprobs", self.reference, *plan) for plan in plans]
        outcomes, sums = [], []
        for packed, arrays in plans:
            self.state, outcome, parts = self.learner.update(self.state, self._batches(packed, arrays))
            outcomes.append(outcome)
            sums.append(parts)
        outcomes, sums = distributed.fetch((outcomes, sums))
        fed = sum(int((packed.segments > 0).sum()) for packed, _ in plans)
        targets = sum(int((packed.source >= 0).sum()) for packed, _ in plans)
        means = {key: float(np.mean([outcome[key] for outcome in outcomes])) for key in ("loss", "grad_norm")}
        return means | summarize(sums), Work(targets, 6.0 * (self.sizes.body * fed + self.sizes.head * targets))

    def _plan(
        self, groups: Groups, part: slice, advantages: np.ndarray, skip: np.ndarray
    ) -> tuple[PackedRows, dict[str, np.ndarray]]:
        """The packed rows of one update and its values per completion token."""
        G = self.settings.rollout.group_size
        prompts = groups.prompts[part]
        completions = groups.completions[part.start * G : part.stop * G]
        lengths = np.array([len(c.tokens) for c in completions])
        packed = pack_completions(
            prompts,
            [c.tokens for c in completions],
            np.repeat(np.arange(len(prompts)), G).tolist(),
            self.shape,
            multiple=self._rows_per_batch(),
            skip=skip.tolist(),
        )
        sampler = np.concatenate([c.logprobs for c in completions]).astype(np.float32)
        weights = token_weights(lengths, self.settings.loss.aggregation)
        arrays = {
            "sampler_logprobs": sampler,
            "advantages": np.repeat(advantages, lengths).astype(np.float32),
            "weights": np.repeat(weights, lengths).astype(np.float32),
        }
        return packed, arrays

    def _rows_per_batch(self) -> int:
        train = self.settings.train
        return train.micro_batch_size // train.completions_per_row * batch_parts()

    def _batches(self, packed: PackedRows, arrays: dict[str, np.ndarray]) -> list[dict[str, jax.Array]]:
        """Micro-batches on their devices."""
        whole = {name: getattr(packed, name) for name in _FED} | {k: packed.lay_out(v) for k, v in arrays.items()}
        size = self._rows_per_batch()
        pieces = [
            {name: value[start : start + size] for name, value in whole.items()}
            for start in range(0, len(packed.tokens), size)
        ]
        place = lambda x: sharding(("batch", None), x.shape, name="micro-batch")
        return [distributed.put_global(piece, jax.tree.map(place, piece)) for piece in pieces]

    def _add_logprobs(
        self, name: str, params: Params, packed: PackedRows, arrays: dict[str, np.ndarray]
    ) -> tuple[PackedRows, dict[str, np.ndarray]]:
        """Log-probs of the rows under `params`, back as one value per completion token."""
        parts = [self.logprobs(params, batch) for batch in self._batches(packed, arrays)]
        laid_out = np.concatenate(distributed.fetch(parts))
        flat = np.zeros_like(arrays["sampler_logprobs"])
        inside = packed.source >= 0
        flat[packed.source[inside]] = laid_out[inside]
        return packed, {**arrays, name: flat}

    def evaluate(self) -> dict[str, float]:
        """Held-out metrics of the present weights."""
        if not self.problems.rows:
            return {}
        log.info("answering %d held-out problems, sampled and greedy", len(self.problems.rows))
        generate = lambda requests: self.engine.generate(self.state.params, requests)
        sampling = self.settings.rollout.sampling(self.tokenizer.eos_ids)
        begin = time.perf_counter()
        metrics = evaluate(
            generate, self.tokenizer.decode, self.problems, self.settings.eval, sampling, seed=self.settings.seed
        )
        return metrics | {"time/eval": time.perf_counter() - begin}

    def _check_difference(self, metrics: dict[str, Any]) -> None:
        difference = metrics["sampling/sampling_logp_difference/mean"]
        if difference > self.settings.train.difference_alarm:
            log.warning(
                "the sampler's log-probs differ from the trainer's by %.2g on average (alarm at %.2g, "
                "config.train.difference_alarm): the two do not compute the same distribution",
                difference,
                self.settings.train.difference_alarm,
            )


_FED = ("tokens", "positions", "segments", "prefixes", "index", "targets")
