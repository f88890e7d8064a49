import pytest

from r1jax.text import prompts


@pytest.mark.parametrize("template", prompts.TEMPLATES.values(), ids=prompts.TEMPLATES)
def test_every_template_takes_one_question_with_braces(template: str) -> None:
    question = "What is $\\frac{1}{2}$ of {question}?"
    assert prompts.fill(template, question).count(question) == 1


def test_r1_zero_reads_as_in_the_paper() -> None:
    text = prompts.fill(prompts.R1_ZERO, "What is 1 + 1?")
    assert text.startswith(
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves"
    )
    assert text.endswith(
        "i.e., <think> reasoning process here </think> <answer> answer here </answer>. User: What is 1 + 1? Assistant:"
    )


def test_an_example_leaves_a_template() -> None:
    template = prompts.show_example(prompts.QUESTION_REPLY, "What is 3 + 4?", "3 + 4 = 7", "7")
    assert prompts.fill(template, "What is 1 + 1?") == (
        "Question: What is 3 + 4?\nReply: <think> 3 + 4 = 7 </think> <answer> 7 </answer>\n\n"
        "Question: What is 1 + 1?\nReply:"
    )


def test_a_template_without_place_is_refused() -> None:
    with pytest.raises(ValueError, match="exactly once"):
        prompts.fill("no place", "q")
