"""CLIP: `CLIPModel`, whose config.json has an object for each tower."""

import dataclasses

from bertgpt.convert.bert import layer_maps, norm
from bertgpt.convert.core import LINEAR, Family, Layout, ParamMap
from bertgpt.convert.defaults import CLIP_TEXT, CLIP_VISION
from bertgpt.convert.settings import ACTIVATIONS, NAMES, NUMBER, Settings, shown
from bertgpt.convert.vit import patch_kernel
from bertgpt.data.packing import template_of
from bertgpt.models.clip import CLIP_VIT_B32, ClipConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.vit import VitConfig
from bertgpt.types import JsonObject, UserError, Vocab

CLIP_LAYER = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "layer_norm1", "mlp.fc1",
    "mlp.fc2", "layer_norm2",
)  # fmt: skip
CLASS_TOKEN = Layout(lambda x, h: x[None], lambda x, h: x[0])
SCALAR = Layout(lambda x, h: x.reshape(()), lambda x, h: x.reshape(()))
LEGACY_END = 2
"""eos_token_id of files from before transformers 4.32, whatever the tokenizer: the text's vector is then the state of
the token with the highest id, which in CLIP's vocabulary is the end token"""


def read_clip(s: Settings, architecture: str) -> ClipConfig:
    s("initializer_factor", kind=NUMBER)  # used in training alone
    vision, text = (tower(s, name) for name in ("vision_config", "text_config"))
    width, channels = vision("hidden_size"), vision("num_channels")
    size, patch = vision("image_size"), vision("patch_size")
    end, vocab_size = text("eos_token_id"), text("vocab_size")
    config = ClipConfig(
        vision=VitConfig(
            **transformer(vision, width),
            image_size=(size, size),
            patch_size=patch,
            channels=channels,
            # Unless preprocessor_config.json says otherwise.
            image_mean=CLIP_VIT_B32.vision.image_mean if channels == 3 else (0.5,) * channels,
            image_std=CLIP_VIT_B32.vision.image_std if channels == 3 else (0.5,) * channels,
            pre_norm=True,
            patch_bias=False,
        ),
        text=GptConfig(
            **transformer(text, text("hidden_size")),
            vocab_size=vocab_size,
            max_len=text("max_position_embeddings"),
        ),
        projection_dim=s("projection_dim"),
        initial_log_scale=s("logit_scale_init_value", kind=NUMBER),
        end_id=vocab_size - 1 if end == LEGACY_END else end,
    )
    for part in (vision, text):
        part.finish()
    return config


def tower(s: Settings, name: str) -> Settings:
    """The fields of one tower. Those of `<name>_dict`, in old files, count more. Errors: UserError."""
    values: JsonObject = {}
    for key in (name, f"{name}_dict"):
        values |= (s(key, kind=(dict, type(None))) if key in s.values else None) or {}
    found = Settings(values, f"{s.file}: {name}", CLIP_TEXT if name == "text_config" else CLIP_VISION, {})
    found("projection_dim")  # that of the whole model counts
    found("initializer_factor", kind=NUMBER)
    found.must_be("dropout", 0.0)
    for key in ("is_decoder", "is_encoder_decoder", "add_cross_attention"):
        found.must_be(key, False)
    found.must_be("tie_word_embeddings", True, False)  # there is no output layer
    return found


def transformer(s: Settings, width: int) -> JsonObject:
    """The fields that both towers have."""
    return {
        "d_model": width,
        "num_layers": s("num_hidden_layers"),
        "num_heads": s("num_attention_heads"),
        "d_ff": s("intermediate_size"),
        "activation": s.one_of("hidden_act", ACTIVATIONS),
        "norm_eps": s("layer_norm_eps", kind=NUMBER),
        "dropout": 0.0,
        "attention_dropout": s("attention_dropout", kind=NUMBER),
        "stddev": s("initializer_range", kind=NUMBER),
    }


def with_end(config: ClipConfig, vocab: Vocab | None) -> ClipConfig:
    """With the token that ends a text, of a model that was trained to read a text's vector at its last token.

    Raises:
      UserError: the tokenizer begins texts with the same token, where transformers would read the vector.
    """
    if config.end_id is not None or vocab is None:
        return config
    template = template_of(vocab)
    if template.end in template.start:
        raise UserError(
            "export: texts begin and end with the same token, and transformers reads a text's vector at the first"
            " token that is the end token; train with another tokenizer, such as WordPiece"
        )
    return dataclasses.replace(config, end_id=template.end)


def write_clip(c: ClipConfig) -> JsonObject:
    """The fields of both towers.

    Raises:
      UserError: a tower has a feature that no `CLIPModel` has.
    """
    check_towers(c)
    return {
        "projection_dim": c.projection_dim,
        "logit_scale_init_value": c.initial_log_scale,
        "text_config": {
            **write_transformer(c.text),
            "model_type": "clip_text_model",
            "vocab_size": c.text.vocab_size,
            "max_position_embeddings": c.text.max_len,
            "projection_dim": c.projection_dim,
            "eos_token_id": c.end_id,
        },
        "vision_config": {
            **write_transformer(c.vision),
            "model_type": "clip_vision_model",
            "image_size": c.vision.image_size[0],
            "patch_size": c.vision.patch_size,
            "num_channels": c.vision.channels,
            "projection_dim": c.projection_dim,
        },
    }


def write_transformer(c: VitConfig | GptConfig) -> JsonObject:
    return {
        "hidden_size": c.d_model,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "intermediate_size": c.d_ff,
        "hidden_act": NAMES[c.activation],
        "layer_norm_eps": c.norm_eps,
        "attention_dropout": c.attention_dropout,
        "initializer_range": c.stddev,
    }


def check_towers(c: ClipConfig) -> None:
    """Raises UserError, by name, if a tower has parameters that no `CLIPModel` has, or lacks some that it has."""
    plain = {"frames": 1, "pre_norm": True, "patch_bias": False, "final_norm": True, "pooler": "first"}
    for part, fields in (("vision", plain), ("text", {"local_window": None})):
        for field, wanted in {**fields, "head_dim": None}.items():
            found = vars(vars(c)[part])[field]
            if found != wanted:
                raise UserError(f"export: {part}.{field}={found} has no counterpart in a CLIP there; only {wanted}")
    if c.vision.image_size[0] != c.vision.image_size[1]:
        raise UserError(f"export: vision.image_size={c.vision.image_size}: images of a CLIP there are square")
    if c.end_id in (None, LEGACY_END):
        raise UserError(
            f"export: end_id={shown(c.end_id)}: transformers reads a text's vector at the first token with the id of"
            f" the end token, which must be known, and not {LEGACY_END}, which stands for the highest id there"
        )


def clip_body(config: ClipConfig) -> list[ParamMap]:
    embeddings, parts = "embeddings", {"text": config.text, "vision": config.vision}
    table = {
        "text": [
            ParamMap("text/embeddings/token", "text_model.embeddings.token_embedding.weight"),
            ParamMap("text/embeddings/position", "text_model.embeddings.position_embedding.weight"),
            *norm("text/final_norm", "text_model.final_layer_norm"),
        ],
        "vision": [
            ParamMap("vision/embeddings/class_token", f"vision_model.{embeddings}.class_embedding", CLASS_TOKEN),
            ParamMap("vision/embeddings/position", f"vision_model.{embeddings}.position_embedding.weight"),
            ParamMap(
                "vision/embeddings/patch/kernel",
                f"vision_model.{embeddings}.patch_embedding.weight",
                patch_kernel(config.vision.patch_size),
            ),
            *norm("vision/pre_norm", "vision_model.pre_layrnorm"),
            *norm("vision/final_norm", "vision_model.post_layernorm"),
        ],
    }
    for name, stack in (("text", "decoder"), ("vision", "encoder")):
        layers = range(parts[name].num_layers)
        table[name] += layer_maps(f"{name}_model.encoder.layers.{{l}}", CLIP_LAYER, f"{name}/{stack}", layers)
        table[name] += [
            ParamMap(f"{name}_projection/kernel", f"{'visual' if name == 'vision' else name}_projection.weight", LINEAR)
        ]
    scale = ParamMap("logit_scale/scale", "logit_scale", SCALAR, heads=1)
    return [entry._replace(heads=parts[name].num_heads) for name in parts for entry in table[name]] + [scale]


CLIP = Family(
    "clip", "", ClipConfig, lambda config: True, read_clip, write_clip, clip_body, lambda config: {},
    {"CLIPModel": ()}, skipped=("position_ids",), text="text_config",
)  # fmt: skip
