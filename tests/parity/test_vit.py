"""ViTs beyond what every family has: images of other sizes, videos, image processors, directories there and back."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from bertgpt.config import to_json
from bertgpt.convert.hub import import_model
from bertgpt.convert.images import DEFAULTS, parse_preprocessing, read_preprocessing, write_preprocessing
from bertgpt.convert.verify import error_of
from bertgpt.data.images.format import ImageFormat
from bertgpt.inference.export import convert, write_model
from bertgpt.inference.model import load
from bertgpt.layers.patches import bicubic_weights, normalize_pixels, resize_positions
from bertgpt.models.apply import make_apply
from bertgpt.models.vit import VitConfig
from bertgpt.types import Inputs, Params, UserError
from parity.families import make, save, torch, transformers

CLASS = jnp.zeros((2, 1), jnp.int32)


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def imported(path: Path) -> tuple[VitConfig, Params]:
    found = import_model(path)
    return found.config, jax.tree.map(jnp.asarray, found.params)


def run(config: VitConfig, params: Params, pixels: np.ndarray, **options) -> Array:
    return make_apply(config.make())(params, Inputs(CLASS, images=jnp.asarray(pixels)), **options)


@pytest.mark.parametrize("old, new", [((5, 5), (7, 9)), ((5, 5), (3, 2)), ((4, 4), (4, 8)), ((2, 3), (14, 1))])
def test_positions_of_other_sizes_are_those_of_torch(old, new):
    table = images(old[0] * old[1], 6)
    grid = torch.tensor(table).double().reshape(1, *old, 6).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(grid, size=new, mode="bicubic", align_corners=False)[0].permute(1, 2, 0)
    found = np.asarray(resize_positions(jnp.asarray(table), old, new))
    np.testing.assert_allclose(found, theirs.reshape(-1, 6).numpy(), atol=1e-6)
    np.testing.assert_allclose(bicubic_weights(old[0], new[0]).sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("size", [(12, 12), (20, 20), (8, 24)])
def test_images_of_other_sizes_give_the_states_of_transformers(size, tmp_path):
    model = make("vit")
    save(model, tmp_path, "vit")
    config, params = imported(tmp_path)
    pixels = images(2, 1, *size, 3)
    theirs = model(torch.tensor(pixels[:, 0].transpose(0, 3, 1, 2)), interpolate_pos_encoding=True)
    hidden = run(config, params, pixels)
    assert error_of(hidden, theirs.last_hidden_state.detach()) <= 1e-5
    pooled = make_apply(config.make())(params, method="pool", hidden=hidden, segment_ids=CLASS)
    assert error_of(pooled, theirs.pooler_output.detach()) <= 1e-5


def test_features_of_the_penultimate_block_are_the_hidden_states_before_the_last(tmp_path):
    model = make("vit")
    save(model, tmp_path, "vit")
    config, params = imported(tmp_path)
    pixels = images(2, 1, 12, 12, 3)
    states = model(torch.tensor(pixels[:, 0].transpose(0, 3, 1, 2)), output_hidden_states=True).hidden_states
    found = run(config, params, pixels, method="features", layer="penultimate", class_token=False)
    assert error_of(found, states[-2][:, 1:].detach()) <= 1e-5
    split = load(tmp_path)  # layers of its own for inference
    inputs = Inputs(CLASS, images=jnp.asarray(pixels))
    again = split.apply(split.params, inputs, method="features", layer="penultimate")
    assert error_of(again[:, 1:], found) <= 1e-6


def timesformer(attention: str) -> tuple[torch.nn.Module, VitConfig, Params]:
    """A random TimeSformer and its parameters here."""
    torch.manual_seed(0)
    settings = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
    settings |= {"image_size": 12, "patch_size": 4, "num_frames": 3, "attention_type": attention}
    model = transformers.TimesformerModel(transformers.TimesformerConfig(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    config = VitConfig(
        d_model=24, num_layers=2, num_heads=3, d_ff=40, image_size=(12, 12), patch_size=4, frames=3, norm_eps=1e-6,
        time_attention="factorised" if attention == "divided_space_time" else "joint",
    )  # fmt: skip
    weights = {name: value.numpy() for name, value in model.state_dict().items()}

    def linear(name: str) -> Params:
        return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}

    def norm(name: str) -> Params:
        return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}

    def attend(name: str) -> Params:
        joint = linear(f"{name}.attention.qkv")
        kernels, biases = np.split(joint["kernel"], 3, axis=1), np.split(joint["bias"], 3)
        names = zip(("query", "key", "value"), kernels, biases, strict=True)
        heads = {key: {"kernel": k.reshape(24, 3, 8), "bias": b.reshape(3, 8)} for key, k, b in names}
        return heads | {"out": linear(f"{name}.output.dense")}

    def block(name: str) -> Params:
        found = {"attention": attend(f"{name}.attention"), "attention_norm": norm(f"{name}.layernorm_before")}
        found |= {"mlp_norm": norm(f"{name}.layernorm_after")}
        found |= {"mlp": {"up": linear(f"{name}.intermediate.dense"), "down": linear(f"{name}.output.dense")}}
        if config.time_attention == "joint":
            return found
        found |= {"time_attention": attend(f"{name}.temporal_attention")}
        return found | {"time_norm": norm(f"{name}.temporal_layernorm"), "time_out": linear(f"{name}.temporal_dense")}

    patch = "embeddings.patch_embeddings.projection"
    embeddings = {
        "class_token": weights["embeddings.cls_token"][0],
        "position": weights["embeddings.position_embeddings"][0],
        "time": weights["embeddings.time_embeddings"][0],
        "patch": {"kernel": weights[f"{patch}.weight"].transpose(2, 3, 1, 0).reshape(-1, 24)}
        | {"bias": weights[f"{patch}.bias"]},
    }
    blocks = [block(f"encoder.layer.{layer}") for layer in range(2)]
    encoder = jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)
    params = {"embeddings": embeddings, "encoder": encoder, "final_norm": norm("layernorm")}
    return model, config, jax.tree.map(jnp.asarray, params)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["divided_space_time", "joint_space_time"])
def test_videos_give_the_states_and_gradients_of_timesformer(attention: str):
    model, config, params = timesformer(attention)
    pixels = images(2, 3, 12, 12, 3)
    theirs = model(torch.tensor(pixels.transpose(0, 1, 4, 2, 3))).last_hidden_state

    def by_patch(states: Array) -> Array:  # there the frames of each patch follow each other
        patches = states[:, 1:].reshape(2, 3, 9, 24).swapaxes(1, 2).reshape(2, -1, 24)
        return jnp.concatenate([states[:, :1], patches], axis=1)

    assert error_of(by_patch(run(config, params, pixels)), theirs.detach()) <= 1e-5

    target = images(*theirs.shape)
    (theirs * torch.tensor(target)).sum().backward()
    grads = jax.grad(lambda p: jnp.sum(by_patch(run(config, p, pixels)) * target))(params)
    layer = model.encoder.layer[1]
    pairs = [
        (grads["embeddings"]["time"], model.embeddings.time_embeddings.grad[0]),
        (grads["embeddings"]["position"], model.embeddings.position_embeddings.grad[0]),
        (grads["encoder"]["mlp"]["up"]["kernel"][1], layer.intermediate.dense.weight.grad.T),
    ]
    if config.time_attention == "factorised":
        query = grads["encoder"]["time_attention"]["query"]["kernel"][1].reshape(24, 24)
        pairs += [(query, layer.temporal_attention.attention.qkv.weight.grad[:24].T)]
        pairs += [(grads["encoder"]["time_out"]["kernel"][1], layer.temporal_dense.weight.grad.T)]
    for found, want in pairs:
        assert error_of(found, want) <= 1e-4


PROCESSORS = {
    "vit": ("ViTImageProcessorPil", {}),
    "vit-384-imagenet": (
        "ViTImageProcessorPil",
        {"size": {"height": 38, "width": 30}, "resample": 3, "image_mean": [0.485, 0.456, 0.406]},
    ),
    "vit-not-normalised": ("ViTImageProcessorPil", {"do_normalize": False, "size": {"height": 20, "width": 20}}),
    "vit-not-rescaled": (
        "ViTImageProcessorPil",
        {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [50.0, 60.0, 70.0], "size": 20},
    ),
    "vit-other-factor": ("ViTImageProcessorPil", {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "size": 20}),
    "deit": ("DeiTImageProcessorPil", {}),
    "clip": ("CLIPImageProcessorPil", {}),
    "clip-small": ("CLIPImageProcessorPil", {"size": {"shortest_edge": 30}, "crop_size": {"height": 28, "width": 24}}),
    "clip-not-resized": ("CLIPImageProcessorPil", {"do_resize": False, "crop_size": {"height": 28, "width": 24}}),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_image_processors_give_the_same_pixels_and_come_back(name: str, tmp_path: Path):
    cls, settings = PROCESSORS[name]
    processor = getattr(transformers, cls)(**settings)
    processor.save_pretrained(tmp_path)
    found = read_preprocessing(tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (50, 71, 3), np.uint8)
    theirs = processor(images=picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    own = normalize_pixels(jnp.asarray(found.format.pixels(picture))[None], found.mean, found.std)[0, 0]
    np.testing.assert_allclose(own, theirs, atol=2e-6)

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(write_preprocessing(*found)))
    assert read_preprocessing(tmp_path) == found
    again = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    back = again(images=picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    np.testing.assert_allclose(back, theirs, atol=2e-6)


@pytest.mark.parametrize("kind", DEFAULTS)
def test_absent_fields_of_a_processor_have_the_defaults_of_its_class(kind: str):
    written = json.loads(getattr(transformers, f"{kind}ImageProcessorPil")().to_json_string())
    name = {"image_processor_type": f"{kind}ImageProcessor"}
    whole = {key: value for key, value in written.items() if value is not None} | name
    assert parse_preprocessing(whole, "f", 3) == parse_preprocessing(name, "f", 3)


@pytest.mark.parametrize(
    "values, said",
    [
        ({"resample": 5}, "resample=5"),
        ({"do_pad": True}, "do_pad=True"),
        ({"size": {"longest_edge": 9}}, "size={'longest_edge': 9}"),
        ({"image_processor_type": "OwlViTImageProcessor"}, "image_processor_type='OwlViTImageProcessor'"),
        ({"image_mean": [0.5]}, r"image_mean=\[0.5\]"),
        ({"image_std": [0.0] * 3}, "image_std"),
        ({"crop_pct": 0.9}, "unknown field crop_pct"),
        ({"size": {"shortest_edge": 9}}, "without do_center_crop"),
    ],
)
def test_processors_that_are_not_supported_are_refused_by_field(values, said: str):
    with pytest.raises(UserError, match=f"^f: .*{said}"):
        parse_preprocessing(values, "f", 3)


def test_directories_are_converted_there_and_back(tmp_path: Path):
    model = make("vit-classes-quick-gelu")
    there, ours, back, again = (tmp_path / name for name in ("there", "ours", "back", "again"))
    save(model, there, "vit-classes-quick-gelu")
    transformers.ViTImageProcessorPil(size={"height": 12, "width": 12}, image_std=[0.2, 0.3, 0.4]).save_pretrained(
        there
    )
    source = load(there, arrange="host")
    assert source.image_format == ImageFormat(12, 12) and source.config.image_std == (0.2, 0.3, 0.4)
    convert(source, ours)
    converted = load(ours, arrange="host")
    assert converted.image_format == source.image_format and converted.config == source.config
    assert converted.labels == source.labels and converted.tokenizer.vocab.cls == 0
    convert(converted, back)
    names = ("config.json", "preprocessor_config.json")
    assert [json.loads((back / name).read_text()) for name in names] == [
        json.loads((there / name).read_text()) for name in names
    ]
    theirs = transformers.ViTForImageClassification.from_pretrained(back).state_dict()
    for (key, a), b in zip(theirs.items(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b), key

    write_model(converted._replace(config=dataclasses.replace(converted.config, patch_bias=True)), again)
    assert to_json(load(again).config) == to_json(source.config)


@pytest.mark.parametrize(
    "change, said",
    [({"frames": 2}, "frames=2"), ({"pre_norm": True}, "pre_norm=True"), ({"pooler": "mean"}, "pooler='mean'")],
)
def test_what_no_vit_there_computes_is_refused_by_name(change, said: str, tmp_path: Path):
    save(make("vit-classes-quick-gelu"), tmp_path / "there", "vit-classes-quick-gelu")
    model = load(tmp_path / "there", arrange="host")
    write_model(model._replace(config=dataclasses.replace(model.config, **change)), tmp_path / "ours")
    with pytest.raises(UserError, match=f"export: {said}"):
        convert(load(tmp_path / "ours", arrange="host"), tmp_path / "out")
