"""Text of a completion, for rewards.

Completions are plain strings (raw prompts) or lists of `{role, content}` messages (chat prompts), as in TRL; of several
turns the assistant's last one counts. Left out: content that is not text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Completion = str | Sequence[Mapping[str, Any]]


def read_text(completion: Completion) -> str:
    """The text of one completion: the string itself, or the content of the assistant's last message."""
    if isinstance(completion, str):
        return completion
    said = [message for message in completion if message.get("role", "assistant") == "assistant"]
    content = (said or completion)[-1].get("content") if completion else None
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or () if isinstance(part, Mapping))


def read_texts(completions: Sequence[Completion]) -> list[str]:
    """The text of every completion, in order."""
    return [read_text(completion) for completion in completions]
