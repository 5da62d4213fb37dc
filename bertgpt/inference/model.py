"""Models from wherever they lie: a run, a converted model, or a Hugging Face directory.

A converted model is a folder with model.json (the config), tokenizer/ and checkpoints/0/params, as `bertgpt convert`
writes it; it loads like a run, without reading or checking another library's format again.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from bertgpt.adaptation.lora import read_merged
from bertgpt.checkpoint import Checkpoints, load_experiment, read_json, write_json, write_params
from bertgpt.config import Experiment, from_json, to_json
from bertgpt.convert.files import new_directory
from bertgpt.convert.hub import export_model, import_model
from bertgpt.data.sources.text import inside_package
from bertgpt.data.tokenizer import Tokenizer, load_tokenizer
from bertgpt.data.tokenizer_files import LAYOUTS
from bertgpt.layers.stack import for_inference
from bertgpt.training.step import make_apply
from bertgpt.types import Apply, UserError

MARKS = ("experiment.json", "model.json", "config.json")  # of a run, a converted model, a Hugging Face directory


class Source(NamedTuple):
    """What a directory holds, on the host."""

    config: Any
    tokenizer: Tokenizer | None
    """None: the directory has none"""
    params: dict
    """as training has them, numpy arrays"""
    path: Path
    labels: tuple[str, ...] = ()
    """names of a classifier's classes"""
    architecture: str | None = None
    """Hugging Face's name of the kind of model, where it came from there"""
    report: dict[str, list[str]] | None = None
    """of a Hugging Face directory: tensors loaded, initialised, unused"""
    data: Any = None
    """of a run, what it was trained on"""


class Model(NamedTuple):
    """An architecture with weights and tokenizer, ready for use."""

    config: Any
    tokenizer: Tokenizer | None
    """None: the directory has none"""
    apply: Apply
    """apply(params, *inputs, method=…) of the flax module"""
    params: PyTree
    """as `layers.stack.for_inference` arranges them"""
    source: Path
    labels: tuple[str, ...] = ()
    """names of a classifier's classes"""


def resolve(name: str | Path) -> Path:
    """A path, or `package:module/inner/path` inside an installed package."""
    return Path(inside_package(name) if isinstance(name, str) and name.startswith("package:") else name)


def load(path: str | Path, step: int | None = None, dtype: str = "float32") -> Model:
    """Loads a run directory, a converted model or a Hugging Face directory.

    Args:
      path: the directory; `package:module/inner/path` is one inside an installed package.
      step: of a run, the checkpoint to take; None: the newest.
      dtype: what to compute in.

    Raises:
      UserError: there is none of the three, or something in it is damaged or not supported.
    """
    source = read(path, step)
    params = jax.device_put(for_inference(source.params, source.config.stacks, dtype))
    apply = make_apply(source.config.make(dtype))
    return Model(source.config, source.tokenizer, apply, params, source.path, source.labels)


def read(path: str | Path, step: int | None = None) -> Source:
    """Reads a directory; arguments and errors as for `load`."""
    path = resolve(path)
    if (path / "experiment.json").exists():
        experiment = load_experiment(path)
        tokenizer = load_tokenizer(path / "tokenizer")
        params = read_merged(Checkpoints(path).read("params", step), experiment.lora)
        labels = getattr(experiment.data, "names", ()) or getattr(experiment.data, "labels", ())
        return Source(experiment.model, tokenizer, params, path, tuple(labels), data=experiment.data)
    if step is not None:
        raise UserError(f"{path}: is no run, so it has no step {step}")
    if (path / "model.json").exists():
        facts = read_json(path / "model.json")
        try:
            config, labels, architecture = from_json(facts["model"]), tuple(facts["labels"]), facts["architecture"]
        except KeyError as error:
            raise UserError(f"{path / 'model.json'}: has no field {error}") from None
        tokenizer = load_tokenizer(path / "tokenizer") if (path / "tokenizer").exists() else None
        return Source(config, tokenizer, Checkpoints(path).read("params"), path, labels, architecture)
    if not path.is_dir():
        raise UserError(f"{path}: no such directory")
    imported = import_model(path)
    tokenizer = load_tokenizer(path) if any((path / name).exists() for name in LAYOUTS) else None
    if tokenizer is not None and tokenizer.vocab.size > imported.config.vocab_size:
        raise UserError(
            f"{path}: the tokenizer has {tokenizer.vocab.size} tokens, but config.json says"
            f" vocab_size={imported.config.vocab_size}"
        )
    return Source(
        *(imported.config, tokenizer, imported.params, path, imported.labels, imported.architecture, imported.report)
    )


def model_at(name: str, workdir: Path) -> Path | None:
    """The directory that a name means: a model under workdir, or at this path; None if there is neither."""
    places = (resolve(name),) if name.startswith("package:") else (workdir / name, Path(name))
    return next((path for path in places if any((path / mark).exists() for mark in MARKS)), None)


def find_model(name: str, workdir: Path) -> Path:
    """As `model_at`.

    Raises:
      UserError: there is none.
    """
    path = model_at(name, workdir)
    if path is None:
        raise UserError(
            f"{name!r} is neither a run under {workdir} nor the directory of a run, a converted model or a Hugging"
            " Face model"
        )
    return path


def with_model(experiment: Experiment, run: Path, workdir: Path) -> Experiment:
    """With the architecture of `init_from` if the experiment names none; a run that has begun has it already.

    Raises:
      UserError: there is no `init_from` either.
    """
    if experiment.model is not None:
        return experiment
    if (run / "experiment.json").exists() and Checkpoints(run).latest() is not None:
        model = load_experiment(run).model
    elif experiment.init_from is None:
        raise UserError("model=None needs init_from, whose architecture it takes")
    else:
        model = read(find_model(experiment.init_from, workdir)).config
        model = getattr(model, "discriminator", model)  # of ELECTRA, the part that is of use
    return dataclasses.replace(experiment, model=model)


def tokenizer_folder(path: Path) -> Path:
    """Where a model's directory keeps its tokenizer."""
    return path / "tokenizer" if (path / "tokenizer").is_dir() else path


# Fields in which a model may differ from the one it starts from and still compute the same hidden states.
FREE = set(
    """vocab_size max_len dropout attention_dropout classifier_dropout pooler mlm_head stddev init_scale
    truncated_init scan remat""".split()
)


def check_same_function(here: Any, there: Any, source: str) -> None:
    """Raises UserError, by field, where weights of config `there` would mean something else in a model `here`."""
    if type(here) is not type(there):
        names = [type(config).__name__.removesuffix("Config") for config in (there, here)]
        raise UserError(f"init_from: {source} holds a {names[0]}, but the experiment's model is a {names[1]}")
    fields = [field.name for field in dataclasses.fields(here) if field.name not in FREE]
    changed = [name for name in fields if getattr(here, name) != getattr(there, name)]
    if getattr(there, "adapter_dim", None) is None:  # adapters may be new: they start as the identity, nearly
        changed = [name for name in changed if name != "adapter_dim"]
    if changed:
        lines = ", ".join(f"model.{n}={getattr(there, n)!r} there but {getattr(here, n)!r} here" for n in changed)
        raise UserError(f"init_from: the weights of {source} need another model: {lines}")


def weights_for(config: Any, source: Source) -> dict:
    """The parameters of `source` that a model of `config` can start from; of ELECTRA, those of its discriminator.

    Raises:
      UserError: they belong to a model that computes something else.
    """
    there, params = source.config, source.params
    if hasattr(there, "discriminator") and not hasattr(config, "discriminator"):
        there, params = there.discriminator, {"embeddings": params["embeddings"], **params["discriminator"]}
    check_same_function(config, there, str(source.path))
    return params


def convert(source: Source, directory: Path, architecture: str | None = None) -> str:
    """Writes a run or converted model as a Hugging Face directory, or a model from there in our form.

    Returns:
      What was written, in words.

    Raises:
      UserError: the directory holds something, or the model has no counterpart there.
    """
    if source.report is None:
        config, params = source.config, source.params
        if hasattr(config, "discriminator"):
            part = "generator" if architecture == "ElectraForMaskedLM" else "discriminator"
            config, params = getattr(config, part), {"embeddings": params["embeddings"], **params[part]}
        is_run = (source.path / "experiment.json").exists()
        name = export_model(
            directory, config, params, architecture=architecture or source.architecture, labels=source.labels,
            vocab_size=source.tokenizer.vocab.size if is_run else None,
            files=source.tokenizer.files() if source.tokenizer is not None else {},
        )  # fmt: skip
        return f"{name}, in Hugging Face format"
    if architecture is not None:
        raise UserError("--architecture names what to write in Hugging Face format, but this source is in it already")
    with new_directory(directory) as folder:
        facts = {"model": to_json(source.config), "architecture": source.architecture, "labels": source.labels}
        write_json(folder / "model.json", facts)
        write_params(folder, source.params)
        if source.tokenizer is not None:
            source.tokenizer.save(folder / "tokenizer")
    return f"{type(source.config).__name__} of {source.architecture}, in bertgpt's format"
