"""Opening of a MODEL: a Hugging Face folder, a .gguf file, a hub name `org/name[@revision]` (weights/names.py), a
folder of adapters (weights/peft.py), or a workdir of ours, whose `model/` folder describes the model (written by
weights/export.py).

The family is the one that models/families/registry.py lists for the `model_type` of config.json.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from r1jax.core.buckets.staging import locate
from r1jax.core.checkpoint import SavedArrays, newest_checkpoint
from r1jax.core.errors import UserError
from r1jax.core.sharding import current_mesh, use_mesh
from r1jax.core.tensors.tensor_reader import open_tensors
from r1jax.models.families.hf_config import Names, check_sizes
from r1jax.models.families.registry import WRAPPERS, find_family
from r1jax.models.layers import Dtypes
from r1jax.models.presets import replace_sizes
from r1jax.models.scores import is_scored, score_family
from r1jax.models.transformer import Transformer, split
from r1jax.text.tokenizer import Tokenizer
from r1jax.weights.fp8 import dequantize
from r1jax.weights.gguf import GGUFModel
from r1jax.weights.hf import load_weights
from r1jax.weights.indexers import add_indexers, lacks_indexers
from r1jax.weights.lora_base import Adapted, holds_adapters
from r1jax.weights.names import find_model, find_revision, split_hub_name
from r1jax.weights.peft import CONFIG as ADAPTER_CONFIG
from r1jax.weights.peft import PeftAdapted, is_adapter_folder, name_base, read_adapter_config
from r1jax.weights.pieces import Source
from r1jax.weights.saved import SavedModel
from r1jax.weights.views.fused import open_parts
from r1jax.weights.views.nested import find_text, find_text_config

log = logging.getLogger(__name__)

DESCRIPTION = "model"  # folder of a workdir with config.json and tokenizer files of the trained model
PROMPTING_FILE = "prompting.json"  # in that folder, and in one exported from it: how the run asks (eval/prompting.py)
SOURCE = "source.json"  # file in it, where the run started from a model of the hub: its name and revision


def load_pretrained(
    path: str | pathlib.Path,
    *,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    fetch: str = "",
    sizes: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[Transformer, Tokenizer | None]:
    """Loads a MODEL and its tokenizer (None where the folder has none).

    dtype: of parameters and computation; `options` may set `dtypes` (both separately), `scan_layers` and `remat`. mesh:
    where the weights are placed (default: the enclosing `use_mesh`, else the first device). fetch: the command that
    creates `path`, for the message. sizes: changes of the config that fit the same weights. Raises UserError, naming
    file and tensor, for anything missing, truncated or unknown.
    """
    if mesh is not None and mesh is not current_mesh():
        with use_mesh(mesh):
            return load_pretrained(path, dtype=dtype, fetch=fetch, sizes=sizes, **options)
    opened = open_model(path, fetch=fetch)
    family = opened.family
    if revision := find_revision(opened.path):
        log.info("%s: revision %s of the hub", path, revision)
    if "dispatch" in options and not hasattr(opened.config, "num_experts"):
        raise UserError(f"{path}: a model without experts has no dispatch, got {options['dispatch'].way!r}")
    dtypes = options.pop("dtypes", Dtypes(dtype, dtype))
    config = replace_sizes(opened.config, sizes or {})
    make = lambda config: family.build(config, rngs=nnx.Rngs(0), dtypes=dtypes, **options)
    if not lacks_indexers(config, family.HF_NAMES, opened.source):
        return load_weights(lambda: make(config), family.HF_NAMES, opened.source), opened.read_tokenizer()
    log.info("%s: the files lack the indexers of sparse attention; drawing fresh ones", path)
    plain = load_weights(lambda: make(dataclasses.replace(config, index=None)), family.HF_NAMES, opened.source)
    model = add_indexers(split(plain)[1], lambda: make(config), config.initializer_std)
    return model, opened.read_tokenizer()


@dataclasses.dataclass(frozen=True)
class Opened:
    """A MODEL of which only headers have been read.

    source: tensors by Hugging Face name. hf: content of config.json. folder: location of the tokenizer files (None: the
    vocabulary is in the GGUF header). base: of adapters whose folder has a tokenizer of its own, the model under them,
    whose stop ids hold too.
    """

    path: pathlib.Path
    source: Any
    family: ModuleType
    config: Any
    hf: dict[str, Any]
    folder: pathlib.Path | None
    base: Opened | None = None

    def read_tokenizer(self) -> Tokenizer | None:
        """The tokenizer, or None if there is none."""
        if self.folder is None:  # GGUF: the vocabulary is in the header
            return Tokenizer.from_gguf(self.source.metadata)
        tokenizer = Tokenizer.from_path(self.folder)
        under = self.base.read_tokenizer() if self.base is not None else None
        if tokenizer is None or under is None:
            return tokenizer
        return dataclasses.replace(tokenizer, eos_ids=tuple(dict.fromkeys(tokenizer.eos_ids + under.eos_ids)))


def open_model(path: str | pathlib.Path, *, fetch: str = "") -> Opened:
    """Opens a MODEL: a folder, a .gguf file, a hub name, a workdir of a run or one of its checkpoints, or a folder of
    adapters.

    Raises UserError, naming file and tensor, for anything missing, truncated or unknown.
    """
    path = find_model(path, fetch)
    if is_adapter_folder(path):
        return _open_adapters(path)
    find_source: Callable[[ModuleType, Any], Any]
    if path.suffix == ".gguf":
        gguf = GGUFModel(open_tensors(path))
        with _check_values(f"{path}: the header"):
            hf, folder, find_source = gguf.config(), None, lambda *_: gguf
    elif (step := find_step(path)) is not None:
        folder = step.parents[1] / DESCRIPTION
        hf, find_source = _read_json(folder / "config.json"), lambda *shape: _open_run(step, *shape)
    else:
        hf = find_text_config(_read_json(path / "config.json"), WRAPPERS)
        folder, find_source = path, lambda *_: dequantize(find_text(open_tensors(path)), hf)
    family = find_family(hf.get("model_type"), path)
    family = score_family(family) if is_scored(hf) else family
    try:
        with _check_values("config.json"):
            check_sizes(hf)
            config = family.from_hf(hf)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    source = find_source(family, config)
    source = source if isinstance(source, SavedModel | Adapted) else open_parts(source, family, config)
    _check_layers(config, family.HF_NAMES, source, path)
    return Opened(path, source, family, drop_absent_depths(config, family.HF_NAMES, source), hf, folder)


@contextlib.contextmanager
def _check_values(what: str) -> Iterator[None]:
    """Makes a UserError of the errors that values of a wrong kind cause."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"{what} lacks the key {str(error)[:200]}") from None
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(f"{what} is broken ({type(error).__name__}: {text})") from None


def _open_adapters(folder: pathlib.Path) -> Opened:
    """Adapters on the model that their config names; a relative path begins in the current folder."""
    config = read_adapter_config(folder)
    try:
        base = open_model(name_base(config))
    except UserError as error:
        raise UserError(f"{folder / ADAPTER_CONFIG}: base_model_name_or_path: {error}") from None
    source = PeftAdapted(base.source, folder, config)
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        return dataclasses.replace(base, path=folder, source=source)
    hf = base.hf if base.folder is not None else base.family.to_hf(base.config)
    return dataclasses.replace(base, path=folder, source=source, hf=hf, folder=folder, base=base)


def _open_run(step: pathlib.Path, family: ModuleType, config: Any) -> Any:
    """Tensors of a checkpoint; adapters are added to the model that the run started from."""
    saved = SavedArrays(step)
    if not holds_adapters(saved):
        return SavedModel(family, saved)
    run = _read_json(step.parents[1] / "config.json")
    model, lora = run.get("model") or run["student"], run["lora"]
    if model.get("preset") or model.get("layers"):
        raise UserError(
            f"{step}: the base model of these adapters is not in a file (config.model.preset or config.model.layers)"
        )
    name = name_origin(model, step.parents[1] / DESCRIPTION)
    base = open_model(name, fetch=model.get("fetch", ""))
    return Adapted(base.source, saved, family, config, rank=lora["rank"], alpha=lora["alpha"], base_name=name)


def name_origin(model: dict[str, Any], description: pathlib.Path) -> str:
    """Name of the model that a run with adapters started from, of its section of config.json; of a hub name the
    revision that the run used.
    """
    name = model.get("name") or model.get("path") or model.get("hub", "")  # the latter two: before 0.2.0
    revision = read_revision(description)
    hub = split_hub_name(name)
    return f"{hub[0]}@{revision}" if hub and revision and not pathlib.Path(name).exists() else name


def write_revision(name: str, description: pathlib.Path) -> None:
    """Writes the revision of a hub name that is used, for runs that go on later; nothing for a local MODEL."""
    if not pathlib.Path(name).exists() and (revision := find_revision(find_model(name))):
        (description / SOURCE).write_text(json.dumps({"name": name, "revision": revision}, indent=2) + "\n", "utf-8")


def read_revision(description: pathlib.Path) -> str:
    """The revision that a run started from, of its `model/` folder; "" for a local MODEL."""
    return _read_json(description / SOURCE)["revision"] if (description / SOURCE).exists() else ""


def find_description(path: pathlib.Path) -> pathlib.Path:
    """Folder with config.json and tokenizer files of a local MODEL: the model folder itself, or `model/` of its run."""
    step = find_step(path)
    return path if step is None else step.parents[1] / DESCRIPTION


def find_step(path: pathlib.Path) -> pathlib.Path | None:
    """Checkpoint folder of a workdir (the newest) or of a path inside its checkpoints/; None for other paths.

    Raises UserError for a workdir without a checkpoint.
    """
    if path.parent.name == "checkpoints" and path.name.isdecimal():
        return path
    if not (locate(path) / "checkpoints").is_dir():
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


def _check_layers(config: Any, names: Names, source: Source, path: pathlib.Path) -> None:
    """Raises UserError if the files hold no tensor of the last layer, before so many layers are built."""
    theirs = [name for ours, (name, _) in names.items() if not ours.startswith("mtp.") and "{" in name]
    last = config.num_layers - 1
    if theirs and not any(name.format(last, 0) in source for name in theirs):
        raise UserError(
            f"{path}: config.json says num_hidden_layers={last + 1}, but the files hold no tensor of the last layer"
        )


def drop_absent_depths(config: Any, names: Names, source: Source) -> Any:
    """The config without its prediction depths, if the files hold none of their tensors."""
    depths = getattr(config, "mtp_depths", 0)
    theirs = [name for ours, (name, _) in names.items() if ours.startswith("mtp.")]
    number = lambda name, depth: depth + (config.num_layers if name.startswith("model.") else 0)
    if not depths or any(name.format(number(name, i), 0) in source for i in range(depths) for name in theirs):
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
