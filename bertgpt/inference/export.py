"""Writing a loaded model in the other format: Hugging Face's, or bertgpt's."""

from pathlib import Path

from bertgpt.checkpoint import write_params
from bertgpt.config import to_json
from bertgpt.convert.hub import export_model
from bertgpt.directories import new_directory
from bertgpt.inference.model import Model
from bertgpt.io import write_json
from bertgpt.types import UserError


def convert(model: Model, directory: Path, architecture: str | None = None) -> str:
    """Writes a run or converted model as a Hugging Face directory, or a Hugging Face model in bertgpt's format.

    Args:
      model: from `load(…, arrange="host")`.
      directory: a new directory.
      architecture: Hugging Face's name of the architecture to write; None: the one that fits the parameters.

    Returns:
      A description of what was written.

    Raises:
      UserError: the directory is not empty, or Hugging Face has no counterpart of the model.
    """
    if model.report is None:
        config, params = model.config, model.params
        if networks := config.networks(params):
            config, params = networks["generator" if architecture == "ElectraForMaskedLM" else "discriminator"]
        name = export_model(
            directory, config, params, architecture=architecture or model.architecture, labels=model.labels.shown,
            vocab_size=None if model.experiment is None else model.tokenizer.vocab.size,
            files={} if model.tokenizer is None else model.tokenizer.files(),
        )  # fmt: skip
        return f"{name}, in Hugging Face format"
    if architecture is not None:
        raise UserError("--architecture names what to write in Hugging Face format, but this source is in it already")
    with new_directory(directory) as folder:
        facts = {"model": to_json(model.config), "architecture": model.architecture, "labels": model.labels.shown}
        write_json(folder / "model.json", facts)
        write_params(folder, model.params)
        if model.tokenizer is not None:
            model.tokenizer.save(folder / "tokenizer")
    return f"{type(model.config).__name__} of {model.architecture}, in bertgpt's format"
