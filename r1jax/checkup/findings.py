"""Findings about a machine: a verdict on one of its parts, with figures, and a cure where something is wrong.

Every process of a run makes its own; `join_findings` makes one of them, which names the hosts that differ. A check that
raises is a finding too: a machine is not right where a check of it does not end.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

from r1jax.core import distributed
from r1jax.core.startup.voice import activity

Verdict = Literal["right", "wrong", "measured", "skipped"]  # measured: a figure that nothing says how large to be


@dataclasses.dataclass(frozen=True)
class Finding:
    """The verdict on one part of the machine.

    text: one line, with the figures that decided. cure: what to do where it is wrong. figures: plain data.
    """

    name: str
    verdict: Verdict
    text: str
    cure: str = ""
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)

    def line(self) -> str:
        """The finding as text, with its cure on a line of its own."""
        head = f"{self.name:<13}{'WRONG' if self.verdict == 'wrong' else self.verdict:<10}{self.text}"
        return f"{head}\n{'':<23}cure: {self.cure}" if self.verdict == "wrong" and self.cure else head


class Examination:
    """Findings in the order of their checks, joined over all processes, which call everything here together.

    hosts: names of the processes. show: called with the text of each finding.
    """

    def __init__(self, hosts: Sequence[str], show: Callable[[str], None]):
        self.hosts, self.show = hosts, show
        self.findings: list[Finding] = []

    def do(self, name: str, check: Callable[[], Finding]) -> Finding:
        """Runs a check and adds what all processes found; returns this process's own finding."""
        with activity(f"checking {name}"):
            own = run_check(name, check)
        texts = distributed.texts_from_all(json.dumps(dataclasses.asdict(own)))
        self.add(join_findings([Finding(**json.loads(text)) for text in texts], self.hosts))
        return own

    def add(self, finding: Finding) -> None:
        """Adds and shows a finding that is the same in every process."""
        self.findings.append(finding)
        self.show(finding.line())

    @property
    def wrong(self) -> list[str]:
        """Names of the checks that found something wrong."""
        return [finding.name for finding in self.findings if finding.verdict == "wrong"]


def run_check(name: str, check: Callable[[], Finding]) -> Finding:
    """The finding of `check`; an error is one too."""
    try:
        return check()
    except Exception as error:
        words = " ".join(str(error).split())[:300]
        return Finding(name, "wrong", f"the check ended with {type(error).__name__}: {words}", "see the error")


def join_findings(findings: Sequence[Finding], hosts: Sequence[str]) -> Finding:
    """One finding of those of all processes: wrong if any is, with the hosts where it is."""
    first = findings[0]
    figures = (
        first.figures if len(findings) == 1 else {host: f.figures for host, f in zip(hosts, findings, strict=True)}
    )
    wrong = [(host, finding) for host, finding in zip(hosts, findings, strict=True) if finding.verdict == "wrong"]
    if not wrong:
        return dataclasses.replace(first, figures=figures)
    texts = dict.fromkeys(finding.text for _, finding in wrong)
    said = [(text, [host for host, finding in wrong if finding.text == text]) for text in texts]
    alone = len(findings) == 1 or len(texts) == 1 and len(wrong) == len(findings)
    text = "; ".join(words if alone else f"{', '.join(names)}: {words}" for words, names in said)
    return Finding(first.name, "wrong", text, wrong[0][1].cure, figures)
