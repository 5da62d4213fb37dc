"""The commands beside `train`: their flags, and what each does with them. Heavy modules are imported when needed."""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bertgpt.cli.features import add_features_command
from bertgpt.cli.prepare import add_prepare_command
from bertgpt.cli.prompt import add_prompt_command
from bertgpt.cli.tokenizer import add_tokenizer_command
from bertgpt.cli.tune import add_tune_commands
from bertgpt.io import write_json_lines
from bertgpt.types import UserError

MODEL = "directory of a run, a converted model or a Hugging Face model"


def early_stopping(text: str) -> bool | str:
    """true, false or never."""
    known = {"true": True, "false": False, "never": "never"}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is not true, false or never")
    return known[text.lower()]


# Fields of `decoding.Decoding`.
DECODING = (
    ("max_new_tokens", int, "tokens at most (default: 64)"),
    ("min_new_tokens", int, "tokens at least"),
    ("temperature", float, "sample from softmax(scores / temperature); 0, the default: take the best"),
    ("top_k", int, "sample among the k best"),
    ("top_p", float, "sample among the fewest best that have this probability together"),
    ("min_p", float, "sample among those with this fraction of the best one's probability"),
    ("repetition_penalty", float, "divide scores of tokens seen before by this"),
    ("no_repeat_ngram_size", int, "no n tokens in a row twice"),
    ("num_beams", int, "beams of beam search"),
    ("length_penalty", float, "beams are ranked by log probability / length^this (default: 1)"),
    ("early_stopping", early_stopping, "end beam search at num_beams results: true, false or never"),
    ("num_return_sequences", int, "answers for each prompt"),
    ("seed", int, "of sampling (default: 0)"),
)


def add_commands(commands: Any) -> None:
    """Declares the flags."""
    command = commands.add_parser(
        "evaluate",
        help="evaluate a run on its held-out data, or on a file with labels; --data.FIELD value changes a field",
    )
    command.add_argument("run", help="directory of the run")
    command.add_argument("--step", type=int, help="checkpoint to take (default: the newest)")
    command.add_argument("--path", help="file, directory or glob of labelled records to score, all of them")
    command.add_argument("--task_name", help="of a run of several tasks, the one to score alone")
    command.add_argument("--out", help="folder to write tables and confusion matrices to (default: RUN/evaluation)")
    command.set_defaults(call=evaluate_command, overrides=[])

    command = commands.add_parser("predict", help="label texts, fill in their [MASK]s, answer questions, or embed")
    add_model_arguments(command, "text", batch_size=32)
    command.add_argument(
        "--record",
        action="append",
        help='a record as JSON, e.g. \'{"question": "…", "context": "…"}\'; may be repeated',
    )
    command.add_argument(
        "--task",
        choices=("classify", "fill_mask", "embed"),
        help="default: what a run was trained for; else classify with a classifier, fill masks, or embed",
    )
    command.add_argument("--task_name", help="of a run of several tasks, the one to predict for")
    command.add_argument("--top_k", type=int, default=5, help="words for each mask (default: %(default)s)")
    command.add_argument("--pooling", choices=("mean", "cls"), default="mean", help="of embed (default: %(default)s)")
    command.add_argument("--no_normalize", action="store_true", help="do not divide embeddings by their L2 norm")
    command.set_defaults(call=predict_command, overrides=[])

    command = commands.add_parser("generate", help="continue prompts with GPT, or answer them with T5")
    add_model_arguments(command, "prompt", batch_size=16)
    command.add_argument("--stop", action="append", default=[], help="text or special token that ends an answer")
    command.add_argument("--stream", action="store_true", help="print the text of one prompt as it comes")
    for name, kind, text in DECODING:
        command.add_argument(f"--{name}", type=kind, help=text)
    command.set_defaults(call=generate_command)

    command = commands.add_parser("convert", help="Hugging Face format ↔ bertgpt's, or compare with transformers")
    command.add_argument("source", help=MODEL)
    command.add_argument("out", nargs="?", help="directory to write: in Hugging Face format, or from it")
    command.add_argument("--verify", action="store_true", help="compare with what transformers computes; write nothing")
    command.add_argument("--architecture", help="kind of model to write, e.g. BertForMaskedLM (default: what fits)")
    command.add_argument("--step", type=int, help="checkpoint to take (default: the newest)")
    command.set_defaults(call=convert_command)

    command = commands.add_parser("report", help="draw curves and tables of runs")
    command.add_argument("runs", nargs="+", help="directories of runs")
    command.add_argument("--out", default="report", help="folder to write to (default: %(default)s)")
    command.set_defaults(call=report_command)

    add_tokenizer_command(commands)
    add_prepare_command(commands)
    add_features_command(commands)
    add_prompt_command(commands)
    add_tune_commands(commands)


def add_model_arguments(command: argparse.ArgumentParser, field: str, batch_size: int) -> None:
    """What a command that uses a model takes: the model, texts (called `field`), where to write, and how."""
    command.add_argument("run", help=MODEL)
    command.add_argument(f"--{field}", action="append", help=f"a {field}; may be given several times")
    files = f"a .jsonl, .csv, .tsv or .parquet file with a field “{field}”"
    command.add_argument("--input", help=f"{files}, or - for lines of JSON from standard input")
    command.add_argument("--output", help="file to write (default: standard output)")
    command.add_argument("--step", type=int, help="checkpoint to take (default: the newest)")
    command.add_argument("--batch_size", type=int, default=batch_size, help=f"{field}s at once (default: %(default)s)")
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="to compute in (default: %(default)s)"
    )


def load_run(args: argparse.Namespace) -> Any:
    """The run that a command names, with the overrides it was given."""
    from bertgpt.checkpoint import load_experiment
    from bertgpt.config import parse_overrides
    from bertgpt.inference.model import load

    experiment = parse_overrides(load_experiment(Path(args.run)), args.overrides)
    return load(args.run, args.step, experiment=experiment, arrange="training")


def evaluate_command(args: argparse.Namespace) -> int:
    from bertgpt.inference.predict import on_file, one_task
    from bertgpt.studies.evaluation_report import write_evaluations
    from bertgpt.training.evaluate import evaluate
    from bertgpt.training.log import print_table

    run = load_run(args)
    run = run if args.task_name is None else one_task(run, args.task_name)
    run = run if args.path is None else on_file(run, args.path)
    judged = evaluate(run)
    rows = [
        [f"{name} {metric}", f"{value:.4f}"] for name, found in judged.items() for metric, value in found.values.items()
    ]
    print_table(f"{run.experiment.name} at step {run.step:,}", ["", "value"], rows)
    for name, found in judged.items():
        for table in found.tables:
            print_table(f"{name}: {table.title}", table.columns, table.rows)
        for warning in found.warnings:
            print(f"{name}: {warning.text}")
    for path in write_evaluations(judged, Path(args.out or Path(args.run) / "evaluation")):
        print(path)
    return 0


def predict_command(args: argparse.Namespace) -> int:
    from bertgpt.inference.encode import classify, embed, fill_mask
    from bertgpt.inference.model import load
    from bertgpt.inference.predict import inputs_of, one_task, predict

    task = args.task
    if task is None and (Path(args.run) / "experiment.json").exists():
        run = load_run(args)
        run = run if args.task_name is None else one_task(run, args.task_name)
        records = read_records(args, inputs_of(run.experiment.data))
        return write_lines(args.output, records, predict(run, records, args.batch_size))
    if args.overrides:
        raise UserError(f"bertgpt predict: {args.overrides[0]} is for a run, and its own task")
    model = load(args.run, args.step, args.dtype)
    records = read_records(args, ("text",))
    texts = [record["text"] for record in records]
    if task is None:
        mask = None if model.tokenizer is None else model.tokenizer.roles.get("mask")
        all_masked = mask is not None and all(mask in text for text in texts)
        task = "classify" if "classifier" in model.params else "fill_mask" if all_masked else "embed"
    if task == "classify":
        answers = classify(model, texts, args.batch_size)
    elif task == "fill_mask":
        answers = ({"masks": masks} for masks in fill_mask(model, texts, args.top_k, args.batch_size))
    else:
        vectors = embed(model, texts, args.pooling, not args.no_normalize, args.batch_size)
        answers = ({"embedding": [round(float(x), 7) for x in vector]} for vector in vectors)
    return write_lines(args.output, records, answers)


def generate_command(args: argparse.Namespace) -> int:
    from bertgpt.inference.decoding import Decoding
    from bertgpt.inference.generate import generate
    from bertgpt.inference.model import load

    decoding = Decoding(**{name: value for name, _, _ in DECODING if (value := getattr(args, name)) is not None})
    records = read_input(args, "prompt")
    model = load(args.run, args.step, args.dtype)
    prompts = [record["prompt"] for record in records]
    if args.stream:
        if len(prompts) != 1 or decoding.num_return_sequences != 1:
            raise UserError("bertgpt generate: --stream shows one prompt with one answer")

        def show(prompt: int, number: int, text: str) -> None:
            print(text, end="", flush=True)

        list(generate(model, prompts, decoding, stop=args.stop, on_text=show))
        print()
        return 0
    outputs = generate(model, prompts, decoding, stop=args.stop, batch_size=args.batch_size)
    pairs = [(record, item._asdict()) for record, row in zip(records, outputs, strict=True) for item in row]
    return write_lines(args.output, [record for record, _ in pairs], [answer for _, answer in pairs])


def convert_command(args: argparse.Namespace) -> int:
    from bertgpt.inference.export import convert
    from bertgpt.inference.model import load, resolve

    if args.verify == (args.out is not None):
        raise UserError("bertgpt convert: give either a directory to write, or --verify")
    if args.verify:
        return verify_command(resolve(args.source), args.step)
    source = load(args.source, args.step, arrange="host")
    if source.report is not None:
        for kind, names in source.report.items():
            print(f"{kind}: {len(names)} tensors" + (f" ({', '.join(names)})" if names and kind != "loaded" else ""))
    print(f"{args.out}: {convert(source, Path(args.out), args.architecture)}")
    return 0


def verify_command(source: Path, step: int | None) -> int:
    """Prints the errors; exit code 1 if one is too large."""
    import tempfile

    from bertgpt.convert.verify import TOLERANCES, verify
    from bertgpt.inference.export import convert
    from bertgpt.inference.model import load
    from bertgpt.training.log import print_table

    with tempfile.TemporaryDirectory() as folder:
        directory = source
        if not (source / "config.json").exists():
            directory = Path(folder) / "exported"
            convert(load(source, step, arrange="host"), directory)
        errors = verify(directory)
    rows = [[kind, f"{errors[kind]:.1e}", f"{limit:.0e}"] for kind, limit in TOLERANCES.items()]
    print_table("against transformers", ["", "largest relative error", "allowed"], rows)
    return int(any(not errors[kind] <= limit for kind, limit in TOLERANCES.items()))


def read_input(args: argparse.Namespace, *fields: str) -> list[dict[str, Any]]:
    """The texts given as flags, or the records of --input, each with these fields; other fields are kept.

    Raises:
      UserError: neither or both are given, or as `records_in`.
    """
    flag = "prompt" if args.command == "generate" else "text"
    given = getattr(args, flag)
    if (given is None) == (args.input is None):
        raise UserError(f"bertgpt {args.command}: give either --{flag} or --input")
    if args.batch_size < 1:
        raise UserError(f"--batch_size {args.batch_size} must be at least 1")
    if given:
        return [{fields[0]: text} for text in given]
    found = records_in(args.input, fields)
    for place, record in found:
        if len(fields) == 1 and not isinstance(record[fields[0]], str | list):
            raise UserError(f"{place}: has no field {fields[0]!r} that is a string")
    return [record for _, record in found]


def records_in(path: str, fields: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """(“file:line”, record) for each record of a file; of lines of JSON from standard input if the path is -.

    Values from lines of JSON keep their types; those of other files are texts, as in `read_records`.

    Raises:
      UserError: the file is missing, empty, damaged or of another kind, or a record has none of one of these fields.
    """
    from bertgpt.data.sources.files import JSON_SUFFIXES, suffix_of
    from bertgpt.data.sources.text import read_json_lines, read_records

    if suffix_of(path) in (*JSON_SUFFIXES, ".json", "") and not path.startswith("tfds:"):
        lines = read_json_lines("/dev/stdin" if path == "-" else path)
        records = ((f"{path}:{line}", record) for line, record in lines)
    else:
        records = ((f"{r.file}:{r.line}", {**r.fields, **r.lists}) for r in read_records(path))
    found = []
    for place, record in records:
        for name in fields:
            if record.get(name) is None:
                raise UserError(f"{place}: has no field {name!r}; it has {', '.join(map(repr, record)) or 'none'}")
        found.append((place, record))
    if not found:
        raise UserError(f"{path}: has no records")
    return found


def read_records(args: argparse.Namespace, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """As `read_input`, for records that need several fields, which may be given as --record too.

    Raises:
      UserError: also if a --record is not a JSON object with these fields, or --text is one field of several.
    """
    if not args.record:
        if args.text and len(fields) > 1:
            names = ", ".join(map(repr, fields))
            raise UserError(f"bertgpt predict: this run needs {names}; give --record or --input in place of --text")
        if args.text:
            return [{fields[0]: record["text"]} for record in read_input(args, "text")]
        return read_input(args, *fields)
    if args.text or args.input:
        raise UserError("bertgpt predict: give one of --text, --record and --input")
    records = []
    for text in args.record:
        try:
            record = json.loads(text)
        except ValueError as error:
            raise UserError(f"--record {text[:60]!r}: not valid JSON: {error}") from None
        if not isinstance(record, dict):
            raise UserError(f"--record {text[:60]!r}: not a JSON object")
        missing = [name for name in fields if name not in record]
        if missing:
            raise UserError(f"--record {text[:60]!r}: has no field {missing[0]!r}")
        records.append(record)
    return records


def beside(record: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """The record and the answer; a name of the answer that the record has too becomes “predicted_…”."""
    both = dict(record)
    for name, value in answer.items():
        while name in record:
            name = f"predicted_{name}"
        both[name] = value
    return both


def write_lines(output: str | None, records: Sequence[dict[str, Any]], answers: Iterable[dict[str, Any]]) -> int:
    """Writes each record with its answer as a line of JSON: a file whole or not at all."""
    values = (beside(record, answer) for record, answer in zip(records, answers, strict=True))
    if output is None:
        sys.stdout.writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    else:
        write_json_lines(Path(output), values)
    return 0


def report_command(args: argparse.Namespace) -> int:
    from bertgpt.studies.report import report

    for path in report(args.runs, args.out):
        print(path)
    return 0
