"""Training of a sentencepiece vocabulary, for models that are trained from scratch.

Characters without a piece are encoded as bytes, so every text has ids and decodes to itself. Nothing is normalized and
no space is put before a text, so that a completion is encoded as it appears after its prompt. Every digit is a piece of
its own, so numbers of any length are encoded alike.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from r1jax.core.errors import UserError
from r1jax.text.tokenizer import Tokenizer

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"


def train_vocabulary(
    texts: Iterable[str],
    size: int,
    folder: str | Path,
    *,
    specials: Sequence[str] = (),
    template: str | None = None,
    kind: Literal["bpe", "unigram"] = "bpe",
) -> Tokenizer:
    """Trains a tokenizer of at most `size` ids on the texts and saves it in `folder` (tokenizer.model and .json).

    Ids 0 to 3 are <pad>, <s>, </s> and <unk>; then follow `specials` (turn marks, for example), bytes and pieces.
    template: the chat template. The same texts give the same vocabulary. Raises UserError if `size` is too small for
    specials, bytes and characters, or if the texts are empty.
    """
    import sentencepiece

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    longest = 0
    lines = []
    for text in texts:
        for line in filter(str.strip, text.split("\n")):
            lines.append(line)
            longest = max(longest, len(line.encode()))
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=size,
            hard_vocab_limit=False,
            model_type=kind,
            byte_fallback=True,
            split_digits=True,
            character_coverage=0.9995,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            control_symbols=list(specials),
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece=PAD,
            bos_piece=BOS,
            eos_piece=EOS,
            unk_piece=UNK,
            max_sentence_length=max(longest, 1),
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"no vocabulary of {size} ids could be trained: {' '.join(str(error).split())[-200:]}"
        ) from None
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, "utf-8")
    tokenizer = Tokenizer.from_folder(folder)
    tokenizer.save(folder)
    return tokenizer
