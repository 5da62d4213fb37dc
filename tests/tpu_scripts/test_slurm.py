"""slurm.sh and its job script: against stand-ins, and with SLURM itself where it is installed."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from standins import SCRIPTS, Recorded, call

RUN = ("start", "--name", "my-run", "--experiment", "demo/pretrain", "--workdir", "/shared/runs")
GPU = (*RUN, "--accelerator-type", "h100:8", "--nodes", "4")


@pytest.fixture
def slurm(tmp_path: Path) -> Recorded:
    return Recorded(tmp_path, "sbatch", "squeue", "scancel", "scontrol", "srun")


def test_a_run_has_one_process_for_each_gpu(slurm: Recorded):
    more = ("--partition", "p", "--time", "2-00:00", "--account", "a", "--cpus-per-task", "12")
    done = slurm.call("slurm.sh", *GPU, *more, "--", "--name", "a b")
    assert done.code == 0, done.err
    queue, batch = slurm.commands()
    assert queue == ["squeue", "--me", "--name", "my-run", "--noheader", "--format", "%A"]
    script = batch.index(str(SCRIPTS / "slurm.sbatch"))
    assert batch[script + 1 :] == [
        str(SCRIPTS.parent), str(SCRIPTS.parent / ".venv"), "10", "demo/pretrain", "--workdir", "/shared/runs",
        "--name", "a b",
    ]  # fmt: skip
    options = " ".join(batch[1:script])
    for expected in (
        "--job-name my-run --nodes 4 --ntasks-per-node 8 --gpus-per-node h100:8", "--requeue", "--signal TERM@300",
        "--partition p", "--account a", "--time 2-00:00", "--cpus-per-task 12", "--open-mode append",
    ):  # fmt: skip
        assert expected in options, expected


@pytest.mark.parametrize(("accelerator", "gpus"), [("gpu:4", "--gpus-per-node 4"), ("cpu:2", None)])
def test_gpus_of_any_kind_and_none(slurm: Recorded, accelerator: str, gpus: str | None):
    assert slurm.call("slurm.sh", *RUN, "--accelerator-type", accelerator).code == 0
    options = " ".join(slurm.commands()[1])
    assert f"--ntasks-per-node {accelerator[-1]} " in options
    assert gpus in options if gpus else "--gpus" not in options


def test_a_second_run_of_the_same_name_is_refused(slurm: Recorded):
    slurm.rules({"match": "squeue", "out": "17\n"})
    done = slurm.call("slurm.sh", *GPU)
    assert done.code == 2 and "job 17 has the name my-run" in done.last_line() and len(slurm.calls()) == 1


@pytest.mark.parametrize("program", ["squeue", "sbatch"])
def test_what_slurm_refuses_is_said_in_one_line(slurm: Recorded, program: str):
    slurm.rules({"match": program, "err": f"{program}: error: Unable to contact slurm controller\n", "code": 1})
    done = slurm.call("slurm.sh", *GPU)
    assert done.code == 1 and done.last_line().endswith(f"see {program}'s message above")


def test_stopping_keeps_the_job_from_being_queued_again(slurm: Recorded):
    slurm.rules({"match": "squeue", "out": "17\n"})
    assert slurm.call("slurm.sh", "stop", "--name", "my-run").code == 0
    assert slurm.commands()[1:] == [
        ["scontrol", "update", "JobId=17", "Requeue=0"], ["scancel", "--signal", "TERM", "17"],
    ]  # fmt: skip
    none = slurm.call("slurm.sh", "stop", "--name", "my-run")
    assert none.code == 1 and none.last_line() == "slurm.sh: no job my-run is queued or running"


def test_deleting_asks_and_what_does_not_exist_is_no_error(slurm: Recorded):
    none = slurm.call("slurm.sh", "delete", "--name", "my-run")
    assert none.code == 0 and "nothing to delete" in none.last_line()
    slurm.rules({"match": "squeue", "out": "17\n", "times": 2})
    assert slurm.call("slurm.sh", "delete", "--name", "my-run").code == 2
    assert slurm.call("slurm.sh", "delete", "--name", "my-run", "--yes").code == 0
    assert slurm.commands()[-1] == ["scancel", "17"]


def test_a_dry_run_prints_each_command_as_it_would_be_run_and_runs_none(slurm: Recorded):
    dry = slurm.call("slurm.sh", *GPU, "--dry-run", "--", "--name", "it's")
    assert dry.code == 0 and not slurm.calls()
    assert slurm.call("slurm.sh", *GPU, "--", "--name", "it's").code == 0
    assert [shlex.split(line) for line in dry.out.splitlines()] == slurm.commands()


WRONG = {
    "no accelerator": (RUN, "start needs --accelerator-type"),
    "no number of GPUs": ((*RUN, "--accelerator-type", "h100"), "must be like h100:8"),
    "no number of nodes": ((*GPU, "--nodes", "0"), "--nodes 0: must be a positive whole number"),
    "an unknown action": (("copy",), "no action 'copy'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_one_line_that_names_them(slurm: Recorded, name: str):
    args, expected = WRONG[name]
    done = slurm.call("slurm.sh", *args)
    assert done.code == 2 and expected in done.err and len(done.err.splitlines()) == 1 and not slurm.calls()


# What the job script does after srun: exit code of srun, restarts so far, whether the job may be queued again → its own
# exit code, and whether it was queued again.
ENDS = {
    "finished": (0, 0, 1, 0, False),
    "stopped and saved": (75, 50, 1, 75, True),
    "stopped by slurm.sh stop": (75, 0, 0, 75, False),
    "a fault": (70, 0, 1, 70, True),
    "a process that is gone": (137, 2, 1, 137, True),
    "too many faults": (70, 3, 1, 70, False),
    "a refused experiment": (2, 0, 1, 2, False),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_job_is_queued_again_until_it_is_finished(slurm: Recorded, name: str):
    code, restarts, requeue, expected, again = ENDS[name]
    slurm.rules(
        {"match": "srun", "code": code}, {"match": "show job", "out": f"   JobState=RUNNING Requeue={requeue} \n"}
    )
    args = ("/checkout", "/venv", "3", "demo/pretrain", "--workdir", "/shared/runs", "--name", "a b")
    done = slurm.call("slurm.sbatch", *args, SLURM_JOB_ID="17", SLURM_RESTART_COUNT=str(restarts))
    assert done.code == expected, done.err
    assert (["scontrol", "requeue", "17"] in slurm.commands()) == again
    srun = slurm.commands()[0]
    worker = srun.index("/checkout/tpu_scripts/worker.sh")
    assert srun[worker + 1 :] == ["run", "demo/pretrain", "--workdir", "/shared/runs", "--name", "a b"]


# -- SLURM itself: one node, with a controller, a node daemon and munge of its own -----------------------------------


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which SLURM's commands reach a cluster of this machine."""
    path = f"/usr/sbin:{os.environ['PATH']}"
    if os.geteuid() != 0 or not all(
        shutil.which(tool, path=path) for tool in ("slurmctld", "slurmd", "munged", "srun")
    ):
        pytest.skip("without SLURM (apt-get install slurm-wlm munge), or without the rights to start it")
    folder, name = tmp_path_factory.mktemp("slurm"), socket.gethostname().partition(".")[0]
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)  # munged and slurmd refuse folders that others may write to, or not enter
    for each in ("munge", "state", "spool"):
        (folder / each).mkdir()
    (folder / "munge/key").write_bytes(os.urandom(1024))
    (folder / "munge/key").chmod(0o400)
    settings = {
        "ClusterName": "test", "SlurmctldHost": f"{name}(127.0.0.1)", "SlurmUser": "root", "SlurmdUser": "root",
        "AuthType": "auth/munge", "AuthInfo": f"socket={folder}/munge/socket",
        "StateSaveLocation": f"{folder}/state", "SlurmdSpoolDir": f"{folder}/spool",
        "SlurmctldPidFile": f"{folder}/slurmctld.pid", "SlurmdPidFile": f"{folder}/slurmd.pid",
        "SlurmctldLogFile": f"{folder}/slurmctld.log", "SlurmdLogFile": f"{folder}/slurmd.log",
        "SlurmctldPort": free_port(), "SlurmdPort": free_port(), "ProctrackType": "proctrack/pgid",
        "TaskPlugin": "task/none", "SelectType": "select/cons_tres", "SelectTypeParameters": "CR_Core",
        "AccountingStorageType": "accounting_storage/none", "MpiDefault": "none", "ReturnToService": 2,
        "SlurmdParameters": "config_overrides",
    }  # fmt: skip
    lines = [f"{key}={value}" for key, value in settings.items()]
    lines += [f"NodeName={name} NodeAddr=127.0.0.1 CPUs=2", "PartitionName=main Nodes=ALL Default=YES State=UP"]
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
    environment = {"SLURM_CONF": str(folder / "slurm.conf")}
    daemons = [
        ["munged", "--force", "--foreground", f"--key-file={folder}/munge/key", f"--socket={folder}/munge/socket",
         f"--pid-file={folder}/munge/pid", f"--log-file={folder}/munge/log", f"--seed-file={folder}/munge/seed"],
        ["slurmctld", "-D"], ["slurmd", "-D"],
    ]  # fmt: skip
    started = []
    try:
        for daemon in daemons:
            started.append(
                subprocess.Popen(
                    daemon, env=os.environ | environment | {"PATH": path}, stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
                )
            )  # fmt: skip
            time.sleep(1)
        deadline = time.monotonic() + 30
        while "idle" not in output("sinfo", "--noheader", "--format", "%T", environment=environment):
            if time.monotonic() > deadline:
                pytest.skip(f"SLURM does not start here; see {folder}/slurmctld.log")
            time.sleep(0.5)
        yield environment
        output("scancel", "--user", "root", environment=environment)
    finally:
        for process in reversed(started):
            os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            process.wait(20)


def output(*command: str, environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=30)
    return done.stdout.strip()


def wait_for(what: Callable[[], bool], log: Path, environment: dict[str, str], seconds: float = 60) -> None:
    """SLURM lets a job that is queued again wait for two minutes, which are skipped here."""
    deadline = time.monotonic() + seconds
    while not what():
        for job in output("squeue", "--noheader", "--states=PD", "--format=%A", environment=environment).split():
            output("scontrol", "update", f"JobId={job}", "StartTime=now", environment=environment)
        assert time.monotonic() < deadline, log.read_text("utf-8") if log.exists() else "no log"
        time.sleep(0.3)


def submit(action: str, folder: Path, environment: dict[str, str], *args: str):
    log = ("--log", str(folder / "log"))
    return call(
        SCRIPTS / "slurm.sh", action, "--name", "real", *log, *args, tools=folder / "tools", **environment,
        BERTGPT_GRACE_SECONDS="20", PATH=f"{folder}/tools:{os.environ['PATH']}",
    )  # fmt: skip


def fake_environment(folder: Path, script: str) -> Path:
    """A virtual environment whose `bertgpt` shows what SLURM tells a task, then does what line N of a script says."""
    binary = folder / "venv/bin"
    binary.mkdir(parents=True)
    (folder / "script").write_text(script.replace(", ", "\n"), encoding="utf-8")
    program = f"""#!{sys.executable} -IS
import os, signal, sys, time
where = os.environ
rank = where["SLURM_PROCID"]
open("{folder}/starts." + rank, "a").write(where["SLURM_NTASKS"] + " " + where["SLURM_STEP_NODELIST"] + "\\n")
number = len(open("{folder}/starts." + rank).read().splitlines())
what = open("{folder}/script").read().splitlines()[number - 1].split()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print(what, flush=True)
if what[0] == "hang": time.sleep(100)
if what[0] == "fail": sys.exit(int(what[1]))
open("{folder}/results.json", "w").write("")
"""
    (binary / "bertgpt").write_text(program, encoding="utf-8")
    (binary / "python").write_text(f"#!/bin/sh\ncat >/dev/null\ntest -e {folder}/results.json\n", encoding="utf-8")
    for name in ("bertgpt", "python"):
        (binary / name).chmod(0o755)
    return folder / "venv"


def starts(folder: Path, rank: int = 0) -> list[str]:
    path = folder / f"starts.{rank}"
    return path.read_text("utf-8").splitlines() if path.exists() else []


RUN_HERE = ("--accelerator-type", "cpu:2", "--experiment", "e", "--workdir", "/runs")


@pytest.mark.slow
def test_slurm_starts_a_run_again_until_it_is_finished(cluster: dict[str, str], tmp_path: Path):
    venv = fake_environment(tmp_path, "fail 70, fail 3, finish")
    assert submit("start", tmp_path, cluster, *RUN_HERE, "--venv", str(venv)).code == 0
    wait_for((tmp_path / "results.json").exists, tmp_path / "log", cluster)
    wait_for(lambda: not output("squeue", "--noheader", environment=cluster), tmp_path / "log", cluster)
    host = socket.gethostname().partition(".")[0]
    assert starts(tmp_path, 0) == starts(tmp_path, 1) == [f"2 {host}"] * 3
    assert (tmp_path / "log").read_text("utf-8").count("queued again") == 2


@pytest.mark.slow
def test_slurm_stops_a_run_for_good_and_resumes_it_when_asked(cluster: dict[str, str], tmp_path: Path):
    venv = fake_environment(tmp_path, "hang, finish")
    start = ("start", tmp_path, cluster, *RUN_HERE, "--venv", str(venv))
    assert submit(*start).code == 0
    wait_for(lambda: len(starts(tmp_path, 1)) == 1, tmp_path / "log", cluster)
    refused = submit(*start)
    assert refused.code == 2 and "has the name real" in refused.last_line()
    assert submit("stop", tmp_path, cluster).code == 0
    wait_for(lambda: not output("squeue", "--noheader", environment=cluster), tmp_path / "log", cluster)
    assert len(starts(tmp_path)) == 1 and "queued again" not in (tmp_path / "log").read_text("utf-8")
    assert submit(*start).code == 0
    wait_for((tmp_path / "results.json").exists, tmp_path / "log", cluster)
    wait_for(lambda: not output("squeue", "--noheader", environment=cluster), tmp_path / "log", cluster)


@pytest.mark.slow
def test_slurm_does_not_start_a_refused_experiment_again(cluster: dict[str, str], tmp_path: Path):
    venv = fake_environment(tmp_path, "fail 2, finish")
    assert submit("start", tmp_path, cluster, *RUN_HERE, "--venv", str(venv)).code == 0
    wait_for(lambda: len(starts(tmp_path, 1)) == 1, tmp_path / "log", cluster)
    wait_for(lambda: not output("squeue", "--noheader", environment=cluster), tmp_path / "log", cluster)
    assert len(starts(tmp_path)) == 1 and "the experiment is refused" in (tmp_path / "log").read_text("utf-8")
