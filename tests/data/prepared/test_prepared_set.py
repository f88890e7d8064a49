"""Prepared and in memory: the same examples, batches and states; what processes read; and what is refused."""

from __future__ import annotations

import hashlib
import json
import queue
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.data.corpus import Corpus, CorpusConfig, SourceConfig, load_corpus
from r1jax.data.examples import Example
from r1jax.data.prepared import opening, preparation
from r1jax.data.prepared.shard_worker import work
from r1jax.data.prepared.shards import _write_record, read_record
from r1jax.data.sequences import PackingConfig, SequenceLoader
from tests.data.test_corpus import with_template
from tests.data.test_formats import HOSTILE, mix
from tests.data.test_formats import write as write_kind
from tests.data.test_golden_batches import CASES, digest, write_rows


@pytest.fixture(autouse=True)
def in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small shards, made without other processes; test_shard_worker.py starts those."""
    monkeypatch.setenv(preparation.FOLDER, str(tmp_path / "prepared"))
    monkeypatch.setattr(preparation, "PIECE_BYTES", 2000)
    monkeypatch.setattr(preparation, "_work", lambda job, _: work(job))


def open_both(config: CorpusConfig) -> tuple[Corpus, Corpus]:
    list(opening.prepare_corpus(config, with_template()))
    return load_corpus(config, with_template()), opening.open_corpus(config, with_template())


def load(corpus: Corpus, config: CorpusConfig, **options: Any) -> SequenceLoader:
    packing = PackingConfig(config.length, config.bins, config.packed)
    settings = {"mixing": corpus.mixing, "seed": config.seed, "epochs": config.epochs, **options}
    return SequenceLoader(corpus.train, 4, packing, **settings)


def assert_same(found: Example, expected: Example) -> None:
    for one, two in zip(found, expected, strict=True):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.gz"])
def test_batches_are_those_in_memory(tmp_path: Path, case: str, kind: str) -> None:
    settings, weights, _ = CASES[case]
    paths = write_rows(tmp_path)
    for path in paths.values():
        lines = Path(path).read_bytes().splitlines()
        write_kind(Path(path.replace(".jsonl", kind)), lines)
    sources = {
        name: SourceConfig(path.replace(".jsonl", kind), weight=weights.get(name)) for name, path in paths.items()
    }
    config = CorpusConfig(sources, **{"length": 128, "bins": 16, **settings})
    memory, prepared = open_both(config)
    assert not any(isinstance(part, list) for part in prepared.train)
    assert len(list((tmp_path / "prepared").rglob("*.index"))) > 8
    for one, two in zip(prepared.held_out, memory.held_out, strict=True):
        assert_same(one, two)
    count = lambda notes: [sorted(note.replace("(", ", ").replace(")", "").split(", ")) for note in notes]
    assert count(prepared.notes) == count(memory.notes)
    loaders = load(prepared, config), load(memory, config)
    states = []
    for one, two in zip(*loaders, strict=False):
        for name in two:
            np.testing.assert_array_equal(one[name], two[name], name)
        states.append(loaders[0].get_state())
        assert states[-1] == loaders[1].get_state()
        if len(states) == 50:
            break
    for loader in loaders:  # a run that began in memory goes on with a prepared set, and back
        loader.set_state(json.loads(json.dumps(states[7])))
    one, two = (next(loader) for loader in loaders)
    for name in two:
        np.testing.assert_array_equal(one[name], two[name], name)
    for loader in loaders:
        loader.close()


def test_stopped_at_ten_moments_it_gives_the_same_batches(tmp_path: Path) -> None:
    """Each start with another number of batches made ahead, of a mixture over its epochs."""
    sources = {name: SourceConfig(path, weight=1.0) for name, path in write_rows(tmp_path).items()}
    config = CorpusConfig(sources, length=128, bins=8, epochs=2, seed=2)
    memory, prepared = open_both(config)
    whole = load(memory, config)
    expected = [digest(iter([batch]), 1) for batch in whole]
    whole.close()
    moments, state, found = random.Random(0), None, []
    for start in range(11):
        packing = PackingConfig(128, 8, read_ahead=moments.randrange(1, 9))
        corpus = (memory, prepared)[start % 2]
        loader = SequenceLoader(corpus.train, 4, packing, mixing=corpus.mixing, seed=2, epochs=2)
        if state is not None:
            loader.set_state(json.loads(state))
        last = len(expected) if start == 10 else len(found) + moments.randrange(0, 4)
        while len(found) < min(last, len(expected)):
            found.append(digest(iter([next(loader)]), 1))
        state = json.dumps(loader.get_state())
        loader.close()
    assert found == expected and len(expected) > 20


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_read_their_own_rows_and_count_alike(
    tmp_path: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CorpusConfig({"a": SourceConfig(write_rows(tmp_path)["a"])}, length=128, bins=8)
    _, prepared = open_both(config)
    whole = load(prepared, config)
    batches = [next(whole) for _ in range(12)]
    read: list[int] = []
    for process in range(processes):
        mine = np.arange(4) // (4 // processes) == process
        (own,) = opening.open_corpus(config, with_template()).train
        monkeypatch.setattr(own, "read", lambda places, own=own: read.extend(places) or type(own).read(own, places))
        loader = SequenceLoader([own], 4, PackingConfig(128, 8, read_ahead=0), mine=mine)
        for batch in batches:
            part = next(loader)
            for name in ("tokens", "targets", "weights"):
                np.testing.assert_array_equal(part[name][mine], batch[name][mine])
            assert not part["tokens"][~mine].any() and part["weights"].sum() == batch["weights"].sum()
            for name in ("segments", "positions"):
                np.testing.assert_array_equal(part[name], batch[name])
        loader.close()
    whole.close()
    documents = sum(int(batch["segments"].max(1).sum()) for batch in batches)
    assert documents <= len(read) < documents * 1.3  # each once, and what is read ahead


def test_hostile_rows_are_counted_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_kind(path, mix(HOSTILE))
    source = {"main": SourceConfig(str(path), template="plain")}
    with pytest.raises(UserError, match=r"rows\.jsonl:8: not a JSON object.*on_error=skip"):
        list(opening.prepare_corpus(CorpusConfig(source, length=64), with_template()))
    config = CorpusConfig(source, length=64, on_error="skip")
    memory, prepared = open_both(config)
    assert prepared.notes == memory.notes and any("40 malformed rows left out" in note for note in prepared.notes)
    assert len(prepared.train[0]) == len(memory.train[0]) == 300
    with pytest.raises(UserError, match=r"rows\.jsonl:8: not a JSON object.*on_error=skip"):
        opening.open_corpus(CorpusConfig(source, length=64), with_template())  # made while rows were skipped


def test_whatever_the_bytes_depend_on_makes_another_set(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "q", "other": "p", "completion": f"{i}"} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    key: Callable[..., str] = lambda tokenizer=None, config=None, **source: (
        preparation.find_set(
            [str(path)], SourceConfig(str(path), **source), config or CorpusConfig({}), tokenizer or with_template()
        ).name
    )
    first = key()
    assert key() == first == key(weight=3.0)
    others = {
        key(columns={"prompt": "other"}),
        key(template="plain"),
        key(loss_on="all"),
        key(tokenizer=with_template("{{ messages }}")),
        key(config=CorpusConfig({}, length=77)),
        key(config=CorpusConfig({}, truncation="left")),
    }
    copy = tmp_path / "moved" / "copy.jsonl"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    assert preparation.find_set([str(copy)], SourceConfig(str(copy)), CorpusConfig({}), with_template()).name == first
    path.write_text(path.read_text().replace('"19"', '"91"'))
    assert len(others | {first, key()}) == 8


def test_sets_are_made_by_a_start_above_a_size_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CorpusConfig({"a": SourceConfig(write_rows(tmp_path)["a"])}, length=128)
    assert isinstance(opening.open_corpus(config, with_template()).train[0], list)
    monkeypatch.setattr(opening, "ABOVE", 1000)
    assert not isinstance(opening.open_corpus(config, with_template()).train[0], list)
    monkeypatch.setenv(preparation.FOLDER, "off")
    assert isinstance(opening.open_corpus(config, with_template()).train[0], list)


def test_shards_fit_the_size_of_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "PIECE_BYTES", 16 << 20)
    monkeypatch.setattr(preparation, "identify_file", lambda file: (int(file),))
    choose = lambda *sizes: preparation.choose_piece_bytes([str(size) for size in sizes])
    assert choose(10**6) == choose(64 << 20, 64 << 20) == 1 << 20
    assert choose(200 << 20, 120 << 20) == 2_621_440 and choose(10**10, 10**10) == 16 << 20


def test_words_of_workers_that_never_cease_are_taken_in_turns() -> None:
    said: queue.Queue[dict[str, Any]] = queue.Queue()
    for number in range(5):
        said.put({"tokens": number})
    found = []
    for word in preparation._take_words(said, 0.1):
        found.append(word["tokens"])
        said.put({"tokens": 9})
    assert found[:5] == [0, 1, 2, 3, 4] and len(found) <= 6
    assert list(preparation._take_words(queue.Queue(), 0.01)) == []


def test_a_record_holds_an_example() -> None:
    for size in (1, 7, 8, 9, 1000):
        ids = np.random.default_rng(size).integers(0, 2**31 - 1, size + 1).astype(np.int32)
        example = Example(ids[:-1], ids[1:], (ids[1:] % 3 > 0).astype(np.float32))
        assert_same(read_record(_write_record(example)), example)


class Lengths:
    """A source of documents that have lengths alone."""

    checksum = (0, 0)

    def __init__(self, sizes: np.ndarray):
        self.sizes = sizes.astype(np.uint32)

    def __len__(self) -> int:
        return len(self.sizes)


def test_rows_of_8k_are_nearly_full_at_lengths_of_reasoning() -> None:
    """Lengths as in R1's traces: a few thousand tokens, many times that at the end, cut at the row."""
    sizes = np.random.default_rng(0).lognormal(7.6, 0.9, 12_000).clip(50, 8192)
    loader: Any = SequenceLoader([Lengths(sizes)], 1, PackingConfig(8192), epochs=1)  # type: ignore[list-item]
    share = sizes.astype(np.uint32).sum() / (8192 * loader.count_batches())
    loader.close()
    assert share >= 0.97, share


def digest_folder(folder: Path) -> str:
    """Digest of the names and bytes of all whole shards below a folder."""
    found = hashlib.sha256()
    for file in sorted(folder.rglob("*.*")):
        if file.suffix in (".arrayrecord", ".index"):
            found.update(file.name.encode() + file.read_bytes())
    return found.hexdigest()
