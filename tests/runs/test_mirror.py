"""Runs at a URL: whatever is killed at whatever request, what the URL holds is a run that resumes."""

import json
import shutil
from pathlib import Path

import pytest
from object_store import ObjectStore, object_store  # noqa: F401

from bertgpt.io.files import remove_tree, write_json
from bertgpt.io.paths import copies, local_path
from bertgpt.io.remote import RemoteError
from bertgpt.io.retry import Unfinished
from bertgpt.runs import mirror
from bertgpt.runs.directory import lock_run
from bertgpt.runs.facts import damage_of, write_facts
from bertgpt.runs.mirror import TRAINING_LOCK, open_copy, publish_directory

URL = "s3://bucket/runs/a"


class Killed(BaseException):
    """Ends a process at a request; what follows is not done either."""


def save(run: Path, step: int) -> None:
    """What a save of the training loop writes: logs first, then the checkpoint, then the newest step."""
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": step}) + "\n")
    folder = run / "checkpoints" / str(step)
    (folder / "params" / "d").mkdir(parents=True)
    (folder / "opt").mkdir()
    for name in ("_CHECKPOINT_METADATA", "params/d/0", "opt/0"):
        (folder / name).write_text(f"{name} of {step}")
    write_facts(folder, {"step": step})
    write_json(run / "progress.json", {"step": step})


def new_machine() -> Path:
    shutil.rmtree(copies(), ignore_errors=True)
    return open_copy(URL)


def check(run: Path) -> list[int]:
    """The checkpoints of a run, each of which must be intact and have its lines in the log."""
    found = (
        sorted(int(entry.name) for entry in (run / "checkpoints").iterdir()) if (run / "checkpoints").exists() else []
    )
    for step in found:
        assert damage_of(run / "checkpoints" / str(step), step, ("params", "opt")) is None
        assert {"step": step} in [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    if (run / "progress.json").exists():
        assert json.loads((run / "progress.json").read_text())["step"] in [*found, *(step - 1 for step in found)]
    if (run / "results.json").exists():
        assert 3 in found
    return found


def session() -> None:
    """Trains three steps, or what is left of them; the newest two checkpoints are kept."""
    run = local_path(URL)
    with lock_run(run) as publish:
        begun = check(run)
        if (run / "metrics.jsonl").exists():  # lines of steps that are run again are dropped, as by training.log
            lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
            kept = [line for line in lines if json.loads(line)["step"] <= max(begun, default=0)]
            (run / "metrics.jsonl").write_text("".join(kept))
        for step in range(max(begun, default=0) + 1, 5):
            if step < 4:
                save(run, step)
            else:  # the last evaluation adds to what is saved
                write_json(run / "progress.json", {"step": 3})
            for old in check(run)[:-2]:
                remove_tree(run / "checkpoints" / str(old))
            publish()
        write_json(run / "results.json", {"step": 3})


@pytest.mark.slow
def test_a_session_killed_at_any_request_leaves_a_run_that_resumes(object_store, monkeypatch):  # noqa: F811
    monkeypatch.setattr("bertgpt.io.remote.TRANSFERS", 1)
    session()
    total = sum(operation in ("put", "delete") for operation, _ in object_store.requests)
    final = {name: content for name, (content, _) in object_store.objects.items()}
    assert check(new_machine()) == [2, 3] and total > 20
    visible = set()
    for number in range(total):
        object_store.objects.clear()
        left = [number]

        def kill(operation: str, path: str, left: list[int] = left) -> None:
            if operation in ("put", "delete") and (left.append(left.pop() - 1) or left[0] < 0):
                raise Killed

        object_store.fault = kill
        with pytest.raises(Killed):
            shutil.rmtree(copies(), ignore_errors=True)
            session()
        object_store.fault = None
        object_store.objects.pop(f"bucket/runs/a/{TRAINING_LOCK}", None)  # of a process that is gone
        visible.add(tuple(check(new_machine())))
        shutil.rmtree(copies(), ignore_errors=True)
        session()
        assert {name: content for name, (content, _) in object_store.objects.items()} == final
    assert visible == {(), (1,), (1, 2), (1, 2, 3), (2, 3)}


def test_a_checkpoint_becomes_visible_after_its_files_and_vanishes_before_them(object_store):  # noqa: F811
    session()
    written = [f"{operation} {path.removeprefix('runs/a/')}" for operation, path in object_store.requests]
    place = {name: written.index(name) for name in dict.fromkeys(written)}
    for step in (1, 2, 3):
        folder = f"checkpoints/{step}"
        for name in ("_CHECKPOINT_METADATA", "params/d/0", "opt/0"):
            assert place["put metrics.jsonl"] < place[f"put {folder}/{name}"] < place[f"put {folder}/checkpoint.json"]
    assert place["put checkpoints/3/checkpoint.json"] < place["delete checkpoints/1/checkpoint.json"]
    assert place["delete checkpoints/1/checkpoint.json"] < place["delete checkpoints/1/opt/0"]
    assert place["put checkpoints/3/checkpoint.json"] < place["put results.json"]


def test_reading_downloads_only_the_arrays_that_are_read(object_store):  # noqa: F811
    session()
    run = new_machine()
    object_store.requests.clear()
    assert damage_of(run / "checkpoints" / "3", 3, ("params",)) is None
    got = {path.removeprefix("runs/a/checkpoints/") for operation, path in object_store.requests if operation == "get"}
    assert got == {"3/_CHECKPOINT_METADATA", "3/params/d/0"}


def test_damage_of_the_local_copy_is_mended_from_the_url(object_store):  # noqa: F811
    session()
    run = new_machine()
    check(run)
    (run / "checkpoints" / "3" / "opt" / "0").write_text("rotten")
    assert damage_of(run / "checkpoints" / "3", 3, ("params", "opt")) is None
    object_store.objects["bucket/runs/a/checkpoints/3/opt/0"] = (b"rotten", "x")
    (run / "checkpoints" / "3" / "opt" / "0").unlink()
    assert "opt/0 has 6 bytes" in damage_of(run / "checkpoints" / "3", 3, ("params", "opt"))


def test_a_checkpoint_that_vanishes_before_it_is_read_is_replaced_by_the_newer_one(object_store):  # noqa: F811
    session()
    run = new_machine()
    for name in [name for name in object_store.objects if "/checkpoints/2/" in name]:
        del object_store.objects[name]
    assert damage_of(run / "checkpoints" / "2", 2, ("params",)) is not None
    assert not (run / "checkpoints" / "2").exists()


def test_a_run_that_somebody_else_has_taken_over_makes_nothing_visible(object_store):  # noqa: F811
    session()
    run = local_path(URL)
    before = dict(object_store.objects)
    with pytest.raises(Unfinished, match="another process is training this run .process 7 on elsewhere."):
        with lock_run(run) as publish:
            content = json.dumps({"owner": "x", "pid": 7, "host": "elsewhere"}).encode()
            object_store.objects[f"bucket/runs/a/{TRAINING_LOCK}"] = (content, "x")
            save(run, 4)
            publish()
    assert object_store.objects.keys() == before.keys() | {f"bucket/runs/a/{TRAINING_LOCK}"}


def test_logs_are_uploaded_while_a_run_trains(object_store, monkeypatch):  # noqa: F811
    monkeypatch.setattr(mirror, "EVERY", 0.02)
    with lock_run(local_path(URL)):
        (local_path(URL) / "train.log").write_text("line\n")
        for _ in range(500):
            if "runs/a/train.log" in object_store.names():
                break
            mirror.threading.Event().wait(0.01)
        else:
            raise AssertionError("not uploaded in 5 s")
    assert object_store.names() == ["runs/a/train.log"]  # the lock is gone


def test_a_run_in_training_on_this_machine_is_read_as_it_is(object_store):  # noqa: F811
    with lock_run(local_path(URL)) as publish:
        save(local_path(URL), 1)
        publish()
        save(local_path(URL), 2)
        assert check(open_copy(URL)) == [1, 2]
    assert check(new_machine()) == [1, 2]


def test_a_folder_of_runs_is_not_downloaded(object_store):  # noqa: F811
    session()
    shutil.rmtree(copies())
    assert not open_copy("s3://bucket/runs").exists()


def test_a_look_at_a_folder_of_runs_leaves_the_one_in_training_alone(object_store):  # noqa: F811
    with lock_run(local_path(URL)):
        save(local_path(URL), 1)  # not uploaded yet
        open_copy("s3://bucket/runs")
        assert check(local_path(URL)) == [1]
    open_copy("s3://bucket/runs")
    assert not local_path(URL).exists()


def test_of_a_store_the_file_that_names_the_others_is_uploaded_last(object_store, monkeypatch):  # noqa: F811
    folder = local_path("s3://bucket/store")
    for name in ("store.json", "train/00000/tokens.bin", "zz.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)

    def fault(operation: str, path: str) -> None:
        if path.endswith("tokens.bin"):
            raise PermissionError("no")

    object_store.fault = fault
    with pytest.raises(RemoteError):
        publish_directory(folder, last="store.json")
    assert "store/store.json" not in object_store.names()
    object_store.fault = None
    publish_directory(folder, last="store.json")
    assert object_store.names() == ["store/store.json", "store/train/00000/tokens.bin", "store/zz.json"]
    assert ObjectStore.requests[-2:] == [("put", "store/store.json"), ("head", "store/store.json")]
