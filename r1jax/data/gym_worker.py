"""Draws a reasoning-gym task's problems in a separate Python process: `sources.py` runs this file as a script.

Some tasks iterate over sets of texts, so their problems change with Python's hash seed, which is fixed only when an
interpreter starts; others seed numpy's global generator. Here the hash seed is 0 and our own process is unaffected, so
the problems are a function of the task's seed, in every process of a run and after a resume. (`knight_swap` orders by
object addresses and is not reproducible; the loader's fingerprint detects this on resume.)

Reads a request from stdin, a Python literal {"task", "size", "seed", "args"}. Writes JSON to stdout: {"rows":
[[question, answer], ...]}, or {"error": message}, with {"known": names} if the task is unknown.
"""

import ast
import contextlib
import json
import random
import sys
from typing import Any


def draw(task: str, size: int, seed: int, args: dict[str, Any]) -> dict[str, Any]:
    """`size` problems of the task, repeats included, or an error about the request."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if task not in DATASETS:
        return {"error": "unknown task", "known": sorted(DATASETS)}
    random.seed(seed)
    try:
        dataset = reasoning_gym.create_dataset(task, size=size, seed=seed, **args)
    except (TypeError, ValueError, AssertionError) as error:
        return {"error": f"it rejects config.data.args={args}: {error}"}
    rows = []
    for number in range(size):
        entry = dataset[number]
        if not isinstance(entry["answer"], str):
            return {"error": "it has no plain answer to compare with, so it cannot be scored here"}
        rows.append([entry["question"], entry["answer"]])
    return {"rows": rows}


if __name__ == "__main__":
    request = ast.literal_eval(sys.stdin.read())
    with contextlib.redirect_stdout(sys.stderr):  # some tasks print
        result = draw(**request)
    json.dump(result, sys.stdout)
