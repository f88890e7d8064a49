"""Chat templates: rendering a list of messages into the string that the model was trained on.

A template is a Jinja program that comes with the model, so it is untrusted and runs in template_sandbox.py, with the
same settings and helpers as transformers' `apply_chat_template`; tests hold the two texts equal. Text that a
template adds by itself (SmolLM2's system turn, for example) is part of the format and is kept.

Left out: tokenizing (`tokenizer.encode(render(...))` adds no second BOS) and token masks (`masks.py` builds them from
the `{% generation %}` spans of `render_spans`).
"""

import functools
import json
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols

from r1jax.core.errors import UserError
from r1jax.text.message_forms import Message, MessageForms
from r1jax.text.template_sandbox import BoundedEnvironment, render_bounded

MARKS = "\ufdd0\ufdd1"  # around generation blocks: Unicode noncharacters, which no text contains


def render(
    template: str | Any, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any
) -> str:
    """Text of a conversation, ready for `Tokenizer.encode` without special tokens added.

    `template` is a Jinja text, or a tokenizer, whose own template and special tokens (`bos_token`, ...) are then used.
    `add_generation_prompt` opens the assistant's turn. Further `variables` (`tools`, `enable_thinking`, ...) are passed
    to the template. Special tokens that users and tools spell are marked for `Tokenizer.encode` as the tokenizer's
    `special_tokens_in_text` says. Raises UserError if there is no template or the template rejects the messages.
    """
    if not messages:
        raise UserError("a conversation needs at least one message")
    if not isinstance(template, str):
        messages = template.escape_messages(messages)
        variables = {**template.template_variables, **variables}
        template = template.chat_template
        if template is None:
            raise UserError("this model has no chat template: use plain text prompts instead of messages")
    variables = {"tools": None, "documents": None, **variables}
    tokens = frozenset((name, value) for name, value in variables.items() if name.endswith("_token"))
    variables |= {"messages": _find_forms(template, tokens).fit(messages)}
    return render_bounded(compile_template(template), {**variables, "add_generation_prompt": add_generation_prompt})


def render_spans(
    template: str | Any, messages: Sequence[Message], **variables: Any
) -> tuple[str, list[tuple[int, int]]] | None:
    """Text of a finished conversation, and (start, stop) in characters of each `{% generation %}` block.

    None if the template has no such blocks, or transforms their text (by a filter, for example), which loses positions.
    """
    variables = {"add_generation_prompt": False, **variables}
    source = template if isinstance(template, str) else template.chat_template
    if source is None or not re.search(r"{%-?\s*generation\b", source):
        return None
    marked = render(template, messages, **variables, **{GenerationTag.switch: True})
    spans, parts, size = [], [], 0
    for part in re.split(f"([{MARKS}])", marked):
        if part == MARKS[0]:
            spans.append((size, size))
        elif part == MARKS[1] and spans:
            spans[-1] = (spans[-1][0], size)
        else:
            parts.append(part)
            size += len(part)
    text = "".join(parts)
    return (text, spans) if text == render(template, messages, **variables) else None


@functools.lru_cache(maxsize=32)
def compile_template(template: str) -> jinja2.Template:
    """Compiles a chat template in the sandbox. Raises UserError for invalid Jinja."""
    environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"the chat template has a syntax error at line {error.lineno}: {error}") from error
    except RecursionError:
        raise UserError("the chat template is nested too deeply") from None


@functools.lru_cache(maxsize=32)
def _find_forms(template: str, tokens: frozenset[tuple[str, str]]) -> MessageForms:
    """The forms of messages that a template with these special tokens reads."""
    program = compile_template(template)
    variables = {"tools": None, "documents": None, "add_generation_prompt": False, **dict(tokens)}
    return MessageForms(lambda messages: render_bounded(program, {**variables, "messages": messages}))


class GenerationTag(Extension):
    """Tag `{% generation %}...{% endgeneration %}`: renders its body unchanged, between MARKS if `switch` is set."""

    tags = {"generation"}
    switch = "_mark_generation"  # the variable that asks for marks

    def parse(self, parser: jinja2.parser.Parser) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_render_body", [jinja2.nodes.ContextReference()])
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _render_body(self, context: jinja2.runtime.Context, caller: Any) -> str:
        return f"{MARKS[0]}{caller()}{MARKS[1]}" if context.get(self.switch) else caller()


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without escapes for HTML and non-ASCII characters, which Jinja's own filter adds and no model was trained
    on.
    """
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
