"""Guard of updates: decides by the loss and the norm of the gradient whether an update is made.

A non-finite gradient would spread NaN over all parameters and moments, so its update is skipped, and its batches are
written to a file that shows which of them was at fault. A norm far above earlier ones (a spike) is logged, and skipped
if the config says so. Every process decides by the same numbers, the loss and the norm of the whole update. The norms
known to a resumed run are in the checkpoint.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import pathlib
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np

from r1jax.core import distributed
from r1jax.core.errors import DivergedError, UserError

log = logging.getLogger(__name__)

WINDOW, LEAST = 128, 16  # norms that a spike is compared with, and how many of them there must be
SKIPPED, MOST_FILES = "skipped", 8  # folder of a workdir for batches of skipped updates; updates a start writes


@dataclasses.dataclass(frozen=True)
class GuardsConfig:
    """Reactions to updates and rewards that go wrong.

    Attributes:
      max_skipped: updates in a row that are skipped because their loss or gradient is not finite, before the run ends.
        The batches of the first eight are written to WORKDIR/skipped.
      spike_factor: multiple of the 95th percentile of the last 128 gradient norms above which a norm is a spike; 0
        calls none a spike.
      spikes: whether the update of a spike is made and logged ("log") or skipped ("skip").
      rewards: whether a reward that raises or returns no number does not apply to the rows concerned ("lenient") or
        ends the run ("strict").
    """

    max_skipped: int = 3
    spike_factor: float = 10.0
    spikes: Literal["log", "skip"] = "log"
    rewards: Literal["lenient", "strict"] = "lenient"

    def __post_init__(self) -> None:
        if self.max_skipped < 1:
            raise UserError(f"config.guards.max_skipped must be at least 1, got {self.max_skipped}")
        if not self.spike_factor >= 0:
            raise UserError(f"config.guards.spike_factor must be 0 (off) or more, got {self.spike_factor}")


class UpdateGuard:
    """Accepts or skips updates, and counts skipped updates and spikes. folder: for batches of skipped updates (None:
    they are not written).
    """

    def __init__(self, config: GuardsConfig, folder: pathlib.Path | None = None):
        self.config, self.folder = config, folder
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._in_a_row = self._skipped = self._spikes = self._kept = 0

    def admit(self, norm: float, losses: Sequence[float] = (), batches: Sequence[Any] = (), number: int = 0) -> bool:
        """Whether to make the update with this gradient norm.

        losses: of its micro-batches. batches: the micro-batches, trees of arrays. number: of the update, for the name
        of the file.
        Raises DivergedError if `max_skipped` updates in a row were not finite.
        """
        if not math.isfinite(norm) or not all(map(math.isfinite, losses)):
            self._skipped, self._in_a_row = self._skipped + 1, self._in_a_row + 1
            what = f"the gradient's norm is {norm}" if not math.isfinite(norm) else f"the loss is {sum(losses)}"
            log.warning("%s: update skipped (%d in a row)%s", what, self._in_a_row, self._keep(losses, batches, number))
            if self._in_a_row >= self.config.max_skipped:
                raise DivergedError(
                    f"{self._in_a_row} updates in a row have no finite gradient (config.guards.max_skipped); the "
                    "parameters are those before the first of them. Lower config.optimizer.learning_rate, or look at "
                    "the rewards and the data of these steps"
                )
            return False
        self._in_a_row = 0
        bound = self._bound()
        self._norms.append(norm)
        if norm <= bound:
            return True
        self._spikes += 1
        log.warning(
            "the gradient's norm %.3g is a spike: %.1f times the usual", norm, norm / bound * self.config.spike_factor
        )
        if self.config.spikes == "log":
            return True
        self._skipped += 1
        return False

    def _keep(self, losses: Sequence[float], batches: Sequence[Any], number: int) -> str:
        """Writes the batches of a skipped update to `update-NUMBER.npz`: `losses`, and each array as `INDEX.NAME`.
        Returns the words for the log: where they are, or why not. Every process calls this, as arrays may be global.
        """
        if self.folder is None or self._kept == MOST_FILES:
            return ""
        self._kept += 1
        file = self.folder / f"update-{number}.npz"
        leaves = jax.tree_util.tree_leaves_with_path(distributed.fetch(list(batches)))
        whole = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
        if distributed.is_writer():
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                np.savez(file, losses=np.asarray(losses), **whole)
            except OSError as error:
                return f"; its batches could not be written ({error.strerror})"
        return f"; its batches are in {file}"

    def take_metrics(self) -> dict[str, float]:
        """Returns and clears `guards/skipped_updates` and `guards/spikes`, if there were any."""
        counts = {"guards/skipped_updates": self._skipped, "guards/spikes": self._spikes}
        self._skipped = self._spikes = 0
        return {name: float(count) for name, count in counts.items() if count}

    def get_state(self) -> dict[str, Any]:
        """State as plain numbers for JSON."""
        return {"norms": list(self._norms), "in_a_row": self._in_a_row}

    def set_state(self, state: dict[str, Any] | None) -> None:
        """Restores the state; None, in a checkpoint from before there were guards, changes nothing."""
        if state is None:
            return
        self._norms = deque(state["norms"], maxlen=WINDOW)
        self._in_a_row = state["in_a_row"]

    def _bound(self) -> float:
        """Norm above which a norm is a spike; infinite after too few norms, or where almost all were 0 (nothing is left
        to learn).
        """
        if not self.config.spike_factor or len(self._norms) < LEAST:
            return math.inf
        return self.config.spike_factor * float(np.quantile(self._norms, 0.95)) or math.inf
