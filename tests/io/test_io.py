"""Files: replaced atomically, directories made or left alone, locks, JSON errors by line."""

import json
import os
import platform
import re
import threading
from collections.abc import Collection
from pathlib import Path

import pytest

from bertgpt.io.checksums import read_sealed, sealed
from bertgpt.io.directories import check_replaceable, new_directory, replace_directory
from bertgpt.io.files import (
    is_finite,
    json_text,
    open_atomic,
    read_bytes,
    read_json,
    read_json_lines,
    read_json_object,
    read_lines,
    write_atomic,
    write_json,
    write_json_lines,
)
from bertgpt.io.locks import lock
from bertgpt.io.retry import Unfinished
from bertgpt.types import UserError


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_has_the_old_content_until_all_of_the_new_is_written(tmp_path: Path):
    file = tmp_path / "a"
    write_atomic(file, b"old")
    with pytest.raises(RuntimeError), open_atomic(file) as stream:
        stream.write(b"new")
        assert file.read_bytes() == b"old"
        raise RuntimeError
    assert file.read_bytes() == b"old" and names(tmp_path) == ["a"]
    write_atomic(file, b"new")
    assert file.read_bytes() == b"new" and names(tmp_path) == ["a"]
    with pytest.raises(UserError, match="nowhere/a: cannot be written: No such file or directory"):
        write_atomic(tmp_path / "nowhere" / "a", b"")


def test_what_json_cannot_represent_is_written_as_null(tmp_path: Path):
    nan, infinity = float("nan"), float("inf")
    odd = {"a": nan, "b": [1.5, -infinity, {"c": (infinity, "NaN")}], "d": 1e308, "e": 10**400}
    right = {"a": None, "b": [1.5, None, {"c": [None, "NaN"]}], "d": 1e308, "e": 10**400}
    assert not is_finite(odd) and is_finite(right) and is_finite([1, "NaN", None, True])

    def strict(text: str) -> object:
        return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    write_json(tmp_path / "a.json", odd)
    write_json_lines(tmp_path / "a.jsonl", [odd, {"x": 1.0}])
    assert strict((tmp_path / "a.json").read_text()) == strict(json_text(odd)) == right
    assert [strict(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()] == [right, {"x": 1.0}]


def test_json_is_written_and_read_with_errors_that_name_the_file(tmp_path: Path):
    write_json(tmp_path / "a.json", {"größe": [1, None]})
    assert (tmp_path / "a.json").read_text("utf-8") == '{\n  "größe": [\n    1,\n    null\n  ]\n}\n'
    assert read_json(tmp_path / "a.json") == {"größe": [1, None]}
    write_json_lines(tmp_path / "a.jsonl", [{"n": 1}, {"n": 2}])
    assert list(read_json_lines(tmp_path / "a.jsonl")) == [(1, {"n": 1}), (2, {"n": 2})]
    with pytest.raises(UserError, match="b.json: no such file"):
        read_json(tmp_path / "b.json")
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(UserError, match="c.json: cannot be read as JSON"):
        read_json(tmp_path / "c.json")


def test_a_new_directory_appears_whole_and_replaces_none_that_holds_something(tmp_path: Path):
    with pytest.raises(RuntimeError), new_directory(tmp_path / "a") as folder:
        (folder / "x").touch()
        raise RuntimeError
    assert names(tmp_path) == []
    with new_directory(tmp_path / "a") as folder:
        (folder / "x").touch()
        assert not (tmp_path / "a").exists()
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["x"]
    with pytest.raises(UserError, match="a: exists already; name a new directory"), new_directory(tmp_path / "a"):
        pass
    (tmp_path / "empty").mkdir()
    with new_directory(tmp_path / "empty") as folder:
        (folder / "y").touch()
    assert names(tmp_path / "empty") == ["y"]


def test_a_directory_with_files_of_others_is_not_replaced(tmp_path: Path):
    for name in ("x", "y"):
        with replace_directory(tmp_path / "a", owned=("x", "y")) as folder:
            (folder / name).touch()
    assert names(tmp_path / "a") == ["y"] and names(tmp_path) == ["a"]
    (tmp_path / "a" / "thesis.tex").touch()
    with (
        pytest.raises(UserError, match="a: exists already and holds thesis.tex"),
        replace_directory(tmp_path / "a", owned=("x", "y")),
    ):
        pass
    assert names(tmp_path / "a") == ["thesis.tex", "y"]


def test_a_lock_is_held_by_one_and_leaves_no_file(tmp_path: Path):
    path, order = tmp_path / "lock", []

    def wait() -> None:
        with lock(path, "busy", wait=True):
            order.append("second")

    with lock(path, "busy", wait=False):
        holder = rf"^busy \(process {os.getpid()} on {re.escape(platform.node())}\)$"
        with pytest.raises(Unfinished, match=holder), lock(path, "busy", wait=False):
            pass
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.2)
        order.append("first")
    waiting.join(30)
    assert order == ["first", "second"] and names(tmp_path) == []
    with lock(path, "busy", wait=False):
        pass


@pytest.mark.parametrize(
    "content, message",
    [
        (b"{", "cannot be read as JSON: Expecting"),
        (b"", "cannot be read as JSON: Expecting value"),
        (b'{"a": "\xff"}', "cannot be read as JSON: is not valid UTF-8 at byte 7"),
        (b'"\xed\xa0\x80"', "is not valid UTF-8"),
        (rb'{"a": "\ud800"}', "cannot be read as JSON: half of a surrogate pair"),
        (b"[" * 101 + b"]" * 101, "nested more than 100 deep"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "nested more than 100 deep"),
        (b"[" * 10**6, "nested more than 100 deep|cannot be read as JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read as JSON: Exceeds the limit"),
    ],
)
def test_json_of_strangers_is_refused_in_one_line(tmp_path: Path, content: bytes, message: str):
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_json(file)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{file}: ")


def test_json_is_read_up_to_its_limits(tmp_path: Path):
    file = tmp_path / "config.json"
    file.write_bytes(b"\xef\xbb\xbf" + b"[" * 100 + rb'"\ud83d\ude00"' + b"]" * 100)
    value = read_json(file)
    for _ in range(100):
        (value,) = value
    assert value == "😀"
    with pytest.raises(UserError, match="has 217 bytes; the limit for such a file is 216"):
        read_json(file, limit=216)
    assert read_json(file, limit=217)
    with pytest.raises(UserError, match="does not hold a JSON object"):
        read_json_object(file)


@pytest.mark.parametrize("read", [read_json, read_bytes, lambda path: next(read_lines(str(path)))])
def test_pipes_devices_and_folders_are_refused_and_not_waited_for(tmp_path: Path, read):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    refused = "is a pipe or device, not a file"
    for name, why in (("pipe", refused), ("zero", refused), ("folder", "cannot be read: Is a directory")):
        with pytest.raises(UserError, match=f"{name}: {why}"):
            read(tmp_path / name)


@pytest.mark.parametrize("in_one_step", [True, False])
def test_what_appears_in_a_directory_while_it_is_replaced_is_kept(in_one_step, tmp_path: Path, monkeypatch):
    if not in_one_step:  # as where the system cannot exchange two directories
        monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
    for name in ("x", "y"):
        with replace_directory(tmp_path / "a", owned=("x", "y")) as folder:
            (folder / name).touch()
    assert names(tmp_path / "a") == ["y"] and names(tmp_path) == ["a"]
    checks = []

    def late(directory: Path, owned: Collection[str]) -> Path:
        checks.append(directory)
        if len(checks) == 2:  # after the exchange
            (directory / "thesis.tex").touch()
        return check_replaceable(directory, owned)

    monkeypatch.setattr("bertgpt.io.directories.check_replaceable", late)
    with (
        pytest.raises(UserError, match="a: exists already and holds thesis.tex"),
        replace_directory(tmp_path / "a", owned=("x", "y")) as folder,
    ):
        (folder / "x").touch()
    assert names(tmp_path / "a") == ["thesis.tex", "y"] and names(tmp_path) == ["a"]


def test_a_lock_whose_holder_died_is_taken_over(tmp_path: Path):
    path = tmp_path / "lock"
    path.write_text('{"pid": 1, "host": "gone"}')
    with lock(path, "busy", wait=False):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert names(tmp_path) == []


def test_a_file_of_somebody_else_is_not_taken_for_a_lock(tmp_path: Path):
    notes, link = tmp_path / ".wiki.lock", tmp_path / "link.lock"
    notes.write_text("my notes\n")
    link.symlink_to(tmp_path / "made")
    for path in (notes, link):
        with pytest.raises(UserError, match=f"{path.name}: is needed as a lock"), lock(path, "busy", wait=False):
            pass
    assert notes.read_text() == "my notes\n" and names(tmp_path) == [".wiki.lock", "link.lock"]


def test_any_change_of_a_sealed_file_is_noticed(tmp_path: Path):
    path = tmp_path / "a.json"
    write_json(path, sealed({"n": 1.5, "names": ["ä", None]}))
    assert read_sealed(path) == {"n": 1.5, "names": ["ä", None]}
    content = path.read_bytes()
    values = json.loads(content)
    for i in range(8 * len(content)):
        changed = bytearray(content)
        changed[i // 8] ^= 1 << i % 8
        path.write_bytes(changed)
        with pytest.raises(UserError, match="a.json: ") as caught:
            read_sealed(path)
        assert "\n" not in str(caught.value), (i, values)
