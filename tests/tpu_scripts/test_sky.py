"""sky.sh against a stand-in for sky, and the task that it launches."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from standins import SCRIPTS, Recorded, write_program

RUN = ("start", "--name", "my-run", "--experiment", "demo/pretrain", "--workdir", "gs://b/runs")


@pytest.fixture
def sky(tmp_path: Path) -> Recorded:
    return Recorded(tmp_path, "sky")


def test_a_run_is_launched_as_a_managed_job(sky: Recorded):
    done = sky.call("sky.sh", *RUN, "--accelerator-type", "tpu-v5litepod-16:1", "--spot", "--", "--name", "a b")
    assert done.code == 0, done.err
    (command,) = sky.commands()
    assert command[:3] == ["sky", "jobs", "launch"] and Path(command[-1]) == SCRIPTS / "skypilot.yaml"
    assert {"--use-spot", "EXPERIMENT=demo/pretrain", "WORKDIR=gs://b/runs", "EXTRAS=tpu,text,gcs"} <= set(command)
    assert "FIELDS=--name 'a b'" in command


def test_a_launch_that_fails_is_said_in_one_line(sky: Recorded):
    sky.rules({"match": "launch", "err": "ResourcesUnavailableError\n", "code": 1})
    done = sky.call("sky.sh", *RUN, "--accelerator-type", "H100:8", "--nodes", "2")
    assert done.code == 1 and done.last_line() == "sky.sh: my-run was not launched, see sky's message above"
    assert "EXTRAS=cuda,text,gcs,s3" in sky.commands()[0]


def test_a_dry_run_launches_nothing(sky: Recorded):
    done = sky.call("sky.sh", *RUN, "--accelerator-type", "H100:8", "--dry-run")
    assert done.code == 0 and done.out.startswith("sky jobs launch --name my-run") and not sky.calls()


def test_the_log_is_followed_and_the_run_cancelled(sky: Recorded):
    sky.rules({"match": "logs", "code": 1, "times": 2})
    assert sky.call("sky.sh", "logs", "--name", "my-run").code == 0 and len(sky.calls()) == 3
    assert sky.call("sky.sh", "delete", "--name", "my-run").code == 2 and len(sky.calls()) == 3
    assert sky.call("sky.sh", "stop", "--name", "my-run").code == 0
    assert sky.commands()[-1] == ["sky", "jobs", "cancel", "--name", "my-run", "--yes"]


@pytest.mark.parametrize("gpu", [False, True])
def test_the_task_calls_worker_sh_with_what_it_was_given(tmp_path: Path, gpu: bool):
    task = yaml.safe_load((SCRIPTS / "skypilot.yaml").read_text(encoding="utf-8"))
    assert set(task) == {"name", "workdir", "num_nodes", "resources", "envs", "setup", "run"}
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    (tmp_path / "tpu_scripts").mkdir()
    show = (
        'printf "%s\\n" "$@" "${JAX_COORDINATOR_ADDRESS-none}" "${JAX_NUM_PROCESSES-none}" "${JAX_PROCESS_ID-none}"\n'
    )
    (tmp_path / "tpu_scripts/worker.sh").write_text(show, encoding="utf-8")
    if gpu:
        write_program(tmp_path / "tools/nvidia-smi", "")
    given = {"EXPERIMENT": "demo/pretrain", "WORKDIR": "gs://b", "FIELDS": "--name 'a b'", "PATH": "/usr/bin:/bin"}
    skys = {"SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    given["PATH"] = f"{tmp_path}/tools:{given['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", task["run"]], env=given | skys, cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    processes = ["10.0.0.5:8476", "2", "1"] if gpu else ["none"] * 3
    assert done.stdout.splitlines() == ["run", "demo/pretrain", "--workdir", "gs://b", "--name", "a b", *processes]
    assert os.access(SCRIPTS / "worker.sh", os.X_OK)
