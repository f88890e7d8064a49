"""States of a slice, of its hosts and of the run, as the state machine sees them."""

from typing import NamedTuple

# Exit codes of r1jax.train that decide what happens next (r1jax/core/errors.py).
DONE, MISTAKE, PREEMPTED, STALLED, DIVERGED, LOST, INTERRUPTED = 0, 2, 75, 76, 77, 78, 130

GONE = "not found"  # the cloud has answered that there is no such request
WAITING = "waiting"  # asked for, or under repair
READY = "ready"  # every slice has its machines
TAKEN = "taken away"  # preempted: the request remains, its machines do not
FAILED = "failed"  # the cloud will not serve the request; View.message says why
DELETING = "being deleted"
UNKNOWN = "unknown"  # the question itself failed (network, rights): nothing may be concluded


class View(NamedTuple):
    """One answer to the question in what state the request is."""

    state: str
    message: str = ""


class Host(NamedTuple):
    """One host's answer: `none` (nothing was started), `running`, `ended` (with its exit code) or `lost` (started,
    neither running nor ended: the machine was restarted, or the process was killed with its parent)."""

    name: str
    state: str
    code: int
    attempt: str


class CloudError(Exception):
    """A step failed; the message holds the words of the program that failed."""
