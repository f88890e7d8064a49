"""A vocabulary of one's own for a model that is trained from nothing: the tokenizer files of `path`'s texts."""

from __future__ import annotations

import dataclasses
import logging
import pathlib

from ml_collections import ConfigDict

from r1jax.core import console, distributed
from r1jax.core.config import unpack
from r1jax.core.errors import UserError
from r1jax.data.files import read_rows
from r1jax.runs.workdir import write_config
from r1jax.text.sentencepiece_training import train_vocabulary

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class VocabularyConfig:
    """path: rows with `text`, of which the first `rows` are read (0: all). size: ids, at most."""

    path: str
    size: int
    rows: int = 0
    stage: str = "vocabulary"


def read_config(config: ConfigDict) -> VocabularyConfig:
    """The config as a dataclass. Raises UserError for unknown keys and wrong values."""
    return unpack(VocabularyConfig, config)


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains and writes; the workdir is then a folder that `config.model.path` may name for its tokenizer."""
    settings = read_config(config)
    console.set_up_logging()
    distributed.start()
    if not distributed.is_writer():
        return
    rows = read_rows(settings.path, key="config.path")[: settings.rows or None]
    texts = [str(row.columns["text"]) for row in rows if "text" in row.columns]
    if not texts:
        raise UserError(f"{settings.path} holds no row with text (config.path)")
    write_config(config, workdir)
    tokenizer = train_vocabulary(texts, settings.size, workdir)
    log.info("%s: %d ids from %d texts", workdir, tokenizer.vocab_size, len(texts))
