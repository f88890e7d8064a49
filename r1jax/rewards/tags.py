"""Rewards for the format of a reply: reasoning in think tags, then the answer in answer tags.

`format_reward`, `tag_count_reward` and `get_code_format_reward` are open-r1's, including new lines, so a recipe written
for it scores the same here. `r1_format_reward` is the rule as stated by DeepSeek-R1 (arXiv 2501.12948, section 2.2):
each tag once, in order, nothing outside, any white space; and both parts must hold letters or digits and differ from
the prompt's own placeholder ("reasoning process here"), because a policy soon finds invisible characters and copies.

All are plain string searches in linear time; a pattern with two lazy wildcards is quadratic on a long hostile reply.
Format alone is easily exploited: give it a small weight beside a reward for the answer.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from r1jax.rewards.completions import Completion, read_text, read_texts
from r1jax.rewards.protocol import by_row
from r1jax.text.reasoning import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN

_FILLERS = "\u115f\u1160\u3164\uffa0"  # letters by category, and invisible
_PLACEHOLDER = re.compile(
    r"(?:insert |write |put )?(?:(?:your|the|my|final|full|detailed) ){0,3}"
    r"(?:reasoning|thinking|thoughts?|answer|solution|response)(?: process| steps?)?(?: (?:goes|go|is))? here"
)
_LOOKED_FOR = 320  # characters of a part that a prompt may show
_SHOWN = re.compile(rf"<think>([^<]{{1,{_LOOKED_FOR}}})</think>[^<]{{0,200}}<answer>([^<]{{1,{_LOOKED_FOR}}})</answer>")
_LOOKED_AT = 10_000  # characters of a part; one that shows nothing in as many shows nothing


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
    """1.0 if the reply is `<think>...</think> <answer>...</answer>`, each tag once, both parts filled; else 0.0.

    A part is filled if it holds a letter or a digit (in the answer also a mathematical sign such as ∞) and is not a
    placeholder: words such as "answer here", or both parts word for word as tags in the prompt have them.

    White space around and between the parts is free; other text is not allowed. If the prompt ends with the opening
    think tag, the reply continues it and must not open it again. Set `think_in_prompt` if a chat template adds that tag
    after the last message, where `prompts` does not show it.
    """
    texts = read_texts(completions)
    asked = prompts or ("",) * len(texts)
    parts = [
        _split_r1_format(THINK_OPEN + text if think_in_prompt or _ends_in_think(prompt) else text)
        for text, prompt in zip(texts, asked, strict=True)
    ]
    return [
        float(found is not None and _is_filled(*found) and not _is_copied(*found, prompt))
        for found, prompt in zip(parts, asked, strict=True)
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


def _split_r1_format(text: str) -> tuple[str, str] | None:
    """Reasoning and answer of a reply that has each tag once, in order, and nothing outside; else None."""
    if any(text.count(tag) != 1 for tag in (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)):
        return None
    before, _, rest = text.partition(THINK_OPEN)
    thought, think_closed, rest = rest.partition(THINK_CLOSE)
    between, answer_opened, rest = rest.partition(ANSWER_OPEN)
    answer, answer_closed, after = rest.partition(ANSWER_CLOSE)
    if not (think_closed and answer_opened and answer_closed) or (before + between + after).strip():
        return None
    return thought, answer


def _is_filled(thought: str, answer: str) -> bool:
    signs = any(not char.isascii() and unicodedata.category(char) == "Sm" for char in answer[:_LOOKED_AT])
    if not _says_something(thought) or not (signs or _says_something(answer)):
        return False
    return not any(_PLACEHOLDER.fullmatch(_spell(part)) for part in (thought, answer))


def _says_something(part: str) -> bool:
    return any(char.isalnum() and char not in _FILLERS for char in part[:_LOOKED_AT])


def _is_copied(thought: str, answer: str, prompt: Completion) -> bool:
    """Whether the prompt contains these two parts in the tags: its placeholders, or a solved example."""
    asked = prompt if isinstance(prompt, str) else "\n".join(read_text([message]) for message in prompt)
    copied = _spell(thought), _spell(answer)
    return any((_spell(shown[1]), _spell(shown[2])) == copied for shown in _SHOWN.finditer(asked))


def _spell(part: str) -> str:
    """The words of a part, ignoring case, spacing and surrounding marks; only the beginning of long parts."""
    return " ".join(part[:_LOOKED_FOR].split()).casefold().strip(" .…*_`[](){}\"'")


def _ends_in_think(prompt: Completion) -> bool:
    """Whether a prompt (text, or messages of which the last begins the reply) leaves the think tag open."""
    text = prompt if isinstance(prompt, str) else read_text(prompt[-1:])
    return text.rstrip().endswith(THINK_OPEN)
