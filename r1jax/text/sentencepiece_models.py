"""Sentencepiece vocabularies (`tokenizer.model`, GGUF's `llama`) as objects of the `tokenizers` package, same ids.

Sentencepiece writes a space as ▁, merges pieces across a whole text by their scores, spells what no piece covers in
bytes, and (unless trained without) puts a space before a text. Its special symbols become special tokens, which a text
may spell, as transformers has it; sentencepiece itself never reads them in a text. What follows such a token, or a
user-defined one, counts as a text of its own, so in vocabularies with a space before texts it gets one too.

Leaves out: word and character models, white space as a suffix, and rare sequences of combining marks in models that
normalize (the package's own way with them differs).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers

from r1jax.core.errors import UserError

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # sentencepiece's and GGUF's kinds of piece
UNIGRAM, BPE = 1, 2  # sentencepiece's kinds of model


class Pieces(NamedTuple):
    """A vocabulary: of piece i its text, its score (higher ones win) and its kind; and how a text is prepared.

    charsmap: sentencepiece's compiled normalization. squeeze: runs of spaces become one, those at the ends go.
    """

    texts: Sequence[str]
    scores: Sequence[float]
    kinds: Sequence[int]
    model: int = BPE
    space_before: bool = True
    squeeze: bool = False
    charsmap: bytes = b""


def read_pieces(file: Path) -> tuple[Pieces, dict[str, str]]:
    """The vocabulary of a tokenizer.model, and its special tokens by name (`bos_token`, ...).

    Raises UserError, naming the file, if it cannot be read or is of a kind that is left out.
    """
    from sentencepiece import sentencepiece_model_pb2 as messages  # here: importing it registers messages of protobuf

    proto = messages.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(file.read_bytes())
    except Exception as error:  # of protobuf, whose class depends on its implementation
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
    """The vocabulary as an object that encodes and decodes as sentencepiece does."""
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
    for kind, text in zip(pieces.kinds, pieces.texts, strict=True):
        if kind in (CONTROL, UNKNOWN):
            backend.add_special_tokens([AddedToken(text, normalized=False, special=True)])
        elif kind == USER_DEFINED:
            backend.add_tokens([AddedToken(text, normalized=False, special=False)])
    return backend


def _list_merges(pieces: Pieces) -> list[tuple[str, str]]:
    """Every way to make a piece of two, the highest score first: sentencepiece keeps scores, not pairs."""
    usable = {text for text, kind in zip(pieces.texts, pieces.kinds, strict=True) if kind in (NORMAL, UNUSED)}
    ranked = sorted(range(len(pieces.texts)), key=lambda id_: -pieces.scores[id_])
    merges = []
    for text in (pieces.texts[id_] for id_ in ranked if pieces.kinds[id_] == NORMAL):
        halves = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
        merges += [pair for pair in halves if pair[0] in usable and pair[1] in usable]
    return merges
