"""Fills a hub's cache with small stand-ins for what tinker-cookbook's recipes ask a hub for, under the same names.

    PYTHON hub_stand_ins.py HF_HOME MODEL_FOLDER

The tokenizer of MODEL_FOLDER stands for that of the recipes' model; a few dozen made-up rows stand for each data set.
With HF_HOME and HF_HUB_OFFLINE=1 the recipes then run without a network. Runs in the interpreter of the recipes, with
`datasets`.
"""

import json
import pathlib
import random
import shutil
import sys
import tempfile
from typing import Any

import datasets
from datasets.naming import camelcase_to_snakecase

MODEL = "Qwen/Qwen3-8B-Base"  # with a renderer that needs no special tokens
REVISION = "0" * 40
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json")
Rows = list[dict[str, Any]]


def draw_sums(count: int) -> list[tuple[str, int]]:
    draw = random.Random(0)
    pairs = [(draw.randint(1, 9), draw.randint(1, 9)) for _ in range(count)]
    return [(f"What is {a} + {b}?", a + b) for a, b in pairs]


def make_sets() -> dict[tuple[str, str], dict[str, Rows]]:
    """Rows by (name, configuration) and split."""
    sums = draw_sums(48)
    talks = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": f"It is {answer}."}]
        for question, answer in sums
    ]
    pairs = [
        {
            "chosen": f"\n\nHuman: {question}\n\nAssistant: It is {answer}.",
            "rejected": f"\n\nHuman: {question}\n\nAssistant: I do not know.",
        }
        for question, answer in sums
    ]
    solved = [{"question": question, "answer": f"We add. #### {answer}"} for question, answer in sums]
    asked = [{"question": question, "final_answer": str(answer)} for question, answer in sums]
    halves = lambda rows: {"train": rows[:40], "test": rows[40:]}
    return {
        ("HuggingFaceH4/no_robots", "default"): halves([{"messages": talk} for talk in talks]),
        ("openai/gsm8k", "main"): halves(solved),
        ("Anthropic/hh-rlhf", "default"): halves(pairs),
        ("zwhe99/DeepMath-103K", "default"): {"train": asked},
    }


def fill_tokenizer(home: pathlib.Path, folder: pathlib.Path) -> None:
    place = home / "hub" / f"models--{MODEL.replace('/', '--')}"
    snapshot = place / "snapshots" / REVISION
    snapshot.mkdir(parents=True, exist_ok=True)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / "main").write_text(REVISION)
    for name in TOKENIZER_FILES:
        if (folder / name).exists():
            shutil.copyfile(folder / name, snapshot / name)


def fill_set(home: pathlib.Path, name: str, configuration: str, splits: dict[str, Rows]) -> None:
    """Writes rows as `datasets` keeps what it has loaded before."""
    owner, _, short = name.partition("/")
    own = camelcase_to_snakecase(short)
    with tempfile.TemporaryDirectory() as scratch:
        files = {}
        for split, rows in splits.items():
            files[split] = str(pathlib.Path(scratch, f"{split}.jsonl"))
            pathlib.Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
        datasets.load_dataset("json", data_files=files, cache_dir=f"{scratch}/cache")
        (info,) = pathlib.Path(scratch, "cache").rglob("dataset_info.json")
        target = home / "datasets" / f"{owner}___{own}" / configuration / "0.0.0" / REVISION
        target.mkdir(parents=True, exist_ok=True)
        for split in splits:
            shutil.copyfile(info.parent / f"json-{split}.arrow", target / f"{own}-{split}.arrow")
        told = json.loads(info.read_text()) | {"dataset_name": own, "config_name": configuration}
        for split in told["splits"].values():
            split["dataset_name"] = own
        (target / info.name).write_text(json.dumps(told))


def main() -> None:
    home, folder = map(pathlib.Path, sys.argv[1:])
    fill_tokenizer(home, folder)
    for (name, configuration), splits in make_sets().items():
        fill_set(home, name, configuration, splits)


if __name__ == "__main__":
    main()
