"""Import and export of models as Hugging Face directories."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt.convert.bert import ALBERT, BERT, DISTILBERT, ELECTRA, ROBERTA
from bertgpt.convert.core import (
    ConvertibleConfig,
    Family,
    Report,
    Settings,
    dump_tensors,
    get,
    has_head,
    load_tensors,
)
from bertgpt.convert.files import SHARD_BYTES, read_tensors, write_directory
from bertgpt.convert.gpt import GPT2
from bertgpt.convert.t5 import SWITCH, T5
from bertgpt.io import read_json_object
from bertgpt.models.bert import BertConfig
from bertgpt.types import Inputs, ModelConfig, Params, UserError

FAMILIES = {f.model_type: f for f in (BERT, ROBERTA, DISTILBERT, ALBERT, ELECTRA, GPT2, T5, SWITCH)}


class Imported(NamedTuple):
    """An imported model."""

    config: ConvertibleConfig
    """the model config"""
    params: Params
    """parameters as numpy arrays"""
    report: Report
    """names of tensors that were loaded, initialised or unused"""
    family: str
    """its model_type"""
    architecture: str
    """the architecture that config.json declares"""
    labels: tuple[str, ...] = ()
    """names of the classes of a classifier"""


def import_model(directory: str | Path) -> Imported:
    """Reads a Hugging Face directory.

    Raises:
      UserError: a file is missing, damaged or inconsistent, or the model has a feature that is not supported.
    """
    directory = Path(directory)
    path = directory / "config.json"
    if not path.exists() and (directory / "bert_config.json").exists():
        read_tensors(directory)  # its error says how to convert a TensorFlow checkpoint
    values = read_json_object(path)
    if values.get("model_type") not in FAMILIES:
        raise UserError(f"{path}: model_type={values.get('model_type')!r} is not supported; only {', '.join(FAMILIES)}")
    family = FAMILIES[values["model_type"]]
    base = next(iter(family.architectures))
    architecture = (values.get("architectures") or [base])[0]
    if architecture not in family.architectures:
        known = ", ".join(family.architectures)
        raise UserError(f"{path}: architecture {architecture!r} is not supported; only {known}")
    settings = Settings(values, str(path))
    config = family.read_config(settings, architecture)
    settings.finish()
    tensors = read_tensors(directory)
    heads = family.architectures[architecture]
    params, report = load_tensors(family, config, heads, tensors, str(directory))
    check_shapes(config, params, directory)
    names = values.get("id2label") or {} if {"classifier", "tagger"} & set(heads) else {}
    labels = tuple(str(names[key]) for key in sorted(names, key=int))
    return Imported(config, params, report, family.model_type, architecture, labels)


def check_shapes(config: ConvertibleConfig, params: Params, directory: Path) -> None:
    """Raises UserError, with the name of the parameter, if the weights do not have the shapes of the config."""
    ids = jnp.zeros((1, 1), jnp.int32)
    inputs = Inputs(ids, decoder=Inputs(ids))
    wanted = jax.eval_shape(config.make().init, {"params": jax.random.key(0)}, inputs)["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
        # Initial parameters are boxed with the names of their axes, which adds an attribute to their path.
        name = "/".join(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        found = get(params, name)
        if found is None or found.shape != leaf.shape:
            shape = "nothing" if found is None else found.shape
            raise UserError(f"{directory}: the weights have {shape} for {name}, but config.json asks for {leaf.shape}")


def is_base(architecture: str) -> bool:
    """Whether the architecture is a base model, whose tensor names have no prefix."""
    return architecture.endswith("Model") and "LMHead" not in architecture


def family_named(architecture: str | None) -> Family | None:
    """The family that has this architecture."""
    return next((f for f in FAMILIES.values() if architecture in f.architectures), None)


def family_of(config: ModelConfig) -> Family:
    """The family whose directories can hold a model of this config.

    Raises:
      UserError: there is none; the message names the field that cannot be exported.
    """
    if isinstance(config, BertConfig):
        check_exportable(config)
    for family in FAMILIES.values():
        if isinstance(config, family.config_class) and family.represents(config):
            return family
    raise UserError(f"{type(config).__name__} cannot be exported; of ELECTRA, export generator or discriminator")


def check_exportable(config: BertConfig) -> None:
    """Raises UserError if a BERT has a feature that no Hugging Face model has."""
    if config.adapter_dim is not None:
        raise UserError(f"export: adapter_dim={config.adapter_dim}: adapters have no counterpart there; LoRA is merged")
    for field, wanted in (("norm_position", "post"), ("mlm_head", "transform")):
        if vars(config)[field] != wanted:
            raise UserError(f"export: {field}={vars(config)[field]!r} has no counterpart there; only {wanted!r}")


def export_model(
    directory: str | Path,
    config: ModelConfig,
    params: Params,
    *,
    architecture: str | None = None,
    vocab_size: int | None = None,
    labels: tuple[str, ...] = (),
    files: dict[str, bytes] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> str:
    """Writes a Hugging Face directory and returns the architecture that it declares.

    Args:
      directory: a new or empty one.
      config: the model config.
      params: the parameters.
      architecture: a Hugging Face class; None: the one with most of the heads that the parameters have.
      vocab_size: write only this many rows of the vocabulary, without those that pad it; None: all.
      labels: names of the classes of a classifier; (): LABEL_0, LABEL_1, …
      files: other files, name → content, such as the tokenizer's.
      shard_bytes: largest size of a weights file.

    Raises:
      UserError: the format cannot represent a feature of the model, or the directory is not empty.
    """
    chosen = family_named(architecture) or family_of(config)
    names = {head for heads in chosen.architectures.values() for head in heads}
    present = {head for head in names if has_head(chosen, config, params, head)}
    if architecture is None:
        fitting = [a for a, heads in chosen.architectures.items() if set(heads) <= present]
        if not fitting:
            pooler = vars(config).get("pooler")
            why = f"; pooler={pooler!r} has no counterpart there" if pooler in ("mean", "first") else ""
            held = ", ".join(sorted(present)) or "no head"
            raise UserError(
                f"{chosen.model_type}: none of {', '.join(chosen.architectures)} fits parameters with {held}{why}"
            )
        architecture = max(fitting, key=lambda a: len(chosen.architectures[a]))
    elif architecture not in chosen.architectures:
        known = ", ".join(chosen.architectures)
        raise UserError(f"architecture {architecture!r} is not one of {chosen.model_type}'s: {known}")
    heads = chosen.architectures[architecture]
    tensors = dump_tensors(chosen, config, heads, params, is_base(architecture))
    content = chosen.write_config(config)
    if vocab_size is not None and vocab_size < config.vocab_size:
        tensors = {name: without_padding(value, config.vocab_size, vocab_size) for name, value in tensors.items()}
        content |= {"vocab_size": vocab_size}
    if "classifier" in heads or "tagger" in heads:
        rows = params["classifier" if "classifier" in heads else "tagger"]["dense"]["bias"].shape[0]
        names = labels or tuple(f"LABEL_{i}" for i in range(rows))
        content |= {"id2label": {str(i): name for i, name in enumerate(names)}}
        content |= {"label2id": {name: i for i, name in enumerate(names)}}
    content |= {"model_type": chosen.model_type, "architectures": [architecture], "dtype": "float32"}
    write_directory(Path(directory), content, tensors, files or {}, shard_bytes)
    return architecture


def without_padding(value: np.ndarray, padded: int, size: int) -> np.ndarray:
    """The first `size` rows of a table or bias over the padded vocabulary; other tensors unchanged."""
    return np.ascontiguousarray(value[:size]) if value.shape[0] == padded else value
