"""GPT-2."""

import logging

import numpy as np

from bertgpt.convert.bert import norm, weight_bias
from bertgpt.convert.core import COPY, FUSED_HEADS, FUSED_HEADS_BIAS, Family, Layout, ParamMap
from bertgpt.convert.settings import ACTIVATIONS, NAMES, NUMBER, OPTIONAL_INT, Settings
from bertgpt.models.gpt import GptConfig
from bertgpt.types import JsonObject, UserError

log = logging.getLogger(__name__)


def read_gpt2(s: Settings, architecture: str) -> GptConfig:
    s.must_be("scale_attn_weights", True)
    s.must_be("scale_attn_by_inverse_layer_idx", False)
    s.must_be("reorder_and_upcast_attn", False)
    s.must_be("add_cross_attention", False)
    s.must_be("is_decoder", False, True)
    s.must_be("is_encoder_decoder", False)
    s("tie_word_embeddings", kind=bool)  # the tensors say whether they are tied
    width, inner = s("n_embd"), s("n_inner", kind=OPTIONAL_INT)
    dropout, embedding_dropout = s("resid_pdrop", kind=NUMBER), s("embd_pdrop", kind=NUMBER)
    if embedding_dropout != dropout:
        log.warning("%s: embd_pdrop=%s: training uses resid_pdrop=%s in its place", s.file, embedding_dropout, dropout)
    return GptConfig(
        vocab_size=s("vocab_size"),
        d_model=width,
        num_layers=s("n_layer"),
        num_heads=s("n_head"),
        d_ff=4 * width if inner is None else inner,
        max_len=s("n_positions"),
        activation=s.one_of("activation_function", ACTIVATIONS),
        norm_eps=s("layer_norm_epsilon", kind=NUMBER),
        dropout=dropout,
        attention_dropout=s("attn_pdrop", kind=NUMBER),
        stddev=s("initializer_range", kind=NUMBER),
    )


def write_gpt2(c: GptConfig) -> JsonObject:
    if c.local_window is not None:
        raise UserError(f"gpt2: local_window={c.local_window} has no counterpart in a GPT-2 directory")
    end = 50_256 if c.vocab_size > 50_256 else None  # GPT-2's; of another vocabulary, only its tokenizer knows
    return {
        "vocab_size": c.vocab_size,
        "n_embd": c.d_model,
        "n_layer": c.num_layers,
        "n_head": c.num_heads,
        "n_inner": c.d_ff,
        "n_positions": c.max_len,
        "activation_function": NAMES[c.activation],
        "layer_norm_epsilon": c.norm_eps,
        "resid_pdrop": c.dropout,
        "embd_pdrop": c.dropout,
        "attn_pdrop": c.attention_dropout,
        "initializer_range": c.stddev,
        "bos_token_id": end,
        "eos_token_id": end,
    }


def gpt2_body(config: GptConfig) -> list[ParamMap]:
    more = {"layers": range(config.num_layers)}
    fused = tuple(f"decoder/attention/{name}" for name in ("query", "key", "value"))
    return [
        ParamMap("embeddings/token", "wte.weight"),
        ParamMap("embeddings/position", "wpe.weight"),
        *norm("decoder/attention_norm", "h.{l}.ln_1", **more),
        ParamMap(tuple(f"{path}/kernel" for path in fused), "h.{l}.attn.c_attn.weight", FUSED_HEADS, **more),
        ParamMap(tuple(f"{path}/bias" for path in fused), "h.{l}.attn.c_attn.bias", FUSED_HEADS_BIAS, **more),
        # Conv1D stores [in, out], as the target does: no transposition.
        *weight_bias("decoder/attention/out", "h.{l}.attn.c_proj", COPY, **more),
        *norm("decoder/mlp_norm", "h.{l}.ln_2", **more),
        *weight_bias("decoder/mlp/up", "h.{l}.mlp.c_fc", COPY, **more),
        *weight_bias("decoder/mlp/down", "h.{l}.mlp.c_proj", COPY, **more),
        *norm("final_norm", "ln_f"),
    ]


# The classifier has no bias there; `equivalent.absorb_bias` makes ours zero.
SCORE = Layout(lambda x, h: (x.T, np.zeros(x.shape[0], np.float32)), lambda parts, h: parts[0].T)


def gpt2_heads(config: GptConfig) -> dict[str, list[ParamMap]]:
    paths = ("classifier/dense/kernel", "classifier/dense/bias")
    return {"lm": [], "classifier": [ParamMap(paths, "score.weight", SCORE, prefixed=False)]}


GPT2 = Family(
    "gpt2", "transformer.", GptConfig, lambda config: True, read_gpt2, write_gpt2, gpt2_body, gpt2_heads,
    {"GPT2Model": (), "GPT2LMHeadModel": ("lm",), "GPT2ForSequenceClassification": ("classifier",)},
    tied_output={"lm_head.weight": "wte.weight"}, skipped=(".attn.bias", ".attn.masked_bias"),
)  # fmt: skip
