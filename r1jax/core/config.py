"""Config files: a Python file that returns a `ConfigDict`, and its typed arguments.

A run is one file with a function `get_config(arg)`, which names the values that differ from the stage's defaults. Typed
arguments after a colon (`configs/x.py:size=tiny,steps=20`) are passed to `get_config` and may change many values at
once; each has the type of its default. The settings of a run are resolved once, from the stage's dataclasses, this file
and the flags (core/resolution.py), and nothing after that sees a `ConfigDict`.

Left out: YAML, inheritance between files (a config may import Python), and command lines (`r1jax/train.py` has that).
Nothing here imports jax. The form of config files is that of big_vision and nanodo.
"""

import importlib.util
import pathlib
import traceback
import types
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from r1jax.core.errors import UserError
from r1jax.core.sections import NONES, parse_text, suggest

PACKAGE = pathlib.Path(__file__).resolve().parents[1]
SHIPPED = (PACKAGE / "configs", PACKAGE.parent / "configs")  # in a wheel; in the repository


def parse_args(arg: str | None, **defaults: Any) -> ConfigDict:
    """The arguments of a config file: `"a=1,b=x"` over `defaults`, each typed as its default; a bare `a` sets a bool.

    Raises:
      UserError: for an argument that is not among the defaults, or whose text does not fit the default's type.
    """
    values = dict(defaults)
    for part in filter(None, (part.strip() for part in (arg or "").split(","))):
        name, has_value, text = (piece.strip() for piece in part.partition("="))
        if name not in defaults:
            known = ", ".join(f"{key}={value}" for key, value in defaults.items()) or "none"
            raise UserError(
                f'unknown config argument "{name}"{suggest(name, defaults)} (known, with defaults: {known})'
            )
        if not has_value and not isinstance(defaults[name], bool):
            raise UserError(f'config argument "{name}" needs a value: {name}=...')
        values[name] = _parse(text if has_value else "true", defaults[name], f"argument {name}")
    return ConfigDict(values)


def _parse(text: str, default: Any, where: str) -> Any:
    if text.lower() in NONES and not isinstance(default, (str, bool)):
        return None
    return parse_text(text, Any if default is None else type(default), where, default)


def load_config(spec: str) -> ConfigDict:
    """The locked config of `path.py` or `path.py:a=1,b=x`.

    Raises:
      UserError: for a missing file, a file without `get_config`, an unknown argument, or an error in the file.
    """
    path, has_arg, arg = spec.partition(":")
    path = str(find_config(path))
    try:
        get_config = _load_function(path)
        config = get_config(arg) if has_arg or get_config.__code__.co_argcount else get_config()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UserError(_describe(path, error)) from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config must return an ml_collections.ConfigDict, got {type(config).__name__}")
    return config.lock()


def find_config(path: str) -> pathlib.Path:
    """The file at `path`, or, where there is none, the config of that name that r1jax came with: `configs/X.py` and
    `X.py` name it in any folder. Raises UserError if there is neither.
    """
    file = pathlib.Path(path)
    if file.suffix == ".py":
        if file.is_file():
            return file
        if file.parent in (pathlib.Path("configs"), pathlib.Path()):
            for folder in SHIPPED:
                if (folder / file.name).is_file():
                    return folder / file.name
    known = sorted({shipped.name for folder in SHIPPED for shipped in folder.glob("*.py")})
    raise UserError(
        f'no such config file: "{path}" (expected a .py file, as in --config=configs/grpo_zero.py; shipped: '
        f"{', '.join(known)})"
    )


def find_shipped(path: str) -> str:
    """`path`, such as `configs/data/sums.jsonl`, if it exists here, else that file where r1jax came with it."""
    if pathlib.Path(path).exists():
        return path
    places = [folder.parent / path for folder in SHIPPED]
    return str(next((place for place in places if place.exists()), path))


def _load_function(path: str) -> Callable[..., Any]:
    file_spec = importlib.util.spec_from_file_location("r1jax_config", path)
    assert file_spec is not None and file_spec.loader is not None
    module = importlib.util.module_from_spec(file_spec)
    file_spec.loader.exec_module(module)
    if not isinstance(getattr(module, "get_config", None), types.FunctionType):
        raise UserError("a config file must define a function get_config(arg)")
    return module.get_config


def _describe(path: str, error: BaseException) -> str:
    """`FILE:LINE: Type: message` of an error inside a config file."""
    message = " ".join(str(error).split())
    if isinstance(error, SyntaxError):
        return f"{error.filename or path}:{error.lineno}: SyntaxError: {error.msg}"
    own = pathlib.Path(path).resolve()
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if pathlib.Path(f.filename).resolve() == own]
    return f"{path}:{lines[-1] if lines else '?'}: {type(error).__name__}: {message}"
