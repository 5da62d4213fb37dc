"""ALBERT."""

from bertgpt.convert.bert import (
    SKIPPED,
    architectures,
    common,
    embeddings,
    is_albert,
    layer_maps,
    mlm_maps,
    projection,
    task_maps,
    transformer,
    weight_bias,
    write_transformer,
)
from bertgpt.convert.core import Family, ParamMap
from bertgpt.convert.settings import NUMBER, Settings
from bertgpt.models.bert import BertConfig
from bertgpt.types import JsonObject, UserError

ALBERT_LAYER = (
    "attention.query", "attention.key", "attention.value", "attention.dense", "attention.LayerNorm", "ffn",
    "ffn_output", "full_layer_layer_norm",
)  # fmt: skip


def read_albert(s: Settings, architecture: str) -> BertConfig:
    s.must_be("inner_group_num", 1)
    fields = common(s) | transformer(s)
    width = s("embedding_size")
    if width == fields["d_model"]:
        raise UserError(f"{s.file}: embedding_size={width} is hidden_size; only narrower embeddings are supported")
    return BertConfig(
        **fields, embed_dim=width, shared_groups=s("num_hidden_groups"),
        classifier_dropout=s("classifier_dropout_prob", kind=NUMBER),
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
    tied_output={
        "predictions.decoder.weight": "embeddings.word_embeddings.weight",
        "predictions.decoder.bias": "predictions.bias",
    },
    skipped=SKIPPED, optional=("pooler",),
)  # fmt: skip
