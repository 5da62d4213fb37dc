"""BERT and its relatives: RoBERTa, XLM-R, CamemBERT, DistilBERT; and what ALBERT and ELECTRA share with them."""

import dataclasses
from collections.abc import Sequence
from typing import TypedDict, Unpack

from bertgpt.convert.core import COPY, HEADS, HEADS_BIAS, LINEAR, Family, Layout, ParamMap
from bertgpt.convert.settings import (
    ACTIVATIONS,
    EXACT_GELU,
    NAMES,
    NUMBER,
    OPTIONAL_NUMBER,
    Settings,
)
from bertgpt.models.bert import BertConfig
from bertgpt.types import JsonObject


class MapOptions(TypedDict, total=False):
    """Fields of `ParamMap` that the helpers below pass on."""

    layers: Sequence[int] | None
    prefixed: bool


def weight_bias(
    target: str,
    source: str,
    layout: Layout = LINEAR,
    bias: Layout = COPY,
    *,
    name: str = "kernel",
    **options: Unpack[MapOptions],
) -> list[ParamMap]:
    """Maps kernel and bias of a linear layer, or scale and bias of a norm with name="scale"."""
    return [
        ParamMap(f"{target}/{name}", f"{source}.weight", layout, **options),
        ParamMap(f"{target}/bias", f"{source}.bias", bias, **options),
    ]


def norm(target: str, source: str, **options: Unpack[MapOptions]) -> list[ParamMap]:
    """Maps scale and bias of a layer norm."""
    return weight_bias(target, source, COPY, name="scale", **options)


def embeddings(config: BertConfig) -> list[ParamMap]:
    return [
        ParamMap("embeddings/token", "embeddings.word_embeddings.weight"),
        ParamMap("embeddings/position", "embeddings.position_embeddings.weight"),
        *([ParamMap("embeddings/type", "embeddings.token_type_embeddings.weight")] if config.num_types else []),
        *norm("embeddings/norm", "embeddings.LayerNorm"),
    ]


def projection(config: BertConfig, source: str, always: bool) -> list[ParamMap]:
    rows = weight_bias("embedding_projection", source)
    return rows if config.embed_dim != config.d_model or always else []


def layer_maps(source: str, names: tuple[str, ...], target: str, numbers: range) -> list[ParamMap]:
    """Maps a block; `names` are those of query, key, value, out, norm, up, down and norm in the source."""
    query, key, value, out, attention_norm, up, down, mlp_norm = (f"{source}.{name}" for name in names)
    options: MapOptions = {"layers": numbers}
    return [
        *weight_bias(f"{target}/attention/query", query, HEADS, HEADS_BIAS, **options),
        *weight_bias(f"{target}/attention/key", key, HEADS, HEADS_BIAS, **options),
        *weight_bias(f"{target}/attention/value", value, HEADS, HEADS_BIAS, **options),
        *weight_bias(f"{target}/attention/out", out, **options),
        *norm(f"{target}/attention_norm", attention_norm, **options),
        *weight_bias(f"{target}/mlp/up", up, **options),
        *weight_bias(f"{target}/mlp/down", down, **options),
        *norm(f"{target}/mlp_norm", mlp_norm, **options),
    ]


BERT_LAYER = (
    "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
    "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm",
)  # fmt: skip


def bert_body(config: BertConfig) -> list[ParamMap]:
    layers = layer_maps("encoder.layer.{l}", BERT_LAYER, "encoder", range(config.num_layers))
    return [*embeddings(config), *layers]


def mlm_maps(dense: str, layer_norm: str, bias: str) -> list[ParamMap]:
    return [
        *weight_bias("mlm_head/dense", dense, prefixed=False),
        *norm("mlm_head/norm", layer_norm, prefixed=False),
        ParamMap("mlm_head/bias", bias, prefixed=False),
    ]


def task_maps(pooler: list[ParamMap], classifier: str = "classifier") -> dict[str, list[ParamMap]]:
    return {
        "pooler": pooler,
        "classifier": weight_bias("classifier/dense", classifier, prefixed=False),
        "choice": weight_bias("classifier/dense", "classifier", prefixed=False),
        "tagger": weight_bias("tagger/dense", "classifier", prefixed=False),
        "span": weight_bias("span_head/dense", "qa_outputs", prefixed=False),
    }


def bert_heads(config: BertConfig) -> dict[str, list[ParamMap]]:
    transform = "cls.predictions.transform"
    return task_maps(weight_bias("pooler", "pooler.dense")) | {
        "mlm": mlm_maps(f"{transform}.dense", f"{transform}.LayerNorm", "cls.predictions.bias"),
        "nsp": weight_bias("nsp_head/dense", "cls.seq_relationship", prefixed=False),
    }


def common(s: Settings, activation: str = "hidden_act") -> JsonObject:
    """Fields that all families share, and checks of settings that are not supported in any."""
    s.must_be("position_embedding_type", "absolute")
    s.must_be("is_decoder", False)
    s.must_be("is_encoder_decoder", False)
    s.must_be("add_cross_attention", False)
    s("tie_word_embeddings", kind=bool)  # the tensors say whether they are tied
    return {
        "vocab_size": s("vocab_size"),
        "activation": s.one_of(activation, ACTIVATIONS),
        "stddev": s("initializer_range", kind=NUMBER),
    }


def transformer(s: Settings) -> JsonObject:
    """Fields with the names of BERT's config."""
    return {
        "d_model": s("hidden_size"),
        "num_layers": s("num_hidden_layers"),
        "num_heads": s("num_attention_heads"),
        "d_ff": s("intermediate_size"),
        "max_len": s("max_position_embeddings"),
        "num_types": s("type_vocab_size"),
        "dropout": s("hidden_dropout_prob", kind=NUMBER),
        "attention_dropout": s("attention_probs_dropout_prob", kind=NUMBER),
        "norm_eps": s("layer_norm_eps", kind=NUMBER),
    }


def read_bert(s: Settings, architecture: str) -> BertConfig:
    dropout = s("classifier_dropout", kind=OPTIONAL_NUMBER)
    return BertConfig(**common(s), **transformer(s), classifier_dropout=dropout)


def write_transformer(c: BertConfig) -> JsonObject:
    return {
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "intermediate_size": c.d_ff,
        "hidden_act": NAMES[c.activation],
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": c.attention_dropout,
        "max_position_embeddings": c.max_len + c.first_position,
        "type_vocab_size": c.num_types,
        "initializer_range": c.stddev,
        "layer_norm_eps": c.norm_eps,
    }


def write_bert(c: BertConfig) -> JsonObject:
    return write_transformer(c) | {"classifier_dropout": c.classifier_dropout, "pad_token_id": 0}


def architectures(
    name: str, base: tuple[str, ...], class_pooler: str = "pooler", choice_pooler: str = "pooler"
) -> dict[str, tuple[str, ...]]:
    """Architecture → heads, with the names common to all of these families.

    Args:
      name: what the names begin with.
      base: heads of the base model.
      class_pooler: head that holds the pooler of the classifier.
      choice_pooler: head that holds the pooler of the scores of choices.
    """
    return {
        f"{name}Model": base,
        f"{name}ForMaskedLM": ("mlm",),
        f"{name}ForSequenceClassification": (class_pooler, "classifier"),
        f"{name}ForMultipleChoice": (choice_pooler, "choice"),
        f"{name}ForTokenClassification": ("tagger",),
        f"{name}ForQuestionAnswering": ("span",),
    }


def is_albert(c: BertConfig) -> bool:
    """Layers share parameters."""
    return c.shared_groups is not None


def is_electra(c: BertConfig) -> bool:
    """Not ALBERT; embeddings of another width, or ELECTRA's pooler."""
    return not is_albert(c) and (c.embed_dim is not None or c.pooler == "dropout_gelu")


def is_roberta(c: BertConfig) -> bool:
    """None of the above; positions start after the padding id, or RoBERTa's pooler."""
    return not (is_albert(c) or is_electra(c)) and (c.first_position > 0 or c.pooler == "dropout_tanh")


def is_distilbert(c: BertConfig) -> bool:
    """None of the above, with DistilBERT's pooler."""
    return not (is_albert(c) or is_electra(c) or is_roberta(c)) and c.pooler == "relu"


def is_bert(c: BertConfig) -> bool:
    """None of the others."""
    return not (is_albert(c) or is_electra(c) or is_roberta(c) or is_distilbert(c))


MLM_TIED = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
SKIPPED = ("position_ids", "token_type_ids")
BERT = Family(
    "bert", "bert.", BertConfig, is_bert, read_bert, write_bert, bert_body, bert_heads,
    architectures("Bert", ("pooler",))
    | {"BertForPreTraining": ("pooler", "mlm", "nsp"), "BertForNextSentencePrediction": ("pooler", "nsp")},
    tied_output=MLM_TIED, skipped=SKIPPED, optional=("pooler",),
)  # fmt: skip


# -- RoBERTa ----------------------------------------------------------------------------------------------------------


def read_roberta(s: Settings, architecture: str) -> BertConfig:
    fields = common(s) | transformer(s)
    if architecture.endswith("ForMaskedLM"):
        s.must_be("hidden_act", *EXACT_GELU)  # its head always uses the exact GELU, whatever the blocks use
    first = s("pad_token_id") + 1
    dropout = s("classifier_dropout", kind=OPTIONAL_NUMBER)
    pooler = "tanh" if architecture.endswith(("Model", "ForMultipleChoice")) else "dropout_tanh"
    own = {"first_position": first, "max_len": fields["max_len"] - first, "pooler": pooler}
    return BertConfig(**fields | own, classifier_dropout=dropout)


def write_roberta(c: BertConfig) -> JsonObject:
    return write_bert(c) | {"pad_token_id": c.first_position - 1, "bos_token_id": 0, "eos_token_id": 2}


def roberta_heads(config: BertConfig) -> dict[str, list[ParamMap]]:
    return task_maps(weight_bias("pooler", "pooler.dense"), "classifier.out_proj") | {
        "class_pooler": weight_bias("pooler", "classifier.dense", prefixed=False),
        "mlm": mlm_maps("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
    }


def roberta_architectures(name: str) -> dict[str, tuple[str, ...]]:
    return architectures(name, ("pooler",), class_pooler="class_pooler")


ROBERTA = Family(
    "roberta", "roberta.", BertConfig, is_roberta, read_roberta, write_roberta, bert_body, roberta_heads,
    roberta_architectures("Roberta"),
    tied_output={
        "lm_head.decoder.weight": "embeddings.word_embeddings.weight", "lm_head.decoder.bias": "lm_head.bias"
    },
    skipped=SKIPPED, optional=("pooler",),
)  # fmt: skip


def relative(model_type: str, name: str) -> Family[BertConfig]:
    """A family that differs from RoBERTa in names and defaults alone; it is written only where it is asked for."""
    return dataclasses.replace(
        ROBERTA, model_type=model_type, represents=lambda config: False, architectures=roberta_architectures(name)
    )


XLM_ROBERTA, CAMEMBERT = relative("xlm-roberta", "XLMRoberta"), relative("camembert", "Camembert")


# -- DistilBERT -------------------------------------------------------------------------------------------------------

DISTILBERT_LAYER = (
    "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "sa_layer_norm", "ffn.lin1",
    "ffn.lin2", "output_layer_norm",
)  # fmt: skip


def read_distilbert(s: Settings, architecture: str) -> BertConfig:
    s("sinusoidal_pos_embds", kind=bool)  # only how the table of positions was initialised
    dropouts = {
        "DistilBertForSequenceClassification": "seq_classif_dropout", "DistilBertForQuestionAnswering": "qa_dropout"
    }  # fmt: skip
    task = {name: s(name, kind=NUMBER) for name in dropouts.values()}
    return BertConfig(
        **common(s, "activation"), d_model=s("dim"), num_layers=s("n_layers"), num_heads=s("n_heads"),
        d_ff=s("hidden_dim"), max_len=s("max_position_embeddings"), num_types=0, dropout=s("dropout", kind=NUMBER),
        attention_dropout=s("attention_dropout", kind=NUMBER), pooler="relu",
        classifier_dropout=task.get(dropouts.get(architecture)),
    )  # fmt: skip


def write_distilbert(c: BertConfig) -> JsonObject:
    task = c.dropout if c.classifier_dropout is None else c.classifier_dropout
    return {
        "vocab_size": c.vocab_size, "dim": c.d_model, "n_layers": c.num_layers, "n_heads": c.num_heads,
        "hidden_dim": c.d_ff, "max_position_embeddings": c.max_len, "activation": NAMES[c.activation],
        "dropout": c.dropout, "attention_dropout": c.attention_dropout, "initializer_range": c.stddev,
        "seq_classif_dropout": task, "qa_dropout": task, "sinusoidal_pos_embds": False, "pad_token_id": 0,
    }  # fmt: skip


def distilbert_body(config: BertConfig) -> list[ParamMap]:
    layers = layer_maps("transformer.layer.{l}", DISTILBERT_LAYER, "encoder", range(config.num_layers))
    return [*embeddings(config), *layers]


def distilbert_heads(config: BertConfig) -> dict[str, list[ParamMap]]:
    return task_maps(weight_bias("pooler", "pre_classifier", prefixed=False)) | {
        "mlm": mlm_maps("vocab_transform", "vocab_layer_norm", "vocab_projector.bias")
    }


DISTILBERT = Family(
    "distilbert", "distilbert.", BertConfig, is_distilbert, read_distilbert, write_distilbert, distilbert_body,
    distilbert_heads,
    architectures("DistilBert", ()),
    tied_output={"vocab_projector.weight": "embeddings.word_embeddings.weight"}, skipped=SKIPPED,
)  # fmt: skip
