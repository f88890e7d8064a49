"""Samples of a teacher with all that filters look for, by seed alone; the golden file holds what was kept of them.

tests/goldens/filters.json was written by the filters of release 0.2, which held all samples in memory and applied one
filter after the other to the whole list: places of the kept samples, and statistics, by the names of CONFIGS.
"""

import json
import pathlib
import random
from typing import Any

from r1jax.data.filters import FilterConfig, Trace

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens" / "filters.json"
CONFIGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "all kept": {"min_reward": -5.0, "max_repetition": 1.0},
    "difficulty": {"min_reward": 0.5, "min_pass_rate": 0.0, "max_pass_rate": 0.9},
    "lengths": {"min_reward": 0.0, "min_tokens": 20, "max_tokens": 60, "samples_per_prompt": 2},
    "english": {"min_reward": 0.0, "language": "en", "min_language_share": 0.9},
    "clean": {"min_reward": 0.0, "benchmarks": ("{folder}/bench.jsonl",), "ngram": 6},
    "near": {"min_reward": 0.0, "near_duplicates": 0.7},
    "everything": {
        "min_reward": 0.3,
        "min_pass_rate": 0.1,
        "max_pass_rate": 0.95,
        "min_tokens": 6,
        "max_tokens": 70,
        "language": "en",
        "min_language_share": 0.5,
        "benchmarks": ("{folder}/bench.jsonl",),
        "ngram": 8,
        "near_duplicates": 0.6,
        "samples_per_prompt": 3,
    },
}
WORDS = [
    f"{a}{b}" for a in ("ka", "lo", "mi", "nu", "re", "so", "ti", "wa") for b in ("ba", "de", "gi", "po", "zu", "")
]
BENCH = "seven ducks lay sixteen eggs on each day of the week and sell nine of them"


def make_traces(seed: int = 0, prompts: int = 60, samples: int = 5) -> list[Trace]:
    """`samples` of each prompt, in order: cut off, wrong, looping, Chinese, (nearly) copied, contaminated."""
    generator = random.Random(seed)
    traces: list[Trace] = []
    for group in range(prompts):
        text = " ".join(generator.choices(WORDS, k=8))
        prompt: Any = (
            text if group % 3 else [{"role": "system", "content": "be brief"}, {"role": "user", "content": text}]
        )
        for _ in range(samples):
            words = generator.choices(WORDS, k=generator.randrange(4, 80))
            kind = generator.choice(("", "", "", "copy", "near", "loop", "chinese", "bench", "cut"))
            if kind in ("copy", "near") and traces:
                other = generator.choice(traces[-samples:])
                prompt, words = other.prompt, other.completion.split(" ")
                if kind == "near" and words:
                    words[generator.randrange(len(words))] = "other"
                else:
                    words = [*words[:1], "", *words[1:]]
            words = words[:7] * 9 if kind == "loop" else words
            completion = " ".join(words)
            completion += f" {BENCH}" if kind == "bench" else " 先加总和再减去" * 6 if kind == "chinese" else ""
            reward = generator.choice((0.0, 1.0, 1.0, generator.random()))
            traces.append(Trace(group, prompt, completion, reward, len(words), "length" if kind == "cut" else "stop"))
    return traces


def make_filters(name: str, folder: pathlib.Path) -> FilterConfig:
    """Filters by their name above; the benchmark is written into the folder."""
    (folder / "bench.jsonl").write_text(json.dumps({"question": BENCH, "more": {"short": ["ka lo"]}}) + "\n")
    values = dict(CONFIGS[name])
    files = tuple(path.format(folder=folder) for path in values.pop("benchmarks", ()))
    return FilterConfig(**values, benchmarks=files)
