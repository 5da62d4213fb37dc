"""worker.sh with bertgpt itself: several processes, who they are told by the variables of a launcher."""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_experiments
from standins import SCRIPTS

from bertgpt.config import Experiment, Mesh

CLUSTER = ("SLURM_", "OMPI_", "JAX_COORD", "JAX_NUM_PROC", "JAX_PROCESS", "KUBERNETES_", "TPU_", "MEGASCALE_")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def slurm(rank: int, port: int) -> dict[str, str]:
    """What srun sets and JAX reads; JAX takes the port from the number of the job."""
    return {
        "SLURM_JOB_ID": str(4096 + port - 61440), "SLURM_NTASKS": "2", "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank), "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1",
    }  # fmt: skip


def run(folder: Path, *args: str, environments: list[dict[str, str]]) -> list[tuple[int, str]]:
    """(exit code, output) of worker.sh run, of as many processes as there are environments."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(CLUSTER)}
    own |= {"BERTGPT_VENV": sys.prefix, "HOME": str(folder), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    processes = [
        subprocess.Popen(
            ["bash", str(SCRIPTS / "worker.sh"), "run", *args], env=own | environment, cwd=folder,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for environment in environments
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


@pytest.mark.slow
def test_two_processes_that_srun_has_started_train_one_run_and_resume_it(tiny: Experiment, tmp_path: Path):
    file = write_experiments(tmp_path / "tiny.py", {"tiny": dataclasses.replace(tiny, mesh=Mesh(), steps=4)})
    port = 61440 + free_port() % 4096

    def both(*fields: str) -> list[tuple[int, str]]:
        environments = [slurm(rank, port) for rank in (0, 1)]
        return run(tmp_path, file, "--workdir", "runs", *fields, environments=environments)

    stopped = both("--stop_after", "2")
    assert [code for code, _ in stopped] == [75, 75], stopped
    done = both()
    assert [code for code, _ in done] == [0, 0], done
    assert "2 × cpu" in (tmp_path / "runs/tiny/train.log").read_text("utf-8")
    assert "tiny  4/4" in done[0][1] and "4/4" not in done[1][1]
    refused = both("--no_such_field", "1")
    assert [code for code, _ in refused] == [2, 2], refused  # and not 3, after which launchers try again


@pytest.mark.slow
def test_a_process_that_does_not_come_is_no_user_error(tiny: Experiment, tmp_path: Path):
    """Launchers start a run again after exit code 3 and not after 2."""
    file = write_experiments(tmp_path / "tiny.py", {"tiny": dataclasses.replace(tiny, mesh=Mesh())})
    port = str(free_port())
    environments = [{"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}]
    ((code, output),) = run(
        tmp_path, file, "--workdir", "runs", "--distributed.timeout", "3", environments=environments
    )
    assert code == 3 and "process 1 of 2 has not started within 3 s" in output
