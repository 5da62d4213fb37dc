"""Same seed, same bits: a run that was interrupted ends exactly where one that was not ends."""

import dataclasses
import hashlib
import json
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import train_until, write_experiments

from bertgpt.config import Experiment, Mesh, with_overrides
from bertgpt.runs.checkpoint import Checkpoints
from bertgpt.training.log import read_metrics
from bertgpt.training.loop import train
from bertgpt.types import UserError


def digest(run: Path) -> str:
    """SHA-256 of every array of the newest checkpoint, parameters and optimiser state."""
    checkpoints = Checkpoints(run)
    value = hashlib.sha256(str(checkpoints.latest()).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path([checkpoints.read("params"), checkpoints.read("opt")]):
        value.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return value.hexdigest()


@pytest.fixture
def noisy(tiny: Experiment) -> Experiment:
    return with_overrides(tiny, {"name": "noisy", "evals": (), "mesh": Mesh(data=1, fsdp=2, tensor=4)})


def test_six_steps_equal_three_and_a_restart_and_three(noisy: Experiment, tmp_path: Path):
    assert noisy.model.dropout > 0 and noisy.model.attention_dropout > 0
    train(noisy, tmp_path / "whole")
    assert train(noisy, tmp_path / "parts", stop_after=3)["stopped"] == "stop_after"
    halfway = digest(tmp_path / "parts" / "noisy")
    assert train(noisy, tmp_path / "parts")["stopped"] is None
    whole, parts = (digest(tmp_path / name / "noisy") for name in ("whole", "parts"))
    print(f"resume digest {whole}")
    assert whole == parts != halfway
    losses = [
        [
            (line["step"], line["loss"])
            for line in read_metrics(tmp_path / name / "noisy" / "metrics.jsonl")
            if line["step"] > 4
        ]
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1] != []


@pytest.mark.slow
def test_another_seed_gives_other_bits(noisy: Experiment, tmp_path: Path):
    short = dataclasses.replace(noisy, steps=2)
    train(short, tmp_path / "a")
    train(dataclasses.replace(short, seed=1), tmp_path / "b")
    assert digest(tmp_path / "a" / "noisy") != digest(tmp_path / "b" / "noisy")


def test_a_finished_run_is_not_trained_again(noisy: Experiment, tmp_path: Path):
    first = train(noisy, tmp_path)
    before = (tmp_path / "noisy" / "metrics.jsonl").read_text()
    assert train(noisy, tmp_path) == first
    assert (tmp_path / "noisy" / "metrics.jsonl").read_text() == before


def test_resuming_another_experiment_lists_what_differs_and_refuses(noisy: Experiment, tmp_path: Path):
    train(noisy, tmp_path, stop_after=1)
    before = (tmp_path / "noisy" / "experiment.json").read_text()
    with pytest.raises(UserError, match=r"objective.mask_rate was 0.15, now 0.3; optim.lr was 0.001, now 0.01"):
        train(with_overrides(noisy, {"objective.mask_rate": 0.3, "optim.lr": 0.01}), tmp_path)
    assert (tmp_path / "noisy" / "experiment.json").read_text() == before
    # How it is watched and laid out may change.
    assert train(with_overrides(noisy, {"log_every": 1, "mesh": Mesh(data=8)}), tmp_path, stop_after=1)["step"] == 2


@pytest.mark.slow
def test_sigterm_saves_and_exits_cleanly_and_the_run_goes_on(noisy: Experiment, tmp_path: Path):
    long = with_overrides(noisy, {"steps": 100_000, "log_every": 1, "mesh": Mesh(data=1)})
    file = write_experiments(tmp_path / "endless.py", {"noisy": long})
    code, lines = train_until(file, tmp_path / "runs", "3/100000", signal.SIGTERM)
    assert code == 0, "".join(lines)
    assert "stopped by SIGTERM" in lines[-1]
    step = Checkpoints(tmp_path / "runs" / "noisy").latest()
    assert step >= 3
    assert train(dataclasses.replace(long, mesh=Mesh(data=8)), tmp_path / "runs", stop_after=1)["step"] == step + 1


@pytest.mark.slow
def test_lines_logged_after_the_last_checkpoint_are_dropped_on_resume(noisy: Experiment, tmp_path: Path):
    train(dataclasses.replace(noisy, log_every=1), tmp_path, stop_after=2)
    path = tmp_path / "noisy" / "metrics.jsonl"
    path.write_text(
        path.read_text() + json.dumps({"kind": "train", "step": 3, "loss": 9.0, "tokens": 1}) + '\n{"kind": "tra'
    )
    train(dataclasses.replace(noisy, log_every=1), tmp_path)
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4, 5, 6]
    assert all(line["loss"] != 9.0 for line in read_metrics(path))
