r"""Spelling of answers: wrappers without meaning, normal form of texts and of LaTeX.

`unwrap` removes dollars, stars, quotes, `\text{}`, `\displaystyle` and a full stop, `strip_introduction` also "The
answer is". `spell_text` ignores case and spacing of words. `plain_latex` writes `\frac12`, `\dfrac`, `\sqrt2`, `\left(`
and `\mathrm{i}` in the form that math-verify parses with every setting.
"""

import re
from collections.abc import Callable

from r1jax.rewards.reader.characters import plain_characters

MAX_UNWRAPPED_LENGTH = 8000

_WRAPPERS = (
    *(("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("*", "*"), ("__", "__"), ("_", "_")),
    *(("`", "`"), ('"', '"'), ("'", "'"), ("<b>", "</b>"), ("«", "»")),
)
_COMMAND = re.compile(
    r"\\(?:text(?:bf|it|rm|up|sf)?|math(?:bf|rm|it|sf|bb|cal)|boldsymbol|bm|mbox|hbox|emph|operatorname|underline|ensuremath)"
    r" ?\{([^{}]*)\}"
)
_SWITCH = re.compile(
    r"(?:\\(?:displaystyle|textstyle|bf|rm|it|large|Large|LARGE|huge|Huge|quad|qquad|therefore|implies)(?![a-zA-Z])"
    r"|\\(?:hspace|vspace|color) ?\{[^{}]*\}|\\textcolor ?\{[^{}]*\}(?=\{)|\\[,;:! ]|~|&|#+ )\s*"
)
_TRAILING = re.compile(
    r"(?:\\[,;:! ]|\\\\|~|\\q?quad|[,;✓✔✅]|,? is (?:the (?:final |correct )?answer|correct|right))$"
)
_INTRODUCTION = re.compile(
    r"(?:(?:so|thus|hence|therefore),? )?(?:the |my |our |a )?(?:(?:final |correct |right )?(?:answer|result|total)\b"
    r"(?: is(?: equal to)?\b| equals\b| of\b)?"
    r"|(?:it is|it's|we get|i get|so|x equals|exactly|just|only)\b|=)"
    r"\**(?: ?[:=])?\**:? ?",
    re.IGNORECASE,
)
_READ_ALOUD = re.compile(r"(?<=\d) ?\([a-z]+(?:[ -][a-z]+){0,7}[ -]?\)$", re.IGNORECASE)
_SAID_BEFORE = re.compile(r"[a-z]{3,}(?:[ -][a-z]{3,}){0,7}[ -]?\((-?[0-9.,]+)\)", re.IGNORECASE)
_MAX_LAYERS = 12


def unwrap(text: str) -> str:
    r"""Strips white space, final full stops, and wrappers around the whole text: `$x$`, `\(x\)`, `**x**`,
    `\text{x}`.
    """
    return _strip(text, _strip_one_layer)


def strip_introduction(text: str) -> str:
    """`unwrap`, also without words that only introduce an answer (`The answer is x.`, `Total: x`)."""
    return _strip(text, lambda text: _strip_introduction(_strip_one_layer(text)))


def _strip(text: str, strip_once: Callable[[str], str]) -> str:
    text = text.strip()
    for _ in range(_MAX_LAYERS):
        if len(text) > MAX_UNWRAPPED_LENGTH or (inner := strip_once(text)) == text:
            break
        text = inner
    return text


def _strip_one_layer(text: str) -> str:
    text = _strip_switches(text.removesuffix("."))
    for opening, closing in _WRAPPERS:
        inner = text[len(opening) : -len(closing)]
        if len(text) >= len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
            if opening not in inner and closing not in inner:
                return inner.strip()
    match = _COMMAND.fullmatch(text)
    if match:
        return match[1].strip()
    if text[:1] == "{" and text[-1:] == "}" and _is_one_group(text):
        return text[1:-1].strip()
    return _READ_ALOUD.sub("", text)


def _is_one_group(text: str) -> bool:
    """Whether the first brace of a text is closed by its last character."""
    depth = 0
    for number, sign in enumerate(text):
        depth += (sign == "{") - (sign == "}")
        if depth == 0:
            return number == len(text) - 1
    return False


def _strip_introduction(text: str) -> str:
    match = _COMMAND.match(text) if text.startswith("\\") else None
    if match and _INTRODUCTION.fullmatch(match[1].strip() + " "):
        return text[match.end() :].strip()
    start = 2 if text.startswith("**") else 0
    if (match := _INTRODUCTION.match(text, start)) and match.end() < len(text):
        return text[match.end() :].strip()
    if match := _SAID_BEFORE.fullmatch(text):
        return match[1]
    return text


def _strip_switches(text: str) -> str:
    while match := _SWITCH.match(text):
        text = text[match.end() :]
    for _ in range(_MAX_LAYERS):
        text = _TRAILING.sub("", text).rstrip()
    return text.strip()


_COMMANDS_OF_LOOKS = re.compile(
    r"\\(?:left|right|big|Big|bigg|Bigg|bigl|bigr|Bigl|Bigr|displaystyle|limits)(?![a-zA-Z])\.?|(?<!\\)\\[,;:! ]"
)
_WORD_COMMANDS = re.compile(r"\\(?:text(?:bf|it|rm|up|sf)?|math(?:bf|rm|it|sf)|mbox|hbox|operatorname)\s?(?=\{)")
_TIME = re.compile(r"(?<=\d)([ap])\.?m\.?(?![a-z])")


def spell_text(text: str) -> str:
    r"""Normal form of words: `\text{San Marino}`, `san  marino.` and `**San Marino**` are equal."""
    if len(text) > 2 * MAX_UNWRAPPED_LENGTH:
        return text
    text = _WORD_COMMANDS.sub("", _COMMANDS_OF_LOOKS.sub("", strip_introduction(plain_characters(text))))
    text = re.sub(r"[\s{}~$]+", "", text).casefold().strip(".\"'`*,")
    return _TIME.sub(r"\1m", text)


def spell_latex(text: str) -> str:
    r"""Normal form of formulas, case kept: `\left( 1, 2 \right)` is `(1,2)`, `\dfrac12` is `\frac{1}{2}`."""
    text = plain_latex(text)
    return text if len(text) > MAX_UNWRAPPED_LENGTH else re.sub(r"(?<![0-9.])\s+|\s+(?![0-9.])", "", text)


_BARE_ARGUMENT = r"(\\[a-zA-Z]{2,9}|[0-9a-zA-Z])"
_SHORT_FRACTION = re.compile(rf"\\frac ?{_BARE_ARGUMENT} ?{_BARE_ARGUMENT}")
_FRACTION_SHORT_TOP = re.compile(rf"\\frac ?{_BARE_ARGUMENT} ?(?=\{{)")
_FRACTION_SHORT_BOTTOM = re.compile(rf"(\\frac ?\{{[^{{}}]*\}}) ?{_BARE_ARGUMENT}")
_SHORT_ROOT = re.compile(rf"\\sqrt ?{_BARE_ARGUMENT}")
_UPRIGHT_LETTER = re.compile(r"\\(?:math(?:rm|bf|it|sf)|text) ?\{ ?([a-zA-Z]) ?\}")


def plain_latex(text: str) -> str:
    """A formula without commands that change only its look, and with every argument in braces."""
    if len(text) > 2 * MAX_UNWRAPPED_LENGTH:
        return text
    text = unwrap(plain_characters(text))
    if len(text) > MAX_UNWRAPPED_LENGTH:
        return text
    text = _COMMANDS_OF_LOOKS.sub(lambda found: " " if found[0] == "\\ " else "", text.replace("~", " "))
    text = _UPRIGHT_LETTER.sub(r"\1", re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text))
    text = text.replace(r"\varnothing", r"\emptyset").replace(r"\cfrac", r"\frac")
    text = re.sub(r"\\(leq|geq|neq|lt|gt|to)(?![a-zA-Z])", _short_relation, text)
    text = re.sub(r"\\begin ?\{[bBvV]?(?:matrix|smallmatrix)\}", r"\\begin{pmatrix}", text)
    text = re.sub(r"\\end ?\{[bBvV]?(?:matrix|smallmatrix)\}", r"\\end{pmatrix}", text)
    text = _SHORT_ROOT.sub(r"\\sqrt{\1}", text)
    text = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text)
    text = _FRACTION_SHORT_TOP.sub(r"\\frac{\1}", text)
    return _FRACTION_SHORT_BOTTOM.sub(r"\1{\2}", text).strip()


def _short_relation(found: re.Match[str]) -> str:
    return {"leq": r"\le", "geq": r"\ge", "neq": r"\ne", "lt": "<", "gt": ">", "to": r"\rightarrow"}[found[1]]
