"""Export of a model as a Hugging Face folder that transformers and vLLM load: config.json, safetensors, tokenizer
files, generation_config.json.

`export_model` writes parameters in memory, in either layout and on any mesh; `convert` streams the tensors of any MODEL
without building its parameters. Both write exactly the tensors that the shape needs, into a temporary folder that is
renamed at the end, so a folder under the final name is complete.
"""

from __future__ import annotations

import collections
import contextlib
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from r1jax.core import distributed
from r1jax.core.errors import UserError
from r1jax.core.outputs.ownership import check_writable
from r1jax.models.scores import is_scored, mark_scored, score_family
from r1jax.models.transformer import Params
from r1jax.text.tokenizer import Tokenizer
from r1jax.weights.lora_base import Adapted
from r1jax.weights.parameters import Parameters, family_of, of_arrays, of_shape
from r1jax.weights.peft import CONFIG as ADAPTER_CONFIG
from r1jax.weights.peft import write_adapters
from r1jax.weights.pieces import check_tensor
from r1jax.weights.pretrained import PROMPTING_FILE, Opened, open_model
from r1jax.weights.safetensors_writer import SHARD_BYTES, Spec, fill_tensors, write_tensors
from r1jax.weights.saved import SavedModel
from r1jax.weights.views.fused import find_rules, join_read, join_specs, open_part

DTYPES = ("float32", "bfloat16", "float16")
# Files of a model folder besides its config and weights.
SIDECARS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    PROMPTING_FILE,
)


def export_model(
    config: Any,
    params: Params,
    tokenizer: Tokenizer | None,
    folder: str | pathlib.Path,
    *,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes parameters of the shape `config` (of any family) as the new `folder`.

    dtype: of floating tensors, except the router's correction bias; None: unchanged. Every process must call it.
    """
    family = score_family(family_of(config)) if "score" in params else family_of(config)
    tensors, rules = of_arrays(family, params), find_rules(family, config)
    specs = join_specs(choose_specs(tensors, tensors.dtype, dtype), rules)
    with new_folder(folder) as target:
        write_tensors(target, specs, join_read(tensors.read, rules), shard_bytes=shard_bytes)
        if target is not None:
            # Without the key transformers takes the family's padding token, which a small vocabulary lacks.
            _write_description(target, {**family.to_hf(config), "pad_token_id": None}, tokenizer, specs)


def convert(
    source: str | pathlib.Path,
    folder: str | pathlib.Path,
    *,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    files: Mapping[str, str] | None = None,
) -> dict[str, Spec]:
    """Writes any MODEL as the new `folder`, tensor by tensor, a checkpoint of ours chunk by chunk; returns the tensors
    that were written.

    dtype: of floating tensors, except the router's correction bias; None: each tensor keeps its own, 8-bit blocks
    become bfloat16 and GGUF's quantized blocks float32. files: further texts by file name. Raises UserError, naming
    file and tensor, for anything missing, truncated or unknown, and for an existing folder.
    """
    check_new(folder)
    opened = open_model(source)
    needed, tensors = of_shape(opened.family, opened.config), opened.source
    stored = {name: name if name in tensors else needed.original(name) for name in needed.names}
    for name, theirs in stored.items():
        check_tensor(tensors, theirs, needed.shape(name))
    rules = find_rules(opened.family, opened.config)
    parts = choose_specs(needed, lambda name: tensors.dtype(stored[name]), dtype)
    specs = join_specs(parts, rules)
    with new_folder(folder) as target:
        if target is not None:
            if isinstance(tensors, SavedModel):
                fill = lambda open_tensor: tensors.fill(parts, open_part(open_tensor, rules))
                fill_tensors(target, specs, fill, shard_bytes=shard_bytes)
            else:
                read = join_read(lambda name: tensors.read(stored[name]), rules)
                write_tensors(target, specs, read, shard_bytes=shard_bytes)
            describe(opened, target, specs)
            if is_scored(opened.hf):
                mark_folder(target)
            for name, text in (files or {}).items():
                (target / name).write_text(text, "utf-8")
    return specs


def convert_adapters(
    source: str | pathlib.Path, folder: str | pathlib.Path, *, files: Mapping[str, str] | None = None
) -> dict[str, Spec]:
    """Writes the adapters of a run as the new `folder`, which peft and vLLM load, with the tokenizer files; returns the
    tensors that were written.

    Raises UserError for a MODEL without adapters of its own.
    """
    check_new(folder)
    opened = open_model(source)
    if not isinstance(opened.source, Adapted):
        raise UserError(f"--adapter needs the workdir of a run that trained adapters (config.lora.rank), got {source}")
    with new_folder(folder) as target:
        specs = write_adapters(opened.source, target)
        if target is not None:
            _copy_sidecars(opened, target)
            for name, text in (files or {}).items():
                (target / name).write_text(text, "utf-8")
    return specs


def describe_shape(
    config: Any, tokenizer: Tokenizer | None, folder: pathlib.Path, specs: Mapping[str, Spec] | None = None
) -> None:
    """Like `describe`, for a shape without source files."""
    _write_description(folder, family_of(config).to_hf(config), tokenizer, specs)


def describe(opened: Opened, folder: pathlib.Path, specs: Mapping[str, Spec] | None = None) -> None:
    """Writes the files of a model folder except its weights: config.json, tokenizer files, generation_config.json.

    specs: of the weights; their dtype goes into config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hf = dict(opened.hf) if opened.folder is not None else opened.family.to_hf(opened.config)
    hf.pop("quantization_config", None)
    for key in ("num_nextn_predict_layers", "mtp_num_hidden_layers"):
        if hf.get(key):
            hf[key] = opened.config.mtp_depths
    if opened.folder is not None:
        _copy_sidecars(opened, folder)
        tokenizer = None
    else:
        tokenizer = opened.read_tokenizer()
    _write_description(folder, hf, tokenizer, specs)


def mark_folder(folder: pathlib.Path) -> None:
    """Makes the description of a model that of a reward model: its config.json names the score, and the padding token
    by which transformers finds the last token of a text.
    """
    file = folder / "config.json"
    hf = mark_scored(json.loads(file.read_text("utf-8")))
    if hf.get("pad_token_id") is None:
        tokenizer = Tokenizer.from_path(folder)
        known = [] if tokenizer is None else [tokenizer.declared_pad_id, *tokenizer.eos_ids]
        hf |= {"pad_token_id": next((token for token in known if token is not None), None)}
    file.write_text(json.dumps(hf, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _copy_sidecars(opened: Opened, folder: pathlib.Path) -> None:
    """Copies tokenizer files and generation_config.json; the latter from the base where adapters have none."""
    for place in (opened.base.folder if opened.base is not None else None, opened.folder):
        for name in SIDECARS if place == opened.folder else ("generation_config.json",):
            if place is not None and (place / name).exists():
                shutil.copyfile(place / name, folder / name)


def _write_description(
    folder: pathlib.Path, hf: dict[str, Any], tokenizer: Tokenizer | None, specs: Mapping[str, Spec] | None
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    ids = {key: hf[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if hf.get(key) is not None}
    if tokenizer is not None:
        tokenizer.save(folder, max_length=hf.get("max_position_embeddings"))
        known = {
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": list(tokenizer.eos_ids),
            "pad_token_id": tokenizer.declared_pad_id,
        }
        ids = {key: value for key, value in known.items() if value not in (None, [])}
        hf |= ids
    if specs:
        counts: collections.Counter[str] = collections.Counter()
        for spec in specs.values():
            counts[str(spec.dtype)] += spec.size
        hf["dtype" if "dtype" in hf else "torch_dtype"] = counts.most_common(1)[0][0]
    files = {} if (folder / "generation_config.json").exists() else {"generation_config.json": ids}
    for name, content in {**files, "config.json": hf}.items():  # config.json last: if it exists, the rest does
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def choose_specs(needed: Parameters, stored: Callable[[str], np.dtype], dtype: str | None) -> dict[str, Spec]:
    """Shape and dtype of each tensor to write: its stored dtype, or `dtype` where it may change."""
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")

    def choose(name: str) -> np.dtype:
        changes = dtype is not None and not needed.keeps_dtype(name) and jnp.issubdtype(stored(name), jnp.floating)
        return np.dtype(jnp.dtype(dtype)) if changes else stored(name)

    return {name: Spec(needed.shape(name), choose(name)) for name in needed.names}


def check_new(folder: str | pathlib.Path) -> None:
    """Raises UserError if the folder exists already."""
    if not str(folder):
        raise UserError("DST is empty; name a new folder")
    check_writable(pathlib.Path(folder), flag="DST")
    folder = pathlib.Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists already; name a new folder")


def _remove_partial(folder: pathlib.Path) -> None:
    """Removes what an earlier export that was killed left. Raises UserError for a folder with files of another hand."""
    ours = {*SIDECARS, "config.json", "README.md", "model.safetensors.index.json", ADAPTER_CONFIG}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not file.is_file() or file.name not in ours and file.suffix != ".safetensors":
            raise UserError(f"{folder} is in the way of the export and holds {file.name}: move it away")
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def new_folder(folder: str | pathlib.Path) -> Iterator[pathlib.Path | None]:
    """A temporary folder that is renamed to `folder` on success; None in a process that does not write."""
    check_new(folder)
    target = pathlib.Path(folder).absolute()
    partial = target.with_name(f".{target.name}.partial")
    if not distributed.is_writer():
        yield None
    else:
        _remove_partial(partial)
        try:
            partial.mkdir(parents=True)
            yield partial
            partial.replace(target)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    distributed.wait("export")
