"""T5, T5 v1.1, mT5 and Switch Transformer."""

import dataclasses

from bertgpt.convert.core import COPY, HEADS, LINEAR, Family, ParamMap
from bertgpt.convert.settings import ACTIVATIONS, NAMES, NUMBER, OPTIONAL_INT, Settings
from bertgpt.layers.moe import Experts
from bertgpt.models.t5 import T5Config
from bertgpt.types import JsonObject, UserError

# feed_forward_proj → (activation, gated). “gated-gelu” means the tanh form, “gelu” the exact one.
PROJECTIONS = {name: (activation, False) for name, activation in ACTIVATIONS.items()}
PROJECTIONS |= {f"gated-{name}": (activation, True) for name, activation in ACTIVATIONS.items()}
PROJECTIONS["gated-gelu"] = ("gelu_tanh", True)
PROJECTION_NAMES = {(activation, False): name for activation, name in NAMES.items()}
PROJECTION_NAMES |= {(activation, True): f"gated-{name}" for activation, name in NAMES.items()}
PROJECTION_NAMES |= {("gelu", True): "gated-gelu_python", ("gelu_tanh", True): "gated-gelu"}


def common(s: Settings) -> JsonObject:
    s.must_be("is_decoder", False)
    s.must_be("is_encoder_decoder", True)
    s.must_be("add_cross_attention", False)
    num_layers = s("num_layers")
    decoder_layers = s("num_decoder_layers", kind=OPTIONAL_INT)
    start, pad = s("decoder_start_token_id", kind=OPTIONAL_INT), s("pad_token_id", kind=OPTIONAL_INT)
    return {
        "vocab_size": s("vocab_size"),
        "d_model": s("d_model"),
        "num_layers": num_layers,
        "num_decoder_layers": num_layers if decoder_layers is None else decoder_layers,
        "num_heads": s("num_heads"),
        "head_dim": s("d_kv"),
        "d_ff": s("d_ff"),
        "num_buckets": s("relative_attention_num_buckets"),
        "max_distance": s("relative_attention_max_distance"),
        "norm_eps": s("layer_norm_epsilon", kind=NUMBER),
        "dropout": s("dropout_rate", kind=NUMBER),
        "start_id": (pad or 0) if start is None else start,
    }


def read_feed_forward(s: Settings) -> JsonObject:
    for name in ("dense_act_fn", "is_gated_act"):  # derived from feed_forward_proj
        s.used.add(name)
    activation, gated = s.one_of("feed_forward_proj", PROJECTIONS)
    return {"activation": activation, "gated": gated}


def read_t5(s: Settings, architecture: str) -> T5Config:
    # In v1.0 the output matrix is the embedding, and its input is scaled. In v1.1 neither holds, which files say by
    # tie_word_embeddings=False; transformers 5 writes scale_decoder_outputs=False for it.
    tied = s("scale_decoder_outputs" if "scale_decoder_outputs" in s.values else "tie_word_embeddings", kind=bool)
    s.used.add("tie_word_embeddings")
    return T5Config(**common(s), **read_feed_forward(s), tied=tied)


def read_mt5(s: Settings, architecture: str) -> T5Config:
    s("tie_word_embeddings", kind=bool)  # like v1.1, whatever it says
    return T5Config(**common(s), **read_feed_forward(s), tied=False)


def write_mt5(c: T5Config) -> JsonObject:
    if c.tied:
        raise UserError("mt5: tied=True has no counterpart in an mT5 directory")
    return write_t5(c)


def write_common(c: T5Config) -> JsonObject:
    return {
        "vocab_size": c.vocab_size,
        "d_model": c.d_model,
        "d_kv": c.head_dim,
        "d_ff": c.d_ff,
        "num_layers": c.num_layers,
        "num_decoder_layers": c.num_decoder_layers,
        "num_heads": c.num_heads,
        "relative_attention_num_buckets": c.num_buckets,
        "relative_attention_max_distance": c.max_distance,
        "dropout_rate": c.dropout,
        "layer_norm_epsilon": c.norm_eps,
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": c.start_id,
    }


def write_t5(c: T5Config) -> JsonObject:
    if (c.activation, c.gated) not in PROJECTION_NAMES:
        raise UserError(f"t5: activation={c.activation!r} with gated={c.gated} has no name in a T5 directory")
    return write_common(c) | {
        "feed_forward_proj": PROJECTION_NAMES[c.activation, c.gated],
        "tie_word_embeddings": c.tied,
    }


def read_switch(s: Settings, architecture: str) -> T5Config:
    s.must_be("router_bias", False)
    s.must_be("router_dtype", "float32")
    s.must_be("router_ignore_padding_tokens", False)
    s.must_be("tie_word_embeddings", True)
    s.must_be("is_gated_act", False)
    s.must_be("router_type", "tokens_masked")
    for name in ("encoder_sparse_step", "decoder_sparse_step"):  # derived from the numbers of sparse layers
        s.used.add(name)
    fields = common(s)
    every = []
    for side, layers in (("encoder", fields["num_layers"]), ("decoder", fields["num_decoder_layers"])):
        sparse = s(f"num_sparse_{side}_layers")
        if sparse < 1 or layers % sparse:
            raise UserError(f"{s.file}: num_sparse_{side}_layers={sparse} of {layers} layers is not supported")
        every.append(layers // sparse)
    if every[0] != every[1]:
        raise UserError(f"{s.file}: one sparse layer in {every[0]} in the encoder, in {every[1]} in the decoder")
    activation = s.one_of("dense_act_fn", ACTIVATIONS)
    s.must_be("feed_forward_proj", s("dense_act_fn", kind=str))
    experts = Experts(
        num_experts=s("num_experts"), every=every[0], fixed_capacity=s("expert_capacity"),
        jitter=s("router_jitter_noise", kind=NUMBER), dropout=fields["dropout"],
    )  # fmt: skip
    return T5Config(**fields, activation=activation, experts=experts, init_scale=0.1, truncated_init=True)


def write_switch(c: T5Config) -> JsonObject:
    if not c.tied:
        raise UserError("switch_transformers: tied=False has no counterpart in a Switch directory")
    # The format has no capacity factor: write the capacity for sequences of max_len tokens.
    capacity = c.experts.fixed_capacity or max(1, round(c.experts.eval_capacity * c.max_len / c.experts.num_experts))
    return write_common(c) | {
        "num_sparse_encoder_layers": c.num_layers // c.experts.every,
        "num_sparse_decoder_layers": c.num_decoder_layers // c.experts.every,
        "num_experts": c.experts.num_experts,
        "expert_capacity": capacity,
        "router_jitter_noise": c.experts.jitter,
        "dense_act_fn": PROJECTION_NAMES[c.activation, False],
    }


def attention(target: str, source: str, layers: range) -> list[ParamMap]:
    names = (("query", "q", HEADS), ("key", "k", HEADS), ("value", "v", HEADS), ("out", "o", LINEAR))
    return [ParamMap(f"{target}/{a}/kernel", f"{source}.{b}.weight", layout, layers) for a, b, layout in names]


def feed_forward(c: T5Config, target: str, source: str, layers: range, sparse: bool) -> list[ParamMap]:
    if not sparse:
        inner = "mlp" if c.experts else "DenseReluDense"
        up = [("gate", "wi_0"), ("up", "wi_1")] if c.gated else [("up", "wi")]
        return [
            ParamMap(f"{target}/mlp/{a}/kernel", f"{source}.{inner}.{b}.weight", LINEAR, layers)
            for a, b in [*up, ("down", "wo")]
        ]
    expert = f"{source}.mlp.experts.expert_{{e}}"
    return [
        ParamMap(f"{target}/mlp/router", f"{source}.mlp.router.classifier.weight", LINEAR, layers),
        ParamMap(f"{target}/mlp/up", f"{expert}.wi.weight", LINEAR, layers, c.experts.num_experts),
        ParamMap(f"{target}/mlp/down", f"{expert}.wo.weight", LINEAR, layers, c.experts.num_experts),
    ]


def blocks(c: T5Config, side: str, num_layers: int) -> list[ParamMap]:
    every = c.experts.every if c.experts else 1
    rows = []
    for i in range(every):
        target, layers = f"{side}/block_{i}" if c.experts else side, range(i, num_layers, every)

        def sublayer(number: int, name: str, target: str = target, layers: range = layers) -> tuple[str, ParamMap]:
            source = f"{side}.block.{{l}}.layer.{number}"
            return source, ParamMap(f"{target}/{name}_norm/scale", f"{source}.layer_norm.weight", COPY, layers)

        source, row = sublayer(0, "attention")
        rows += [row, *attention(f"{target}/attention", f"{source}.SelfAttention", layers)]
        if side == "decoder":
            source, row = sublayer(1, "cross_attention")
            rows += [row, *attention(f"{target}/cross_attention", f"{source}.EncDecAttention", layers)]
        source, row = sublayer(2 if side == "decoder" else 1, "mlp")
        sparse = c.experts is not None and i == min(1, every - 1)
        rows += [row, *feed_forward(c, target, source, layers, sparse)]
    bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return [
        *rows,
        ParamMap(f"{side}_bias/table", bias),
        ParamMap(f"{side}_norm/scale", f"{side}.final_layer_norm.weight"),
    ]


def body(c: T5Config) -> list[ParamMap]:
    head = [] if c.tied else [ParamMap("lm_head", "lm_head.weight", LINEAR, fallback="shared.weight")]
    encoder, decoder = blocks(c, "encoder", c.num_layers), blocks(c, "decoder", c.num_decoder_layers)
    return [ParamMap("token", "shared.weight"), *encoder, *decoder, *head]


TIED = {"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight"}
# Of T5, `tied` says so: v1.1 has a matrix of its own, which its table reads.
TIED_OUTPUT = {"lm_head.weight": "shared.weight"}
T5 = Family(
    "t5", "", T5Config, lambda config: config.experts is None, read_t5, write_t5, body, lambda config: {"lm": []},
    {"T5Model": (), "T5ForConditionalGeneration": ("lm",)}, TIED, TIED_OUTPUT,
    # Written by early conversions, read by no version.
    ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
)  # fmt: skip
MT5 = dataclasses.replace(
    T5, model_type="mt5", represents=lambda config: False, read_config=read_mt5, write_config=write_mt5,
    architectures={"MT5Model": (), "MT5ForConditionalGeneration": ("lm",)},
)  # fmt: skip
SWITCH = Family(
    "switch_transformers", "", T5Config, lambda config: config.experts is not None, read_switch,
    write_switch, body, lambda config: {"lm": []},
    {"SwitchTransformersModel": (), "SwitchTransformersForConditionalGeneration": ("lm",)}, TIED, TIED_OUTPUT,
)  # fmt: skip
