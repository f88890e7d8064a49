"""Start of every run: console log, processes of a pod, mesh."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from r1jax.core import console, distributed
from r1jax.core.processes import agreement
from r1jax.core.sections import flatten, to_json, to_values
from r1jax.core.sharding import MeshConfig, make_mesh, use_mesh
from r1jax.runs import hosts
from r1jax.runs.first_step import START


@contextlib.contextmanager
def open_run(settings: Any = None, mesh: MeshConfig | None = None) -> Iterator[None]:
    """Context that sets up log and processes, with the mesh over all devices in use (None: no mesh).

    Raises UserError for a mesh that does not fit the devices, and in every process where the settings or the code of
    two differ.
    """
    join(settings)
    with use_mesh(make_mesh(mesh), mesh.rules) if mesh is not None else contextlib.nullcontext():
        yield


def join(settings: Any = None) -> None:
    """Sets up the log, joins the other processes of the run if there are any, and compares versions, settings and code.

    Raises UserError if they cannot be reached or do not fit together.
    """
    START.begin("connect")
    console.set_up_logging()
    distributed.start()
    hosts.introduce(lambda: _agree(settings))
    START.enter("load")


def _agree(settings: Any) -> None:
    """Compares settings (None: not known here) and code with the other processes."""
    if agreement.is_needed():
        values = flatten(json.loads(to_json(to_values(settings)))) if settings is not None else {}
        if settings is not None:
            agreement.agree("config", agreement.digest_settings(values), values)
        agreement.agree("code", agreement.digest_code(values))
