"""Import and export of models as Hugging Face directories."""

import dataclasses
import logging
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt.convert.albert import ALBERT
from bertgpt.convert.bert import BERT, CAMEMBERT, DISTILBERT, ROBERTA, XLM_ROBERTA
from bertgpt.convert.core import (
    ConvertibleConfig,
    Family,
    Report,
    Tensors,
    dump_tensors,
    get,
    has_head,
    load_tensors,
)
from bertgpt.convert.electra import ELECTRA
from bertgpt.convert.files import SHARD_BYTES, read_tensors, write_directory
from bertgpt.convert.gpt import GPT2
from bertgpt.convert.labels import read_labels
from bertgpt.convert.settings import shown
from bertgpt.convert.t5 import MT5, SWITCH, T5
from bertgpt.io import read_json_object
from bertgpt.models.apply import parameter_shapes
from bertgpt.models.bert import BertConfig
from bertgpt.models.t5 import T5Config
from bertgpt.types import Inputs, JsonObject, Labels, ModelConfig, Params, UserError

log = logging.getLogger(__name__)

FAMILIES = {
    f.model_type: f for f in (BERT, ROBERTA, XLM_ROBERTA, CAMEMBERT, DISTILBERT, ALBERT, ELECTRA, GPT2, T5, MT5, SWITCH)
}
RENAMED = {"T5WithLMHeadModel": "T5ForConditionalGeneration"}
"""old name of an architecture → its name"""
HEAD_METHODS = {
    "pooler": "pool", "mlm_head": "mlm_logits", "nsp_head": "nsp_logits", "rtd_head": "rtd_logits",
    "classifier": "class_logits", "tagger": "tag_logits", "span_head": "span_logits",
    "lm_head": "lm_logits",
}  # fmt: skip
"""first component of a head's parameters → method of the model that uses them"""


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
    labels: Labels = Labels()
    """labels of a classifier or tagger"""


def import_model(directory: str | Path) -> Imported:
    """Reads a Hugging Face directory.

    If config.json names no architecture, it is the one with most of the heads that the weights have.

    Raises:
      UserError: a file is missing, damaged or inconsistent, or the model has a feature that is not supported.
    """
    directory = Path(directory)
    path = directory / "config.json"
    if not path.exists() and (directory / "bert_config.json").exists():
        read_tensors(directory)  # its error says how to convert a TensorFlow checkpoint
    values = read_json_object(path)
    declared = declared_architecture(values, path)
    family = find_family(values, declared, path)
    tensors = {} if declared else read_tensors(directory)
    architecture = declared or infer_architecture(family, values, tensors, path)
    if architecture not in family.architectures:
        known = ", ".join(family.architectures)
        raise UserError(f"{path}: architecture {shown(architecture)} is not supported; only {known}")
    config = read_config(family, values, architecture, path)
    tensors = tensors or read_tensors(directory)
    check_tied(family, values, architecture, tensors, path)
    params, report = load_tensors(family, config, architecture, tensors, str(directory))
    check_shapes(config, params, directory)
    head = next((head for head in ("classifier", "tagger") if head in family.architectures[architecture]), None)
    labels = Labels()
    if head is not None:
        labels = read_labels(values, str(path), head, params[head]["dense"]["bias"].shape[0])
    return Imported(config, params, report, family.model_type, architecture, labels)


def declared_architecture(values: JsonObject, path: Path) -> str | None:
    """The first architecture that config.json names; None if it names none. Errors: UserError."""
    named = values.get("architectures")
    if named is None or named == []:
        return None
    if not isinstance(named, list) or not isinstance(named[0], str):
        raise UserError(f"{path}: architectures={shown(named)} must be a list of names")
    return RENAMED.get(named[0], named[0])


def find_family(values: JsonObject, architecture: str | None, path: Path) -> Family:
    """The family of config.json: by model_type, which old files lack, else by architecture. Errors: UserError."""
    name = values.get("model_type")
    if name is None and (family := family_named(architecture)):
        return family
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(f"{path}: model_type={shown(name)} is not supported; only {', '.join(FAMILIES)}")
    return FAMILIES[name]


def read_config(family: Family, values: JsonObject, architecture: str, path: Path) -> ConvertibleConfig:
    """The model config. Errors: UserError, which names the file."""
    settings = family.settings(values, str(path))
    try:
        config = family.read_config(settings, architecture)
        settings.finish()
    except UserError as error:
        if str(error).startswith(str(path)):
            raise
        raise UserError(f"{path}: {error}") from None
    return config


def infer_architecture(family: Family, values: JsonObject, tensors: Tensors, path: Path) -> str:
    """The architecture with most of the heads that the weights have."""

    def fits(architecture: str) -> bool:
        try:
            config = read_config(family, values, architecture, path)
        except UserError:  # of settings that only this architecture does not support, or which are reported later
            return False
        table = family.heads(config)
        sources = [entry.source for head in family.architectures[architecture] for entry in table[head]]
        return all(source in tensors or family.prefix + source in tensors for source in sources)

    fitting = [architecture for architecture in family.architectures if fits(architecture)]
    chosen = max(fitting, key=lambda name: len(family.architectures[name]), default=family.base)
    log.warning("%s: names no architecture; the weights are read as %s", path, chosen)
    return chosen


def check_tied(family: Family, values: JsonObject, architecture: str, tensors: Tensors, path: Path) -> None:
    """Raises UserError if a model that predicts tokens does so with a matrix other than its embedding.

    T5 is not concerned: there the field has another meaning, see `convert.t5`.
    """
    if family.config_class is T5Config or values.get("tie_word_embeddings", True):
        return
    if {"mlm", "lm"} & set(family.architectures[architecture]):
        name, twin = next(iter(family.tied_output.items()))
        found = [next((tensors[n] for n in (family.prefix + x, x) if n in tensors), None) for x in (name, twin)]
        if any(value is None for value in found) or not np.array_equal(*found):
            raise UserError(f"{path}: tie_word_embeddings=False is not supported: {name} must equal {twin}")


def check_shapes(config: ConvertibleConfig, params: Params, directory: Path) -> None:
    """Raises UserError, with the name of the parameter, if the weights do not have the shapes of the config."""
    ids = jnp.zeros((1, 1), jnp.int32)

    heads: dict[str, dict[str, object]] = {}
    for name, method in HEAD_METHODS.items():
        if name in params:
            heads[method] = {"segment_ids": ids} if method in ("pool", "nsp_logits", "class_logits") else {}
            if method in ("class_logits", "tag_logits"):
                heads[method]["num_labels"] = params[name]["dense"]["bias"].size
    # One block stands for all of a stack, because tracing many takes time.
    module = dataclasses.replace(config, scan=True).make()
    wanted = parameter_shapes(module, Inputs(ids, decoder=Inputs(ids)), heads)
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
