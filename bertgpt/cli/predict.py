"""Label texts or images, fill in [MASK]s, answer questions, caption images, or embed."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bertgpt.cli.experiments import load_run
from bertgpt.cli.images import image_records, located
from bertgpt.cli.options import Command, Fields, Repeatable
from bertgpt.cli.records import ModelOptions, parse_records, read_input, write_lines
from bertgpt.overrides import UnknownField, split_flags
from bertgpt.ranges import Count
from bertgpt.types import JsonObject, UserError

if TYPE_CHECKING:
    from bertgpt.inference.model import Model


@dataclasses.dataclass(frozen=True)
class Options(ModelOptions):
    """Label texts or images, fill in [MASK]s, answer questions, caption images, or embed.

    Prints a line of JSON for each record.
    """

    batch_size: Count = 32
    """examples at once"""
    text: Repeatable[tuple[str, ...]] = ()
    """a text; beside --image the statement or question about it"""
    image: Repeatable[tuple[str, ...]] = ()
    """a picture, an animated picture or a folder of frames, for models that read images"""
    record: Repeatable[tuple[str, ...]] = ()
    """a record as JSON, e.g. '{"question": "…", "context": "…"}'"""
    task: Literal["classify", "fill_mask", "embed"] | None = None
    """None: what a run was trained for; of other models, tags or answers with a head for them, else classify with a
    classifier, else fill masks, else embed"""
    task_name: str | None = None
    """of a run of several tasks, the one to predict for"""
    top_k: Count = 5
    """fill_mask: words for each mask; images, of models that are no runs: labels"""
    pooling: Literal["mean", "cls"] | None = None
    """embed: which vector stands for a text, the mean over its tokens or that of [CLS] (None: as the modules of a
    folder of sentence-transformers say; of other models the mean)"""
    normalize: bool | None = None
    """embed: divide vectors by their L2 norm (None: as those modules do; of other models True)"""
    prompt: str | None = None
    """embed: what to put before each text"""
    prompt_name: str | None = None
    """embed: prompt of a folder of sentence-transformers to put before each text (None: its default one)"""
    fields: Fields = ()


def run(options: Options) -> int:
    from bertgpt.inference.encode import classify, embed, fill_mask
    from bertgpt.inference.image_tasks import image_task
    from bertgpt.inference.model import load
    from bertgpt.inference.predict import one_task

    task = options.task
    if task is None and (Path(options.run) / "experiment.json").exists():
        model = load_run(options.run, options.step, options.fields)
        model = model if options.task_name is None else one_task(model, options.task_name)
        return write_predictions(options, model)
    if options.fields:
        raise UnknownField(split_flags(options.fields)[0][0], ())  # there is no experiment whose field it could be
    model = load(options.run, options.step, options.dtype)
    if task is None and ({"tagger", "span_head"} & model.params.keys() or image_task(model) is not None):
        return write_predictions(options, model)
    if options.image:
        raise UserError(f"bertgpt predict: --image: {options.run} has no head that says anything of an image alone")
    records = read_records(options, ("text",))
    texts = [record["text"] for record in records]
    if task is None:
        mask = None if model.tokenizer is None else model.tokenizer.roles.get("mask")
        all_masked = mask is not None and all(mask in text for text in texts)
        task = "classify" if "classifier" in model.params else "fill_mask" if all_masked else "embed"
    if task == "classify":
        answers = classify(model, texts, options.batch_size)
    elif task == "fill_mask":
        answers = ({"masks": masks} for masks in fill_mask(model, texts, options.top_k, options.batch_size))
    else:
        vectors = embed(
            model, texts, options.pooling, options.normalize, options.batch_size, options.prompt, options.prompt_name
        )
        answers = ({"embedding": [round(float(x), 7) for x in vector]} for vector in vectors)
    return write_lines(options.output, records, answers)


def write_predictions(options: Options, model: "Model") -> int:
    """Predicts with the task of the model; the answers, of many labels only the most probable ones."""
    from bertgpt.inference.predict import predict, task_of

    fields = task_of(model)[0].inputs
    records = read_records(options, fields, lists=True, images=model.config.image_shape is not None)
    found = records if model.config.image_shape is None else located(records, options.input, fields[0])
    answers = predict(model, found, options.batch_size)
    if model.experiment is None:
        answers = (most_probable(answer, options.top_k) for answer in answers)
    return write_lines(options.output, records, answers)


def most_probable(answer: JsonObject, count: int) -> JsonObject:
    """The answer with the probabilities of its most probable labels alone, in their order."""
    probabilities = answer.get("probabilities")
    if probabilities is None:
        return answer
    best = sorted(probabilities, key=lambda label: -probabilities[label])[:count]
    return answer | {"probabilities": {label: probabilities[label] for label in best}}


def read_records(
    options: Options, fields: tuple[str, ...], *, lists: bool = False, images: bool = False
) -> list[JsonObject]:
    """The records of --text, --image, --record or --input; with `lists`, fields may also hold lists and numbers.

    Raises:
      UserError: none or several of these are given, or a record lacks a field or holds no text in it.
    """
    if options.image:
        if not images:
            raise UserError(f"bertgpt predict: --image: {options.run} reads no images")
        if options.record or options.input:
            raise UserError("bertgpt predict: give one of --image, --record and --input")
        return image_records("predict", options.image, options.text, "text", fields)
    if images and options.text:
        raise UserError(f"bertgpt predict: {options.run} reads images; give --image, beside which --text may stand")
    if options.record:
        if options.text or options.input:
            raise UserError("bertgpt predict: give one of --text, --record and --input")
        return parse_records(options.record, fields, lists=lists)
    if options.text and len(fields) > 1:
        names = ", ".join(map(repr, fields))
        raise UserError(f"bertgpt predict: this run needs {names}; give --record or --input in place of --text")
    return read_input("text", options.text, options.input, fields, lists=lists)


COMMAND = Command(Options, run)
