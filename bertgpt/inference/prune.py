"""Pruning a loaded model; what is removed is decided in `adaptation.pruning`."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from bertgpt.adaptation.pruning import Importance, measure_importance, prune_params
from bertgpt.config import to_json
from bertgpt.inference.export import write_model
from bertgpt.inference.model import Model
from bertgpt.io.checksums import sealed
from bertgpt.io.directories import new_directory
from bertgpt.io.files import write_json
from bertgpt.layers.stack import join_layers
from bertgpt.models.apply import make_apply
from bertgpt.runs.checkpoint import write_params
from bertgpt.runs.directory import record_tokenizer
from bertgpt.types import DataRequest, UserError

EXAMPLES = 512
"""training sequences on which importance is measured unless the caller says so"""


def importance_of(model: Model, cache: str | Path, examples: int = EXAMPLES) -> Importance:
    """The importance of heads and feed-forward units to a run's own task, on its training data.

    Args:
      model: a run, from `bertgpt.load`.
      cache: folder for prepared data.
      examples: number of training sequences, in the order of training.

    Raises:
      UserError: the model is not a run, it cannot be pruned, or its data is missing.
    """
    experiment = model.run
    size = min(experiment.batch_size, examples)
    request = DataRequest("train", model.tokenizer, size, experiment.seed, Path(cache), shuffle=True)
    batches = experiment.data.make(request)
    params = jax.device_put(join_layers(model.params, model.config.stacks))
    apply = make_apply(model.config.make("float32"))
    parts = (batches[step] for step in range(-(-examples // size)))
    return measure_importance(model.objective, apply, params, model.config, parts)


def prune(
    model: Model,
    *,
    layers: Sequence[int] | None = None,
    num_heads: int | None = None,
    d_ff: int | None = None,
    importance: Importance | None = None,
    cache: str | Path | None = None,
    examples: int = EXAMPLES,
) -> Model:
    """Removes layers, and from each layer the least important heads and feed-forward units.

    Accuracy falls at first; fine-tune the result (`init_from`) to recover it.

    Args:
      model: from `bertgpt.load`.
      layers: indices of the layers to keep; None: all.
      num_heads: heads to keep in every layer; None: all.
      d_ff: feed-forward units to keep in every layer; None: all.
      importance: of heads and units; None: measured on the training data of the run.
      cache: folder for prepared data; None: `cache` beside the run.
      examples: training sequences on which importance is measured.

    Returns:
      The smaller model, with parameters on the host; `save` writes it.

    Raises:
      UserError: the model cannot be pruned, a number is out of range, or importance is needed and the model is not a
        run, so that it has no training data.

    Examples:
      >>> import bertgpt
      >>> small = bertgpt.prune(bertgpt.load("runs/sentiment"), num_heads=6, d_ff=768)  # doctest: +SKIP
      >>> bertgpt.evaluate(small)["test"].values["accuracy"]  # doctest: +SKIP
      0.81
    """
    if importance is None and (num_heads is not None or d_ff is not None):
        if model.experiment is None:
            raise UserError(
                f"prune: {model.path} is not a run, so it has no training data to tell which heads and units matter;"
                " fine-tune it first, or remove layers only"
            )
        importance = importance_of(model, model.path.parent / "cache" if cache is None else cache, examples)
    params = jax.tree.map(np.asarray, join_layers(model.params, model.config.stacks))
    config, params = prune_params(
        model.config, params, layers=layers, num_heads=num_heads, d_ff=d_ff, importance=importance
    )
    experiment = model.experiment and dataclasses.replace(
        model.experiment, model=config, lora=None, init_from=None, reinitialize=(), init_layers=()
    )
    return model._replace(config=config, params=params, apply=make_apply(config.make()), experiment=experiment)


def save(model: Model, directory: str | Path) -> None:
    """Writes a model that `bertgpt.load` and `init_from` read: a pruned run as a run, else as a converted model.

    Args:
      model: the result of `prune`.
      directory: a new directory.

    Raises:
      UserError: the directory is not empty, or cannot be written.
    """
    directory = Path(directory)
    if model.experiment is None:
        write_model(model, directory)
        return
    name = directory.name if re.fullmatch(r"[A-Za-z0-9][\w.-]*", directory.name) else model.experiment.name
    with new_directory(directory) as folder:
        write_json(folder / "experiment.json", sealed(to_json(dataclasses.replace(model.experiment, name=name))))
        write_params(folder, model.params)
        model.tokenizer.save(folder / "tokenizer")
        record_tokenizer(folder)
