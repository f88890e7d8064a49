"""The true quality of replies to the synthetic requests of data/bilingual.py, by rule.

A reply is judged by its final answer: is it the act that was asked for (greeting, thanks, wish), does it name the
person, is it in English, and is it a whole sentence? Preferences over these requests are drawn from it, and a run that
trains on a learned reward is held against it.
"""

from __future__ import annotations

import re

from r1jax.text.language import language_share
from r1jax.text.reasoning import ANSWER_CLOSE, ANSWER_OPEN, after_thought

SHORTEST, LONGEST = 5, 16  # words of a whole sentence
ACTS = {
    re.compile(r"Say hello to (\w+)\."): ("hello", "你好"),
    re.compile(r"Thank (\w+) for the (\w+)\."): ("thank", "谢谢"),
    re.compile(r"Wish (\w+) a good (\w+)\."): ("good ", "祝"),
}


def rate_request(prompt: str, reply: str) -> float | None:
    """Quality from 0.1 (not what was asked) to 1.0 (a whole friendly sentence to the person); None for a prompt that
    holds no request.
    """
    found = [(asked, words) for pattern, words in ACTS.items() if (asked := pattern.search(prompt))]
    if not found:
        return None
    asked, words = found[0]
    text = after_thought(reply)
    start = text.rfind(ANSWER_OPEN)
    text = text[start + len(ANSWER_OPEN) :].partition(ANSWER_CLOSE)[0] if start >= 0 else text
    text = text.strip()
    if not any(word in text.lower() for word in words):
        return 0.1
    spoken = [word.lower() for word in re.findall(r"[A-Za-z']+", text)]
    named, english = asked[1].lower() in spoken, (language_share(text, "en") or 0.0) > 0.9
    repeats = max((spoken.count(word) for word in set(spoken)), default=0)
    whole = named and SHORTEST <= len(spoken) <= LONGEST and repeats <= 2 and text[-1:] in ".!"
    return 0.2 + 0.1 * named + 0.3 * english + 0.4 * (english and whole)
