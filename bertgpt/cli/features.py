"""Extract vectors of texts from the layers of a frozen encoder, as a .npy file."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from bertgpt.cli.options import Command, Positional
from bertgpt.cli.records import check_output
from bertgpt.ranges import Count, Range
from bertgpt.types import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """Extract vectors of texts from the layers of a frozen encoder, as a .npy file to train a model of sklearn on."""

    run: Positional[str]
    """directory of a run, a converted model or a Hugging Face model"""
    input: str
    """.jsonl, .csv, .tsv or .parquet file of texts"""
    output: str
    """.npy file to write, one row for each text in their order"""
    text_field: str = "text"
    """column that holds the text"""
    layers: tuple[Annotated[int, Range(-1_000, 1_000)], ...] = (-1,)
    """0 is the embedded input, 1 the first layer, -1 the last, as in --layers -4 -3 -2 -1"""
    pooling: Literal["mean", "cls"] | None = None
    """which vector stands for a text, the mean over its tokens or that of [CLS] (None: as the modules of a folder of
    sentence-transformers say; of other models the mean)"""
    prompt: str | None = None
    """what to put before each text"""
    prompt_name: str | None = None
    """prompt of a folder of sentence-transformers to put before each text (None: its default one, if it has one)"""
    combine: Literal["concat", "mean"] = "concat"
    """how several layers make one vector"""
    batch_size: Count = 32
    """texts at once"""

    def __post_init__(self):
        check_output(self.output)


def run(options: Options) -> int:
    from bertgpt.data.sources.text import read_records, text_of
    from bertgpt.inference.features import combine, extract_features, save_array

    texts = [text_of(record, options.text_field) for record in read_records(options.input)]
    if not texts:
        raise UserError(f"{options.input}: has no records")
    layers = extract_features(
        options.run, texts, options.layers, options.pooling, options.batch_size,
        prompt=options.prompt, prompt_name=options.prompt_name,
    )  # fmt: skip
    found = combine(layers, options.combine)
    save_array(Path(options.output), found)
    print(f"{options.output}: {found.shape[0]:,} texts × {found.shape[1]:,} features")
    return 0


COMMAND = Command(Options, run)
