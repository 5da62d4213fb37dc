"""The preparation on Apache Beam's direct runner: the bytes of a local run, and errors in one line."""

import json
import sys
from pathlib import Path

import pytest
from conftest import make_text

from bertgpt.cli.main import main
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.prepare.beam import prepare_with_beam
from bertgpt.prepare.filters import Preparation
from bertgpt.prepare.pipeline import prepare
from bertgpt.types import UserError

pytest.importorskip("apache_beam", reason="apache-beam is not installed: pip install 'bertgpt[beam]'")

SETTINGS = Preparation(
    id_field="id", min_chars=60, near_duplicates=0.6, validation=0.1, test=0.1, block_documents=16, shard_tokens=600
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three files of several blocks, with duplicates, near duplicates and documents too short."""
    folder = tmp_path / "text"
    folder.mkdir()
    texts = make_text(120, seed=7)
    texts += [texts[3], texts[50], *(f"{texts[i]} And so on." for i in (3, 3, 40)), "\u200b" * 70]
    for i in range(3):
        part = texts[i::3]
        lines = (json.dumps({"id": f"{i}-{n}", "text": text}) + "\n" for n, text in enumerate(part))
        (folder / f"{i}.jsonl").write_text("".join(lines))
    return folder


def contents(path: Path) -> dict[str, bytes]:
    """All files of a store but its report, which tells the time."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith("report"))
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def test_beam_and_a_local_run_write_the_same_bytes(source: Path, tokenizer: Tokenizer, tmp_path: Path):
    local = prepare(str(source), tokenizer, tmp_path / "local", SETTINGS, processes=1)
    facts = prepare_with_beam(str(source), tokenizer, str(tmp_path / "beam"), SETTINGS)
    assert facts["digest"] == local["digest"] and contents(tmp_path / "beam") == contents(tmp_path / "local")
    assert len(facts["splits"]["train"]["shards"]) > 3 and min(facts["dropped"].values()) > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["beam", "local", "text"]
    report, expected = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("beam", "local"))
    assert report["runner"] == "beam"
    for timing in ("runner", "processes", "seconds", "tokens_worked", "seconds_worked"):
        report.pop(timing), expected.pop(timing)
    assert report == expected


def test_the_command_hands_flags_to_beam(source: Path, tokenizer_dir: Path, tmp_path: Path, capsys):
    command = ["prepare", str(source), "--tokenizer", str(tokenizer_dir), "--out", str(tmp_path / "store")]
    assert main([*command, "--runner", "beam", "--", "--runner=NoSuchRunner"]) == 2
    error = capsys.readouterr().err
    assert "NoSuchRunner" in error and len(error.splitlines()) == 1 and not (tmp_path / "store").exists()
    assert main([*command, "--runner", "beam", "--", "--runner=DirectRunner", "--direct_num_workers=1"]) == 0
    facts = json.loads((tmp_path / "store" / "store.json").read_text())
    assert f"digest {facts['digest']}" in capsys.readouterr().out
    assert main([*command, "--runner", "beam"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_what_is_wrong_with_a_file_comes_back_from_the_worker_in_one_line(source, tokenizer, tmp_path: Path):
    (source / "1.jsonl").write_text('{"id": "a", "text": "The cat sleeps."}\n{"id": "b"}\n')
    with pytest.raises(UserError) as caught:
        prepare_with_beam(str(source), tokenizer, str(tmp_path / "store"), SETTINGS)
    assert str(caught.value) == f"{source}/1.jsonl:2: no column 'text'; it has 'id'"
    assert [p.name for p in tmp_path.iterdir()] == ["text"]


def test_the_same_id_twice_is_found_wherever_it_lies(source: Path, tokenizer: Tokenizer, tmp_path: Path):
    with open(source / "2.jsonl", "a") as file:
        file.write('{"id": "0-2", "text": "Another text."}\n')
    with pytest.raises(UserError) as caught:
        prepare_with_beam(str(source), tokenizer, str(tmp_path / "store"), SETTINGS)
    assert str(caught.value) == f"{source}/2.jsonl:43: has the id '0-2', which {source}/0.jsonl:3 already has"


def test_without_beam_the_error_names_the_extra(source, tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "apache_beam.io.filesystems", None)
    with pytest.raises(UserError, match=r"pip install 'bertgpt\[beam\]'"):
        prepare_with_beam(str(source), tokenizer, str(tmp_path / "store"), SETTINGS)
