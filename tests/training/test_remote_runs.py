"""Training at a URL is training: the same numbers, on whichever machine it goes on."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from object_store import object_store  # noqa: F401

from bertgpt.config import Experiment, with_overrides
from bertgpt.inference.model import load
from bertgpt.io.paths import copies
from bertgpt.runs.checkpoint import Checkpoints
from bertgpt.runs.mirror import open_copy
from bertgpt.training.log import read_metrics
from bertgpt.training.loop import train


def numbers(run: Path) -> list[dict]:
    """The lines of a log without what depends on time."""
    timed = ("time", "tokens_per_second", "matmul_utilisation")
    return [
        {key: value for key, value in line.items() if key not in timed and "second" not in key and "wait" not in key}
        for line in read_metrics(run / "metrics.jsonl")
    ]


def equal(first: Path, second: Path) -> None:
    for item in ("params", "opt"):
        left, right = (Checkpoints(run).read_step(item) for run in (first, second))
        assert left[0] == right[0]
        jax.tree.map(np.testing.assert_array_equal, left[1], right[1])


@pytest.mark.slow
def test_a_run_at_a_url_that_changes_machines_equals_a_local_run_bit_for_bit(
    tiny: Experiment,
    tmp_path: Path,
    object_store,  # noqa: F811
):
    tiny = with_overrides(tiny, {"save_every": 2})
    train(tiny, tmp_path / "runs")
    for _ in range(2):
        assert train(tiny, "s3://bucket/runs", stop_after=2)["stopped"] == "stop_after"
        shutil.rmtree(copies())  # another machine
    results = train(tiny, "s3://bucket/runs")
    shutil.rmtree(copies())
    run = open_copy("s3://bucket/runs/tiny")
    equal(tmp_path / "runs" / "tiny", run)
    names = [{key: line[key] for key in ("kind", "step", "loss") if key in line} for line in numbers(run)]
    assert names == [
        {key: line[key] for key in ("kind", "step", "loss") if key in line}
        for line in numbers(tmp_path / "runs" / "tiny")
    ]
    assert json.loads((run / "results.json").read_text())["evals"] == results["evals"]
    assert not [name for name in object_store.names() if name.startswith("runs/cache")]

    # What starts from it, by name, and what reads it.
    second = dataclasses.replace(tiny, name="second", init_from="tiny", steps=2)
    train(second, "s3://bucket/runs")
    local = load(tmp_path / "runs" / "tiny")
    jax.tree.map(np.testing.assert_array_equal, load("s3://bucket/runs/tiny").params, local.params)
    assert "runs/second/results.json" in object_store.names()
