"""Opening of a MODEL: a Hugging Face folder, a .gguf file, a hub name (through huggingface_hub and its cache), or a
workdir of ours, whose `model/` folder describes the model (written by weights/export.py).

The family is the one that models/families/registry.py lists for the `model_type` of config.json.
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
from r1jax.models.families.hf_config import Names, check_sizes
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

DESCRIPTION = "model"  # folder of a workdir with config.json and tokenizer files of the trained model
PROMPTING_FILE = "prompting.json"  # in that folder, and in one exported from it: how the run asks (eval/prompting.py)


def load_pretrained(
    path: str | pathlib.Path,
    *,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    hub: str = "",
    fetch: str = "",
    **options: Any,
) -> tuple[Transformer, Tokenizer | None]:
    """Loads a MODEL and its tokenizer (None where the folder has none).

    dtype: of parameters and computation; `options` may set `dtypes` (both separately), `scan_layers` and `remat`. mesh:
    where the weights are placed (default: the enclosing `use_mesh`, else the first device). hub: a hub name to use
    where `path` does not exist; fetch: the command that creates `path`, for the message. Raises UserError, naming file
    and tensor, for anything missing, truncated or unknown.
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
    """A MODEL of which only headers have been read.

    source: tensors by Hugging Face name. hf: content of config.json. folder: location of the tokenizer files (None: the
    vocabulary is in the GGUF header).
    """

    path: pathlib.Path
    source: Any
    family: ModuleType
    config: Any
    hf: dict[str, Any]
    folder: pathlib.Path | None

    def read_tokenizer(self) -> Tokenizer | None:
        """The tokenizer, or None if there is none."""
        if self.folder is None:  # GGUF: the vocabulary is in the header
            return Tokenizer.from_gguf(self.source.metadata)
        return Tokenizer.from_path(self.folder)


def open_model(path: str | pathlib.Path, *, hub: str = "", fetch: str = "") -> Opened:
    """Opens a MODEL: a folder, a .gguf file, a hub name, a workdir of a run or one of its checkpoints.

    Raises UserError, naming file and tensor, for anything missing, truncated or unknown.
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
        check_sizes(hf)
        config = family.from_hf(hf)
    except KeyError as error:
        raise UserError(f"{path}: config.json lacks the key {error}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
        raise UserError(f"{path}: config.json is broken ({type(error).__name__}: {str(error)[:200]})") from None
    source = find_source(family, config)
    return Opened(path, source, family, drop_absent_depths(config, family.HF_NAMES, source), hf, folder)


def _open_run(step: pathlib.Path, family: ModuleType, config: Any) -> Any:
    """Tensors of a checkpoint; adapters are added to the model that the run started from."""
    saved = SavedArrays(step)
    if not holds_adapters(saved):
        return of_checkpoint(family, saved)
    run = _read_json(step.parents[1] / "config.json")
    model, lora = run.get("model") or run["student"], run["lora"]
    if model.get("preset") or model.get("layers"):
        raise UserError(
            f"{step}: the base model of these adapters is not in a file (config.model.preset or config.model.layers)"
        )
    base = open_model(model["path"], hub=model.get("hub", ""), fetch=model.get("fetch", ""))
    return Adapted(base.source, saved, family, config, lora["alpha"] / lora["rank"])


def find_description(path: pathlib.Path) -> pathlib.Path:
    """Folder with config.json and tokenizer files of a local MODEL: the model folder itself, or `model/` of its run."""
    step = find_step(path)
    return path if step is None else step.parents[1] / DESCRIPTION


def find_step(path: pathlib.Path) -> pathlib.Path | None:
    """Checkpoint folder of a workdir (the newest) or of a path inside its checkpoints/; None for other paths.

    Raises UserError for a workdir without a checkpoint.
    """
    if path.parent.name == "checkpoints" and path.name.isdigit():
        return path
    if not (path / "checkpoints").is_dir():
        return None
    newest = newest_checkpoint(path)
    if newest is None:
        raise UserError(f"{path}: this run has not saved a checkpoint yet")
    return newest


def require_tokenizer(tokenizer: Tokenizer | None, path: str | pathlib.Path) -> Tokenizer:
    """Returns the tokenizer. Raises UserError if the model has none."""
    if tokenizer is None:
        raise UserError(f"{path} has no tokenizer, which config.model needs for text")
    return tokenizer


def find_model(path: str | pathlib.Path, hub: str = "", fetch: str = "") -> pathlib.Path:
    """Local folder or file of a MODEL, or of the hub name `hub` where it does not exist, downloaded if necessary.

    Raises UserError if there is none; the message names the command `fetch` if one is given.
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
    except Exception as error:  # the hub's errors have no common base; each means that the model is unavailable
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        missing = f"no model at {text}, and " if hub else ""
        raise UserError(f"{missing}cannot get {name} from the hub ({reason}){cure}") from None


def find_local_hub(name: str) -> pathlib.Path | None:
    """The folder of a hub name in the local cache, or None where its config.json is not there; fetches nothing."""
    from huggingface_hub import try_to_load_from_cache

    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        return None
    try:
        found = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no name that a hub could have
        return None
    return pathlib.Path(found).parent if isinstance(found, str) else None


def _download(name: str) -> pathlib.Path:
    """Folder of a hub name in the local cache; a complete copy is not requested again."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]
    try:
        folder = pathlib.Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
        open_tensors(folder)  # the cache may hold other files only, or an interrupted download
        return folder
    except (FileNotFoundError, UserError):  # LocalEntryNotFoundError: not in the cache
        return pathlib.Path(snapshot_download(name, allow_patterns=patterns))


def drop_absent_depths(config: Any, names: Names, source: Source) -> Any:
    """The config without its prediction depths, if the files hold none of their tensors."""
    depths = getattr(config, "mtp_depths", 0)
    theirs = [name for ours, (name, _) in names.items() if ours.startswith("mtp.")]
    layers = range(config.num_layers, config.num_layers + depths)
    if not depths or any(name.format(layer, 0) in source for layer in layers for name in theirs):
        return config
    log.info(
        "%s: the files lack the %d prediction depths (MTP) of the config; loading without them", source.path, depths
    )
    return dataclasses.replace(config, mtp_depths=0)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path.parent}: not a model folder, {path.name} is missing") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({str(error)[:200]})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a JSON object, got {type(content).__name__}")
    return content
