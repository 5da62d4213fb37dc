"""Captioners: `VisionEncoderDecoderModel` of a ViT and a GPT-2 or BERT with cross-attention."""

import numpy as np

from bertgpt.convert.bert import BERT, bert_body, is_bert, layer_maps, mlm_maps, norm, weight_bias
from bertgpt.convert.core import COPY, HEADS_BIAS, Family, Layout, ParamMap
from bertgpt.convert.gpt import GPT2, gpt2_body
from bertgpt.convert.settings import OPTIONAL_INT, Settings, shown
from bertgpt.convert.vit import VIT, vit_body
from bertgpt.models.bert import BertConfig
from bertgpt.models.captioner import CaptionerConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.types import JsonObject, UserError

DECODERS = {family.model_type: family for family in (GPT2, BERT)}
# GPT-2 stores [in, out]; keys and values of cross-attention are concatenated.
QUERY = Layout(lambda x, h: x.reshape(x.shape[0], h, -1), lambda x, h: x.reshape(x.shape[0], -1))
KEY_VALUE = Layout(
    lambda x, h: tuple(part.reshape(x.shape[0], h, -1) for part in np.split(x, 2, axis=-1)),
    lambda parts, h: np.concatenate([part.reshape(part.shape[0], -1) for part in parts], axis=1),
)
KEY_VALUE_BIAS = Layout(
    lambda x, h: tuple(part.reshape(h, -1) for part in np.split(x, 2, axis=-1)),
    lambda parts, h: np.concatenate([part.reshape(-1) for part in parts]),
)
CROSS = (
    "self.query", "self.key", "self.value", "output.dense", "output.LayerNorm"
)  # fmt: skip


def read_captioner(s: Settings, architecture: str) -> CaptionerConfig:
    s.must_be("is_encoder_decoder", True)
    s("tie_word_embeddings", kind=(bool, type(None)))  # of the whole, which has no output layer: the decoder says it
    vision = part(s, "encoder", {"vit": VIT})
    language = part(s, "decoder", DECODERS)
    for key in ("is_decoder", "add_cross_attention"):
        language.must_be(key, True)
        del language.values[key]
    language.must_be("tie_word_embeddings", True)
    family = DECODERS[language.values["model_type"]]
    starts = [s("decoder_start_token_id", kind=OPTIONAL_INT), language.values.get("decoder_start_token_id"),
              language.values.get("bos_token_id")]  # fmt: skip
    config = CaptionerConfig(
        VIT.read_config(vision, "ViTModel"),
        family.read_config(language, "GPT2LMHeadModel" if family is GPT2 else "BertLMHeadModel"),
        start_id=next((start for start in starts if isinstance(start, int)), 0),
    )
    for inner in (vision, language):
        inner.finish()
    return config


def part(s: Settings, name: str, families: dict[str, Family]) -> Settings:
    """The settings of encoder or decoder. Errors: UserError, if it is of another family."""
    values = s(name, kind=dict)
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in families:
        raise UserError(f"{s.file}: {name}.model_type={shown(kind)} is not supported; only {', '.join(families)}")
    return families[kind].settings(values, f"{s.file}: {name}")


def write_captioner(c: CaptionerConfig) -> JsonObject:
    """The fields of both parts.

    Raises:
      UserError: a part has a feature that its family does not have there.
    """
    if isinstance(c.language, BertConfig) and not (is_bert(c.language) and c.language.num_types):
        raise UserError(
            f"export: language.num_types={c.language.num_types}, pooler={c.language.pooler!r},"
            f" first_position={c.language.first_position}: only a BERT with token types, and positions from 0, has a"
            " counterpart there"
        )
    family = GPT2 if isinstance(c.language, GptConfig) else BERT
    decoder = {"model_type": family.model_type, "is_decoder": True, "add_cross_attention": True}
    return {
        "is_encoder_decoder": True,
        "encoder": VIT.write_config(c.vision) | {"model_type": "vit"},
        "decoder": family.write_config(c.language) | decoder | {"tie_word_embeddings": True},
        "decoder_start_token_id": c.start_id,
        "tie_word_embeddings": False,
    }


def captioner_body(c: CaptionerConfig) -> list[ParamMap]:
    heads, layers = c.language.num_heads, range(c.language.num_layers)
    if isinstance(c.language, GptConfig):
        table = [entry._replace(source=f"transformer.{entry.source}") for entry in gpt2_body(c.language)]
        cross, source = "decoder/cross_attention", "transformer.h.{l}.crossattention"
        fused = tuple(f"{cross}/{name}" for name in ("key", "value"))
        kernels, biases = (tuple(f"{path}/{name}" for path in fused) for name in ("kernel", "bias"))
        table += [
            *weight_bias(f"{cross}/query", f"{source}.q_attn", QUERY, HEADS_BIAS, layers=layers),
            ParamMap(kernels, f"{source}.c_attn.weight", KEY_VALUE, layers),
            ParamMap(biases, f"{source}.c_attn.bias", KEY_VALUE_BIAS, layers),
            *weight_bias(f"{cross}/out", f"{source}.c_proj", COPY, layers=layers),
            *norm(f"{cross}_norm", "transformer.h.{l}.ln_cross_attn", layers=layers),
        ]
    else:
        table = [entry._replace(source=f"bert.{entry.source}") for entry in bert_body(c.language)]
        # The table of a whole layer, of which cross-attention has the first half.
        rows = layer_maps("bert.encoder.layer.{l}.crossattention", (*CROSS, "", "", ""), "encoder", layers)
        table += [
            row._replace(target=row.target.replace("encoder/attention", "encoder/cross_attention"))
            for row in rows
            if row.target.startswith("encoder/attention")
        ]
        transform = "cls.predictions.transform"
        table += mlm_maps(f"{transform}.dense", f"{transform}.LayerNorm", "cls.predictions.bias")
    decoder = [
        entry._replace(
            target=tuple(f"language/{path}" for path in entry.paths)
            if isinstance(entry.target, tuple)
            else f"language/{entry.target}",
            source=f"decoder.{entry.source}",
            heads=heads,
        )
        for entry in table
    ]
    joined = [] if c.vision.d_model == c.language.d_model else weight_bias("projector", "enc_to_dec_proj")
    return [*vit_body(c.vision, "vision/", "encoder."), *decoder, *(row._replace(heads=heads) for row in joined)]


def captioner_heads(c: CaptionerConfig) -> dict[str, list[ParamMap]]:
    pooler = weight_bias("vision/pooler", "encoder.pooler.dense")  # not read, but most files have it
    return {"lm": [], "pooler": [row._replace(heads=c.vision.num_heads) for row in pooler]}


VISION_ENCODER_DECODER = Family(
    "vision-encoder-decoder", "", CaptionerConfig, lambda config: True, read_captioner, write_captioner,
    captioner_body, captioner_heads,
    {"VisionEncoderDecoderModel": ("lm", "pooler")},
    tied_output={
        "decoder.lm_head.weight": "decoder.transformer.wte.weight",
        "decoder.cls.predictions.decoder.weight": "decoder.bert.embeddings.word_embeddings.weight",
        "decoder.cls.predictions.decoder.bias": "decoder.cls.predictions.bias",
    },
    skipped=("attn.bias", "attn.masked_bias", "crossattention.bias", "crossattention.masked_bias", "position_ids"),
    optional=("pooler",), text="decoder",
)  # fmt: skip
