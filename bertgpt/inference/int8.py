"""Models whose large matrices are stored in 8 bits: a quarter of the size, loaded and used like the model itself.

Which parameters these are and how they are used, `layers.quantized` says. A run stays a run, with its task.
"""

import dataclasses
from pathlib import Path

from bertgpt.config import to_json
from bertgpt.inference.export import write_model
from bertgpt.inference.model import Model
from bertgpt.io.checksums import sealed
from bertgpt.io.directories import new_directory
from bertgpt.io.files import write_json
from bertgpt.layers.quantized import pack, quantize_params
from bertgpt.runs.checkpoint import write_params
from bertgpt.runs.directory import record_tokenizer


def export_int8(model: Model, directory: Path) -> str:
    """Writes a model with weights of 8 bits as a directory that `bertgpt.load` reads.

    Args:
      model: from `load(…, arrange="host")`.
      directory: a new directory.

    Returns:
      A description of what was written.

    Raises:
      UserError: the directory is not empty.
    """
    params = pack(quantize_params(model.params))
    if model.experiment is None:
        write_model(model._replace(params=params), directory)
        return f"{type(model.config).__name__} with weights of 8 bits"
    with new_directory(directory) as folder:
        # LoRA's matrices were merged as the model was loaded.
        write_json(folder / "experiment.json", sealed(to_json(dataclasses.replace(model.experiment, lora=None))))
        write_params(folder, params)
        model.tokenizer.save(folder / "tokenizer")
        record_tokenizer(folder)
    return f"the run {model.name} at step {model.step:,} with weights of 8 bits"
