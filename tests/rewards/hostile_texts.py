r"""Texts of a megabyte that are made to hang a reader of answers: seeds repeated, in boxes and in tags."""

MEGABYTE = 10**6
_SEEDS = (
    *("7", "1,", "1,234", "1 ", "1/", "1e", "1.", "-", "$", ".", " ", "\n", "(", "[", "{", "}", ")", "\\", "^", "_"),
    *("=", "~", ";", r"\,", "answer, a", "answer \t"),
    *("7 or ", "7, ", "and ", "x=", "a ", "A ", "C or ", "not ", "#### ", "####\n", "answer is ", "Answer: "),
    *("answer:\n", "answer is not "),
    *("<answer>", "</answer>", "<think>", "</think>", "<answer>7</answer>", r"\boxed{"),
    *(r"\boxed{7}", r"\boxed{7} or "),
    *(r"\boxed 7 ", r"\frac{", r"\frac12", r"\frac{1}{2}", r"\text{", r"\text{ cm}"),
    *(r"\sqrt", r"\left(", r"\begin{array}"),
    *("٧", "７", "𝟕", "½", "²", "\u0301", "\u200b", "\u202e", "−", "€", "é", "七", "\x00"),
    *("1 234 ", "12,34,567 ", "1'234"),
    *("3 1/2 ", "5 cm ", "cm^2 ", "square ", "per ", "apples ", "50% ", "7 million ", "10^", "10^{6}", "2.5x10^3"),
)  # fmt: skip


def make_texts() -> dict[str, str]:
    """Texts by name; each has at most a megabyte of characters."""
    texts = {}
    for seed in _SEEDS:
        body = seed * (MEGABYTE // len(seed))
        texts[f"{seed!r} repeated"] = body
        texts[f"{seed!r} in a box"] = rf"\boxed{{{body[: MEGABYTE - 20]}}}"
        texts[f"{seed!r} in tags"] = f"<answer>{body[: MEGABYTE - 20]}</answer>"
    texts["nested boxes"] = r"\boxed{" * 70_000 + "}" * 70_000
    texts["all characters"] = "".join(map(chr, range(32, 55_000))) * 18
    texts["answer and space"] = "answer" + " " * (MEGABYTE - 10)
    texts["boxes joined"] = r"\boxed{7}, " * 90_000
    return texts
