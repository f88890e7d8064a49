"""Optimized HLO texts of any origin, a peer's dump too, under the same formulas as programs of r1jax."""

from __future__ import annotations

import gzip
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from r1jax.aot.compiled import bound_seconds, describe_costs, find_limit
from r1jax.aot.costs import Costs, measure
from r1jax.core.errors import UserError
from r1jax.runs.chips import Topology

ENDINGS = (".txt", ".hlo", ".txt.gz", ".hlo.gz")
HEAD = f"{'program':<28}{'TFLOP':>11}{'sent GB':>9}{'HBM TB':>9}{'at best s':>11}{'predicted':>11}{'exposed':>9}  limit"


class Judged(NamedTuple):
    """A program's name, costs and topology."""

    name: str
    costs: Costs
    topology: Topology

    @property
    def predicted(self) -> float:
        """Predicted seconds."""
        return self.costs.predicted_seconds

    def line(self) -> str:
        """The program's line under HEAD."""
        costs = self.costs
        return (
            f"{self.name[:27]:<28}{costs.flops / 1e12:>11.4g}{sum(costs.collective_bytes.values()) / 1e9:>9.3g}"
            f"{costs.hbm_bytes / 1e12:>9.3g}{bound_seconds(costs, self.topology.chip):>11.4g}{self.predicted:>11.4g}"
            f"{costs.exposed:>9.3g}  {find_limit(costs, self.topology.chip)}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Figures per device."""
        return describe_costs(self.costs, self.topology.chip)


def judge_texts(folder: pathlib.Path, topology: Topology) -> Iterator[Judged]:
    """The programs in the files of a folder, by name. Raises UserError if there is none, or for a file that is no
    optimized HLO text.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of compiled programs as text (--hlo)")
    files = sorted(file for file in folder.iterdir() if file.name.endswith(ENDINGS))
    if not files:
        raise UserError(f"{folder} holds no file *{', *'.join(ENDINGS)} (--hlo)")
    for file in files:
        try:
            raw = file.read_bytes()
            text = (gzip.decompress(raw) if file.name.endswith(".gz") else raw).decode()
            costs = measure(text, topology.slices, topology.devices, topology.chip)
        except (OSError, ValueError, KeyError, IndexError, EOFError, AssertionError) as error:
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise UserError(f"{file} is no optimized HLO text ({reason}) (--hlo)") from None
        yield Judged(file.name.partition(".")[0], costs, topology)
