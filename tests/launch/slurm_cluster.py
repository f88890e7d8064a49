"""A real Slurm cluster of one node on loopback, from Debian's packages: munged, slurmctld and slurmd in a folder.

apt-get install -y --no-install-recommends slurm-wlm munge; it runs as root, under a configuration of its own.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from tests.core.test_distributed import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")

# Two partitions over the one node: jobs of `first` preempt those of `later`, which are queued again.
CONFIGURATION = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=5,bf_interval=5
JobRequeue=1
MinJobAge=86400
KillWait=60
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=later Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=first Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
"""


def missing() -> str:
    """Why no cluster can run here; '' if one can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if absent:
        return f"no {', '.join(absent)}: apt-get install -y slurm-wlm munge"
    return "" if os.geteuid() == 0 else "slurmd is started as root"


class Cluster:
    """Daemons in the folder, until `end`."""

    def __init__(self, folder: Path):
        self.folder, self.host = folder, socket.gethostname().partition(".")[0]
        self.daemons: list[subprocess.Popen] = []
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        (folder / "key").write_bytes(os.urandom(128))
        (folder / "key").chmod(0o600)
        text = CONFIGURATION.format(folder=folder, host=self.host, controller=free_port(), daemon=free_port())
        (folder / "slurm.conf").write_text(text)
        munge = [f"--{name}={folder / file}" for name, file in (("key-file", "key"), ("socket", "munge.socket"))]
        munge += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/seed"]
        self._start("munged", "--foreground", "--force", *munge)
        self.until(lambda: (folder / "munge.socket").exists(), 30)
        self._start("slurmctld", "-D")
        self._start("slurmd", "-D", "-N", self.host)
        self.until(lambda: "idle" in self.call("sinfo", "--noheader", "--format=%T"), 60)

    @property
    def environment(self) -> dict[str, str]:
        own = {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        return {**os.environ, **own}

    def _start(self, *command: str) -> None:
        with open(self.folder / f"{command[0]}.out", "w") as out:
            self.daemons.append(subprocess.Popen(command, env=self.environment, stdout=out, stderr=out))

    def call(self, *command: str, **environment: str) -> str:
        """Stdout of a command of Slurm; '' where it failed."""
        given = {**self.environment, **environment}
        return subprocess.run(command, env=given, capture_output=True, text=True, timeout=60).stdout.strip()

    def submit(self, folder: Path, *arguments: str, environment: Mapping[str, str]) -> str:
        """Submits a batch script with its arguments from the folder; the job's number."""
        command = ["sbatch", "--parsable", f"--chdir={folder}", *arguments]
        given = {**self.environment, **environment}
        done = subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def facts(self, job: str) -> dict[str, str]:
        """Fields of `scontrol show job`."""
        words = self.call("scontrol", "show", "job", "--oneliner", job).split()
        return dict(word.partition("=")[::2] for word in words if "=" in word)

    def wait(self, *jobs: str, seconds: int = 1800) -> None:
        """Waits for the end of jobs. A job that is queued again waits two minutes in Slurm; not here."""
        end = time.monotonic() + seconds
        left = set(jobs)
        while left:
            for job in sorted(left):
                facts = self.facts(job)
                state = facts.get("JobState")
                if state == "PENDING" and facts.get("Reason") == "BeginTime":
                    self.call("scontrol", "update", f"JobId={job}", "StartTime=now")
                if state not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "PREEMPTED"):
                    left.remove(job)
            assert time.monotonic() < end, self.call("squeue") + self.tails()
            time.sleep(1)

    def until(self, condition, seconds: int) -> None:
        """Waits for something to become true."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.tails()
            time.sleep(0.2)

    def tails(self) -> str:
        """Ends of the daemons' logs."""
        logs = (*self.folder.glob("*.log"), *self.folder.glob("*.out"))
        return "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in logs)

    def end(self) -> None:
        """Ends jobs and daemons."""
        for job in self.call("squeue", "--noheader", "--format=%i").split():
            self.call("scancel", "--signal=KILL", "--full", job)
            self.call("scancel", job)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
