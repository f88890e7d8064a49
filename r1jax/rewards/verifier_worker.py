"""Program of one verifier process: asks math-verify about answers until its input ends.

Run by path with a bare interpreter (`python -P verifier_worker.py SECONDS BYTES`), so it imports math-verify and
nothing of this project, least of all JAX. Requests are lines of JSON, `[gold, answer, latex_gold]`; replies are single
bytes: READY once, then for each request GOLD_READ as soon as the gold is parsed and one of RIGHT, WRONG, UNKNOWN.

A worker ends itself when its parent is gone: at once if idle (its input ends), else when the alarm set for each answer
goes off. The alarm has its default action, which needs no Python: during big-integer arithmetic a handler would never
run.

Settings and argument order of math-verify are open-r1's (src/open_r1/rewards.py). Its own timeouts are off: they are
handlers too, and the parent's deadline covers everything.
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
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _limit_memory(memory_bytes)
    judge = _load_judge()
    # From here on messages are about answers and of no interest; those about missing packages came before.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os.write(replies, READY)
    for line in sys.stdin.buffer:
        gold, answer, latex_gold = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds_per_answer)
        verdict = judge(gold, answer, latex_gold, lambda: os.write(replies, GOLD_READ))
        signal.setitimer(signal.ITIMER_REAL, 0)
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
    # read only LaTeX in the gold and give the answer first.
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
        pair = (parsed, parsed_gold) if latex_gold else (parsed_gold, parsed)
        try:
            return RIGHT if verify(*pair, timeout_seconds=None) else WRONG
        except Exception:  # as in open-r1, an answer that cannot be compared gets no reward
            return UNKNOWN

    judge("1", r"\boxed{1}", False, lambda: None)  # builds the parser's tables before the first deadline
    return judge


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
