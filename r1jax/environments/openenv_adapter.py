"""Environments behind an OpenEnv server: `config.environment = "openenv:URL"`, by the client of openenv-core.

A server with tools (MCP) has these as tools. Of another server an action with one text is the model's reply
(`respond`), and any other action is the tool `step` with the action's fields. Every trajectory has a session of its
own, so the server must allow as many at once as there are slots (`max_concurrent_envs`). The reward is the sum of those
of the steps.

Source: https://github.com/meta-pytorch/OpenEnv.
"""

from __future__ import annotations

import functools
import json
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from r1jax.core.errors import UserError
from r1jax.core.extras import require

_OWN = ("metadata",)  # fields of every action
_HIDDEN = ("done", "reward", "metadata")  # fields of every observation
_SECONDS = 30.0


def make_environment(url: str) -> type:
    """A class of environments for the address of a server."""
    url = url if "://" in url else f"http://{url}"
    core = require("openenv.core", "openenv", f"config.environment = openenv:{url}")
    connect = functools.partial(_connect, core, url)
    if tools := _list_tools(url, connect):
        methods: dict[str, Any] = {name: _make_tool(name) for name in tools}
        return _build(connect, methods, [_describe(name, *about) for name, about in tools.items()])
    action = _read_schema(url)
    fields = {name: kind for name, kind in action.get("properties", {}).items() if name not in _OWN}
    if len(fields) == 1 and next(iter(fields.values())).get("type") == "string":
        return _build(connect, {"respond": _make_respond(next(iter(fields)))}, [])
    parameters = {**action, "properties": fields}
    parameters["required"] = [name for name in action.get("required", []) if name in fields]
    return _build(connect, {"step": _step}, [_describe("step", action.get("description", "Acts."), parameters)])


def _build(connect: Callable[[], Any], methods: dict[str, Any], tools: list[dict[str, Any]]) -> type:
    own = {"tool_definitions": tools, "_connect": staticmethod(connect)}
    return type("OpenEnvEnvironment", (_Environment,), {**methods, **own})


class _Environment:
    """One session. Attributes for rewards: reward, steps, done."""

    _connect: Callable[[], Any]

    def reset(self, seed: int, **row: Any) -> str | None:
        """Begins a session; its first observation follows the prompt."""
        self.reward, self.steps, self.done = 0.0, 0, False
        self._client = self._connect()
        seen = self._client.reset(seed=seed % 2**31)
        text = _show(seen.observation)
        return f"\n\n{text}" if text else None

    def get_reward(self) -> float:
        """The sum of the rewards of all steps."""
        return self.reward

    def _act(self, action: Mapping[str, Any]) -> Any:
        if self.done:
            raise ValueError("the episode is over")
        seen = self._client.step(dict(action))
        self.steps, self.done = self.steps + 1, bool(seen.done)
        self.reward += float(seen.reward or 0.0)
        return seen.observation

    def _close(self) -> None:
        if hasattr(self, "_client"):
            self._client.close()


def _make_tool(name: str) -> Callable[..., str]:
    def tool(self: _Environment, **arguments: Any) -> str:
        seen = self._act({"type": "call_tool", "tool_name": name, "arguments": arguments})
        if error := seen.get("error"):
            raise ValueError(error.get("message", error) if isinstance(error, dict) else error)
        return _show_result(seen.get("result"))

    return tool


def _make_respond(field: str) -> Callable[[_Environment, str], str | None]:
    def respond(self: _Environment, reply: str) -> str | None:
        text = _show(self._act({field: reply}))
        return None if self.done else text

    return respond


def _step(self: _Environment, **action: Any) -> str:
    return _show(self._act(action))


def _connect(core: Any, url: str) -> Any:
    client = core.GenericEnvClient(base_url=url).sync()
    client.connect()
    return client


def _list_tools(url: str, connect: Callable[[], Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Descriptions and parameters of a server's tools by name; {} for one without."""
    try:
        client = connect()
    except Exception as error:
        raise UserError(
            f"config.environment = openenv:{url} does not answer ({type(error).__name__}: {error})"
        ) from None
    try:
        tools = client.step({"type": "list_tools"}).observation.get("tools") or []
    except Exception:  # its actions are of another form
        return {}
    finally:
        client.close()
    return {tool["name"]: (tool.get("description", ""), tool.get("input_schema", {})) for tool in tools}


def _read_schema(url: str) -> dict[str, Any]:
    """The JSON schema of a server's action."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/schema", timeout=_SECONDS) as reply:
            return json.loads(reply.read())["action"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"config.environment = openenv:{url} shows no schema of its action ({error})") from None


def _describe(name: str, description: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in parameters.items() if key in ("type", "properties", "required")}
    function = {"name": name, "description": description, "parameters": {"type": "object", "properties": {}, **kept}}
    return {"type": "function", "function": function}


def _show(observation: Mapping[str, Any]) -> str:
    """An observation as text: its one field, or all as JSON."""
    shown = {name: value for name, value in observation.items() if name not in _HIDDEN and value is not None}
    if len(shown) == 1:
        (value,) = shown.values()
        return value if isinstance(value, str) else json.dumps(value)
    return json.dumps(shown) if shown else ""


def _show_result(result: Any) -> str:
    """The result of a tool as text: its data, or the texts of its content."""
    if isinstance(result, Mapping):
        if result.get("data") is not None:
            result = result["data"]
        elif isinstance(parts := result.get("content"), list):
            return "".join(str(part.get("text", "")) for part in parts)
    return result if isinstance(result, str) else json.dumps(result)
