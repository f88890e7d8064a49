"""A server under load: tokens per second beside the engine's own, time to the first token, and clients that leave.

Starts `python -m r1jax.serve`, and sends it requests from light clients on raw sockets in this process:

    engine     the same requests by the engine itself, as many at once as it has slots; measured before and after
    load       64 clients that stream, prompts of 8 to 200 tokens, replies of 16 to 64: tokens per second, share of the
               engine's, and seconds to the first token (median, 90%, largest), beside those of one client alone
    alone      some of the requests again without others: whether each reply is the one it was under load
    leaving    1,000 requests of which every tenth client leaves after its first event: free slots at the end, and
               the server's resident memory after each quarter

One JSON line each. Seconds of processors are those of the server's process.

    python -m tests.bench.serve_load [--model models/SmolLM2-135M-Instruct.Q4_1.gguf] [--requests 128] [--leaving 1000]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import random
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from r1jax.core.seeds import derive_seed
from r1jax.core.structs import Sampling
from r1jax.rollout.continuous import ContinuousConfig, ContinuousEngine
from r1jax.runs.sampler import load_sampler
from r1jax.serving.worker import HURRIED, PATIENT
from tests.serving.command import ROOT, Command
from tests.tiny_model import write_tiny_model

SLOTS, LONGEST = 16, 512
TICKS = os.sysconf("SC_CLK_TCK")


class Asked(NamedTuple):
    """A request: ids of the prompt, most tokens of the reply, and its seed."""

    prompt: list[int]
    limit: int
    seed: int


class Told(NamedTuple):
    """A reply: its ids, and seconds to its first and last token."""

    ids: list[int]
    first: float
    last: float


def draw_requests(count: int, vocab_size: int, *, longest: int = 200, least: int = 16, limit: int = 64) -> list[Asked]:
    draw = random.Random(0)
    ids = lambda: [draw.randrange(20, vocab_size) for _ in range(draw.randint(8, longest))]
    return [Asked(ids(), draw.randint(least, limit), seed) for seed in range(count)]


def run_engine(
    engine: ContinuousEngine, requests: Sequence[Asked], stop_ids: tuple[int, ...]
) -> tuple[float, list[list[int]]]:
    """Seconds, and the ids of all replies, with the server's seeds."""
    begin, waiting = time.perf_counter(), list(enumerate(requests))[::-1]
    live: dict[int, int] = {}
    found: list[list[int]] = [[] for _ in requests]
    while waiting or live:
        while waiting and engine.free:
            number, asked = waiting.pop()
            sampling = Sampling(temperature=1.0, max_new_tokens=asked.limit, stop_ids=stop_ids)
            live[engine.open(asked.prompt, sampling, derive_seed("reply", asked.seed, 0, 0))] = number
        for burst in engine.step(HURRIED if waiting else PATIENT, ends=1 if waiting else 0):
            found[live[burst.slot]] += burst.tokens
            if burst.finish_reason:
                engine.close(burst.slot)
                del live[burst.slot]
    return time.perf_counter() - begin, found


class Server(Command):
    """The command, and clients of raw sockets."""

    @property
    def cpu_seconds(self) -> float:
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    @property
    def megabytes(self) -> float:
        pages = int(pathlib.Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    async def ask(self, asked: Asked, *, leaves: bool = False) -> Told:
        """Streams a reply; a client that leaves closes its socket after the first event."""
        body = {"model": self.name, "prompt": asked.prompt, "max_tokens": asked.limit, "seed": asked.seed}
        raw = json.dumps({**body, "stream": True, "return_token_ids": True, "temperature": 1.0}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        begin = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        writer.write(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
        ids, first = list[int](), 0.0
        status = await reader.readline()
        assert b" 200 " in status, status
        async for line in reader:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                assert "error" not in event, event
                ids += event["choices"][0]["token_ids"]
                first = first or time.perf_counter() - begin
                if leaves:
                    break
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return Told(ids, first, time.perf_counter() - begin)

    async def ask_all(self, requests: Sequence[Asked], clients: int, *, leaving: int = 0) -> list[Told]:
        """Replies to all requests by so many clients at once; every `leaving`-th client leaves."""
        waiting, found = list(range(len(requests)))[::-1], dict[int, Told]()

        async def work() -> None:
            while waiting:
                number = waiting.pop()
                leaves = bool(leaving) and number % leaving == 0
                found[number] = await self.ask(requests[number], leaves=leaves)

        await asyncio.gather(*(work() for _ in range(clients)))
        return [found[number] for number in range(len(requests))]

    async def read_gauges(self) -> dict[str, float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
        return {name: float(value) for name, value in re.findall(r"^r1jax_(\w+) ([\d.]+)$", text, re.MULTILINE)}


def describe_first(told: Sequence[Told]) -> dict[str, float]:
    times = sorted(one.first for one in told)
    shares = {"median": statistics.median(times), "90%": times[int(0.9 * len(times))], "largest": times[-1]}
    return {name: round(value, 2) for name, value in shares.items()}


@contextlib.contextmanager
def find_model(name: str) -> Iterator[str]:
    """The model named, or a tiny one in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        yield name if name != "tiny" else str(write_tiny_model(pathlib.Path(folder, "tiny")))


def show(**values: Any) -> None:
    print(json.dumps({key: round(v, 3) if isinstance(v, float) else v for key, v in values.items()}), flush=True)


async def measure(
    server: Server, requests: Sequence[Asked], args: argparse.Namespace, vocab_size: int
) -> dict[str, Any]:
    await server.ask_all(requests[:SLOTS], SLOTS)  # compiles
    spent, begin = server.cpu_seconds, time.perf_counter()
    under = await server.ask_all(requests, args.clients)
    seconds, spent = time.perf_counter() - begin, server.cpu_seconds - spent
    sample = range(0, len(requests), max(1, len(requests) // 8))
    alone = [await server.ask(requests[number]) for number in sample]
    same = [one.ids == under[number].ids for one, number in zip(alone, sample, strict=True)]
    show(what="alone", replies=len(same), same=sum(same), first=describe_first(alone))
    short, quarters = draw_requests(args.leaving, vocab_size, longest=32, least=8, limit=24), list[float]()
    for quarter in range(4):
        size = len(short) // 4
        await server.ask_all(short[quarter * size : (quarter + 1) * size], args.clients, leaving=10)
        quarters.append(round(server.megabytes, 1))
    await asyncio.sleep(1.0)
    gauges = await server.read_gauges()
    kept = {name: gauges[name] for name in ("slots_free", "jobs_active", "jobs_waiting")}
    show(what="leaving", requests=len(short), left=len(short) // 10, megabytes=quarters, **kept)
    return {"under": under, "seconds": seconds, "cpu_seconds": spent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"))
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--leaving", type=int, default=1000)
    args = parser.parse_args()
    with find_model(args.model) as model:
        sampler = load_sampler(model)
        requests = draw_requests(args.requests, sampler.vocab_size)
        config = ContinuousConfig(slots=SLOTS, max_tokens=LONGEST, max_stop_ids=len(sampler.stop_ids) + 16)
        engine = ContinuousEngine(sampler.graph, sampler.params, config)
        run_engine(engine, requests[:SLOTS], sampler.stop_ids)  # compiles
        rates, expected = [], list[list[int]]()
        for turn in range(2):
            spent, (seconds, expected) = time.process_time(), run_engine(engine, requests, sampler.stop_ids)
            spent = time.process_time() - spent
            rates.append(sum(map(len, expected)) / seconds)
            show(what="engine", tokens=sum(map(len, expected)), seconds=seconds, cpu_seconds=spent, rate=rates[-1])
            if turn == 0:
                with Server(model, f"--slots={SLOTS}", f"--max_tokens={LONGEST}", "--queue=2000") as server:
                    found = asyncio.run(measure(server, requests, args, sampler.vocab_size))
        under = found["under"]
        tokens = sum(len(one.ids) for one in under)
        told = {"tokens": tokens, "seconds": found["seconds"], "cpu_seconds": found["cpu_seconds"]}
        same = sum(one.ids == ids for one, ids in zip(under, expected, strict=True))
        rate = tokens / found["seconds"]
        shares = {"rate": rate, "share_of_engine": rate / statistics.mean(rates), "same_as_engine": same}
        show(what="load", clients=args.clients, **told, **shares, first=describe_first(under))


if __name__ == "__main__":
    main()
