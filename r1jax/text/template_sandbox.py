"""Sandbox of chat templates: Jinja's own, plus bounds on the cost of a rendering.

A template comes with a model's files, so it may be hostile. Jinja's immutable sandbox keeps it from the interpreter
(since version 3.1.6, which closes the known escapes). Huge powers and repetitions are rejected before they are
computed, the text is bounded, and a rendering is ended from another thread after TIME_LIMIT seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from r1jax.core.errors import UserError

TIME_LIMIT = 20.0  # seconds of one rendering
TEXT_LIMIT = 20_000_000  # characters of its text
SIZE_LIMIT = 10_000_000  # items of a repeated sequence; bits of a power


_WIDTH = re.compile(r"[%{:.][^a-zA-Z%{}]{0,20}[0-9]{6,}")  # of a format, or its precision


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox with bounded powers, products, sums and formats, and text methods and filters whose
    numbers are bounded.
    """

    intercepted_binops = frozenset(("**", "*", "+", "%"))

    def __init__(self, **options: Any):
        super().__init__(**options)
        for name in ("center", "indent", "replace", "format", "wordwrap", "batch", "slice", "truncate"):
            self.filters[name] = _bound(name, self.filters[name])

    def call(self, context: Any, function: Any, *arguments: Any, **named: Any) -> Any:
        """Calls a function. Raises TemplateError for a method of a text whose result would be huge."""
        method = getattr(function, "__wrapped__", function)  # Jinja wraps `format` of a text
        owner = getattr(method, "__self__", None)
        if isinstance(owner, (str, bytes)):
            _check_arguments(method.__name__, (owner, *arguments, *named.values()))
        return super().call(context, function, *arguments, **named)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Computes `left operator right`. Raises TemplateError for a huge result."""
        if operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            if len(left) + len(right) > SIZE_LIMIT:
                raise jinja2.TemplateError("a text or list is too long")
        elif operator == "%" and isinstance(left, str):
            _check_arguments("%", (left,))
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            if right > 0 and max(1, abs(left).bit_length()) * right > SIZE_LIMIT:
                raise jinja2.TemplateError("a power is too large")
        elif operator == "*":
            for count, item in ((left, right), (right, left)):
                if isinstance(count, int) and hasattr(item, "__len__") and len(item) * count > SIZE_LIMIT:
                    raise jinja2.TemplateError("a repeated text or list is too long")
        return super().call_binop(context, operator, left, right)


def _bound(name: str, filter_: Any) -> Any:
    """A filter of Jinja that rejects arguments whose result would be huge."""

    @functools.wraps(filter_)  # with its marks, by which Jinja passes a context or an environment
    def call(*arguments: Any, **named: Any) -> Any:
        _check_arguments(name, (*arguments, *named.values()))
        return filter_(*arguments, **named)

    return call


def _check_arguments(name: str, arguments: Sequence[Any]) -> None:
    """Raises TemplateError for arguments of a text's method or filter that could make a huge text: a large number, a
    format with a large width, or two long texts, one of which may replace each character of the other.
    """
    texts = [argument for argument in arguments if isinstance(argument, (str, bytes))]
    if any(isinstance(argument, int) and abs(argument) > SIZE_LIMIT for argument in arguments):
        raise jinja2.TemplateError("a number is too large for a text")
    nested = any(isinstance(text, str) and re.search(r"[:.]\{", text) for text in texts)
    wide = lambda text: isinstance(text, str) and (_WIDTH.search(text) or (nested and re.search(r"[0-9]{6,}", text)))
    if name in ("format", "format_map", "%") and any(map(wide, texts)):
        raise jinja2.TemplateError("the width of a format is too large")
    if name == "replace" and len(texts) > 1 and len(texts[0]) * max(map(len, texts[1:])) > SIZE_LIMIT * 100:
        raise jinja2.TemplateError("a replaced text is too long")


def render_bounded(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """The template's text. Raises UserError if it rejects its variables, fails, or exceeds a bound."""
    parts, size = [], 0
    try:
        with _deadline():
            for part in template.generate(variables):
                parts.append(part)
                size += len(part)
                if size > TEXT_LIMIT:
                    raise jinja2.TemplateError(f"its text has more than {TEXT_LIMIT} characters")
    except _TimeoutError:
        raise UserError(f"the chat template did not end within {TIME_LIMIT:.0f} s") from None
    except jinja2.TemplateError as error:
        raise UserError(f"the chat template rejects these messages: {error}") from error
    except Exception as error:  # a template is a program, so any error may come from the model's files
        raise UserError(f"the chat template fails with {type(error).__name__}: {str(error)[:200]}") from error
    return "".join(parts)


class _TimeoutError(BaseException):
    """Raised in a thread whose rendering took too long; not an Exception, so that no handler keeps it."""


_deadlines: dict[int, float] = {}  # thread -> deadline of its rendering
_lock = threading.Lock()
_watching = False


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    global _watching
    thread = threading.get_ident()
    with _lock:
        _deadlines[thread] = time.monotonic() + TIME_LIMIT
        if not _watching:
            _watching = True
            threading.Thread(target=_watch, name="template deadlines", daemon=True).start()
    try:
        yield
    finally:
        with _lock:
            _deadlines.pop(thread, None)


def _watch() -> None:
    """Ends late renderings; the exception reaches their thread at its next step of Python code."""
    pause = threading.Event()
    while True:
        pause.wait(min(1.0, TIME_LIMIT / 4))
        with _lock:
            for thread in [thread for thread, end in _deadlines.items() if time.monotonic() > end]:
                del _deadlines[thread]
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_TimeoutError))
