"""ELECTRA: generator or discriminator."""

from bertgpt.convert.bert import (
    SKIPPED,
    architectures,
    bert_body,
    common,
    is_electra,
    mlm_maps,
    projection,
    task_maps,
    transformer,
    weight_bias,
    write_bert,
)
from bertgpt.convert.core import Family, ParamMap
from bertgpt.convert.settings import EXACT_GELU, OPTIONAL_NUMBER, Settings
from bertgpt.models.bert import BertConfig
from bertgpt.types import JsonObject


def read_electra(s: Settings, architecture: str) -> BertConfig:
    fields = common(s) | transformer(s)
    if architecture == "ElectraForMaskedLM":
        s.must_be("hidden_act", *EXACT_GELU)  # its head always uses the exact GELU, whatever the blocks use
    if architecture == "ElectraForMultipleChoice":
        s.must_be("summary_type", "first")
        s.must_be("summary_use_proj", True)
        s.must_be("summary_activation", *EXACT_GELU)
    dropout = s("classifier_dropout", kind=OPTIONAL_NUMBER)
    options = {"embed_dim": s("embedding_size"), "pooler": "dropout_gelu", "classifier_dropout": dropout}
    return BertConfig(**fields, **options)


def write_electra(c: BertConfig) -> JsonObject:
    return write_bert(c) | {"embedding_size": c.embed_dim or c.d_model}


def electra_body(config: BertConfig) -> list[ParamMap]:
    return [*bert_body(config), *projection(config, "embeddings_project", always=False)]


def electra_heads(config: BertConfig) -> dict[str, list[ParamMap]]:
    predictions = "discriminator_predictions"
    return task_maps(weight_bias("pooler", "classifier.dense", prefixed=False), "classifier.out_proj") | {
        "choice_pooler": weight_bias("pooler", "sequence_summary.summary", prefixed=False),
        "mlm": mlm_maps("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias"),
        "rtd": [
            *weight_bias("rtd_head/dense", f"{predictions}.dense", prefixed=False),
            *weight_bias("rtd_head/score", f"{predictions}.dense_prediction", prefixed=False),
        ],
    }


ELECTRA = Family(
    "electra", "electra.", BertConfig, is_electra, read_electra, write_electra, electra_body, electra_heads,
    architectures("Electra", (), choice_pooler="choice_pooler") | {"ElectraForPreTraining": ("rtd",)},
    tied_output={"generator_lm_head.weight": "embeddings.word_embeddings.weight"}, skipped=SKIPPED,
)  # fmt: skip
