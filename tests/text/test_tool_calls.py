"""Tool calls in the formats of published chat templates, and texts that only look like one."""

import pytest

from r1jax.text.tool_calls import ToolCall, parse_tool_calls

CALL = ToolCall("get_weather", {"city": "Paris", "days": 2})
JSON = '{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}'


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        (f"I look.\n<tool_call>\n{JSON}\n</tool_call>", "I look."),
        (f"<tool_call>{JSON}", ""),
        (
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n</parameter>\n"
            "</function>\n</tool_call>",
            "",
        ),
        ('Well. <|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:2}<tool_call|>', "Well."),
        ('{"name": "get_weather", "parameters": {"city": "Paris", "days": 2}}', ""),
        ('<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris", "days": 2}}', ""),
        ('{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\", \\"days\\": 2}"}', ""),
        (
            "Well.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
            '{"city": "Paris", "days": 2}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
            "Well.",
        ),
        ('<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris", "days": 2}<｜tool▁call▁end｜>', ""),
        (
            "Sure.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n"
            "<arg_value>2</arg_value>\n</tool_call>",
            "Sure.",
        ),
        (
            "Sure.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
            '{"city": "Paris", "days": 2}<|tool_call_end|><|tool_calls_section_end|>',
            "Sure.",
        ),
        (
            "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
            '{"city": "Paris", "days": 2}<|call|>',
            "",
        ),
        (
            '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n'
            '<parameter name="days">2</parameter>\n</invoke>\n</minimax:tool_call>',
            "",
        ),
        (f"[TOOL_CALLS][{JSON}]</s>", ""),
        ('[TOOL_CALLS]get_weather[ARGS]{"city": "Paris", "days": 2}</s>', "</s>"),
        (f"<|tool_call|>[{JSON}]<|/tool_call|>", ""),
    ],
    ids=[
        "hermes",
        "hermes_cut",
        "qwen3_coder",
        "gemma4",
        "llama",
        "python_tag",
        "arguments_as_json",
        "deepseek_v3",
        "deepseek_v31",
        "glm",
        "kimi",
        "harmony",
        "minimax",
        "mistral",
        "mistral_v11",
        "phi4_mini",
    ],
)
def test_a_call_is_found_and_the_rest_kept(text: str, rest: str) -> None:
    assert parse_tool_calls(text) == (rest, [CALL])


def test_parallel_calls_keep_their_order() -> None:
    second = '{"name": "now", "arguments": {}}'
    expected = [CALL, ToolCall("now", {})]
    assert parse_tool_calls(f"<tool_call>{JSON}</tool_call>\n<tool_call>{second}</tool_call>") == ("", expected)
    assert parse_tool_calls(f"{JSON}; {second}") == ("", expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no call",
        "<tool_call>not json</tool_call>",
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '{"answer": 4}',
        '{"name": "f", "arguments": [1]}',
        f"{JSON} and more",
        "{" * 5000,
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert parse_tool_calls(text) == (text, [])


def test_a_broken_call_beside_a_good_one_stays() -> None:
    assert parse_tool_calls(f"<tool_call>oops</tool_call>\n<tool_call>{JSON}</tool_call>") == (
        "<tool_call>oops</tool_call>",
        [CALL],
    )


def test_constants_of_python_are_values_and_quotes_of_gemma_are_text() -> None:
    text = "<tool_call><function=f><parameter=a>True</parameter><parameter=b>None</parameter></function></tool_call>"
    assert parse_tool_calls(text)[1] == [("f", {"a": True, "b": None})]
    text = '<|tool_call>call:f{a:<|"|>{b:1}, "c"<|"|>,d:[{e:<|"|>x<|"|>}]}<tool_call|>'
    assert parse_tool_calls(text)[1] == [("f", {"a": '{b:1}, "c"', "d": [{"e": "x"}]})]
