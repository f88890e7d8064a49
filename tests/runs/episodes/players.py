"""An engine of the tests whose sequences write what a script says, and drivers of it and of tiny models."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from r1jax.core.structs import Sampling
from r1jax.environments.contract import read_contracts
from r1jax.environments.episode_config import EpisodeConfig
from r1jax.models.transformer import split
from r1jax.rollout.continuous import Burst
from r1jax.runs.episodes.driver import Driver, make_continuous, make_dialogues
from r1jax.runs.episodes.trajectory import Start
from r1jax.text.tokenizer import Tokenizer
from r1jax.weights import load_pretrained
from tests.tiny_model import CHAT_TEMPLATE, SPECIALS

PLACE = "tests.environments.toys"
ASK = [{"role": "user", "content": "Play."}]


@dataclasses.dataclass
class Slots:
    slots: int = 8


class ScriptedEngine:
    """A continuous engine that writes `script(text so far, number of the turn)` for each turn, then the stop id."""

    def __init__(self, tokenizer: Tokenizer, script: Callable[[str, int], str]):
        self.config, self.tokenizer, self.script, self.computed = Slots(), tokenizer, script, 0
        self.held: dict[int, dict[str, Any]] = {}
        self.given: list[str] = []  # what was opened and extended, as text

    def load(self, params: Any) -> None:
        self.held = {}

    def unload(self) -> None:
        pass

    @property
    def is_idle(self) -> bool:
        return not any(one["rest"] for one in self.held.values())

    def _begin(self, one: dict[str, Any], tokens: Sequence[int], sampling: Sampling) -> None:
        text = self.tokenizer.decode(tokens, skip_special=False)
        self.given.append(text)
        one["text"] += text
        said = self.tokenizer.encode(self.script(one["text"], one["turns"]))
        one["turns"] += 1
        one["rest"] = [*said, self.tokenizer.eos_ids[0]][: sampling.max_new_tokens]
        one["stops"] = sampling.stop_ids

    def open(self, tokens: Sequence[int], sampling: Sampling, seed: int) -> int:
        slot = next(slot for slot in range(self.config.slots) if slot not in self.held)
        self.held[slot] = {"text": "", "turns": 0}
        self._begin(self.held[slot], tokens, sampling)
        return slot

    def extend(self, slot: int, tokens: Sequence[int], sampling: Sampling) -> None:
        assert not self.held[slot]["rest"]
        self._begin(self.held[slot], tokens, sampling)

    def cut(self, slot: int, count: int) -> None:
        self.held[slot]["rest"] = []

    def close(self, slot: int) -> None:
        del self.held[slot]

    def step(self, steps: int = 0, *, ends: int = 0) -> list[Burst]:
        bursts = []
        for slot, one in self.held.items():
            if one["rest"]:
                ids, one["rest"] = tuple(one["rest"][:steps]), one["rest"][steps:]
                one["text"] += self.tokenizer.decode(ids, skip_special=False)
                reason = "" if one["rest"] else "stop" if ids[-1] in one["stops"] else "length"
                bursts.append(Burst(slot, ids, tuple(-0.5 for _ in ids), reason))
        return bursts


def make_tokenizer(template: str = CHAT_TEMPLATE) -> Tokenizer:
    return dataclasses.replace(Tokenizer.of_bytes(SPECIALS), chat_template=template, eos_ids=(2, 3))


def script_driver(
    environment: Any,
    script: Callable[[str, int], str],
    *,
    tools: Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
    **config: Any,
) -> tuple[Driver, ScriptedEngine]:
    """A driver whose model writes by a script; `environment`: a class of toys.py, a place, or several."""
    tokenizer = tokenizer or make_tokenizer()
    own = isinstance(environment, str) and environment and ":" not in environment
    place = f"{PLACE}:{environment}" if own else environment
    contracts, settings = read_contracts(place, tools), EpisodeConfig(**config)
    engine = ScriptedEngine(tokenizer, script)
    dialogues = make_dialogues(tokenizer, contracts, settings)
    return Driver(lambda params: engine, dialogues, contracts, settings, longest=400), engine


def tiny_driver(
    model: Path, environment: str, *, slots: int = 8, tokens: int = 96, longest: int = 64, **config: Any
) -> tuple[Driver, Any]:
    """A driver of a model of the tests, and its weights."""
    loaded, tokenizer = load_pretrained(model)
    graph, params = split(loaded)
    contracts, settings = read_contracts(f"{PLACE}:{environment}"), EpisodeConfig(max_tokens=tokens, **config)
    dialogues = make_dialogues(tokenizer, contracts, settings)

    def make(params: Any) -> Any:
        return make_continuous(graph, params, slots=slots, tokens=longest + tokens)

    return Driver(make, dialogues, contracts, settings, longest=longest), params


def make_starts(count: int, *, kind: str = "", limit: int = 400, **row: Any) -> list[Start]:
    sampling = Sampling(temperature=1.0, max_new_tokens=limit, stop_ids=(2, 3))
    return [Start(ASK, row, kind, sampling, seed, 100 + seed) for seed in range(count)]


def write_family(folder: Path, golden: Path) -> Path:
    """A tiny model of another family with the vocabulary of the tests: its embeddings repeated with noise."""
    folder.mkdir(parents=True)
    config = json.loads((golden / "config.json").read_text())
    weights, draw = load_file(golden / "model.safetensors"), np.random.default_rng(0)
    for name, value in weights.items():
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            tiled = np.tile(value, (5, 1))[:304]
            weights[name] = (tiled + draw.normal(0, 0.05, tiled.shape)).astype(value.dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 304}))
    make_tokenizer().save(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    return folder
