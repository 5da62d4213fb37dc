"""Predictions of a fine-tuned model for new records, and variants of a run for evaluation."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array

from bertgpt.config import Eval, Mesh
from bertgpt.inference.decoding import Decoding
from bertgpt.inference.generate import answers, continue_ids
from bertgpt.inference.image_tasks import image_task
from bertgpt.inference.model import Model, load
from bertgpt.io.files import is_finite
from bertgpt.objectives.classify import Classify
from bertgpt.objectives.multitask import Tasks
from bertgpt.objectives.qa import ExtractSpan
from bertgpt.objectives.seq2seq import ConditionalLM
from bertgpt.objectives.tag import Tag
from bertgpt.sharding import make_mesh, put_batch
from bertgpt.tasks.image_classification import ImageClassification
from bertgpt.tasks.mixed import TaskMixture
from bertgpt.tasks.question_answering import QuestionAnswering
from bertgpt.tasks.tagging import TokenTagging
from bertgpt.types import (
    Apply,
    DataConfig,
    Dataset,
    DataWarning,
    GenerationTask,
    JsonObject,
    Objective,
    ObjectiveConfig,
    Task,
    UserError,
    Vocab,
)

log = logging.getLogger(__name__)


def predict(model: Model, records: Sequence[str | JsonObject], batch_size: int = 32) -> Iterator[JsonObject]:
    """Predicts new records with a run's own task: labels with probabilities, tags, answers, …

    Of models that are no runs, those with a head for tags or answers can predict too: texts, or records with a question
    and a context. As in transformers, each word then has its most probable tag, and every question an answer. So can
    those that classify images or write captions: paths, or records with an `image`, which is a path, the bytes of a
    file, an array of pixels (uint8 [H, W, 3]), or an image of Pillow.

    Args:
      model: a run, or another model with a tagger or a head for answers, from `bertgpt.load`.
      records: dicts with the fields that the run's data lists as `inputs`; plain texts where that is one field.
      batch_size: examples per batch.

    Yields:
      One dict per record, in order; its fields depend on the task. Where the model gives a number that is not finite,
      all fields are None, and a warning counts these records.

    Raises:
      UserError: the model has no task, or a record lacks a field.

    Examples:
      >>> model = bertgpt.load("runs/sentiment")  # doctest: +SKIP
      >>> next(bertgpt.predict(model, ["A great film."]))["label"]  # doctest: +SKIP
      'positive'
    """
    data, _ = task_of(model)
    named = named_records(model, records)
    if isinstance(data, GenerationTask):  # the answer is a text
        prompts, decoding = data.prompts_of(named, model.tokenizer), task_decoding(model)
        pixels = data.prompt_pixels_of(named)
        if model.experiment is None:  # which tokens end a text is in its directory
            outputs = continue_ids(model, prompts, decoding, batch_size=batch_size, pixels=pixels)
            yield from ({"answer": best.text} for best, *_ in outputs)
            return
        texts = answers(model.apply, model.params, model.config, model.tokenizer, prompts, decoding, batch_size, pixels)
        yield from ({"answer": text} for text in texts)
        return
    yield from known(data.describe(*outputs_for(model, named, batch_size)))


def named_records(model: Model, records: Sequence[str | JsonObject]) -> list[JsonObject]:
    """Records with all fields that a run's task reads; a plain text is the first of them. Errors: see `predict`."""
    fields = task_of(model)[0].inputs
    named = [{fields[0]: record} if isinstance(record, str) else record for record in records]
    for number, record in enumerate(named, start=1):
        for name in fields:
            if name not in record:
                raise UserError(f"record {number}: has no field {name!r}; {model.name} needs {', '.join(fields)}")
    return named


def task_decoding(model: Model) -> Decoding:
    """How a model writes the answers of a `GenerationTask`: as evaluations or its directory say, else greedily."""
    if model.experiment is None:
        return model.decoding
    experiment = model.run
    default = Decoding(max_new_tokens=experiment.data.answer_len)
    return next((item.decode for item in experiment.evals if item.decode is not None), default)


def task_of(model: Model, records: Sequence[str | JsonObject] = ()) -> tuple[DataConfig, Objective]:
    """The data and the objective of a run, or those that the head of an imported model is for.

    Args:
      model: from `bertgpt.load`.
      records: what is to be predicted; sequences of imported models need be no longer.

    Raises:
      UserError: the model has no task.
    """
    if model.experiment is None and (task := image_task(model)) is not None:
        objective = Classify(len(task.labels)) if isinstance(task, ImageClassification) else ConditionalLM()
        return task, _made(objective, model.tokenizer.vocab)
    if model.experiment is not None or model.tokenizer is None or not {"tagger", "span_head"} & model.params.keys():
        return model.run.data, model.objective  # of no run: its error
    vocab, limit = model.tokenizer.vocab, model.config.max_len
    if "span_head" in model.params:
        seq_len, path = min(384, limit), str(model.path)
        data = QuestionAnswering(path, seq_len=seq_len, stride=max(seq_len // 3, 1), max_question=min(64, seq_len // 2),
                                 null_threshold=None)  # fmt: skip
        return data, _made(ExtractSpan(), vocab)
    labels = model.labels.shown or tuple(f"LABEL_{i}" for i in range(model.params["tagger"]["dense"]["bias"].shape[0]))
    texts = [record if isinstance(record, str) else str(record.get("text", "")) for record in records]
    longest = max(map(len, model.tokenizer.encode(texts)), default=0)
    # Words by themselves may have more tokens. A power of two, so that few programs are compiled.
    seq_len = min(max(16, 1 << (longest + longest // 4 + 3).bit_length()), limit)
    entities = all(label == "O" or label.startswith(("B-", "I-")) for label in labels)
    scheme = "bio" if entities else "plain"
    data = TokenTagging(str(model.path), labels=labels, scheme=scheme, seq_len=seq_len, stride=seq_len // 4)
    return data, _made(Tag(labels, constrained=False), vocab)


@functools.lru_cache(maxsize=64)
def _made(objective: ObjectiveConfig, vocab: Vocab) -> Objective:
    return objective.make(vocab)


@functools.lru_cache(maxsize=64)
def _compiled(predict: Callable[..., dict[str, Array]], apply: Apply) -> Callable[..., dict[str, Array]]:
    """The compiled function (params, batch) → outputs; kept, so that a second call compiles nothing."""
    return jax.jit(functools.partial(predict, apply))


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
    """The dataset of new records, and the objective's outputs for each of its examples.

    Few records make a smaller batch, of 1, 2, 4, … examples.
    """
    data, objective = task_of(model, records)
    batch_size = min(batch_size, 1 << max(len(records) - 1, 0).bit_length())
    batches = data.predict_batches(records, batch_size, model.tokenizer)
    for warning in warnings_of(batches.dataset):
        if warning.kind != "packing":
            log.warning("%s", warning.text)
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    step = _compiled(objective.predict, model.apply)
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
    if not splits or not isinstance(data, Task) or data.label_set.kind != "label" or model.config.image_shape:
        return []
    examples = data.examples("test" if "test" in splits else splits[0])
    picked = [examples[i] for i in np.random.default_rng(model.run.seed).permutation(len(examples))[:count]]
    records = [dict(zip(data.inputs, example.texts, strict=True)) for example in picked]
    return [
        f"{answer['label']} ({answer['probability']:.2f}), truly {data.label_set.shown[example.label]}:"
        f" {' '.join(example.texts)[:100]}"
        for example, answer in zip(picked, predict(model, records, batch_size=count), strict=True)
    ]
