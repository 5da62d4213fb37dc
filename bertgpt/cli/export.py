"""Write a model for where it will run: Hugging Face's format, StableHLO, 8-bit weights or ONNX."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bertgpt.cli.options import Command, Positional
from bertgpt.ranges import Natural
from bertgpt.types import UserError

if TYPE_CHECKING:
    from bertgpt.inference.model import Model


@dataclasses.dataclass(frozen=True)
class Options:
    """Write a model for where it will run, and print what it costs there: disk, memory, time, and its scores."""

    model: Positional[str]
    """directory of a run, a converted model or a Hugging Face model"""
    format: Literal["hf", "stablehlo", "int8", "onnx"]
    """hf: as `bertgpt convert` writes it. stablehlo: a program that needs jax and flatbuffers alone. int8: weights of
    8 bits, for bertgpt. onnx: encoders of the BERT family, for onnxruntime"""
    out: str
    """directory to write"""
    output: Literal["embedding", "logits", "hidden_states"] | None = None
    """stablehlo, onnx: what to compute (None: what the model's head gives)"""
    platforms: tuple[Literal["cpu", "cuda", "rocm", "tpu"], ...] = ("cpu", "cuda", "tpu")
    """stablehlo: where the program may run"""
    architecture: str | None = None
    """hf: transformers class to write, e.g. BertForMaskedLM (None: the one that fits)"""
    drop_crf: bool = False
    """hf, onnx: write a tagger without its conditional random field, which changes its answers"""
    task_name: str | None = None
    """of a run of several tasks, the one to write"""
    step: Natural | None = None
    """checkpoint to use (None: the newest)"""
    measure: bool = True
    """print what the model costs before and after, each measured in a process of its own"""
    text: str = "A warm and funny film, whose ending I did not see coming."
    """what is read to measure latency"""


ONLY = {
    "output": ("stablehlo", "onnx"),
    "platforms": ("stablehlo",),
    "architecture": ("hf",),
    "drop_crf": ("hf", "onnx"),
}
"""option → formats that it is for"""


def run(options: Options) -> int:
    check(options)
    directory = Path(options.out)
    source = load_source(options, "inference" if options.format == "stablehlo" else "host")
    print(f"{options.out}: {write(options, source, directory)}")
    if options.measure:
        print_footprints(options, source, directory)
    return 0


def check(options: Options) -> None:
    """Raises UserError if an option is given that the format has no use for."""
    defaults = {field.name: field.default for field in dataclasses.fields(Options)}
    for name, formats in ONLY.items():
        if vars(options)[name] != defaults[name] and options.format not in formats:
            raise UserError(f"bertgpt export: --{name} is for --format {' and '.join(formats)}")


def load_source(options: Options, arrange: Literal["inference", "host"]) -> "Model":
    """The source, of a run of several tasks the one that is named."""
    from bertgpt.inference.model import load
    from bertgpt.inference.predict import one_task

    model = load(options.model, options.step, arrange=arrange)
    return model if options.task_name is None else one_task(model, options.task_name)


def write(options: Options, source: "Model", directory: Path) -> str:
    """Writes the directory; returns what was written."""
    if options.format == "hf":
        from bertgpt.inference.export import to_hugging_face

        if source.report is not None:
            raise UserError(f"{options.model}: is in the Hugging Face format already")
        return to_hugging_face(source, directory, options.architecture, options.drop_crf)
    if options.format == "stablehlo":
        from bertgpt.inference.stablehlo import export_stablehlo

        return export_stablehlo(source, directory, options.output, options.platforms)
    if options.format == "int8":
        from bertgpt.inference.int8 import export_int8

        return export_int8(source, directory)
    from bertgpt.inference.onnx import export_onnx

    return export_onnx(source, directory, options.output, options.drop_crf)


def print_footprints(options: Options, source: "Model", directory: Path) -> None:
    """Prints size, memory, times and scores of the source and of what was written."""
    from bertgpt.inference.footprint import measure, open_any, scores_on_test
    from bertgpt.training.log import print_table

    rows, columns = [], ["", "MB on disk", "MB of memory", "cold start, s", "one text, ms"]
    for name, path in (("before", source.path), (options.format, directory)):
        found = measure(path, options.text)
        scores = scores_on_test(source, open_any(path, source if path == source.path else None))
        columns = [*columns[:5], *scores]
        costs = [f"{found.size / 1e6:.1f}", f"{found.memory / 1e6:.0f}", f"{found.cold_start:.1f}"]
        rows.append([name, *costs, f"{found.latency * 1e3:.1f}", *(f"{value:.4f}" for value in scores.values())])
    print_table(f"{options.text!r} with {source.name}", columns, rows)


COMMAND = Command(Options, run)
