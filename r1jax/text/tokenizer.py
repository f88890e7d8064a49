"""Text to token ids and back, for vocabularies of Hugging Face folders and GGUF files.

The `tokenizers` package does the work; this file builds its object and decides once what callers tend to get wrong:
- **BOS.** `encode` adds no special tokens unless asked, and never a second BOS to a text that begins with one.
- **Stop ids** are a set: all EOS ids of generation_config, config, tokenizer_config or GGUF (eos, eot, eom), and the
  token that the chat template puts after an assistant's turn.
- **Padding** is never a stop id (`_choose_padding`), so a mask made by `ids != pad_id` cannot hide the EOS that a model
  must learn. Masks should still be made from lengths, because the pad token may occur in a text.

Left out: training of vocabularies (`sentencepiece_training.py`), and clean-up of spaces after decoding (transformers'
`clean_up_tokenization_spaces` changes the text that a reward judges).
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from r1jax.core.errors import UserError
from r1jax.core.tensors.tensor_reader import open_tensors
from r1jax.text.chat_template import render
from r1jax.text.sentencepiece_models import CONTROL, USER_DEFINED, Pieces, build_pieces, read_pieces
from r1jax.text.special_tokens import ESCAPE, SpecialTokens, SpecialTokensInText, make_literal
from r1jax.text.token_encoder import TokenEncoder

# Pre-tokenizer splits named by GGUF's `tokenizer.ggml.pre`, taken from the models' own tokenizer.json. A wrong split
# gives other ids for the same text without an error, so an unknown name is refused.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
SPLITS: dict[str, str] = {
    "default": "gpt2",
    "gpt-2": "gpt2",
    "smollm": "digits",
    "llama-bpe": LLAMA3_SPLIT,
    "qwen2": QWEN2_SPLIT,
    "deepseek-r1-qwen": QWEN2_SPLIT,
}
GGUF_STOP_KEYS = ("eos_token_id", "eos_token_ids", "eot_token_id", "eom_token_id")
SPELT = "special_tokens_in_text"  # in tokenizer_config.json; other programs pass it over
TEMPLATE_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary with its special ids. Build it by `from_path`, `from_folder`, `from_gguf` or `of_bytes`."""

    backend: tokenizers.Tokenizer = field(repr=False)
    bos_id: int | None
    eos_ids: tuple[int, ...]  # every id that ends a completion; the first is the model's declared EOS
    pad_id: int  # not one of eos_ids
    chat_template: str | None = field(repr=False)
    specials: dict[str, int] = field(repr=False)  # every special token's text and id
    template_variables: dict[str, str] = field(repr=False)  # variables of chat templates: bos_token, eos_token, ...
    special_tokens_in_text: SpecialTokensInText = field(default="text", repr=False)  # those that users and tools spell

    @property
    def vocab_size(self) -> int:
        """Number of ids that have a text. A model's embedding may have more rows, never fewer."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @functools.cached_property
    def digest(self) -> str:
        """Digest of the vocabulary: where it is equal, ids of two tokenizers mean the same texts."""
        texts = sorted(self.backend.get_vocab(with_added_tokens=True).items(), key=lambda item: item[::-1])
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Ids of a text. A special token spelled out in the text becomes its single id, unless it is escaped
        (special_tokens.py). Raises UserError for a text that cannot be encoded.

        `add_special` adds the tokens of the model's post-processor (usually BOS), but never a second BOS.
        """
        with _encoding():
            encoder, text = self._choose(text)
            ids = encoder.encode(text, add_special=add_special)
        if add_special and len(ids) > 1 and ids[0] == ids[1] == self.bos_id:
            return ids[1:]
        return ids

    def encode_more(self, text: str) -> list[int]:
        """Ids of a text that follows other tokens: without the space that sentencepiece puts before a text."""
        with _encoding():
            encoder, text = self._choose(text)
            return encoder.encode_more(text)

    def escape_messages(self, messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """The messages with special tokens that users and tools spell marked as text, if `special_tokens_in_text`
        says so.
        """
        return messages if self.special_tokens_in_text == "control" else self._found_specials.escape_messages(messages)

    def _choose(self, text: str) -> tuple[TokenEncoder, str]:
        """The encoder of a text, and the text as it reads it."""
        if ESCAPE not in text:
            return self._encoder, text
        return self._literal_encoder, self._found_specials.mark_control(text)

    @functools.cached_property
    def _encoder(self) -> TokenEncoder:
        return TokenEncoder(self.backend)

    @functools.cached_property
    def _literal_encoder(self) -> TokenEncoder:
        return TokenEncoder(make_literal(self.backend))

    @functools.cached_property
    def _found_specials(self) -> SpecialTokens:
        return SpecialTokens(self.specials)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of ids. Incomplete UTF-8 gives U+FFFD; ids beyond the vocabulary give nothing."""
        with _one_line("tokenizer.json: its decoder fails on ids"):
            return self.backend.decode([int(token) for token in ids], skip_special_tokens=skip_special)

    @property
    def declared_pad_id(self) -> int | None:
        """The padding id to declare in files: `pad_id` where it is a special token, which programs that read the files
        make of it; else the one that the source declared, if any.
        """
        if self.pad_id in self.specials.values():
            return self.pad_id
        declared = self.template_variables.get("pad_token")
        return None if declared is None else self.backend.token_to_id(declared)

    def save(self, folder: str | Path, *, max_length: int | None = None) -> None:
        """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja, as transformers reads them.

        max_length: number of tokens that the model takes.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / "tokenizer.json"))
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        config |= self.template_variables
        if self.declared_pad_id is not None:
            config["pad_token"] = self.backend.id_to_token(self.declared_pad_id)
        if max_length is not None:
            config["model_max_length"] = max_length
        if self.special_tokens_in_text != "text":
            config[SPELT] = self.special_tokens_in_text
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
        if self.chat_template is not None:
            (folder / "chat_template.jinja").write_text(self.chat_template, "utf-8")

    @classmethod
    def from_path(cls, path: str | Path) -> "Tokenizer | None":
        """Tokenizer of a Hugging Face folder or `.gguf` file; None if the folder has none."""
        path = Path(path)
        if path.suffix == ".gguf":
            return cls.from_gguf(open_tensors(path).metadata)
        if (path / "tokenizer.json").exists() or (path / "tokenizer.model").exists():
            return cls.from_folder(path)
        return None

    @classmethod
    def from_folder(cls, path: str | Path) -> "Tokenizer":
        """Reads tokenizer.json, else tokenizer.model (sentencepiece), and the configs and template beside it."""
        with _one_line(f"{path}: the tokenizer's files are broken", Exception):
            return cls._of_folder(Path(path))

    @classmethod
    def _of_folder(cls, path: Path) -> "Tokenizer":
        config = {**_read_json(path / "special_tokens_map.json"), **_read_json(path / "tokenizer_config.json")}
        if (path / "tokenizer.json").exists():
            backend = _read_backend(path / "tokenizer.json")
        elif (path / "tokenizer.model").exists():
            pieces, own = read_pieces(path / "tokenizer.model")
            backend = build_pieces(pieces)
            _add_tokens(backend, path, config)
            config = {**own, "add_bos_token": True, **config}
        else:
            raise UserError(f"{path}: holds neither tokenizer.json nor tokenizer.model")
        texts = {name: _token_text(config[name]) for name in TEMPLATE_TOKENS if config.get(name)}
        named = {name: text for name, text in texts.items() if backend.token_to_id(text) is not None}
        if "add_bos_token" in config or "add_eos_token" in config:
            _add_ends(backend, named, bool(config.get("add_bos_token")), bool(config.get("add_eos_token")))
        stops = [backend.token_to_id(named["eos_token"])] if "eos_token" in named else []
        for file in ("generation_config.json", "config.json"):
            stops += _as_list(_read_json(path / file).get("eos_token_id"))
        found = _assemble(backend, named, stops, _read_template(path, config))
        return replace(found, special_tokens_in_text="control" if config.get(SPELT) == "control" else "text")

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """Builds the vocabulary described by a GGUF file's metadata: byte-level BPE or sentencepiece."""
        with _one_line("the vocabulary in the GGUF header is broken", Exception):
            return cls._of_metadata(metadata)

    @classmethod
    def _of_metadata(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        ggml = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
        split = ggml.get("pre", "")
        if ggml.get("model") == "llama":
            space_before = bool(ggml.get("add_space_prefix", True))
            pieces = Pieces(ggml["tokens"], ggml["scores"], ggml["token_type"], space_before=space_before)
            backend = build_pieces(pieces)
        elif ggml.get("model") != "gpt2":
            raise UserError(
                "a GGUF vocabulary must be byte-level BPE or sentencepiece's (tokenizer.ggml.model = gpt2 or llama), "
                f"got {ggml.get('model')!r}; use the model's Hugging Face folder"
            )
        elif str(split) not in SPLITS:
            what = f"GGUF pre-tokenizer {split!r}" if split else "the GGUF header names no pre-tokenizer: its absence"
            raise UserError(
                f"{what} is not one of {', '.join(SPLITS)} (tokenizer.ggml.pre), and another one gives other ids "
                "without an error; use the model's Hugging Face folder, or a GGUF file of today's converter"
            )
        else:
            backend = _build_byte_bpe(ggml["tokens"], ggml["merges"], ggml.get("token_type"), split)
        keys = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id"}
        keys["pad_token"] = "padding_token_id"
        named = {name: ggml["tokens"][ggml[key]] for name, key in keys.items() if ggml.get(key) is not None}
        adds_bos = bool(ggml.get("add_bos_token", split == "llama-bpe" or ggml["model"] == "llama"))
        _add_ends(backend, named, adds_bos, bool(ggml.get("add_eos_token")))
        stops = [stop for key in GGUF_STOP_KEYS for stop in _as_list(ggml.get(key))]
        return _assemble(backend, named, stops, metadata.get("tokenizer.chat_template"))

    @classmethod
    def of_bytes(cls, specials: Sequence[str] = ("<|pad|>", "<|im_start|>", "<|im_end|>")) -> "Tokenizer":
        """One token per byte, for toy models: ids 0 to 2 are pad, BOS and EOS, then the 256 bytes."""
        alphabet = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
        kinds = [CONTROL] * len(specials) + [1] * 256
        backend = _build_byte_bpe(alphabet, [], kinds, "gpt-2")
        named = dict(zip(("pad_token", "bos_token", "eos_token"), specials, strict=False))
        return _assemble(backend, named, [2], None)


def _assemble(
    backend: tokenizers.Tokenizer, named: dict[str, str], stops: Iterable[int | None], template: str | None
) -> Tokenizer:
    """Determines stop ids and padding after all sources are read."""
    if template is not None and not isinstance(template, str):
        raise UserError(f"a chat template must be a text, got {type(template).__name__}")
    added = backend.get_added_tokens_decoder()
    specials = {token.content: id_ for id_, token in sorted(added.items()) if token.special}
    bos_id = backend.token_to_id(named["bos_token"]) if "bos_token" in named else None
    known = [stop for stop in stops if stop is not None]
    if odd := [stop for stop in known if type(stop) is not int or not 0 <= stop < 2**31]:
        raise UserError(f"eos_token_id must be a whole number from 0 on, got {str(odd[0])[:60]!r}")
    known += _find_turn_end(template, specials, named)
    eos_ids = tuple(dict.fromkeys(known))
    pad_id = _choose_padding(backend, named, specials, {*eos_ids, bos_id}, template or "")
    return Tokenizer(backend, bos_id, eos_ids, pad_id, template, specials, named)


def _choose_padding(
    backend: tokenizers.Tokenizer,
    named: Mapping[str, str],
    specials: Mapping[str, int],
    taken: set[int | None],
    template: str,
) -> int:
    """Id of the padding token: the first of these that is neither a stop id nor BOS: the declared pad token, special
    tokens with "pad" in their name, special tokens that the template does not write, and the lowest ids (which only
    lengths can tell from text).
    """
    declared = backend.token_to_id(named["pad_token"]) if "pad_token" in named else None
    by_name = [id_ for text, id_ in specials.items() if "pad" in text.lower()]
    unused = [id_ for text, id_ in specials.items() if text not in template]
    candidates = [declared, *by_name, *unused, *range(len(taken) + 1)]
    return next(id_ for id_ in candidates if id_ is not None and id_ not in taken)


def _find_turn_end(template: str | None, specials: Mapping[str, int], named: Mapping[str, str]) -> list[int]:
    """Id of the special token that the template writes directly after an assistant's words, if there is one."""
    if template is None:
        return []
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "the-last-words"}]
    try:
        text = render(template, messages, add_generation_prompt=False, **named)
    except UserError:  # some templates reject two plain turns; then only generation_config names the stop id
        return []
    _, found, tail = text.rpartition("the-last-words")
    ends = [id_ for token, id_ in specials.items() if found and tail.lstrip().startswith(token)]
    return ends[:1]


def _build_byte_bpe(
    tokens: Sequence[str], merges: Sequence[str], kinds: Sequence[int] | None, split: str
) -> tokenizers.Tokenizer:
    """Byte-level BPE from GGUF's lists: tokens by id, merges ("left right") by rank, token kinds by id."""
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    vocabulary = {token: id_ for id_, token in enumerate(tokens)}
    # Llama 3 looks up a whole piece in the vocabulary before it merges, which the GGUF header does not record.
    model = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=split == "llama-bpe")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = _make_split(SPLITS[split])
    backend.decoder = decoders.ByteLevel()
    if split == "qwen2":
        backend.normalizer = normalizers.NFC()
    for kind, add in ((CONTROL, backend.add_special_tokens), (USER_DEFINED, backend.add_tokens)):
        chosen = [token for token, its_kind in zip(tokens, kinds or (), strict=bool(kinds)) if its_kind == kind]
        add([AddedToken(token, normalized=False, special=kind == CONTROL) for token in chosen])
    return backend


def _make_split(split: str) -> pre_tokenizers.PreTokenizer:
    if split == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split == "digits":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    pieces = pre_tokenizers.Split(Regex(split), behavior="isolated")
    return pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _add_ends(backend: tokenizers.Tokenizer, named: Mapping[str, str], add_bos: bool, add_eos: bool) -> None:
    """Makes `add_special` add BOS and EOS by the config's flags, whatever tokenizer.json says."""
    before = [named["bos_token"]] if add_bos and "bos_token" in named else []
    after = [named["eos_token"]] if add_eos and "eos_token" in named else []
    backend.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        special_tokens=[(token, backend.token_to_id(token)) for token in {*before, *after}],
    )


@contextlib.contextmanager
def _one_line(what: str, *kinds: type[Exception]) -> Iterator[None]:
    """Makes a UserError of errors of these kinds, and of a panic of the tokenizers package, which is no `Exception`."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if type(error).__name__ != "PanicException" and not isinstance(error, kinds):
            raise
        raise UserError(f"{what} ({type(error).__name__}: {' '.join(str(error).split())[:200]})") from None


@contextlib.contextmanager
def _encoding() -> Iterator[None]:
    with (
        _one_line("a text cannot be encoded: it holds half of a surrogate pair, which is no character", TypeError),
        _one_line("tokenizer.json: its patterns or its vocabulary fail on a text"),
    ):
        yield


def _read_backend(file: Path) -> tokenizers.Tokenizer:
    with _one_line(f"{file}: cannot be read", Exception):  # the package raises bare Exception for any fault of the file
        backend = tokenizers.Tokenizer.from_file(str(file))
    backend.no_truncation()
    backend.no_padding()
    return backend


def _add_tokens(backend: tokenizers.Tokenizer, path: Path, config: Mapping[str, Any]) -> None:
    """Adds the extra tokens of a folder to its tokenizer.model, at their declared ids."""
    added = {id_: {"content": text} for text, id_ in _read_json(path / "added_tokens.json").items()}
    added |= {int(id_): token for id_, token in config.get("added_tokens_decoder", {}).items()}
    for id_, token in sorted(added.items()):
        text, special = token["content"], bool(token.get("special", True))
        add = backend.add_special_tokens if special else backend.add_tokens
        add([AddedToken(text, normalized=False, special=special)])
        if backend.token_to_id(text) != id_:
            raise UserError(f"{path}: added token {text!r} must have id {id_}, got {backend.token_to_id(text)}")


def _read_template(path: Path, config: Mapping[str, Any]) -> str | None:
    if (path / "chat_template.jinja").exists():
        return (path / "chat_template.jinja").read_text("utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several templates by name
        return {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


def _read_json(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{file}: not valid JSON: {str(error)[:200]}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: must be a JSON object, got {type(content).__name__}")
    return content


def _token_text(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _as_list(value: Any) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
