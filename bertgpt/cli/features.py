"""`bertgpt features`: vectors of texts from the layers of a frozen encoder, as a .npy file."""

import argparse
from pathlib import Path
from typing import Any

from bertgpt.types import UserError


def add_features_command(commands: Any) -> None:
    command = commands.add_parser(
        "features", help="vectors of texts from an encoder's layers, to train on with sklearn"
    )
    command.add_argument("run", help="directory of a run, a converted model or a Hugging Face model")
    command.add_argument("--input", required=True, help="file of texts: .jsonl, .csv, .tsv or .parquet")
    command.add_argument("--text_field", default="text", help="its column with the text (default: %(default)s)")
    command.add_argument("--output", required=True, help=".npy file to write, a row for each text in their order")
    command.add_argument(
        "--layers", type=int, nargs="+", default=[-1], metavar="N",
        help="0 the embedded input, 1 the first layer, …, -1 the last, as in --layers -4 -3 -2 -1 (default: -1)",
    )  # fmt: skip
    command.add_argument("--pooling", choices=("mean", "cls"), default="mean", help="of tokens (default: %(default)s)")
    command.add_argument(
        "--combine", choices=("concat", "mean"), default="concat", help="of layers (default: %(default)s)"
    )
    command.add_argument("--batch_size", type=int, default=32, help="texts at once (default: %(default)s)")
    command.set_defaults(call=features_command)


def features_command(args: argparse.Namespace) -> int:
    from bertgpt.data.sources.text import field, read_records
    from bertgpt.inference.features import combine, extract_features, save_array

    if args.batch_size < 1:
        raise UserError(f"--batch_size {args.batch_size} must be at least 1")
    texts = [field(record, args.text_field) for record in read_records(args.input)]
    if not texts:
        raise UserError(f"{args.input}: has no records")
    found = combine(extract_features(args.run, texts, args.layers, args.pooling, args.batch_size), args.combine)
    save_array(Path(args.output), found)
    print(f"{args.output}: {found.shape[0]:,} texts × {found.shape[1]:,} features")
    return 0
