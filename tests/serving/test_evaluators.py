"""Evaluation harnesses against the command that serves SmolLM2: their log-likelihoods are transformers', their greedy
texts those of the command `generate`.

Each in an interpreter of its own, and skipped where that is not named:

    R1JAX_TRANSFORMERS_PYTHON   torch, transformers 5, gguf
    R1JAX_LM_EVAL_PYTHON        lm-eval[api]
    R1JAX_INSPECT_PYTHON        inspect-ai, openai
    R1JAX_OPENAI_PYTHON         openai

    R1JAX_LM_EVAL_PYTHON=/path/to/python … pytest -m slow -n0 tests/serving/test_evaluators.py
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serving.command import ROOT, Command

TRANSFORMERS, LM_EVAL, INSPECT, OPENAI = (
    os.environ.get(f"R1JAX_{name}_PYTHON", "") for name in ("TRANSFORMERS", "LM_EVAL", "INSPECT", "OPENAI")
)
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not MODEL.exists(), reason="the demo model is not there")]
needs = lambda python, what: pytest.mark.skipif(not python, reason=f"no interpreter with {what} is named")

SUMS = [{"question": f"What is {a} + {b}?", "answer": str(a + b)} for a, b in ((2, 3), (10, 7), (31, 12), (5, 50))]
SHOT = "Question: What is 4 + 4?\nAnswer: 4 plus 4 is 8.\n#### 8\n\nQuestion: {question}\nAnswer:"
CHOICES = [
    {"query": "The capital of France is", "choices": ["Paris", "Rome", "a river"], "gold": 0},
    {"query": "Water freezes at a temperature of", "choices": ["zero degrees Celsius", "a hundred degrees"], "gold": 0},
    {"query": "The opposite of hot is", "choices": ["warm", "cold", "spicy"], "gold": 1},
    {"query": "Seven days make a", "choices": ["year", "month", "week", "minute"], "gold": 2},
]
LIMIT = 40  # tokens of a reply
GENERATE = {
    "output_type": "generate_until",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n\n", "Question:"], "do_sample": False, "max_gen_toks": LIMIT},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "filter_list": [
        {
            "name": "last-number",
            "filter": [{"function": "regex", "regex_pattern": "#### (-?[0-9]+)"}, {"function": "take_first"}],
        },
    ],
}
TASKS: dict[str, dict[str, Any]] = {
    "sums": {**GENERATE, "doc_to_text": SHOT.replace("{question}", "{{question}}")},
    "talk": {**GENERATE, "doc_to_text": "{{question}}"},
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "query",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
}
# The log-likelihood of each continuation, computed by transformers from the same file in float32.
SCORE = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, file = sys.argv[1].rsplit("/", 1)
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
found = []
for context, continuation in json.load(sys.stdin):
    before = len(tokenizer(context, add_special_tokens=False).input_ids)
    ids = torch.tensor(tokenizer(context + continuation, add_special_tokens=False).input_ids)
    with torch.no_grad():
        logprobs = torch.log_softmax(model(ids[None]).logits[0].double(), -1)
    found.append(float(logprobs[range(before - 1, len(ids) - 1), ids[before:]].sum()))
print(json.dumps(found))
"""
INSPECT_TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import json_dataset, FieldSpec
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

@task
def sums():
    fields = FieldSpec(input="question", target="answer")
    return Task(dataset=json_dataset("sums.jsonl", fields), solver=generate(), scorer=includes())
"""
TALK = """
import json, openai, sys
client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none")
name = client.models.list().data[0].id
messages = json.loads(sys.argv[2])
asked = {"model": name, "messages": messages, "temperature": 0, "max_completion_tokens": int(sys.argv[3])}
whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
pieces = [event.choices[0].delta.content for event in client.chat.completions.create(**asked, stream=True)]
try:
    client.chat.completions.create(model="other", messages=messages)
except openai.NotFoundError as error:
    refused = error.code
print(json.dumps({"text": whole.choices[0].message.content, "pieces": pieces, "refused": refused,
    "logprobs": len(whole.choices[0].logprobs.content), "usage": whole.usage.completion_tokens}))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Command]:
    with Command(MODEL, "--slots=8", "--max_tokens=512") as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    for name, rows in {"sums": SUMS, "choices": CHOICES}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, task in TASKS.items():  # YAML reads JSON
        files = {"test": str(folder / ("choices.jsonl" if name == "choices" else "sums.jsonl"))}
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **source, **task}))
    (folder / "inspect_task.py").write_text(INSPECT_TASK)
    return folder


def generate(folder: Path, prompts: list[Any]) -> list[str]:
    """Greedy replies of the command."""
    rows, output = folder / "prompts.jsonl", folder / "replies.jsonl"
    rows.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    output.unlink(missing_ok=True)
    flags = [f"--model={MODEL}", f"--prompts={rows}", f"--output={output}", "--temperature=0"]
    call([sys.executable, "-m", "r1jax.generate", *flags, f"--max_new_tokens={LIMIT}"], cwd=ROOT)
    return [json.loads(line)["completions"][0] for line in output.read_text().splitlines()]


def call(command: list[str], **options: Any) -> str:
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "none"}
    environment = {**os.environ, **offline, **options.pop("env", {})}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def run_lm_eval(server: Command, folder: Path, kind: str, path: str, tasks: str, *flags: str) -> dict[str, list[Any]]:
    """Rows of samples by task."""
    output = folder / f"{kind}.out"
    address = f"{server.address}/v1/{path}"
    arguments = f"model={server.name},base_url={address},num_concurrent=4,max_retries=1"
    if path == "completions":
        arguments += ",tokenizer_backend=remote"
    command = [LM_EVAL, "-m", "lm_eval", "--model", kind, "--model_args", arguments, "--tasks", tasks]
    command += ["--include_path", str(folder), "--log_samples", "--output_path", str(output), *flags]
    call(command, env={"HF_HOME": str(folder / "hub")})
    found = {}
    for task in tasks.split(","):
        (file,) = output.rglob(f"samples_{task}_*.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        found[task] = sorted(rows, key=lambda row: row["doc_id"])
    return found


def cut(text: str) -> str:
    """A reply up to the texts at which the tasks stop."""
    return text.partition("\n\n")[0].partition("Question:")[0]


@needs(LM_EVAL, "lm-eval")
def test_lm_eval_reads_completions(server: Command, folder: Path) -> None:
    samples = run_lm_eval(server, folder, "local-completions", "completions", "sums,choices")
    expected = generate(folder, [SHOT.format(**row) for row in SUMS])
    assert [row["resps"][0][0] for row in samples["sums"]] == [cut(text) for text in expected]
    assert len(samples["choices"]) == len(CHOICES)
    pairs = [(row["query"], f" {choice}") for row in CHOICES for choice in row["choices"]]  # type: ignore[attr-defined]
    found = [float(pair[0][0]) for row in samples["choices"] for pair in row["resps"]]
    if not TRANSFORMERS:
        pytest.skip("R1JAX_TRANSFORMERS_PYTHON names no interpreter for the values")
    wanted = json.loads(call([TRANSFORMERS, "-c", SCORE, str(MODEL)], input=json.dumps(pairs)).splitlines()[-1])
    difference = np.abs(np.array(found) - wanted).max()
    print(f"{len(pairs)} log-likelihoods, largest difference {difference:.2g}")
    assert difference < 1e-4


@needs(LM_EVAL, "lm-eval")
def test_lm_eval_talks(server: Command, folder: Path) -> None:
    samples = run_lm_eval(server, folder, "local-chat-completions", "chat/completions", "talk", "--apply_chat_template")
    expected = generate(folder, [[{"role": "user", "content": row["question"]}] for row in SUMS])
    assert [row["resps"][0][0] for row in samples["talk"]] == [cut(text) for text in expected]


@needs(INSPECT, "inspect-ai")
def test_inspect_talks(server: Command, folder: Path) -> None:
    own = {"R1JAX_BASE_URL": f"{server.address}/v1", "R1JAX_API_KEY": "none", "HOME": str(folder)}
    flags = ["--log-format", "json", "--log-dir", "logs", "--display", "plain", "--temperature", "0"]
    model = f"openai-api/r1jax/{server.name}"
    command = [INSPECT, "-m", "inspect_ai", "eval", "inspect_task.py", "--model", model, *flags]
    call([*command, "--max-tokens", str(LIMIT)], cwd=folder, env=own)
    (file,) = (folder / "logs").glob("*.json")
    told = json.loads(file.read_text())
    assert told["status"] == "success"
    found = {row["input"]: row["output"]["choices"][0]["message"]["content"] for row in told["samples"]}
    expected = generate(folder, [[{"role": "user", "content": row["question"]}] for row in SUMS])
    assert [found[row["question"]] for row in SUMS] == expected
    share = np.mean([row["answer"] in text for row, text in zip(SUMS, expected, strict=True)])
    assert told["results"]["scores"][0]["metrics"]["accuracy"]["value"] == share


@needs(OPENAI, "openai")
def test_the_client_of_openai_talks(server: Command, folder: Path) -> None:
    messages = [{"role": "user", "content": SUMS[0]["question"]}]
    told = json.loads(call([OPENAI, "-c", TALK, server.address, json.dumps(messages), str(LIMIT)]))
    assert [told["text"]] == generate(folder, [messages])
    assert "".join(told["pieces"]) == told["text"] and told["refused"] == "model_not_found"
    assert told["logprobs"] == told["usage"]
