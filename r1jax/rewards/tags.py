"""Rewards for the format of a reply: reasoning in think tags, then the answer in answer tags.

`format_reward`, `tag_count_reward` and `get_code_format_reward` are open-r1's, including new lines, so a recipe written
for it scores the same here. `r1_format_reward` is the rule as stated by DeepSeek-R1 (arXiv 2501.12948, section 2.2):
each tag once, in order, nothing outside, any white space.

All are plain string searches in linear time; a pattern with two lazy wildcards is quadratic on a long hostile reply.
Format alone is easily exploited: give it a small weight beside a reward for the answer.
"""

from collections.abc import Callable, Sequence
from typing import Any

from r1jax.rewards.completions import Completion, read_text, read_texts
from r1jax.rewards.protocol import by_row

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"


@by_row
def format_reward(completions: Sequence[Completion], **columns: Any) -> list[float]:
    """1.0 if the text opens with think tags, then answer tags, each alone on its line; else 0.0.

    As in open-r1, text after the line of the closing answer tag is accepted, and so are further tags.
    """
    return [float(_has_line_format(text)) for text in read_texts(completions)]


@by_row
def tag_count_reward(completions: Sequence[Completion], **columns: Any) -> list[float]:
    """0.25 for each of the four tags that occurs exactly once with the new lines that open-r1 requires."""
    spellings = (f"{THINK_OPEN}\n", f"\n{THINK_CLOSE}\n", f"\n{ANSWER_OPEN}\n", f"\n{ANSWER_CLOSE}")
    return [sum(0.25 for tag in spellings if text.count(tag) == 1) for text in read_texts(completions)]


@by_row
def r1_format_reward(
    completions: Sequence[Completion],
    prompts: Sequence[Completion] | None = None,
    think_in_prompt: bool = False,
    **columns: Any,
) -> list[float]:
    """1.0 if the reply is `<think>...</think> <answer>...</answer>`, each tag once, neither part empty; else 0.0.

    White space around and between the parts is free; other text is not allowed. If the prompt ends with the opening
    think tag, the reply continues it and must not open it again. Set `think_in_prompt` if a chat template adds that tag
    after the last message, where `prompts` does not show it.
    """
    texts = read_texts(completions)
    opened = [think_in_prompt or _ends_in_think(prompt) for prompt in prompts or ("",) * len(texts)]
    return [
        float(_has_r1_format(THINK_OPEN + text if open_ else text)) for text, open_ in zip(texts, opened, strict=True)
    ]


def get_code_format_reward(language: str = "python") -> Callable[..., list[float]]:
    """A reward like `format_reward` that also requires a fenced block of `language` in the answer.

    A data column `language` sets it per row and overrides the argument.
    """

    @by_row
    def code_format_reward(
        completions: Sequence[Completion], language: Sequence[str] | None = None, **columns: Any
    ) -> list[float]:
        """See `get_code_format_reward`."""
        languages = language if language is not None else (default,) * len(completions)
        fences = [(f"```{name}", "```") for name in languages]
        return [
            float(_has_line_format(text, fence)) for text, fence in zip(read_texts(completions), fences, strict=True)
        ]

    default = language
    return code_format_reward


def _has_line_format(text: str, inside: Sequence[str] = ()) -> bool:
    """Whether the tags have open-r1's form, and the answer contains the pieces of `inside`, in order without overlap.

    Each search takes the first possible place, so it matches exactly where a pattern with lazy wildcards would.
    """
    start = f"{THINK_OPEN}\n"
    middle = f"\n{THINK_CLOSE}\n{ANSWER_OPEN}\n"
    end = f"\n{ANSWER_CLOSE}"
    position = text.find(middle, len(start))
    if not text.startswith(start) or position < 0:
        return False
    position += len(middle)
    for piece in inside:
        position = text.find(piece, position)
        if position < 0:
            return False
        position += len(piece)
    return text.endswith(end) and len(text) - len(end) >= position or text.find(f"{end}\n", position) >= 0


def _has_r1_format(text: str) -> bool:
    if any(text.count(tag) != 1 for tag in (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)):
        return False
    before, _, rest = text.partition(THINK_OPEN)
    thought, think_closed, rest = rest.partition(THINK_CLOSE)
    between, answer_opened, rest = rest.partition(ANSWER_OPEN)
    answer, answer_closed, after = rest.partition(ANSWER_CLOSE)
    in_order = think_closed and answer_opened and answer_closed
    return bool(in_order and thought.strip() and answer.strip() and not (before + between + after).strip())


def _ends_in_think(prompt: Completion) -> bool:
    """Whether a prompt (text, or messages of which the last begins the reply) leaves the think tag open."""
    text = prompt if isinstance(prompt, str) else read_text(prompt[-1:])
    return text.rstrip().endswith(THINK_OPEN)
