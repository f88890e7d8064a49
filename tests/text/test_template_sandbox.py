"""Hostile chat templates: each is one clear line within a bounded time, and none reaches the interpreter."""

import time

import pytest

from r1jax.core.errors import UserError
from r1jax.text import template_sandbox
from r1jax.text.chat_template import render

MESSAGES = [{"role": "user", "content": "hello"}]
COSTLY = {
    "power": "{{ 9 ** (9 ** 9) }}",
    "long text": "{{ 'a' * 10 ** 10 }}",
    "long list": "{{ ([1] * 10 ** 9) | length }}",
    "text from the left": "{{ 10 ** 9 * 'a' }}",
    "range": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "silent loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops that print": "{% for i in range(99999) %}{% for j in range(99999) %}{{ messages }}{% endfor %}{% endfor %}",
    "padding": "{{ 'a'.ljust(10 ** 10) }}",
    "center": "{{ 'a' | center(10 ** 10) }}",
    "replaced": "{{ ('a' * 10 ** 6).replace('a', 'b' * 10 ** 6) }}",
    "replacing filter": "{{ ('a' * 10 ** 6) | replace('a', 'b' * 10 ** 6) }}",
    "width": "{{ '%9999999999d' % 1 }}",
    "width of format": "{{ '{:9999999999}'.format(1) }}",
    "width in an argument": "{{ '{:{}}'.format(1, '9999999999') }}",
    "width of a filter": "{{ '%9999999999d' | format(1) }}",
    "doubled text": "{% set n = namespace(t='aa') %}{% for i in range(64) %}{% set n.t = n.t + n.t %}{% endfor %}",
    "doubled list": "{% set n = namespace(t=[1]) %}{% for i in range(64) %}{% set n.t = n.t + n.t %}{% endfor %}",
    "endless macro": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
}
BROKEN = {
    "division": "{{ 1 / 0 }}",
    "types": "{{ messages + 1 }}",
    "missing": "{{ messages[0]['nothing'].more }}",
    "include": "{% include 'other' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends 'base' %}",
    "filter": "{{ messages | nothing }}",
    "call": "{{ messages() }}",
    "syntax": "{% if %}",
    "deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
}
ESCAPES = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "attr filter": "{{ ''|attr('__class__') }}",
    "format": "{{ '{0.__class__}'.format('') }}",
    "format_map": "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "indirect format": "{% set f = '{0.__class__.__mro__}'.format %}{{ f(1) }}",
    "map attribute": "{{ [''] | map(attribute='__class__') | list }}",
    "mutation": "{{ messages.append(1) }}",
    "dict mutation": "{{ messages[0].update({'role': 'system'}) }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "namespace": "{{ namespace.__init__.__globals__ }}",
    "self": "{{ self.__init__.__globals__ }}",
}


@pytest.mark.parametrize("template", COSTLY.values(), ids=COSTLY)
def test_a_costly_template_is_ended(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "TIME_LIMIT", 0.5)
    begin = time.monotonic()
    with pytest.raises(UserError, match="^the chat template ") as caught:
        render(template, MESSAGES)
    assert "\n" not in str(caught.value) and time.monotonic() - begin < 60


@pytest.mark.parametrize("template", BROKEN.values(), ids=BROKEN)
def test_a_broken_template_is_one_line(template: str) -> None:
    with pytest.raises(UserError, match="^the chat template ") as caught:
        render(template, MESSAGES)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("template", ESCAPES.values(), ids=ESCAPES)
def test_a_template_does_not_reach_the_interpreter(template: str) -> None:
    messages = [dict(MESSAGES[0])]
    try:
        text = render(template, messages)
    except UserError:
        text = ""
    assert not any(word in text for word in ("class", "os.py", "uid=", "function", "module"))
    assert messages == MESSAGES


def test_a_late_rendering_spares_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "TIME_LIMIT", 0.5)
    with pytest.raises(UserError, match="did not end within"):
        render(COSTLY["silent loops"], MESSAGES)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        assert render("{{ messages[0].content }}", MESSAGES) == "hello"
