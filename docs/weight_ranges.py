"""Table of the bytes that each host reads of DeepSeek-V3, by the code that plans the reads, without the data.

    XLA_FLAGS=--xla_force_host_platform_device_count=1024 python docs/weight_ranges.py

The published index names the tensors; their shapes follow from the published config, and their formats from the names:
matrices are 8-bit blocks of 128 x 128 with a scale each, but for embedding, head, gates and the joint of the prediction
depth. The sum is shown beside that of the published files, which have headers too. A host has four chips, neighbours in
the mesh.
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterator

import jax
import ml_dtypes
import numpy as np
from flax import nnx

from r1jax.core.sharding import MeshConfig, make_mesh, use_mesh
from r1jax.models.families import deepseek_v3
from r1jax.models.layers import Dtypes
from r1jax.models.transformer import logical_axes, split
from r1jax.weights.fp8 import SUFFIX, BlockScaled
from r1jax.weights.hf import count_bytes, find_wanted
from r1jax.weights.parameters import of_shape

TOTAL = 688_586_727_753  # bytes of the .safetensors files of deepseek-ai/DeepSeek-V3, headers included
BLOCK, CHIPS = 128, 4
KEPT = ("embed_tokens", "lm_head", "shared_head.head", "mlp.gate.", "eh_proj", "norm")
CONFIG = dataclasses.replace(deepseek_v3.VARIANTS["deepseek_v3_671b"], mtp_depths=1)
MESHES = {
    "R1-Zero's and SFT's config: `fsdp=8, expert=64`": dict(data=1, fsdp=8, expert=64),
    "`fsdp=512`, no expert axis": dict(data=1, fsdp=512),
    "`fsdp=32, expert=16`": dict(data=1, fsdp=32, expert=16),
    "two slices of 512 chips (256 hosts): `data=2, fsdp=8, expert=64`": dict(data=2, fsdp=8, expert=64),
}


class PublishedFiles:
    """Names, shapes and formats of the published files' tensors."""

    path, is_remote = pathlib.Path("DeepSeek-V3"), True

    def __init__(self) -> None:
        needed = of_shape(deepseek_v3, CONFIG)
        self._entries: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        for name in needed.names:
            shape = needed.shape(name)
            if needed.keeps_dtype(name):
                self._entries[name] = shape, np.dtype(np.float32)
            elif len(shape) == 1 or any(part in name for part in KEPT):
                self._entries[name] = shape, np.dtype(ml_dtypes.bfloat16)
            else:
                self._entries[name] = shape, np.dtype(ml_dtypes.float8_e4m3fn)
                blocks = tuple(-(-size // BLOCK) for size in shape)
                self._entries[name + SUFFIX] = blocks, np.dtype(np.float32)

    @property
    def names(self) -> tuple[str, ...]:
        """All tensors, scales included."""
        return tuple(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._entries[name][0]

    def dtype(self, name: str) -> np.dtype:
        """Stored dtype of a tensor."""
        return self._entries[name][1]

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """Nothing: there is no data."""
        raise NotImplementedError

    def count_bytes(self, name: str, rows: tuple[int, int] | None = None) -> int:
        """Bytes of a tensor or of some of its rows."""
        shape, dtype = self._entries[name]
        return math.prod(shape if rows is None else (rows[1] - rows[0], *shape[1:])) * dtype.itemsize


def tabulate() -> Iterator[str]:
    """The table, line by line."""
    files = PublishedFiles()
    total = sum(files.count_bytes(name) for name in files.names)
    yield f"{len(files.names):,} tensors, {total:,} bytes (the files with their headers: {TOTAL:,})"
    yield ""
    yield "| layout | hosts | GB a host: least | most | all hosts, of the files | without exchange: most a host |"
    yield "| --- | --- | --- | --- | --- | --- |"
    source = BlockScaled(files, (BLOCK, BLOCK))  # type: ignore[arg-type]
    make = lambda: deepseek_v3.build(CONFIG, rngs=nnx.Rngs(0), dtypes=Dtypes("bfloat16", "bfloat16"), scan_layers=True)
    model = nnx.eval_shape(make)
    for name, sizes in MESHES.items():
        mesh = make_mesh(MeshConfig(**sizes), jax.devices()[: math.prod(sizes.values())])
        hosts = [mesh.devices.ravel()[at : at + CHIPS].tolist() for at in range(0, mesh.size, CHIPS)]
        host_of = {device: host for host, devices in enumerate(hosts) for device in devices}
        with use_mesh(mesh):
            wanted = find_wanted(split(model)[1], logical_axes(model), deepseek_v3.HF_NAMES, model.counts)
        wants = list(wanted.values())
        found = [sum(count_bytes(want, source, own, host_of.__getitem__) for want in wants) for own in hosts]
        alone = sum(count_bytes(want, source, hosts[0], lambda _: 0) for want in wants)  # nobody to exchange with
        least, most, alone_gb = (f"{size / 1e9:.2f}" for size in (min(found), max(found), alone))
        yield f"| {name} | {len(hosts)} | {least} | {most} | {sum(found) / total:.3f} | {alone_gb} |"


if __name__ == "__main__":
    for line in tabulate():
        print(line, flush=True)
