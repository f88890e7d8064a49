"""Program of one verifier process: asks math-verify about answers until its input ends.

Run by path with a bare interpreter (`python -P verifier_worker.py SECONDS BYTES`), so it imports math-verify and
nothing of this project, least of all JAX. Requests are lines of JSON, `[gold, answer, latex_gold]`; replies are single
bytes: READY once, then for each request GOLD_READ as soon as the gold is parsed and one of RIGHT, WRONG, UNKNOWN.

A worker ends itself when its parent is gone: at once if idle (its input ends), else when the alarm set for each answer,
of processor time, goes off. The alarm has its default action, which needs no Python: during big-integer arithmetic a
handler would never run.

Settings of math-verify are open-r1's (src/open_r1/rewards.py); the gold is its first argument, also for the length
rewards, where open-r1 passes it second and so pays 25 for x^2+y^2=25. Its own timeouts are off: they are handlers too,
and the parent's deadline covers everything. Answers that it finds equal must also pass `is_sound`.
"""

import functools
import json
import logging
import os
import resource
import signal
import sys
from typing import Any

READY, GOLD_READ, RIGHT, WRONG, UNKNOWN = b"r", b"g", b"1", b"0", b"n"


def main(seconds_per_answer: float, memory_bytes: int) -> None:
    """Serves standard input until it ends, or until memory has grown so much that a new process is safer."""
    replies = os.dup(1)
    os.dup2(2, 1)  # output of a library must never be read as a reply
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _limit_memory(memory_bytes)
    judge = _load_judge()
    # From here on messages are about answers and of no interest; those about missing packages came before.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os.write(replies, READY)
    for line in sys.stdin.buffer:
        gold, answer, latex_gold = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds_per_answer)
        verdict = judge(gold, answer, latex_gold, lambda: os.write(replies, GOLD_READ))
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.write(replies, verdict)
        if _memory_in_use() > memory_bytes // 2:
            break


def _load_judge() -> Any:
    """Imports math-verify (about a second) and returns `judge(gold, answer, latex_gold, announce) -> reply byte`."""
    logging.disable(logging.CRITICAL)
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    def make_config(boxed: Any) -> LatexExtractionConfig:
        return LatexExtractionConfig(
            normalization_config=NormalizationConfig(
                nits=False, malformed_operators=False, basic_latex=True, equations=True, boxed=boxed, units=True
            ),
            boxed_match_priority=0,
            try_extract_without_anchor=False,
        )

    # The two ways in which open-r1 calls it: in accuracy_reward, and in its rewards for length (`latex_gold`), which
    # read only LaTeX in the gold.
    answer_configs = {False: [make_config("all")], True: [make_config(True)]}
    gold_configs = {False: {}, True: {"extraction_config": [LatexExtractionConfig()]}}

    # All completions of a prompt share its gold, so it is parsed once.
    @functools.lru_cache(maxsize=256)
    def parse_gold(gold: str, latex_gold: bool) -> list[Any]:
        return parse(gold, extraction_mode="first_match", parsing_timeout=None, **gold_configs[latex_gold])

    def judge(gold: str, answer: str, latex_gold: bool, announce_gold: Any) -> bytes:
        parsed_gold = parse_gold(gold, latex_gold)
        if not parsed_gold:
            return UNKNOWN
        announce_gold()
        configs = answer_configs[latex_gold]
        parsed = parse(answer, extraction_config=configs, extraction_mode="first_match", parsing_timeout=None)
        try:
            right = verify(parsed_gold, parsed, timeout_seconds=None)
            return RIGHT if right and is_sound(parsed_gold, parsed) else WRONG
        except Exception:  # as in open-r1, an answer that cannot be compared gets no reward
            return UNKNOWN

    is_sound = _load_check()
    judge("1", r"\boxed{1}", False, lambda: None)  # builds the parser's tables before the first deadline
    return judge


def _load_check() -> Any:
    """Returns `is_sound(gold, answer) -> bool`, which rejects three wrong equalities of math-verify.

    It rounds to six places, so that all tiny numbers are equal: below a thousandth the relative difference must be
    tiny. It reads an equation as its right side, so that y/2 = 7 is 7: the left side must be a symbol. It compares
    equations by their solutions, so that all without solutions are equal: one must be a multiple of the other.
    """
    import sympy

    def first(parsed: list[Any]) -> Any:
        return next((one for one in parsed if not isinstance(one, str)), None)

    def is_symbol(side: Any) -> bool:
        return bool(
            side.is_Symbol or getattr(side, "is_Function", False) or side.is_Mul and side.args and is_named(side)
        )

    def is_named(side: Any) -> bool:  # AB = 5, a length, is read as a product
        return all(part.is_Symbol for part in side.args)

    def is_sound(gold: list[Any], answer: list[Any]) -> bool:
        wanted, found = first(gold), first(answer)
        if not isinstance(wanted, sympy.Basic) or not isinstance(found, sympy.Basic):
            return True
        both = isinstance(wanted, sympy.Eq), isinstance(found, sympy.Eq)
        if all(both):
            if wanted == found or is_symbol(wanted.lhs) and is_symbol(found.lhs):
                return True
            if not wanted.free_symbols or not found.free_symbols:
                return False
            ratio = sympy.simplify((wanted.lhs - wanted.rhs) / (found.lhs - found.rhs))
            return bool(ratio.is_number) and ratio != 0
        if any(both):
            return is_symbol(wanted.lhs if both[0] else found.lhs)
        if wanted.is_number and found.is_number:
            try:
                a, b = (complex(sympy.N(one)) for one in (wanted, found))
            except (TypeError, ValueError):  # a percentage, kept unevaluated
                return True
            size = max(abs(a), abs(b))
            return size >= 1e-3 or abs(a - b) <= 1e-4 * size
        return True

    return is_sound


def _limit_memory(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    except (ValueError, OSError):  # macOS refuses to set this limit
        pass


def _memory_in_use() -> int:
    """Address space in bytes; 0 where /proc is absent. (getrusage counts the parent's peak, inherited.)"""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    try:
        main(float(sys.argv[1]), int(sys.argv[2]))
    except BrokenPipeError:  # the parent is gone
        os._exit(1)
