"""Chat templates: a list of messages becomes the one string that the model was taught to read.

The idea: a template is a Jinja program that comes with the model, so it is data of strangers and runs in Jinja's
immutable sandbox, with the same settings and helpers as in transformers' `apply_chat_template`; equal text is tested
against it. What a template adds of its own (SmolLM2's system turn, say) is part of the format and stays.

Leaves out: tokenizing (`tokenizer.encode(render(...))` adds no second BOS) and masks of tokens (`masks.py` makes them,
from what `render_spans` says of the template's `{% generation %}` blocks).
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from r1jax.core.errors import UserError

Message = Mapping[str, Any]
REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")  # of a message's thoughts, the usual name first
MARKS = "\ufdd0\ufdd1"  # around generation blocks: code points that Unicode keeps out of all texts


def render(
    template: str | Any, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any
) -> str:
    """The text of a conversation, ready for `Tokenizer.encode` without special tokens added.

    `template` is a Jinja text, or a tokenizer: then its own template is used and its special tokens (`bos_token`, ...)
    are variables of it. `add_generation_prompt` opens the assistant's turn. Further `variables` (`tools`,
    `enable_thinking`, ...) reach the template. Raises UserError if there is no template or the template refuses.
    """
    if not messages:
        raise UserError("a conversation needs at least one message")
    if not isinstance(template, str):
        variables = {**template.template_variables, **variables}
        template = template.chat_template
        if template is None:
            raise UserError("this model has no chat template; give prompts as plain text instead of messages")
    variables = {"tools": None, "documents": None, **variables}
    try:
        return compile_template(template).render(
            messages=[_normalize(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
    except jinja2.TemplateError as error:
        raise UserError(f"the chat template refuses these messages: {error}") from error


def render_spans(
    template: str | Any, messages: Sequence[Message], **variables: Any
) -> tuple[str, list[tuple[int, int]]] | None:
    """The text of a finished conversation and (start, stop) of each of its `{% generation %}` blocks, in characters.

    None if the template has no such blocks, or works on their text (by a filter, say), so that places get lost.
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
    """Compiles a chat template in the sandbox. Raises UserError if it is no valid Jinja."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"the chat template is broken at line {error.lineno}: {error}") from error


def _normalize(message: Message) -> dict[str, Any]:
    """Drops keys without a value, which templates would print as "None"; reasoning is known under all its names."""
    kept = {key: value for key, value in message.items() if value is not None}
    reasoning = next((kept[name] for name in REASONING_NAMES if name in kept), None)
    return kept if reasoning is None else {"thinking": reasoning, **kept, "reasoning_content": reasoning}


class GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}`: its body as if the tag were not there, between MARKS if asked for."""

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
    """Jinja's own filter escapes HTML and non-ASCII characters, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
