"""The run directory: what belongs to it, what damage looks like, and who may write to it."""

import json
import os
import shutil
from pathlib import Path

import jax
import pytest

from bertgpt.config import Experiment, to_json, with_overrides
from bertgpt.data.tokenizer import load_tokenizer
from bertgpt.inference.model import load
from bertgpt.io.directories import make_directory, new_directory, replace_directory
from bertgpt.io.files import write_json
from bertgpt.io.paths import local_path
from bertgpt.runs import directory
from bertgpt.runs.checkpoint import Checkpoints
from bertgpt.runs.directory import (
    check_shared,
    check_tokenizer,
    load_experiment,
    lock_run,
    open_run,
    read_results,
    record_tokenizer,
    write_results,
)
from bertgpt.types import UserError


def test_a_run_directory_tells_its_experiment_and_versions(tiny: Experiment, tmp_path: Path):
    open_run(tmp_path / "run", tiny)
    assert load_experiment(tmp_path / "run") == tiny
    versions = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert versions["jax"] == jax.__version__ and versions["devices"][0].startswith("cpu")


def test_a_directory_without_a_run_or_with_a_broken_one_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no run here"):
        load_experiment(tmp_path)
    (tmp_path / "experiment.json").write_text('{"type": "bertgpt.config:Exp')
    with pytest.raises(UserError, match="experiment.json: cannot be read as JSON"):
        load_experiment(tmp_path)
    (tmp_path / "experiment.json").write_text('{"type": "bertgpt.config:Mesh"}')
    with pytest.raises(UserError, match="does not hold an experiment"):
        load_experiment(tmp_path)


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path: Path):
    busy = rf"run: another process is training this run \(process {os.getpid()} on "
    with lock_run(tmp_path / "run"):
        with pytest.raises(UserError, match=busy), lock_run(tmp_path / "run"):
            pass
    with lock_run(tmp_path / "run"):
        pass


def test_a_workdir_that_cannot_be_written_is_refused(tiny: Experiment, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run: cannot be created: Not a directory"):
        open_run(tmp_path / "file" / "run", tiny)


def test_a_damaged_experiment_is_refused_by_file_and_an_edited_one_taken_as_it_is(tiny: Experiment, tmp_path: Path):
    open_run(tmp_path, tiny)
    path = tmp_path / "experiment.json"
    facts = json.loads(path.read_text())
    write_json(path, facts | {"seed": 1})
    with pytest.raises(UserError, match="experiment.json: is corrupt .checksum differs.; if you edited it, remove"):
        load_experiment(tmp_path)
    del facts["sha256"]
    write_json(path, facts | {"seed": 1})
    assert load_experiment(tmp_path) == with_overrides(tiny, {"seed": 1})
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match="experiment.json: cannot be read as JSON: is not valid UTF-8"):
        load_experiment(tmp_path)


def test_a_run_whose_checkpoints_were_moved_away_loses_nothing(tiny: Experiment, tmp_path: Path):
    open_run(tmp_path, tiny)
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"kind": "train", "step": 1}\n')
    write_json(tmp_path / "progress.json", {"step": 1})
    for again in (tiny, with_overrides(tiny, {"seed": 1})):
        with pytest.raises(UserError, match="its checkpoints are gone; put them back"):
            open_run(tmp_path, again)
    assert log.exists() and load_experiment(tmp_path) == tiny
    (tmp_path / "progress.json").unlink()
    write_results(tmp_path, {})
    with pytest.raises(UserError, match="its checkpoints are gone"):
        open_run(tmp_path, tiny)
    assert log.exists() and read_results(tmp_path) == {}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": None}, "neither steps nor epochs"),
        ({"name": 5}, "name"),
        ({"colour": 1}, "cannot rebuild 'bertgpt.config:Experiment' from its JSON: .* 'colour'"),
        ({"objective": 3}, "objective=3 must be"),
        ({"data": None}, "data is missing"),
        ({"model": {"type": "bertgpt.config:Mesh"}}, "model=Mesh.* must be"),
        ({"model": {"type": "bertgpt.__main__:X"}}, "cannot rebuild 'bertgpt.__main__:X'"),
        ({"model": {"type": "bertgpt.models.bert:encode"}}, "not a dataclass|cannot rebuild"),
        ({"model": {"type": ["bertgpt.models.bert"]}}, "cannot rebuild"),
        ({"model": {}}, "cannot rebuild None"),
        ({"type": None}, "cannot rebuild None"),
    ],
)
def test_an_experiment_that_is_none_is_refused_by_file_and_field(tiny, tmp_path: Path, change, message):
    write_json(tmp_path / "experiment.json", to_json(tiny) | change)
    with pytest.raises(UserError, match=rf"experiment.json: .*({message})") as caught:
        load_experiment(tmp_path)
    assert "\n" not in str(caught.value)


def test_results_and_tokenizers_that_changed_are_refused_by_file(tmp_path: Path, tokenizer_dir: Path):
    assert read_results(tmp_path) is None
    write_results(tmp_path, {"evals": {"validation": {"loss": 1.25}}})
    assert read_results(tmp_path) == {"evals": {"validation": {"loss": 1.25}}}
    path = tmp_path / "results.json"
    path.write_text(path.read_text().replace("1.25", "1.35"))
    with pytest.raises(UserError, match="results.json: is corrupt"):
        read_results(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 2.5}\n')
    write_results(tmp_path, {"evals": {}})
    assert read_results(tmp_path) == {"evals": {}}
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 1.5}\n')
    with pytest.raises(UserError, match="is damaged: metrics.jsonl is corrupt"):
        read_results(tmp_path)
    load_tokenizer(tokenizer_dir).save(tmp_path / "tokenizer")
    record_tokenizer(tmp_path)
    check_tokenizer(tmp_path)
    path = tmp_path / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace("the", "teh"))
    with pytest.raises(UserError, match="tokenizer: is damaged: tokenizer.json is corrupt"):
        check_tokenizer(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="tokenizer: is damaged: tokenizer.json is missing"):
        check_tokenizer(tmp_path)
    shutil.rmtree(tmp_path / "tokenizer")
    with pytest.raises(UserError, match="tokenizer: is missing"):
        check_tokenizer(tmp_path)


def test_links_to_nothing_and_files_in_place_of_folders_are_refused_in_one_line(tiny: Experiment, tmp_path: Path):
    run = tmp_path / "run"
    open_run(run, tiny)
    (run / "tokenizer").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="tokenizer: is a link to a folder that is missing"):
        check_tokenizer(run)
    (run / "checkpoints").write_text("")
    for experiment in (None, tiny):
        with pytest.raises(UserError, match="run/checkpoints: exists and is not a directory"):
            Checkpoints(run, experiment)
    (run / "checkpoints").unlink()
    (run / "checkpoints").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="run/checkpoints: is a link to a folder that is missing"):
        Checkpoints(run, tiny)
    (tmp_path / "runs").symlink_to(tmp_path / "gone")
    with (
        pytest.raises(UserError, match="runs: is a link to a folder that is missing"),
        lock_run(tmp_path / "runs" / "a"),
    ):
        pass


def test_checkpoints_without_an_experiment_are_not_taken_for_a_new_run(tiny: Experiment, tmp_path: Path):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "checkpoints" / "3" / "checkpoint.json").touch()
    with pytest.raises(UserError, match="experiment.json: is missing, but there are checkpoints"):
        open_run(tmp_path, tiny)


def test_what_a_killed_process_left_half_written_is_removed_and_nothing_else(tmp_path: Path):
    own = [".tokenizer.12-0123abcd.partial", ".experiment.json.7-00000000.partial"]
    foreign = [".notes.12-0123abcd.partial", ".tokenizer.partial", "tokenizer.12-0123abcd.partial"]
    (tmp_path / own[0]).mkdir()
    (tmp_path / own[0] / "vocab.txt").touch()
    for name in own[1:] + foreign:
        (tmp_path / name).touch()
    with lock_run(tmp_path):
        pass
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(foreign)


def test_a_url_is_refused_where_a_directory_is_needed_and_none_is_made(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uses = (load_experiment, make_directory, lambda path: write_json(path / "a.json", {}), enter(lock_run))
    for use in (*uses, enter(new_directory), enter(lambda path: replace_directory(path, ("a",)))):
        with pytest.raises(UserError, match="^gs://bucket/runs/a(/a.json)?: is a URL, which nothing but runs"):
            use(Path("gs://bucket/runs/a"))
    with pytest.raises(UserError, match="^https://host/runs/a: is a URL, but runs, models and stores lie"):
        load(Path("https://host/runs/a"))
    assert os.listdir(tmp_path) == []


def enter(context):
    """A function that enters a context."""
    return lambda path: context(path).__enter__()


@pytest.mark.parametrize(
    ("path", "needed"), [("runs/a", "the same --workdir"), ("gs://bucket/runs/a", "XDG_CACHE_HOME, where the local")]
)
def test_hosts_that_do_not_share_the_run_directory_are_told_what_they_need(
    path: str, needed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in (("SHARED_WAIT", 0), ("process_count", lambda: 2), ("on_main", lambda name, call: "elsewhere")):
        monkeypatch.setattr(directory, name, value)
    with pytest.raises(UserError, match=f"is not the folder that process 0 writes: all processes need {needed}"):
        check_shared(local_path(path))
