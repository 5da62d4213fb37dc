"""Reading and writing Hugging Face directories: config.json, safetensors in one file or several."""

import json
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from bertgpt.convert.core import Tensors
from bertgpt.directories import new_directory
from bertgpt.io import read_json_object
from bertgpt.types import JsonObject, UserError

SHARD_BYTES = 5 * 10**9


def read_tensors(directory: Path) -> Tensors:
    """All tensors of a directory, with half precision converted to float32.

    Raises:
      UserError: there are none, a file is missing or damaged, or reading them needs a package that is not installed.
    """
    index = directory / "model.safetensors.index.json"
    if (directory / "model.safetensors").exists():
        return read_safetensors(directory / "model.safetensors")
    if index.exists():
        tensors: Tensors = {}
        weight_map = read_json_object(index).get("weight_map", {})
        for name in sorted(set(weight_map.values())):
            tensors |= read_safetensors(directory / name)
        missing = sorted(weight_map.keys() - tensors.keys())
        if missing:
            raise UserError(f"{index}: lists {missing[0]}, which {weight_map[missing[0]]} does not hold")
        return tensors
    if (directory / "pytorch_model.bin").exists():
        return read_torch(directory / "pytorch_model.bin")
    if list(directory.glob("*.ckpt.index")):
        raise UserError(
            f"{directory}: holds a TensorFlow checkpoint; where TensorFlow is installed, convert it with transformers'"
            " convert_bert_original_tf_checkpoint_to_pytorch, then save the model as safetensors"
        )
    raise UserError(f"{directory}: holds no model.safetensors, model.safetensors.index.json or pytorch_model.bin")


def read_safetensors(path: Path) -> Tensors:
    """The tensors of a safetensors file. Errors: UserError, if it is missing or damaged."""
    try:
        tensors = safetensors.numpy.load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # the library has its own type for damage and passes on others
        raise UserError(f"{path}: cannot be read as safetensors: {' '.join(str(error).split())}") from None
    return {name: widen(value) for name, value in tensors.items()}


def read_torch(path: Path) -> Tensors:
    """The tensors of a .bin file, read with torch's `weights_only`, which runs no code from the file."""
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path}: reading .bin needs torch: pip install 'bertgpt[peers]', or save safetensors"
        ) from None
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # truncated archives, foreign objects: torch raises many types
        raise UserError(f"{path}: cannot be read as weights: {str(error).splitlines()[0]}") from None
    return {
        name: value.float().numpy() if value.is_floating_point() else value.numpy() for name, value in tensors.items()
    }


def widen(value: np.ndarray) -> np.ndarray:
    """Converts floating-point tensors to float32; leaves integers as they are."""
    is_float = np.issubdtype(value.dtype, np.floating) or value.dtype.name == "bfloat16"
    return value.astype(np.float32) if is_float else value


def write_directory(
    directory: Path, config: JsonObject, tensors: Tensors, files: dict[str, bytes], shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes config.json, the weights and other files (name → content), all or nothing.

    Raises:
      UserError: the directory is not empty or cannot be written.
    """
    with new_directory(directory) as folder:
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for name, content in files.items():
            (folder / name).write_bytes(content)
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
