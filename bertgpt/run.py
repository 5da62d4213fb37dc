"""Finished runs: load one from its directory alone, evaluate it, predict with it."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bertgpt.checkpoint import Checkpoints, load_experiment
from bertgpt.config import Experiment, Mesh
from bertgpt.data.tokenizer import Tokenizer, load_tokenizer
from bertgpt.objectives.core import Apply, Objective
from bertgpt.sharding import make_mesh, put_batch
from bertgpt.step import make_apply
from bertgpt.train import evaluations


class Run(NamedTuple):
    """A trained model and what belongs to it."""

    experiment: Experiment
    tokenizer: Tokenizer
    objective: Objective
    apply: Apply
    params: Any
    step: int


def load_run(path: str | Path, step: int | None = None) -> Run:
    """Loads a run directory, wherever it was trained; `step` None means its newest checkpoint.

    Raises:
      UserError: no run there, no such checkpoint, or a damaged file.
    """
    path = Path(path)
    experiment = load_experiment(path)
    tokenizer = load_tokenizer(path / "tokenizer")
    checkpoints = Checkpoints(path)
    params = checkpoints.read("params", step)
    step = checkpoints.latest() if step is None else step
    apply = make_apply(experiment.model.make(experiment.compute_dtype))
    return Run(experiment, tokenizer, experiment.objective.make(tokenizer.vocab), apply, jax.device_put(params), step)


def evaluate_run(run: Run, cache: Path) -> dict[str, dict[str, float]]:
    """Every evaluation of the experiment, as at the end of training: name → metrics.

    Args:
      run: from `load_run`.
      cache: folder of prepared data.
    """
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    held_out = evaluations(run.experiment, run.apply, run.tokenizer, cache)
    return {evaluation.item.name: evaluation.score(run.params, mesh) for evaluation in held_out}


def predict(run: Run, texts: Sequence[str], batch_size: int = 32) -> Iterator[dict[str, Any]]:
    """Predictions for new texts, in order: a label with its probability, or words for each [MASK].

    Raises:
      UserError: a text that the task cannot take.
    """
    batches = run.experiment.data.predict_batches(texts, batch_size, run.tokenizer)
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    step = jax.jit(functools.partial(run.objective.predict, run.apply))
    for index in range(len(batches)):
        batch = batches[index]
        outputs = jax.device_get(step(run.params, put_batch(batch, mesh)))
        real = slice(0, len(texts) - index * batch_size)  # without the rows that fill up the last batch
        rows = {name: np.asarray(value)[real] for name, value in (batch | outputs).items()}
        yield from run.experiment.data.describe(rows, run.tokenizer)


def example_predictions(path: Path, count: int = 4) -> list[str]:
    """Lines “text → label (probability), truly label” for a few test texts; none if the task has no labels."""
    run = load_run(path)
    data = run.experiment.data
    if not hasattr(data, "examples"):
        return []
    texts, labels = data.examples("test")
    picked = np.random.default_rng(run.experiment.seed).permutation(len(texts))[:count]
    answers = predict(run, [texts[i] for i in picked], batch_size=count)
    names = data.names or data.labels
    return [
        f"{answer['label']} ({answer['probability']:.2f}), truly {names[labels[i]]}: {texts[i][:100]}"
        for i, answer in zip(picked, answers, strict=True)
    ]
