"""The state machine of launch/tpu_pod.py under random sequences of events, and in the cases that were once wrong."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pod.machine import LaunchError, Machine, Policy
from pod.states import DELETING, FAILED, GONE, READY, TAKEN, UNKNOWN, WAITING, CloudError, Host, View

EVENTS = (
    *("calm",) * 8,
    "blind",  # questions to the cloud fail
    "deaf",  # hosts do not answer
    "preempt",
    "kill",  # a process dies
    "reboot",  # a host loses its process without an exit code
    "mistake",
    "term",  # all processes save and end
    "alone",  # a host is restarted, and the others end for it
    "finish",
    "fail",
    "steal",  # somebody else deletes the slice
    "full",  # logs cannot be copied, deletions are refused
)


class World:
    """A cloud and two hosts in memory. Each question lets the next event happen; rules are asserted as calls come."""

    def __init__(self, events: list[str]):
        self.events: Iterator[str] = iter(events)
        self.state, self.event, self.turns = GONE, "calm", 0
        self.run: dict[str, tuple[str, int, str]] = {}  # host: state, code, attempt
        self.saved, self.said, self.ends, self.starts, self.stuck = True, [], [], 0, False

    def observe(self) -> View:
        self.turns += 1
        assert self.turns < 20_000, "the machine does not end"
        self.event = next(self.events, "finish" if self.turns > 300 else "calm")
        self.happen(self.event)
        return View(UNKNOWN, "no route") if self.event == "blind" else View(self.state, "")

    def happen(self, event: str) -> None:
        if self.state == WAITING:
            self.state = FAILED if event == "fail" else READY if event == "calm" else WAITING
        elif self.state == DELETING:
            self.state = GONE
        elif self.state == READY and event in ("preempt", "steal"):
            self.state, self.run, self.saved = TAKEN if event == "preempt" else GONE, {}, True
        running = [host for host, (state, _, _) in self.run.items() if state == "running"]
        codes = {"mistake": 2, "term": 75, "finish": 0, "alone": 78}
        for host in running if event in codes else running[:1] if event in ("kill", "reboot") else ():
            attempt = self.run[host][2]
            is_lost = event == "reboot" or (event == "alone" and host == running[0])
            self.run[host] = ("lost", 0, attempt) if is_lost else ("ended", codes.get(event, 134), attempt)
        if event == "finish" and running:
            self.ends.append({(state, code) for state, code, _ in self.run.values()})

    def create(self) -> str:
        assert self.state == GONE, "asked for a slice that is there"
        if self.event == "full":
            return "quota exceeded"
        self.state = WAITING
        return ""

    def delete(self) -> None:
        assert self.saved or self.state != READY, "a slice is deleted before its logs are saved"
        assert self.state != READY or not self.is_running(), "a slice is deleted under its run"
        if self.event != "full" and not self.stuck:
            self.state, self.run = DELETING, {}

    def hosts(self) -> list[Host] | None:
        if self.state != READY or self.event in ("deaf", "full"):
            return None
        return [Host(host, *self.run.get(host, ("none", 0, ""))) for host in "ab"]

    def install(self) -> None:
        if self.state != READY or self.event == "deaf":
            raise CloudError("ssh ended")

    def start(self, attempt: str) -> None:
        for host in "ab":
            if self.state != READY or (self.event == "deaf" and host == "b"):
                raise CloudError("ssh ended")
            if self.run.get(host, ("", 0, ""))[2] != attempt:
                assert self.run.get(host, ("none",))[0] != "running", "a run is started beside another"
                others = [end for end, (state, _, other) in self.run.items() if state == "running" and other != attempt]
                assert not others, "a run is started while another goes on elsewhere"
                self.run[host], self.saved = ("running", 0, attempt), False
                self.starts += 1

    def stop(self) -> None:
        for host, (state, _, attempt) in self.run.items():
            if state == "running" and self.event != "deaf":
                self.run[host] = ("ended", 75, attempt)

    def save(self) -> bool:
        self.saved = self.state == READY and self.event not in ("full", "deaf")
        return self.saved

    def log(self, offset: int) -> bytes:
        return b""

    def tails(self) -> str:
        return "tails"

    def is_running(self) -> bool:
        return any(state == "running" for state, _, _ in self.run.values())

    def machine(self, **policy: object) -> Machine:
        limits = {"tries": 4, "seconds": 0.0, "patience": 12, "settle": 3, "drain": 3, **policy}
        return Machine(self, Policy(**limits), "r1", lambda verb: f"{verb} r1", self.said.append, lambda _: None, _no)


def _no(_: float) -> None:
    pass


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    events=st.lists(st.sampled_from(EVENTS), max_size=120),
    first=st.sampled_from((GONE, READY, FAILED, TAKEN, DELETING)),
    keep=st.booleans(),
    delete_failed=st.booleans(),
)
def test_no_sequence_of_events_breaks_a_rule(events: list[str], first: str, keep: bool, delete_failed: bool) -> None:
    world = World(events)
    world.state = first
    code = world.machine(keep=keep, delete_failed=delete_failed).run()
    text = "\n".join(world.said)
    if code == 0:
        assert world.run or world.starts, "success without a run"
        assert {("ended", 0)} in world.ends, "success, but not every host ended with 0"
    else:
        assert "error: " in text
    if world.state not in (GONE, DELETING):
        assert "delete: delete r1" in text, f"{world.state} silently"


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(events=st.lists(st.sampled_from(EVENTS), max_size=60), started=st.booleans(), force=st.booleans())
def test_other_verbs_keep_the_rules_too(events: list[str], started: bool, force: bool) -> None:
    for verb in ("attach", "stop", "delete"):
        world = World(events)
        world.state = READY
        if started:
            world.start("earlier")
        before = world.starts
        code = world.machine().delete() if verb == "delete" else getattr(world.machine(), verb)()
        assert world.starts == before, "a run is started"
        assert world.state in (GONE, DELETING) or "delete r1" in "\n".join(world.said) or code == 0 == world.starts
        if verb == "delete" and code == 0:
            assert world.state == GONE


def test_an_undisturbed_run_is_asked_for_started_once_and_deleted() -> None:
    world = World(["calm"] * 8 + ["finish"])
    assert world.machine().run() == 0
    assert world.starts == 2 and world.state == GONE and world.said[-1] == "== r1 is deleted"


def test_one_failing_question_throws_no_slice_away() -> None:
    world = World(["calm", "calm", "blind", "blind", "calm", "blind", "calm", "finish"])
    assert world.machine().run() == 0 and world.starts == 2


def test_a_failed_request_ends_with_its_error_and_is_not_repeated() -> None:
    world = World(["calm", "fail", "calm", "calm"])
    assert world.machine().run() == 1
    assert "error: the cloud ended the request" in "\n".join(world.said) and world.starts == 0


def test_a_refused_request_ends_with_the_words_of_the_cloud() -> None:
    world = World(["full", "calm", "calm"])
    assert world.machine().run() == 1
    assert "error: the slice was refused: quota exceeded" in world.said
    assert world.said[-1] == "== nothing is up: the cloud knows no r1"


def test_a_preempted_run_is_started_again_and_a_dead_peer_is_explained_by_the_preemption() -> None:
    world = World(["calm"] * 4 + ["kill", "calm", "calm", "calm", "calm", "preempt"] + ["calm"] * 9 + ["finish"])
    assert world.machine(settle=9, drain=2).run() == 0 and world.starts == 4


def test_a_preemption_is_noticed_while_hosts_do_not_answer_and_the_run_taken_up_again() -> None:
    world = World(["calm"] * 4 + ["deaf", "deaf", "preempt"] + ["calm"] * 9 + ["finish"])
    assert world.machine().run() == 0 and world.starts == 4
    assert "== the slice was taken away" in world.said


def test_a_host_that_was_lost_is_no_success_whatever_the_other_says() -> None:
    world = World(["calm"] * 4 + ["reboot", "finish", "calm", "calm", "calm", "calm", "calm", "calm", "calm", "finish"])
    assert world.machine().run() == 0 and world.starts == 4


def test_a_run_that_lost_a_host_goes_on() -> None:
    world = World(["calm"] * 4 + ["alone"] + ["calm"] * 9 + ["finish"])
    assert world.machine().run() == 0 and world.starts == 4


def test_the_failure_of_one_process_is_reported_and_not_what_it_left_to_the_others() -> None:
    world = World([])
    hosts = [Host("a", "ended", 78, "1"), Host("b", "ended", 134, "1")]
    with pytest.raises(LaunchError, match="exit code 134"):
        world.machine()._judge(hosts, 2)


def test_a_mistake_ends_at_once_and_the_slice_stays_up_with_a_word() -> None:
    world = World(["calm"] * 4 + ["mistake"])
    assert world.machine().run() == 2
    assert world.state == READY and world.saved and "tails" in world.said
    assert any("cost money" in line for line in world.said)


def test_a_failed_slice_is_deleted_after_its_logs_where_that_was_asked() -> None:
    world = World(["calm"] * 4 + ["mistake"])
    assert world.machine(delete_failed=True).run() == 2 and world.state == GONE
    assert world.said[-1] == "== nothing is up: the cloud knows no r1"


def test_a_deletion_that_does_not_work_is_loud() -> None:
    world = World(["calm"] * 4 + ["finish"])
    world.stuck = True
    assert world.machine().run() == 1
    assert "error: r1 COULD NOT BE DELETED and may go on to cost money" in world.said
    assert world.said[-1] == "==   delete: delete r1"


def test_a_slice_whose_logs_cannot_be_saved_is_not_deleted() -> None:
    world = World(["calm"] * 4 + ["finish"])
    world.save = lambda: False
    assert world.machine().run() == 1 and world.state == READY
    assert "its logs could not be saved" in "\n".join(world.said)


def test_ctrl_c_says_what_stays_up() -> None:
    world = World(["calm"] * 4)
    machine = world.machine()
    polls = iter([None] * 3)

    def interrupted(_: float) -> None:
        if next(polls, "over") == "over":
            raise KeyboardInterrupt

    machine.sleep = interrupted
    assert machine.run() == 130
    assert "== r1 is ready; machines that are up cost money until they are deleted" in world.said


def test_what_runs_already_is_followed() -> None:
    world = World(["calm"] * 5 + ["finish"])
    world.state = READY
    world.start("earlier")
    assert world.machine().run() == 0 and world.starts == 2


def test_remains_of_a_run_on_one_host_are_stopped_first() -> None:
    world = World(["calm"] * 9 + ["finish"])
    world.state = READY
    world.run = {"a": ("running", 0, "earlier"), "b": ("ended", 134, "earlier")}
    assert world.machine().run() == 0 and world.starts == 2
