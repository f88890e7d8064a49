"""Start of every run: console log, processes of a pod, mesh."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from r1jax.core import console, distributed
from r1jax.core.sharding import MeshConfig, make_mesh, use_mesh
from r1jax.runs import hosts
from r1jax.runs.first_step import START


@contextlib.contextmanager
def open_run(mesh: MeshConfig | None = None) -> Iterator[None]:
    """Context that sets up log and processes, with the mesh over all devices in use (None: no mesh).

    Raises UserError for a mesh that does not fit the devices.
    """
    join()
    with use_mesh(make_mesh(mesh), mesh.rules) if mesh is not None else contextlib.nullcontext():
        yield


def join() -> None:
    """Sets up the log, joins the other processes of the run if there are any, and compares their versions.

    Raises UserError if they cannot be reached or do not fit together.
    """
    START.begin("connect")
    console.set_up_logging()
    distributed.start()
    hosts.introduce()
    START.enter("load")
