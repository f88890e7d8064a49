"""Preparation of a generated chat set and its reading, as JSON lines: rates, the time to a first batch, memory.

Rows have lengths as in R1's traces (log-normal), scaled to --mean tokens. The rate of one core is that of a single
worker on the same rows before the preparation, by the clock and by its processor time (on a machine that others use,
the latter). Then a new process opens the set and takes --batches batches of 8 rows of 8,192 tokens.

    python tests/bench/prepared_data.py --folder=DIR --tokenizer=MODEL [--tokens=100e6 --mean=200 --batches=2000]
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import resource
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
    parser.add_argument("--begin", type=float, default=0.0, help="set in the process that reads")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    os.environ[preparation.FOLDER] = str(args.folder / "prepared")
    path, tokenizer = args.folder / "chats.jsonl", Tokenizer.from_path(args.tokenizer)
    assert tokenizer is not None
    source = SourceConfig(str(path))
    config = CorpusConfig({"chats": source}, length=LENGTH)
    if args.begin:
        read(config, tokenizer, args.batches, args.begin)
        return
    if not path.exists():
        write_rows(path, args.tokens, args.mean)
    alone = args.folder / "alone"
    alone.mkdir(exist_ok=True)
    begin, spent = time.time(), sum(os.times()[:2])
    job = Job(alone, [Piece(str(path), 0, min(4 << 20, path.stat().st_size))], source, config, tokenizer)
    tokens = work(job)
    one, one_cpu = tokens / (time.time() - begin), tokens / (sum(os.times()[:2]) - spent)
    show(one_core_tokens_per_s=one, one_core_tokens_per_cpu_s=one_cpu, tokens=tokens)
    folder = preparation.find_set([str(path)], source, config, tokenizer)
    done = preparation.prepare_set(folder, [str(path)], source, config, tokenizer, name="chats", key="path")
    cores, rate = os.cpu_count() or 1, done["tokens"] / done["seconds"]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    rate_cpu = done["tokens"] / (used.ru_utime + used.ru_stime)
    show(**done, tokens_per_s=rate, share=rate / (cores * one), tokens_per_cpu_s=rate_cpu, cpu_share=rate_cpu / one_cpu)
    command = [sys.executable, __file__, f"--folder={args.folder}", f"--tokenizer={args.tokenizer}"]
    command += [f"--batches={args.batches}", f"--begin={time.time()}"]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
