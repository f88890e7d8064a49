#!/usr/bin/env python3
"""Trains on Cloud TPU slices with nothing but gcloud, and goes on from the last checkpoint when they are taken away.

  python3 launch/tpu_pod.py run --name=r1 --type=v6e-16 --zone=us-east5-b --bucket=BUCKET -- --config=configs/X.py ...

`run` checks the config here, asks for the slice through queued resources, waits, installs a wheel of this checkout and
configs/ on every host, starts the run once, detached, and shows the first host's log. A preempted slice is asked for
again. All that a run needs to be found again is its name, zone and project:

  attach    follows a run that was started before (also: run --attach)
  status    the state of the request and of each host
  logs      the log of the first host so far
  stop      lets the run save and end; the slice stays up
  delete    deletes the slice, after its logs are saved (--force: whether or not they are)
  pack      makes the two files that are shipped; the dry run names it

At the end a slice whose run succeeded is deleted (--keep: it stays), after the logs of its hosts are in WORKDIR/logs. A
slice whose run failed stays up until it is told otherwise, and costs money meanwhile; --on-failure=delete deletes it,
logs first. Ctrl-C stops watching; the run goes on, which the last lines say.

What stands behind -- goes to r1jax.train as it is. The run's folder on each host is ~/r1jax-NAME; there the bucket is
mounted as `bucket`, as in --config.data.path=bucket/math.jsonl, and the run writes to bucket/runs/NAME.

Environment that reaches the hosts, in a file that only their user can read: LIBTPU_INIT_ARGS, XLA_FLAGS,
R1JAX_CONNECT_SECONDS, HF_TOKEN (gated models), WANDB_API_KEY and OPENAI_API_KEY (judges), where they are set here.

Exit codes: 0 success, 2 a mistake on the command line or in the config, 130 Ctrl-C, the run's own code if it failed
(docs/reliability.md), 1 all else.
"""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pod.bundle import ROOT, pack, python, write_environment
from pod.gcloud import QUICK, Gcloud, Slice, call, words
from pod.machine import Machine, Policy
from pod.states import MISTAKE, CloudError

VERBS = ("run", "attach", "status", "logs", "stop", "delete", "pack")
RUNTIMES = {"v6e": "v2-alpha-tpuv6e", "v5p": "v2-alpha-tpuv5", "v5lite": "v2-alpha-tpuv5-lite"}

# The dry run of r1jax.train, which computes nothing; an older one only resolves its config.
CHECK = """
import sys
from r1jax.core.errors import UserError
from r1jax.train import define_flags, main, resolve, split_overrides
values = define_flags()
if "dry_run" in values:
    sys.exit(main([*sys.argv, "--dry_run"]))
rest, overrides = split_overrides(sys.argv[1:])
try:
    values(["r1jax.train", *rest])
    resolve(values.config, None, overrides)
except Exception as error:
    if not isinstance(error, UserError) and "flags" not in type(error).__module__:
        raise
    sys.exit(f"error: {' '.join(str(error).split())}")
"""


def main(argv: Sequence[str]) -> int:
    """Runs one command line and returns the exit code."""
    own, arguments = split(list(argv))
    options = parser().parse_args(own)
    try:
        check_options(options, arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    return Launcher(options, arguments).go()


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    """The part before the first `--` and the part behind it."""
    if "--" not in argv:
        return argv, []
    place = argv.index("--")
    return argv[:place], argv[place + 1 :]


def parser() -> argparse.ArgumentParser:
    """The command line before --."""
    made = argparse.ArgumentParser(
        prog="tpu_pod.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = made.add_argument
    add("verb", choices=VERBS)
    add("--name", default="", help="of the slice and its request: small letters, digits and dashes")
    add("--type", default="", help="accelerator type: v5litepod-16, v5p-64, v6e-16, ...")
    add("--zone", default="", help="as in us-east5-b")
    add("--bucket", default="", help="a Cloud Storage bucket; the run writes to runs/NAME in it and outlives the slice")
    add("--workdir", default="", help="instead: an absolute path on a disk that all hosts have mounted")
    add("--runtime", default="", help="machine image; default: by the type")
    add("--slices", type=int, default=1, help="so many slices, joined by the data-center network; default 1")
    capacity = made.add_mutually_exclusive_group()
    for flag, text in (("--spot", "cheap and preemptible"), ("--reserved", "from your reservation")):
        capacity.add_argument(flag, dest="capacity", action="store_const", const=flag, default="", help=text)
    add("--project", default="", help="default: gcloud's own")
    add("--keep", action="store_true", help="a slice whose run succeeded stays up for another run")
    add("--on-failure", choices=("keep", "delete"), default="keep", help="what becomes of a slice whose run failed")
    add("--tries", type=int, default=20, help="starts of the run, the first included; default 20")
    add("--extra", default="tpu", help="extras of the package, with commas: tpu,wandb; default tpu")
    add("--wheel", default="", help="ship this wheel of r1jax instead of one built from the checkout")
    add("--no-check", action="store_true", help="ask for the slice without checking config and bucket first")
    add("--attach", action="store_true", help="run: follow what runs, start nothing")
    add("--force", action="store_true", help="delete: also while a run goes on, and without its logs")
    add("--dry-run", action="store_true", help="print the commands, as they can be typed, and run none")
    add("--folder", default="", help="where what is shipped is made; default .cache/launch/NAME")
    add("--settle", type=int, default=8, help="polls in which a preemption may yet explain an exit; default 8")
    add("--poll-seconds", type=float, default=15.0, help="between two looks at cloud and hosts; default 15")
    return made


def check_options(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Raises ValueError with a line that says what to change."""
    verb = "attach" if options.verb == "run" and options.attach else options.verb
    options.verb, options.bucket = verb, options.bucket.removeprefix("gs://").rstrip("/")
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,40}[a-z0-9])?", options.name):
        raise ValueError(f"--name must be small letters, digits and dashes, as in --name=r1, got {options.name!r}")
    if not options.zone:
        raise ValueError("--zone is missing, as in --zone=us-east5-b")
    if options.slices < 1 or options.tries < 1 or options.poll_seconds < 0:
        raise ValueError("--slices and --tries must be at least 1, --poll-seconds at least 0")
    if verb not in ("run", "pack"):
        return
    if not options.type:
        raise ValueError("--type is missing, as in --type=v6e-16")
    if bool(options.bucket) == bool(options.workdir):
        raise ValueError("one of --bucket and --workdir is needed; a preempted run goes on from there")
    if options.workdir and not options.workdir.startswith("/"):
        raise ValueError(f"--workdir must be an absolute path on all hosts, got {options.workdir}")
    if not re.fullmatch(r"[a-z0-9._-]*", options.bucket):
        raise ValueError(f"--bucket must be a bucket's name, got {options.bucket}")
    if not arguments:
        raise ValueError("the flags of r1jax.train are missing behind --, as in: -- --config=configs/X.py")
    if options.wheel and not re.fullmatch(r"r1jax-[^/]*\.whl", Path(options.wheel).name):
        raise ValueError(f"--wheel must be a wheel of r1jax, got {options.wheel}")
    if any(re.match(r"--?workdir\b", argument) for argument in arguments):
        raise ValueError("--workdir belongs before --; the run gets it from here")
    if not options.runtime:
        options.runtime = next((image for kind, image in RUNTIMES.items() if options.type.startswith(kind)), "")
    if not options.runtime:
        raise ValueError(f"no machine image is known for {options.type}; name one with --runtime")


class Launcher:
    """One command line, checked."""

    def __init__(self, options: argparse.Namespace, arguments: list[str]):
        self.options, self.arguments = options, arguments
        self.folder = Path(options.folder or ROOT / ".cache" / "launch" / options.name).resolve()
        shared = ("name", "zone", "type", "runtime", "project", "bucket", "slices", "capacity")
        self.slice = Slice(**{key: getattr(options, key) for key in shared})
        self.cloud = Gcloud(self.slice, self.folder, self.prepare)
        self.workdir = options.workdir or f"bucket/runs/{options.name}"
        self.packed = False

    def go(self) -> int:
        """Carries the verb out."""
        if self.options.dry_run:
            print("\n".join(self.dry_lines()))
            return 0
        # SIGINT too: a shell's background job inherits it as ignored.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _interrupt)
        policy = Policy(
            tries=self.options.tries,
            keep=self.options.keep,
            delete_failed=self.options.on_failure == "delete",
            seconds=self.options.poll_seconds,
            settle=self.options.settle,
        )
        machine = Machine(self.cloud, policy, self.options.name, self.hint, _say, _show)
        verbs: dict[str, Callable[[], int]] = {
            "run": lambda: self.run(machine),
            "attach": machine.attach,
            "status": self.status,
            "logs": self.logs,
            "stop": machine.stop,
            "delete": lambda: machine.delete(self.options.force),
            "pack": self.pack,
        }
        try:
            return verbs[self.options.verb]()
        except CloudError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\nstopped; nothing was asked of the cloud", file=sys.stderr)
            return 130

    def run(self, machine: Machine) -> int:
        """Checks what can be checked here, then lets the machine run."""
        if not self.options.no_check:
            wrong = self.check_bucket() or self.check_config()
            if wrong:
                print(f"error: {wrong}\nnothing was asked for (--no-check skips this check)", file=sys.stderr)
                return MISTAKE
        return machine.run()

    def check_config(self) -> str:
        """'' or what is wrong with the arguments of r1jax.train."""
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        command = [python(), "-c", CHECK, *self.arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        _say(done.stdout.rstrip())
        return words(done).removeprefix("error: ") if done.returncode else ""

    def check_bucket(self) -> str:
        """'' or why the bucket cannot be used, in gcloud's words."""
        if not self.options.bucket:
            return ""
        project = [f"--project={self.slice.project}"] if self.slice.project else []
        command = ["gcloud", "storage", "buckets", "describe", f"gs://{self.options.bucket}", *project]
        done = call([*command, "--format=value(name)"], QUICK)
        return f"the bucket {self.options.bucket}: {words(done)}" if done.returncode else ""

    def prepare(self) -> None:
        """Makes what is shipped, the wheel once."""
        if self.packed:
            write_environment(self.folder / "env", self.workdir, os.environ)
        else:
            self.pack()

    def pack(self) -> int:
        """Makes what is shipped."""
        wheel = Path(self.options.wheel) if self.options.wheel else None
        pack(self.folder, self.arguments, self.workdir, self.options.extra, os.environ, wheel)
        self.packed = True
        return 0

    def status(self) -> int:
        """Prints the state of the request and of its hosts."""
        view = self.cloud.observe()
        _say(f"{self.slice.name}: {view.state} {view.message}".strip())
        if view.state != "ready":
            return 0 if view.state != "unknown" else 1
        hosts = self.cloud.hosts()
        if hosts is None:
            _say("not all hosts answer")
            return 1
        for host in sorted(hosts):
            code = f", exit code {host.code}" if host.state == "ended" else ""
            _say(f"  {host.name}: {host.state}{code} {host.attempt}".rstrip())
        return 0

    def logs(self) -> int:
        """Prints the first host's log so far."""
        offset = 0
        while new := self.cloud.log(offset):
            _show(new)
            offset += len(new)
        return 0

    def hint(self, verb: str) -> str:
        """The command line of another verb for the same slice."""
        keys = ("name", "zone", "project", *(("slices",) if self.slice.slices > 1 else ()))
        flags = [f"--{key}={getattr(self.slice, key)}" for key in keys if getattr(self.slice, key)]
        if verb != "run":
            return shlex.join(["python3", "launch/tpu_pod.py", verb, *flags])
        return "the same command as before, with run"

    def own(self, verb: str) -> str:
        """This command line with another verb."""
        skipped: tuple[str, ...] = ("verb", "dry_run", "attach", "no_check", "keep", "force", "on_failure", "tries")
        skipped = (*skipped, "settle", "poll_seconds")
        given = {key: value for key, value in vars(self.options).items() if value and key not in skipped}
        capacity = given.pop("capacity", None)
        flags = [f"--{key}={value}" for key, value in given.items()] + ([capacity] if capacity else [])
        return shlex.join(["python3", str(ROOT / "launch" / "tpu_pod.py"), verb, *flags, "--", *self.arguments])

    def dry_lines(self) -> list[str]:
        """What the verb would do, as lines for a shell; secrets are read from the environment when they run."""
        cloud, nodes = self.cloud, self.slice.nodes
        on_all: Callable[[str], list[str]] = lambda verb: [
            shlex.join(cloud.ssh(node, cloud.host_command(verb))) for node in nodes
        ]
        describe = shlex.join(cloud.describe_command())
        log = shlex.join(cloud.ssh(nodes[0], cloud.host_command("log", "0"), worker="0"))
        status = " && ".join(on_all("status"))
        follow = f"while {{ {status}; }} | grep -q ' running '; do sleep 15; done"
        if self.options.verb == "attach":
            return [follow, log]
        if self.options.verb == "pack":
            return [self.own("pack")]
        if self.options.verb in ("status", "logs", "stop", "delete"):
            simple = {"status": [describe, *on_all("status")], "logs": [log], "stop": on_all("stop")}
            return simple.get(self.options.verb, [" && ".join([*on_all("save"), shlex.join(cloud.delete_command())])])
        install = [shlex.join(command(node)) for command, _ in cloud.install_commands() for node in nodes]
        start = " & ".join(shlex.join(cloud.ssh(node, cloud.host_command("start", "by-hand"))) for node in nodes)
        last = [*on_all("save"), *([] if self.options.keep else [shlex.join(cloud.delete_command())])]
        return [
            self.own("pack"),
            shlex.join(cloud.create_command()),
            f'until [ "$({describe})" = ACTIVE ]; do sleep 30; done',
            *install,
            f"rm {shlex.quote(str(self.folder / 'env'))}",
            start if len(nodes) == 1 else f"{start} & wait",
            follow,
            log,
            " && ".join(last),
        ]


def _say(line: str) -> None:
    print(line, flush=True)


def _show(new: bytes) -> None:
    sys.stdout.buffer.write(new)
    sys.stdout.flush()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    sys.exit(main(sys.argv[1:]))
