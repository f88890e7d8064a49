"""Sentencepiece vocabularies (`tokenizer.model`, GGUF's `llama`) as `tokenizers` objects with the same ids.

Sentencepiece writes a space as ▁, merges pieces across a whole text by their scores, falls back to bytes for characters
without a piece, and (by default) puts a space before a text. Its special symbols become special tokens that can be
spelled out in a text, as in transformers; sentencepiece itself never recognizes them in a text. Text after such a
token, or after a user-defined one, is encoded as a separate text, so it also gets the space where the vocabulary adds
one.

Left out: word and character models, white space as a suffix, and rare sequences of combining marks in models that
normalize (the `tokenizers` package handles them differently).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from r1jax.core.errors import UserError

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # sentencepiece's and GGUF's kinds of piece
UNIGRAM, BPE = 1, 2  # sentencepiece's kinds of model


class Pieces(NamedTuple):
    """A vocabulary: text, score (higher merges first) and kind of each piece, and how a text is normalized.

    charsmap: sentencepiece's compiled normalization. squeeze: runs of spaces become one, and outer spaces are removed.
    """

    texts: Sequence[str]
    scores: Sequence[float]
    kinds: Sequence[int]
    model: int = BPE
    space_before: bool = True
    squeeze: bool = False
    charsmap: bytes = b""


def read_pieces(file: Path) -> tuple[Pieces, dict[str, str]]:
    """Vocabulary of a tokenizer.model, and its special tokens by name (`bos_token`, ...).

    Raises UserError with the file's name if it cannot be read or is of an unsupported kind.
    """
    from sentencepiece import sentencepiece_model_pb2 as messages  # imported late: it registers protobuf messages

    content = file.read_bytes()
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", content):
        raise UserError(
            f"{file}: a vocabulary of tiktoken (the original form of Llama 3 and Qwen), not of sentencepiece: use the "
            "model's Hugging Face folder, whose tokenizer.json has the same ids"
        )
    proto = messages.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(content)
    except Exception as error:  # protobuf's error class depends on its implementation
        raise UserError(f"{file}: not a sentencepiece model: {error}") from None
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if not proto.pieces or trainer.model_type not in (UNIGRAM, BPE) or trainer.treat_whitespace_as_suffix:
        raise UserError(f"{file}: not a sentencepiece model of kind unigram or BPE with spaces as prefixes")
    ids = {f"{name}_token": getattr(trainer, f"{name}_id") for name in ("unk", "bos", "eos", "pad")}
    named = {name: proto.pieces[id_].piece for name, id_ in ids.items() if 0 <= id_ < len(proto.pieces)}
    pieces = Pieces(
        [piece.piece for piece in proto.pieces],
        [piece.score for piece in proto.pieces],
        [piece.type for piece in proto.pieces],
        trainer.model_type,
        normalizer.add_dummy_prefix,
        normalizer.remove_extra_whitespaces,
        normalizer.precompiled_charsmap,
    )
    return pieces, named


def build_pieces(pieces: Pieces) -> tokenizers.Tokenizer:
    """Tokenizer that encodes and decodes like sentencepiece."""
    unknown = next((id_ for id_, kind in enumerate(pieces.kinds) if kind == UNKNOWN), None)
    has_bytes = BYTE in pieces.kinds
    model: models.Model
    if pieces.model == UNIGRAM:
        scored = list(zip(pieces.texts, map(float, pieces.scores), strict=True))
        model = models.Unigram(scored, unk_id=unknown, byte_fallback=has_bytes)
    else:
        vocabulary = {text: id_ for id_, text in enumerate(pieces.texts)}
        unk_token = None if unknown is None else pieces.texts[unknown]
        merges = _list_merges(pieces)
        model = models.BPE(vocabulary, merges, unk_token=unk_token, fuse_unk=True, byte_fallback=has_bytes)
    backend = tokenizers.Tokenizer(model)
    steps: list[normalizers.Normalizer] = [normalizers.Precompiled(pieces.charsmap)] if pieces.charsmap else []
    if pieces.squeeze:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if pieces.space_before:
        steps.append(normalizers.Prepend(SPACE))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    to_text = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if pieces.space_before:
        to_text.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(to_text)
    kinds = list(zip(pieces.kinds, pieces.texts, strict=True))
    special = [AddedToken(text, normalized=False, special=True) for kind, text in kinds if kind in (CONTROL, UNKNOWN)]
    defined = [text for kind, text in kinds if kind == USER_DEFINED]
    # One call each: the package builds its search again at every call.
    backend.add_special_tokens(special)
    backend.add_tokens([AddedToken(text, normalized=False, special=False) for text in defined if SPACE not in text])
    if spaced := sorted((text for text in defined if SPACE in text), key=len, reverse=True):
        # Added tokens are looked for before spaces become ▁, so these are cut out of the normalized text.
        backend.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(map(re.escape, spaced))), behavior="isolated")
    return backend


def _list_merges(pieces: Pieces) -> list[tuple[str, str]]:
    """All pairs of pieces that merge into a piece, highest score first: sentencepiece stores scores, not pairs."""
    usable = {text for text, kind in zip(pieces.texts, pieces.kinds, strict=True) if kind in (NORMAL, UNUSED)}
    ranked = sorted(range(len(pieces.texts)), key=lambda id_: -pieces.scores[id_])
    spaced = [t for t, kind in zip(pieces.texts, pieces.kinds, strict=True) if kind == USER_DEFINED and SPACE in t]
    usable.update(spaced)  # cut out of the text whole, so that nothing else merges with them
    merges = []
    for text in [*sorted(spaced, key=len), *(pieces.texts[id_] for id_ in ranked if pieces.kinds[id_] == NORMAL)]:
        halves = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
        merges += [pair for pair in halves if pair[0] in usable and pair[1] in usable]
    return merges
