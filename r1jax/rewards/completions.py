"""What a reward reads of a completion: its text.

Completions come as plain strings (raw prompts) or as lists of `{role, content}` messages (chat prompts), as TRL hands
them over. Rewards only ever want the text, so the difference ends here. Left out: turns after the first message (tool
use) and parts that are not text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Completion = str | Sequence[Mapping[str, Any]]


def read_text(completion: Completion) -> str:
    """Returns the text of one completion: the string itself, or the content of its first message."""
    if isinstance(completion, str):
        return completion
    content = completion[0].get("content") if completion else None
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or () if isinstance(part, Mapping))


def read_texts(completions: Sequence[Completion]) -> list[str]:
    """Returns the text of every completion, in order."""
    return [read_text(completion) for completion in completions]
