"""Label texts without training: zero-shot or few-shot prompts, or an entailment model."""

import dataclasses
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from bertgpt.cli.options import Command, Positional
from bertgpt.cli.records import check_output, records_in, write_lines
from bertgpt.data.sources.records import as_text
from bertgpt.ranges import Count, Natural, Seed
from bertgpt.types import JsonObject, UserError

if TYPE_CHECKING:
    from bertgpt.inference.prompting import Prompt


@dataclasses.dataclass(frozen=True)
class Options:
    """Label texts without training: zero-shot or few-shot prompts, or an entailment model."""

    run: Positional[str]
    """directory of a run, a converted model or a Hugging Face model"""
    input: str
    """.jsonl, .csv, .tsv or .parquet file of records, or - for lines of JSON from standard input"""
    labels: tuple[str, ...]
    """the labels"""
    template: str
    """text with fields of a record in braces and {label}, as "{text} It was {label}."; a decoder needs {label} at the
    end; with --entailment it is the hypothesis, as "This text is about {label}." """
    words: tuple[str, ...] = ()
    """what replaces {label} for each label (none: the label itself)"""
    examples: str | None = None
    """file of labelled records to show before each text"""
    k: Natural = 4
    """number of examples to show"""
    seed: Seed = 0
    """fixes which examples are sampled"""
    label_field: str = "label"
    """field that holds the label"""
    by: Literal["likelihood", "generation"] = "likelihood"
    """how a label is chosen: by its likelihood in the template, or by the text that the model generates"""
    average: bool = False
    """score words by the mean over their tokens, not the sum"""
    calibrate: bool = False
    """divide by the likelihoods for texts without content (Zhao et al. 2021)"""
    entailment: str | None = None
    """label that means "follows" of a run that compares pairs of texts"""
    output: str | None = None
    """file to write, lines of JSON (None: standard output)"""
    step: Natural | None = None
    """checkpoint to use (None: the newest)"""
    batch_size: Count = 16
    """sequences at once"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type to compute in"""

    def __post_init__(self):
        check_output(self.output)


def run(options: Options) -> int:
    from bertgpt.inference.prompting import Prompt

    prompt = Prompt(options.template, options.labels, options.words)
    records = [record for _, record in records_in(options.input, prompt.fields)]
    answers = list(by_entailment(options, records) if options.entailment else by_prompt(options, prompt, records))
    code = write_lines(options.output, records, answers)
    truth = [record.get(options.label_field) for record in records]
    if all(label not in (None, "") for label in truth):
        right = sum(as_text(label) == answer["label"] for label, answer in zip(truth, answers, strict=True))
        print(f"accuracy {right / len(truth):.4f} on {len(truth):,} records", file=sys.stderr)
    return code


def by_prompt(options: Options, prompt: "Prompt", records: list[JsonObject]) -> Iterator[JsonObject]:
    from bertgpt.inference.model import load
    from bertgpt.inference.prompting import label

    examples = [] if options.examples is None else sampled_examples(options, prompt)
    model = load(options.run, options.step, options.dtype)
    return label(
        model, prompt, records, examples,
        by=options.by, average=options.average, calibrate=options.calibrate, batch_size=options.batch_size,
    )  # fmt: skip


def by_entailment(options: Options, records: list[JsonObject]) -> Iterator[JsonObject]:
    from bertgpt.inference.entailment import entail
    from bertgpt.inference.model import load

    if options.examples or options.calibrate or options.average or options.words or options.by != "likelihood":
        raise UserError("bertgpt prompt: --entailment goes with --labels and --template only")
    model = load(options.run, options.step, arrange="training")
    return entail(model, records, list(options.labels), options.template, options.entailment, options.batch_size)


def sampled_examples(options: Options, prompt: "Prompt") -> list[tuple[JsonObject, str]]:
    """Examples with their labels from --examples.

    Raises:
      UserError: a record lacks a field or has an unknown label, or there are too few.
    """
    from bertgpt.inference.prompting import pick_examples

    field = options.label_field
    found = records_in(options.examples, (*prompt.fields, field))
    for place, record in found:
        if as_text(record[field]) not in prompt.labels:
            known = ", ".join(map(repr, prompt.labels))
            raise UserError(f"{place}: {field!r} is {record[field]!r}; labels are {known}")
    return pick_examples([record for _, record in found], prompt.labels, field, options.k, options.seed)


COMMAND = Command(Options, run)
