"""The true quality of replies to synthetic requests, which a run on a learned reward can be held against.

rewards.request_score = {"weight": 0.0, "domain": "general"}
"""

from collections.abc import Sequence
from typing import Any

from r1jax.rewards.completions import Completion, read_text, read_texts
from r1jax.rewards.protocol import by_row
from r1jax.text.request_quality import rate_request


@by_row
def request_score(
    completions: Sequence[Completion], prompts: Sequence[Completion], **columns: Any
) -> list[float | None]:
    """Quality from 0.1 to 1 by the rule of text/request_quality.py; None for a prompt that holds no request."""
    asked = [prompt if isinstance(prompt, str) else read_text(prompt[-1:]) for prompt in prompts]
    return [rate_request(prompt, text) for prompt, text in zip(asked, read_texts(completions), strict=True)]
