"""Several processes on this machine that act as the hosts of one run. Every wait has a timeout."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
NOISE = ("Using experimental recoverable", "preemption_notifier")  # of JAX's C++
GLOO = re.compile(r"(\[Gloo\] Rank |\d+| is connected to | peer ranks\. |Expected number .* peer ranks is : )*\s*")
"""what Gloo says of its connections, from several threads at once: parts of its lines may be mixed"""


class Ended(NamedTuple):
    """A process that has ended."""

    code: int
    """exit code; negative: the signal that killed it"""
    lines: list[str]
    """standard output and standard error"""
    seconds: float
    """from its start to its end"""
    ended: float
    """time.monotonic() of its end"""
    times: list[float]
    """the same of each line"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


class Hosts:
    """Processes that run together."""

    def __init__(
        self,
        arguments: Sequence[str],
        count: int,
        devices: int = 1,
        started: Sequence[int] | None = None,
        environments: Sequence[dict[str, str]] = (),
    ):
        """Starts `python ARGUMENTS --distributed.…` in `count` processes of `devices` devices each.

        Args:
          arguments: of Python.
          count: number of processes; 1 without --distributed.
          devices: of each process.
          started: numbers of the processes that are started; None: all.
          environments: more variables of each process.
        """
        flags = f"{QUICK} --xla_force_host_platform_device_count={devices}"
        port, self.lines, self.times, self.processes, self.began = free_port(), [], [], [], time.monotonic()
        self.threads: list[threading.Thread] = []
        self.ends: dict[int, float] = {}
        for number in range(count) if started is None else started:
            words = ["--distributed.coordinator", f"localhost:{port}", "--distributed.num_processes", str(count)]
            words = [*words, "--distributed.process_id", str(number)] if count > 1 else []
            more = environments[number] if environments else {}
            process = subprocess.Popen(
                [sys.executable, *arguments, *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "XLA_FLAGS": flags, **more},
            )
            self.lines.append([])
            self.times.append([])
            self.processes.append(process)
            self.threads.append(threading.Thread(target=self._read, args=(len(self.threads),), daemon=True))
            self.threads[-1].start()

    def _read(self, index: int) -> None:
        for line in self.processes[index].stdout:
            if not GLOO.fullmatch(line) and not any(noise in line for noise in NOISE):
                self.lines[index].append(line.rstrip("\n"))
                self.times[index].append(time.monotonic())
        self.processes[index].wait()
        self.ends[index] = time.monotonic()

    def wait_for(self, condition: Callable[[], bool], timeout: float = 120) -> None:
        """Waits until something is so, and fails if it is not in time."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, self.kill() or self.lines
            time.sleep(0.02)

    def says(self, marker: str, index: int = 0) -> Callable[[], bool]:
        """Whether a process has printed a line with `marker`."""
        return lambda: any(marker in line for line in list(self.lines[index]))

    def send(self, index: int, number: signal.Signals) -> None:
        self.processes[index].send_signal(number)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()

    def join(self, timeout: float = 120) -> list[Ended]:
        """All processes, ended. Those that have not ended in time are killed, and the test fails."""
        deadline = time.monotonic() + timeout
        for thread in self.threads:
            thread.join(max(deadline - time.monotonic(), 0))
        late = [index for index, thread in enumerate(self.threads) if thread.is_alive()]
        self.kill()
        assert not late, f"processes {late} hang: {self.lines}"
        return [
            Ended(process.returncode, lines, self.ends[index] - self.began, self.ends[index], self.times[index])
            for index, (process, lines) in enumerate(zip(self.processes, self.lines, strict=True))
        ]


def train_hosts(
    file: str, workdir: Path, count: int, *flags: str, devices: int = 1, environments: Sequence[dict[str, str]] = ()
) -> Hosts:
    """Starts `bertgpt train FILE --workdir WORKDIR FLAGS` in several processes."""
    words = ["-m", "bertgpt", "train", file, "--workdir", str(workdir), *flags]
    return Hosts(words, count, devices, environments=environments)
