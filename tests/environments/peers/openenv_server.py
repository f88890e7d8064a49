"""Servers made by openenv-core's own application factory: one that answers texts, and one with tools.

python -m tests.environments.peers.openenv_server KIND PORT
"""

import sys

import uvicorn
from openenv.core.env_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State


class Say(Action):
    text: str


class Move(Action):
    """Moves on a line."""

    steps: int
    back: bool = False


class Heard(Observation):
    answer: str = ""


class Talk(Environment):
    """Pays a tenth for each letter of a reply, and ends after three."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        super().__init__()
        self._state = State(step_count=0)

    def reset(self, seed=None, episode_id=None, **kwargs):
        self._state = State(step_count=0)
        return Heard(answer=f"Speak, {seed % 7}.", reward=0.0, done=False)

    def step(self, action, timeout_s=None, **kwargs):
        self._state.step_count += 1
        done = self._state.step_count >= 3
        return Heard(answer=f"{len(action.text)} letters.", reward=len(action.text) / 10, done=done)

    @property
    def state(self):
        return self._state


class Line(Talk):
    """A walk to the place 3."""

    def reset(self, seed=None, episode_id=None, **kwargs):
        self._state, self.place = State(step_count=0), 0
        return Heard(answer="You stand at 0; go to 3.", reward=0.0, done=False)

    def step(self, action, timeout_s=None, **kwargs):
        self.place += -action.steps if action.back else action.steps
        return Heard(answer=f"at {self.place}", reward=float(self.place == 3), done=self.place == 3)


def make_tools():
    from fastmcp import FastMCP
    from openenv.core.env_server.mcp_environment import MCPEnvironment

    class Tools(MCPEnvironment):
        """Adds."""

        SUPPORTS_CONCURRENT_SESSIONS = True

        def __init__(self):
            server = FastMCP("tools")

            @server.tool
            def add(a: int, b: int) -> int:
                """Adds two numbers."""
                return a + b

            super().__init__(server)
            self._state = State(step_count=0)

        def reset(self, seed=None, episode_id=None, **kwargs):
            return Observation(done=False, reward=0.0)

        def _step_impl(self, action, timeout_s=None, **kwargs):
            return Observation(done=False, reward=0.0, metadata={"error": "unknown action"})

        @property
        def state(self):
            return self._state

    return Tools


def make_app(kind: str):
    if kind == "tools":
        from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation

        return create_fastapi_app(make_tools(), CallToolAction, CallToolObservation, max_concurrent_envs=64)
    env, action = {"talk": (Talk, Say), "line": (Line, Move)}[kind]
    return create_fastapi_app(env, action, Heard, max_concurrent_envs=64)


if __name__ == "__main__":
    uvicorn.run(make_app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
