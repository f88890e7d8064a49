"""Agreement of the processes of a run on config, code and data, before they compute together.

Processes that differ would compile different programs and wait for each other in vain, or train on a mixture without a
sign. Digests are exchanged through the key-value store of jax's coordination service, which needs no device.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from jax._src import distributed as _jax_distributed  # its key-value store has no public name

import r1jax
from r1jax.core.errors import UserError
from r1jax.core.processes.failures import describe_process

WAIT_SECONDS = 600  # for the digest of a process that has more to read than this one
_PLACE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")  # module:function
_rounds = itertools.count()


def is_needed() -> bool:
    """Whether there are other processes, so that digests are worth their time."""
    return (_jax_distributed.global_state.num_processes or 1) > 1


def agree(what: str, digest: str, values: Mapping[str, Any] | None = None) -> None:
    """Compares a digest with those of the other processes; all call this in the same order.

    what: the thing in words: `data`. values: what the digest is of, by key, to name the first key that differs. Raises
    UserError in every process where one differs from the first.
    """
    if not is_needed():
        return
    number = next(_rounds)
    found = _exchange(f"{number}/digest", f"{what} {digest}")
    for index, other in enumerate(found):
        if other == found[0]:
            continue
        if other.partition(" ")[0] != found[0].partition(" ")[0]:
            raise UserError(
                f"the processes of a run must do the same, but {describe_process(index)} compares its "
                f"{other.partition(' ')[0]} and {describe_process(0)} its {found[0].partition(' ')[0]}"
            )
        raise UserError(
            f"the processes of a run need the same {what}, but {describe_process(index)} has another than "
            f"{describe_process(0)}{_name_key(number, index, values)}; use the same config, data and code on all hosts"
        )


def digest_settings(values: Mapping[str, Any]) -> str:
    """Digest of flat plain values."""
    return digest_items(f"{key}={values[key]!r}" for key in sorted(values))


def digest_code(values: Mapping[str, Any]) -> str:
    """Digest of r1jax's sources and of the modules that values name as `module:function`, if they are found."""
    folder = pathlib.Path(r1jax.__file__).parent
    files = sorted(folder.rglob("*.py"))
    places = {value for value in values.values() if isinstance(value, str)} | set(values)
    names = {match[0].partition(":")[0] for place in places if (match := _PLACE.search(place))}
    files += [pathlib.Path(origin) for name in sorted(names) if (origin := _find_source(name))]
    return digest_items(file.read_bytes() for file in files if file.is_file())


def agree_on_data(*parts: Iterable[Any]) -> None:
    """Compares the rows that each process has read: part by part, in order. Raises UserError where they differ."""
    if is_needed():
        agree("data", digest_items(digest_items(part) for part in parts))


def digest_items(items: Iterable[Any]) -> str:
    """Digest of byte strings, or of other things by their `repr`, in order."""
    digest = hashlib.sha256()
    for item in items:
        data = item if isinstance(item, bytes) else repr(item).encode("utf-8", "replace")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


def _find_source(module: str) -> str:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return ""
    return (spec.origin if spec else "") or ""


def _name_key(number: int, index: int, values: Mapping[str, Any] | None) -> str:
    """The first key in which the process `index` differs from the first process, in words; "" without values."""
    if values is None:
        return ""
    found = [json.loads(text) for text in _exchange(f"{number}/values", json.dumps(values, default=str))]
    first, other = found[0], found[index]
    key = next((key for key in sorted({*first, *other}) if first.get(key) != other.get(key)), "")
    return f" (config.{key}: {other.get(key)!r} and {first.get(key)!r})" if key else ""


def _exchange(name: str, own: str) -> list[str]:
    """The texts of all processes, in order."""
    state = _jax_distributed.global_state
    client: Any = state.client
    client.key_value_set(f"r1jax/agreement/{name}/{state.process_id}", own)
    keys = [f"r1jax/agreement/{name}/{index}" for index in range(state.num_processes or 1)]
    return [client.blocking_key_value_get(key, 1000 * WAIT_SECONDS) for key in keys]
