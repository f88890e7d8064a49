"""Start of every run: console log, processes of a pod, mesh."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from r1jax.core import console, distributed
from r1jax.core.sharding import MeshConfig, make_mesh, use_mesh


@contextlib.contextmanager
def open_run(mesh: MeshConfig | None = None) -> Iterator[None]:
    """Context that sets up log and processes, with the mesh over all devices in use (None: no mesh).

    Raises UserError for a mesh that does not fit the devices.
    """
    console.set_up_logging()
    distributed.start()
    with use_mesh(make_mesh(mesh), mesh.rules) if mesh is not None else contextlib.nullcontext():
        yield
