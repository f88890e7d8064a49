"""Training of a vocabulary for a model from scratch: a tokenizer from the texts of `path`."""

from __future__ import annotations

import dataclasses
import logging
import pathlib

from r1jax.core import distributed
from r1jax.core.errors import UserError
from r1jax.data.files import read_rows
from r1jax.runs.prologue import open_run
from r1jax.runs.workdir import write_config
from r1jax.text.sentencepiece_training import train_vocabulary

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class VocabularyConfig:
    """Settings of training a vocabulary.

    Attributes:
      path: file of rows with `text`.
      size: largest number of ids.
      rows: number of rows that are read, the first ones; 0 is all.
      stage: name of the stage.
    """

    path: str
    size: int
    rows: int = 0
    stage: str = "vocabulary"

    def check(self) -> None:
        """Raises UserError for impossible numbers."""
        if self.size < 1 or self.rows < 0:
            raise UserError(
                f"config.size must be at least 1 and config.rows at least 0, got {self.size} and {self.rows}"
            )


CONFIG = VocabularyConfig


def run(settings: VocabularyConfig, workdir: pathlib.Path) -> None:
    """Trains and writes the tokenizer; `config.model.tokenizer` may then name the workdir."""
    with open_run(settings):
        if distributed.is_writer():
            train(settings, workdir)


def train(settings: VocabularyConfig, workdir: pathlib.Path) -> None:
    """Reads the texts and writes the tokenizer's files."""
    rows = read_rows(settings.path, key="config.path")[: settings.rows or None]
    texts = [str(row.columns["text"]) for row in rows if "text" in row.columns]
    if not texts:
        raise UserError(f"{settings.path} has no row with text (config.path)")
    write_config(settings, workdir)
    tokenizer = train_vocabulary(texts, settings.size, workdir)
    log.info("%s: %d ids from %d texts", workdir, tokenizer.vocab_size, len(texts))
