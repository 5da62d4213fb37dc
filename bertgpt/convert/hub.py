"""Whole models in and out of Hugging Face directories."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt.convert.bert import ALBERT, BERT, DISTILBERT, ELECTRA, ROBERTA
from bertgpt.convert.core import Family, Settings, dump_tensors, get, has_head, load_tensors
from bertgpt.convert.files import SHARD_BYTES, read_json_object, read_tensors, write_directory
from bertgpt.convert.gpt import GPT2
from bertgpt.convert.t5 import SWITCH, T5
from bertgpt.models.bert import BertConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import T5Config
from bertgpt.types import Inputs, UserError

FAMILIES = {f.model_type: f for f in (BERT, ROBERTA, DISTILBERT, ALBERT, ELECTRA, GPT2, T5, SWITCH)}


class Imported(NamedTuple):
    """A model read from elsewhere."""

    config: Any
    """our model config"""
    params: dict
    """parameters as numpy arrays"""
    report: dict[str, list[str]]
    """names of tensors: loaded, initialised (a head that was not there), unused"""
    family: str
    """its model_type"""
    architecture: str
    labels: tuple[str, ...] = ()
    """names of the classes, if it is a classifier"""


def import_model(directory: str | Path) -> Imported:
    """Reads a Hugging Face directory.

    Raises:
      UserError: a missing, damaged or inconsistent file, or something that this package cannot represent; by name.
    """
    directory = Path(directory)
    path = directory / "config.json"
    if not path.exists() and (directory / "bert_config.json").exists():
        read_tensors(directory)  # says how to convert a TensorFlow checkpoint
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
    params, report = load_tensors(family, config, heads, config.num_heads, tensors, str(directory))
    check_shapes(config, params, directory)
    names = values.get("id2label") or {} if {"classifier", "tagger"} & set(heads) else {}
    labels = tuple(str(names[key]) for key in sorted(names, key=int))
    return Imported(config, params, report, family.model_type, architecture, labels)


def check_shapes(config: Any, params: dict, directory: Path) -> None:
    """Raises UserError where the weights are not of the sizes that the config says; the message names the parameter."""
    ids = jnp.zeros((1, 1), jnp.int32)
    inputs = Inputs(ids, decoder=Inputs(ids))
    wanted = jax.eval_shape(config.make().init, {"params": jax.random.key(0)}, inputs)["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
        # At birth a leaf sits in a box of axis names, which adds an attribute to its path.
        name = "/".join(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        found = get(params, name)
        if found is None or found.shape != leaf.shape:
            shape = "nothing" if found is None else found.shape
            raise UserError(f"{directory}: the weights have {shape} for {name}, but config.json asks for {leaf.shape}")


def is_base(architecture: str) -> bool:
    """Whether names of its tensors go without the prefix."""
    return architecture.endswith("Model") and "LMHead" not in architecture


def family_named(architecture: str | None) -> Family | None:
    """The family that has this architecture."""
    return next((f for f in FAMILIES.values() if architecture in f.architectures), None)


def family_of(config: Any) -> Family:
    """The family whose directories can hold a model of this config.

    Raises:
      UserError: there is none; the message names the field that has no counterpart.
    """
    if isinstance(config, GptConfig):
        return GPT2
    if isinstance(config, T5Config):
        return T5 if config.experts is None else SWITCH
    if not isinstance(config, BertConfig):
        raise UserError(f"{type(config).__name__} cannot be exported; of ELECTRA, export generator or discriminator")
    if config.adapter_dim is not None:
        raise UserError(f"export: adapter_dim={config.adapter_dim}: adapters have no counterpart there; LoRA is merged")
    for field, wanted in (("norm_position", "post"), ("mlm_head", "transform")):
        if vars(config)[field] != wanted:
            raise UserError(f"export: {field}={vars(config)[field]!r} has no counterpart there; only {wanted!r}")
    if config.shared_groups is not None:
        return ALBERT
    if config.embed_dim is not None or config.pooler == "dropout_gelu":
        return ELECTRA
    if config.first_position or config.pooler == "dropout_tanh":
        return ROBERTA
    return DISTILBERT if config.pooler == "relu" else BERT


def export_model(
    directory: str | Path,
    config: Any,
    params: dict,
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
      config: our model config.
      params: our parameters.
      architecture: None: the one with the most heads that the parameters have.
      vocab_size: keep only this many rows of the vocabulary, without those that pad it; None: all.
      labels: names of the classes of a classifier; empty: LABEL_0, LABEL_1, …
      files: other files, name → content, such as the tokenizer's.
      shard_bytes: size of a weights file at most.

    Raises:
      UserError: something of the model has no counterpart there, or the directory is not empty.
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
    tensors = dump_tensors(chosen, config, heads, config.num_heads, params, is_base(architecture))
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
    """The first `size` rows of a table or bias over the padded vocabulary; other tensors as they are."""
    return np.ascontiguousarray(value[:size]) if value.shape[0] == padded else value
