"""Chat templates: a list of messages becomes the one string that the model was taught to read.

The idea: a template is a Jinja program that comes with the model, so it is data of strangers and runs in Jinja's
immutable sandbox, with the same settings and helpers as in transformers' `apply_chat_template`; equal text is tested
against it. What a template adds of its own (SmolLM2's system turn, say) is part of the format and stays.

Leaves out: tokenizing (`tokenizer.encode(render(...))` adds no second BOS) and masks of assistant turns; the
`{% generation %}` tag that marks them is accepted and changes nothing.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from r1jax.core.errors import UserError

Message = Mapping[str, Any]
REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")  # of a message's thoughts, the usual name first


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
    """`{% generation %}...{% endgeneration %}`: renders its body as if the tag were not there."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_render_body"), [], [], body).set_lineno(line)

    def _render_body(self, caller: Any) -> str:
        return caller()


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
