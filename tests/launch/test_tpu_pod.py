"""launch/tpu_pod.py against a stand-in cloud that runs what is sent to its hosts: the faults that were once there."""

import json
import os
import signal
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from stand_in import FLAGS, ROOT, SECRET, StandIn


def test_a_run_is_installed_started_once_on_each_host_followed_and_its_slice_deleted(cloud: StandIn) -> None:
    cloud.train('echo "training with $*"; echo "$R1JAX_CLUSTER $JAX_COMPILATION_CACHE_DIR $LIBTPU_INIT_ARGS"')
    done = cloud.run(train=("--config=configs/x.py:a=1,b=2", '--config.text=it\'s "so"\nand $so', "--config.a=b c"))
    assert done.returncode == 0, done.stdout
    assert cloud.started() == ["r1-w-0", "r1-w-1"] or cloud.started() == ["r1-w-1", "r1-w-0"]
    assert "training with -m r1jax.train --workdir=bucket/runs/r1 --config=configs/x.py:a=1,b=2" in done.stdout
    assert '--config.text=it\'s "so"\nand $so --config.a=b c' in done.stdout
    assert "tpu bucket/runs/r1/cache --a=1 --b=2" in done.stdout
    assert cloud.logs().count("exit code 0") == 2
    assert cloud.verbs()[-2:] == ["queued-resources delete", "queued-resources describe"]
    assert done.stdout.rstrip().endswith("== r1 is deleted")


def test_nothing_needs_root_and_a_kept_slice_is_used_again_with_its_mount(cloud: StandIn) -> None:
    for _ in range(2):
        done = cloud.run("run", "--keep")
        assert done.returncode == 0, done.stdout
    assert len((cloud.folder / "gcsfuse").read_text().splitlines()) == 2  # one a host
    assert not (cloud.folder / "sudo").exists()
    assert "r1 is ready; machines that are up cost money" in done.stdout
    assert "delete: python3 launch/tpu_pod.py delete --name=r1 --zone=z" in done.stdout
    assert cloud.verbs().count("queued-resources create") == 1 and len(cloud.started()) == 4


def test_a_host_without_a_whole_python_gets_one_by_uv(cloud: StandIn) -> None:
    assert cloud.run().returncode == 0
    assert (cloud.folder / "uv").read_text().count("--python 3.12") == 2
    assert "[tpu]" in (cloud.folder / "pip").read_text()


def test_a_failed_mount_starts_nothing_and_keeps_the_slice(cloud: StandIn) -> None:
    (cloud.folder / "no-mount").touch()
    done = cloud.run()
    assert done.returncode == 1 and not cloud.started()
    assert "gcsfuse: permission denied" in done.stdout or "error" in done.stdout
    assert "machines that are up cost money" in done.stdout and "queued-resources delete" not in cloud.verbs()


def test_a_mount_that_is_lost_before_the_start_starts_nothing(cloud: StandIn) -> None:
    assert cloud.run("run", "--keep").returncode == 0
    host = cloud.folder / "hosts" / "r1-w-0"
    (host / "r1jax-r1" / "bucket").unlink()
    started = subprocess.run(
        ["bash", "r1jax-r1/host.sh", "start", "x"],
        cwd=host,
        env={"PATH": f"{ROOT}/tests/launch/standin/host:/usr/bin:/bin", "STANDIN_HOST": "h", "HOME": str(host)},
        capture_output=True,
        text=True,
    )
    assert started.returncode == 1 and "the bucket is not mounted" in started.stderr


@pytest.mark.parametrize("step", ["scp", "host.sh install", "mkdir"])
def test_a_failed_step_of_the_installation_starts_nothing(cloud: StandIn, step: str) -> None:
    cloud.plan((step, "error disk full"))
    done = cloud.run()
    assert done.returncode == 1 and "disk full" in done.stdout and not cloud.started()


def test_lost_answers_start_no_second_run_and_lose_no_log(cloud: StandIn) -> None:
    cloud.train("echo the only line of $STANDIN_HOST; sleep 1")
    cloud.plan(("host.sh start", "drop"), ("host.sh start", "drop"), ("host.sh log", "error lost"))
    done = cloud.run()
    assert done.returncode == 0, done.stdout
    assert sorted(cloud.started()) == ["r1-w-0", "r1-w-1"]
    assert done.stdout.count("the only line of r1-w-0") == 1


def test_a_failing_question_neither_deletes_nor_restarts(cloud: StandIn) -> None:
    cloud.train("sleep 1")
    cloud.plan(("resources describe", "error network unreachable"), ("install", "error timed out"))
    done = cloud.run("run", "--keep")
    assert "network unreachable" in done.stdout
    assert done.returncode == 1 and "timed out" in done.stdout  # of the installation; the slice stays
    cloud.plan((r"host.sh status", "error reset"), ("resources describe", "error reset"))
    done = cloud.run()
    assert done.returncode == 0 and len(cloud.started()) == 2
    assert cloud.verbs().count("queued-resources create") == 1


def test_a_preempted_run_goes_on_on_new_machines_with_all_logs(cloud: StandIn) -> None:
    cloud.train('if [ -e "$STANDIN/again" ]; then echo resumed; exit 0; fi; echo first; sleep 600')
    process = cloud.open()
    cloud.until(lambda: len(cloud.started()) == 2)
    cloud.until(lambda: "host.sh status" in str(cloud.calls()[-3:]))
    (cloud.folder / "again").touch()
    cloud.plan(("resources describe", "state SUSPENDED"))
    cloud.until(lambda: cloud.verbs().count("queued-resources create") == 2)
    cloud.hosts("r1-w-0", "r1-w-1", queue=["ACTIVE"])
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    assert "the slice was taken away" in out and "try 2 of 20" in out and "resumed" in out
    assert cloud.verbs().count("queued-resources create") == 2 and len(cloud.started()) == 4


def test_a_run_that_was_stopped_by_its_machine_goes_on_on_the_same_slice(cloud: StandIn) -> None:
    cloud.train('n=$(ls "$STANDIN/started" | wc -l); [ $n -gt 2 ] && exit 0; sleep 1; exit 75')
    done = cloud.run()
    assert done.returncode == 0 and "goes on from its last checkpoint" in done.stdout
    assert cloud.verbs().count("queued-resources create") == 1


@pytest.mark.parametrize(("code", "words"), [(2, "a mistake in its flags"), (77, "diverged"), (76, "no progress")])
def test_a_failed_run_ends_with_its_code_its_log_and_a_slice_that_stays(cloud: StandIn, code: int, words: str) -> None:
    cloud.train(f"echo error: why on $STANDIN_HOST; exit {code}")
    done = cloud.run()
    assert done.returncode == code and words in done.stdout
    assert "r1-w-1: error: why on r1-w-1" in done.stdout  # the ends of all hosts' logs
    assert cloud.logs().count("error: why") == 2 and cloud.state()["request"] == "ACTIVE"
    assert "delete: python3 launch/tpu_pod.py delete --name=r1 --zone=z" in done.stdout
    assert cloud.run("delete").returncode == 0 and cloud.state()["request"] is None


def test_a_crash_is_no_success_and_its_slice_is_deleted_after_its_logs_where_asked(cloud: StandIn) -> None:
    cloud.train('[ "$STANDIN_HOST" = r1-w-0 ] && exit 0; echo Traceback; exit 1')
    done = cloud.run("run", "--on-failure=delete")
    assert done.returncode == 1 and "the run failed (exit code 1)" in done.stdout
    assert "Traceback" in cloud.logs() and cloud.state()["request"] is None


def test_a_failed_request_ends_with_its_error_and_is_not_repeated(cloud: StandIn) -> None:
    cloud.hosts("r1-w-0", queue=[None, "ACCEPTED", "FAILED"])
    done = cloud.run()
    assert done.returncode == 1 and "no capacity of your reservation is left" in done.stdout
    assert cloud.verbs().count("queued-resources create") == 1


def test_a_refused_request_ends_with_the_words_of_the_cloud(cloud: StandIn) -> None:
    cloud.hosts("r1-w-0", queue=[])
    cloud.plan(("resources create", "error RESOURCE_EXHAUSTED: Quota limit 'TPUV6EPerProject' has been exceeded"))
    done = cloud.run()
    assert done.returncode == 1 and "Quota limit 'TPUV6EPerProject'" in done.stdout
    assert "nothing is up: the cloud knows no r1" in done.stdout


def test_a_deletion_is_tried_again(cloud: StandIn) -> None:
    cloud.plan(("resources delete", "error internal"), ("resources delete", "error internal"))
    done = cloud.run()
    assert done.returncode == 0 and cloud.state()["request"] is None, done.stdout


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(other, marks=pytest.mark.slow) for other in (signal.SIGTERM, signal.SIGHUP))],
)
def test_signals_say_what_stays_and_attach_takes_it_up(cloud: StandIn, number: signal.Signals) -> None:
    cloud.train('echo line one; while [ ! -e "$STANDIN/go" ]; do sleep 0.2; done; echo line two')
    process = cloud.open()
    cloud.until(lambda: len(cloud.started()) == 2 and "host.sh log" in str(cloud.calls()[-6:]))
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "a run on r1 goes on without this command" in out
    assert "follow: python3 launch/tpu_pod.py attach --name=r1 --zone=z" in out
    assert "running" in cloud.run("status").stdout
    assert cloud.run("delete").returncode == 1  # a run is under way
    (cloud.folder / "go").touch()
    done = cloud.run("run", "--attach")
    assert done.returncode == 0 and "line one\nline two" in done.stdout and len(cloud.started()) == 2


def test_the_same_command_again_follows_and_stop_lets_the_run_save(cloud: StandIn) -> None:
    cloud.train("trap 'echo saved; exit 75' TERM; while :; do sleep 0.2; done")
    process = cloud.open()
    cloud.until(lambda: len(cloud.started()) == 2 and "host.sh log" in str(cloud.calls()[-6:]))
    process.kill()
    process.communicate()
    again = cloud.open()
    cloud.until(lambda: cloud.verbs().count("tpu-vm ssh") > 16)
    again.kill()
    out, _ = again.communicate()
    assert "it is followed, nothing is started" in out and len(cloud.started()) == 2
    done = cloud.run("stop")
    assert done.returncode == 0 and cloud.logs().count("saved\n") == 2, done.stdout
    assert "exit code 75" in cloud.run("status").stdout


def test_secrets_reach_the_run_and_nothing_else(cloud: StandIn) -> None:
    done = cloud.run("run", "--keep")
    assert f"HF_TOKEN={SECRET}" in (cloud.folder / "environment-r1-w-1").read_text()
    dry = cloud.run("run", "--dry-run")
    assert dry.returncode == 0
    for text in (done.stdout, dry.stdout, (cloud.folder / "calls").read_text(), cloud.logs()):
        assert SECRET not in text
    with tarfile.open(cloud.folder / "launch" / "bundle.tgz") as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is None or SECRET.encode() not in file.read()
            assert Path(member.name).name not in (".env", "env")
    assert not (cloud.folder / "launch" / "env").exists()
    env = cloud.folder / "hosts" / "r1-w-0" / "r1jax-r1" / "env"
    assert stat.S_IMODE(env.stat().st_mode) == 0o600 and SECRET in env.read_text()
    assert stat.S_IMODE(env.parent.stat().st_mode) == 0o700


def test_the_dry_run_is_a_script_that_runs(cloud: StandIn) -> None:
    cloud.train("echo by hand")
    flags = ("run", "--dry-run", "--project=p", "--spot")
    script = cloud.run(*flags, train=("--config=configs/x.py", "--config.data.path=a b.jsonl")).stdout
    assert not cloud.calls()
    cloud.hosts("r1-w-0", "r1-w-1", queue=["ACTIVE"])
    done = subprocess.run(
        ["bash", "-euc", script.replace("sleep 30", "sleep 0.1").replace("sleep 15", "sleep 0.1")],
        env=cloud.environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "by hand" in done.stdout and len(cloud.started()) == 2 and cloud.state()["request"] is None
    assert ["--spot", "--zone=z", "--project=p"] == cloud.calls()[0][-3:]


def test_several_slices_are_one_request_and_run_together(cloud: StandIn) -> None:
    cloud.hosts("r1-0-w-0", "r1-1-w-0")
    done = cloud.run("run", "--slices=2")
    assert done.returncode == 0, done.stdout
    (create,) = [call for call in cloud.calls() if call[2:4] == ["queued-resources", "create"]]
    assert {"--node-prefix=r1", "--node-count=2"} <= set(create)
    assert sorted(cloud.started()) == ["r1-0-w-0", "r1-1-w-0"]


def test_a_workdir_with_spaces(cloud: StandIn, tmp_path: Path) -> None:
    command = cloud.command("run", f"--workdir={tmp_path}/a disk/run 1")
    command.remove("--bucket=gs://cheese")
    done = subprocess.run(command, env=cloud.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert len(list((tmp_path / "a disk" / "run 1" / "logs").glob("*.log"))) == 2
    assert not (cloud.folder / "gcsfuse").exists()


def test_a_mistake_in_the_config_costs_no_slice(cloud: StandIn) -> None:
    done = cloud.run("run", "--check", train=("--config=configs/grpo_zero.py", "--config.optimizer.learning_rat=1"))
    assert done.returncode == 2 and "learning_rat" in done.stdout and "nothing was asked for" in done.stdout
    assert not any("create" in verb for verb in cloud.verbs())


def test_a_mistake_in_the_bucket_costs_no_slice(cloud: StandIn) -> None:
    (cloud.folder / "buckets" / "cheese").rmdir()
    done = cloud.run("run", "--check")
    assert done.returncode == 2 and "the bucket cheese" in done.stdout and "404" in done.stdout
    assert not any("create" in verb for verb in cloud.verbs())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "--name must be small letters"),
        (FLAGS[:1], "--zone is missing, as in"),
        ((FLAGS[0], FLAGS[2]), "--type is missing, as in --type=v6e-16"),
        (FLAGS[:3], "one of --bucket and --workdir is needed"),
        (FLAGS, "the flags of r1jax.train are missing behind --"),
        ((*FLAGS, "--spto"), "unrecognized arguments: --spto"),
        ((*FLAGS, "--type=h100", "--", "x"), "no machine image is known for h100"),
        ((*FLAGS[:3], "--workdir=runs", "--", "x"), "--workdir must be an absolute path"),
        ((*FLAGS, "--slices=two", "--", "x"), "invalid int value: 'two'"),
        ((*FLAGS, "--slices=0", "--", "x"), "--slices and --tries must be at least 1"),
        ((*FLAGS, "--", "--workdir=x"), "--workdir belongs before --"),
    ],
)
def test_half_a_command_line_is_refused(args: tuple[str, ...], message: str) -> None:
    command = [sys.executable, str(ROOT / "launch" / "tpu_pod.py"), "run", "--dry-run", *args]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "error: " in done.stderr and message in done.stderr and not done.stdout


def test_gcloud_that_is_not_there_is_said_in_one_line(cloud: StandIn) -> None:
    environment = {**cloud.environment(), "PATH": "/nowhere"}
    done = subprocess.run(cloud.command("status"), env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "gcloud: No such file or directory" in done.stdout


@pytest.mark.slow
def test_the_wheel_holds_every_module(tmp_path: Path) -> None:
    from pod.bundle import build_wheel

    before = set(os.listdir(ROOT))
    assert build_wheel(tmp_path).name.startswith("r1jax-") and set(os.listdir(ROOT)) == before
    assert json.dumps(sorted(os.listdir(tmp_path))) != "[]"
