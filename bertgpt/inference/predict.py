"""Predictions of a fine-tuned model for new records, and variants of a run for evaluation."""

import dataclasses
import functools
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from bertgpt.config import Eval, Mesh
from bertgpt.inference.decoding import Decoding
from bertgpt.inference.generate import answers
from bertgpt.inference.model import Model, load
from bertgpt.io.files import is_finite
from bertgpt.objectives.multitask import Tasks
from bertgpt.sharding import make_mesh, put_batch
from bertgpt.tasks.mixed import TaskMixture
from bertgpt.types import Dataset, DataWarning, GenerationTask, JsonObject, Task, UserError

log = logging.getLogger(__name__)


def predict(model: Model, records: Sequence[str | JsonObject], batch_size: int = 32) -> Iterator[JsonObject]:
    """Predicts new records with a run's own task: labels with probabilities, tags, answers, …

    Args:
      model: a run, from `bertgpt.load`.
      records: dicts with the fields that the run's data lists as `inputs`; plain texts where that is one field.
      batch_size: examples per batch.

    Yields:
      One dict per record, in order; its fields depend on the task. Where the model gives a number that is not finite,
      all fields are None, and a warning counts these records.

    Raises:
      UserError: the model is not a run, or a record lacks a field.

    Examples:
      >>> model = bertgpt.load("runs/sentiment")  # doctest: +SKIP
      >>> next(bertgpt.predict(model, ["A great film."]))["label"]  # doctest: +SKIP
      'positive'
    """
    experiment = model.run
    data = experiment.data
    named = named_records(model, records)
    if isinstance(data, GenerationTask):  # the answer is a text
        default = Decoding(max_new_tokens=data.answer_len)
        decoding = next((item.decode for item in experiment.evals if item.decode is not None), default)
        prompts = data.prompts_of(named, model.tokenizer)
        texts = answers(model.apply, model.params, model.config, model.tokenizer, prompts, decoding, batch_size)
        yield from ({"answer": text} for text in texts)
        return
    yield from known(data.describe(*outputs_for(model, named, batch_size)))


def named_records(model: Model, records: Sequence[str | JsonObject]) -> list[JsonObject]:
    """Records with all fields that a run reads; a plain text is the first of them. Errors: see `predict`."""
    fields = model.run.data.inputs
    named = [{fields[0]: record} if isinstance(record, str) else record for record in records]
    for number, record in enumerate(named, start=1):
        for name in fields:
            if name not in record:
                raise UserError(f"record {number}: has no field {name!r}; {model.name} needs {', '.join(fields)}")
    return named


def known(answers: Iterable[JsonObject]) -> Iterator[JsonObject]:
    """The answers, with None for all values of those that hold NaN or an infinity, which are counted in a warning.

    The label of probabilities that are NaN would be an arbitrary one.
    """
    total = unknown = 0
    for answer in answers:
        total += 1
        finite = is_finite(answer)
        unknown += not finite
        yield answer if finite else dict.fromkeys(answer)
    if unknown:
        log.warning("%d of %d predictions are null, because the model's numbers are not finite", unknown, total)


def outputs_for(model: Model, records: Sequence[JsonObject], batch_size: int) -> tuple[Dataset, dict[str, np.ndarray]]:
    """The dataset of new records, and the objective's outputs for each of its examples."""
    batches = model.run.data.predict_batches(records, batch_size, model.tokenizer)
    for warning in warnings_of(batches.dataset):
        if warning.kind != "packing":
            log.warning("%s", warning.text)
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    step = jax.jit(functools.partial(model.objective.predict, model.apply))
    outputs = [jax.device_get(step(model.params, put_batch(batches[i], mesh))) for i in range(len(batches))]
    return batches.dataset, concatenate_outputs(outputs, len(batches.dataset))


def concatenate_outputs(outputs: Sequence[dict[str, np.ndarray]], count: int) -> dict[str, np.ndarray]:
    """The outputs of all batches for the first `count` examples; the last batch is filled up with padding examples."""
    return {name: np.concatenate([batch[name] for batch in outputs])[:count] for name in outputs[0]}


def warnings_of(dataset: Dataset) -> tuple[DataWarning, ...]:
    """What was truncated, skipped or repaired in a dataset."""
    return dataset.warnings


def one_task(model: Model, name: str) -> Model:
    """A run of several tasks, restricted to one of them.

    Raises:
      UserError: it has no such task.
    """
    experiment = model.run
    if not isinstance(experiment.data, TaskMixture) or not isinstance(experiment.objective, Tasks):
        raise UserError(f"{experiment.name}: has one task only")
    data = experiment.data.part(name)
    objective = experiment.objective.part(name)
    evals = tuple(Eval(item.name, item.split) for item in experiment.evals if item.data is None)
    experiment = dataclasses.replace(experiment, data=data, objective=objective, evals=evals)
    return model._replace(experiment=experiment, objective=objective.make(model.tokenizer.vocab))


def on_file(model: Model, path: str) -> Model:
    """A run whose only evaluation is on all records of another file.

    Raises:
      UserError: its data does not read labelled files.
    """
    experiment = model.run
    data = experiment.data
    if "test_path" not in {field.name for field in dataclasses.fields(data)}:
        raise UserError(f"{experiment.name}: its {type(data).__name__} reads no labelled files, so --path has no use")
    data = dataclasses.replace(data, test_path=path)
    # Texts are generated as in the run's own evaluations.
    decode = next((item.decode for item in experiment.evals if item.data is None and item.decode), None)
    evals = (Eval(Path(path).name, "test", data=data, decode=decode),)
    return model._replace(experiment=dataclasses.replace(experiment, evals=evals))


def example_predictions(path: Path, count: int = 4) -> list[str]:
    """Lines “label (probability), true label: text” for some held-out texts; none if the task has no such labels."""
    model = load(path, arrange="training")
    data = model.run.data
    splits = [item.split for item in model.run.evals if item.data is None]
    if not splits or not isinstance(data, Task) or data.label_set.kind != "label":
        return []
    examples = data.examples("test" if "test" in splits else splits[0])
    picked = [examples[i] for i in np.random.default_rng(model.run.seed).permutation(len(examples))[:count]]
    records = [dict(zip(data.inputs, example.texts, strict=True)) for example in picked]
    return [
        f"{answer['label']} ({answer['probability']:.2f}), truly {data.label_set.shown[example.label]}:"
        f" {' '.join(example.texts)[:100]}"
        for example, answer in zip(picked, predict(model, records, batch_size=count), strict=True)
    ]
