"""A model by path: a Hugging Face folder, a .gguf file, a hub name (through huggingface_hub and its cache), or a run of
ours, whose workdir describes the model it trains in a folder `model/` (weights/export.py writes it).

The family is the one that models/families/registry.py names for the `model_type` of config.json.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from r1jax.core.checkpoint import SavedArrays, newest_checkpoint
from r1jax.core.errors import UserError
from r1jax.core.sharding import current_mesh, use_mesh
from r1jax.core.tensor_reader import open_tensors
from r1jax.models.families.hf_config import Names
from r1jax.models.families.registry import find_family
from r1jax.models.layers import Dtypes
from r1jax.models.transformer import Transformer
from r1jax.text.tokenizer import Tokenizer
from r1jax.weights.fp8 import dequantize
from r1jax.weights.gguf import GGUFModel
from r1jax.weights.hf import Source, load_weights
from r1jax.weights.lora_base import Adapted, holds_adapters
from r1jax.weights.parameters import of_checkpoint

log = logging.getLogger(__name__)

DESCRIPTION = "model"  # of a workdir: config.json and tokenizer files of the model that it trains


def load_pretrained(
    path: str | pathlib.Path,
    *,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    hub: str = "",
    fetch: str = "",
    **options: Any,
) -> tuple[Transformer, Tokenizer | None]:
    """(model, tokenizer) from MODEL; the tokenizer is None where the folder holds none.

    dtype: of parameters and computation; `options` may name `dtypes` (both apart), `scan_layers` and `remat`.
    mesh: where the weights go (default: the enclosing `use_mesh`, else the first device).
    hub: a hub name to take where `path` is absent; fetch: the command that gets `path`, for the message.
    Raises UserError, naming file and tensor, for anything missing, cut off or unknown.
    """
    if mesh is not None and mesh is not current_mesh():
        with use_mesh(mesh):
            return load_pretrained(path, dtype=dtype, hub=hub, fetch=fetch, **options)
    opened = open_model(path, hub=hub, fetch=fetch)
    family = opened.family
    if "dispatch" in options and not hasattr(opened.config, "num_experts"):
        raise UserError(f"{path}: a model without experts has no dispatch, got {options['dispatch'].way!r}")
    dtypes = options.pop("dtypes", Dtypes(dtype, dtype))
    make = lambda: family.build(opened.config, rngs=nnx.Rngs(0), dtypes=dtypes, **options)
    model = load_weights(make, family.HF_NAMES, opened.source)
    return model, opened.read_tokenizer()


@dataclasses.dataclass(frozen=True)
class Opened:
    """A MODEL of which nothing but headers is read.

    source: its tensors by the hub's names. hf: what its config.json says. folder: where its tokenizer files are (None:
    in the GGUF's header).
    """

    path: pathlib.Path
    source: Any
    family: ModuleType
    config: Any
    hf: dict[str, Any]
    folder: pathlib.Path | None

    def read_tokenizer(self) -> Tokenizer | None:
        """The tokenizer, None where there is none."""
        if self.folder is None:  # its vocabulary is in the header, which is open already
            return Tokenizer.from_gguf(self.source.metadata)
        return Tokenizer.from_path(self.folder)


def open_model(path: str | pathlib.Path, *, hub: str = "", fetch: str = "") -> Opened:
    """Opens MODEL: a folder, a .gguf file, a hub name, a workdir of a run or one of its checkpoints.

    Raises UserError, naming file and tensor, for anything missing, cut off or unknown.
    """
    path = find_model(path, hub, fetch)
    find_source: Callable[[ModuleType, Any], Any]
    if path.suffix == ".gguf":
        gguf = GGUFModel(open_tensors(path))
        hf, folder, find_source = gguf.config(), None, lambda *_: gguf
    elif (step := find_step(path)) is not None:
        folder = step.parents[1] / DESCRIPTION
        hf, find_source = _read_json(folder / "config.json"), lambda *shape: _open_run(step, *shape)
    else:
        hf, folder, find_source = _read_json(path / "config.json"), path, lambda *_: dequantize(open_tensors(path), hf)
    family = find_family(hf.get("model_type"), path)
    try:
        config = family.from_hf(hf)
    except KeyError as error:
        raise UserError(f"{path}: config.json lacks the key {error}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    source = find_source(family, config)
    return Opened(path, source, family, drop_absent_depths(config, family.HF_NAMES, source), hf, folder)


def _open_run(step: pathlib.Path, family: ModuleType, config: Any) -> Any:
    """The tensors of a checkpoint; where it holds adapters, added to those of the model that its run began from."""
    saved = SavedArrays(step)
    if not holds_adapters(saved):
        return of_checkpoint(family, saved)
    run = _read_json(step.parents[1] / "config.json")
    model, lora = run.get("model") or run["student"], run["lora"]
    if model.get("preset") or model.get("layers"):
        raise UserError(f"{step}: adapters of a model that no file holds (config.model.preset, config.model.layers)")
    base = open_model(model["path"], hub=model.get("hub", ""), fetch=model.get("fetch", ""))
    return Adapted(base.source, saved, family, config, lora["alpha"] / lora["rank"])


def find_description(path: pathlib.Path) -> pathlib.Path:
    """The folder that holds config.json and tokenizer files of a local MODEL: itself, or that of its run."""
    step = find_step(path)
    return path if step is None else step.parents[1] / DESCRIPTION


def find_step(path: pathlib.Path) -> pathlib.Path | None:
    """The checkpoint that a workdir (its newest) or a folder in its checkpoints/ means; None for what is neither.

    Raises UserError for a workdir that has none yet.
    """
    if path.parent.name == "checkpoints" and path.name.isdigit():
        return path
    if not (path / "checkpoints").is_dir():
        return None
    newest = newest_checkpoint(path)
    if newest is None:
        raise UserError(f"{path}: a run that has saved no checkpoint yet")
    return newest


def require_tokenizer(tokenizer: Tokenizer | None, path: str | pathlib.Path) -> Tokenizer:
    """The tokenizer, where a run needs one. Raises UserError if the model has none."""
    if tokenizer is None:
        raise UserError(f"{path} holds no tokenizer, which config.model needs for text")
    return tokenizer


def find_model(path: str | pathlib.Path, hub: str = "", fetch: str = "") -> pathlib.Path:
    """The local folder or file of MODEL, or of the hub name `hub` where it is absent, fetched if need be.

    Raises UserError if there is none, naming the command `fetch` that gets it, if one is known.
    """
    local, text = pathlib.Path(path), str(path)
    if local.exists():
        return local
    cure = f"; `{fetch}` fetches it" if fetch else ""
    is_name = text.count("/") == 1 and not text.startswith((".", "/", "~")) and local.suffix != ".gguf"
    name = hub or (text if is_name else "")
    if not name:
        raise UserError(f"no such model file or folder: {text}{cure}")
    try:
        return _download(name)
    except Exception as error:  # the hub's errors have no common base; each of them means: not to be had
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        missing = f"no model at {text}, and " if hub else ""
        raise UserError(f"{missing}{name} cannot be had from the hub ({reason}){cure}") from None


def _download(name: str) -> pathlib.Path:
    """A hub name's folder in the local cache; what is there already is not asked for again."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]
    try:
        folder = pathlib.Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
        open_tensors(folder)  # a cache may hold only what another program asked for, or what a broken download left
        return folder
    except (FileNotFoundError, UserError):  # LocalEntryNotFoundError: not in the cache
        return pathlib.Path(snapshot_download(name, allow_patterns=patterns))


def drop_absent_depths(config: Any, names: Names, source: Source) -> Any:
    """The config without prediction depths, if it announces some of which the files hold no tensor at all."""
    depths = getattr(config, "mtp_depths", 0)
    theirs = [name for ours, (name, _) in names.items() if ours.startswith("mtp.")]
    layers = range(config.num_layers, config.num_layers + depths)
    if not depths or any(name.format(layer, 0) in source for layer in layers for name in theirs):
        return config
    log.info("%s: the %d prediction depths that the config announces are not in the files", source.path, depths)
    return dataclasses.replace(config, mtp_depths=0)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path.parent}: not a model folder, {path.name} is missing") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
