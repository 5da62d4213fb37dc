"""Reading and writing Hugging Face directories: config.json, safetensors in one file or several."""

import json
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath

import numpy as np
import safetensors
import safetensors.numpy

from bertgpt.convert.core import Tensors
from bertgpt.convert.settings import shown
from bertgpt.io.directories import new_directory
from bertgpt.io.files import one_line, open_regular, read_json_object
from bertgpt.types import JsonObject, UserError

SHARD_BYTES = 5 * 10**9
WRAPPER = re.compile(r"^((module|_orig_mod)\.)+")
"""what DataParallel and torch.compile put before the names of a model"""


def read_tensors(directory: Path) -> Tensors:
    """All tensors of a directory, with half precision converted to float32, under the names that tables use.

    Raises:
      UserError: there are none, a file is missing, damaged or outside the directory, or reading them needs a package
        that is not installed.
    """
    readers = {"model.safetensors": read_safetensors, "pytorch_model.bin": read_torch}
    for name, read in readers.items():
        path, index = directory / name, directory / f"{name}.index.json"
        if path.exists() or path.is_symlink():
            return with_known_names(read(path), path)
        if index.exists():
            return with_known_names(read_shards(index, read), index)
    if list(directory.glob("*.ckpt.index")):
        raise UserError(
            f"{directory}: holds a TensorFlow checkpoint; where TensorFlow is installed, convert it with transformers'"
            " convert_bert_original_tf_checkpoint_to_pytorch, then save the model as safetensors"
        )
    raise UserError(f"{directory}: holds no {', '.join(readers)} or index of shards")


def read_shards(index: Path, read: Callable[[Path], Tensors]) -> Tensors:
    """The tensors of all files that an index names.

    Raises:
      UserError: a file is missing, damaged or outside the directory of the index, or lacks a tensor.
    """
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise UserError(f"{index}: has no weight_map from names of tensors to names of files")
    tensors: Tensors = {}
    for name in sorted(set(weight_map.values())):
        # A path from a stranger's file must not leave the directory. Links may: the user, or a download, made them.
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts or not name.isprintable():
            raise UserError(f"{index}: names {shown(name)}, which is outside its directory")
        found = read(index.parent / name)
        double = sorted(tensors.keys() & found.keys())
        if double:
            raise UserError(f"{index}: tensor {double[0]} is in {name} and in another file")
        tensors |= found
    missing = sorted(weight_map.keys() - tensors.keys())
    if missing:
        raise UserError(f"{index}: lists {missing[0]}, which {weight_map[missing[0]]} does not hold")
    return tensors


def with_known_names(tensors: Tensors, path: Path) -> Tensors:
    """The tensors under today's names: without the prefixes of wrapping modules, and with gamma and beta renamed.

    The weights of a layer norm were called gamma and beta in TensorFlow, and still are in bert-base-uncased.

    Raises:
      UserError: two tensors get the same name.
    """
    found: Tensors = {}
    origin: dict[str, str] = {}
    for name, value in tensors.items():
        known = WRAPPER.sub("", name)
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            known = known.removesuffix(old) + new if known.endswith(old) else known
        if known in found:
            raise UserError(f"{path}: {origin[known]} and {name} are the same tensor, {known}")
        found[known], origin[known] = value, name
    return found


def read_safetensors(path: Path) -> Tensors:
    """The tensors of a safetensors file. Errors: UserError, if it is missing or damaged."""
    check_file(path)
    try:
        tensors = safetensors.numpy.load_file(path)
    except MemoryError:
        raise UserError(f"{path}: does not fit into memory") from None
    except AttributeError:  # numpy has no type of that name, such as 8-bit floats
        raise UserError(
            f"{path}: cannot be read as safetensors: quantised types are not supported, only F64, F32, F16 and BF16"
        ) from None
    except Exception as error:  # the library has its own type for damage and passes on others
        raise UserError(f"{path}: cannot be read as safetensors: {one_line(error)}") from None
    return {name: widen(value) for name, value in tensors.items()}


def read_torch(path: Path) -> Tensors:
    """The tensors of a .bin file, read with torch's `weights_only`, which runs no code from the file.

    Raises:
      UserError: it is missing, damaged or no flat dict of tensors, or torch is not installed.
    """
    check_file(path)
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path}: reading .bin needs torch: pip install 'bertgpt[peers]', or save safetensors"
        ) from None
    try:
        with warnings.catch_warnings(action="ignore"):  # of old and sparse storage, which is refused below
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's message advises to run the code in the file
        raise UserError(f"{path}: cannot be read as weights: is damaged, or holds more than tensors") from None
    except Exception as error:  # truncated archives: torch raises many types
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"{path}: cannot be read as weights: {lines[0]}") from None
    if not isinstance(tensors, dict):
        raise UserError(f"{path}: holds no dict of tensors")
    for name, value in tensors.items():
        dense = isinstance(value, torch.Tensor) and value.layout == torch.strided
        if not isinstance(name, str) or not dense or value.is_meta or value.is_quantized:
            raise UserError(f"{path}: {shown(name)} is not a dense tensor; save the model's state_dict alone")
    return {
        name: (value.float() if value.is_floating_point() else value).detach().numpy()
        for name, value in tensors.items()
    }


def check_file(path: Path) -> None:
    """Raises UserError if a file is missing or no regular file: libraries would wait for a pipe."""
    try:
        open_regular(path).close()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def widen(value: np.ndarray) -> np.ndarray:
    """Converts floating-point tensors to float32; leaves integers as they are."""
    is_float = np.issubdtype(value.dtype, np.floating) or value.dtype.name == "bfloat16"
    with np.errstate(over="ignore"):  # the infinity is refused by name where it is used
        return value.astype(np.float32) if is_float else value


def write_directory(
    directory: Path,
    config: JsonObject,
    tensors: Tensors,
    files: Mapping[str, bytes],
    shard_bytes: int = SHARD_BYTES,
    inner: str = "",
) -> None:
    """Writes config.json, the weights and other files (path → content), all or nothing.

    config.json and the weights lie in the folder `inner` of the directory.

    Raises:
      UserError: the directory is not empty or cannot be written.
    """
    with new_directory(directory) as root:
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        folder = root / inner
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        shards = split(tensors, shard_bytes)
        names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
        for name, shard in zip(names if len(shards) > 1 else ["model.safetensors"], shards, strict=True):
            safetensors.numpy.save_file(shard, folder / name, metadata={"format": "pt"})
        if len(shards) > 1:
            weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
            index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def split(tensors: Tensors, limit: int) -> list[Tensors]:
    """Consecutive groups of tensors, each of at most `limit` bytes or of one tensor."""
    shards: list[Tensors] = [{}]
    size = 0
    for name, value in tensors.items():
        if shards[-1] and size + value.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = value
        size += value.nbytes
    return shards
