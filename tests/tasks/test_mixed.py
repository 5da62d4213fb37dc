"""Several tasks on one encoder: rows of each in every batch, layers of its own for each."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, WORDS

from bertgpt.adaptation.init_from import check_labels
from bertgpt.config import TEST, Experiment, Mesh, infer
from bertgpt.data.mixture import Part
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.model import label_sets, load
from bertgpt.inference.predict import one_task, predict
from bertgpt.models.apply import make_apply
from bertgpt.objectives.classify import Classify
from bertgpt.objectives.multitask import Named, OfTask, Tasks, without_prefix
from bertgpt.objectives.tag import Tag
from bertgpt.sharding import make_mesh
from bertgpt.tasks.classification import TextClassification
from bertgpt.tasks.mixed import TaskMixture, examples_per_task
from bertgpt.tasks.tagging import TokenTagging
from bertgpt.training.evaluate import evaluate
from bertgpt.training.loop import train
from bertgpt.training.optim import AdamW
from bertgpt.training.state import init_state
from bertgpt.training.step import loss_and_grads
from bertgpt.types import DataRequest, Labels, Sum, UserError


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("tasks"), np.random.default_rng(0)
    texts = [list(rng.choice(WORDS, 6)) for _ in range(120)]
    mood = [{"text": " ".join(words), "label": ("neg", "pos")["cat" in words]} for words in texts]
    topic = [{"text": " ".join(words[::-1]), "label": "abc"[len(words[0]) % 3]} for words in texts[:70]]
    slots = [{"tokens": words, "tags": ["B-X" if w == "dog" else "O" for w in words]} for words in texts[:50]]
    for name, records in (("mood", mood), ("topic", topic), ("slots", slots)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def mixture(folder: Path, **changes) -> TaskMixture:
    return TaskMixture(
        (
            Part("mood", TextClassification(str(folder / "mood.jsonl"), seq_len=16)),
            Part("topic", TextClassification(str(folder / "topic.jsonl"), seq_len=24, packed=True)),
            Part("slots", TokenTagging(str(folder / "slots.jsonl"), seq_len=16)),
        ),
        **changes,
    )


OBJECTIVE = Tasks((Named("mood", Classify(), 2.0), Named("topic", Classify()), Named("slots", Tag(crf=True))))


def experiment(folder: Path, tokenizer_dir: Path) -> Experiment:
    return Experiment(
        name="tasks",
        model=TINY,
        objective=OBJECTIVE,
        data=mixture(folder, tokenizer=str(tokenizer_dir), multiple=8),
        optim=AdamW(lr=1e-3, warmup_steps=1),
        steps=2,
        batch_size=24,
        mesh=Mesh(data=8),
        evals=(TEST,),
    )


def make(data: TaskMixture, tokenizer: Tokenizer, size: int, **changes):
    settings = dict(split="train", seed=0, batch_size=size, tokenizer=tokenizer, cache=Path("unused"), shuffle=True)
    return data.infer().make(DataRequest(**settings | changes))


def test_rows_follow_size_temperature_or_weights_and_no_part_is_without():
    data = dataclasses.replace(mixture(Path("no")), temperature=2.0)
    sizes = np.array([9000, 900, 100])
    np.testing.assert_allclose(data.shares(sizes), np.sqrt(sizes) / np.sqrt(sizes).sum())
    assert examples_per_task(sizes / sizes.sum(), 20).tolist() == [18, 1, 1]
    assert examples_per_task(data.shares(sizes), 20).tolist() == [14, 4, 2]
    assert examples_per_task([0.98, 0.01, 0.01], 3).tolist() == [1, 1, 1]
    weighted = TaskMixture(tuple(dataclasses.replace(p, weight=w) for p, w in zip(data.parts, (2, 1, 1), strict=True)))
    assert examples_per_task(weighted.shares(sizes), 8).tolist() == [4, 2, 2]
    with pytest.raises(UserError, match="3 tasks do not fit a batch with room for 2 of them"):
        examples_per_task([0.4, 0.3, 0.3], 2)
    for count in range(3, 40):
        assert examples_per_task(data.shares(sizes), count).sum() == count


def test_a_batch_holds_rows_of_each_task_by_seed_and_step_alone(files: Path, tokenizer: Tokenizer):
    batches = make(mixture(files), tokenizer, 12)
    counts = {name: len(batches[0][f"{name}/input_ids"]) for name in ("mood", "topic", "slots")}
    assert sum(counts.values()) == 12 and counts["mood"] > counts["topic"]
    assert batches[3]["mood/input_ids"].shape[1] == 16 and batches[3]["topic/input_ids"].shape[1] == 24
    again = make(mixture(files), tokenizer, 12)
    for name, array in batches[5].items():
        np.testing.assert_array_equal(array, again[5][name])
    other = make(mixture(files), tokenizer, 12, seed=1)
    assert (other[5]["mood/row"] != batches[5]["mood/row"]).any()


def test_in_order_every_row_of_every_task_comes_once(files: Path, tokenizer: Tokenizer):
    batches = make(mixture(files), tokenizer, 7, shuffle=False)
    for name, rows in batches.dataset.children.items():
        seen = np.concatenate([batches[step][f"{name}/row"] for step in range(len(batches))])
        assert sorted(seen[seen >= 0]) == list(range(len(rows)))


@pytest.mark.slow
def test_the_loss_is_the_sum_of_the_tasks_losses_and_gradients_reach_the_right_layers(
    files: Path, tokenizer: Tokenizer, tokenizer_dir: Path
):
    settled = infer(experiment(files, tokenizer_dir))
    batch = jax.tree.map(jnp.asarray, make(settled.data, tokenizer, 24)[0])
    module, objective = TINY.make(), settled.objective.make(tokenizer.vocab)
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    state, _ = init_state(module, objective, AdamW(lr=1.0).make(1)[0], batch, mesh, 0)
    heads = {name: sorted(layers) for name, layers in state.params.items() if name.startswith("task_")}
    assert heads == {"task_mood": ["classifier"], "task_topic": ["classifier"], "task_slots": ["crf", "tagger"]}
    assert not {"classifier", "tagger", "crf"} & set(state.params)
    assert state.params["task_topic"]["classifier"]["dense"]["bias"].shape == (3,)

    apply = make_apply(module)
    value, metrics, _ = jax.jit(lambda p, b: loss_and_grads(objective, apply, p, b, None, 1))(state.params, batch)
    apart = {}
    for part in settled.objective.parts:
        alone = OfTask(part.name, part.objective).make(tokenizer.vocab)
        own = without_prefix(part.name, batch)
        apart[part.name], scores, grads = jax.jit(lambda p, b, o=alone: loss_and_grads(o, apply, p, b, None, 1))(
            state.params, own
        )
        for name, score in scores.items():
            np.testing.assert_allclose(Sum(*metrics[f"{part.name}/{name}"]), score, rtol=1e-5)
        norms = {name: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree)) for name, tree in grads.items()}
        assert {name for name, norm in norms.items() if name.startswith("task_") and norm > 0} == {f"task_{part.name}"}
        assert norms["encoder"] > 0 and norms["embeddings"] > 0
    assert float(value) == pytest.approx(float(2 * apart["mood"] + apart["topic"] + apart["slots"]), rel=1e-5)


def test_in_training_a_task_counts_by_its_share_of_the_rows(files: Path, tokenizer: Tokenizer, tokenizer_dir: Path):
    settled = infer(experiment(files, tokenizer_dir))
    data = dataclasses.replace(settled.data, multiple=1)
    batch = jax.tree.map(jnp.asarray, make(data, tokenizer, 24)[0])
    rows = {part.name: len(batch[f"{part.name}/input_ids"]) for part in settled.data.parts}
    assert len(set(rows.values())) > 1
    module = dataclasses.replace(TINY, dropout=0.0, attention_dropout=0.0).make()
    objective = settled.objective.make(tokenizer.vocab)
    state, _ = init_state(module, objective, AdamW(lr=1.0).make(1)[0], batch, make_mesh(Mesh(), jax.devices()[:1]), 0)
    trained, scored = (
        jax.jit(lambda p, b, rng=rng: objective.loss(make_apply(module), p, b, rng))(state.params, batch).terms
        for rng in (jax.random.key(0), None)
    )
    for name, term in trained.items():
        factor = rows[name.split("/")[0]] * len(rows) / sum(rows.values())
        np.testing.assert_allclose(term.sum / term.weight, factor * scored[name].sum / scored[name].weight, rtol=1e-5)


@pytest.mark.slow
def test_a_run_of_several_tasks_is_judged_and_predicts_for_each(files: Path, tokenizer_dir: Path, tmp_path: Path):
    results = train(experiment(files, tokenizer_dir), tmp_path)
    test = results["evals"]["test"]
    assert {"mood/accuracy", "mood/macro_f1", "topic/accuracy", "slots/f1"} <= set(test)
    assert any(note.startswith("examples in a batch: mood ") for note in results["notes"]["train"])
    run = load(tmp_path / "tasks", arrange="training")
    (answer,) = predict(one_task(run, "topic"), ["the cat"])
    assert set(answer["probabilities"]) == {"a", "b", "c"}
    (answer,) = predict(one_task(run, "slots"), [{"tokens": ["dog", "eats"]}])
    assert "entities" in answer
    alone = evaluate(one_task(run, "mood"), tmp_path / "cache")["test"].values
    assert {
        f"mood/{name}": pytest.approx(v, rel=1e-4) for name, v in alone.items() if name != "loss"
    }.items() <= test.items()
    with pytest.raises(UserError, match="name one of mood, topic, slots with --task_name"):
        list(predict(run, ["the cat"]))
    with pytest.raises(UserError, match="no task 'weather'; there are 'mood', 'topic', 'slots'"):
        one_task(run, "weather")


def test_unusable_mixtures_and_objectives_are_named(files: Path, tokenizer: Tokenizer):
    data = mixture(files)
    first, second, third = data.parts
    for parts, message in (
        ((first, first), "each with a name of its own"),
        ((), "each with a name of its own"),
        ((dataclasses.replace(first, weight=0.0),), "weight=0.0 must be positive"),
        ((dataclasses.replace(first, weight=-1.0),), "weight=-1.0 must be positive"),
        ((dataclasses.replace(first, weight=1.0), second), "part 'topic' has no weight, others have"),
        ((dataclasses.replace(first, name="a/b"),), "name 'a/b' must be letters"),
    ):
        with pytest.raises(UserError, match=message):
            TaskMixture(parts)
    with pytest.raises(UserError, match="batch_size=12 is not divisible by multiple=8"):
        make(dataclasses.replace(data, multiple=8), tokenizer, 12)
    with pytest.raises(UserError, match="temperature=0.0 must be positive"):
        dataclasses.replace(data, temperature=0.0)
    with pytest.raises(UserError, match="must have the names of the data's parts"):
        OBJECTIVE.infer(TaskMixture((first, third)))
    with pytest.raises(UserError, match="the data determines the shares of tasks"):
        Tasks((Named("a", Classify(), share=0.5),))
    with pytest.raises(UserError, match="different names"):
        Tasks((Named("a", Classify()), Named("a", Classify())))


def test_a_tasks_head_for_other_labels_is_refused(files: Path, tokenizer_dir: Path):
    made = infer(experiment(files, tokenizer_dir))
    here = label_sets(made.data)
    loaded = ["encoder/x", "task_topic/classifier/dense/kernel"]
    check_labels(here, here, "there", loaded)
    topic = made.data.parts[1]
    other = dataclasses.replace(topic, data=dataclasses.replace(topic.data, labels=topic.data.labels[::-1]))
    mixed = dataclasses.replace(made.data, parts=(made.data.parts[0], other, made.data.parts[2]))
    with pytest.raises(
        UserError, match="a head for the labels a, b, c, but the data has c, b, a; --reinitialize task_topic"
    ):
        check_labels(label_sets(mixed), here, "there", loaded)
    check_labels(label_sets(mixed), here, "there", ["encoder/x"])
    # A model that is no run has labels of one head.
    one = label_sets(topic.data)
    with pytest.raises(
        UserError, match="a head for the labels x, y, but the data has a, b, c; --reinitialize classifier"
    ):
        check_labels(one, {"": Labels(("x", "y"))}, "there", ["classifier/dense/kernel"])
