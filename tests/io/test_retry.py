"""Retries: what is repeated, how often, and what is raised in the end."""

import errno

import pytest

from bertgpt.io import retry
from bertgpt.types import UserError


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self, monkeypatch):
        self.now, self.waits = 0.0, []
        monkeypatch.setattr(retry.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(retry.time, "sleep", self.sleep)

    def sleep(self, seconds):
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def failing(times, error):
    left = [error] * times

    def call():
        if left:
            raise left.pop()
        return "done"

    return call


def test_a_call_that_fails_for_a_while_succeeds_and_warns_once(clock, caplog):
    assert retry.with_retries(failing(4, OSError(errno.EIO, "I/O error")), "/disk/file") == "done"
    assert clock.waits == [0.25, 0.5, 1.0, 2.0]
    assert [record.getMessage() for record in caplog.records] == [
        "/disk/file: [Errno 5] I/O error; trying again for 120 s"
    ]


def test_patience_ends_with_the_last_error(clock):
    with pytest.raises(OSError, match="stale"):
        retry.with_retries(failing(10**6, OSError(errno.ESTALE, "stale")), "file", patience=60)
    assert clock.now == 60 and max(clock.waits) == 15


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.ENOENT, errno.EROFS, errno.EISDIR])
def test_errors_that_stay_are_raised_at_once(clock, number):
    with pytest.raises(OSError):
        retry.with_retries(failing(1, OSError(number, "no")), "file")
    assert not clock.waits


def test_another_rule_may_say_what_passes(clock):
    assert retry.with_retries(failing(1, KeyError("x")), "file", lambda error: isinstance(error, KeyError)) == "done"


def test_only_what_may_be_gone_the_next_time_is_worth_starting_again():
    kinds = UserError, retry.Unfinished, retry.CannotWrite, retry.CannotWriteNow
    assert [kind for kind in kinds if retry.may_resume(kind("why"))] == [retry.Unfinished, retry.CannotWriteNow]
