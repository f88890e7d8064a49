"""A server's life: its socket, start of the worker, and an end that lets running requests finish."""

from __future__ import annotations

import logging
import socket

import uvicorn

from r1jax.core.errors import UserError
from r1jax.core.startup import voice
from r1jax.core.startup.voice import activity
from r1jax.core.structs import Sampling
from r1jax.serving.app import make_app
from r1jax.serving.model_host import ModelHost
from r1jax.serving.worker import Worker

log = logging.getLogger(__name__)

END_SECONDS = 30  # for running requests after a signal
KEEP_ALIVE_SECONDS = 30


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


def listen(host: ModelHost, bound: socket.socket, *, key: str, queue: int, seconds: float) -> None:
    """Serves until SIGTERM or Ctrl-C; running requests then have `END_SECONDS` to end."""
    with activity("preparing the programs (the first start on a machine compiles them)"):
        warm_up(host)
    worker = Worker(host.engine, queue=queue)
    worker.start()
    app = make_app(host, worker, key=key, seconds=seconds)
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
    worker.stop()


def warm_up(host: ModelHost) -> None:
    """Compiles the programs of a plain reply."""
    slot = host.engine.open([0] * 2, Sampling(max_new_tokens=1), 0)
    host.engine.step(1)
    host.engine.close(slot)
