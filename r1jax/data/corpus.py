"""Training data of supervised runs: rows of all sources as tokenized examples, truncated to the window.

A `CorpusConfig` (the config's `data` section) names sources; each maps columns and says how a question becomes a prompt
and a worked solution a reply. Skipped, truncated and dropped rows are counted in the notes.

All examples are made at the start and kept in memory, 8 bytes a token; large sources are prepared on disk instead
(data/prepared/), with the same examples in the same order. Left out: order, mixtures and packing (`SequenceLoader`).
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from r1jax.core.errors import UserError
from r1jax.data.examples import Example, LossOn, Truncation, encode_row, list_columns, truncate
from r1jax.data.files import read_rows
from r1jax.data.sources import RowErrors, SourceRow
from r1jax.data.tasks import RowError, check_prompt, choose_template, draw_problems, extract_gsm8k
from r1jax.text.prompts import TAGGED_REPLY, fill_all
from r1jax.text.tokenizer import Tokenizer

LONGEST = 2**24  # tokens of a row, above what any model reads


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source of `config.data.sources`.

    Attributes:
      path: a file, folder or pattern of files (.jsonl, .jsonl.gz, .jsonl.zst, .parquet, .arrayrecord), here or in a
        bucket (gs://), a hub name (`org/name[@revision][:config][:split]`), `addition`, or `reasoning_gym:TASK`.
      eval_path: held-out rows, in the same form; without them, rows of `path` are held out.
      columns: column of a row (messages; prompt, completion; text) -> column of the source, as in {"completion":
        "answer"}.
      template: prompt made of a text: `chat`, `r1`, `question_reply`, `plain`, or a text with {question}.
      extractor: way to split the completion's column into reasoning and answer: `gsm8k`, or None: all is answer.
      reply: completion made of {reasoning} and {answer}: `plain` (the answer), `tagged` (think and answer tags), or a
        text with {answer}.
      loss_on: tokens with a loss: "completion" (those of the assistant) or "all"; `text` rows have it everywhere.
      weight: share of the mixture; None for all sources mixes by size, 0 leaves a source out.
      problems: number of problems that a procedural source draws.
      args: arguments of a procedural source.
    """

    path: str
    eval_path: str | None = None
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    template: str = "chat"
    extractor: str | None = None
    reply: str = "plain"
    loss_on: LossOn = "completion"
    weight: float | None = None
    problems: int = 10_000
    args: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """The `data` section of a supervised run.

    Attributes:
      sources: sources by name; the names appear in notes and messages only.
      length: length of a row in tokens.
      packed: whether several documents share a row, packed best-fit.
      bins: number of rows that are packed at a time; more of them leave less padding.
      truncation: treatment of a document longer than `length`: cut off its right or left end, or drop it.
      read_ahead: number of batches made in advance.
      eval_rows: number of rows held out of each source, at most; 0 holds out none, or all of `eval_path`.
      epochs: passes over the data; None has no end.
      on_error: treatment of a malformed row: raise an error, or skip it and count it.
      seed: seed of draws, splits, order and packing.
    """

    sources: dict[str, SourceConfig]
    length: int = 1024
    packed: bool = True
    bins: int = 256
    truncation: Truncation = "right"
    read_ahead: int = 4
    eval_rows: int = 0
    epochs: int | None = None
    on_error: Literal["raise", "skip"] = "raise"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, lowest in {"length": 2, "bins": 1, "read_ahead": 0, "eval_rows": 0}.items():
            value = getattr(self, name)
            if value < lowest:
                raise UserError(f"config.data.{name} must be at least {lowest}, got {value}")
        if self.length > LONGEST:
            raise UserError(f"config.data.length must be at most {LONGEST} tokens, got {self.length}")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Examples to train on by source, and held-out ones.

    Attributes:
      train: examples of each source.
      mixing: mixture weight of each source; None: by size.
      held_out: held-out examples of all sources.
      notes: lines for the log.
    """

    train: list[Sequence[Example]]
    mixing: list[float] | None
    held_out: list[Example]
    notes: tuple[str, ...] = ()


class Source(NamedTuple):
    """Examples of one source to train on and held out, and lines for the log."""

    train: Sequence[Example]
    held_out: list[Example]
    notes: list[str]


Encoder = Callable[[SourceRow], list[Example]]


def load_source(config: CorpusConfig, name: str, encode: Encoder) -> Source:
    """Reads or draws the rows of one source and encodes them, in memory."""
    errors = make_errors(config)
    learnt, kept, repeats = _split(config, name, errors)
    train, counts = encode_rows(learnt, encode, errors, config)
    if not train:
        raise no_usable_row(config, name, counts, errors.first)
    tokens = sum(len(example.tokens) for example in train)
    notes = [f"{name}: {len(train)} examples of {tokens} tokens from {len(learnt)} rows{list_counts(counts, config)}"]
    held_out: list[Example] = []
    if kept:
        held_out, counts = encode_rows(kept, encode, errors, config)
        shown = list_counts(counts, config)
        notes.append(f"{name}, held out: {len(held_out)} examples from {len(kept)} rows{shown}")
    if repeats:
        notes.append(f"{name}: {repeats} training rows repeat a held-out prompt and are left out")
    if errors.count:
        notes.append(f"{name}: {errors.count} malformed rows left out, the first: {errors.first}")
    return Source(train, held_out, notes)


def load_corpus(
    config: CorpusConfig, tokenizer: Tokenizer, load: Callable[[CorpusConfig, str, Encoder], Source] = load_source
) -> Corpus:
    """Reads or draws all rows and encodes them. load: the way to do so for one source (default: in memory).

    Raises:
      UserError: for a missing file, an unknown template or extractor, a malformed row, a source without a usable row,
        or invalid mixture weights.
    """
    _check(config)
    names = [name for name, source in config.sources.items() if source.weight != 0]
    encoders = {name: make_encoder(config.sources[name], tokenizer) for name in names}
    train: list[Sequence[Example]] = []
    held_out: list[Example] = []
    notes: list[str] = []
    for name in names:
        found = load(config, name, encoders[name])
        train.append(found.train)
        held_out += found.held_out
        notes += found.notes
    notes += [f"{name}: left out, its weight is 0" for name in config.sources if name not in names]
    weights = [config.sources[name].weight for name in names]
    mixing = [weight for weight in weights if weight is not None]
    return Corpus(train, mixing or None, held_out, tuple(notes))


def _check(config: CorpusConfig) -> None:
    if not config.sources:
        raise UserError("config.data.sources must name at least one source")
    for key, least in {"length": 2, "bins": 1, "read_ahead": 1, "eval_rows": 0, "seed": 0}.items():
        if getattr(config, key) < least:
            raise UserError(f"config.data.{key} must be at least {least}, got {getattr(config, key)}")
    if config.epochs is not None and config.epochs < 1:
        raise UserError(f"config.data.epochs must be at least 1 or none, got {config.epochs}")
    weights = {name: source.weight for name, source in config.sources.items()}
    given = [weight for weight in weights.values() if weight is not None]
    if given and (len(given) < len(weights) or min(given) < 0 or sum(given) <= 0):
        raise UserError(
            "the weights of config.data.sources must be given for all or none, at least 0, and not all 0; "
            f"got {weights}"
        )


def without_weights(config: CorpusConfig) -> CorpusConfig:
    """The config without mixture weights, which may be valid only together with other sources; sources of weight 0 are
    left out.
    """
    sources = {
        name: dataclasses.replace(source, weight=None) for name, source in config.sources.items() if source.weight != 0
    }
    return dataclasses.replace(config, sources=sources)


def make_errors(config: CorpusConfig) -> RowErrors:
    """The policy for malformed rows of a corpus."""
    return RowErrors(config.on_error, hint="; config.data.on_error=skip leaves such rows out")


def no_usable_row(config: CorpusConfig, name: str, counts: Mapping[str, int], first: str) -> UserError:
    """The error of a source of which no example is left. first: what the first malformed row lacks, "" if none is."""
    why = f"{list_counts(counts, config)}{f'; the first malformed row: {first}' if first else ''}"
    path, key = config.sources[name].path, f"config.data.sources.{name}.path"
    return UserError(f"{path} has no usable row to train on ({key}){why}")


def list_counts(counts: Mapping[str, int], config: CorpusConfig) -> str:
    """Numbers of examples cut off and dropped, in words."""
    words = {
        "cut": f"cut off at {config.length} tokens",
        "long": f"longer than {config.length} tokens dropped",
        "empty": "with nothing to learn dropped",
    }
    listed = ", ".join(f"{count} {words[name]}" for name, count in counts.items() if count)
    return f" ({listed})" if listed else ""


# --- Reading, splitting and encoding rows ---


def _split(config: CorpusConfig, name: str, errors: RowErrors) -> tuple[list[SourceRow], list[SourceRow], int]:
    """Rows to train on, rows held out, and the number of training rows dropped because they repeat a held-out
    prompt.
    """
    source, key = config.sources[name], f"config.data.sources.{name}"
    draw = draw_problems(source.path, config.eval_rows, config.seed, problems=source.problems, args=source.args)
    if draw is not None:
        return draw.train, draw.held_out, 0
    rows = read_rows(source.path, errors, key=f"{key}.path")
    if source.eval_path is not None:
        held_out = read_held_out(config, name, errors)
    else:
        chosen = choose_held_out(config, name, len(rows))
        held_out = [rows[i] for i in chosen]
        taken = {*chosen}
        rows = [row for i, row in enumerate(rows) if i not in taken]
    keys = {_key(row, source) for row in held_out}
    learnt = [row for row in rows if _key(row, source) not in keys]
    return learnt, held_out, len(rows) - len(learnt)


def read_held_out(config: CorpusConfig, name: str, errors: RowErrors) -> list[SourceRow]:
    """Rows held out of a source that has a file of them."""
    rows = read_rows(config.sources[name].eval_path or "", errors, key=f"config.data.sources.{name}.eval_path")
    random.Random(f"held out {config.seed}").shuffle(rows)
    return rows[: config.eval_rows or None]


def choose_held_out(config: CorpusConfig, name: str, count: int) -> list[int]:
    """Numbers of the rows held out of the `count` rows of a source. Raises UserError if no other is left."""
    chosen = random.Random(f"split {config.seed}").sample(range(count), min(config.eval_rows, count))
    if chosen and len(chosen) == count:
        raise UserError(
            f"config.data.eval_rows={config.eval_rows} leaves none of the {count} rows of {config.sources[name].path} "
            f"to train on: lower it, or name a held-out file with config.data.sources.{name}.eval_path"
        )
    return chosen


def hash_row(row: SourceRow, source: SourceConfig) -> int:
    """64-bit hash of what makes a row a repetition (`_key`)."""
    data = _key(row, source).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _key(row: SourceRow, source: SourceConfig) -> str:
    """Identity of a row for finding repetitions: its prompt, whatever the completion; else the whole row."""
    columns = [source.columns.get(name, name) for name in ("messages", "prompt", "text")]
    return repr(next((row.columns[column] for column in columns if column in row.columns), row.columns))


def encode_rows(
    rows: Iterable[SourceRow], encode: Encoder, errors: RowErrors, config: CorpusConfig
) -> tuple[list[Example], dict[str, int]]:
    """Examples that fit the window, and counts of truncated and dropped ones."""
    examples: list[Example] = []
    counts = collections.Counter[str]()
    for row in rows:
        try:
            whole = encode(row)
        except UserError as error:
            errors.report(row.place, str(error))
            continue
        examples += fit_examples(whole, config, counts)
    return examples, counts


def fit_examples(whole: Iterable[Example], config: CorpusConfig, counts: collections.Counter[str]) -> list[Example]:
    """Those examples that fit the window, or are made to; adds to the counts of what is cut, long and empty."""
    fitting = []
    for example in whole:
        too_long = len(example.tokens) > config.length
        kept = truncate(example, config.length, config.truncation)
        if kept is not None:
            fitting.append(kept)
            counts["cut"] += too_long
        elif too_long and config.truncation == "drop":
            counts["long"] += 1
        else:
            counts["empty"] += 1
    return fitting


def make_encoder(source: SourceConfig, tokenizer: Tokenizer) -> Encoder:
    """Function from a source row to its examples, by the columns, template, extractor and reply of its source.

    Raises UserError for an unknown template, extractor or reply; the function raises it for a malformed row.
    """
    make_prompt = choose_template(source.template)
    if source.extractor is not None and source.extractor not in SPLITTERS:
        known = ", ".join(SPLITTERS)
        raise UserError(f'config.data.sources.*.extractor must be one of {known} or none, got "{source.extractor}"')
    reply = REPLIES.get(source.reply, source.reply)
    if "{answer}" not in reply:
        known = ", ".join(REPLIES)
        raise UserError(f'config.data.sources.*.reply must be one of {known} or a text with {{answer}}, got "{reply}"')
    places = [name for name in ("reasoning", "answer") if f"{{{name}}}" in reply]
    split = SPLITTERS[source.extractor] if source.extractor else lambda solution: ("", solution)
    procedural = source.path == "addition" or source.path.startswith("reasoning_gym:")
    columns = {**({"prompt": "question", "completion": "solution"} if procedural else {}), **source.columns}

    def encode(row: SourceRow) -> list[Example]:
        built = dict(row.columns)
        for ours, theirs in columns.items():
            if theirs not in row.columns:
                has = list_columns(row.columns)
                raise RowError(f'no column "{theirs}" for {ours} (config.data.sources.*.columns); it has {has}')
            built[ours] = row.columns[theirs]
        if "messages" not in built and "prompt" in built and "completion" in built:
            prompt = check_prompt(built["prompt"])
            built["prompt"] = make_prompt(prompt) if isinstance(prompt, str) else prompt
            if isinstance(built["completion"], str):
                reasoning, answer = split(built["completion"])
                parts = {"reasoning": reasoning, "answer": answer}
                built["completion"] = fill_all(reply, **{name: parts[name] for name in places})
        return encode_row(built, tokenizer, loss_on=source.loss_on)

    return encode


def split_gsm8k(solution: str) -> tuple[str, str]:
    """GSM8K's reasoning without calculator annotations (<<48/2=24>>), and the final answer."""
    answer = extract_gsm8k(solution)
    lines = solution.rpartition("####")[0].split("\n")
    return "\n".join(map(_drop_annotations, lines)).strip(), answer


def _drop_annotations(line: str) -> str:
    """A line without `<<...>>`, in time linear in its length, which a pattern would not be."""
    kept, place = [], 0
    while (begin := line.find("<<", place)) >= 0 and (end := line.find(">>", begin + 2)) >= 0:
        kept.append(line[place:begin])
        place = end + 2
    return "".join([*kept, line[place:]])


SPLITTERS: dict[str, Callable[[str], tuple[str, str]]] = {"gsm8k": split_gsm8k}
REPLIES = {"plain": "{answer}", "tagged": TAGGED_REPLY}
