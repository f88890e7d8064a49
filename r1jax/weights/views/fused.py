"""Tensors of the files that hold several of ours (`Fused` in models/families/hf_config.py), presented as several, and
several written as one.

A part is called `NAME#part`. Reading cuts it out of the file's tensor; writing joins the parts of a tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from r1jax.models.families.hf_config import Fused
from r1jax.weights.safetensors_writer import Spec

Read = Callable[[str], np.ndarray]


class Parts:
    """A source with its fused tensors as parts."""

    def __init__(self, source: Any, rules: Mapping[str, Fused]):
        self.path, self._source, self._rules = source.path, source, rules
        self.is_remote = getattr(source, "is_remote", False)
        self.metadata = getattr(source, "metadata", None)

    @property
    def names(self) -> tuple[str, ...]:
        """All tensors, fused ones as their parts."""
        found = ((name, find_rule(name, self._rules)) for name in self._source.names)
        return tuple(
            each for name, rule in found for each in ([f"{name}#{part}" for part in rule.sizes] if rule else [name])
        )

    def __contains__(self, name: str) -> bool:
        stem, _, part = name.partition("#")
        rule = find_rule(name, self._rules)
        return stem in self._source and (rule is None or part in rule.sizes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor or of a part; where the whole has another size than its parts, that of the whole."""
        stem, _, part = name.partition("#")
        shape = self._source.shape(stem)
        rule = find_rule(name, self._rules)
        if rule is not None and rule.stacks and len(shape) == 3 and shape[0] == rule.stacks:
            shape = (shape[0] * shape[1], shape[2])
        if rule is None or not shape or shape[-1 if rule.last else 0] != rule.total:
            return shape
        size = rule.sizes[part]
        return (*shape[:-1], size) if rule.last else (size, *shape[1:])

    def dtype(self, name: str) -> np.dtype:
        """The dtype of a tensor."""
        return self._source.dtype(name.partition("#")[0])

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """One tensor or part, or some of its rows."""
        stem, _, part = name.partition("#")
        rule = find_rule(name, self._rules)
        if rule is None:
            return self._source.read(stem, rows)
        if rule.last:
            return self._source.read(stem, rows)[..., rule.place(part)]
        start, stop, matrices, inside = _find_rows(rule, part, rows)
        if matrices is not None:
            return self._source.read(stem, matrices)[0][inside]
        return self._source.read(stem, (start, stop))

    def count_bytes(self, name: str, rows: tuple[int, int] | None = None) -> int:
        """Bytes of the files that `read` reads."""
        rule = find_rule(name, self._rules)
        stem, _, part = name.partition("#")
        if rule is None or rule.last:
            return self._source.count_bytes(stem, rows)
        start, stop, matrices, _ = _find_rows(rule, part, rows)
        return self._source.count_bytes(stem, (start, stop) if matrices is None else matrices)


def _find_rows(rule: Fused, part: str, rows: tuple[int, int] | None) -> tuple[int, int, tuple[int, int] | None, slice]:
    """Where rows of a part lie in the whole: the first and the last but one; of a stack of matrices also which of them,
    and the rows inside it.
    """
    first, (start, stop) = rule.place(part).start, rows or (0, rule.sizes[part])
    if not rule.stacks:
        return first + start, first + stop, None, slice(None)
    number, inside = divmod(first, rule.total // rule.stacks)
    return first + start, first + stop, (number, number + 1), slice(inside + start, inside + stop)


def find_rules(family: Any, config: Any) -> Mapping[str, Fused]:
    """The fused tensors of a family by the pattern of their names; most have none."""
    return family.fused(config) if hasattr(family, "fused") else {}


def find_rule(name: str, rules: Mapping[str, Fused]) -> Fused | None:
    """The rule of a tensor or a part; None for others."""
    return rules.get(re.sub(r"\.\d+\.", ".{}.", name.partition("#")[0])) if rules else None


def open_parts(source: Any, family: Any, config: Any) -> Any:
    """The source with the parts of its fused tensors."""
    rules = find_rules(family, config)
    return Parts(source, rules) if rules else source


def join_specs(specs: Mapping[str, Spec], rules: Mapping[str, Fused]) -> dict[str, Spec]:
    """The tensors that a file holds for these tensors and parts."""
    joined: dict[str, Spec] = {}
    for name, spec in specs.items():
        rule, stem = find_rule(name, rules), name.partition("#")[0]
        if rule is None:
            joined[name] = spec
        else:
            shape = (*spec.shape[:-1], rule.total) if rule.last else (rule.total, *spec.shape[1:])
            shape = (rule.stacks, rule.total // rule.stacks, *shape[1:]) if rule.stacks else shape
            joined[stem] = Spec(shape, spec.dtype)
    return joined


def join_read(read: Read, rules: Mapping[str, Fused]) -> Read:
    """Reads tensors of a file from tensors and parts."""

    def read_joined(name: str) -> np.ndarray:
        rule = find_rule(name, rules)
        if rule is None:
            return read(name)
        parts = [np.asarray(read(f"{name}#{part}")) for part in rule.sizes]
        if not rule.interleaved:
            whole = np.concatenate(parts, axis=-1 if rule.last else 0)
            return whole.reshape(rule.stacks, -1, whole.shape[-1]) if rule.stacks else whole
        return np.stack(parts, axis=-1).reshape(*parts[0].shape[:-1], rule.total)

    return read_joined


def open_part(open_tensor: Callable[[str], np.ndarray], rules: Mapping[str, Fused]) -> Callable[[str], np.ndarray]:
    """Opens parts of the writable tensors that `open_tensor` opens."""

    def open_it(name: str) -> np.ndarray:
        stem, _, part = name.partition("#")
        rule, whole = find_rule(name, rules), open_tensor(stem)
        if rule is None:
            return whole
        whole = whole.reshape(-1, whole.shape[-1]) if rule.stacks else whole
        return whole[..., rule.place(part)] if rule.last else whole[rule.place(part)]

    return open_it
