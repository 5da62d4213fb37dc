"""The commands beside `train`: their flags, and what each does with them. Heavy modules are imported when needed."""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bertgpt.config import UserError
from bertgpt.prepare_command import add_prepare_command
from bertgpt.tune_command import add_tune_commands

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
    ("no_repeat_ngram", int, "no n tokens in a row twice"),
    ("num_beams", int, "beams of beam search"),
    ("length_penalty", float, "beams are ranked by log probability / length^this (default: 1)"),
    ("early_stopping", early_stopping, "end beam search at num_beams results: true, false or never"),
    ("num_returns", int, "answers for each prompt"),
    ("seed", int, "of sampling (default: 0)"),
)

# Kinds of tokenizers: for each the config in `data.tokenizer`, and what --style may be.
KINDS = {
    "wordpiece": ("WordPiece", ()),
    "byte_bpe": ("ByteBPE", ("roberta", "gpt2")),
    "unigram": ("SentencePiece", ("t5", "albert")),
    "bpe": ("SentencePiece", ("t5", "albert")),
}
# Flags of `tokenizer train`, which configs have such a field, and how they are read. Defaults are those of the fields.
TOKENIZER = (
    ("style", "ByteBPE SentencePiece", {"help": "special tokens: roberta (default) or gpt2; t5 (default) or albert"}),
    ("vocab_size", "WordPiece ByteBPE SentencePiece", {"type": int, "help": "tokens at most, special ones included"}),
    ("min_frequency", "WordPiece ByteBPE", {"type": int, "help": "a piece must occur this often (default: 2)"}),
    ("limit_alphabet", "WordPiece", {"type": int, "help": "wordpiece: characters kept at most (default: 1000)"}),
    ("cased", "WordPiece", {"action": "store_true", "default": None, "help": "wordpiece: keep case and accents"}),
    ("character_coverage", "SentencePiece", {"type": float, "help": "share of characters to know (default: 0.9995)"}),
    ("byte_fallback", "SentencePiece", {"action": "store_true", "default": None, "help": "spell the others in bytes"}),
    ("sentinels", "SentencePiece", {"type": int, "help": "t5: how many <extra_id_…> (default: 100)"}),
)  # fmt: skip


def add_commands(commands: Any) -> None:
    """Declares the flags."""
    command = commands.add_parser("evaluate", help="evaluate a run on its held-out data, or on a file with labels")
    command.add_argument("run", help="directory of the run")
    command.add_argument("--step", type=int, help="checkpoint to take (default: the newest)")
    command.add_argument("--path", help="file, directory or glob of labelled records to score, all of them")
    command.add_argument("--out", help="folder to write tables and confusion matrices to (default: RUN/evaluation)")
    command.set_defaults(call=evaluate_command)

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
    command.add_argument("--top_k", type=int, default=5, help="words for each mask (default: %(default)s)")
    command.add_argument("--pooling", choices=("mean", "cls"), default="mean", help="of embed (default: %(default)s)")
    command.add_argument("--no_normalize", action="store_true", help="do not divide embeddings by their L2 norm")
    command.set_defaults(call=predict_command)

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

    command = commands.add_parser("tokenizer", help="train a tokenizer, or look into one")
    action = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    command = action.add_parser("train", help="train WordPiece, byte-level BPE or SentencePiece on text files")
    add_text_arguments(command)
    command.add_argument("--kind", choices=KINDS, default="wordpiece", help="default: %(default)s")
    for name, _, options in TOKENIZER:
        command.add_argument(f"--{name}", **options)
    command.set_defaults(call=tokenizer_command)
    command = action.add_parser("inspect", help="what a tokenizer is, and how it takes texts apart")
    command.add_argument("tokenizer", help="directory or file of a tokenizer, or directory of a run")
    command.add_argument("source", nargs="*", help="text to measure it on: file, directory, glob, …")
    command.add_argument(
        "--text", action="append", default=[], help="text to show in pieces; may be given several times"
    )
    command.add_argument("--text_field", default="text", help="column with the text (default: %(default)s)")
    command.set_defaults(call=inspect_command)

    add_prepare_command(commands)
    add_tune_commands(commands)


def add_model_arguments(command: argparse.ArgumentParser, field: str, batch_size: int) -> None:
    """What a command that uses a model takes: the model, texts (called `field`), where to write, and how."""
    command.add_argument("run", help=MODEL)
    command.add_argument(f"--{field}", action="append", help=f"a {field}; may be given several times")
    command.add_argument("--input", help=f"a .jsonl file with a field “{field}” in each line, or - for standard input")
    command.add_argument("--output", help="file to write (default: standard output)")
    command.add_argument("--step", type=int, help="checkpoint to take (default: the newest)")
    command.add_argument("--batch_size", type=int, default=batch_size, help=f"{field}s at once (default: %(default)s)")
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="to compute in (default: %(default)s)"
    )


def add_text_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", help="file, directory, glob or URL, package:module/inner/file, or tfds:NAME")
    command.add_argument("--out", required=True, help="folder to write")
    command.add_argument("--text_field", default="text", help="column with the text (default: %(default)s)")
    command.add_argument("--strip_html", action="store_true", help="turn <br> into line breaks and remove other tags")


def evaluate_command(args: argparse.Namespace) -> int:
    from bertgpt.log import print_table
    from bertgpt.evaluation_report import write_judged
    from bertgpt.run import evaluate_run, load_run, on_file

    run = load_run(args.run, args.step)
    run = run if args.path is None else on_file(run, args.path)
    judged = evaluate_run(run, Path(args.run).parent / "cache")
    rows = [
        [f"{name} {metric}", f"{value:.4f}"] for name, found in judged.items() for metric, value in found[0].items()
    ]
    print_table(f"{run.experiment.name} at step {run.step:,}", ["", "value"], rows)
    for name, found in judged.items():
        for table in found.tables:
            print_table(f"{name}: {table.title}", table.columns, table.rows)
    for path in write_judged(judged, Path(args.out or Path(args.run) / "evaluation")):
        print(path)
    return 0


def predict_command(args: argparse.Namespace) -> int:
    from bertgpt.encode import classify, embed, fill_mask
    from bertgpt.loading import load
    from bertgpt.run import inputs_of, load_run, predict

    task = args.task
    if task is None and (Path(args.run) / "experiment.json").exists():
        run = load_run(args.run, args.step)
        records = read_records(args, inputs_of(run.experiment.data))
        return write_lines(args.output, records, predict(run, records, args.batch_size))
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
    from bertgpt.decoding import Decoding
    from bertgpt.generate import generate
    from bertgpt.loading import load

    decoding = Decoding(**{name: value for name, _, _ in DECODING if (value := getattr(args, name)) is not None})
    records = read_input(args, "prompt")
    model = load(args.run, args.step, args.dtype)
    prompts = [record["prompt"] for record in records]
    if args.stream:
        if len(prompts) != 1 or decoding.num_returns != 1:
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
    from bertgpt.loading import convert, read, resolve

    if args.verify == (args.out is not None):
        raise UserError("bertgpt convert: give either a directory to write, or --verify")
    if args.verify:
        return verify_command(resolve(args.source), args.step)
    source = read(args.source, args.step)
    if source.report is not None:
        for kind, names in source.report.items():
            print(f"{kind}: {len(names)} tensors" + (f" ({', '.join(names)})" if names and kind != "loaded" else ""))
    print(f"{args.out}: {convert(source, Path(args.out), args.architecture)}")
    return 0


def verify_command(source: Path, step: int | None) -> int:
    """Prints the errors; exit code 1 if one is too large."""
    import tempfile

    from bertgpt.convert.verify import TOLERANCES, verify
    from bertgpt.loading import convert, read
    from bertgpt.log import print_table

    with tempfile.TemporaryDirectory() as folder:
        directory = source
        if not (source / "config.json").exists():
            directory = Path(folder) / "exported"
            convert(read(source, step), directory)
        errors = verify(directory)
    rows = [[kind, f"{errors[kind]:.1e}", f"{limit:.0e}"] for kind, limit in TOLERANCES.items()]
    print_table("against transformers", ["", "largest relative error", "allowed"], rows)
    return int(any(not errors[kind] <= limit for kind, limit in TOLERANCES.items()))


def read_input(args: argparse.Namespace, *fields: str) -> list[dict[str, Any]]:
    """The texts given as flags, or the lines of JSON of --input, each with these fields; other fields are kept.

    Raises:
      UserError: neither or both are given, the file is missing or empty, or a line has no such field.
    """
    from bertgpt.data.text import read_json_lines

    flag = "prompt" if args.command == "generate" else "text"
    given = getattr(args, flag)
    if (given is None) == (args.input is None):
        raise UserError(f"bertgpt {args.command}: give either --{flag} or --input")
    if args.batch_size < 1:
        raise UserError(f"--batch_size {args.batch_size} must be at least 1")
    if given:
        return [{fields[0]: text} for text in given]
    records = []
    for line, record in read_json_lines(Path("/dev/stdin" if args.input == "-" else args.input)):
        for field in fields:
            if not record.get(field) and record.get(field) != "":
                raise UserError(f"{args.input}:{line}: has no field {field!r}")
            if len(fields) == 1 and not isinstance(record[field], str | list):
                raise UserError(f"{args.input}:{line}: has no field {field!r} that is a string")
        records.append(record)
    if not records:
        raise UserError(f"{args.input}: has no records")
    return records


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


def write_lines(output: str | None, records: Sequence[dict[str, Any]], answers: Iterable[dict[str, Any]]) -> int:
    """Writes each record with its answer as a line of JSON: a file whole or not at all."""
    lines = (
        json.dumps(record | answer, ensure_ascii=False) + "\n" for record, answer in zip(records, answers, strict=True)
    )
    if output is None:
        sys.stdout.writelines(lines)
        return 0
    path = Path(output)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text("".join(lines), encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    return 0


def report_command(args: argparse.Namespace) -> int:
    from bertgpt.report import report

    for path in report(args.runs, args.out):
        print(path)
    return 0


def tokenizer_command(args: argparse.Namespace) -> int:
    from bertgpt.data.corpus import Corpus

    corpus = Corpus(
        args.source, tokenizer_config(args), text_field=args.text_field, strip_html=args.strip_html,
        validation=0.0, test=0.0,
    )  # fmt: skip
    tokenizer = corpus.train_tokenizer()
    save_into(args.out, tokenizer.save)
    print(f"{args.out}: {tokenizer.vocab.size:,} tokens, hash {tokenizer.hash}")
    return 0


def tokenizer_config(args: argparse.Namespace) -> Any:
    """The config of --kind with the flags that were given.

    Raises:
      UserError: a flag or a style that this kind does not have.
    """
    from bertgpt.data import tokenizer

    config, styles = KINDS[args.kind]
    given = {name: value for name, _, _ in TOKENIZER if (value := getattr(args, name)) is not None}
    for name, owners, _ in TOKENIZER:
        if name in given and config not in owners.split():
            raise UserError(f"bertgpt tokenizer train: --{name} is not for --kind {args.kind}")
    if "style" in given and given["style"] not in styles:
        raise UserError(f"bertgpt tokenizer train: --style {given['style']}: {args.kind} has {' and '.join(styles)}")
    if "sentinels" in given and given.get("style") == "albert":
        raise UserError("bertgpt tokenizer train: --sentinels is not for --style albert")
    if config == "SentencePiece":
        given["kind"] = args.kind
    if "cased" in given:
        given["lowercase"] = not given.pop("cased")
    return getattr(tokenizer, config)(**given)


def inspect_command(args: argparse.Namespace) -> int:
    from bertgpt.data.text import clean, read_documents
    from bertgpt.data.tokenizer import load_tokenizer
    from bertgpt.data.tokenizer_inspect import describe, measure, readable
    from bertgpt.log import print_table

    path = Path(args.tokenizer)
    inside = path / "tokenizer"  # of a run
    tokenizer = load_tokenizer(inside if inside.is_dir() else path)
    print_table(str(path), ["", "value"], [[name, value] for name, value in describe(tokenizer).items()])
    for text in args.text:
        ids = tokenizer.encode([text], parse_special=True)[0]
        print(f"text:   {text}")
        print(f"pieces: {' '.join(readable(tokenizer, ids))}")
        print(f"ids:    {' '.join(map(str, ids))}")
    for source in args.source:
        documents = read_documents(source, args.text_field)
        fit = measure(tokenizer, (clean(document.text, strip_html=False) for document in documents), source)
        print_table(source, ["", "value"], [[name, value] for name, value in fit.rows().items()])
        rows = [[piece, f"{count:,}"] for piece, count in fit.longest(tokenizer)]
        print_table("longest pieces", ["piece", "times"], rows)
    return 0


def save_into(out: str, save: Any) -> None:
    try:
        save(Path(out))
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None
