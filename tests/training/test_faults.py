"""A small round of benchmarks.faults: runs that are killed at random moments end with the bits of one that is not."""

import os
from pathlib import Path
from unittest import mock

import pytest

from benchmarks import faults


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_runs_end_as_if_nothing_had_happened(processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(faults, "KILLS_A_RUN", 2)
    with mock.patch.dict(os.environ):
        faults.prepare(tmp_path)
        *_, facts = faults.survive(4, processes, tmp_path / "runs", seed=processes)
    assert facts["kills"] == sum(facts["moments"].values()) == 4
    assert facts["failures"] == [] and facts["survived"] == facts["runs"] >= 2
