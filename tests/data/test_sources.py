"""Sources: every malformed line is named, and no problem is both trained on and held out."""

import json
import pathlib

import pytest

from r1jax.core.errors import UserError
from r1jax.data.sources import (
    RowErrors,
    check_disjoint,
    draw_addition,
    draw_arithmetic,
    draw_reasoning_gym,
    draw_same,
    read_jsonl,
)

# --- JSONL ---


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "rows.jsonl"


def test_rows_keep_their_order_and_place(path: pathlib.Path):
    path.write_text('{"a": 1}\n\n   \n{"a": "zwölf"}', encoding="utf-8")
    assert read_jsonl(path) == [(f"{path}:1", {"a": 1}), (f"{path}:4", {"a": "zwölf"})]


def test_a_byte_order_mark_is_no_part_of_the_first_row(path: pathlib.Path):
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    assert read_jsonl(path)[0].columns == {"a": 1}


@pytest.mark.parametrize(
    "line",
    [b'{"a": 1', b"[1, 2]", b"3", b"null", b'"text"', b'{"a": 1} {"b": 2}', b'{"a": "\xff"}', b"[" * 100_000],
)
def test_a_malformed_line_is_named(path: pathlib.Path, line: bytes):
    path.write_bytes(b'{"a": 0}\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:2: not a JSON object") as caught:
        read_jsonl(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    errors = RowErrors("skip")
    assert [row.columns["a"] for row in read_jsonl(path, errors)] == [0, 2]
    assert errors.count == 1 and "rows.jsonl:2" in errors.first


def test_a_missing_file_names_the_key(tmp_path: pathlib.Path):
    with pytest.raises(UserError, match=r"no such file: .*none\.jsonl \(config\.data\.eval_path\)"):
        read_jsonl(tmp_path / "none.jsonl", key="config.data.eval_path")
    with pytest.raises(UserError, match="no such file"):
        read_jsonl(tmp_path)


# --- Addition ---


def test_addition_draws_every_unordered_pair_once():
    draw = draw_addition(200, seed=0)
    pairs = [frozenset((row.columns["a"], row.columns["b"])) for row in draw.train + draw.held_out]
    assert len(pairs) == len(set(pairs)) == 90 * 91 // 2
    assert len(draw.held_out) == 200
    assert {min(pair) for pair in pairs} == {max(pair) for pair in pairs} == set(range(10, 100))


def test_addition_holds_out_unordered_pairs():
    draw = draw_addition(2000, seed=3)
    train, held_out = ({(row.columns["a"], row.columns["b"]) for row in rows} for rows in draw)
    assert not train & held_out
    assert not {(b, a) for a, b in train} & held_out


def test_addition_rows_are_right_and_in_both_orders():
    rows = draw_addition(200, seed=0).train
    for row in rows:
        a, b = row.columns["a"], row.columns["b"]
        assert row.columns["question"] == f"What is {a} + {b}?" and row.columns["solution"] == str(a + b)
    share = sum(row.columns["a"] < row.columns["b"] for row in rows) / len(rows)
    assert 0.45 < share < 0.55


def test_a_draw_is_a_function_of_its_seed():
    assert draw_addition(50, seed=1) == draw_addition(50, seed=1)
    assert draw_addition(50, seed=1).held_out != draw_addition(50, seed=2).held_out


def test_addition_takes_other_ranges_and_words():
    draw = draw_addition(1, seed=0, low=1, high=2, question="{a}+{b}=")
    rows = {tuple(sorted((row.columns["a"], row.columns["b"]))) for row in draw.train + draw.held_out}
    assert rows == {(1, 1), (1, 2), (2, 2)}
    assert "+" in draw.train[0].columns["question"] and draw.train[0].columns["question"].endswith("=")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"eval_problems": 3, "low": 1, "high": 2}, "3 held-out problems leave none of the 3 distinct ones"),
        ({"eval_problems": 1, "low": 5, "high": 2}, "low <= high"),
        ({"eval_problems": 1, "question": "What is {a}?"}, "must contain {a} and {b}"),
    ],
)
def test_addition_says_what_cannot_be(kwargs: dict, message: str):
    with pytest.raises(UserError) as caught:
        draw_addition(seed=0, **kwargs)
    assert message in str(caught.value)


def test_shared_problems_are_an_error():
    check_disjoint([frozenset((1, 2))], [frozenset((1, 3))])
    with pytest.raises(UserError, match="1 held-out problems are also training problems"):
        check_disjoint([frozenset((1, 2)), frozenset((3, 3))], [frozenset((2, 1))])


# --- reasoning-gym ---


def test_reasoning_gym_rows_are_those_of_the_task():
    args = {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}
    draw = draw_reasoning_gym("chain_sum", 20, seed=5, problems=100, args=args)
    assert len(draw.held_out) == 20 and 90 <= len(draw.train) <= 100
    for row in draw.train + draw.held_out:
        first, sign, second = row.columns["question"].rpartition(":")[2].strip(" =").split()
        assert int(row.columns["solution"]) == int(first) + int(sign + second)
    questions = [{row.columns["question"] for row in rows} for rows in draw]
    assert not questions[0] & questions[1] and len(questions[0]) == len(draw.train)


@pytest.mark.parametrize(
    ("task", "args", "message"),
    [
        ("chain_sums", {}, "reasoning-gym task chain_sums (config.data.source) is unknown; similar: chain_sum"),
        ("chain_sum", {"terms": 2}, "it rejects config.data.args={'terms': 2}"),
        ("graph_color", {}, "reasoning-gym task graph_color (config.data.source): it has no plain answer"),
    ],
)
def test_reasoning_gym_mistakes(task: str, args: dict, message: str):
    with pytest.raises(UserError) as caught:
        draw_reasoning_gym(task, 5, seed=0, problems=5, args=args)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_task_of_few_questions_cannot_give_many():
    args = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    with pytest.raises(UserError, match=r"300 held-out problems leave none of the \d+ distinct ones"):
        draw_reasoning_gym("chain_sum", 300, seed=0, problems=1, args=args)


def test_a_draw_does_not_depend_on_the_hash_seed(monkeypatch: pytest.MonkeyPatch):
    draws = []
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        draws.append(draw_reasoning_gym("ransom_note", 3, seed=0, problems=5, args={}))
    assert draws[0] == draws[1]


HALVES = [r'"\ud83d"', r'"a \uDE00 b"', r'"\ude00\ud83d"', r'["x", {"y": "\uD83D\u0041"}]', r'"\\\ud83d"']
WHOLE = [r'"\ud83d\ude00"', r'"\\ud83d"', r'"\u2028 \u0041"', '"\U0001f600 \u2028"', r'"\uD83D\uDE00\\\ud83d\ude00"']


@pytest.mark.parametrize("value", [*HALVES, *WHOLE])
def test_half_a_character_is_named_with_its_line_or_skipped(tmp_path: pathlib.Path, value: str):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": ' + value + '}\n{"prompt": "c"}\n', "utf-8")
    errors = RowErrors("skip")
    rows = read_jsonl(file, errors)
    assert len(rows) == (2 if value in HALVES else 3) and errors.count == (value in HALVES)
    json.dumps([row.columns for row in rows], ensure_ascii=False).encode()
    if value in HALVES:
        with pytest.raises(UserError, match=r"rows.jsonl:2: half of a surrogate pair \(\\u[dD]") as caught:
            read_jsonl(file)
        assert "\n" not in str(caught.value)


# --- Arithmetic, and one question for all ---


def test_arithmetic_draws_distinct_problems_of_each_sign():
    draw = draw_arithmetic(20, 3, problems=70, low=2, high=12, signs="+*-")
    rows = [row.columns for row in [*draw.train, *draw.held_out]]
    assert (len(draw.train), len(draw.held_out)) == (70, 20)
    assert len({(row["sign"], *sorted((row["a"], row["b"]))) for row in rows}) == 90
    assert [sum(row["sign"] == sign for row in rows) for sign in "+*-"] == [30, 30, 30]
    for row in rows:
        a, b, solution = row["a"], row["b"], int(row["solution"])
        assert 2 <= min(a, b) and max(a, b) <= 12 and solution == {"+": a + b, "*": a * b, "-": a - b}[row["sign"]]
        assert row["question"] == f"What is {a} {row['sign']} {b}?"
    assert draw == draw_arithmetic(20, 3, problems=70, low=2, high=12, signs="+*-")
    assert draw != draw_arithmetic(20, 4, problems=70, low=2, high=12, signs="+*-")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"signs": "+/"}, r"config\.data\.args\.signs of arithmetic must be some of \+ - \*, got '\+/'"),
        ({"question": "{a} {b}"}, r"must contain \{sign\}"),
        ({"low": 1, "high": 9}, "draws at most 45 problems"),
    ],
)
def test_arithmetic_refuses_what_it_cannot_draw(args: dict, message: str):
    with pytest.raises(UserError, match=message):
        draw_arithmetic(10, 0, problems=100, **args)


def test_one_question_for_all_problems():
    draw = draw_same(2, problems=3, question="Play.")
    assert [row.columns for row in [*draw.train, *draw.held_out]] == [{"question": "Play."}] * 5
