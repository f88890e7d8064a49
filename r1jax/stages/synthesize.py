"""The data of a run that brings none: problems, held-out problems, requests, worked examples and text, drawn by rules
and written to the workdir, where later stages find them.

    problems.jsonl     `prompt`, `solution`, `domain` ("math"): what reinforcement learning asks
    held_out.jsonl     the same for other problems: what every model is measured on, and nothing is trained on
    all_domains.jsonl  the problems and `requests` requests ("general"), which have no solution
    worked.jsonl       `prompt` and `completion`: so many problems worked out and checked, in one language
    requests.jsonl     the requests with good replies
    text.jsonl         `text`: what a model reads that is trained from nothing (data/bilingual.py)
"""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

from r1jax.core import distributed
from r1jax.core.atomic_file import replace_file
from r1jax.core.errors import UserError
from r1jax.data.bilingual import draw_requests, draw_texts, draw_worked
from r1jax.data.sources import SourceRow, draw_addition
from r1jax.runs.prologue import open_run
from r1jax.runs.workdir import write_config

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DrawConfig:
    """Settings of data drawn by rules: numbers of rows of each kind, 0 for none.

    Attributes:
      low: smallest number of a sum.
      high: largest number of a sum.
      held_out: held-out problems.
      worked: problems worked out and checked.
      requests: requests with good replies.
      texts: texts to train a model from nothing on.
      stage: name of the stage.
      seed: seed of all draws.
    """

    low: int = 10
    high: int = 99
    held_out: int = 200
    worked: int = 0
    requests: int = 0
    texts: int = 0
    stage: str = "synthesize"
    seed: int = 0

    def check(self) -> None:
        """Raises UserError for impossible numbers."""
        for name in ("held_out", "worked", "requests", "texts"):
            if getattr(self, name) < 0:
                raise UserError(f"config.{name} must not be negative, got {getattr(self, name)}")


CONFIG = DrawConfig


def run(settings: DrawConfig, workdir: pathlib.Path) -> None:
    """Draws and writes; what lies in the workdir already is written again, and is the same."""
    with open_run():
        if distributed.is_writer():
            synthesize(settings, workdir)


def synthesize(settings: DrawConfig, workdir: pathlib.Path) -> None:
    """Draws all rows and writes their files."""
    write_config(settings, workdir)
    draw = draw_addition(settings.held_out, settings.seed, low=settings.low, high=settings.high)
    sums, problems = [row.columns for row in draw.train], _pose(draw.train)
    requests = draw_requests(settings.requests, settings.seed)
    asked = [{"prompt": row["prompt"], "solution": "", "domain": "general"} for row in requests]
    files = {
        "held_out": _pose(draw.held_out),
        "problems": problems,
        "all_domains": [*problems, *asked],
        "worked": draw_worked(sums, settings.worked, settings.seed),
        "requests": requests,
        "text": draw_texts(sums, settings.texts, settings.seed),
    }
    for name, rows in files.items():
        _write(workdir / f"{name}.jsonl", rows)
    log.info("%s: %s", workdir, ", ".join(f"{len(rows)} {name}" for name, rows in files.items()))


def _pose(rows: Sequence[SourceRow]) -> list[dict[str, Any]]:
    return [{"prompt": row.columns["question"], "solution": row.columns["solution"], "domain": "math"} for row in rows]


def _write(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
    replace_file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
