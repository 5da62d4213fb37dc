"""Replicas behind nginx, with the configuration that docs/how-to/replicas shows: no request fails during restarts."""

import collections
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from serving_models import ENCODER
from test_model import init

from bertgpt.convert.hub import export_model
from bertgpt.data.tokenizer import Tokenizer

FOLDER = Path(__file__).parent.parent.parent / "docs/how-to/replicas"
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
WAIT = 90
"""seconds to wait for a replica at most"""
ONE_PROCESS = """daemon off;
pid nginx.pid;
error_log stderr warn;
events { worker_connections 256; }
http {
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    log_format upstreams '$status $upstream_addr $upstream_status';
    access_log access.log upstreams;
    include bertgpt.conf;
}
"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(NGINX is None, reason="nginx is not installed")]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts a process, which the end of the test kills."""
    processes: list[subprocess.Popen] = []

    def start(*args: str, **options) -> subprocess.Popen:
        processes.append(subprocess.Popen(args, **options))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait(timeout=10)


def wait_until_ready(port: int, process: subprocess.Popen) -> None:
    limit = time.monotonic() + WAIT
    while time.monotonic() < limit:
        assert process.poll() is None, f"the replica at {port} ended with {process.returncode}"
        try:
            if httpx.get(f"http://127.0.0.1:{port}/ready", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"the replica at {port} is not ready after {WAIT} s")


class Clients:
    """Threads that ask for the same vector again and again, and count the answers that differ from the first."""

    def __init__(self, url: str, threads: int):
        self.url, self.stopping = url, threading.Event()
        self.answers: collections.Counter[str] = collections.Counter()
        self.first = self.ask(httpx)
        self.threads = [threading.Thread(target=self.run, daemon=True) for _ in range(threads)]
        for thread in self.threads:
            thread.start()

    def ask(self, client) -> str:
        try:
            answer = client.post(f"{self.url}/v1/embeddings", json={"input": "the cat runs"}, timeout=30)
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: {error}"
        return json.dumps(answer.json()["data"]) if answer.status_code == 200 else f"{answer.status_code} {answer.text}"

    def run(self) -> None:
        with httpx.Client() as client:
            while not self.stopping.is_set():
                answer = self.ask(client)
                self.answers["same" if answer == self.first else answer] += 1

    def stop(self) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join(timeout=40)
        assert not any(thread.is_alive() for thread in self.threads)


def test_a_rolling_restart_behind_nginx_fails_no_request(
    tmp_path: Path, tokenizer: Tokenizer, started: Callable[..., subprocess.Popen]
):
    config = dataclasses.replace(ENCODER, vocab_size=tokenizer.vocab.size)
    export_model(tmp_path / "model", config, init(config), files=tokenizer.files())
    front, *ports = free_ports(3)
    text = (FOLDER / "nginx.conf").read_text(encoding="utf-8")
    for shown, port in zip((8000, 8001, 8002), (front, *ports), strict=True):
        assert len(re.findall(rf"\b{shown}\b", text)) == 1
        text = re.sub(rf"\b{shown}\b", str(port), text)
    (tmp_path / "bertgpt.conf").write_text(text)
    (tmp_path / "nginx.conf").write_text(ONE_PROCESS)

    def serve(port: int) -> subprocess.Popen:
        command = (sys.executable, "-m", "bertgpt", "serve", str(tmp_path / "model"), "--port", str(port))
        environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}
        return started(*command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL)

    replicas = {port: serve(port) for port in ports}
    for port, process in replicas.items():
        wait_until_ready(port, process)
    started(NGINX, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), stderr=subprocess.DEVNULL)
    wait_until_ready(front, replicas[ports[0]])
    clients = Clients(f"http://127.0.0.1:{front}", threads=4)
    assert clients.first.startswith("[{")
    for port, process in replicas.items():
        time.sleep(3)  # as rolling_restart.sh does: longer than fail_timeout
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        wait_until_ready(port, serve(port))
    time.sleep(3)
    clients.stop()
    assert set(clients.answers) == {"same"} and clients.answers["same"] > 100, dict(clients.answers)
    # Both replicas answered, and some requests went on from one that was stopping to the other.
    log = (tmp_path / "access.log").read_text().splitlines()
    answered = collections.Counter(line.split(" ")[-2].rpartition(":")[2] for line in log if line.endswith(" 200"))
    assert all(answered[str(port)] > 20 for port in ports), answered
    assert any("," in line for line in log)
