"""Processes that train together: who takes part, what they agree on, and whom they miss."""

import json
import os
import platform
import socket
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from launcher import Ended, Hosts, free_port

from bertgpt import distributed
from bertgpt.data.loader import Shards
from bertgpt.distributed import Distributed, detect
from bertgpt.distributed.meeting import meet
from bertgpt.io.retry import with_retries
from bertgpt.types import UserError

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[03-06]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "JAX_COORD", "JAX_NUM_PROC", "JAX_PROCESS", "KUBERNETES_")):
            monkeypatch.delenv(name)


def test_a_single_process_is_left_alone():
    distributed.initialize(Distributed())
    assert distributed.is_main() and distributed.process_count() == 1
    distributed.barrier("nothing")
    distributed.check_same("nothing", {"a": 1})
    assert distributed.on_main("nothing", lambda: {1, 2}) == {1, 2}  # not even sent as JSON
    with distributed.main_first("nothing"), distributed.together():
        assert not distributed.should_stop()
    from jax._src.distributed import global_state

    assert global_state.client is None


def test_processes_are_detected_or_named(monkeypatch: pytest.MonkeyPatch):
    assert detect(Distributed()) is None
    assert detect(Distributed("host:1", 4, 1)) == ("host:1", 4, 1, None)
    assert detect(Distributed("host:1", 1, 0)) is None
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    coordinator, count, number, device_ids = detect(Distributed())
    assert (coordinator.partition(":")[0], count, number, device_ids) == ("node03", 4, 2, [0])
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert detect(Distributed()) is None


def test_processes_are_named_by_the_variables_of_jax(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "job-0:8476")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    assert detect(Distributed()) == ("job-0:8476", 2, 1, None)
    monkeypatch.setenv("JAX_PROCESS_ID", "one")
    with pytest.raises(UserError, match="JAX_PROCESS_ID=one must be a whole number"):
        detect(Distributed())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Distributed("host:1"), "--distributed.num_processes, --distributed.process_id is missing"),
        (Distributed("host:1", 2, 2), "process_id 2 must be less than --distributed.num_processes 2"),
        (Distributed("host", 2, 1), "--distributed.coordinator host must be HOST:PORT"),
        (Distributed(":8476", 2, 1), "--distributed.coordinator :8476 must be HOST:PORT"),
        (Distributed("host:0", 2, 0), "host:0 must be HOST:PORT, with a port from 1 to 65535"),
        (Distributed("host:65536", 2, 0), "host:65536 must be HOST:PORT, with a port from 1 to 65535"),
    ],
)
def test_incomplete_options_are_one_line(options: Distributed, message: str):
    with pytest.raises(UserError, match=message):
        detect(options)


PREAMBLE = """
import os, sys, time
from bertgpt import distributed as d
from bertgpt.io.retry import Unfinished
from bertgpt.types import UserError
coordinator, count, number = sys.argv[2::2]
number = int(number)

def join(timeout=30.0):
    d.initialize(d.Distributed(coordinator, int(count), number, timeout))

def check(value):
    if not value:
        raise AssertionError
"""


def run(script: str, tmp_path: Path, count: int = 2, **settings) -> list[Ended]:
    path = tmp_path / "script.py"
    body = textwrap.indent(textwrap.dedent(script), "    ")
    path.write_text(
        f"{PREAMBLE}\ntry:\n{body}\n    d.shutdown()\nexcept UserError as error:\n    print(error, flush=True)\n"
        "    time.sleep(2)\n    os._exit(2)\n"
    )
    return Hosts([str(path)], count, **settings).join(60)


def test_processes_agree_wait_and_part(tmp_path: Path):
    script = """
    join()
    d.barrier("start")
    for repeat in range(3):
        check(d.on_main("compute", lambda: {"who": number, "n": repeat}) == {"who": 0, "n": repeat})
    order = []
    with d.main_first("prepare"):
        d.on_main("nested", lambda: 1)
        open(f"done{number}", "w").close()
        check(number == 0 or os.path.exists("done0"))
    def fail():
        raise UserError("no such file")
    try:
        d.on_main("read", fail)
        check(False)
    except UserError as error:
        check(str(error) == ("no such file" if number == 0 else f"process 0 of 2 ({d._group.hosts[0]}): no such file"))
    def busy():
        raise Unfinished("it is being trained")
    try:
        d.on_main("open", busy)
        check(False)
    except Unfinished:  # in process 1 too, which ends with the same exit code
        pass
    try:
        d.check_same("versions", {"same": (1, 2), "colour": "red" if number else "blue"})
        check(False)
    except UserError as error:
        check("process 1 of 2" in str(error) and "has colour 'red', but process 0 of 2" in str(error))
    check(d.acts_alone() is None)
    d.shutdown()
    check(d.is_main() and d.acts_alone() == number)
    """
    ended = run(script.replace('"done', f'"{tmp_path}/done').replace('f"done', f'f"{tmp_path}/done'), tmp_path)
    assert [process.code for process in ended] == [0, 0], ended
    assert max(process.seconds for process in ended) < 30


def test_a_process_that_was_started_again_before_all_have_met_takes_part(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bertgpt.distributed.meeting._versions", dict)
    address = "localhost", free_port()
    taken = socket.create_server(("", address[1]))  # by the process 0 before
    with ThreadPoolExecutor(3) as pool:
        met = [pool.submit(meet, address, 3, 0, 20.0)]
        time.sleep(0.1)
        taken.close()
        hello = json.dumps({"id": 1, "count": 3, "host": "gone", "facts": {}})
        connect = lambda: socket.create_connection(address, 5)  # noqa: E731
        with with_retries(connect, "process 0", patience=10) as connection:
            connection.sendall(f"{hello}\n".encode())
        met.append(pool.submit(meet, address, 3, 2, 20.0))
        time.sleep(0.3)  # now all three have been there, but not at once
        met.append(pool.submit(meet, address, 3, 1, 20.0))
        assert [found.result(30) for found in met] == [[platform.node()] * 3] * 3


@pytest.mark.slow
def test_a_process_that_does_not_start_is_named(tmp_path: Path):
    ended = run("join(3.0)", tmp_path, count=4, started=[0, 2])
    assert [process.code for process in ended] == [2, 2], ended
    assert all("process 1, 3 of 4 has not started within 3 s" in process.lines[-1] for process in ended), ended


@pytest.mark.slow
def test_without_process_0_the_others_say_where_they_looked(tmp_path: Path):
    (ended,) = run("join(3.0)", tmp_path, started=[1])
    assert ended.code == 2 and "process 0 does not answer at localhost:" in ended.lines[-1], ended


@pytest.mark.slow
def test_a_process_with_other_code_is_named(tmp_path: Path):
    script = """
    from bertgpt.distributed import meeting
    if number == 1:
        meeting._versions = lambda: {"the version of bertgpt": "0.0.1"}
    join()
    """
    ended = run(script, tmp_path)
    assert [process.code for process in ended] == [2, 2], ended
    assert all("has the version of bertgpt 0.0.1, but process 0" in process.lines[-1] for process in ended), ended


@pytest.mark.slow
def test_a_process_that_does_not_come_to_a_barrier_is_named(tmp_path: Path):
    script = """
    join(3.0)
    if number == 1:
        time.sleep(6)
    d.barrier("the data")
    """
    first, _ = run(script, tmp_path)
    assert first.code == 2 and "waited 3 s for the data, but process 1 of 2" in first.lines[-1], first


@pytest.mark.slow
def test_a_process_that_fails_takes_the_others_with_it(tmp_path: Path):
    script = """
    join()
    with d.together():
        if number == 1:
            raise UserError("no such field")
        time.sleep(50)
    """
    first, second = run(script, tmp_path)
    assert first.code == 2 and "process 1 of 2" in first.lines[-1] and "has failed: no such field" in first.lines[-1]
    assert second.code == 2 and second.lines[-1] == "no such field"
    assert first.seconds < 20


@pytest.mark.parametrize("total", [1, 2, 4, 256])
def test_shards_are_equal_parts_of_a_batch(total: int):
    found = [Shards((own,), total).places(512) for own in range(total)]
    assert {len(part) for part in found} == {512 // total}
    assert np.array_equal(np.concatenate(found), np.arange(512))
    if total == 4:
        assert np.array_equal(Shards((1, 3), 4).places(8), [2, 3, 6, 7])
