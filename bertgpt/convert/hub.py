"""Import and export of models as Hugging Face directories."""

import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt.config import leaves, with_overrides
from bertgpt.convert.albert import ALBERT
from bertgpt.convert.bert import BERT, CAMEMBERT, DISTILBERT, ROBERTA, XLM_ROBERTA
from bertgpt.convert.clip import CLIP
from bertgpt.convert.core import (
    ConvertibleConfig,
    Family,
    Report,
    Tensors,
    dump_tensors,
    get,
    has_head,
    load_tensors,
    param_maps,
)
from bertgpt.convert.electra import ELECTRA
from bertgpt.convert.equivalent import absorb_bias, check_same_function, fit_to_family
from bertgpt.convert.files import SHARD_BYTES, read_tensors, write_directory
from bertgpt.convert.gpt import GPT2
from bertgpt.convert.images import read_preprocessing, same_normalization, with_normalization
from bertgpt.convert.labels import KINDS, read_labels
from bertgpt.convert.settings import shown
from bertgpt.convert.t5 import MT5, SWITCH, T5
from bertgpt.convert.vision_encoder_decoder import VISION_ENCODER_DECODER
from bertgpt.convert.vit import VIT
from bertgpt.data.images.format import ImageFormat
from bertgpt.io.files import read_json_object
from bertgpt.models.apply import parameter_shapes
from bertgpt.models.bert import BertConfig
from bertgpt.models.captioner import CaptionerConfig
from bertgpt.models.t5 import T5Config
from bertgpt.runs.checkpoint import named_leaves
from bertgpt.types import Inputs, JsonObject, Labels, ModelConfig, Params, UserError

log = logging.getLogger(__name__)

NO_LABELS = Labels()

FAMILIES = {f.model_type: f for f in (
    BERT, ROBERTA, XLM_ROBERTA, CAMEMBERT, DISTILBERT, ALBERT, ELECTRA, GPT2, T5, MT5, SWITCH, VIT, CLIP,
    VISION_ENCODER_DECODER)}  # fmt: skip
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
RENAMED = {"T5WithLMHeadModel": "T5ForConditionalGeneration"}
"""old name of an architecture → its name"""
HEAD_METHODS = {
    "pooler": "pool", "mlm_head": "mlm_logits", "nsp_head": "nsp_logits", "rtd_head": "rtd_logits",
    "classifier": "class_logits", "tagger": "tag_logits", "span_head": "span_logits",
    "lm_head": "lm_logits", "language": "lm_logits",
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
    image_format: ImageFormat | None = None
    """how its preprocessor_config.json brings pictures to the size that it reads"""


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
    preprocessing = None if config.image_shape is None else read_preprocessing(directory, config.image_shape[-1])
    if preprocessing is not None:
        config = with_normalization(config, preprocessing.mean, preprocessing.std)
    tensors = tensors or read_tensors(directory)
    check_tied(family, values, architecture, tensors, path)
    params, report = load_tensors(family, config, architecture, tensors, str(directory))
    check_shapes(config, params, directory)
    head = next((head for head in ("classifier", "tagger") if head in family.architectures[architecture]), None)
    labels = Labels()
    if head is not None and not architecture.endswith("ForMultipleChoice"):  # whose one output scores a choice
        labels = read_labels(values, str(path), head, params[head]["dense"]["bias"].shape[0])
    image_format = preprocessing and preprocessing.format
    return Imported(config, params, report, family.model_type, architecture, labels, image_format)


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

    def fit(architecture: str) -> tuple[int, int, bool]:
        """How many tensors its heads have; how many heads; whether it is no base model. Less if one is missing."""
        try:
            config = read_config(family, values, architecture, path)
        except UserError:  # of settings that only this architecture does not support, or which are reported later
            return -1, 0, False
        table, heads = family.heads(config), family.architectures[architecture]
        sources = [entry.source for head in heads for entry in table[head]]
        fits = all(source in tensors or family.prefix + source in tensors for source in sources)
        return (len(sources), len(heads), architecture != family.base) if fits else (-1, 0, False)

    chosen = max(family.architectures, key=fit)  # the base model is the first
    log.warning("%s: names no architecture; the weights are read as %s", path, chosen)
    return chosen


def check_tied(family: Family, values: JsonObject, architecture: str, tensors: Tensors, path: Path) -> None:
    """Raises UserError if a model that predicts tokens does so with a matrix other than its embedding.

    T5 and captioners are not concerned: there the field has another meaning, or is one of the decoder.
    """
    if family.config_class in (T5Config, CaptionerConfig) or values.get("tie_word_embeddings", True):
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
    module = with_overrides(config, {path: True for path, _ in leaves(config) if path.endswith("scan")}).make()
    images = None if config.image_shape is None else jnp.zeros((1, *config.image_shape), jnp.uint8)
    wanted = parameter_shapes(module, Inputs(ids, images=images, decoder=Inputs(ids)), heads)
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
    labels: Labels = NO_LABELS,
    original: Mapping[str, object] = MappingProxyType({}),
    settings: Mapping[str, object] = MappingProxyType({}),
    files: Mapping[str, bytes] = MappingProxyType({}),
    drop: Collection[str] | None = None,
    inner: str = "",
    shard_bytes: int = SHARD_BYTES,
) -> str:
    """Writes a Hugging Face directory and returns the architecture that it declares.

    Args:
      directory: a new or empty one.
      config: the model config.
      params: the parameters.
      architecture: a Hugging Face class; None: the one with most of the heads that the parameters have.
      vocab_size: write only this many rows of the vocabulary, without those that pad it; None: all.
      labels: labels of a classifier or tagger; no names: LABEL_0, LABEL_1, …
      original: the config.json that the model was read from, whose fields are kept where they are not the model's.
      settings: fields of config.json that take precedence, such as the ids of special tokens.
      files: other files, path → content, such as the tokenizer's.
      drop: parameters that may be left out, by the first component of their path; None: all that an architecture which
        the caller names does not have, otherwise a pooler. What is left out is named in a warning.
      inner: folder of the directory for config.json and the weights.
      shard_bytes: largest size of a weights file.

    Raises:
      UserError: the format cannot represent a feature or a parameter of the model, the labels are not as many as the
        classifier's rows, or the directory is not empty.
    """
    chosen = family_named(architecture) or family_of(config)
    if drop is None:
        # A pooler that no head of the architecture reads has no part in the model's answers.
        drop = ("pooler",) if architecture is None else frozenset(params)
    if architecture is None:
        architecture = fitting_architecture(chosen, config, params)
    elif architecture not in chosen.architectures:
        known = ", ".join(chosen.architectures)
        raise UserError(f"architecture {architecture!r} is not one of {chosen.model_type}'s: {known}")
    heads = list(chosen.architectures[architecture])
    if architecture == chosen.base:
        heads = [head for head in heads if _is_written(chosen, config, params, head)]
    settings = special_ids_of(files) | settings
    pad = settings.get("pad_token_id")
    config, params = fit_to_family(chosen, config, params, pad if isinstance(pad, int) else None)
    if architecture == "GPT2ForSequenceClassification":
        params = absorb_bias(params)
    used = {path for entry in param_maps(chosen, config, heads) for path in entry.paths}
    check_complete(params, used, architecture, drop)
    tensors = dump_tensors(chosen, config, heads, params, is_base(architecture))
    content = chosen.write_config(config)
    if vocab_size is not None and vocab_size < config.vocab_size:
        tensors = {name: without_padding(value, config.vocab_size, vocab_size) for name, value in tensors.items()}
        (content[chosen.text] if chosen.text else content)["vocab_size"] = vocab_size
    written = chosen.read_config(chosen.settings(content, "export"), architecture)
    check_same_function(config, same_normalization(written, config), architecture, used)
    if "classifier" in heads or "tagger" in heads:
        head = "classifier" if "classifier" in heads else "tagger"
        content |= label_settings(labels, params[head]["dense"]["bias"].shape[0], head)
    content = keep_original(chosen, architecture, content, written, original)
    # A composed model itself says which token ends a text, because it reads its vector there.
    texts = settings | content[chosen.text] if chosen.text else content | settings
    # Of another vocabulary, say: transformers would never find the end of a text.
    outside = [key for key in SPECIAL_IDS if isinstance(i := texts.get(key), int) and i >= texts["vocab_size"]]
    texts |= dict.fromkeys(outside)
    content = content | {chosen.text: texts} if chosen.text else texts
    content |= {"model_type": chosen.model_type, "architectures": [architecture], "dtype": "float32"}
    write_directory(Path(directory), content, tensors, files, shard_bytes, inner)
    return architecture


def special_ids_of(files: Mapping[str, bytes]) -> JsonObject:
    """The fields of config.json that say which ids the tokenizer in these files begins, ends and pads texts with."""
    if not {"tokenizer.json", "tokenizer_config.json"} <= files.keys():
        return {}
    ids = {token["content"]: token["id"] for token in json.loads(files["tokenizer.json"]).get("added_tokens", ())}
    named = json.loads(files["tokenizer_config.json"])
    tokens = {role: named.get(f"{role}_token") for role in ("bos", "eos", "pad")}
    return {f"{role}_token_id": ids[text] for role, text in tokens.items() if isinstance(text, str) and text in ids}


def keep_original(
    family: Family, architecture: str, content: JsonObject, written: ConvertibleConfig, original: Mapping[str, object]
) -> JsonObject:
    """config.json with the fields of the original one, also of the model where they say the same in other words."""
    same = content | {key: value for key, value in original.items() if key in content}
    if original and family.read_config(family.settings(same, "export"), architecture) == written:
        content = same
    return {key: value for key, value in original.items() if key != "torch_dtype"} | content


def fitting_architecture(family: Family, config: ModelConfig, params: Params) -> str:
    """The architecture that holds the most parameters of the model.

    Raises:
      UserError: there is none.
    """
    table = family.heads(config)
    present = {head for head in table if has_head(family, config, params, head)}
    fitting = [a for a, heads in family.architectures.items() if set(heads) <= present]
    if not fitting:
        pooler = vars(config).get("pooler")
        why = f"; pooler={pooler!r} has no counterpart there" if pooler in ("mean", "first") else ""
        held = ", ".join(sorted(head for head in present if not head.startswith(("choice", "class_")))) or "no head"
        raise UserError(
            f"{family.model_type}: none of {', '.join(family.architectures)} fits parameters with {held}{why}"
        )
    # A head that is tied to the embedding has no parameters, but counts.
    return max(
        fitting, key=lambda a: (sum(len(table[h]) for h in family.architectures[a]), len(family.architectures[a]))
    )


def _is_written(family: Family, config: ModelConfig, params: Params, head: str) -> bool:
    """Whether a head is written: an optional one only if the model has it."""
    return head not in family.optional or has_head(family, config, params, head)


def check_complete(params: Params, used: Collection[str], architecture: str, drop: Collection[str]) -> None:
    """Raises UserError, by name, if parameters are neither written nor among those that may be left out."""
    left = dict.fromkeys(name.split("/")[0] for name in named_leaves(params) if name not in used)
    dropped, refused = ([name for name in left if (name in drop) == in_drop] for in_drop in (True, False))
    if dropped:
        log.warning("export: %s does not have %s, which is left out", architecture, ", ".join(dropped))
    if refused:
        raise UserError(
            f"export: {architecture} has no counterpart of {', '.join(refused)}; give the architecture that is to be"
            " written, and what it does not have is left out"
        )


def label_settings(labels: Labels, rows: int, head: str) -> JsonObject:
    """The fields of config.json that say what the rows of a classifier or tagger mean.

    Raises:
      UserError: there are not as many labels as rows, or two have the same name.
    """
    names = labels.shown or tuple(f"LABEL_{i}" for i in range(rows))
    if len(names) != rows:
        raise UserError(f"export: the {head} has {rows} outputs, but there are {len(names)} labels: {', '.join(names)}")
    if len(set(names)) < rows:
        double = next(name for i, name in enumerate(names) if name in names[:i])
        raise UserError(f"export: two labels are called {double!r}; a Hugging Face directory needs different names")
    found: JsonObject = {"id2label": {str(i): name for i, name in enumerate(names)}}
    found |= {"label2id": {name: i for i, name in enumerate(names)}}
    problems = {kind: name for name, kind in KINDS.items()}
    return found | ({"problem_type": problems[labels.kind]} if labels.kind in problems else {})


def without_padding(value: np.ndarray, padded: int, size: int) -> np.ndarray:
    """The first `size` rows of a table or bias over the padded vocabulary; other tensors unchanged."""
    return np.ascontiguousarray(value[:size]) if value.shape[:1] == (padded,) else value
