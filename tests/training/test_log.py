"""What a run writes while it works."""

import json
import os
from pathlib import Path

import pytest

from bertgpt.training.log import RunLog, print_table, read_metrics
from bertgpt.types import UserError

VALUES = {"loss": 2.5, "mlm_accuracy": 0.25, "lr": 1e-3, "tokens_per_second": 12_345.0, "matmul_utilisation": 0.5}


def test_lines_carry_kind_step_time_and_values(tmp_path: Path, capsys: pytest.CaptureFixture):
    with RunLog(tmp_path, name="run", total_steps=10, start_step=0) as log:
        log.train(5, VALUES)
        log.eval(5, "validation", {"loss": 2.0, "accuracy": float("nan")})
    train, held_out = read_metrics(tmp_path / "metrics.jsonl")
    assert train.items() >= {"kind": "train", "step": 5, **VALUES}.items() and train["time"] > 1e9
    assert held_out.items() >= {"kind": "eval", "name": "validation", "loss": 2.0, "accuracy": None}.items()
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("run   5/10  loss 2.500  mlm_accuracy 0.250  lr 1.0e-03  12.3k tok/s  50% of peak")
    assert "ETA" in shown[0] and shown[1] == "run  validation at 5:  loss 2.0000  accuracy nan"


def test_lines_are_on_disk_when_the_log_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced = []
    with RunLog(tmp_path, name="run", total_steps=10, start_step=0) as log:
        log.train(5, VALUES)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number)))
            log.sync()
    file = synced[-1]
    assert os.path.samestat(file, (tmp_path / "metrics.jsonl").stat()) and file.st_size > 0


def test_tensorboard_files_hold_the_same_numbers(tmp_path: Path):
    with RunLog(tmp_path, name="run", total_steps=10, start_step=0) as log:
        log.train(5, VALUES)
    (file,) = (tmp_path / "tensorboard").iterdir()
    content = file.read_bytes()
    assert all(f"train/{name}".encode() in content for name in VALUES)


def test_a_torn_last_line_is_left_out_and_any_other_is_an_error(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match="metrics.jsonl:2: not valid JSON"):
        read_metrics(path)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_metrics(tmp_path / "none.jsonl")


def test_lines_after_the_start_are_dropped(tmp_path: Path):
    lines = [{"kind": "train", "step": step} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with RunLog(tmp_path, name="run", total_steps=10, start_step=2):
        pass
    assert read_metrics(tmp_path / "metrics.jsonl") == lines[:2]


def test_a_table_is_not_cut_where_the_output_is_no_terminal(capsys: pytest.CaptureFixture):
    print_table("Title", ["", "a number with a long name"], [["x" * 100, "1.5"]])
    out = capsys.readouterr().out
    assert "x" * 100 in out and "a number with a long name" in out and "1.5" in out
