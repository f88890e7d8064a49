"""The critic of PPO: a model with a value in place of its output head, trained beside the policy on the same rows.

It starts from the policy's initial weights, or from a MODEL (a reward model keeps its score). The advantage of a token
is estimated over the sampled tokens of its completion (losses/value.py): the reward stands at the last token, and the
divergence from the reference, where `loss.kl_in` is "reward", at every token. Values, parameters and moments of the
critic are in memory and in checkpoints beside the policy's; with `config.lora` it has adapters of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.core.sharding import current_layout
from r1jax.core.structs import Program
from r1jax.learner.optimizer import OptimizerConfig, make_optimizer, make_schedule
from r1jax.learner.policy_objective import SCORED, Scoring
from r1jax.learner.state import TrainState, abstract_state, init_state, state_places
from r1jax.learner.step import Learner
from r1jax.learner.trainable import Trainable
from r1jax.learner.value_objective import make_value_loss, make_valuer, summarize_values
from r1jax.losses.value import estimate_advantages, whiten
from r1jax.models.adapters.lora import LoRAConfig
from r1jax.models.scores import attach_score
from r1jax.models.transformer import Params, Transformer
from r1jax.runs.abstract_model import abstract_model
from r1jax.runs.model_setup import ModelConfig, load_model

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """The critic of PPO, with `loss.baseline` = "critic".

    Attributes:
      model: MODEL that it starts from, a reward model or any other; "" is the policy's own.
      gamma: discount of rewards, per token.
      decay: lambda of generalized advantage estimation.
      clip: largest change of a value in a step; 0 is no bound.
      whiten: whether advantages are brought to mean 0 and deviation 1 over the tokens of a step.
      optimizer: optimizer and learning rate of the critic.
    """

    model: str = ""
    gamma: float = 1.0
    decay: float = 1.0
    clip: float = 0.2
    whiten: bool = True
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Values of all completion tokens of a step, one completion after the other."""

    values: np.ndarray
    returns: np.ndarray
    advantages: np.ndarray

    @property
    def explained(self) -> float:
        """Share of the returns' variance that the values explain."""
        spread = float(np.var(self.returns))
        return 1 - float(np.var(self.returns - self.values)) / spread if spread > 0 else 0.0

    def cut(self, start: int, stop: int) -> Arrays:
        """The arrays of an update, for its tokens."""
        arrays = {"old_values": self.values, "returns": self.returns, "advantages": self.advantages}
        return {name: array[start:stop].astype(np.float32) for name, array in arrays.items()}


def make_critic_model(config: CriticConfig, policy: ModelConfig, *, seed: int, abstract: bool) -> Transformer:
    """The critic before the first step. abstract: with shapes in place of arrays."""
    plain: dict[str, Any] = dict(preset="", tokenizer="", fetch="", sizes={}, layers=0)
    section = dataclasses.replace(policy, name=config.model, **plain) if config.model else policy
    model = abstract_model(section, "critic") if abstract else load_model(section)[0]
    return model if model.score is not None else attach_score(model, seed=seed)


class Critic:
    """The critic in training: its state, and the programs that change and ask it. updates: of the whole run."""

    def __init__(self, config: CriticConfig, model: Transformer, lora: LoRAConfig, scoring: Scoring, updates: int):
        self.config, self.layout = config, current_layout()
        self.trainable = Trainable(model, lora, seed=1)
        self.optimizer = make_optimizer(config.optimizer, updates)
        self.schedule = make_schedule(config.optimizer, updates)
        params, axes = self.trainable.params, self.trainable.axes
        loss = self.trainable.wrap(make_value_loss(self.trainable.graph, scoring, config.clip))
        self.learner = Learner(loss, self.optimizer, places=state_places(params, axes, self.optimizer))
        self.values = jax.jit(make_valuer(self.trainable.graph, scoring))
        self.state: TrainState = init_state(params, axes, self.optimizer)
        self.work = self.trainable.count_work()
        self._outcomes: list[dict[str, Any]] = []
        self._sums: list[dict[str, Any]] = []

    def weights(self) -> Params:
        """The current parameters of its model."""
        return self.trainable.whole(self.state.params)

    def abstract_state(self) -> TrainState:
        """Shapes with shardings of the state."""
        return abstract_state(self.state.params, self.trainable.axes, self.optimizer)

    def estimate(
        self, values: np.ndarray, lengths: np.ndarray, rewards_N: np.ndarray, kl: np.ndarray, excluded: np.ndarray
    ) -> Estimate:
        """Advantages and returns of a step. values, kl: of its tokens, kl as it is subtracted from rewards; rewards_N:
        of its completions, NaN where none applied; excluded: completions left out of the loss.
        """
        config, rewards = self.config, -np.asarray(kl, np.float64)
        here = lengths > 0
        rewards[(np.cumsum(lengths) - 1)[here]] += np.nan_to_num(rewards_N)[here]
        advantages, returns = estimate_advantages(rewards, values, lengths, gamma=config.gamma, decay=config.decay)
        inside = np.repeat(~(excluded | np.isnan(rewards_N)), lengths)
        advantages = whiten(advantages, inside) if config.whiten else advantages
        return Estimate(values, returns, np.where(inside, advantages, 0.0))

    def update(self, batches: Sequence[dict[str, jax.Array]]) -> None:
        """One optimizer step over the rows of a policy update."""
        self.state, outcome, sums = self.learner.update(self.state, self.trainable.frozen, batches)
        self._outcomes.append(outcome)
        self._sums += sums

    def take_metrics(self, fetch: Any) -> dict[str, float]:
        """Metrics of the updates since the last call."""
        outcomes, sums = fetch((self._outcomes, self._sums))
        self._outcomes, self._sums = [], []
        means = {
            f"value/{key}": float(np.mean([outcome[key] for outcome in outcomes])) for key in ("loss", "grad_norm")
        }
        return {**means, **summarize_values(sums)}

    def abstract_batch(self, policy_batch: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a micro-batch, by those of the policy's."""
        like = policy_batch["advantages"]
        scored = {name: value for name, value in policy_batch.items() if name in SCORED}
        wide = jax.ShapeDtypeStruct(like.shape, jnp.float32, sharding=like.sharding)
        return {**scored, "weights": policy_batch["weights"], "returns": wide, "old_values": wide}

    def programs(
        self, policy_batch: dict[str, jax.ShapeDtypeStruct], counts: tuple[float, float, float]
    ) -> list[Program]:
        """Programs critic.accumulate, critic.apply and critic.values; counts: tokens, targets and pairs of a batch."""
        batch, state, frozen = self.abstract_batch(policy_batch), self.abstract_state(), self.trainable.frozen
        found = self.learner.programs(state, frozen, batch, self.work.train(*counts))
        scored = {name: value for name, value in batch.items() if name in SCORED}
        arguments = self.weights(), scored
        found.append(Program("values", self.values, arguments, self.work.forward(*counts)))
        return [program.rename(f"critic.{program.name}") for program in found]
