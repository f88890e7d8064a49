"""The state machine of a run on slices that may be taken away at any moment.

It asks for the slice, installs, starts, follows, and asks again after a preemption. Four rules hold on every path
(tests/launch/test_machine.py plays random sequences of events against them):

- a run is started only while no host runs one;
- a slice is deleted only after the logs of its hosts are in the workdir, or after its machines were taken away;
- whatever is still up, or may be, is said in the last lines, with the command that deletes it;
- exit code 0 means that every host ended with 0.
"""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from pod.cloud import Cloud
from pod.states import (
    DELETING,
    DIVERGED,
    DONE,
    FAILED,
    GONE,
    INTERRUPTED,
    LOST,
    MISTAKE,
    PREEMPTED,
    READY,
    STALLED,
    TAKEN,
    UNKNOWN,
    CloudError,
    Host,
    View,
)


@dataclass(frozen=True)
class Policy:
    """Limits, counted in polls of `seconds` where nothing else is said, and the rule for the end."""

    tries: int = 20  # starts of the run, the first included
    keep: bool = False  # a slice whose run succeeded stays up
    delete_failed: bool = False  # a slice whose run failed is deleted once its logs are saved; else it stays up
    seconds: float = 15.0
    patience: int = 80  # polls without an answer before giving up
    settle: int = 8  # polls in which a preemption may yet explain an exit
    drain: int = 12  # polls that hosts may run on after one of them has ended


class LaunchError(Exception):
    """End of the launch: exit code and reason; `failed` where a run has ended and its logs should be kept."""

    def __init__(self, code: int, reason: str, failed: bool = False):
        super().__init__(reason)
        self.code, self.failed = code, failed


class Machine:
    """Runs `cloud` under `policy`. `name` is the request's; `hint` makes a command line of a sub-command to show."""

    def __init__(
        self,
        cloud: Cloud,
        policy: Policy,
        name: str,
        hint: Callable[[str], str],
        say: Callable[[str], None],
        show: Callable[[bytes], None],
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.cloud, self.policy, self.name, self.hint = cloud, policy, name, hint
        self.say, self.show, self.sleep = say, show, sleep
        self.last_said = ""

    def run(self) -> int:
        """From the request to the end. Returns the exit code: the run's own where it failed, 1 for all other
        failures, 130 for Ctrl-C."""
        return self._guard(self._run)

    def attach(self) -> int:
        """Follows a run that was started before, to its end; starts nothing and asks for nothing."""
        return self._guard(self._attach)

    def stop(self) -> int:
        """Stops the run on all hosts, saved; the slice stays up."""

        def stop() -> int:
            self._stop_all()
            self.say(
                f"== the run of {self.name} is stopped" + ("" if self.cloud.save() else "; its logs are not saved")
            )
            self.say_what_stays()
            return DONE

        return self._guard(stop)

    def delete(self, force: bool = False) -> int:
        """Deletes request and slices, after the logs are saved (`force`: whether or not they are)."""

        def delete() -> int:
            if self.cloud.observe().state == GONE:
                self.say(f"== there is no {self.name}")
                return DONE
            if not force:
                self._save_before_delete()
            self._remove()
            self.say(f"== {self.name} is deleted")
            return DONE

        return self._guard(delete)

    def _guard(self, action: Callable[[], int]) -> int:
        try:
            try:
                return action()
            except LaunchError as end:
                self.say(f"error: {end}")
                if end.failed:
                    self._finish_failed()
                self.say_what_stays()
                return end.code
            except CloudError as error:
                self.say(f"error: {error}")
                self.say_what_stays()
                return 1
        except KeyboardInterrupt:
            self.say(f"\n== stopped watching; a run on {self.name} goes on without this command")
            self.say_what_stays()
            return INTERRUPTED

    def say_what_stays(self) -> None:
        """Says whether the slice is up, or may be, and what to type."""
        view = self.cloud.observe()
        if view.state == GONE:
            self.say(f"== nothing is up: the cloud knows no {self.name}")
            return
        state = f"is {view.state}" if view.state != UNKNOWN else f"may be up (it could not be asked: {view.message})"
        self.say(f"== {self.name} {state}; machines that are up cost money until they are deleted")
        self.say(f"==   follow: {self.hint('attach')}")
        self.say(f"==   delete: {self.hint('delete')}")

    def _run(self) -> int:
        for number in range(1, self.policy.tries + 1):
            self.say(f"== try {number} of {self.policy.tries}")
            self._obtain()
            attempt = self._running_attempt()
            if attempt is None:
                attempt = self._start()
            if attempt is not None and self._follow(attempt):
                return self._finish_done()
        raise LaunchError(1, f"given up after {self.policy.tries} tries", failed=True)

    def _attach(self) -> int:
        view = self._know()
        if view.state != READY:
            raise LaunchError(1, f"{self.name} is {view.state}, there is no run to follow {view.message}".strip())
        hosts = self._ask_hosts()
        attempts = {host.attempt for host in hosts if host.state in ("running", "ended")}
        if not attempts:
            raise LaunchError(1, f"no run was started on {self.name}, or its machines were restarted")
        running = {host.attempt for host in hosts if host.state == "running"}
        if self._follow(min(running or attempts)):
            return self._finish_done()
        raise LaunchError(PREEMPTED, f"the run was interrupted; take it up again: {self.hint('run')}")

    def _obtain(self) -> None:
        """Waits until the slices are there, asking for them if need be."""
        refused, asked, absent = "", False, 0
        while True:
            view = self._know()
            self._tell(f"{self.name} is {view.state} {view.message}".strip())
            absent = absent + 1 if view.state == GONE else 0
            if view.state == READY:
                return
            if view.state == GONE and refused and absent > 1:
                raise LaunchError(1, f"the slice was refused: {refused}")
            if view.state == GONE and asked and not refused and absent > self.policy.settle:
                raise LaunchError(1, f"the request {self.name} was made and then deleted by somebody else")
            if view.state == GONE and not asked:
                refused, asked = self.cloud.create(), True
            elif view.state == FAILED:
                if asked:
                    raise LaunchError(1, f"the cloud ended the request: {view.message}")
                self.say("== an earlier request of this name failed; it is deleted and made again")
                self._remove()
            elif view.state == TAKEN:
                self._remove()
                refused, asked = "", False
            self.sleep(self.policy.seconds)

    def _running_attempt(self) -> str | None:
        """The attempt that all hosts run, started earlier; remains on some hosts only are stopped."""
        hosts = self._ask_hosts(taken_is_none=True)
        running = {host.attempt for host in hosts if host.state == "running"}
        if not running:
            return None
        if len(running) == 1 and all(host.state == "running" for host in hosts):
            self.say(f"== a run is under way on {self.name} already; it is followed, nothing is started")
            return running.pop()
        self._stop_all()
        return None

    def _start(self) -> str | None:
        """Installs and starts; None where the slice was taken away meanwhile."""
        attempt = f"{time.strftime('%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        try:
            self.say("== installing on all hosts")
            self.cloud.install()
            self.say(f"== starting attempt {attempt}")
            for left in (2, 1, 0):
                try:
                    self.cloud.start(attempt)
                    break
                except CloudError:
                    if not left:
                        raise
                    self.sleep(self.policy.seconds)  # a host that has started it does not start it again
        except CloudError as error:
            if self._explained():
                return None
            raise LaunchError(1, str(error), failed=True) from None
        return attempt

    def _follow(self, attempt: str) -> bool:
        """Shows the log until the run ends: True for success, False if it should start again. Raises LaunchError."""
        offset, silent, mixed, quiet = 0, 0, 0, 0
        while True:
            view = self.cloud.observe()
            if view.state == TAKEN:
                self.say("== the slice was taken away")
                return False
            if view.state in (GONE, DELETING):
                raise LaunchError(1, f"{self.name} was deleted by somebody else")
            if view.state == FAILED:
                raise LaunchError(1, f"the cloud ended the request: {view.message}")
            new = self.cloud.log(offset)
            offset += len(new)
            self.show(new)
            hosts = self.cloud.hosts()
            silent = silent + 1 if hosts is None else 0
            if silent > self.policy.patience:
                raise LaunchError(1, f"the hosts of {self.name} do not answer; the run may go on there")
            if hosts is not None:
                states = [host.state if host.attempt == attempt else "none" for host in hosts]
                if "running" not in states:
                    quiet += 1
                    if quiet > 1 or all(state == "ended" for state in states):
                        self.show(self.cloud.log(offset))
                        return self._judge([host for host in hosts if host.attempt == attempt], len(hosts))
                else:
                    quiet = 0
                    mixed = mixed + 1 if any(state != "running" for state in states) else 0
                    if mixed > self.policy.drain:
                        self.say("== one host has ended and the others run on: they are stopped")
                        self._stop_all()
                        mixed = 0
            self.sleep(self.policy.seconds)

    def _judge(self, hosts: list[Host], expected: int) -> bool:
        """Decides what the exit codes of a run that no host runs any more mean; as _follow."""
        codes = [host.code for host in hosts if host.state == "ended"]
        if len(codes) == expected and not any(codes):
            return True
        for code, reason in (
            (MISTAKE, "the run ended with a mistake in its flags, files or config (exit code 2)"),
            (DIVERGED, "the run diverged (exit code 77)"),
            (STALLED, "the watchdog saw no progress (exit code 76)"),
        ):
            if code in codes:
                raise LaunchError(code, reason, failed=True)
        if self._explained():
            return False
        others = [code for code in codes if code not in (DONE, PREEMPTED, LOST)]  # 78 is what a dead peer leaves
        if others and len(codes) == expected:
            raise LaunchError(max(1, min(others[0], 255)), f"the run failed (exit code {others[0]})", failed=True)
        self.say("== the run was interrupted on a slice that is still there; it goes on from its last checkpoint")
        return False

    def _explained(self) -> bool:
        """Whether the slice turns out to be taken away, which is noticed by its state only after a while."""
        for _ in range(self.policy.settle):
            if self.cloud.observe().state == TAKEN:
                return True
            self.sleep(self.policy.seconds)
        return False

    def _finish_done(self) -> int:
        self.say("== the run has succeeded")
        saved = self.cloud.save()
        if self.policy.keep:
            self.say_what_stays()
            return DONE
        if not saved:
            raise LaunchError(
                1, "the run succeeded, but its logs could not be saved in the workdir: the slice is not deleted"
            )
        self._remove()
        self.say(f"== {self.name} is deleted")
        return DONE

    def _finish_failed(self) -> None:
        if self.cloud.observe().state != READY:
            return
        self.say(self.cloud.tails())
        saved = self.cloud.save()
        if not saved:
            self.say("== the logs could not be saved in the workdir; they are on the hosts")
        elif self.policy.delete_failed:
            try:
                self._remove()
            except LaunchError as end:
                self.say(f"error: {end}")

    def _save_before_delete(self) -> None:
        """Raises LaunchError if a slice that is there has logs that cannot be saved."""
        view = self._know()
        if view.state != READY:
            return
        hosts = self._ask_hosts()
        if any(host.state == "running" for host in hosts):
            raise LaunchError(1, f"a run is under way; stop it first ({self.hint('stop')}), or add --force")
        if any(host.state != "none" for host in hosts) and not self.cloud.save():
            raise LaunchError(1, "the logs could not be saved in the workdir; delete all the same with --force")

    def _remove(self) -> None:
        """Deletes the request and sees that it is gone; raises LaunchError if it does not go."""
        for _ in range(5):
            self.cloud.delete()
            for _ in range(self.policy.patience):
                view = self.cloud.observe()
                if view.state == GONE:
                    return
                if view.state not in (DELETING, UNKNOWN):
                    break
                self.sleep(self.policy.seconds)
            self.sleep(self.policy.seconds)
        raise LaunchError(1, f"{self.name} COULD NOT BE DELETED and may go on to cost money")

    def _stop_all(self) -> None:
        for _ in range(self.policy.patience):
            self.cloud.stop()
            hosts = self.cloud.hosts()
            if hosts is not None and not any(host.state == "running" for host in hosts):
                return
            if hosts is None and self.cloud.observe().state in (TAKEN, GONE):
                return
            self.sleep(self.policy.seconds)
        raise LaunchError(1, f"the run on {self.name} could not be stopped")

    def _ask_hosts(self, taken_is_none: bool = False) -> list[Host]:
        for _ in range(self.policy.patience):
            hosts = self.cloud.hosts()
            if hosts is not None:
                return hosts
            if taken_is_none and self.cloud.observe().state == TAKEN:
                return []
            self.sleep(self.policy.seconds)
        raise LaunchError(1, f"the hosts of {self.name} do not answer")

    def _know(self) -> View:
        """The state, asked again while the question itself fails."""
        for _ in range(self.policy.patience):
            view = self.cloud.observe()
            if view.state != UNKNOWN:
                return view
            self._tell(f"{self.name} could not be asked for: {view.message}")
            self.sleep(self.policy.seconds)
        raise LaunchError(1, f"the cloud did not answer for {self.name}")

    def _tell(self, line: str) -> None:
        if line != self.last_said:
            self.say(f"== {time.strftime('%H:%M:%S')} {line}")
        self.last_said = line
