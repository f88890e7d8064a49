"""Runs all hostile programs and their twins as the user that starts it; prints what earned what it should not.

python -m tests.sandbox.ordinary_user
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

from r1jax.sandbox.box import Limits, find_fault
from r1jax.sandbox.cgroup import _find_parents
from r1jax.sandbox.execution import LocalProvider, Program, Test
from tests.rewards.hostile_programs import ASSERTS, STDIN
from tests.sandbox.hostile_memory import LIMITS, MOST_MIB, PROGRAMS, read_held

WORDS = {"SECRET": __file__, "PORT": "22", "PARENT": str(os.getpid()), "TOKEN": "none"}


def main():
    print(f"user {os.geteuid()}, control groups {sorted(_find_parents())}, fault {find_fault()}")
    provider, wrong = LocalProvider(), []
    limits = Limits(seconds=8.0, cpu_seconds=8.0)

    def judge(job):
        name, source, hostile, test = job
        for word, value in WORDS.items():
            source = source.replace(word, value)
        outcome = provider.run(Program(source), test)
        passes = (
            outcome is not None
            and outcome.status == "ok"
            and (test.asserts is not None or outcome.stdout.split() == [b"42"])
        )
        if passes is hostile:
            wrong.append((name, "hostile" if hostile else "honest", outcome))

    jobs = []
    for table, test in (
        (STDIN, Test(stdin="21\n", limits=limits)),
        (ASSERTS, Test(asserts="assert twice(21) == 42", limits=limits)),
    ):
        for name, pair in table.items():
            jobs += [(name, source, hostile, test) for source, hostile in zip(pair, (True, False), strict=True)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(judge, jobs))
    for name, source in PROGRAMS.items():
        outcome = provider.run(Program(source), Test(limits=Limits(**LIMITS)))
        if outcome is None or read_held(outcome) > MOST_MIB:
            wrong.append((name, outcome))
    print(f"{len(jobs) + len(PROGRAMS)} programs, wrong: {wrong}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
