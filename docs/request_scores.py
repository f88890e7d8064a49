"""The true score of models on the synthetic requests of a pipeline (r1jax/text/request_quality.py).

    python docs/request_scores.py --held_out runs/r1/12_rl_all runs/r1_judge/10_rl_all

Each model answers every different request with SAMPLES samples at temperature 1: those of the kind that a pipeline
trains on, or with --held_out those that name other persons. Printed per model: the mean score with its standard error
over requests, and the share of replies with the full score.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import numpy as np

from r1jax.data.bilingual import draw_requests
from r1jax.text.prompts import QUESTION_REPLY, fill
from r1jax.text.request_quality import rate_request

ROOT = pathlib.Path(__file__).resolve().parent.parent
DRAWN = 2000  # requests, among which all different ones are


def measure(model: str, samples: int, *, held_out: bool) -> np.ndarray:
    """Scores [requests, samples]."""
    asked = sorted({row["prompt"] for row in draw_requests(DRAWN, 12345, held_out=held_out)})
    with tempfile.TemporaryDirectory() as folder:
        prompts, output = pathlib.Path(folder, "prompts.jsonl"), pathlib.Path(folder, "out.jsonl")
        prompts.write_text("".join(json.dumps({"prompt": fill(QUESTION_REPLY, text)}) + "\n" for text in asked))
        flags = [f"--model={model}", f"--prompts={prompts}", f"--output={output}", f"--num_samples={samples}"]
        command = [sys.executable, "-m", "r1jax.generate", *flags, "--max_new_tokens=64", "--seed=0"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        rows = [json.loads(line) for line in output.read_text().splitlines()]
    rate = lambda text, reply: rate_request(text, reply) or 0.0
    return np.array(
        [[rate(text, reply) for reply in row["completions"]] for text, row in zip(asked, rows, strict=True)]
    )


def main(arguments: Sequence[str]) -> None:
    """Measures each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="MODELs")
    parser.add_argument("--samples", type=int, default=8, help="of each request")
    parser.add_argument("--held_out", action="store_true", help="requests that name persons not trained on")
    flags = parser.parse_args(arguments)
    for model in flags.models:
        scores = measure(model, flags.samples, held_out=flags.held_out)
        means = scores.mean(axis=1)
        stderr = means.std(ddof=1) / np.sqrt(len(means))
        full = (scores > 0.99).mean()
        print(
            f"{model}: {means.mean():.4f} ± {stderr:.4f} over {len(means)} requests; {100 * full:.1f}% full", flush=True
        )


if __name__ == "__main__":
    main(sys.argv[1:])
