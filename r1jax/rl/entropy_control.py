"""The weight of the entropy bonus, moved towards a target of the entropy (Skywork-OR1, 2505.22312)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from r1jax.losses.policy import PolicyLossConfig


class EntropyControl:
    """The bonus's weight from update to update: it grows while the entropy is at most the target, and is applied only
    then; without a target it is constant.
    """

    def __init__(self, config: PolicyLossConfig):
        self.config, self.coefficient = config, config.entropy_coefficient
        self._last: float | None = None  # entropy of the last update, nats

    @property
    def applied(self) -> float:
        """Weight of the bonus in the next update."""
        if not self.config.entropy_target:
            return self.coefficient
        return self.coefficient if self._last is not None and self._last <= self.config.entropy_target else 0.0

    def observe(self, entropy: float) -> None:
        """Moves the weight by the mean entropy of an update's tokens."""
        config, self._last = self.config, entropy
        step = config.entropy_coefficient_delta * (1 if entropy <= config.entropy_target else -1)
        moved = self.coefficient + step
        self.coefficient = min(max(moved, config.entropy_coefficient_min), config.entropy_coefficient_max)

    def get_state(self) -> dict[str, Any]:
        """State for JSON."""
        return {"coefficient": self.coefficient, "last": self._last}

    def set_state(self, state: Mapping[str, Any] | None) -> None:
        """Continues from `get_state`; None is a checkpoint of a run without a target."""
        if state is not None:
            self.coefficient, self._last = state["coefficient"], state["last"]
