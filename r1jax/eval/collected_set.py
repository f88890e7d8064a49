"""Facts of a collected training set for a report page: the share of the samples that was kept, and what dropped the
others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STATISTICS_FILE = "set.stats.json"


def describe_set(workdir: Path) -> dict[str, Any] | None:
    """Facts of the set that was collected in a workdir; None if it has none.

    `title` in words, and rows `parts` of kept samples and of those that each filter dropped: `name, count, share` and
    `width`, the share as a CSS length; `facts`: measures of all samples and of the kept ones.
    """
    try:
        statistics = json.loads((workdir / STATISTICS_FILE).read_text("utf-8"))
        given, kept = statistics["input"], statistics["output"]
        counts = {"kept": kept["samples"], **{name: n for name, n in statistics["dropped"].items() if n}}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
    total = max(1, given["samples"])
    parts = [
        {
            "name": name.replace("_", " "),
            "count": f"{count:,}",
            "share": f"{count / total:.1%}",
            "width": f"{100 * count / total:.2f}%",
        }
        for name, count in counts.items()
    ]
    names = {
        "prompts": ("prompts", ",.0f"),
        "mean_reward": ("mean reward", ".3f"),
        "mean_tokens": ("mean tokens", ",.0f"),
        "median_tokens": ("median tokens", ",.0f"),
        "max_tokens": ("most tokens", ",.0f"),
    }
    facts = [
        {"name": label, "given": format(given[name], form), "kept": format(kept[name], form)}
        for name, (label, form) in names.items()
        if name in given and name in kept
    ]
    return {"title": f"{kept['samples']:,} of {given['samples']:,} samples are kept", "parts": parts, "facts": facts}
