"""Data sets of the hub, `org/name[@revision][:config][:split]`: their files of a commit, by huggingface_hub and its
cache.

Files are those that the data set's card names for the config and the split, else those with the split's name in their
path; of a data set without such files (a loading script, archives), those of the hub's own conversion to Parquet. A set
with neither is read with `datasets` (extra `hub`). What is complete in the cache is not asked for again, if a revision
is given.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from r1jax.core.errors import UserError
from r1jax.core.extras import require
from r1jax.data.formats import find_suffix
from r1jax.data.sources import SourceRow

log = logging.getLogger(__name__)

CONVERTED = "refs/convert/parquet"  # branch with the hub's conversion of a data set: CONFIG/SPLIT/NNNN.parquet
_NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?(?::([^:/]+))?(?::([^:/]+))?")


class HubName(NamedTuple):
    """The parts of a hub name; config "" is the set's default."""

    repository: str
    revision: str | None
    config: str
    split: str


def split_name(name: str) -> HubName | None:
    """The parts of a text that can be a hub name; None for any other text."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    config, split = (found[3], found[4]) if found[4] else ("", found[3] or "train")
    return HubName(found[1], found[2], config, split)


def find_hub_files(name: str, key: str) -> list[str] | None:
    """Copies here of the files of a data set's split, in order; None if it has no files of a known kind.

    Raises UserError if the hub does not give it.
    """
    import huggingface_hub

    parts = split_name(name)
    assert parts is not None
    try:
        for revision in dict.fromkeys((parts.revision, CONVERTED)):
            facts = _ask(huggingface_hub, parts.repository, revision)
            if facts is None:
                continue
            names = [sibling.rfilename for sibling in facts.siblings or ()]
            chosen = choose_files(names, _read_card(facts), parts)
            if chosen:
                log.info("%s: %d files of revision %s of the hub", name, len(chosen), facts.sha)
                fetch = lambda file, sha=facts.sha: huggingface_hub.hf_hub_download(
                    parts.repository, file, repo_type="dataset", revision=sha
                )
                return [fetch(file) for file in chosen]
    except UserError:
        raise
    except Exception as error:  # the hub's errors have no common base; each means that the data set is unavailable
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        if importlib.util.find_spec("datasets") is None:
            raise UserError(f"cannot get the data set {name} from the hub ({reason}); {key} may name a file") from None
        log.info("%s: the hub does not list its files (%s); reading it with the package datasets", name, reason)
    return None


def choose_files(names: Sequence[str], configs: Sequence[Mapping[str, Any]], name: HubName) -> list[str]:
    """The files of a split in order of the card's patterns, or of name. `configs` is the card's list of them.

    Raises UserError for a config or split that the card lacks.
    """
    known = sorted(file for file in names if find_suffix(file))
    if configs:
        entry = _find_config(configs, name)
        splits = _list_patterns(entry.get("data_files"))
        if splits and name.split not in splits:
            raise UserError(f"{name.repository} has the splits {', '.join(splits)}, got {name.split!r}")
        chosen = [file for pattern in splits.get(name.split, ()) for file in known if fnmatch.fnmatch(file, pattern)]
        if chosen or splits:
            return list(dict.fromkeys(chosen))
    inside = [file for file in known if not name.config or file.startswith(f"{name.config}/")]
    word = re.compile(rf"(?:^|[/_.-]){re.escape(name.split)}(?:[/_.-])")
    chosen = [file for file in inside if word.search(file)]
    folders = {file.partition("/")[0] for file in chosen if "/" in file} - {"data", name.split}
    if len(folders) > 1 and not name.config:
        if "default" not in folders:
            raise UserError(
                f"{name.repository} has the configs {', '.join(sorted(folders))}: name one, org/name:CONFIG:SPLIT"
            )
        chosen = [file for file in chosen if file.startswith("default/")]
    return chosen or (inside if name.split == "train" and len(inside) == 1 else [])


def load_rows(name: str, key: str) -> Iterator[SourceRow]:
    """Rows of a data set by the package `datasets`."""
    datasets = require("datasets", "hub", f"reading {name}")
    parts = split_name(name)
    assert parts is not None
    options = {"revision": parts.revision} if parts.revision else {}
    config = [parts.config] if parts.config else []
    try:
        rows = datasets.load_dataset(parts.repository, *config, split=parts.split, **options)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"cannot get the data set {name} from the hub ({reason}); {key} may name a file") from None
    for number, row in enumerate(rows):
        yield SourceRow(f"{name}:{number}", dict(row))


def _ask(hub: Any, repository: str, revision: str | None) -> Any:
    """Facts about a data set at a revision; None if it has no such branch of the hub's own."""
    try:
        return hub.HfApi().dataset_info(repository, revision=revision)
    except hub.errors.RevisionNotFoundError:
        if revision == CONVERTED:
            return None
        raise


def _read_card(facts: Any) -> list[Mapping[str, Any]]:
    card = getattr(facts, "card_data", None)
    configs = card.get("configs") if card is not None else None
    return [entry for entry in configs or () if isinstance(entry, dict) and entry.get("data_files")]


def _find_config(configs: Sequence[Mapping[str, Any]], name: HubName) -> Mapping[str, Any]:
    named = {str(entry.get("config_name", "default")): entry for entry in configs}
    if name.config in named:
        return named[name.config]
    default = [entry for entry in configs if entry.get("default")] or [named[key] for key in named if key == "default"]
    if name.config or not (default or len(named) == 1):
        raise UserError(f"{name.repository} has the configs {', '.join(named)}, got {name.config or 'none'!r}")
    return (default or list(configs))[0]


def _list_patterns(files: Any) -> dict[str, list[str]]:
    """Patterns of files by split, of a card's `data_files`: a text, a list of texts, or a list of {split, path}."""
    as_list = lambda value: [value] if isinstance(value, str) else list(value or ())
    found: dict[str, list[str]] = {}
    for entry in as_list(files) if not isinstance(files, dict) else [files]:
        split, paths = (
            ("train", [entry]) if isinstance(entry, str) else (entry.get("split"), as_list(entry.get("path")))
        )
        found.setdefault(str(split), []).extend(path.removeprefix("./") for path in paths)
    return found
