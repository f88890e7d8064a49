"""Messages in the forms that data have, for templates that read one of them."""

from typing import Any

import pytest

from r1jax.core.errors import UserError
from r1jax.text.chat_template import render

ASK = {"role": "user", "content": "2+2?"}
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content + '' }}{% endfor %}"
PARTS = "{% for m in messages %}[{{ m.role }}]{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
BOTH = (
    "{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}"
)
TEXT = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.name + c.function.arguments }}{% endfor %}"
TEXT += "{% if m.content is not none and not m.tool_calls %}{{ m.content }}{% endif %}{% endfor %}"
ITEMS = TEXT.replace("c.function.arguments", "(c.function.arguments.items() | list | string)")
JSON = TEXT.replace("c.function.arguments", "(c.function.arguments | tojson)")


def show(template: str, *messages: Any) -> str:
    return render(template, [ASK, *messages], add_generation_prompt=False)


@pytest.mark.parametrize("template", [PLAIN, PARTS, BOTH])
@pytest.mark.parametrize("content", ["so 4", [{"type": "text", "text": "so "}, {"type": "text", "text": "4"}]])
def test_texts_and_parts_are_shown_by_every_template(template: str, content: Any) -> None:
    assert show(template, {"role": "assistant", "content": content}) == "[user]2+2?[assistant]so 4"


@pytest.mark.parametrize("template, shown", [(TEXT, '{"a": "ä"}'), (ITEMS, "[('a', 'ä')]"), (JSON, '{"a": "ä"}')])
@pytest.mark.parametrize("arguments", [{"a": "ä"}, '{"a": "ä"}'])
def test_arguments_are_shown_once_encoded(template: str, shown: str, arguments: Any) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    assert show(template, {"role": "assistant", "content": "", "tool_calls": [call]}) == f"2+2?f{shown}"


def test_arguments_that_are_no_json_stay_as_they_are() -> None:
    call = {"function": {"name": "f", "arguments": '{"a": '}}
    with pytest.raises(UserError, match="has no attribute 'items'"):
        show(ITEMS, {"role": "assistant", "tool_calls": [call]})


def test_null_beside_calls_reaches_a_template_that_asks_for_it_and_is_never_printed() -> None:
    call = {"function": {"name": "f", "arguments": {}}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    asks = "{% for m in messages %}{% if m.content is none %}{{ m.tool_calls[0].function.name }}{% endif %}"
    asks += "{% if m.content is none %}{{ m.tool_calls[0].function.arguments | tojson }}{% endif %}{% endfor %}"
    assert show(asks, message) == "f{}"
    assert show("{% for m in messages %}[{{ m.content }}]{% endfor %}", message) == "[2+2?][]"


@pytest.mark.parametrize(
    "message, problem",
    [("hi", "must be a mapping"), ({"role": "assistant", "tool_calls": "f()"}, "must be a list of mappings")],
)
def test_other_forms_are_said(message: Any, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        show(PLAIN, message)
