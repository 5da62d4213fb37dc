"""Commands that compute start again with large pages, once, in the same process."""

import json
import os
import subprocess
import sys

import pytest

from bertgpt.cli import huge_pages
from bertgpt.cli.huge_pages import SINCE, TUNABLE, glibc_version

PROGRAM = """
import json, os, sys
sys.argv = json.loads(os.environ["WORDS"])
from bertgpt.cli.huge_pages import restart_with_huge_pages
restart_with_huge_pages()
print(json.dumps([os.getpid(), os.environ.get("GLIBC_TUNABLES"), os.environ["WORDS"]]))
"""


def outcome(words, **variables):
    """(process id, and what the program that was started with these words prints, line by line)."""
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"} | variables
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environment | {"WORDS": json.dumps(words)}, stdout=subprocess.PIPE
    )
    return process.pid, [json.loads(line) for line in process.communicate(timeout=60)[0].splitlines()]


@pytest.mark.skipif(glibc_version() < SINCE, reason="this C library has no large pages")
def test_a_command_that_computes_starts_again_once_in_the_same_process():
    pid, printed = outcome(["bertgpt", "train", "demo/pretrain"])
    assert printed == [[pid, TUNABLE, '["bertgpt", "train", "demo/pretrain"]']]


def test_other_commands_and_what_the_user_has_set_stay_as_they_are():
    for words in (["bertgpt", "list"], ["bertgpt"], ["-", "train"]):
        assert outcome(words)[1][0][1] is None
    own = "glibc.malloc.check=0"
    assert outcome(["bertgpt", "train"], GLIBC_TUNABLES=own)[1][0][1] == own


def test_a_system_without_such_pages_is_left_alone(monkeypatch):
    restarts = []
    monkeypatch.setattr(sys, "argv", ["bertgpt", "train"])
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(os, "execve", lambda *args: restarts.append(args))
    for found, version in [("glibc 2.31", (2, 31)), ("musl 1.2.5", ()), (None, ()), ("glibc 2.x", ())]:
        monkeypatch.setattr(os, "confstr", lambda name, found=found: found)
        assert huge_pages.glibc_version() == version
        huge_pages.restart_with_huge_pages()
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.40")
    assert not restarts
    huge_pages.restart_with_huge_pages()
    assert len(restarts) == 1


def test_a_restart_that_fails_does_not_end_the_command(monkeypatch):
    def fails(*args):
        raise OSError(7, "Argument list too long")

    monkeypatch.setattr(sys, "argv", ["bertgpt", "train"])
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.40")
    monkeypatch.setattr(os, "execve", fails)
    huge_pages.restart_with_huge_pages()
