"""The text model of a folder that holds images' parts too: its tensors under the names of a model of text alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

# Where such folders keep the text model: prefix of the decoder's tensors, and of the output head.
PLACES = (("model.language_model.", ""), ("language_model.model.", "language_model."))
_MARK = "embed_tokens.weight"


class Renamed:
    """A source whose decoder stands under another prefix; names of other parts are hidden."""

    def __init__(self, source: Any, prefix: str, head: str):
        self.path, self._source, self._prefix, self._head = source.path, source, prefix, head
        self.is_remote = getattr(source, "is_remote", False)

    def _find(self, name: str) -> str:
        return self._prefix + name[6:] if name.startswith("model.") else self._head + name

    @property
    def names(self) -> tuple[str, ...]:
        """All tensors of the text model."""
        found = (name for name in self._source.names if name.startswith(self._prefix))
        after = (name.removeprefix(self._head) for name in self._source.names if name.startswith(self._head))
        behind = tuple(name for name in after if name.startswith(("lm_head.", "mtp.")))
        return tuple("model." + name.removeprefix(self._prefix) for name in found) + behind

    def __contains__(self, name: str) -> bool:
        return self._find(name) in self._source

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._source.shape(self._find(name))

    def dtype(self, name: str) -> np.dtype:
        """The dtype of a tensor."""
        return self._source.dtype(self._find(name))

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """One tensor, or some of its rows."""
        return self._source.read(self._find(name), rows)

    def count_bytes(self, name: str, rows: tuple[int, int] | None = None) -> int:
        """Bytes of the files that `read` reads."""
        return self._source.count_bytes(self._find(name), rows)


def find_text(source: Any) -> Any:
    """The source of the text model inside this one; the source itself where it is one of text alone."""
    for prefix, head in PLACES:
        if prefix + _MARK in source:
            return Renamed(source, prefix, head)
    return source


def find_text_config(hf: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The config.json of the text model inside this one; the config itself where it is one of text alone.

    defaults: by the outer `model_type`, keys that its files may lack, the `model_type` of the text model among them.
    """
    inner = hf.get("text_config")
    if not isinstance(inner, Mapping):
        return dict(hf)
    known = defaults.get(str(hf.get("model_type")), {})
    shared = ("torch_dtype", "dtype", "quantization_config", "bos_token_id", "eos_token_id", "pad_token_id")
    outer = {key: hf[key] for key in (*shared, "tie_word_embeddings") if hf.get(key) is not None}
    given = {key: value for key, value in inner.items() if value is not None}
    kind = {"model_type": known["model_type"]} if "model_type" in known else {}
    return {**known, **outer, **given, **kind, "architectures": known.get("architectures", hf.get("architectures"))}
