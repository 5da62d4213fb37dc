"""Evaluations: what is written of them, what they keep of a run, and what is saved when one fails."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from bertgpt.cli.main import main
from bertgpt.config import Eval, Experiment, Mesh
from bertgpt.inference.decoding import Decoding
from bertgpt.inference.model import Model
from bertgpt.inference.predict import on_file
from bertgpt.objectives.classify import Classify
from bertgpt.objectives.tag import Tag
from bertgpt.runs.checkpoint import Checkpoints
from bertgpt.studies.evaluation_report import write_evaluations
from bertgpt.tasks.classification import evaluate_numbers
from bertgpt.tasks.generation import TextToText, evaluate_summaries
from bertgpt.tasks.similarity import evaluate_retrieval
from bertgpt.training.evaluate import Evaluation
from bertgpt.training.loop import train
from bertgpt.types import Confusion, Curve, DataWarning, EvalResult, Metric, Table, UserError


def test_numbers_tables_notes_and_pictures_are_written(tmp_path: Path):
    table = Table("classes", ("label", "F1"), [["a", "0.500"]])
    dots = Curve("numbers", "given", "predicted", np.arange(3.0), np.arange(3.0), scattered=True)
    confusion = Confusion(("a", "b"), np.eye(2, dtype=int))
    cut = DataWarning("truncated", 2, "2 texts are cut")
    found = EvalResult((Metric("f1", 0.5, True),), (table,), (confusion, dots), (cut,))
    paths = write_evaluations({"new/*.csv": found}, tmp_path)
    names = ["evaluation.md", "new__.csv.confusion.png", "new__.csv.numbers.png"]
    assert [path.name for path in paths] == names
    page = paths[0].read_text()
    assert "| f1 | 0.5000 |" in page and "- new/*.csv: 2 texts are cut" in page
    assert "![predicted by given](new__.csv.numbers.png)" in page
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[1:])


def test_curves_are_what_they_are_called(rng: np.random.Generator):
    truth = np.array([1.0, 2.0, 4.0])
    (dots,) = evaluate_numbers(truth, truth + 0.5).figures
    assert dots.scattered and dots.x is truth and dots.y.tolist() == [1.5, 2.5, 4.5]
    a = rng.normal(size=(20, 4))
    judged = evaluate_retrieval(a, a + rng.normal(size=a.shape))
    (recall,) = judged.figures
    assert recall.y[0] == judged.values["recall_at_1"] and recall.y[-1] == 1.0 and np.all(np.diff(recall.y) >= 0)
    judged = evaluate_summaries(["the cat", "a dog"], [["the cat"], ["no"]])
    assert judged.figures[0].y.tolist() == [100.0, 0.0] and judged.values["rougeL"] == 50.0


def test_another_file_is_judged_as_the_runs_own_evaluations_are():
    beam = Decoding(num_beams=4)
    experiment = Experiment(
        "x", None, Classify(), TextToText("a.jsonl"), None, 1, 1, evals=(Eval("test", "test", decode=beam),)
    )
    run = Model(None, None, None, None, Path("x"), experiment=experiment)
    (item,) = on_file(run, "new.jsonl").experiment.evals
    assert item.decode == beam and item.data.test_path == "new.jsonl" and item.name == "new.jsonl"


@pytest.mark.slow
def test_a_failed_last_evaluation_loses_no_training(tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Evaluation, "evaluate", lambda *_: (_ for _ in ()).throw(UserError("no such package")))
    with pytest.raises(UserError, match="no such package"):
        train(tiny, tmp_path)
    assert Checkpoints(tmp_path / tiny.name).latest() == tiny.steps
    monkeypatch.undo()
    assert train(tiny, tmp_path)["step"] == tiny.steps  # only the evaluations are left to do


def test_an_objective_for_other_rows_is_named(tiny: Experiment, tmp_path: Path):
    with pytest.raises(UserError, match="Classify: data of Corpus has no labels"):
        train(dataclasses.replace(tiny, objective=Classify()), tmp_path)
    wrong = dataclasses.replace(tiny, objective=Tag(labels=("a", "b")))
    object.__setattr__(wrong.objective, "infer", lambda data: wrong.objective)
    with pytest.raises(UserError, match="Tag needs the field 'word_positions', which batches of Corpus do not have"):
        train(wrong, tmp_path / "other")


def test_a_run_on_media_that_cannot_be_written_is_evaluated(tiny: Experiment, tmp_path: Path, one_device, capsys):
    expected = train(dataclasses.replace(tiny, steps=2, mesh=Mesh()), tmp_path)["evals"]
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").touch()  # no folder can be made where prepared data would lie, nor where tables would
    (tmp_path / "tiny" / "evaluation").touch()
    assert main(["evaluate", str(tmp_path / "tiny")]) == 0
    shown = capsys.readouterr().out
    assert f"{expected['test']['loss']:.4f}" in shown and "--out FOLDER writes the tables" in shown
    assert main(["evaluate", str(tmp_path / "tiny"), "--out", str(tmp_path / "tiny" / "evaluation")]) == 2
