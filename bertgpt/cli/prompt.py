"""`bertgpt prompt`: labels for texts without training, by prompts or by a model of entailment."""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from bertgpt.types import UserError


def add_prompt_command(commands: Any) -> None:
    command = commands.add_parser("prompt", help="label texts without training: zero-shot, few-shot, or by entailment")
    command.add_argument("run", help="directory of a run, a converted model or a Hugging Face model")
    files = "a .jsonl, .csv, .tsv or .parquet file of records, or - for lines of JSON from standard input"
    command.add_argument("--input", required=True, help=files)
    command.add_argument("--labels", nargs="+", required=True, metavar="LABEL", help="the labels")
    command.add_argument(
        "--words",
        nargs="+",
        default=[],
        metavar="WORD",
        help="what stands for each label in the text (default: itself)",
    )
    command.add_argument(
        "--template", required=True,
        help="text with fields of a record in braces and {label}, as “{text} It was {label}.”; GPT needs {label} at the"
        " end; with --entailment the hypothesis, as “This text is about {label}.”",
    )  # fmt: skip
    command.add_argument("--examples", help="such a file of records with labels, to show some before each text")
    command.add_argument("--k", type=int, default=4, help="how many (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="which (default: %(default)s)")
    command.add_argument("--label_field", default="label", help="field with the label (default: %(default)s)")
    command.add_argument(
        "--by", choices=("likelihood", "generation"), default="likelihood", help="default: %(default)s"
    )
    command.add_argument("--average", action="store_true", help="score words by the mean of their pieces, not the sum")
    command.add_argument(
        "--calibrate", action="store_true", help="divide by what the model says of texts without content"
    )
    command.add_argument(
        "--entailment", metavar="NAME", help="the run compares pairs of texts, and this label of its says “follows”"
    )
    command.add_argument("--output", help="file to write (default: standard output)")
    command.add_argument("--step", type=int, help="checkpoint to take (default: the newest)")
    command.add_argument("--batch_size", type=int, default=16, help="sequences at once (default: %(default)s)")
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="to compute in (default: %(default)s)"
    )
    command.set_defaults(call=prompt_command)


def prompt_command(args: argparse.Namespace) -> int:
    from bertgpt.cli.commands import records_in, write_lines
    from bertgpt.inference.prompting import Prompt

    if args.batch_size < 1 or args.k < 0:
        raise UserError(f"bertgpt prompt: --batch_size {args.batch_size} must be at least 1, --k {args.k} at least 0")
    prompt = Prompt(args.template, tuple(args.labels), tuple(args.words))
    records = [record for _, record in records_in(args.input, prompt.fields)]
    answers = list(entailed(args, records) if args.entailment else prompted(args, prompt, records))
    code = write_lines(args.output, records, answers)
    truth = [record.get(args.label_field) for record in records]
    if all(label not in (None, "") for label in truth):
        right = sum(str(label) == answer["label"] for label, answer in zip(truth, answers, strict=True))
        print(f"accuracy {right / len(truth):.4f} on {len(truth):,} records", file=sys.stderr)
    return code


def prompted(args: argparse.Namespace, prompt: Any, records: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    from bertgpt.inference.model import load
    from bertgpt.inference.prompting import label

    examples = [] if args.examples is None else drawn(args, prompt)
    model = load(args.run, args.step, args.dtype)
    return label(
        model, prompt, records, examples,
        by=args.by, average=args.average, calibrate=args.calibrate, batch_size=args.batch_size,
    )  # fmt: skip


def entailed(args: argparse.Namespace, records: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    from bertgpt.inference.entailment import entail
    from bertgpt.inference.model import load

    if args.examples or args.calibrate or args.average or args.words or args.by != "likelihood":
        raise UserError("bertgpt prompt: --entailment goes with --labels and --template alone")
    model = load(args.run, args.step, arrange="training")
    return entail(model, records, args.labels, args.template, args.entailment, args.batch_size)


def drawn(args: argparse.Namespace, prompt: Any) -> list[tuple[dict[str, Any], str]]:
    """Examples with their labels from --examples.

    Raises:
      UserError: a record lacks a field or has an unknown label, or there are too few.
    """
    from bertgpt.cli.commands import records_in
    from bertgpt.inference.prompting import pick_examples

    found = records_in(args.examples, (*prompt.fields, args.label_field))
    for place, record in found:
        if str(record[args.label_field]) not in prompt.labels:
            known = ", ".join(map(repr, prompt.labels))
            raise UserError(f"{place}: {args.label_field!r} is {record[args.label_field]!r}; labels are {known}")
    return pick_examples([record for _, record in found], prompt.labels, args.label_field, args.k, args.seed)
