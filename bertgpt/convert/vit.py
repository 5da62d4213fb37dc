"""ViT: `ViTModel` and `ViTForImageClassification`, and the table of its tensors as part of composed models."""

from bertgpt.convert.bert import layer_maps, norm, weight_bias
from bertgpt.convert.core import Family, Layout, ParamMap
from bertgpt.convert.settings import ACTIVATIONS, NAMES, NUMBER, Settings, shown
from bertgpt.models.vit import VitConfig
from bertgpt.types import JsonObject, UserError

VIT_LAYER = (
    "attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense",
    "layernorm_before", "intermediate.dense", "output.dense", "layernorm_after",
)  # fmt: skip
CLASS_TOKEN = Layout(lambda x, h: x.reshape(1, -1), lambda x, h: x[None])
POSITIONS = Layout(lambda x, h: x.reshape(x.shape[-2:]), lambda x, h: x[None])


def patch_kernel(size: int) -> Layout:
    """The kernel of a convolution [D, C, size, size] as the matrix [size·size·C, D] that multiplies a patch."""
    return Layout(
        lambda x, h: x.reshape(len(x), -1, size, size).transpose(2, 3, 1, 0).reshape(-1, len(x)),
        lambda x, h: x.reshape(size, size, -1, x.shape[-1]).transpose(3, 2, 0, 1),
    )


def read_side(s: Settings, key: str) -> tuple[int, int]:
    """(height, width) of a field that is one number or two. Errors: UserError."""
    value = s(key, kind=(int, list))
    sides = tuple(value) if isinstance(value, list) else (value, value)
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        raise UserError(f"{s.file}: {key}={shown(value)} must be a whole number or a list of two")
    return sides


def read_vit(s: Settings, architecture: str) -> VitConfig:
    s.must_be("is_decoder", False)
    s.must_be("is_encoder_decoder", False)
    s.must_be("add_cross_attention", False)
    s.must_be("qkv_bias", True)
    s.must_be("pooler_act", "tanh")
    s.must_be("tie_word_embeddings", True, False)  # there are none
    s("encoder_stride")  # of the decoder of masked image modelling
    width, channels = s("hidden_size"), s("num_channels")
    s.must_be("pooler_output_size", width, None)
    sides = read_side(s, "patch_size")
    if sides[0] != sides[1]:
        raise UserError(f"{s.file}: patch_size={list(sides)} is not supported; only square patches")
    return VitConfig(
        d_model=width,
        num_layers=s("num_hidden_layers"),
        num_heads=s("num_attention_heads"),
        d_ff=s("intermediate_size"),
        image_size=read_side(s, "image_size"),
        patch_size=sides[0],
        channels=channels,
        image_mean=(0.5,) * channels,  # unless preprocessor_config.json says otherwise
        image_std=(0.5,) * channels,
        pooler="first" if architecture == "ViTForImageClassification" else "tanh",
        activation=s.one_of("hidden_act", ACTIVATIONS),
        norm_eps=s("layer_norm_eps", kind=NUMBER),
        dropout=s("hidden_dropout_prob", kind=NUMBER),
        attention_dropout=s("attention_probs_dropout_prob", kind=NUMBER),
        stddev=s("initializer_range", kind=NUMBER),
    )


def write_vit(c: VitConfig) -> JsonObject:
    height, width = c.image_size
    return {
        "hidden_size": c.d_model,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "intermediate_size": c.d_ff,
        "image_size": height if height == width else [height, width],
        "patch_size": c.patch_size,
        "num_channels": c.channels,
        "hidden_act": NAMES[c.activation],
        "layer_norm_eps": c.norm_eps,
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": c.attention_dropout,
        "initializer_range": c.stddev,
        "qkv_bias": True,
    }


def check_plain(config: VitConfig) -> None:
    """Raises UserError, by name, if a model has parameters that no `ViTModel` has, or lacks some that it has."""
    for field, wanted in (("frames", 1), ("pre_norm", False), ("patch_bias", True), ("final_norm", True)):
        if vars(config)[field] != wanted:
            raise UserError(f"export: {field}={vars(config)[field]} has no counterpart in a ViT there; only {wanted}")


def vit_body(config: VitConfig, target: str = "", source: str = "", *, pooler: bool = False) -> list[ParamMap]:
    """The tensors of a `ViTModel`, also as the vision tower of a composed model.

    Args:
      config: of the ViT.
      target: what stands before the paths of its parameters, such as "vision/".
      source: what stands before the names of its tensors, such as "encoder.".
      pooler: with its pooler.

    Raises:
      UserError: the config has a feature that no `ViTModel` has.
    """
    check_plain(config)
    layers = layer_maps(f"{source}encoder.layer.{{l}}", VIT_LAYER, f"{target}encoder", range(config.num_layers))
    patch = f"{source}embeddings.patch_embeddings.projection"
    table = [
        ParamMap(f"{target}embeddings/class_token", f"{source}embeddings.cls_token", CLASS_TOKEN),
        ParamMap(f"{target}embeddings/position", f"{source}embeddings.position_embeddings", POSITIONS),
        *weight_bias(f"{target}embeddings/patch", patch, patch_kernel(config.patch_size)),
        *layers,
        *norm(f"{target}final_norm", f"{source}layernorm"),
        *(weight_bias(f"{target}pooler", f"{source}pooler.dense") if pooler else []),
    ]
    return [entry._replace(heads=config.num_heads) for entry in table]


def vit_heads(config: VitConfig) -> dict[str, list[ParamMap]]:
    return {
        "pooler": weight_bias("pooler", "pooler.dense"),
        "classifier": weight_bias("classifier/dense", "classifier", prefixed=False),
    }


VIT = Family(
    "vit", "vit.", VitConfig, lambda config: True, read_vit, write_vit, vit_body, vit_heads,
    {"ViTModel": ("pooler",), "ViTForImageClassification": ("classifier",)},
    optional=("pooler",),
)  # fmt: skip
