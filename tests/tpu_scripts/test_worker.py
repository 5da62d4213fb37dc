"""worker.sh, which runs on every worker: with a stand-in for bertgpt, and with bertgpt itself."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import write_experiments
from standins import SCRIPTS, Outcome, write_program

from bertgpt.config import Experiment, Mesh

WORKER = SCRIPTS / "worker.sh"
# Says what it does, then does it: finish, hang, deaf (to SIGTERM) or fail CODE.
BERTGPT = """
    import os, signal, sys, time
    what = sys.argv[-1]
    signal.signal(signal.SIGTERM, signal.SIG_IGN if what == "deaf" else lambda *_: sys.exit(0))
    print(what, flush=True)
    if what in ("hang", "deaf"):
        time.sleep(60)
    if what.startswith("fail"):
        sys.exit(int(what[4:]))
    open(os.environ["HOME"] + "/results", "w").close()
"""
PYTHON = """
    import os, sys
    sys.exit(not os.path.exists(os.environ["HOME"] + "/results"))
"""


class Worker:
    def __init__(self, home: Path):
        self.home, self.log = home, home / ".bertgpt/train.log"
        write_program(home / ".bertgpt/venv/bin/bertgpt", BERTGPT)
        write_program(home / ".bertgpt/venv/bin/python", PYTHON)

    def environment(self, **variables: str) -> dict[str, str]:
        return {"HOME": str(self.home), "PATH": "/usr/bin:/bin"} | variables

    def call(self, *args: str, **variables: str) -> Outcome:
        done = subprocess.run(
            ["bash", str(WORKER), *args], env=self.environment(**variables), cwd=self.home, timeout=60,
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        return Outcome(done.returncode, done.stdout, done.stderr)

    def status(self) -> str:
        return self.call("status").out.strip()

    def wait(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not what():
            assert time.monotonic() < deadline, self.log.read_text("utf-8")
            time.sleep(0.05)


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(tmp_path)


@pytest.mark.parametrize(("what", "code"), [("finish", 0), ("fail2", 2), ("fail3", 3), ("fail70", 70)])
def test_the_exit_code_is_that_of_bertgpt(worker: Worker, what: str, code: int):
    assert worker.call("run", what).code == code


def test_a_run_that_a_signal_has_stopped_is_not_finished(worker: Worker):
    """bertgpt exits with 0 then, as at the end."""
    process = subprocess.Popen(["bash", str(WORKER), "run", "hang"], env=worker.environment(), stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"hang\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 75


def test_what_a_worker_is_doing_is_one_line(worker: Worker):
    assert worker.status() == "idle"
    assert worker.call("start", "hang").code == 0 and worker.status() == "running"
    assert worker.call("stop").code == 0 and worker.status() == "stopped"
    for what, expected in (("fail70", "failed 70"), ("finish", "finished")):
        assert worker.call("start", what).code == 0
        worker.wait(lambda expected=expected: worker.status() == expected)


def test_a_second_start_does_not_disturb_the_run(worker: Worker):
    worker.call("start", "hang")
    pid = (worker.home / ".bertgpt/pid").read_text()
    second = worker.call("start", "finish")
    assert second.code == 0 and "a run is going on" in second.err
    assert (worker.home / ".bertgpt/pid").read_text() == pid and worker.status() == "running"
    worker.call("stop")


def test_a_run_that_does_not_stop_in_time_is_killed(worker: Worker):
    worker.call("start", "deaf")
    worker.wait(lambda: "deaf" in worker.log.read_text("utf-8"))
    done = worker.call("stop", BERTGPT_GRACE_SECONDS="1")
    assert done.code == 0 and "killed" in done.err and worker.status() == "stopped"
    left = subprocess.run(["pgrep", "-f", f"{worker.home}/.bertgpt/venv/bin/bertgpt"], capture_output=True, text=True)
    assert not left.stdout


def test_a_run_whose_machine_was_restarted_is_lost(worker: Worker):
    """Its process number may belong to another program by now, such as this one."""
    (worker.home / ".bertgpt/pid").write_text(str(os.getpid()))
    assert worker.status() == "lost"
    assert worker.call("stop").code == 0
    assert worker.call("start", "finish").code == 0
    worker.wait(lambda: worker.status() == "finished")


def test_the_log_is_kept_over_starts_and_followed_to_the_end_of_the_run(worker: Worker):
    assert worker.call("logs").code == 1
    worker.call("start", "fail70")
    worker.wait(lambda: worker.status() == "failed 70")
    worker.call("start", "hang")
    follower = subprocess.Popen(["bash", str(WORKER), "logs"], env=worker.environment(), stdout=subprocess.PIPE)
    worker.wait(lambda: "hang" in worker.log.read_text("utf-8"))
    worker.call("stop")
    out, _ = follower.communicate(timeout=20)
    assert out.startswith(b"fail70\nhang\n") and b"the same command resumes" in out and follower.returncode == 0
    assert (
        worker.call("logs", BERTGPT_LOG_LINES="2").out
        == "hang\nworker.sh: stopped before the end; the same command resumes\n"
    )


def test_without_an_installation_the_next_step_is_named(worker: Worker):
    done = worker.call("run", "finish", BERTGPT_VENV="/nowhere")
    assert done.code == 2 and done.err == "worker.sh: bertgpt is not installed: worker.sh install EXTRAS\n"


@pytest.mark.slow
def test_a_run_of_bertgpt_is_resumed_until_its_results_are_there(tiny: Experiment, tmp_path: Path):
    arms = {name: dataclasses.replace(tiny, name=name, mesh=Mesh()) for name in ("one", "two")}
    file = write_experiments(tmp_path / "tiny.py", arms)
    variables = {"BERTGPT_VENV": sys.prefix, "HOME": str(tmp_path), "XLA_FLAGS": ""}

    def run(*fields: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", str(WORKER), "run", file, "--workdir", "runs", *fields], env=os.environ | variables, cwd=tmp_path,
            timeout=300, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip

    stopped = run("--stop_after", "2")
    assert stopped.returncode == 75 and "no results yet: runs/one/results.json" in stopped.stderr, stopped.stderr
    done = run()
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / "runs" / name / "results.json").exists() for name in arms)
    refused = run("--no_such_field", "1")
    assert refused.returncode == 2
