"""Object stores: paths, local copies, what is tried again, and locks."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from object_store import object_store  # noqa: F401

from bertgpt.io import lease as leases
from bertgpt.io import retry
from bertgpt.io.lease import lease
from bertgpt.io.paths import cache_of, copies, local_path, shown, url_of
from bertgpt.io.remote import RemoteDirectory, RemoteError, RemoteErrorNow
from bertgpt.io.retry import Unfinished
from bertgpt.types import UserError

URL = "s3://bucket/runs/a"


def everything(name: str) -> bool:
    return False


@pytest.fixture
def folder(object_store) -> RemoteDirectory:  # noqa: F811
    return RemoteDirectory(URL)


def put(folder: RemoteDirectory, **contents: str) -> None:
    for name, content in contents.items():
        folder.write(name.replace("__", "/"), content.encode())


def local(folder: RemoteDirectory) -> dict[str, str]:
    return {name: (folder.local / name).read_text() for name, _ in folder.local_files()}


# -- paths ------------------------------------------------------------------------------------------------------------


def test_a_url_and_its_local_copy_stand_for_each_other():
    for url in ("s3://bucket/runs/a", "gs://b/x"):
        assert local_path(url) == local_path(Path(url)) == copies() / url.replace("://", "/")
        assert url_of(local_path(url)) == url_of(Path(url)) == url_of(f"{url}/") == url
        assert shown(f"{local_path(url)}/log: is bad") == f"{url}/log: is bad"
        assert local_path(local_path(url)) == local_path(url)
    assert url_of(cache_of(local_path("s3://bucket/runs"))) is None and cache_of(Path("runs")) == Path("runs/cache")
    for path in ("runs", "/tmp/gs/b", "./a:b/c", copies()):
        assert url_of(path) is None and local_path(path) == Path(path)


@pytest.mark.parametrize("url", ["https://host/runs", "memory://runs", "hf://a/b", "file:///tmp/x"])
def test_other_urls_are_refused(url: str):
    with pytest.raises(UserError, match="is a URL, but runs, models and stores lie on a file system or at gs://BUCKET"):
        local_path(url)


@pytest.mark.parametrize("url", ["gs://", "s3://bucket/../other", "s3://bucket/./a"])
def test_a_url_needs_a_bucket_and_stays_in_it(url: str):
    with pytest.raises(UserError, match="must be (gs|s3)://BUCKET/FOLDER"):
        local_path(url)


# -- local copies -----------------------------------------------------------------------------------------------------


def test_a_local_copy_becomes_equal_to_the_url_whatever_was_there(folder: RemoteDirectory):
    put(folder, a="1", inner__b="2", big="3")
    for name in ("a", "old", "inner/old", "gone/old", ".hidden"):
        (folder.local / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.local / name).write_text("garbage")
    with folder.locked():
        folder.pull(lambda name: name == "big")
    assert local(folder) == {"a": "1", "inner/b": "2"}
    assert (folder.local / ".hidden").exists() and not (folder.local / "gone").exists()


def test_only_what_has_changed_is_transferred(folder: RemoteDirectory, object_store):  # noqa: F811
    put(folder, a="1", b="2", c="3")
    with folder.locked():
        folder.pull(everything)
        put(folder, a="4")
        (folder.local / "b").write_text("5")
        object_store.requests.clear()
        folder.pull(everything)
    assert local(folder) == {"a": "4", "b": "2", "c": "3"}
    assert sorted(path for operation, path in object_store.requests if operation == "get") == ["runs/a/a", "runs/a/b"]


def test_a_file_for_later_is_downloaded_when_it_is_needed_and_again_when_it_has_changed(folder: RemoteDirectory):
    put(folder, a="1", big="2")
    for content in ("2", "3"):
        put(folder, big=content)
        with folder.locked():
            folder.pull(lambda name: name == "big")
        assert "big" not in local(folder)
        assert folder.fetch(["big"]) and local(folder)["big"] == content
    assert not folder.fetch(["big", "missing"])


def test_an_interrupted_download_leaves_no_half_file(folder: RemoteDirectory, object_store):  # noqa: F811
    put(folder, a="1" * 100)

    def fault(operation: str, path: str) -> None:
        if operation == "get rest":
            raise PermissionError("no")

    object_store.fault = fault
    with folder.locked(), pytest.raises(RemoteError, match="s3://bucket/runs/a/a: no access: no"):
        folder.pull(everything)
    assert local(folder) == {}


def test_what_vanishes_while_it_is_uploaded_is_left_out(folder: RemoteDirectory):
    folder.local.mkdir(parents=True)
    (folder.local / "a").write_text("1")
    record: dict = {}
    folder.upload(["a", "vanished"], record)
    assert list(folder.files()) == ["a"] == list(record)


# -- errors -----------------------------------------------------------------------------------------------------------


class HttpError(Exception):
    """As gcsfs raises it."""


class NoCredentialsError(Exception):
    """As botocore raises it."""


TRANSIENT = [
    OSError(errno.EBUSY, "Please reduce your request rate."),
    OSError(errno.EIO, "We encountered an internal error. Please try again."),
    HttpError("Backend Error, 503"),
    HttpError("Too many, 429"),
    TimeoutError(),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    RuntimeError("an unknown error of a network library"),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=lambda error: type(error).__name__)
def test_errors_of_a_server_are_tried_again(folder: RemoteDirectory, object_store, error: Exception):  # noqa: F811
    put(folder, a="1")
    left = [error] * 5

    def fault(operation: str, path: str) -> None:
        if left:
            raise left.pop()

    object_store.fault = fault
    assert folder.read("a") == b"1" and not left


def test_a_server_that_stays_away_is_one_line(folder: RemoteDirectory, object_store, monkeypatch):  # noqa: F811
    monkeypatch.setattr(retry, "PATIENCE", 0.05)

    def fault(operation: str, path: str) -> None:
        raise OSError(errno.EBUSY, "Slow down.")

    object_store.fault = fault
    with pytest.raises(RemoteErrorNow, match="^s3://bucket/runs/a/a: cannot be reached: Slow down.$"):
        folder.read("a")


@pytest.mark.parametrize(
    "error, message",
    [
        (NoCredentialsError("Unable to locate credentials"), "no access: Unable to locate credentials; set the cred"),
        (PermissionError(errno.EACCES, "Access Denied"), "no access: Access Denied; set the credentials of the store"),
        (HttpError("Anonymous caller does not have access, 403"), "Anonymous caller does not have access, 403"),
        (OSError(errno.EINVAL, "The specified bucket is not valid."), "The specified bucket is not valid."),
    ],
    ids=["credentials", "permission", "status", "name"],
)
def test_errors_that_stay_are_one_line_at_once(folder: RemoteDirectory, object_store, error, message):  # noqa: F811
    def fault(operation: str, path: str) -> None:
        raise error

    object_store.fault = fault
    with pytest.raises(RemoteError, match=f"^s3://bucket/runs/a: {message}"):
        folder.files()
    assert len(object_store.requests) == 1


def test_a_missing_bucket_is_named(object_store):  # noqa: F811
    with pytest.raises(RemoteError, match="s3://buckt/runs: there is no bucket 'buckt'; create it first"):
        RemoteDirectory("s3://buckt/runs").files()
    with pytest.raises(RemoteError, match="s3://buckt/runs: there is no bucket 'buckt'; create it first"):
        RemoteDirectory("s3://buckt/runs").write("a", b"")


@pytest.mark.parametrize("url, extra", [("s3://bucket/a", "s3"), ("gs://bucket/a", "gcs")])
def test_a_missing_driver_names_its_extra(url: str, extra: str, monkeypatch):
    for driver in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(UserError, match=rf"{url}: its driver is not installed; pip install 'bertgpt\[{extra}\]'"):
        RemoteDirectory(url)


def test_a_full_local_disk_is_named_as_such(folder: RemoteDirectory, object_store):  # noqa: F811
    put(folder, a="1")

    def fault(operation: str, path: str) -> None:
        if operation == "get rest":
            raise OSError(errno.ENOSPC, "No space left on device")

    object_store.fault = fault
    with folder.locked(), pytest.raises(Unfinished, match="copies/.*/a: cannot be written: No space left on device"):
        folder.pull(everything)


# -- locks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(leases, "EXPIRY", 0.3)
    monkeypatch.setattr(leases, "RENEWED", 0.05)
    monkeypatch.setattr(leases, "POLL", 0.02)


def held_by(folder: RemoteDirectory, **facts: object) -> None:
    folder.write(".lock", json.dumps({"owner": "x", "host": "elsewhere", "pid": 7, "machine": "m"} | facts).encode())


def test_one_of_several_gets_the_lock_and_it_is_released(folder: RemoteDirectory, quick):
    got, refused = [], []
    begin, leave = threading.Barrier(4), threading.Event()

    def compete() -> None:
        begin.wait()
        try:
            with lease(folder, ".lock", "busy"):
                got.append(1)
                leave.wait(5)
        except Unfinished as error:
            refused.append(str(error))
        if len(refused) == 3:
            leave.set()

    threads = [threading.Thread(target=compete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and refused == [f"busy (process {os.getpid()} on {os.uname().nodename})"] * 3
    assert folder.read(".lock") is None


def test_a_lock_that_is_not_renewed_is_taken_over_and_one_that_is_renewed_is_not(folder: RemoteDirectory, quick):
    held_by(folder)
    with lease(folder, ".lock", "busy") as held:
        held.check()
    held_by(folder)
    renewing = threading.Timer(0.1, held_by, (folder,), {"renewals": 1})
    renewing.start()
    with pytest.raises(Unfinished, match="^busy .process 7 on elsewhere.$"), lease(folder, ".lock", "busy"):
        pass
    renewing.join()


def test_a_dead_process_of_this_machine_is_replaced_at_once(folder: RemoteDirectory, monkeypatch):
    monkeypatch.setattr(leases, "POLL", 1e9)  # nobody waits
    child = subprocess.Popen(["true"])
    child.wait()
    held_by(folder, pid=child.pid, machine=leases._machine())
    with lease(folder, ".lock", "busy") as held:
        held.check()


def test_a_holder_that_was_replaced_notices(folder: RemoteDirectory):
    with lease(folder, ".lock", "busy") as held:
        held_by(folder)
        with pytest.raises(Unfinished, match="busy .process 7 on elsewhere."):
            held.check()
    assert b"elsewhere" in folder.read(".lock")  # the lock of the other one stays


def test_copies_of_different_urls_do_not_meet(object_store):  # noqa: F811
    first, second = RemoteDirectory("s3://bucket/a"), RemoteDirectory("s3://bucket/ab")
    put(first, x="1")
    put(second, x="2")
    for folder in (first, second):
        with folder.locked():
            folder.pull(everything)
    assert local(first) == {"x": "1"} and local(second) == {"x": "2"}
    shutil.rmtree(copies())
    assert local(first) == {}
