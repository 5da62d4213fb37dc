"""Writing a loaded model in the other format: Hugging Face's, or bertgpt's.

What is exported answers as the run does. What the other format cannot represent is refused by name, or left out where
the caller asks for that.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import processors

from bertgpt.adaptation.pruning import with_zero_heads
from bertgpt.config import to_json
from bertgpt.convert.carried import carried_files, carry, original_config
from bertgpt.convert.clip import with_end
from bertgpt.convert.hub import export_model, family_named, family_of
from bertgpt.convert.images import FILE as PREPROCESSING
from bertgpt.convert.images import write_preprocessing
from bertgpt.convert.sentence_transformers import module_files
from bertgpt.data.packing import template_of
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.embedding import own_embedder
from bertgpt.inference.model import SOURCE_FILES, Model
from bertgpt.io.checksums import sealed
from bertgpt.io.directories import new_directory
from bertgpt.io.files import json_bytes, write_json
from bertgpt.models.bert import BertConfig
from bertgpt.models.clip import ClipConfig
from bertgpt.models.vit import VitConfig, vision_of
from bertgpt.objectives.classify import Classify, ClassifyMany, ClassifyOrdinal, Regress
from bertgpt.objectives.distill import Distill
from bertgpt.objectives.lm import PrefixLM
from bertgpt.objectives.multitask import Multitask, OfTask, Tasks
from bertgpt.objectives.qa import ChooseOne
from bertgpt.objectives.seq2seq import ConditionalLM
from bertgpt.objectives.span import SpanCorruption
from bertgpt.objectives.tag import Tag
from bertgpt.runs.checkpoint import write_params
from bertgpt.runs.directory import record_tokenizer
from bertgpt.types import JsonObject, LabelKind, Labels, ModelConfig, ObjectiveConfig, Params, UserError

log = logging.getLogger(__name__)

KINDS: tuple[tuple[type[ObjectiveConfig], LabelKind], ...] = (
    (Classify, "label"), (ClassifyMany, "labels"), (Regress, "number"), (Tag, "tag")
)  # fmt: skip
PAD = "<|pad|>"
"""padding token of a decoder's classifier"""
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def convert(model: Model, directory: Path, architecture: str | None = None, drop_crf: bool = False) -> str:
    """Writes a run or converted model as a Hugging Face directory, or a Hugging Face model in bertgpt's format.

    A bi-encoder becomes a folder of sentence-transformers. The files of a converted model's own Hugging Face directory,
    such as its card and licence, are written again.

    Args:
      model: from `load(…, arrange="host")`; of a run of several tasks, `predict.one_task` picks the one to write.
      directory: a new directory.
      architecture: Hugging Face's name of the architecture to write, which may have fewer heads than the model; None:
        the one that fits the parameters.
      drop_crf: write a tagger without its conditional random field, which changes its answers.

    Returns:
      A description of what was written.

    Raises:
      UserError: the directory is not empty, or Hugging Face has no counterpart of the model.
    """
    if model.report is None:
        return to_hugging_face(model, directory, architecture, drop_crf)
    if architecture is not None:
        raise UserError("--architecture names what to write in Hugging Face format, but this source is in it already")
    write_model(model, directory)
    return f"{type(model.config).__name__} of {model.architecture}, in bertgpt's format"


def write_model(model: Model, directory: Path) -> None:
    """Writes a model in bertgpt's own format, which `load` reads fastest.

    Raises:
      UserError: the directory is not empty, or cannot be written.
    """
    with new_directory(directory) as folder:
        facts = {"model": to_json(model.config), "architecture": model.architecture}
        facts |= {"labels": list(model.labels.shown), "label_kind": model.labels.kind}
        facts |= {"stop_ids": list(model.stop_ids), "decoding": to_json(model.decoding)}
        facts |= {"image_format": model.image_format and to_json(model.image_format)}
        facts |= {"has_modules": model.embedder is not None}
        write_json(folder / "model.json", sealed(facts))
        write_params(folder, model.params)
        if model.tokenizer is not None:
            model.tokenizer.save(folder / "tokenizer")
            record_tokenizer(folder)
        (folder / SOURCE_FILES).mkdir()
        source = model.path / SOURCE_FILES if (model.path / "model.json").exists() else model.path
        carry(source, folder / SOURCE_FILES, "" if model.embedder is None else model.embedder.inner)


def to_hugging_face(model: Model, directory: Path, architecture: str | None, drop_crf: bool) -> str:
    """The part of `convert` that writes Hugging Face's format."""
    config, params, note = model.config, model.params, ""
    if networks := config.networks(params):
        family = family_named(architecture)
        fitting = [name for name, (part, _) in networks.items() if family is None or family.config_class is type(part)]
        if not fitting:
            raise UserError(f"export: {architecture}: no part of the model, {' or '.join(networks)}, is one")
        name = "generator" if architecture == "ElectraForMaskedLM" else fitting[0]
        config, params = networks[name]
        note = f" (the {name} alone)"
    whole, params = with_zero_heads(config, params)
    if whole != config:
        note += f", with {whole.num_heads - config.num_heads} heads of zeros in each layer for those that were removed"
        config = whole
    if isinstance(config, ClipConfig):
        config = with_end(config, model.tokenizer and model.tokenizer.vocab)
    objectives = [] if model.experiment is None else list(parts_of(model.experiment.objective))
    drop = {"crf", "pooler", "state_projection"} if architecture is None else set(params)
    if "crf" in params and (architecture is None or "TokenClassification" in architecture) and not drop_crf:
        raise UserError(
            "export: crf: transformers has no conditional random field; --drop_crf writes the tagger without it, which"
            " then takes the best tag of each word by itself"
        )
    for objective in objectives:
        check_objective(objective, architecture, model.tokenizer)
        if isinstance(objective, Regress):
            params = scaled_classifier(params, objective.scale)
    if isinstance(model.experiment and model.experiment.objective, OfTask):
        params = with_task_layers(params, model.experiment.objective.task)
        drop |= {name for name in params if name.startswith("task_")}
    embedder = own_embedder(model) if architecture is None else None
    tokenizer = model.tokenizer
    if model.experiment is not None and config.architecture == "decoder" and ("classifier" in params or embedder):
        tokenizer = framed_tokenizer(model.tokenizer)
        config, params = with_rows(config, params, tokenizer.vocab.size)
    inner = "" if model.embedder is None else model.embedder.inner
    original = original_config(model.path / SOURCE_FILES, inner) if model.experiment is None else {}
    files = files_beside(model, config, tokenizer, inner)
    family = family_of(config)
    if embedder is not None and model.experiment is not None:
        files |= module_files(embedder, vars(config)["d_model"])
        architecture = next(iter(family.architectures))  # the base model
        note += " with the modules of sentence-transformers"
    elif architecture is None and any(isinstance(objective, ChooseOne) for objective in objectives):
        architecture = next((name for name in family.architectures if name.endswith("ForMultipleChoice")), None)
        if architecture is None:
            raise UserError(f"export: {family.model_type} has no model there that chooses between answers")
    name = export_model(
        directory, config, params,
        architecture=architecture or model.architecture,
        vocab_size=None if model.experiment is None else tokenizer.vocab.size,
        labels=labels_of(model, objectives),
        original=original,
        settings=special_ids(tokenizer) | {key: original[key] for key in SPECIAL_IDS if key in original},
        files=files,
        drop=drop if model.experiment is not None else None,
        inner=inner,
    )  # fmt: skip
    return f"{name}{note}, in Hugging Face format"


def files_beside(model: Model, config: ModelConfig, tokenizer: Tokenizer | None, inner: str) -> dict[str, bytes]:
    """The files beside config.json and the weights, path → content: those carried along, or else the tokenizer's."""
    carried = carried_files(model.path / SOURCE_FILES) if model.experiment is None else {}
    carried.pop(str(Path(inner, "config.json")), None)
    own = {} if tokenizer is None or isinstance(config, VitConfig) else tokenizer.files()
    if own and isinstance(config, BertConfig):
        names = ["input_ids", *(["token_type_ids"] if config.num_types > 1 else []), "attention_mask"]
        own = with_settings(own, {"model_input_names": names, "model_max_length": config.max_len})
    if model.image_format is not None and (vision := vision_of(config)) is not None:
        preprocessing = write_preprocessing(model.image_format, vision.image_mean, vision.image_std)
        own = own | {PREPROCESSING: json_bytes(preprocessing)}
    own = {str(Path(inner, name)): content for name, content in own.items()}
    return carried if own.keys() & carried.keys() else carried | own


def parts_of(objective: ObjectiveConfig) -> Iterator[ObjectiveConfig]:
    """The objectives that one consists of."""
    if isinstance(objective, OfTask | Distill):
        yield from parts_of(objective.objective)
    elif isinstance(objective, Multitask):
        for part in objective.parts:
            yield from parts_of(part.objective)
    elif isinstance(objective, Tasks):
        names = ", ".join(part.name for part in objective.parts)
        raise UserError(
            f"export: the run has several tasks, each with layers of its own; pick one of {names}: --task_name"
        )
    else:
        yield objective


def check_objective(objective: ObjectiveConfig, architecture: str | None, tokenizer: Tokenizer) -> None:
    """Refuses, by name, what a model there would answer in another way; warns where the caller accepted it.

    Raises:
      UserError: the answers of the objective have no counterpart there.
    """
    if isinstance(objective, ClassifyOrdinal):
        raise UserError(
            "export: ClassifyOrdinal: transformers has no classifier of ordered labels, and one of its own on these"
            " outputs would give other answers"
        )
    both_ways = (
        (isinstance(objective, ConditionalLM) and objective.bidirectional)
        or (isinstance(objective, PrefixLM | SpanCorruption) and objective.architecture == "decoder")
    )  # fmt: skip
    if both_ways:
        text = f"{type(objective).__name__}: the prompt attends to itself in both directions, in GPT-2 there backwards"
        if architecture is None:
            raise UserError(f"export: {text}; --architecture GPT2LMHeadModel writes the model all the same")
        log.warning("export: %s: the answers will differ", text)
    if isinstance(objective, Tag) and objective.constrained:
        log.warning(
            "export: Tag: here I-X is predicted only after B-X or I-X; transformers takes the best tag of each word by"
            " itself"
        )
    if isinstance(objective, Tag) and tokenizer.encode(["a."])[0] != sum(tokenizer.encode(["a", " ."]), []):
        log.warning(
            "export: Tag: the run encodes each word by itself, after a space; give transformers lists of such words"
            " (is_split_into_words=True)"
        )


def scaled_classifier(params: Params, scale: float) -> Params:
    """With the factor on the output of a regression inside its last layer."""
    heads = {name: value for name, value in params.items() if name == "classifier" or name.startswith("task_")}
    found = dict(params)
    for name, head in heads.items():
        inner = head if name == "classifier" else head.get("classifier")
        if inner is not None:
            dense = {key: value * scale for key, value in inner["dense"].items()}
            found[name] = {"dense": dense} if name == "classifier" else {**head, "classifier": {"dense": dense}}
    return found


def with_task_layers(params: Params, task: str) -> Params:
    """With the layers of one task as those of the model."""
    return {**params, **params.get(f"task_{task}", {})}


def labels_of(model: Model, objectives: list[ObjectiveConfig]) -> Labels:
    """Labels to write: of a run with what its objective says of them, of others as their config.json had them."""
    kinds = [kind for cls, kind in KINDS for objective in objectives if isinstance(objective, cls)]
    return model.labels._replace(kind=kinds[0] if kinds else "none")


def special_ids(tokenizer: Tokenizer | None) -> JsonObject:
    """Fields of config.json for the special tokens of the tokenizer."""
    if tokenizer is None:
        return {}
    roles = tokenizer.vocab.roles
    return {f"{role}_token_id": roles[role] for role in ("bos", "eos", "pad") if roles[role] is not None}


def framed_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """A decoder's tokenizer that itself adds the special tokens which the run's data put around a text.

    It has a padding token of its own: transformers finds the end of a text by it, and the end token is part of a text.
    """
    template, separator = template_of(tokenizer.vocab), tokenizer.separator
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    start, between, end = (
        [backend.id_to_token(i) for i in ids] for ids in (template.start, separator, (template.end,))
    )  # fmt: skip
    frame = processors.TemplateProcessing(
        single=[*start, "$A", *end],
        pair=[*start, "$A", *between, "$B", *end],
        special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys((*start, *between, *end))],
    )
    own = [] if backend.post_processor is None else [backend.post_processor]
    backend.post_processor = processors.Sequence([*own, frame])
    roles = dict(tokenizer.roles)
    if tokenizer.vocab.pad in (None, template.end):
        roles["pad"] = PAD
        backend.add_special_tokens([tokenizers.AddedToken(PAD, special=True, normalized=False)])
    return Tokenizer(backend, roles, tokenizer.spiece)


def with_settings(files: dict[str, bytes], more: JsonObject) -> dict[str, bytes]:
    """With more settings of the tokenizer: what the model reads of its output, which transformers does not know."""
    settings = json.loads(files["tokenizer_config.json"]) | more
    return files | {"tokenizer_config.json": json_bytes(settings)}


def with_rows(config: ModelConfig, params: Params, rows: int) -> tuple[ModelConfig, Params]:
    """With at least this many rows in the embedding table."""
    more = rows - config.vocab_size
    if more <= 0:
        return config, params
    table = params["embeddings"]["token"]
    table = np.concatenate([table, np.zeros((more, table.shape[1]), table.dtype)])
    return dataclasses.replace(config, vocab_size=rows), {
        **params,
        "embeddings": {**params["embeddings"], "token": table},
    }
