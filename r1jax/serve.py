"""Serves a model by OpenAI's HTTP API, and trains adapters of it for clients of the Tinker API.

  python -m r1jax.serve --model=runs/grpo_zero
  python -m r1jax.serve --model=Qwen/Qwen3-0.6B --api=openai,tinker --workdir=runs/tuning --adapters=8
  python -m r1jax.serve --model=models/SmolLM2-135M-Instruct.Q4_1.gguf --port=8000 --slots=16

Clients then use http://127.0.0.1:8000/v1 as their base URL (with any key, unless one is set) and the model's name,
which /v1/models lists: by default MODEL's last part. All clients share one batch: a sequence that ends or whose client
leaves frees its slot at once. The same request with the same seed gets the same reply, whatever the load.

With tinker in --api, scripts written for the SDK of that name run with base_url=http://127.0.0.1:8000: many clients
train adapters side by side. All that was acknowledged is in --workdir; a server that was killed goes on from there.

The server listens on this machine alone unless --host says otherwise; if the environment variable R1JAX_API_KEY is set,
clients must send it. /metrics is for Prometheus, /health for a load balancer, /docs describes all requests. Ctrl-C and
SIGTERM let running requests end.
"""

import logging
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from r1jax.core.commands import run_command
from r1jax.core.errors import UserError
from r1jax.core.extras import check_installed
from r1jax.generate import define_device_flags

log = logging.getLogger("r1jax.serve")  # not __main__, whose messages are not shown

KEY_VARIABLE = "R1JAX_API_KEY"
LEAST = {"slots": 1, "max_tokens": 16, "queue": 1, "port": 0, "adapters": 1, "rank": 1}
APIS = ("openai", "tinker")


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv` (program name first) and returns the exit code: 0, 2 for a user's mistake, 130."""
    values = define_flags()
    return run_command(__doc__, values, argv[1:], lambda _: serve(values))


def define_flags() -> flags.FlagValues:
    """The flags of this command, separate from absl's global ones, so that importing this module defines none."""
    values = flags.FlagValues()
    string, integer = flags.DEFINE_string, flags.DEFINE_integer
    string("model", None, "Hugging Face folder, .gguf file, hub name, or workdir of a run.", flag_values=values)
    string("name", None, "Name of the model for clients. Default: the last part of MODEL.", flag_values=values)
    string("host", "127.0.0.1", "Address to listen on. Default: 127.0.0.1, this machine alone.", flag_values=values)
    integer("port", 8000, "Port to listen on; 0 takes a free one. Default: 8000.", flag_values=values)
    text = "Sequences sampled at once; memory grows with it. Default: 16."
    integer("slots", 16, text, flag_values=values)
    text = "Most tokens of a prompt and its reply together; memory grows with it. Default: 2048."
    integer("max_tokens", 2048, text, flag_values=values)
    text = "Sequences that may wait for a slot; further ones get status 429. Default: 256."
    integer("queue", 256, text, flag_values=values)
    flags.DEFINE_float("request_seconds", 600.0, "Longest time of a request. Default: 600.", flag_values=values)
    text = "APIs to serve: openai, or openai,tinker. Default: openai."
    flags.DEFINE_list("api", ["openai"], text, flag_values=values)
    string("workdir", "runs/tuning", "Folder of what tinker's clients made. Default: runs/tuning.", flag_values=values)
    text = "Adapters in memory at once, for training and for sampling each. Default: 8."
    integer("adapters", 8, text, flag_values=values)
    integer("rank", 32, "Largest rank of an adapter. Default: 32.", flag_values=values)
    define_device_flags(values)
    return values


def serve(values: flags.FlagValues) -> None:
    """Serves by the flags until a signal; jax is imported only after they are checked."""
    if not values.model:
        raise UserError("--model is missing (see --help)")
    for name, least in LEAST.items():
        if (value := int(values[name].value or 0)) < least:
            raise UserError(f"--{name} must be at least {least}, got {value}")
    if not values.request_seconds > 0:
        raise UserError(f"--request_seconds must be above 0, got {values.request_seconds}")
    if not set(values.api) <= set(APIS) or "openai" not in values.api:
        raise UserError(f"--api must be openai or openai,tinker, got {','.join(values.api)!r}")
    for module in ("fastapi", "uvicorn", "prometheus_client", "jsonschema", "google.protobuf"):
        check_installed(module, "serve", "python -m r1jax.serve")
    from r1jax.core import console
    from r1jax.eval.prompting import choose_prompting
    from r1jax.rollout.continuous import ContinuousConfig
    from r1jax.runs.sampler import load_sampler, place_sampler
    from r1jax.serving.listening import listen, open_socket
    from r1jax.serving.model_host import ModelHost

    console.set_up_logging()
    name = values.name or pathlib.Path(values.model).name.removesuffix(".gguf")
    with open_socket(values.host, values.port) as socket, place_sampler(values.mesh):
        sampler = load_sampler(values.model, dtype=values.dtype)
        config = ContinuousConfig(
            slots=values.slots, max_tokens=values.max_tokens, max_stop_ids=len(sampler.stop_ids) + 16
        )
        options: dict[str, Any] = {"key": os.environ.get(KEY_VARIABLE, ""), "queue": values.queue}
        bank = None
        if "tinker" in values.api:
            from r1jax.models.adapters.adapter_bank import AdapterBank
            from r1jax.models.transformer import merge
            from r1jax.tuning.service import TrainingService
            from r1jax.tuning.trainer import Trainer

            bank = AdapterBank(merge(sampler.graph, sampler.params), places=values.adapters, rank=values.rank)
            trainer = Trainer(bank, sampler.params)
            limits = {"vocab_size": sampler.vocab_size, "max_tokens": values.max_tokens}
            workdir = pathlib.Path(values.workdir)
            options["make_service"] = lambda run: TrainingService(trainer, workdir, run=run, **limits)
        host = ModelHost(name, sampler, choose_prompting(values.model, None), config, bank)
        listen(host, socket, seconds=values.request_seconds, **options)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
