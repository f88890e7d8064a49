"""Facts about the processes of a run, exchanged and compared before any device is used: hosts, versions, flags.

Processes of different versions of jax or of r1jax compile different programs and then wait for each other in vain, or
compute something else than one process would; so they are refused by name. Differences that may be harmless are logged.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import logging
import os
import platform
import socket
import sys
from collections.abc import Callable, Sequence

import jax
from jax._src import distributed as _jax_distributed  # its key-value store has no public name

import r1jax
from r1jax.core import console
from r1jax.core.errors import UserError
from r1jax.core.processes import failures

log = logging.getLogger(__name__)

PACKAGES = ("jax", "jaxlib", "libtpu")
MUST_AGREE = ("r1jax", *PACKAGES)
SETTINGS = ("JAX_PLATFORMS", "XLA_FLAGS", "LIBTPU_INIT_ARGS")
WAIT_SECONDS = 300  # for the facts of a process that has connected


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts that a process tells the others.

    arguments: of its command line. settings: the variables of SETTINGS that are set.
    """

    host: str
    versions: dict[str, str]
    arguments: list[str]
    settings: dict[str, str]


_told: list[Facts] = []  # of all processes, once they are exchanged
_introduced: set[int] = set()  # this process, once it has compared itself with the others


def meet() -> list[Facts]:
    """The facts of all processes, in order; exchanged once a process."""
    if not _told:
        _told.extend(_exchange(find_index()))
    return _told


def find_index() -> int:
    """This process's number. jax.process_index() would start the devices."""
    return _jax_distributed.global_state.process_id or 0


def introduce(agree: Callable[[], None] = lambda: None) -> None:
    """Compares this process with the others of its run, names its log lines, and logs who takes part (once a process).

    agree: makes further comparisons before devices are used, each time that a run is opened.

    The first process shows what a run shows from here on, the others their warnings. Raises UserError in every process
    where two have different versions of a package of MUST_AGREE.
    """
    said, index, names = bool(_introduced), find_index(), name_processes(meet())
    _introduced.add(index)
    if len(names) > 1:
        if not said:
            log.info("process %d of %d is %s; %s shows progress", index + 1, len(names), names[index], names[0])
        console.name_process(names[index], shows=index == 0)
        failures.set_names(names)
    if said:
        agree()
        return
    differences = compare(_told)
    agree()
    devices = [(device.process_index, device.device_kind) for device in jax.devices()]  # waits for all processes
    if index == 0:
        for line in differences:
            log.warning(line)
        if len(names) > 1:
            log.info(describe(_told, devices))


@functools.cache  # once a process, as `introduce`
def describe_alone() -> None:
    """Logs the process, devices and versions of a run of one process, once what could be wrong with its config is
    checked: a user's mistake is one line.
    """
    if len(_told) == 1:
        log.info(describe(_told, [(device.process_index, device.device_kind) for device in jax.devices()]))


def find_facts() -> Facts:
    """The facts of this process."""
    versions = {"Python": platform.python_version(), "r1jax": r1jax.__version__}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    settings = {key: os.environ[key] for key in SETTINGS if os.environ.get(key)}
    return Facts(socket.gethostname(), versions, sys.argv[1:], settings)


def compare(facts: Sequence[Facts]) -> list[str]:
    """Differences of the processes from the first that may be harmless, a line each.

    Raises UserError where versions differ that must not.
    """
    for name in MUST_AGREE:
        found = [fact.versions.get(name, "none") for fact in facts]
        if len(set(found)) > 1:
            raise UserError(
                f"the processes of a run need one version of {name}, but {_group(facts, found)}; install the same "
                "packages on all hosts"
            )
    lines = []
    found = [fact.versions["Python"] for fact in facts]
    if len(set(found)) > 1:
        lines.append(f"the versions of Python differ: {_group(facts, found)}")
    found = [" ".join(fact.arguments) for fact in facts]
    if len(set(found)) > 1:
        lines.append(f"the command lines differ, and processes of different configs hang: {_group(facts, found)}")
    for key in SETTINGS:
        found = [fact.settings.get(key, "") for fact in facts]
        if len(set(found)) > 1:
            lines.append(f"{key} differs: {_group(facts, found)}")
    return lines


def describe(facts: Sequence[Facts], devices: Sequence[tuple[int, str]]) -> str:
    """One line that names hosts, devices and versions. devices: the process and the kind of each."""
    owners = [owner for owner, _ in devices]
    counts = [owners.count(index) for index in range(len(facts))]
    versions = ", ".join(f"{name} {version}" for name, version in facts[0].versions.items())
    total = f"{len(devices)} x {' and '.join(dict.fromkeys(kind for _, kind in devices))}"
    if len(facts) == 1:
        return f"{facts[0].host}: {total}; {versions}"
    names = name_processes(facts)
    if len(set(counts)) == 1:
        return f"{len(facts)} processes, {total}, {counts[0]} each: {' '.join(names)}; {versions}"
    shown = " ".join(f"{name} ({number})" for name, number in zip(names, counts, strict=True))
    return f"{len(facts)} processes, {total}, not the same number each: {shown}; {versions}"


def name_processes(facts: Sequence[Facts]) -> list[str]:
    """Names of the processes: their host's, with a number where several share one."""
    hosts = [fact.host for fact in facts]
    alone = len(set(hosts)) == len(hosts)
    return hosts if alone else [f"{host}/{index}" for index, host in enumerate(hosts)]


def _exchange(index: int) -> list[Facts]:
    """The facts of all processes, in order."""
    own, state = find_facts(), _jax_distributed.global_state
    if state.client is None or state.num_processes == 1:
        return [own]
    state.client.key_value_set(f"r1jax/facts/{index}", json.dumps(dataclasses.asdict(own)))
    keys = [f"r1jax/facts/{number}" for number in range(state.num_processes)]
    return [Facts(**json.loads(state.client.blocking_key_value_get(key, 1000 * WAIT_SECONDS))) for key in keys]


def _group(facts: Sequence[Facts], values: Sequence[str]) -> str:
    """Values with the processes that have them: `0.10.2 on a, b and 0.12.0 on c`."""
    groups: dict[str, list[str]] = {}
    for name, value in zip(name_processes(facts), values, strict=True):
        groups.setdefault(value, []).append(name)
    return " and ".join(f"{value or 'nothing'} on {', '.join(names)}" for value, names in groups.items())
