"""Fenced blocks of replies: names, indentation, fences in strings, and which block is the program."""

import pytest

from r1jax.text.fences import find_blocks, find_program

CODE = "a, b = map(int, input().split())\nprint(a + b)\n"


@pytest.mark.parametrize(
    "name", ["python", "py", "Python", "PYTHON 3", "python3", "{.python}", 'py title="a.py"', " py "]
)
def test_names(name):
    assert find_program(f"```{name}\n{CODE}```", "python") == CODE
    assert find_program(f"Text.\r\n~~~{name}\r\n{CODE}~~~\r\n", "python") == CODE
    assert find_program(f"```{name}\n{CODE}```", "cpp") == ""


@pytest.mark.parametrize("name", ["cpp", "c++", "C++17", "cc", "cxx"])
def test_names_of_cpp(name):
    assert find_program(f"```{name}\nint main() {{}}\n```", "cpp") == "int main() {}\n"


def test_fences_in_strings_and_in_lists():
    doc = f'"""Example:\n```\n1 2\n```\n"""\n{CODE}'
    assert find_program(f"```python\n{doc}```\nIt prints:\n```\n3\n```", "python") == doc
    assert find_program(f"````python\n```\n{CODE}````", "python") == f"```\n{CODE}"
    indented = "\n".join(f"   {line}" for line in f"```python\n{CODE}```".split("\n"))
    assert find_program(f"1. So:\n{indented}\n", "python") == CODE
    broken = "print('a\n"
    assert find_program(f"```python\n{broken}```\nand\n```text\n3\n```", "python") == broken


def test_the_last_block_of_the_language_behind_the_thought_counts():
    first, last = f"```python\n{CODE}```\n", "```python\nprint(0)\n```\n"
    assert find_program(first + last, "python") == "print(0)\n"
    assert find_program(f"<think>{last}</think>{first}```sh\npython a.py\n```", "python") == CODE
    assert find_program(f"<think>{first}</think> I give up.", "python") == ""
    assert find_program(f"<think>{first}", "python") == ""
    assert find_program(f"```\n{CODE}```\n```\n3\n```", "python") == CODE
    assert find_program("```\n3\n```", "python") == find_program(CODE, "python") == ""
    assert find_program(f"{first}```python\nprint(", "python") == CODE


def test_blocks():
    names = [(block.name, block.code) for block in find_blocks("```a\n1\n```\n```\n```\n~~~ b\n2\n```\n~~~\n```c\n")]
    assert names == [("a", "1\n"), ("", ""), ("b", "2\n```\n")]


@pytest.mark.parametrize(
    "part", ["```\n", "```python\n", "```python\nx\n```\n", "~~~\n", "'''\n```\n", "```py\n(\n```\n", "(" * 99]
)
def test_long_hostile_texts_take_linear_time(part):
    find_program(part * (300_000 // len(part)), "python")
