"""`bertgpt prompt`: labels for texts without training, by prompts or by a model of entailment."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bertgpt.config import UserError


def add_prompt_command(commands: Any) -> None:
    command = commands.add_parser("prompt", help="label texts without training: zero-shot, few-shot, or by entailment")
    command.add_argument("run", help="directory of a run, a converted model or a Hugging Face model")
    command.add_argument("--input", required=True, help="a .jsonl file of records, or - for standard input")
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
    command.add_argument("--examples", help="a .jsonl file of records with labels, to show some before each text")
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
    from bertgpt.commands import write_lines

    if args.batch_size < 1 or args.k < 0:
        raise UserError(f"bertgpt prompt: --batch_size {args.batch_size} must be at least 1, --k {args.k} at least 0")
    records = read(args.input)
    answers = list(entailed(args, records) if args.entailment else prompted(args, records))
    code = write_lines(
        args.output, records, [rename(record, answer) for record, answer in zip(records, answers, strict=True)]
    )
    truth = [record.get(args.label_field) for record in records]
    if all(label is not None for label in truth):
        right = sum(str(label) == answer["label"] for label, answer in zip(truth, answers, strict=True))
        print(f"accuracy {right / len(truth):.4f} on {len(truth):,} records", file=sys.stderr)
    return code


def rename(record: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """The answer with names that overwrite none of the record's fields."""
    return {f"predicted_{name}" if name in record else name: value for name, value in answer.items()}


def prompted(args: argparse.Namespace, records: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    from bertgpt.loading import load
    from bertgpt.prompting import Prompt, label, pick_examples

    prompt = Prompt(args.template, tuple(args.labels), tuple(args.words))
    shown = [] if args.examples is None else read(args.examples)
    examples = pick_examples(shown, prompt.labels, args.label_field, args.k, args.seed) if shown else []
    model = load(args.run, args.step, args.dtype)
    return label(
        model, prompt, records, examples,
        by=args.by, average=args.average, calibrate=args.calibrate, batch_size=args.batch_size,
    )  # fmt: skip


def entailed(args: argparse.Namespace, records: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    from bertgpt.prompting import entail
    from bertgpt.run import load_run

    if args.examples or args.calibrate or args.average or args.words or args.by != "likelihood":
        raise UserError("bertgpt prompt: --entailment goes with --labels and --template alone")
    return entail(load_run(args.run, args.step), records, args.labels, args.template, args.entailment, args.batch_size)


def read(path: str) -> list[dict[str, Any]]:
    """The records of a file.

    Raises:
      UserError: it is missing, empty, or no JSON lines.
    """
    from bertgpt.data.text import read_json_lines

    records = [record for _, record in read_json_lines(Path("/dev/stdin" if path == "-" else path))]
    if not records:
        raise UserError(f"{path}: has no records")
    return records
