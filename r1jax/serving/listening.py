"""A server's life: its socket, start of the worker, and an end that lets running requests finish."""

from __future__ import annotations

import dataclasses
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

import uvicorn

from r1jax.core.errors import UserError
from r1jax.core.startup import voice
from r1jax.core.startup.voice import activity
from r1jax.core.structs import Sampling
from r1jax.rollout.continuous import ContinuousEngine
from r1jax.serving.app import make_app
from r1jax.serving.model_host import ModelHost
from r1jax.serving.worker import BusyError, Worker
from r1jax.tuning.residents import Run
from r1jax.tuning.service import TrainingService

log = logging.getLogger(__name__)

END_SECONDS = 30  # for running requests after a signal
KEEP_ALIVE_SECONDS = 30
PAUSE_SECONDS = 0.05  # until a full queue is tried again


def open_socket(host: str, port: int) -> socket.socket:
    """A socket bound to the address, before anything is loaded. Raises UserError if it is taken or not one of this
    machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise UserError(f"cannot listen on {host}:{port} ({error}): choose another --port or --host") from None
    return bound


def listen(
    host: ModelHost,
    bound: socket.socket,
    *,
    key: str,
    queue: int,
    seconds: float,
    make_service: Callable[[Run], TrainingService] | None = None,
) -> None:
    """Serves until SIGTERM or Ctrl-C; running requests then have `END_SECONDS` to end. make_service: the service that
    trains, from what calls a function in the thread of the device.
    """
    worker = Worker(host.engine, queue=queue, adapters=host.adapters)
    service = None if make_service is None else make_service(make_run(worker))
    with activity("preparing the programs (the first start on a machine compiles them)"):
        warm_up(host.engine, Sampling())
    worker.start()
    if service is not None:
        service.start()
    app = make_app(host, worker, key=key, seconds=seconds, service=service)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=END_SECONDS,
        server_header=False,
    )
    address, port = bound.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    voice.mute()  # a server waits in silence
    log.info("serving %s at http://%s:%d/v1 (Ctrl-C ends)", host.name, shown, port)
    uvicorn.Server(config).run(sockets=[bound])
    if service is not None:
        service.stop()
    worker.stop()


def make_run(worker: Worker) -> Run:
    """A function that calls another between the worker's steps, and waits for its result."""

    def run(function: Callable[[], Any]) -> Any:
        while True:
            try:
                future = worker.call(function)
            except BusyError:
                if worker.error is not None:
                    raise worker.error from None
                time.sleep(PAUSE_SECONDS)
                continue
            return future.result()

    return run


def warm_up(engine: ContinuousEngine, sampling: Sampling) -> None:
    """Compiles the programs of replies that are sampled so: two that begin alike, and end before their limit."""
    config, short = engine.config, dataclasses.replace(sampling, max_new_tokens=2, stop_ids=())
    tokens = [0] * min(config.chunk + 1, config.max_tokens - 2)
    slots = [engine.open(tokens, short, seed) for seed in range(min(2, config.slots))]
    engine.step(1)
    for slot in slots:
        engine.close(slot)
