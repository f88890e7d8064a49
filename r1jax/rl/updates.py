"""The training half of a GRPO step: groups with advantages become packed rows, and these the updates of the policy.

All old and reference log-probs of a step are computed before its first update. Token weights are computed from the
whole update, so micro-batches and meshes change nothing (losses/aggregation.py).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.core import distributed
from r1jax.core.sharding import batch_parts, current_layout, in_layout, is_abstract, settle, sharding
from r1jax.core.structs import Program
from r1jax.data.packing import PackedRows, RowShape, pack_completions
from r1jax.learner.balance import LOAD, measure_load
from r1jax.learner.objective import Objective
from r1jax.learner.optimizer import make_optimizer, make_schedule
from r1jax.learner.policy_objective import SCORED, Scoring, make_entropies, make_scorer, mean_entropy, summarize
from r1jax.learner.state import TrainState, abstract_state, init_state, state_places
from r1jax.learner.step import Frozen, Learner
from r1jax.learner.trainable import Trainable
from r1jax.learner.update_guard import UpdateGuard
from r1jax.losses.aggregation import token_weights
from r1jax.losses.policy import estimate_kl
from r1jax.models.transformer import Params
from r1jax.rl.critic import Critic, Estimate
from r1jax.rl.entropy_control import EntropyControl
from r1jax.rl.grpo_config import GRPOConfig
from r1jax.rl.micro_batch import describe_batch
from r1jax.rl.policy_state import CriticState, PolicyState, mix
from r1jax.rl.rollout_batch import Groups

Arrays = dict[str, np.ndarray]


class Updates:
    """The policy in training: its state, its reference (None: no KL term), and the programs that change them.

    State and reference consist of the trained parameters, all of the model's or adapters (learner/trainable.py).
    scoring: settings of log-probs for rows of `shape`. objective: the loss. critic: of PPO.
    """

    def __init__(
        self,
        settings: GRPOConfig,
        trainable: Trainable,
        shape: RowShape,
        scoring: Scoring,
        objective: Objective,
        critic: Critic | None = None,
    ):
        self.settings, self.trainable, self.shape, self.objective = settings, trainable, shape, objective
        self.critic = critic
        self.layout = current_layout()
        params, axes = trainable.params, trainable.axes
        self.work = trainable.count_work()
        total = settings.steps * settings.train.updates_per_step
        self.schedule = make_schedule(settings.optimizer, total)
        self.optimizer = make_optimizer(settings.optimizer, total)
        loss = trainable.wrap(objective.loss_fn)
        self.guard = UpdateGuard(settings.guards)
        places = state_places(params, axes, self.optimizer)
        self.learner = Learner(
            loss, self.optimizer, bias_rate=settings.train.bias_rate, guard=self.guard, places=places
        )
        self.logprobs = jax.jit(make_scorer(trainable.graph, scoring))
        self.entropies = jax.jit(make_entropies(trainable.graph, scoring))
        self.entropy_control = EntropyControl(settings.loss)
        copy = lambda tree: tree if is_abstract(tree) else jax.tree.map(jnp.copy, tree)
        self.reference = copy(params) if settings.loss.kl_coefficient else None
        self.policy: TrainState = init_state(params, axes, self.optimizer)
        self._mix = jax.jit(mix, out_shardings=None if places is None else places.params)

    def weights(self) -> Params:
        """The current parameters of the model; with LoRA the base and the adapters beside it."""
        return self.trainable.whole(self.policy.params)

    @property
    def frozen(self) -> Frozen:
        """Parameters that updates read but do not train, by name: the base under adapters, a teacher, the reference."""
        reference = {} if self.reference is None else {"reference": self.reference}
        return {**self.trainable.frozen, **self.objective.frozen, **reference}

    # --- Programs ---

    def abstract_policy(self) -> TrainState:
        """Shapes with shardings of the policy in training."""
        return abstract_state(self.policy.params, self.trainable.axes, self.optimizer)

    @in_layout
    def programs(self) -> list[Program]:
        """accumulate, apply, and logprobs and entropies where they are computed apart from the loss; for full rows, and
        for abstract parameters. Left out: `mix`, which moves the reference.
        """
        batch, shape, settings = self.abstract_batch(), self.shape, self.settings.loss
        rows = self._rows_per_batch()
        counts = rows * shape.length, rows * shape.targets, rows * shape.pairs
        useful = self.work.train(*counts) + self.objective.work.forward(*counts)
        programs = self.learner.programs(self.abstract_policy(), self.frozen, batch, useful)
        scored = self.weights(), {name: batch[name] for name in SCORED if name in batch}
        if self.recomputes_old or self.reference is not None:
            programs.append(Program("logprobs", self.logprobs, scored, self.work.forward(*counts)))
        if settings.top_entropy_quantile < 1:
            programs.append(Program("entropies", self.entropies, scored, self.work.forward(*counts)))
        if self.critic is not None:
            programs += self.critic.programs(batch, counts)
        return programs

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes with shardings of a micro-batch."""
        scored: tuple[str, ...] = ("old_logprobs",) if self.recomputes_old else ()
        if self.reference is not None and self.settings.loss.kl_in == "loss":
            scored += ("reference_logprobs",)
        return describe_batch(self.settings, self.shape, self._rows_per_batch(), scored, self.trainable.routing)

    @property
    def recomputes_old(self) -> bool:
        """Whether old log-probs are those of the trainer, computed before the first of several updates."""
        train = self.settings.train
        return train.updates_per_step > 1 and train.old_logprobs == "trainer"

    # --- Content of a checkpoint ---

    @property
    def moves_reference(self) -> bool:
        """Whether the reference differs from the initial model."""
        return self.reference is not None and self.settings.reference.every_updates > 0

    @property
    def state(self) -> TrainState:
        """All that training changes."""
        policy = self.policy
        if self.critic is not None:
            return CriticState(policy.params, policy.opt_state, policy.updates, self.critic.state)
        if self.reference is None or not self.settings.reference.every_updates:
            return policy
        return PolicyState(policy.params, policy.opt_state, policy.updates, self.reference)

    @state.setter
    def state(self, state: TrainState) -> None:
        if isinstance(state, PolicyState):
            self.reference = state.reference
        if isinstance(state, CriticState) and self.critic is not None:
            self.critic.state = state.critic
        self.policy = TrainState(state.params, state.opt_state, state.updates)

    @in_layout
    def abstract_state(self) -> TrainState:
        """Shapes with shardings of `state`."""
        shapes = self.abstract_policy()
        if self.critic is not None:
            return CriticState(shapes.params, shapes.opt_state, shapes.updates, self.critic.abstract_state())
        if not self.moves_reference:
            return shapes
        return PolicyState(shapes.params, shapes.opt_state, shapes.updates, shapes.params)

    # --- One step ---

    @in_layout
    def measure_kl(self, groups: Groups, temperature: float) -> np.ndarray:
        """KL of each completion from the reference, summed over its tokens, by the sampler's log-probs [N]."""
        kl = self._measure_kl(*self._plan_all(groups), temperature)
        owners = np.repeat([b.member for b in groups.branches], [b.completion.length for b in groups.branches])
        return np.bincount(owners.astype(np.int64), kl, len(groups.completions))

    def _plan_all(self, groups: Groups) -> tuple[PackedRows, Arrays]:
        """Rows of all completions, whatever their advantages."""
        count = len(groups.completions)
        empty = np.array([not c.length for c in groups.completions])  # faults before the first token
        return self._plan(groups, np.zeros(count), np.zeros(count, bool), empty)

    def _measure_kl(self, packed: PackedRows, arrays: Arrays, temperature: float) -> np.ndarray:
        """KL from the reference at every completion token, by the sampler's log-probs, float64."""
        assert self.reference is not None
        packed, arrays = self._add_logprobs("reference_logprobs", self.reference, packed, arrays, temperature)
        return np.asarray(
            estimate_kl(arrays["sampler_logprobs"], arrays["reference_logprobs"], self.settings.loss), float
        )

    @in_layout
    def estimate(
        self, groups: Groups, rewards_PG: np.ndarray, excluded_PG: np.ndarray, temperature: float
    ) -> tuple[Estimate, dict[str, float]]:
        """The critic's view of a step: advantages and returns of its tokens, and metrics. rewards_PG: NaN where no
        reward applied.
        """
        assert self.critic is not None
        loss, lengths = self.settings.loss, np.array([c.length for c in groups.completions])
        packed, arrays = self._plan_all(groups)
        values, _ = self._measure(self.critic.values, self.critic.weights(), packed, arrays, temperature)
        kl, metrics = np.zeros(len(values)), dict[str, float]()
        if loss.kl_coefficient and loss.kl_in == "reward":
            kl = self._measure_kl(packed, arrays, temperature)
            metrics["kl"] = float(kl.mean())
        spent = loss.kl_coefficient * kl
        found = self.critic.estimate(values, lengths, rewards_PG.ravel(), spent, excluded_PG.ravel().astype(bool))
        return found, {**metrics, "value/explained_variance": found.explained}

    @in_layout
    def take(
        self,
        groups: Groups,
        advantages_PG: np.ndarray,
        excluded_PG: np.ndarray,
        temperature: float,
        estimate: Estimate | None = None,
    ) -> tuple[dict[str, float], int, float]:
        """All updates of a step -> (metrics, completion tokens trained on, useful FLOPs).

        excluded_PG: completions left out of every loss. estimate: of the critic, whose advantages of tokens take the
        place of advantages_PG. Completions without gradient are not computed, except that each
        update measures at least one group.
        """
        settings, G = self.settings, advantages_PG.shape[1]
        if not self.objective.uses_advantages:
            advantages_PG = np.ones_like(advantages_PG)
        P = len(groups.prompts) // settings.train.updates_per_step
        plans = []
        for first in range(0, len(groups.prompts), P):
            part = np.arange(first, first + P)
            skip_PG = excluded_PG[part].copy()
            if not settings.loss.needs_all_tokens:
                skip_PG |= (np.where(excluded_PG, 0.0, advantages_PG)[part] == 0).all(axis=1, keepdims=True)
            if skip_PG.all():
                shown = int((~excluded_PG[part]).any(axis=1).argmax())
                skip_PG[shown] = excluded_PG[part][shown]
            plans.append(
                self._plan(
                    groups.pick(part, G), advantages_PG[part].ravel(), excluded_PG[part].ravel(), skip_PG.ravel()
                )
            )
            if estimate is not None:
                ends = np.cumsum([0, *(len(c.tokens) for c in groups.completions)])
                plans[-1][1].update(estimate.cut(ends[first * G], ends[(first + P) * G]))
        if self.recomputes_old:
            plans = [self._add_logprobs("old_logprobs", self.policy.params, *plan, temperature) for plan in plans]
        if self.reference is not None and settings.loss.kl_in == "loss":
            plans = [self._add_logprobs("reference_logprobs", self.reference, *plan, temperature) for plan in plans]
        outcomes, sums = [], []
        for packed, arrays in plans:
            if settings.loss.top_entropy_quantile < 1:
                packed, arrays = self._select_tokens(packed, arrays, temperature)
            batches = self._batches(packed, arrays, temperature)
            self.policy, outcome, parts = self.learner.update(self.policy, self.frozen, batches)
            if settings.loss.entropy_target:
                parts = distributed.fetch(parts)
                self.entropy_control.observe(mean_entropy(parts))
            if self.critic is not None:
                self.critic.update(self._batches(packed, arrays, temperature, self._critic_batch()))
            outcomes.append(outcome)
            sums.append(parts)
        outcomes, sums = distributed.fetch((outcomes, sums))
        fed, targets, pairs = (sum(counts) for counts in zip(*(packed.counts for packed, _ in plans), strict=True))
        metrics = {key: float(np.mean([outcome[key] for outcome in outcomes])) for key in ("loss", "grad_norm")}
        metrics["learning_rate"] = float(self.schedule(int(self.policy.updates) - 1))
        metrics |= summarize(sums) | self._move_reference() | self.guard.take_metrics()
        if self.critic is not None:
            metrics |= self.critic.take_metrics(distributed.fetch)
        if settings.loss.has_entropy_bonus:
            metrics["entropy_coefficient"] = self.entropy_control.coefficient
        if loads := [outcome[LOAD] for outcome in outcomes if LOAD in outcome]:
            metrics |= measure_load(np.sum(loads, axis=0))
        flops = self.work.train(fed, targets, pairs) + self.objective.work.forward(fed, targets, pairs)
        if self.critic is not None:  # values once, then an update
            work = self.critic.work
            flops += work.forward(fed, targets, pairs) + work.train(fed, targets, pairs)
        return metrics, targets, flops

    def _move_reference(self) -> dict[str, float]:
        """Mixes the policy into the reference when due; returns the age of the reference."""
        every, updates = self.settings.reference.every_updates, int(self.policy.updates)
        if not self.moves_reference:
            return {}
        if updates % every == 0:
            self.reference = self._mix(self.reference, self.policy.params, self.settings.reference.mixing)
        return {"reference/age_updates": float(updates % every)}

    # --- Rows and batches ---

    def _plan(
        self, groups: Groups, advantages: np.ndarray, excluded: np.ndarray, skip: np.ndarray
    ) -> tuple[PackedRows, Arrays]:
        """The packed rows of one update, and its values per completion token."""
        branches = groups.branches
        completions, members = [b.completion for b in branches], np.array([b.member for b in branches], np.int64)
        advantages, excluded, skip = advantages[members], excluded[members], skip[members]
        lengths = np.array([c.length for c in completions], np.int64)
        has_given = any(c.sampled is not None for c in completions)
        shared = {(b.group, b.prompt): number for number, b in enumerate(branches)}
        packed = pack_completions(
            [b.prompt for b in branches],
            [c.tokens for c in completions],
            [shared[b.group, b.prompt] for b in branches],
            self.shape,
            multiple=self._rows_per_batch(),
            skip=skip.tolist(),
            sampled=[c.places for c in completions] if has_given else None,
        )
        weights = token_weights(
            lengths,
            self.settings.loss.aggregation,
            constant=self.settings.trajectory_tokens,
            excluded=excluded,
        )
        arrays = {
            "sampler_logprobs": np.concatenate([(), *(c.sampled_logprobs for c in completions)]).astype(np.float32),
            "advantages": np.repeat(advantages, lengths).astype(np.float32),
            "weights": np.repeat(weights, lengths).astype(np.float32),
        }
        if self.settings.rollout.max_staleness:
            arrays["ages"] = np.concatenate([c.ages for c in completions if c.ages is not None])
        if self.settings.train.replay_experts:
            arrays["experts"] = np.concatenate([c.experts for c in completions if c.experts is not None])
        return packed, arrays

    def _rows_per_batch(self) -> int:
        train = self.settings.train
        return train.micro_batch_size // train.completions_per_row * batch_parts()

    def _critic_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        assert self.critic is not None
        return self.critic.abstract_batch(self.abstract_batch())

    def _batches(
        self,
        packed: PackedRows,
        arrays: Arrays,
        temperature: float,
        names: dict[str, jax.ShapeDtypeStruct] | None = None,
    ) -> list[dict[str, jax.Array]]:
        """Micro-batches on their devices, of the arrays `names` (None: the policy's)."""
        names = self.abstract_batch() if names is None else names
        whole = {name: getattr(packed, name) for name in names if hasattr(packed, name)}
        whole |= {k: packed.lay_out(v, -1 if k == "experts" else 0) for k, v in arrays.items() if k in names}
        size = self._rows_per_batch()
        pieces = [
            {name: value[start : start + size] for name, value in whole.items()}
            for start in range(0, len(packed.tokens), size)
        ]
        if "temperature" in names:
            pieces = [{**piece, "temperature": np.float32(temperature)} for piece in pieces]
        if "entropy_coefficient" in names:
            pieces = [{**piece, "entropy_coefficient": np.float32(self.entropy_control.applied)} for piece in pieces]
        place = lambda x: sharding(("batch", *[None] * (x.ndim - 1))[: x.ndim], x.shape, name="micro-batch")
        return [distributed.put_global(piece, jax.tree.map(place, piece)) for piece in pieces]

    def _add_logprobs(
        self, name: str, params: Params, packed: PackedRows, arrays: Arrays, temperature: float
    ) -> tuple[PackedRows, Arrays]:
        """Log-probs of the rows under trained `params`, as one value per completion token."""
        values, _ = self._measure(self.logprobs, self.trainable.whole(params), packed, arrays, temperature)
        return packed, {**arrays, name: values}

    def _select_tokens(self, packed: PackedRows, arrays: Arrays, temperature: float) -> tuple[PackedRows, Arrays]:
        """Marks the tokens of the update whose entropy under the current policy is in the highest quantile."""
        entropies, rated = self._measure(self.entropies, self.weights(), packed, arrays, temperature)
        rated &= arrays["weights"] > 0
        share = 1.0 - self.settings.loss.top_entropy_quantile
        least = np.quantile(entropies[rated], share) if rated.any() else np.inf
        return packed, {**arrays, "selected": (rated & (entropies >= least)).astype(np.float32)}

    def _measure(
        self, program: Any, weights: Params, packed: PackedRows, arrays: Arrays, temperature: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Values that a program gives for the rows under all parameters of its model, one per completion token, and
        which tokens are in a row; 0 for the others.
        """
        batches = self._batches(packed, arrays, temperature)
        parts = [settle(program(weights, {k: batch[k] for k in SCORED if k in batch})) for batch in batches]
        laid_out = np.concatenate(distributed.fetch(parts))
        flat = np.zeros_like(arrays["sampler_logprobs"])
        inside = packed.source >= 0
        flat[packed.source[inside]] = laid_out[inside]
        rated = np.zeros(len(flat), bool)
        rated[packed.source[inside]] = True
        return flat, rated
