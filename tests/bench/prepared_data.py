"""Preparation of a generated chat set and its reading, as JSON lines: rates, the time to a first batch, memory.

Rows have lengths as in R1's traces (log-normal), scaled to --mean tokens. The rate of one core is that of a single
worker on the first rows, before and after the preparation; that of all cores is of as many workers that do this side by
side, each for itself: what it lacks to cores x one core, the cores take from each other (shared caches, threads of one
core). Rates are by the clock, and by processor time on a machine that others use. Then a new process opens the set and
takes --batches batches of 8 rows of 8,192 tokens.

    python tests/bench/prepared_data.py --folder=DIR --tokenizer=MODEL [--tokens=100e6 --mean=200 --batches=2000]

Rows in DIR are kept for the next time; the set is prepared anew, or with --only_read read again.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import resource
import shutil
import subprocess
import sys
import time
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from r1jax.data.corpus import CorpusConfig, SourceConfig  # noqa: E402
from r1jax.data.formats import Piece  # noqa: E402
from r1jax.data.prepared import preparation  # noqa: E402
from r1jax.data.prepared.opening import open_corpus  # noqa: E402
from r1jax.data.prepared.shard_worker import Job, work  # noqa: E402
from r1jax.data.prepared.shards import name_shard, read_index  # noqa: E402
from r1jax.data.sequences import PackingConfig, SequenceLoader, utilisation  # noqa: E402
from r1jax.text.tokenizer import Tokenizer  # noqa: E402

WORDS = (ROOT / "docs" / "design.md").read_text().split() + (ROOT / "README.md").read_text().split()
LENGTH = 8192


def write_rows(path: pathlib.Path, tokens: float, mean: int) -> None:
    """Conversations of about so many tokens together."""
    sizes, draw = np.random.default_rng(0), random.Random(0)
    with open(path, "w") as file:
        while tokens > 0:
            size = int(np.clip(sizes.lognormal(np.log(mean) - 0.4, 0.9), 8, 40 * mean))
            tokens -= size
            words = draw.choices(WORDS, k=max(2, int(size * 0.42)))
            turns = [{"role": "user", "content": " ".join(words[:12])}]
            turns.append({"role": "assistant", "content": " ".join(words[12:] or words)})
            file.write(json.dumps({"messages": turns}) + "\n")


def show(**facts: Any) -> None:
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in facts.items()}), flush=True)


def rss() -> float:
    """Resident megabytes of this process."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def encode_alone(config: CorpusConfig, tokenizer: Tokenizer, folder: pathlib.Path) -> None:
    """Encodes the first rows, as a worker does; says tokens, seconds and seconds of the processor."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    source = config.sources["chats"]
    piece = Piece(source.path, 0, min(2 << 20, pathlib.Path(source.path).stat().st_size))
    begin, spent = time.time(), sum(os.times()[:2])
    tokens = work(Job(folder, [piece], source, config, tokenizer))
    print(json.dumps([tokens, time.time() - begin, sum(os.times()[:2]) - spent]))
    shutil.rmtree(folder)


def measure_cores(count: int, command: list[str], folder: pathlib.Path) -> np.ndarray:
    """Tokens a second and tokens a second of the processor of workers side by side, together."""
    places = [f"--alone={folder}/alone{number}" for number in range(count)]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen([*command, place], stdout=subprocess.PIPE, env=environment) for place in places]
    said = [json.loads(process.communicate()[0]) for process in started]
    return np.array([[tokens / seconds, tokens / spent] for tokens, seconds, spent in said]).sum(0)


def prepare(config: CorpusConfig, tokenizer: Tokenizer, command: list[str], base: pathlib.Path) -> None:
    """Prepares the set, and says which share of the cores' own speed that had."""
    source, cores = config.sources["chats"], os.cpu_count() or 1
    one, together = measure_cores(1, command, base), measure_cores(cores, command, base)
    shutil.rmtree(base / "prepared", ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.time()
    folder = preparation.find_set([source.path], source, config, tokenizer)
    preparation.prepare_set(folder, [source.path], source, config, tokenizer, name="chats", key="path")
    seconds, after = time.time() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    one = (one + measure_cores(1, command, base)) / 2
    shards = len(preparation.read_plan(folder))
    tokens = sum(int(read_index(name_shard(folder, shard)[1]).sizes.sum()) for shard in range(shards))
    show(cores=cores, one_core_tokens_per_s=one[0], one_core_tokens_per_cpu_s=one[1])
    show(all_cores_of_cores_times_one=together[0] / (cores * one[0]), the_same_by_cpu=together[1] / (cores * one[1]))
    show(tokens=tokens, shards=shards, seconds=seconds, tokens_per_s=tokens / seconds, tokens_per_cpu_s=tokens / spent)
    show(share=tokens / seconds / (cores * one[0]), cpu_share=tokens / spent / one[1])
    show(share_of_all_cores=tokens / seconds / together[0], cpu_share_of_all_cores=tokens / spent * cores / together[1])
    show(hours_of_4e9_tokens=4e9 / (tokens / seconds) / 3600)


def read(config: CorpusConfig, tokenizer: Tokenizer, batches: int, begin: float) -> None:
    """What a start of a run does with data, and its batches."""
    loader = SequenceLoader(open_corpus(config, tokenizer).train, 8, PackingConfig(LENGTH))
    first = next(loader)
    processor = sum(os.times()[:2])
    show(first_batch_s=time.time() - begin, first_batch_cpu_s=processor, rss_mb=rss())
    start, tokens, used, marks = time.time(), 0, [utilisation(first)], []
    for number in range(batches):
        batch = next(loader)
        tokens += int((batch["segments"] > 0).sum())
        used.append(utilisation(batch))
        if number % max(1, batches // 8) == 0:
            marks.append(round(rss()))
    seconds, spent = time.time() - start, sum(os.times()[:2]) - processor
    loader.close()
    show(batches=batches, tokens=tokens, tokens_per_s=tokens / seconds, tokens_per_cpu_s=tokens / spent)
    show(rss_mb=marks, utilisation=float(np.mean(used)))


def main() -> None:
    """Generates what is not there, prepares it, and reads it in another process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--tokens", type=float, default=100e6)
    parser.add_argument("--mean", type=int, default=200)
    parser.add_argument("--batches", type=int, default=2000)
    parser.add_argument("--only_read", action="store_true", help="read the set that is there")
    parser.add_argument("--begin", type=float, default=0.0, help="set in the process that reads")
    parser.add_argument("--alone", type=pathlib.Path, help="set in a process that encodes for itself")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    os.environ[preparation.FOLDER] = str(args.folder / "prepared")
    path, tokenizer = args.folder / "chats.jsonl", Tokenizer.from_path(args.tokenizer)
    assert tokenizer is not None
    config = CorpusConfig({"chats": SourceConfig(str(path))}, length=LENGTH)
    if args.alone:
        encode_alone(config, tokenizer, args.alone)
        return
    if args.begin:
        read(config, tokenizer, args.batches, args.begin)
        return
    if not path.exists():
        write_rows(path, args.tokens, args.mean)
    command = [sys.executable, __file__, f"--folder={args.folder}", f"--tokenizer={args.tokenizer}"]
    if not args.only_read:
        prepare(config, tokenizer, command, args.folder)
    subprocess.run([*command, f"--batches={args.batches}", f"--begin={time.time()}"], check=True)


if __name__ == "__main__":
    main()
