"""Adapters for sampling: those that sequences need are read from their files into a bank, and leave when others need
their places.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from r1jax.core.sharding import batch_parts, current_layout, in_layout
from r1jax.models.adapters.adapter_bank import AdapterBank
from r1jax.models.transformer import Params


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter that can be sampled from: its file, and its rank."""

    file: str
    rank: int


@dataclasses.dataclass
class _Held:
    place: int
    rank: int
    users: int = 0


class SamplerBank:
    """Places of a bank for the adapters of the sequences in an engine's slots.

    base: parameters of the model. load: the adapter of a file. One thread at a time may use it: the engine's.
    """

    def __init__(self, bank: AdapterBank, base: Params, load: Callable[[str], Params], slots: int):
        self.bank, self.layout, self._base, self._load = bank, current_layout(), base, load
        self._params = bank.empty()
        self._write = jax.jit(bank.write, donate_argnums=0)
        self._held: dict[str, _Held] = {}  # least recently used first
        self._gates = bank.gates([None] * (slots + 1))  # the last row is of no slot

    @in_layout
    def acquire(self, adapter: Adapter) -> bool:
        """Puts an adapter into a place for one more user; whether there is one. Raises UserError for a lost file."""
        held = self._held.pop(adapter.file, None)
        if held is None:
            taken = {other.place for other in self._held.values()}
            place = next((place for place in range(self.bank.places) if place not in taken), None)
            if place is None:
                idle = next((file for file, other in self._held.items() if not other.users), None)
                if idle is None:
                    return False
                place = self._held[idle].place
            loaded = self._load(adapter.file)
            self._held = {file: other for file, other in self._held.items() if other.place != place}
            self._params = self._write(self._params, loaded, np.int32(place))
            held = _Held(place, adapter.rank)
        held.users += 1
        self._held[adapter.file] = held
        return True

    def release(self, adapter: Adapter) -> None:
        """Ends one use."""
        self._held[adapter.file].users -= 1

    def set_slot(self, slot: int, adapter: Adapter | None) -> None:
        """Gives a slot an adapter that is held; None: the bare model."""
        held = None if adapter is None else self._held[adapter.file]
        self._gates[slot] = self.bank.gates([None if held is None else (held.place, held.rank)])[0]

    def params(self, slots: np.ndarray) -> Params:
        """Parameters for the rows of slots; out of range: the bare model."""
        return self.bank.join(self._base, self._params, self._gates[np.minimum(slots, len(self._gates) - 1)])

    def params_of(self, adapter: Adapter | None) -> Params:
        """Parameters for a batch of which all rows have one adapter, which is held."""
        held = None if adapter is None else self._held[adapter.file]
        gate = self.bank.gates([None if held is None else (held.place, held.rank)])
        return self.bank.join(self._base, self._params, np.repeat(gate, batch_parts(), 0))
