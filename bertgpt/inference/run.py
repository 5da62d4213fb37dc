"""Finished runs: load one from its directory alone, evaluate it, predict with it."""

import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bertgpt.adaptation.lora import read_merged
from bertgpt.checkpoint import Checkpoints, load_experiment
from bertgpt.config import Eval, Experiment, Mesh, parse_overrides
from bertgpt.data.tokenizer import Tokenizer, load_tokenizer
from bertgpt.inference.decoding import Decoding
from bertgpt.inference.generate import answers
from bertgpt.objectives.core import Objective
from bertgpt.sharding import make_mesh, put_batch
from bertgpt.tasks.source import SEPARATOR
from bertgpt.training.evaluate import evaluations, notes_of, together
from bertgpt.training.step import make_apply
from bertgpt.types import Apply, EvalResult, UserError

log = logging.getLogger(__name__)


class Run(NamedTuple):
    """A trained model and what belongs to it."""

    experiment: Experiment
    tokenizer: Tokenizer
    objective: Objective
    apply: Apply
    params: Any
    step: int


def load_run(path: str | Path, step: int | None = None, overrides: Sequence[str] = ()) -> Run:
    """Loads a run directory, wherever it was trained; `step` None means its newest checkpoint.

    Args:
      path: the directory.
      step: number of the checkpoint.
      overrides: `--dotted.field value` for fields to use in place of those that it was trained with.

    Raises:
      UserError: no run there, no such checkpoint, a damaged file, or a field that does not exist.
    """
    path = Path(path)
    experiment = parse_overrides(load_experiment(path), overrides) if overrides else load_experiment(path)
    tokenizer = load_tokenizer(path / "tokenizer")
    checkpoints = Checkpoints(path)
    params = read_merged(checkpoints.read("params", step), experiment.lora)
    step = checkpoints.latest() if step is None else step
    apply = make_apply(experiment.model.make(experiment.compute_dtype))
    return Run(experiment, tokenizer, experiment.objective.make(tokenizer.vocab), apply, jax.device_put(params), step)


def evaluate_run(run: Run, cache: Path) -> dict[str, EvalResult]:
    """Every evaluation of the experiment, as at the end of training: name → metrics, tables, confusion matrix.

    Args:
      run: from `load_run`.
      cache: folder of prepared data.
    """
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    held_out = evaluations(run.experiment, run.apply, run.tokenizer, cache)
    return {evaluation.item.name: evaluation.evaluate(run.params, mesh) for evaluation in held_out}


def predict(run: Run, records: Sequence[str | dict[str, Any]], batch_size: int = 32) -> Iterator[dict[str, Any]]:
    """Predictions for new records, in order: a label with its probability, say, or words for each [MASK].

    Args:
      run: from `load_run`.
      records: mappings with the fields that the run's data names as `inputs`; where that is one, also just texts.
      batch_size: rows at once.

    Raises:
      UserError: a record lacks a field, or the task cannot take it.
    """
    data = run.experiment.data
    wanted = inputs_of(data)
    named = [{wanted[0]: record} if isinstance(record, str) else record for record in records]
    for number, record in enumerate(named, start=1):
        for name in wanted:
            if name not in record:
                raise UserError(
                    f"record {number}: has no field {name!r}; {run.experiment.name} needs {', '.join(wanted)}"
                )
    if hasattr(data, "prompts_of"):  # the answer is a text
        plain = Decoding(max_new_tokens=data.answer_len)
        decoding = next((item.decode for item in run.experiment.evals if item.decode is not None), plain)
        prompts = data.prompts_of(named, run.tokenizer)
        texts = answers(run.apply, run.params, run.experiment.model, run.tokenizer, prompts, decoding, batch_size)
        yield from ({"answer": text} for text in texts)
        return
    yield from data.describe(*outputs_for(run, named, batch_size))


def outputs_for(run: Run, records: Sequence[dict[str, Any]], batch_size: int) -> tuple[Any, dict[str, np.ndarray]]:
    """(rows of new records, what the objective answers for each row)."""
    batches = run.experiment.data.predict_batches(records, batch_size, run.tokenizer)
    for note in notes_of(batches.dataset):
        if "padding" not in note:  # what packing saves is no matter here
            log.warning("%s", note)
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    step = jax.jit(functools.partial(run.objective.predict, run.apply))
    kept = [jax.device_get(step(run.params, put_batch(batches[i], mesh))) for i in range(len(batches))]
    return batches.dataset, together(kept, len(batches.dataset))


def one_task(run: Run, name: str) -> Run:
    """A run of several tasks as one of a single one of them.

    Raises:
      UserError: it has no such task.
    """
    experiment = run.experiment
    if not hasattr(experiment.data, "parts") or not hasattr(experiment.objective, "part"):
        raise UserError(f"{experiment.name}: has one task only")
    data = experiment.data.part(name)
    objective = experiment.objective.part(name)
    evals = tuple(Eval(item.name, item.split) for item in experiment.evals if item.data is None)
    experiment = dataclasses.replace(experiment, data=data, objective=objective, evals=evals)
    return run._replace(experiment=experiment, objective=objective.make(run.tokenizer.vocab))


def on_file(run: Run, path: str) -> Run:
    """The run with one evaluation, on all records of another file.

    Raises:
      UserError: its data has no files with labels.
    """
    data = run.experiment.data
    if not hasattr(data, "test_path"):
        raise UserError(
            f"{run.experiment.name}: its {type(data).__name__} reads no labelled files, so --path has no use"
        )
    data = dataclasses.replace(data, test_path=path)
    # Texts are generated as in the run's own evaluations.
    decode = next((item.decode for item in run.experiment.evals if item.data is None and item.decode), None)
    evals = (Eval(Path(path).name, "test", data=data, decode=decode),)
    return run._replace(experiment=dataclasses.replace(run.experiment, evals=evals))


def inputs_of(data: Any) -> tuple[str, ...]:
    """The fields of a record to predict."""
    return getattr(data, "inputs", ("text",))


def example_predictions(path: Path, count: int = 4) -> list[str]:
    """Lines “label (probability), truly label: text” for a few held-out texts; none if the task has no such labels."""
    run = load_run(path)
    data = run.experiment.data
    splits = [item.split for item in run.experiment.evals if item.data is None]
    if not splits or not hasattr(data, "examples") or getattr(data, "target", None) != "label":
        return []
    texts, labels = data.examples("test" if "test" in splits else splits[0])
    picked = np.random.default_rng(run.experiment.seed).permutation(len(texts))[:count]
    records = [dict(zip(data.inputs, texts[i].split(SEPARATOR), strict=True)) for i in picked]
    names = data.names or data.labels
    return [
        f"{answer['label']} ({answer['probability']:.2f}), truly {names[labels[i]]}: {texts[i][:100]}"
        for i, answer in zip(picked, predict(run, records, batch_size=count), strict=True)
    ]
