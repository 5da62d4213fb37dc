"""Sweeps: arms with seeds, what failed, and means that numpy agrees with."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_experiments

from bertgpt.cli.main import main
from bertgpt.config import VALIDATION, Experiment, arms, with_seeds
from bertgpt.studies import sweep as sweeping
from bertgpt.studies.sweep import collect_arms, seeded, sweep
from bertgpt.types import UserError


@pytest.fixture
def short(tiny: Experiment) -> Experiment:
    evals = (dataclasses.replace(VALIDATION, max_batches=1),)
    return dataclasses.replace(tiny, evals=evals)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Training in no time, which fails for names with “bad” in them; the list of what it was asked for."""
    asked = []

    def fake(experiment: Experiment, workdir: Path) -> dict[str, Any]:
        asked.append(experiment.name)
        if "bad" in experiment.name:
            raise UserError("the loss is nan")
        stopped = "SIGTERM" if "stop" in experiment.name else None
        return {"stopped": stopped, "evals": {"validation": {"loss": experiment.seed + experiment.optim.lr}}}

    monkeypatch.setattr(sweeping, "train", fake)
    return asked


@pytest.mark.slow
def test_the_table_holds_what_numpy_says_of_the_results(
    short: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """Two arms, of which one cannot run with any seed; a second time nothing is trained."""
    deltas = {"base": {}, "long": {"data.seq_len": 64}}
    file = write_experiments(tmp_path / "arms.py", arms(short, deltas))
    work = tmp_path / "runs"
    asked = ["sweep", file, "--seeds", "0,1", "--workdir", str(work), "--log_every", "1"]
    assert main(asked) == 1
    out, err = capsys.readouterr()
    for seed in range(2):
        assert f"bertgpt: tiny.long.{seed} failed: data.seq_len=64 exceeds model.max_len=32" in err
    values = [json.loads((work / f"tiny.base.{seed}" / "results.json").read_text()) for seed in range(2)]
    assert [v["name"] for v in values] == [f"tiny.base.{seed}" for seed in range(2)]
    for metric in ("loss", "mlm_loss", "nsp_accuracy"):
        numbers = [v["evals"]["validation"][metric] for v in values]
        cell = f"{np.mean(numbers):.4f} ± {np.std(numbers, ddof=1):.4f}"
        assert cell in out and cell in (work / "report" / "sweep.md").read_text()
    assert "labels_max" not in (work / "report" / "sweep.md").read_text()
    before = (work / "tiny.base.1" / "metrics.jsonl").read_text()
    assert main(asked) == 1
    assert (work / "tiny.base.1" / "metrics.jsonl").read_text() == before
    assert cell in capsys.readouterr().out


def test_a_failed_arm_does_not_end_the_sweep(short: Experiment, tmp_path: Path, pretend: list[str]):
    found = seeded(list(arms(short, {"a": {}, "bad": {}, "c": {"optim.lr": 0.5}}).values()), [0, 5])
    swept = sweep(found, tmp_path)
    assert pretend == ["tiny.a.0", "tiny.a.5", "tiny.bad.0", "tiny.bad.5", "tiny.c.0", "tiny.c.5"]
    assert swept.failures == {"tiny.bad.0": "the loss is nan", "tiny.bad.5": "the loss is nan"}
    first, second = collect_arms(found, swept.results)
    assert (first.name, first.seeds, second.name) == ("tiny.a", [0, 5], "tiny.c")
    assert second.mean("validation loss") == 3.0
    assert second.deviation("validation loss") == pytest.approx(np.std([0.5, 5.5], ddof=1))


def test_a_signal_ends_the_sweep(short: Experiment, tmp_path: Path, pretend: list[str]):
    swept = sweep(list(arms(short, {"a": {}, "stop": {}, "c": {}}).values()), tmp_path)
    assert swept.stopped == "SIGTERM" and pretend == ["tiny.a", "tiny.stop"]


def test_arms_that_have_seeds_are_grouped_by_them_and_take_no_others(
    short: Experiment, tmp_path: Path, pretend: list[str]
):
    own = list(with_seeds(arms(short, {"tasks": {}, "x.1": {}}), [0, 1]).values())
    found = collect_arms(own, sweep(own, tmp_path).results)
    assert [(arm.name, arm.seeds) for arm in found] == [("tiny.tasks", [0, 1]), ("tiny.x.1", [0, 1])]
    single = [dataclasses.replace(short, name="alone")]
    (arm,) = collect_arms(single, sweep(single, tmp_path).results)
    assert (arm.name, arm.cell("validation loss")) == ("alone", "0.0010")
    with pytest.raises(UserError, match="tiny.tasks.0 has its seed already"):
        seeded(own, [2])


def test_the_end_of_a_name_is_a_seed_only_beside_other_seeds(short: Experiment, tmp_path: Path, pretend: list[str]):
    own = list(arms(short, {"rate0": {}, "rate0.0": {}, "rate0.1": {}}).values())
    for seeds in (None, [0, 1]):
        found = seeded(own, seeds)
        assert [(arm.name, arm.seeds) for arm in collect_arms(found, sweep(found, tmp_path).results)] == [
            (f"tiny.{name}", seeds or [0]) for name in ("rate0", "rate0.0", "rate0.1")
        ]


def test_one_of_several_experiments_can_be_given_fields(
    short: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    ran = refuse(monkeypatch)
    file = write_experiments(tmp_path / "arms.py", arms(short, {"a": {}, "b": {}}))
    asked = ["sweep", file, "--seeds", "3", "--workdir", str(tmp_path), "--tiny.b/steps", "8"]
    assert main(asked) == 1
    assert [(e.name, e.steps) for e in ran] == [("tiny.a.3", 6), ("tiny.b.3", 8)]
    assert main([*asked, "--tiny.c/steps", "8"]) == 2
    assert "no experiment is named 'tiny.c'; there are tiny.a, tiny.b" in capsys.readouterr().err


def test_the_sweep_of_the_readme_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    ran = refuse(monkeypatch)
    lines = [line for line in (root / "README.md").read_text().splitlines() if line.startswith("bertgpt sweep")]
    for line in lines:
        assert main([*shlex.split(line, comments=True)[1:], "--workdir", str(tmp_path)]) == 1
    assert lines and {experiment.seed for experiment in ran} == {0, 1, 2}


def refuse(monkeypatch: pytest.MonkeyPatch) -> list[Experiment]:
    """Lets no experiment train; the list of those that were to."""
    ran = []

    def fail(experiment: Experiment, workdir: Path) -> None:
        ran.append(experiment)
        raise UserError("not here")

    monkeypatch.setattr(sweeping, "train", fail)
    return ran


def test_arms_that_start_from_other_arms_do_so_with_every_seed(short: Experiment):
    start = dataclasses.replace(short, name="pre")
    tuned = dataclasses.replace(short, name="post", init_from="pre")
    assert [e.init_from for e in seeded([start, tuned], [3, 4])] == [None, None, "pre.3", "pre.4"]


@pytest.mark.parametrize("seeds", ["0,0", "a", "0,,1", "1,-1", "0, 00"])
def test_seeds_that_are_none_are_refused(short: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture, seeds: str):
    file = write_experiments(tmp_path / "arms.py", {"a": short})
    assert main(["sweep", file, f"--seeds={seeds}", "--workdir", str(tmp_path)]) == 2
    assert "must be different whole numbers" in capsys.readouterr().err


def test_an_unknown_field_is_refused(short: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture):
    file = write_experiments(tmp_path / "arms.py", {"a": short})
    assert main(["sweep", file, "--optim.rl", "3", "--workdir", str(tmp_path)]) == 2
    assert "unknown option --optim.rl; did you mean --optim.lr" in capsys.readouterr().err
    assert main(["sweep", file, "--seeds", "0", "--batch_size", "0"]) == 2
    assert main(["report", file, "--seeds", "0"]) == 2
    assert "unknown option --seeds" in capsys.readouterr().err
