"""Label texts, fill in their [MASK]s, answer questions, or embed."""

import dataclasses
from pathlib import Path
from typing import Literal

from bertgpt.cli.experiments import load_run
from bertgpt.cli.options import Command, Fields, Repeatable
from bertgpt.cli.records import ModelOptions, parse_records, read_input, write_lines
from bertgpt.overrides import UnknownField, split_flags
from bertgpt.ranges import Count
from bertgpt.types import JsonObject, UserError


@dataclasses.dataclass(frozen=True)
class Options(ModelOptions):
    """Label texts, fill in their [MASK]s, answer questions, or embed. Prints a line of JSON for each record."""

    batch_size: Count = 32
    """examples at once"""
    text: Repeatable[tuple[str, ...]] = ()
    """a text"""
    record: Repeatable[tuple[str, ...]] = ()
    """a record as JSON, e.g. '{"question": "…", "context": "…"}'"""
    task: Literal["classify", "fill_mask", "embed"] | None = None
    """None: what a run was trained for; of other models, tags or answers with a head for them, else classify with a
    classifier, else fill masks, else embed"""
    task_name: str | None = None
    """of a run of several tasks, the one to predict for"""
    top_k: Count = 5
    """fill_mask: words for each mask"""
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
    from bertgpt.inference.model import load
    from bertgpt.inference.predict import one_task, predict, task_of

    task = options.task
    if task is None and (Path(options.run) / "experiment.json").exists():
        model = load_run(options.run, options.step, options.fields)
        model = model if options.task_name is None else one_task(model, options.task_name)
        records = read_records(options, model.experiment.data.inputs, lists=True)
        return write_lines(options.output, records, predict(model, records, options.batch_size))
    if options.fields:
        raise UnknownField(split_flags(options.fields)[0][0], ())  # there is no experiment whose field it could be
    model = load(options.run, options.step, options.dtype)
    if task is None and {"tagger", "span_head"} & model.params.keys():
        records = read_records(options, task_of(model)[0].inputs, lists=True)
        return write_lines(options.output, records, predict(model, records, options.batch_size))
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


def read_records(options: Options, fields: tuple[str, ...], *, lists: bool = False) -> list[JsonObject]:
    """The records of --text, --record or --input; with `lists`, fields may also hold lists and numbers.

    Raises:
      UserError: none or several of these are given, or a record lacks a field or holds no text in it.
    """
    if options.record:
        if options.text or options.input:
            raise UserError("bertgpt predict: give one of --text, --record and --input")
        return parse_records(options.record, fields, lists=lists)
    if options.text and len(fields) > 1:
        names = ", ".join(map(repr, fields))
        raise UserError(f"bertgpt predict: this run needs {names}; give --record or --input in place of --text")
    return read_input("text", options.text, options.input, fields, lists=lists)


COMMAND = Command(Options, run)
