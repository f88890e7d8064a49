"""The examples of docs/rewards.md, run as they stand there."""

import doctest
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "rewards.md"
BLOCKS = re.findall(r"^```pycon\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def test_the_page_has_examples():
    assert len(BLOCKS) >= 4


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0][4:60])
def test_the_examples_are_true(block):
    test = doctest.DocTestParser().get_doctest(block, {}, "rewards.md", str(PAGE), 0)
    told: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=told.append)
    assert test.examples and told == [], "".join(told)
