"""All that the state machine asks of the world: a cloud and the hosts of its slices."""

from typing import Protocol

from pod.states import Host, View


class Cloud(Protocol):
    """All that the machine asks of the world. Each call returns within a bounded time."""

    def observe(self) -> View:
        """The state of the request and its slices."""

    def create(self) -> str:
        """Asks for the slices; returns '' or the error in the cloud's words."""

    def delete(self) -> None:
        """Asks for the deletion of the request with its slices; whether it worked is seen by `observe`."""

    def hosts(self) -> list[Host] | None:
        """The answers of all hosts; None if not every host answered."""

    def install(self) -> None:
        """Copies and installs on all hosts; raises CloudError."""

    def start(self, attempt: str) -> None:
        """Starts the attempt on all hosts, each at most once however often it is called; raises CloudError."""

    def stop(self) -> None:
        """Asks the processes on all hosts to save and end, and kills those that do not."""

    def save(self) -> bool:
        """Copies the logs of all hosts into the workdir; whether that worked on all."""

    def log(self, offset: int) -> bytes:
        """The first host's log from the offset on; empty if there is nothing new or the host did not answer."""

    def tails(self) -> str:
        """The last lines of each host's log, where they can be had."""
