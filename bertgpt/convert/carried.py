"""Files of a Hugging Face directory that a conversion takes along: the model card, the licence, modules, settings."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from bertgpt.convert.sentence_transformers import is_sentence_transformer, module_folders
from bertgpt.io.files import read_bytes, read_json_object
from bertgpt.types import JsonObject

log = logging.getLogger(__name__)

WEIGHTS = frozenset(
    """.safetensors .bin .h5 .msgpack .ot .onnx .onnx_data .data .pt .pth .ckpt .index .meta .tflite .gguf .mlmodel .npz
    .pb .xml .pkl""".split()
)
"""suffixes of weights; the model's own are written anew, and other formats of them would not follow its changes"""
LARGEST = 64 * 2**20
"""bytes; larger files are not taken along"""


def relative_files(directory: Path) -> Iterator[Path]:
    """Paths of the files of a directory, relative to it; without folders whose name begins with a dot, such as .git."""
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts[:-1]):
            yield relative


def carry(source: Path, target: Path, inner: str) -> None:
    """Copies what is to be taken along; what is not, and is not the model's own weights, is named in a warning.

    Args:
      source: a Hugging Face directory.
      target: an existing folder.
      inner: folder of the model in the directory.
    """
    modules = module_folders(source) if is_sentence_transformer(source) else ()
    left = []
    for path in relative_files(source):
        in_module = any(path.is_relative_to(folder) for folder in modules)
        is_weights = path.suffix in WEIGHTS or path.name.endswith(".safetensors.index.json")
        if in_module or not (is_weights or (source / path).stat().st_size > LARGEST):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, target / path)
        elif not is_own_weights(path, inner):
            left.append(str(path))
    if left:
        log.warning("%s: %d files are not taken along: %s", source, len(left), ", ".join(left))


def is_own_weights(path: Path, inner: str) -> bool:
    """Whether a file holds the weights that are read, which are written anew."""
    return path.parent == Path(inner) and path.name.startswith(("model", "pytorch_model"))


def carried_files(folder: Path) -> dict[str, bytes]:
    """The files that `carry` copied, path → content."""
    return {path.as_posix(): read_bytes(folder / path) for path in relative_files(folder)}


def original_config(folder: Path, inner: str) -> JsonObject:
    """The config.json that a converted model was read from; {} if there is none."""
    path = folder / inner / "config.json"
    return read_json_object(path) if path.exists() else {}
