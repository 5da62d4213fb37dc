"""A terminal that goes away or knows no Unicode does not end a run."""

import contextlib
import io
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from bertgpt.training.log import RunLog
from bertgpt.training.terminal import FALLBACK, Output, lasting_output

VALUES = {"loss": 2.5, "lr": 1e-3, "tokens": 10, "tokens_per_second": 1.0, "matmul_utilisation": 0.5}


class Gone(io.StringIO):
    """A stream that fails after `left` writes."""

    def __init__(self, left: int, error: type[OSError] = BrokenPipeError):
        super().__init__()
        self.left, self.error = left, error

    def write(self, text: str) -> int:
        if not self.left:
            raise self.error(32, "Broken pipe")
        self.left -= 1
        return super().write(text)


@pytest.mark.parametrize("error", [BrokenPipeError, OSError])
def test_what_is_written_to_a_lost_stream_is_discarded_and_said_once(error: type[OSError]):
    stream, losses = Gone(2, error), []
    output = Output(stream)
    output.notify(losses.append)
    for _ in range(5):
        print("line", file=output, flush=True)
    assert stream.getvalue() == "line\n" and len(losses) == 1
    assert isinstance(losses[0], error) and not output.isatty()
    output.notify(losses.append)
    assert losses == [output.lost, output.lost]


@pytest.mark.parametrize("guard", [lasting_output, contextlib.nullcontext])  # in a command, from Python
def test_the_log_goes_on_and_train_log_says_so(guard: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", Gone(1))
    with guard(), RunLog(tmp_path, name="run", total_steps=9, start_step=0) as log:
        for step in (1, 2, 3):
            log.train(step, VALUES)
        log.message("the end")
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert sum("standard output is gone (Broken pipe); the run continues without it" in line for line in lines) == 1
    assert lines[-1].endswith("  the end") and sum("/9  loss 2.500" in line for line in lines) == 3
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


PRINTS = """
from bertgpt.training.terminal import lasting_output
with lasting_output():
  for _ in range(9999): print('x' * 99)
"""


def test_the_interpreter_ends_well_although_nobody_reads():
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTS + "raise SystemExit(7)"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"x" * 99 + b"\n"
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (7, b"")
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", PRINTS], stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_closed_terminal_is_a_lost_stream():
    leader, follower = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", PRINTS], stdout=follower, stderr=subprocess.PIPE)
    os.close(follower)
    assert os.read(leader, 9) == b"x" * 9
    os.close(leader)
    assert (process.wait(60), process.stderr.read()) == (0, b"")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_characters_that_a_terminal_does_not_know_are_written_in_ascii(encoding: str):
    raw = io.BytesIO()
    output = Output(io.TextIOWrapper(raw, encoding))
    print("─│┏━█ … 1 × 2 → 中 é", file=output, flush=True)
    written = raw.getvalue().decode(encoding)
    assert (
        written
        == {
            "ascii": "-|+-# ... 1 x 2 -> \\u4e2d \\xe9\n",
            "latin-1": "-|+-# ... 1 × 2 -> \\u4e2d é\n",
            "cp1252": "-|+-# … 1 × 2 -> \\u4e2d é\n",
        }[encoding]
    )
    assert "1 × 2".encode("ascii", FALLBACK) == b"1 x 2"


def test_tables_and_logs_appear_on_an_ascii_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    with lasting_output(), RunLog(tmp_path, name="run", total_steps=9, start_step=0) as log:
        log.message("8 × cpu")
        table = Table(title="Held-out …")
        table.add_column("µ")
        table.add_row("1")
        Console(file=sys.stdout, width=40).print(table)
    assert b"8 x cpu" in raw.getvalue() and b"out ...\n" in raw.getvalue() and b"+---+" in raw.getvalue()
