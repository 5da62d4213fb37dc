"""A run with a teacher: the teacher sees what the student sees, stays as it is, and a restart changes no bit."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from bertgpt.config import Experiment, Mesh, with_overrides
from bertgpt.objectives.distill import Distill
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.runs.checkpoint import Checkpoints, named_leaves
from bertgpt.training.log import read_metrics
from bertgpt.training.loop import train
from bertgpt.types import UserError


def losses(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "train"]


def params_of(run: Path) -> dict[str, np.ndarray]:
    return named_leaves(Checkpoints(run).read("params"))


def make_student(tiny: Experiment, **changes: object) -> Experiment:
    """A student that is narrower and shallower than its teacher, with dropout."""
    objective = Distill(MaskedLM(pair="nsp"), "teacher", logits_weight=0.6, hidden_weight=0.3)
    model = dataclasses.replace(tiny.model, num_layers=1, d_model=8)
    return dataclasses.replace(tiny, objective=objective, model=model, evals=(), log_every=1, **changes)


@pytest.mark.slow
def test_a_student_restarts_bit_for_bit_and_neither_devices_nor_microbatches_change_its_loss(
    tiny: Experiment, tmp_path: Path
):
    train(dataclasses.replace(tiny, name="teacher", steps=2, evals=()), tmp_path)
    before = {name: leaf.tobytes() for name, leaf in params_of(tmp_path / "teacher").items()}
    whole = make_student(tiny, name="whole", steps=4, mesh=Mesh(data=2, fsdp=2, tensor=2))
    train(whole, tmp_path)
    train(dataclasses.replace(whole, name="parts"), tmp_path, stop_after=2)
    train(dataclasses.replace(whole, name="parts"), tmp_path)
    found, expected = params_of(tmp_path / "parts"), params_of(tmp_path / "whole")
    assert found.keys() == expected.keys() and "state_projection/dense/kernel" in found
    assert not any("teacher" in name for name in found)
    for name, leaf in expected.items():
        assert leaf.tobytes() == found[name].tobytes(), name
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert before == {name: leaf.tobytes() for name, leaf in params_of(tmp_path / "teacher").items()}
    # Without dropout, whose keys depend on the layout, the numbers are those of one device and one batch.
    still = dataclasses.replace(
        whole, name="still", model=dataclasses.replace(whole.model, dropout=0.0, attention_dropout=0.0), steps=2
    )
    train(dataclasses.replace(still, mesh=Mesh(data=4, tensor=2)), tmp_path)
    train(dataclasses.replace(still, name="micro", microbatches=2, mesh=Mesh(data=8)), tmp_path)
    for one, other in zip(losses(tmp_path / "still"), losses(tmp_path / "micro"), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    # A teacher that has changed is noticed.
    train(dataclasses.replace(whole, name="later"), tmp_path, stop_after=1)
    (tmp_path / "teacher").rename(tmp_path / "old")
    train(dataclasses.replace(tiny, name="teacher", steps=3, evals=()), tmp_path)
    with pytest.raises(UserError, match="since this run began, the teacher has changed"):
        train(dataclasses.replace(whole, name="later"), tmp_path)


@pytest.mark.slow
def test_teacher_and_student_see_the_same_masks(tiny: Experiment, tmp_path: Path):
    model = dataclasses.replace(tiny.model, dropout=0.0, attention_dropout=0.0)
    tiny = dataclasses.replace(tiny, model=model, evals=(), log_every=1, mesh=Mesh(data=8))
    train(dataclasses.replace(tiny, name="teacher", steps=2), tmp_path)
    distill = Distill(MaskedLM(pair="nsp"), "teacher", logits_weight=1.0, hidden_weight=1.0)
    same = dataclasses.replace(tiny, name="same", objective=distill, init_from="teacher", steps=2)
    train(with_overrides(same, {"optim.lr": 1e-30}), tmp_path)
    lines = [line for line in read_metrics(tmp_path / "same" / "metrics.jsonl") if line["kind"] == "train"]
    assert len(lines) == 2 and lines[0]["mlm_loss"] != lines[1]["mlm_loss"]
    for line in lines:  # at every step: the noise is that of the step
        assert abs(line["loss"]) < 1e-6 and line["teacher_agreement"] == 1.0 and line["teacher_hidden"] < 1e-10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": Distill(MaskedLM(), "nobody")}, "'nobody' is neither a run under"),
        ({"objective": Distill(MaskedLM(), "student")}, "'student' is the run itself"),
        ({"objective": Distill(MaskedLM(), "teacher")}, "teacher has another tokenizer"),
    ],
)
def test_a_teacher_that_does_not_fit_is_named(tiny: Experiment, tmp_path: Path, changes: dict, message: str):
    from bertgpt.config import to_json
    from bertgpt.data.tokenizer import WordPiece
    from bertgpt.io.files import write_json
    from bertgpt.runs.checkpoint import write_params

    tokenizer = dataclasses.replace(tiny.data, tokenizer=WordPiece(150)).train_tokenizer()
    (tmp_path / "teacher").mkdir()
    tokenizer.save(tmp_path / "teacher" / "tokenizer")
    write_json(tmp_path / "teacher" / "model.json", {"model": to_json(tiny.model), "architecture": None, "labels": []})
    write_params(tmp_path / "teacher", {"x": jax.numpy.zeros(1)})
    with pytest.raises(UserError, match=message):
        train(dataclasses.replace(tiny, name="student", evals=(), **changes), tmp_path)
