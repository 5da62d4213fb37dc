"""The loop on whole experiments: what a run leaves behind, how it starts, and what it refuses."""

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path

import jax
import pytest
from conftest import make_text

from bertgpt.config import Eval, Experiment, Mesh, with_overrides
from bertgpt.data.sources.text import clean, read_documents, split_of
from bertgpt.data.tokenizer import WordPiece, load_tokenizer
from bertgpt.inference.model import load
from bertgpt.inference.predict import predict
from bertgpt.objectives.classify import Classify
from bertgpt.prepare.filters import Preparation
from bertgpt.prepare.pipeline import prepare
from bertgpt.runs.directory import load_experiment, read_results
from bertgpt.sharding import make_mesh
from bertgpt.tasks.baselines import Majority, NGram
from bertgpt.tasks.classification import TextClassification
from bertgpt.training.evaluate import Evaluation, evaluate
from bertgpt.training.log import read_metrics
from bertgpt.training.loop import train
from bertgpt.training.step import make_eval_step
from bertgpt.types import DataRequest, UserError


@pytest.fixture
def classify(tiny: Experiment, tmp_path: Path, tokenizer_dir: Path) -> Experiment:
    """Whether a text is about cats: a task that is learnt in a few steps."""
    path = tmp_path / "cats.jsonl"
    lines = [{"text": text[:120], "label": "yes" if "cat" in text[:120].lower() else "no"} for text in make_text(200)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return dataclasses.replace(
        tiny,
        name="cats",
        objective=Classify(2),
        data=TextClassification(str(path), labels=("no", "yes"), tokenizer=str(tokenizer_dir), seq_len=32),
        baselines=(Majority(),),
    )


def test_a_run_leaves_everything_behind_that_describes_it(tiny: Experiment, tmp_path: Path):
    results = train(dataclasses.replace(tiny, baselines=(NGram(1), NGram(2)), eval_every=4), tmp_path)
    run = tmp_path / "tiny"
    names = {path.name for path in run.iterdir()}
    assert names == {
        "checkpoints", "experiment.json", "inputs.json", "metrics.jsonl", "progress.json", "results.json",
        "tensorboard", "tokenizer", "tokenizer.sha256.json", "train.log", "versions.json",
    }  # fmt: skip
    assert read_results(run) == results
    assert list((run / "tensorboard").iterdir())
    lines = read_metrics(run / "metrics.jsonl")
    assert [(x["kind"], x["step"]) for x in lines] == [
        ("train", 2), ("train", 4), ("eval", 4), ("train", 6), ("eval", 6), ("eval", 6)
    ]  # fmt: skip
    assert [x["name"] for x in lines if x["kind"] == "eval"] == ["validation", "validation", "test"]
    expected = {"loss", "mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy", "lr", "grad_norm", "tokens_per_second"}
    assert lines[0]["param_norm"] > 0
    assert expected <= lines[0].keys()
    assert lines[0]["loss"] == pytest.approx(lines[0]["mlm_loss"] + lines[0]["nsp_loss"], rel=0.05)
    assert lines[0]["nsp_labels_max"] + lines[0]["nsp_labels_min"] == pytest.approx(1.0)
    assert results["evals"]["validation"]["nsp_labels_max"] >= 0.5
    assert 0 < lines[0]["tokens"] < lines[-3]["tokens"] <= 6 * 16 * 32 and results["step"] == 6
    assert set(results["baselines"]) == {"unigram", "bigram"}
    # After six updates the model still guesses among all V words; counting does better.
    assert results["evals"]["validation"]["mlm_loss"] == pytest.approx(math.log(200), abs=0.5)
    assert results["baselines"]["unigram"]["test"]["mlm_loss"] < math.log(200)

    # Nothing else is needed on another machine: the same numbers come from the directory alone.
    moved = tmp_path / "elsewhere"
    os.rename(run, moved)
    scores = evaluate(load(moved, arrange="training"), tmp_path / "cache")
    for name in ("validation", "test"):
        assert scores[name].values == pytest.approx(results["evals"][name], rel=1e-5)


@pytest.mark.slow
def test_fine_tuning_starts_from_the_encoder_and_says_what_is_new(
    tiny: Experiment, classify: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture
):
    train(dataclasses.replace(tiny, evals=(), steps=1, optim=dataclasses.replace(tiny.optim, warmup_steps=0)), tmp_path)
    tuned = with_overrides(classify, {"init_from": "tiny", "data.tokenizer": None, "evals": ()})
    capsys.readouterr()
    train(tuned, tmp_path, stop_after=1)
    said = capsys.readouterr().out.replace("\n", "")
    assert "weights from tiny: " in said and "new: classifier/dense/bias, classifier/dense/kernel" in said
    unused = said.partition("not used: ")[2]
    assert unused.startswith("mlm_head/") and "nsp_head/dense/kernel" in unused
    assert (tmp_path / "cats" / "tokenizer" / "tokenizer.json").read_text() == (
        tmp_path / "tiny" / "tokenizer" / "tokenizer.json"
    ).read_text()


@pytest.mark.slow
def test_a_classifier_learns_and_predicts(classify: Experiment, tmp_path: Path):
    # In 100 steps 8 of 12 seeds learn it, in 300 all of 10.
    quick = {"steps": 300, "optim.lr": 5e-3, "optim.bias_correction": True, "model.pooler": "mean", "log_every": 100}
    results = train(with_overrides(classify, quick), tmp_path)
    majority = results["baselines"]["majority class"]
    for name in ("validation", "test"):
        assert results["evals"][name]["accuracy"] > majority[name]["accuracy"] + 0.1
    run = load(tmp_path / "cats", arrange="training")
    texts = ["The cat sings.", "The dog sings.", "A cat sleeps.", "A bird sleeps.", "Big cat eats."]
    answers = list(predict(run, texts, batch_size=2))
    assert [a["label"] for a in answers] == ["yes", "no", "yes", "no", "yes"]
    assert all(a["probability"] == max(a["probabilities"].values()) for a in answers)
    assert all(sum(a["probabilities"].values()) == pytest.approx(1, abs=1e-3) for a in answers)


@pytest.mark.slow
def test_microbatches_and_bfloat16_train_the_same_model(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("bertgpt.layers.linear.cpu_has_bfloat16", lambda: True)
    still = with_overrides(
        tiny, {"model.dropout": 0.0, "model.attention_dropout": 0.0, "evals": (), "steps": 3, "log_every": 1}
    )
    losses = {}
    for name, changes in {
        "whole": {},
        "pieces": {"microbatches": 2},
        "bf16": {"compute_dtype": "bfloat16"},
    }.items():
        train(with_overrides(still, changes | {"name": name}), tmp_path)
        losses[name] = [line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl")]
    assert losses["pieces"] == pytest.approx(losses["whole"], rel=1e-5)
    assert losses["bf16"] == pytest.approx(losses["whole"], rel=1e-2) and losses["bf16"] != losses["whole"]


def test_a_prepared_store_can_be_the_data(tiny: Experiment, tmp_path: Path, tokenizer, corpus_file: Path):
    prepare(str(corpus_file), tokenizer, tmp_path / "store", Preparation(validation=0.1, test=0.1))
    results = train(with_overrides(tiny, {"data.path": str(tmp_path / "store")}), tmp_path / "runs", stop_after=1)
    assert results["step"] == 1
    assert not list((tmp_path / "runs").glob("cache/store-*"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batch_size": 12}, r"batch_size=12 is not divisible by 8 devices \(mesh.data=8\) × 1 microbatches"),
        (
            {"mesh": Mesh(data=2, sequence=4), "data.seq_len": 30},
            r"data\.seq_len=30 is not divisible by mesh\.sequence=4",
        ),
        ({"batch_size": 8, "microbatches": 2}, r"batch_size=8 is not divisible by 8 devices .* × 2 microbatches"),
        ({"model.vocab_size": 20}, r"tokenizer has \d+ tokens but model.vocab_size=20"),
        ({"data.seq_len": 64}, "data.seq_len=64 exceeds model.max_len=32"),
        ({"data.path": "nowhere.txt"}, "nowhere.txt: no such file"),
        ({"data.tokenizer": "nowhere"}, "nowhere"),
        ({"data.tokenizer": None}, "data.tokenizer=None needs init_from"),
        ({"init_from": "nobody"}, "'nobody' is neither a run under .* nor the directory of a run"),
        ({"objective.pair": "nsp", "data.layout": "concat"}, "pair='nsp' needs sentence pairs"),
        ({"mesh": Mesh(data=16)}, r"does not fit 8 device\(s\)"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(tiny: Experiment, tmp_path: Path, changes: dict, message: str):
    with pytest.raises(UserError, match=message) as caught:
        train(with_overrides(tiny, changes), tmp_path / "runs")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs" / "tiny" / "checkpoints").exists() or not list(
        (tmp_path / "runs" / "tiny" / "checkpoints").iterdir()
    )


def test_after_a_mistake_the_corrected_experiment_starts_in_the_same_place(tiny: Experiment, tmp_path: Path):
    trained = with_overrides(tiny, {"data.tokenizer": WordPiece(100), "evals": ()})
    with pytest.raises(UserError, match="exceeds model.max_len"):
        train(with_overrides(trained, {"data.seq_len": 64}), tmp_path)
    with pytest.raises(UserError, match="no such file"):
        train(with_overrides(trained, {"data.path": "nowhere.txt"}), tmp_path)
    results = train(with_overrides(trained, {"data.tokenizer": WordPiece(60)}), tmp_path, stop_after=1)
    assert results["step"] == 1 and load_tokenizer(tmp_path / "tiny" / "tokenizer").vocab.size <= 60


def test_zero_training_examples_are_refused(tiny: Experiment, tmp_path: Path):
    path = tmp_path / "one.txt"
    path.write_text("The cat sleeps. The dog eats.")
    with pytest.raises(UserError, match="train"):
        train(with_overrides(tiny, {"data.path": str(path), "data.validation": 0.9, "data.test": 0.05}), tmp_path)


def test_a_loss_that_is_no_number_ends_the_run_unsaved(tiny: Experiment, tmp_path: Path):
    wild = with_overrides(tiny, {"optim.lr": 1e30, "optim.clip_norm": None, "evals": (), "log_every": 1})
    with pytest.raises(UserError, match=r"tiny: the loss is (nan|inf) at step \d; lower optim.lr"):
        train(wild, tmp_path)
    assert not (tmp_path / "tiny" / "results.json").exists()
    assert not list((tmp_path / "tiny" / "checkpoints").iterdir())


def test_held_out_text_is_held_out_of_both_stages(tiny: Experiment, classify: Experiment):
    """The same fractions hold the same texts out, so that pretraining has not seen the test set."""
    path = classify.data.path
    task = dataclasses.replace(classify.data, validation=0.15, test=0.15)
    corpus = dataclasses.replace(tiny.data, path=path)
    assert (corpus.validation, corpus.test) == (task.validation, task.test)
    test = {example.texts[0] for example in task.examples("test")}
    seen = {
        clean(d.text, False)
        for d in read_documents(path, "text")
        if split_of(clean(d.text, False), corpus.validation, corpus.test) == "train"
    }
    assert test and not test & seen


@pytest.mark.slow
def test_evaluation_does_not_depend_on_batch_size_or_devices(classify: Experiment, tmp_path: Path):
    """Rows that only fill up the last batch do not count."""
    train(dataclasses.replace(classify, evals=(), baselines=()), tmp_path, stop_after=1)
    run = load(tmp_path / "cats", arrange="training")
    eval_step = make_eval_step(run.objective, run.apply, 0, outputs=True)
    scores = []
    for batch_size, devices in ((16, 8), (7, 1), (1, 1)):
        mesh = make_mesh(Mesh(), jax.devices()[:devices])
        batches = run.experiment.data.make(
            DataRequest(
                split="test", seed=0, batch_size=batch_size, tokenizer=run.tokenizer, cache=tmp_path, shuffle=False
            )
        )
        with jax.set_mesh(mesh):
            evaluation = Evaluation(Eval("test", "test"), run.experiment.data, run.objective, batches, eval_step)
            scores.append(evaluation.evaluate(jax.device_get(run.params), mesh).values)
    assert len(batches.dataset) % 16 and len(batches.dataset) % 7
    assert scores[1] == pytest.approx(scores[0], rel=1e-5) and scores[2] == pytest.approx(scores[0], rel=1e-5)


@pytest.mark.slow
def test_an_experiment_without_an_architecture_takes_that_of_what_it_starts_from(tiny: Experiment, tmp_path: Path):
    small = dataclasses.replace(tiny, steps=2, evals=())
    train(small, tmp_path)
    after = dataclasses.replace(small, name="after", model=None, init_from="tiny")
    assert train(after, tmp_path)["step"] == 2
    assert load_experiment(tmp_path / "after").model == tiny.model
    shutil.rmtree(tmp_path / "tiny")  # a run that has begun needs it no more
    assert train(after, tmp_path)["step"] == 2
    with pytest.raises(UserError, match="model=None needs init_from"):
        train(dataclasses.replace(after, name="other", init_from=None), tmp_path)
