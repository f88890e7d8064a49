"""A workdir as a run leaves it, and a browser to look at pages with."""

import contextlib
import fcntl
import json
import math
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from r1jax.core.metrics import MetricsWriter

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --remote-debugging-pipe about:blank"
)

PROMPT = (
    "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The Assistant "
    "first thinks about the reasoning process in the mind and then provides the User with the answer.\n"
    "User: What is 12 + 30?\nAssistant: <think>12 + 30 = 42.</think>\n<answer>42</answer>\n\nUser: What is {a} + {b}?\n"
    "Assistant: <think>"
)


def synthesize_run(
    workdir: Path, *, seed: int = 0, steps: int = 60, evaluate_every: int = 10, samples: int = 8
) -> Path:
    """Writes a workdir that looks like a run which learns to add: a slow start, a steep middle, noise throughout."""
    rng = random.Random(seed)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(_config(seed, steps)))
    writer = MetricsWriter(workdir, tensorboard=False)
    tokens = 0
    for step in range(steps + 1):
        skill = 1 / (1 + math.exp(-10 * (step / steps - 0.35 - 0.05 * seed)))
        metrics = _training(rng, step, skill, tokens) if step else {}
        tokens = metrics.get("num_tokens", 0)
        if step % evaluate_every == 0 or step == steps:
            metrics |= _evaluation(rng, skill)
        writer.write(step, metrics)
        if step:
            writer.write_samples(step, [_sample(rng, skill) for _ in range(samples)])
    writer.close()
    return workdir


def _config(seed: int, steps: int) -> dict[str, Any]:
    return {
        "stage": "grpo",
        "seed": seed,
        "steps": steps,
        "model": {"name": "models/SmolLM2-135M-Instruct", "dtype": "float32"},
        "data": {"task": "addition", "template": "r1", "prompts_per_step": 8, "path": None},
        "rewards": {"answer_reward": 1.0, "r1_format_reward": {"weight": 0.25}},
        "rollout": {"group_size": 8, "max_new_tokens": 64, "temperature": 1.0, "stop": ["</answer>", "<|im_end|>"]},
        "optimizer": {"learning_rate": 1e-5 * (1 + seed), "clip_norm": 1.0, "schedule": "linear", "warmup_steps": 5},
        "advantage": "grpo",
        "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
    }


def _training(rng: random.Random, step: int, skill: float, tokens: int) -> dict[str, Any]:
    answer = min(1.0, max(0.0, 0.02 + 0.62 * skill + rng.gauss(0, 0.05)))
    form = min(1.0, max(0.0, 0.08 + 0.9 * min(1.0, 1.6 * skill) + rng.gauss(0, 0.03)))
    length = 58 - 24 * skill + rng.gauss(0, 2)
    rollout, train = 0.07 * length + rng.gauss(0, 0.15), 3.1 + rng.gauss(0, 0.1)
    if step == 1:
        rollout, train = rollout + 14, train + 22
    return {
        "loss": rng.gauss(0, 0.02),
        "reward": answer + 0.25 * form,
        "reward_std": 0.1 + 0.3 * answer * (1 - answer) * 4,
        "rewards/answer_reward/mean": answer,
        "rewards/answer_reward/std": math.sqrt(answer * (1 - answer)),
        "rewards/r1_format_reward/mean": form,
        "rewards/r1_format_reward/std": math.sqrt(form * (1 - form)),
        "frac_reward_zero_std": max(0.0, 0.6 - skill + rng.gauss(0, 0.05)),
        "kl": 0.002 * step * (0.5 + skill) * rng.uniform(0.8, 1.2),
        "entropy": 1.4 - 0.9 * skill + rng.gauss(0, 0.04),
        "clip_ratio/low_mean": 0.0,
        "clip_ratio/high_mean": abs(rng.gauss(0, 0.002)),
        "clip_ratio/region_mean": abs(rng.gauss(0, 0.003)),
        "completions/mean_length": length,
        "completions/clipped_ratio": max(0.0, 0.5 - 0.48 * skill + rng.gauss(0, 0.03)),
        "sampling/sampling_logp_difference/mean": 4e-7 * rng.uniform(0.8, 1.3),
        "sampling/sampling_logp_difference/max": 9e-6 * rng.uniform(0.5, 2),
        "sampling/importance_sampling_ratio/min": 1 - 1e-5 * rng.random(),
        "sampling/importance_sampling_ratio/mean": 1.0,
        "sampling/importance_sampling_ratio/max": 1 + 1e-5 * rng.random(),
        "grad_norm": rng.lognormvariate(-0.7, 0.3),
        "learning_rate": 1e-5 * min(1.0, step / 5),
        "num_tokens": tokens + round(64 * (length + 190)),
        "step_time": rollout + train + 0.35,
        "time/rollout": rollout,
        "time/reward": 0.04 + 0.01 * rng.random(),
        "time/train": train,
        "rollout/tokens_per_second": 64 * length / rollout,
        "train/tokens_per_second": 64 * (length + 190) / train,
        "mfu": 0.31 + rng.gauss(0, 0.01),
        "advantage/max": 2.4 + rng.gauss(0, 0.1),
    }


def _evaluation(rng: random.Random, skill: float, problems: int = 200) -> dict[str, float]:
    rates = {"format_rate": 0.04 + 0.93 * min(1.0, 1.6 * skill), "lenient": 0.31 + 0.37 * skill}
    rates |= {"pass@1": 0.02 + 0.62 * skill, "greedy": 0.03 + 0.68 * skill}
    rates = {name: min(1.0, max(0.0, rate + rng.gauss(0, 0.015))) for name, rate in rates.items()}
    errors = {f"{name}_stderr": math.sqrt(rate * (1 - rate) / problems) for name, rate in rates.items()}
    return {f"eval/addition/{name}": value for name, value in (rates | errors).items()}


def _sample(rng: random.Random, skill: float) -> dict[str, Any]:
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    right, formed = rng.random() < 0.02 + 0.62 * skill, rng.random() < 0.08 + 0.9 * skill
    answer = a + b if right else a + b + rng.choice([-10, -1, 1, 10])
    if formed:
        text = f"I add the tens and the ones: {a} + {b} = {answer}.</think>\n<answer>{answer}</answer>"
    else:
        text = f"{a} + {b} = {answer}. The User asks a question, and the Assistant " * rng.randint(1, 5)
    value = right * formed + 0.25 * formed
    return {
        "prompt": PROMPT.format(a=a, b=b),
        "completion": text,
        "solution": str(a + b),
        "reward": value,
        "rewards": {"answer_reward": float(right and formed), "r1_format_reward": float(formed)},
        "advantage": rng.gauss(0, 1),
        "length": len(text) // 3,
        "finish_reason": "stop" if formed else "length",
    }


@pytest.fixture
def make_run() -> Callable[..., Path]:
    """`make_run(workdir, seed=, steps=, evaluate_every=, samples=)` writes a run and returns its workdir."""
    return synthesize_run


class Tab:
    """One page in headless Chromium, driven over its debugging pipe: messages are JSON that a zero byte ends."""

    def __init__(self, profile: Path):
        (commands, to_browser), (from_browser, answers) = os.pipe(), os.pipe()
        # The browser reads descriptor 3 and writes 4; copies above 9 keep the two moves out of each other's way.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (commands, answers)]
        command = f'exec "$0" {FLAGS} --user-data-dir="$1" 3<&{ends[0]} 4>&{ends[1]}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, str(CHROMIUM), str(profile)], pass_fds=ends, stderr=subprocess.DEVNULL
        )
        for end in (commands, answers, *ends):
            os.close(end)
        self._commands, self._answers = os.fdopen(to_browser, "wb", buffering=0), os.fdopen(from_browser, "rb")
        self._count, self._session, self.events = 0, "", []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        self._commands.write(
            json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while (answer := self._receive()).get("id") != self._count:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path: Path, *, width: int = 1280, phone: bool = False) -> None:
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=phone)
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())
        # Charts are drawn in the frame after the one that measures them.
        self.run(
            "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 50))))"
        )

    def run(self, script: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def complaints(self) -> list[dict[str, Any]]:
        """Errors, warnings and console output of the page, and requests for anything but the page itself."""
        bad = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        requests = [event for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [event for event in self.events if event.get("method") in bad] + requests[1:]

    def close(self) -> None:
        self._session = ""
        with contextlib.suppress(EOFError, BrokenPipeError):
            self.call("Browser.close")
        self._process.wait(30)
        self._commands.close()
        self._answers.close()

    def _receive(self) -> dict[str, Any]:
        message = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            if not byte:
                raise EOFError
            message += byte
        return json.loads(message)


@pytest.fixture(scope="session")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """A page in a browser. Tests that want one are skipped where no Chromium is installed."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here to look at the page with")
    opened = Tab(tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.close()
