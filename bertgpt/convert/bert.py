"""BERT and its relatives: RoBERTa, DistilBERT, ALBERT, ELECTRA."""

from collections.abc import Sequence
from typing import TypedDict, Unpack

from bertgpt.convert.core import COPY, HEADS, HEADS_BIAS, LINEAR, Family, Layout, ParamMap, Settings
from bertgpt.models.bert import BertConfig
from bertgpt.types import JsonObject, UserError

ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu",
    "swish": "silu",
}  # fmt: skip
NAMES = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu"}
NUMBER = (int, float)


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
        "tagger": weight_bias("tagger/dense", "classifier", prefixed=False),
        "span": weight_bias("span_head/dense", "qa_outputs", prefixed=False),
    }


def bert_heads(config: BertConfig) -> dict[str, list[ParamMap]]:
    transform = "cls.predictions.transform"
    return task_maps(weight_bias("pooler", "pooler.dense")) | {
        "mlm": mlm_maps(f"{transform}.dense", f"{transform}.LayerNorm", "cls.predictions.bias"),
        "nsp": weight_bias("nsp_head/dense", "cls.seq_relationship", prefixed=False),
    }


def common(s: Settings, architecture: str | None, activation: str = "hidden_act") -> JsonObject:
    """Fields that all families share, and checks of settings that are not supported in any."""
    s.must_be("position_embedding_type", "absolute")
    s.must_be("pruned_heads", {}, None)
    s.must_be("is_decoder", False)
    s.must_be("is_encoder_decoder", False)
    s.must_be("add_cross_attention", False)
    s.must_be("cross_attention_hidden_size", None)
    s.must_be("tie_word_embeddings", True)
    return {
        "vocab_size": s("vocab_size"),
        "activation": s.one_of(activation, ACTIVATIONS),
        "stddev": s("initializer_range", kind=NUMBER, default=0.02),
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
        "norm_eps": s("layer_norm_eps", kind=NUMBER, default=1e-12),
    }


def read_bert(s: Settings, architecture: str | None) -> BertConfig:
    dropout = s("classifier_dropout", kind=(*NUMBER, type(None)), default=None)
    return BertConfig(**common(s, architecture), **transformer(s), classifier_dropout=dropout)


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


def architectures(name: str, base: tuple[str, ...], task_pooler: bool = True) -> dict[str, tuple[str, ...]]:
    """Architecture → heads, with the names common to all of these families."""
    pooled = ("pooler", "classifier") if task_pooler else ("classifier",)
    return {
        f"{name}Model": base,
        f"{name}ForMaskedLM": ("mlm",),
        f"{name}ForSequenceClassification": pooled,
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
    MLM_TIED, SKIPPED, ("pooler",),
)  # fmt: skip


# -- RoBERTa ----------------------------------------------------------------------------------------------------------


def read_roberta(s: Settings, architecture: str | None) -> BertConfig:
    fields = common(s, architecture) | transformer(s)
    if architecture == "RobertaForMaskedLM":
        s.must_be("hidden_act", "gelu")  # its head always uses the exact GELU, whatever the blocks use
    first = s("pad_token_id", default=1) + 1
    dropout = s("classifier_dropout", kind=(*NUMBER, type(None)), default=None)
    pooler = "tanh" if architecture == "RobertaModel" else "dropout_tanh"
    own = {"first_position": first, "max_len": fields["max_len"] - first, "pooler": pooler}
    return BertConfig(**fields | own, classifier_dropout=dropout)


def write_roberta(c: BertConfig) -> JsonObject:
    return write_bert(c) | {"pad_token_id": c.first_position - 1, "bos_token_id": 0, "eos_token_id": 2}


def roberta_heads(config: BertConfig) -> dict[str, list[ParamMap]]:
    dense = weight_bias("pooler", "classifier.dense", prefixed=False)
    own = weight_bias("pooler", "pooler.dense")
    return task_maps(own if config.pooler == "tanh" else dense, "classifier.out_proj") | {
        "mlm": mlm_maps("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")
    }


ROBERTA = Family(
    "roberta", "roberta.", BertConfig, is_roberta, read_roberta, write_roberta, bert_body, roberta_heads,
    architectures("Roberta", ("pooler",)),
    {"lm_head.decoder.weight": "embeddings.word_embeddings.weight", "lm_head.decoder.bias": "lm_head.bias"},
    SKIPPED, ("pooler",),
)  # fmt: skip


# -- DistilBERT -------------------------------------------------------------------------------------------------------

DISTILBERT_LAYER = (
    "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "sa_layer_norm", "ffn.lin1",
    "ffn.lin2", "output_layer_norm",
)  # fmt: skip


def read_distilbert(s: Settings, architecture: str | None) -> BertConfig:
    s.must_be("sinusoidal_pos_embds", False)
    dropouts = {
        "DistilBertForSequenceClassification": "seq_classif_dropout", "DistilBertForQuestionAnswering": "qa_dropout"
    }  # fmt: skip
    task = {name: s(name, kind=NUMBER, default=None) for name in dropouts.values()}
    return BertConfig(
        **common(s, architecture, "activation"), d_model=s("dim"), num_layers=s("n_layers"), num_heads=s("n_heads"),
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
    architectures("DistilBert", ()), {"vocab_projector.weight": "embeddings.word_embeddings.weight"}, SKIPPED,
)  # fmt: skip


# -- ALBERT and ELECTRA: embeddings of another width ------------------------------------------------------------------


def projection(config: BertConfig, source: str, always: bool) -> list[ParamMap]:
    rows = weight_bias("embedding_projection", source)
    return rows if config.embed_dim != config.d_model or always else []


ALBERT_LAYER = (
    "attention.query", "attention.key", "attention.value", "attention.dense", "attention.LayerNorm", "ffn",
    "ffn_output", "full_layer_layer_norm",
)  # fmt: skip


def read_albert(s: Settings, architecture: str | None) -> BertConfig:
    s.must_be("inner_group_num", 1)
    fields = common(s, architecture) | transformer(s)
    width = s("embedding_size")
    if width == fields["d_model"]:
        raise UserError(f"{s.file}: embedding_size={width} is hidden_size; only narrower embeddings are supported")
    return BertConfig(
        **fields, embed_dim=width, shared_groups=s("num_hidden_groups", default=1),
        classifier_dropout=s("classifier_dropout_prob", kind=NUMBER, default=0.1),
    )  # fmt: skip


def write_albert(c: BertConfig) -> JsonObject:
    return write_transformer(c) | {
        "embedding_size": c.embed_dim,
        "num_hidden_groups": c.shared_groups,
        "inner_group_num": 1,
        "classifier_dropout_prob": c.dropout if c.classifier_dropout is None else c.classifier_dropout,
    }


def albert_body(config: BertConfig) -> list[ParamMap]:
    source = "encoder.albert_layer_groups.{l}.albert_layers.0"
    return [
        *embeddings(config),
        *projection(config, "encoder.embedding_hidden_mapping_in", always=True),
        *layer_maps(source, ALBERT_LAYER, "encoder/block", range(config.shared_groups)),
    ]


def albert_heads(config: BertConfig) -> dict[str, list[ParamMap]]:
    return task_maps(weight_bias("pooler", "pooler")) | {
        "mlm": mlm_maps("predictions.dense", "predictions.LayerNorm", "predictions.bias"),
        "nsp": weight_bias("nsp_head/dense", "sop_classifier.classifier", prefixed=False),
    }


ALBERT = Family(
    "albert", "albert.", BertConfig, is_albert, read_albert, write_albert, albert_body, albert_heads,
    architectures("Albert", ("pooler",)) | {"AlbertForPreTraining": ("pooler", "mlm", "nsp")},
    {
        "predictions.decoder.weight": "embeddings.word_embeddings.weight",
        "predictions.decoder.bias": "predictions.bias",
    },
    SKIPPED, ("pooler",),
)  # fmt: skip


def read_electra(s: Settings, architecture: str | None) -> BertConfig:
    fields = common(s, architecture) | transformer(s)
    if architecture == "ElectraForMaskedLM":
        s.must_be("hidden_act", "gelu")  # its head always uses the exact GELU, whatever the blocks use
    dropout = s("classifier_dropout", kind=(*NUMBER, type(None)), default=None)
    options = {"embed_dim": s("embedding_size"), "pooler": "dropout_gelu", "classifier_dropout": dropout}
    return BertConfig(**fields, **options)


def write_electra(c: BertConfig) -> JsonObject:
    return write_bert(c) | {"embedding_size": c.embed_dim or c.d_model}


def electra_body(config: BertConfig) -> list[ParamMap]:
    return [*bert_body(config), *projection(config, "embeddings_project", always=False)]


def electra_heads(config: BertConfig) -> dict[str, list[ParamMap]]:
    predictions = "discriminator_predictions"
    return task_maps(weight_bias("pooler", "classifier.dense", prefixed=False), "classifier.out_proj") | {
        "mlm": mlm_maps("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias"),
        "rtd": [
            *weight_bias("rtd_head/dense", f"{predictions}.dense", prefixed=False),
            *weight_bias("rtd_head/score", f"{predictions}.dense_prediction", prefixed=False),
        ],
    }


ELECTRA = Family(
    "electra", "electra.", BertConfig, is_electra, read_electra, write_electra, electra_body, electra_heads,
    architectures("Electra", ()) | {"ElectraForPreTraining": ("rtd",)},
    {"generator_lm_head.weight": "embeddings.word_embeddings.weight"}, SKIPPED,
)  # fmt: skip
