"""R1's tags around reasoning and answer, and the part of a reply that follows the reasoning."""

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"


def after_thought(text: str) -> str:
    """Text after the reasoning: after the last closing tag; for reasoning left open, from its answer tags on."""
    if THINK_CLOSE in text:
        return after_closed_thought(text)
    opened = text.find(THINK_OPEN)
    if opened < 0:
        return text
    tagged = text.find(ANSWER_OPEN, opened)
    return text[:opened] + (text[tagged:] if tagged >= 0 else "")


def after_closed_thought(text: str) -> str:
    """Text after the last closing tag of the reasoning; unchanged without one."""
    return text[text.rfind(THINK_CLOSE) + len(THINK_CLOSE) :] if THINK_CLOSE in text else text


def cut_answer(text: str) -> str:
    """The final answer of a reply: the text behind the reasoning, within its answer tags where it has some."""
    text = after_thought(text)
    start = text.rfind(ANSWER_OPEN)
    if start >= 0:
        text = text[start + len(ANSWER_OPEN) :].partition(ANSWER_CLOSE)[0]
    return text.strip()
