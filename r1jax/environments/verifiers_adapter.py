"""Environments of the package verifiers: `config.environment = "verifiers:ID"`, where ID is a module with
`load_environment`.

Its MultiTurnEnv and ToolEnv keep their own turns, stop conditions and state; the rubric's reward is `get_reward`. One
instance of the package's environment serves all trajectories, each of which has a state of its own. Problems come from
its data sets by `config.data.source = "verifiers:ID"`; rows of other sources are taken as they are, their `solution` as
the `answer`. Arguments of `load_environment` follow the ID as JSON: `verifiers:my_env {"limit": 3}`.

Left out: rewards that compare a group, and environments that change the messages before the last turn.

Source: https://github.com/PrimeIntellect-ai/verifiers, up to 0.3 (0.4 has neither class).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from r1jax.core.errors import UserError
from r1jax.core.extras import require

_COLUMNS = ("prompt", "answer", "info", "example_id", "task")


def make_environment(text: str) -> type:
    """A class of environments for an ID, with arguments of its `load_environment` behind it."""
    package, shared = load_verifiers(text)
    defined = [*(shared.tool_defs or [])]
    tools = [
        {"type": "function", "function": {"name": t.name, "description": t.description, "parameters": t.parameters}}
        for t in defined
    ]
    methods = {tool.name: _make_tool(tool.name) for tool in defined}
    own = {"tool_definitions": tools, "_package": package, "_shared": shared}
    return type("VerifiersEnvironment", (_Environment,), {**methods, **own})


@functools.cache
def load_verifiers(text: str) -> tuple[Any, Any]:
    """The package and the environment that it loads. Raises UserError for what is no environment of several turns."""
    use = f"config.environment = verifiers:{text}"
    package = require("verifiers", "verifiers", use)
    name, _, arguments = text.partition(" ")
    if not hasattr(package, "MultiTurnEnv"):
        raise UserError(f"{use} needs verifiers below 0.4, got {package.__version__}")
    try:
        shared = package.load_environment(name, **json.loads(arguments or "{}"))
    except Exception as error:
        raise UserError(f"{use} cannot be loaded ({type(error).__name__}: {error})") from error
    if not isinstance(shared, package.MultiTurnEnv):
        raise UserError(f"{use} must be a MultiTurnEnv, got {type(shared).__name__}")
    return package, shared


def _make_tool(name: str) -> Callable[..., Any]:
    async def tool(self: _Environment, **arguments: Any) -> str:
        return await self._call(name, arguments)

    return tool


class _Environment:
    """One trajectory. Attribute for rewards: metrics, the rubric's values by name."""

    _package: Any
    _shared: Any

    async def reset(self, **row: Any) -> None:
        """Begins a trajectory for a row."""
        known = {name: row[name] for name in _COLUMNS if name in row}
        known.setdefault("answer", row.get("solution", ""))
        known.setdefault("example_id", 0)
        state = await self._shared.init_state(known, client=_make_client(self._package), model="policy")
        self._state = await self._shared.setup_state(state) or state
        self._messages = [*await self._shared.get_prompt_messages(self._state)]
        self._results: list[Any] = []  # of the turn's calls so far
        self.metrics: dict[str, float] = {}

    async def respond(self, reply: str) -> str | None:
        """The environment's words to a reply; None at its end."""
        await self._hear(reply)
        if await self._shared.is_completed(self._state):
            return None
        messages = [*await self._shared.get_prompt_messages(self._state)]
        if await self._shared.is_completed(self._state):
            return None
        new, self._messages = messages[len(self._messages) + 1 :], messages
        return "\n".join(_read_text(message) for message in new)

    async def get_reward(self) -> float:
        """The rubric's reward."""
        self._finish_turn()
        await self._shared.cleanup(self._state)
        await self._shared.rubric.score_rollout(self._state)
        await self._shared.rubric.cleanup(self._state)
        self.metrics = {name: float(value) for name, value in (self._state["metrics"] or {}).items()}
        return float(self._state["reward"])

    async def _hear(self, reply: str) -> None:
        """Begins a turn by what the model said."""
        self._finish_turn()
        said = self._types.AssistantMessage(content=reply)
        step = dict(prompt=[*self._messages], completion=[said], response=None, tokens=None, reward=None)
        more = dict(advantage=None, is_truncated=False, trajectory_id=self._state["trajectory_id"], extras={})
        await self._shared.add_trajectory_step(self._state, {**step, **more})

    async def _call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """The result of one call of the turn."""
        steps = self._state["trajectory"]
        (said,) = steps[-1]["completion"]
        number = len(said.tool_calls or [])
        call = self._types.ToolCall(id=f"call{number:05}", name=name, arguments=json.dumps(arguments))
        said = said.model_copy(update={"tool_calls": [*(said.tool_calls or []), call]})
        steps[-1]["completion"] = [said]
        if not number and await self._shared.is_completed(self._state):
            raise ValueError(f"the episode is over ({self._state.get('stop_condition')})")
        alone = said.model_copy(update={"tool_calls": [call]})
        results = await self._shared.env_response([*self._messages, alone], self._state)
        results = self._normalize(results)
        self._results += results
        return "\n".join(_read_text(message) for message in results)

    def _finish_turn(self) -> None:
        """Puts a turn with calls and their results behind what was said before."""
        if self._results:
            self._messages += [*self._state["trajectory"][-1]["completion"], *self._results]
            self._results = []

    @property
    def _types(self) -> Any:
        return require("verifiers.types", "verifiers", "config.environment = verifiers")

    @property
    def _normalize(self) -> Any:
        use = "config.environment = verifiers"
        messages = require("verifiers.utils.message_utils", "verifiers", use)
        return functools.partial(messages.normalize_messages, field_name="env_response")


def _read_text(message: Any) -> str:
    """The text of a message, whose content may be parts."""
    content = message.content
    if isinstance(content, list):
        parts = [part if isinstance(part, dict) else part.model_dump() for part in content]
        return "".join(str(part.get("text", "")) for part in parts)
    return str(content or "")


@functools.cache
def _make_client(package: Any) -> Any:
    """A client of the package that asks nobody: the trajectory's replies come from its engine."""
    abstract = package.Client

    def refuse(self: Any, *arguments: Any, **named: Any) -> Any:
        raise NotImplementedError("replies are sampled by r1jax")

    methods = dict.fromkeys(abstract.__abstractmethods__, refuse)
    return type("NoClient", (abstract,), methods)(None)
