"""Model cards: README.md of an exported folder, with base, data, recipe, figures with their errors, and licence.

All of it is read from the workdir of a run (config.json, metrics.jsonl) and from the base's own files; a folder that
comes from no run gets the card of its source, or a short one. The head is the YAML that the hub reads.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import r1jax
from r1jax.core.errors import UserError
from r1jax.core.metrics import METRICS_FILE, read_rows
from r1jax.core.tensors.tensor_reader import open_tensors
from r1jax.eval.headline import find_headlines, tabulate_headlines
from r1jax.eval.saved_config import CONFIG_FILE, read_config_file
from r1jax.weights.names import find_local_hub, find_model, split_hub_name
from r1jax.weights.pretrained import find_step

CARD = "README.md"
STAGES = {"grpo": "reinforcement learning (GRPO)", "sft": "supervised fine-tuning", "distill": "distillation"}


def describe_model(source: str | pathlib.Path, folder: str | pathlib.Path, *, adapters: bool = False) -> str:
    """The card of MODEL `source` exported to `folder`; adapters: whether only those of a run are exported."""
    path, title = find_model(source), pathlib.Path(folder).absolute().name
    step = None if path.is_file() else find_step(path)
    if step is None:
        if path.is_dir() and (path / CARD).is_file():
            return (path / CARD).read_text("utf-8", "replace")
        head = _head(find_licence(source), {"library_name": "transformers", "base_model": _hub_name(str(source))})
        return f"{head}# {title}\n\n`{source}`, converted by r1jax {r1jax.__version__}.\n\n{_say_licence(source)}"
    workdir, number = step.parents[1], int(step.name)
    try:
        values = read_config_file(workdir / CONFIG_FILE).values
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)[:200]
        raise UserError(f"{workdir / CONFIG_FILE} cannot be read ({reason}); a run's checkpoint needs it") from None
    base, stage = _find_base(values), str(values.get("stage"))
    head = _head(
        find_licence(base),
        {"library_name": "peft" if adapters else "transformers", "base_model": _hub_name(base)},
        {"datasets": list(filter(None, map(_hub_name, _list_files(values)))), "tags": ["r1jax", stage]},
    )
    what = "Adapters (LoRA) of" if adapters else "Made from"
    recipe = "".join(f"| {key} | {text} |\n" for key, text in _list_recipe(values, number))
    rows = [row for row in read_rows(workdir / METRICS_FILE) if row["step"] <= number]
    parts = [
        f"{head}# {title}\n\n{what} `{base or 'fresh weights'}` by {STAGES.get(stage, stage)} with r1jax "
        f"{r1jax.__version__}, from step {number} of the run `{workdir.resolve().name}`.\n",
        f"| | |\n| --- | --- |\n{recipe}",
        _tabulate(rows),
        _say_licence(base) if base else "",
    ]
    return "\n".join(filter(None, parts))


def find_licence(model: str | pathlib.Path) -> str:
    """The licence that a MODEL's files name, in a card's head or a GGUF header, by the hub's name of it; "" if none."""
    path = pathlib.Path(model)
    folder = path if str(model) and path.exists() else find_local_hub(str(model))
    try:
        if folder is None:
            return ""
        if folder.is_file():
            return str(open_tensors(folder).metadata.get("general.license", ""))
        step = find_step(folder)
        if step is not None:
            return find_licence(_find_base(read_config_file(step.parents[1] / CONFIG_FILE).values))
        text = (folder / CARD).read_text("utf-8", "replace") if (folder / CARD).is_file() else ""
    except (OSError, UserError, ValueError):  # a card is no reason to fail
        return ""
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license:\s*([\w.+-]+)\s*$", head[1], re.MULTILINE) if head else None
    return found[1] if found else ""


def _say_licence(base: str | pathlib.Path) -> str:
    licence = find_licence(base)
    named = f"{licence}, as `{base}` names it." if licence else f"That of `{base}`, whose files here name none."
    return f"## Licence\n\n{named} Data sets have licences of their own.\n"


def _head(licence: str, texts: Mapping[str, str], lists: Mapping[str, list[str]] | None = None) -> str:
    lines = [f"{key}: {text}" for key, text in {"license": licence, **texts}.items() if text]
    lines += ["pipeline_tag: text-generation"]
    for key, items in (lists or {}).items():
        lines += [f"{key}:", *(f"- {item}" for item in items)] if items else []
    return "\n".join(["---", *lines, "---", "", ""])


def _hub_name(name: str) -> str:
    """The hub name in a name, without its revision or split; "" for a local path."""
    hub = split_hub_name(name.partition(":")[0])
    return "" if hub is None or pathlib.Path(name).exists() or pathlib.Path(hub[0]).suffix else hub[0]


def _find_base(values: Mapping[str, Any]) -> str:
    model = values.get("model") or values.get("student") or {}
    return "" if model.get("preset") else str(model.get("name", ""))


def _list_files(values: Mapping[str, Any]) -> list[str]:
    """Files, hub names and procedural sources of the training data."""
    data = values.get("data") or {}
    sources = (values.get("corpus") or {}).get("sources") or {}
    own = data.get("path") if data.get("source") in (None, "file", "jsonl") else data.get("source")
    return [str(path) for path in (own, *(source.get("path") for source in sources.values())) if path]


def _list_recipe(values: Mapping[str, Any], step: int) -> Iterator[tuple[str, str]]:
    """Rows of the card's table: what was trained, on what, and how."""
    model = values.get("model") or values.get("student") or {}
    yield "base", f"`{_find_base(values)}`" if _find_base(values) else f"fresh weights of `{model.get('preset')}`"
    if name := (values.get("teacher") or {}).get("name"):
        yield "teacher", f"`{name}`"
    if files := _list_files(values):
        yield "data", ", ".join(f"`{file}`" for file in files)
    rollout, loss = values.get("rollout") or {}, values.get("loss") or {}
    if rewards := values.get("rewards"):
        yield "rewards", ", ".join(f"{name} (weight {_weight(reward)})" for name, reward in rewards.items())
    if "prompts_per_step" in rollout:
        size = f"{rollout['prompts_per_step']} prompts x {rollout.get('group_size')} answers"
        yield "steps", f"{step} of {values.get('steps')}, {size}, at most {rollout.get('max_new_tokens')} tokens each"
    else:
        yield "steps", f"{step} of {values.get('steps')}"
    if loss.get("preset"):
        yield "loss", f"preset `{loss['preset']}`, KL coefficient {loss.get('kl_coefficient', 0)}"
    optimizer = values.get("optimizer") or {}
    if "learning_rate" in optimizer:
        yield "learning rate", f"{optimizer['learning_rate']:g}, schedule {optimizer.get('schedule', 'constant')}"
    if rank := (values.get("lora") or {}).get("rank"):
        yield "adapters", f"LoRA of rank {rank}, alpha {values['lora'].get('alpha'):g}"
    yield "seed", json.dumps(values.get("seed", 0))


def _weight(reward: Any) -> str:
    return f"{reward.get('weight', 1.0) if isinstance(reward, Mapping) else reward:g}"


def _tabulate(rows: list[dict[str, Any]]) -> str:
    """Figures of the run before and after; "" without any."""
    table = tabulate_headlines(find_headlines(rows))
    if not table:
        return ""
    lines = [list(table[0]), ["---"] * len(table[0]), *(list(row.values()) for row in table)]
    note = "Rates are of held-out problems, in percent with their standard errors." if len(rows) > 1 else ""
    return "\n".join(["## Figures", "", *(f"| {' | '.join(line)} |" for line in lines), "", note]).rstrip() + "\n"
