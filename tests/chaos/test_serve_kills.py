"""A server killed at random moments under a training script that repeats its requests: the script ends with the weights
of the uninterrupted one, bit for bit.

R1JAX_TEST_SERVE_KILLS kills (10), of which each comes a random time after the script's random step.
"""

import http.client
import json
import os
import random
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r1jax.tuning.adapter_files import read_arrays
from r1jax.tuning.named_weights import NamedWeights
from r1jax.tuning.store import Store
from tests.serving.command import Command
from tests.tuning.wire import training_body

STEPS = 40
KILLS = int(os.environ.get("R1JAX_TEST_SERVE_KILLS", 10))
LOSSES = ("cross_entropy", "importance_sampling", "ppo")

pytestmark = pytest.mark.slow


class Script:
    """Trains one adapter, and saves it. Every request is repeated until it is answered; done: steps whose update the
    server acknowledged.
    """

    def __init__(self, port: int):
        self.port, self.done, self.repeats = port, 0, 0

    def post(self, path: str, body: Any, kind: str = "application/json") -> Any:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            try:
                connection.request("POST", f"/api/v1/{path}", raw, {"Content-Type": kind})
                answer = connection.getresponse()
                told = answer.read()
                if answer.status == 200:
                    return told
                assert answer.status in (408, 503), told
            except (OSError, http.client.HTTPException):
                self.repeats += 1
                time.sleep(0.05)
            finally:
                connection.close()

    def wait(self, future: bytes) -> bytes:
        """The result of a future, asked for until it is there."""
        return self.post("retrieve_future", {"request_id": json.loads(future)["request_id"]})

    def run(self) -> str:
        """The address of the weights at the end."""
        created = self.post("create_session", {"tags": [], "user_metadata": None, "sdk_version": "1"})
        session = json.loads(created)["session_id"]
        own = {"session_id": session, "model_seq_id": 0, "base_model": "tiny", "lora_config": {"rank": 4, "seed": 1}}
        model = json.loads(self.wait(self.post("create_model", own)))["model_id"]
        for step in range(STEPS):
            raw = training_body(model, 2 * step + 1, seed=step, loss=LOSSES[step % 3], length=16)
            gradient = self.post("forward_backward", raw, "application/x-protobuf")
            update = {"model_id": model, "seq_id": 2 * step + 2, "adam_params": {"learning_rate": 0.02}}
            updated = self.post("optim_step", update)
            self.wait(gradient)
            assert json.loads(self.wait(updated))["metrics"]["grad_norm"] > 0
            self.done += 1
        saved = self.post("save_weights", {"model_id": model, "seq_id": 2 * STEPS + 1, "path": "end"})
        return json.loads(self.wait(saved))["path"]


def find_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def serve(model: Path, workdir: Path, port: int) -> Command:
    flags = ["--api=openai,tinker", "--name=tiny", f"--workdir={workdir}", "--slots=8", "--max_tokens=128", "--rank=8"]
    return Command(model, *flags, port=port)


def read_weights(workdir: Path, address: str) -> dict[str, np.ndarray]:
    store = Store(workdir)
    file = NamedWeights(store, workdir).find(address).body["file"]
    return read_arrays(Path(file) if Path(file).is_absolute() else workdir / file)


def test_a_script_ends_with_its_weights_whenever_the_server_is_killed(tiny_model: Path, tmp_path: Path) -> None:
    port, draw = find_port(), random.Random(0)
    with serve(tiny_model, tmp_path / "whole", port):
        begin = time.monotonic()
        expected = Script(port).run()
        pace = (time.monotonic() - begin) / STEPS
    moments = sorted(draw.sample(range(STEPS), min(KILLS, STEPS - 1)))
    script, ends = Script(port), list[str]()
    server = serve(tiny_model, tmp_path / "killed", port)
    thread = threading.Thread(target=lambda: ends.append(script.run()), daemon=True)
    thread.start()
    for moment in moments:
        while script.done < moment and thread.is_alive():
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 2 * pace))
        assert thread.is_alive()
        server.kill()
        server = serve(tiny_model, tmp_path / "killed", port)
    with server:
        thread.join(600)
    assert ends and script.repeats >= len(moments)
    found, wanted = read_weights(tmp_path / "killed", ends[0]), read_weights(tmp_path / "whole", expected)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    print(f"{len(moments)} kills, {script.repeats} requests repeated")
