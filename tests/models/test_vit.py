"""Vision Transformers: patches, positions, pooling, attention over space and time, and starting from other sizes."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from bertgpt.adaptation.freezing import is_head
from bertgpt.adaptation.init_from import load_pretrained, weights_for
from bertgpt.adaptation.lora import Lora, init_lora
from bertgpt.layers.patches import bicubic_weights, normalize_pixels, patchify
from bertgpt.layers.stack import split_layers
from bertgpt.models.apply import make_apply
from bertgpt.models.vit import VIT_B16, VIT_B32, VIT_L16, VIT_S16, VIT_TI16, VitConfig
from bertgpt.runs.checkpoint import named_leaves
from bertgpt.types import Inputs, Params, UserError

VIT = VitConfig(d_model=16, num_layers=2, num_heads=2, d_ff=32, image_size=(8, 12), patch_size=4)
VIDEO = dataclasses.replace(VIT, frames=3, time_attention="factorised", num_layers=1)
IDS = jnp.zeros((2, 1), jnp.int32)


def pixels(config: VitConfig, size: tuple[int, int] = (8, 12)) -> Array:
    shape = (2, config.frames, *size, 3)
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


@functools.cache
def init(config: VitConfig) -> Params:
    """Random parameters, none at a special value, with a pooler and a classifier of 3 classes."""

    def touch(module, inputs):
        module.class_logits(hidden=module(inputs), segment_ids=IDS, num_labels=3)

    inputs = Inputs(IDS, images=pixels(config))
    params = nn.unbox(jax.jit(nn.init(touch, config.make()))({"params": jax.random.key(0)}, inputs)["params"])
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(0.2 * rng.normal(size=leaf.shape), jnp.float32), params)


def run(config: VitConfig, params: Params, images: Array, **options) -> Array:
    apply = make_apply(config.make())
    return jax.jit(lambda params, images: apply(params, Inputs(IDS, images=images), **options))(params, images)


def test_patches_are_read_row_by_row_and_each_pixel_by_its_channels():
    images = np.random.default_rng(0).normal(size=(2, 3, 8, 12, 3)).astype(np.float32)
    found = np.asarray(patchify(jnp.asarray(images), 4))
    assert found.shape == (2, 3, 6, 48)
    for patch, (row, column) in enumerate([(0, 0), (0, 4), (0, 8), (4, 0), (4, 4), (4, 8)]):
        expected = images[:, :, row : row + 4, column : column + 4].reshape(2, 3, 48)
        np.testing.assert_array_equal(found[:, :, patch], expected)


def test_pixels_are_normalised_in_the_model_and_floats_are_taken_as_they_are():
    params, images = init(VIT), pixels(VIT)
    config = dataclasses.replace(VIT, image_mean=(0.1, 0.2, 0.3), image_std=(0.4, 0.5, 0.6))
    normalised = (np.asarray(images, np.float64) / 255 - config.image_mean) / config.image_std
    np.testing.assert_allclose(normalize_pixels(images, config.image_mean, config.image_std), normalised, atol=1e-6)
    floats = jnp.asarray(normalised, jnp.float32)
    np.testing.assert_allclose(run(config, params, images), run(config, params, floats), atol=1e-6)
    assert np.abs(run(config, params, images) - run(VIT, params, images)).max() > 0.1


def test_bicubic_weights_reproduce_straight_lines_inside_and_constants_everywhere():
    weights = bicubic_weights(6, 12)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    line = weights @ np.arange(6.0)
    centres = (np.arange(12) + 0.5) / 2 - 0.5
    assert abs(line - centres)[4:8].max() < 0.1  # a = −0.75 is not exact on lines, unlike a = −0.5
    np.testing.assert_array_equal(bicubic_weights(5, 5), np.eye(5, dtype=np.float32))


@pytest.mark.parametrize("pooler", ["first", "mean", "tanh"])
def test_the_vector_of_an_image_is_that_of_the_class_token_or_the_mean_of_the_patches(pooler: str):
    config = dataclasses.replace(VIT, pooler=pooler)
    params = init(config)
    hidden = run(config, params, pixels(config))
    found = make_apply(config.make())(params, method="pool", hidden=hidden, segment_ids=IDS)
    expected = {"first": hidden[:, 0], "mean": np.mean(hidden[:, 1:], axis=1)}
    if pooler == "tanh":
        expected["tanh"] = np.tanh(hidden[:, 0] @ params["pooler"]["kernel"] + params["pooler"]["bias"])
    np.testing.assert_allclose(found, expected[pooler], atol=1e-6)
    assert ("pooler" in params) == (pooler == "tanh")


def attend(params: Params, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Multi-head attention of each query [D] to the keys [T, D], one at a time, in float64."""
    project = {
        name: np.einsum("sd,dhk->shk", x, params[name]["kernel"]) + params[name]["bias"]
        for name, x in (("query", queries), ("key", keys), ("value", keys))
    }
    scores = np.einsum("shk,thk->hst", project["query"], project["key"]) / np.sqrt(project["query"].shape[-1])
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    mixed = np.einsum("hst,thk->shk", weights, project["value"]).reshape(len(queries), -1)
    return mixed @ params["out"]["kernel"] + params["out"]["bias"]


def norm(params: Params, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * params["scale"] + params["bias"]


def test_factorised_attention_is_over_the_frames_of_a_place_then_over_the_places_of_a_frame():
    params, images = init(VIDEO), pixels(VIDEO)
    _, aux = run(VIDEO, params, images, auxiliary="intermediates")
    x = np.asarray(aux["embedded"][0], np.float64)[0]  # of the first video
    block = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), params["encoder"])
    places, frames = 6, 3
    grid = x[1:].reshape(frames, places, 16)
    moved = grid.copy()
    for place in range(places):
        seen = norm(block["time_norm"], grid[:, place])
        out = attend(block["time_attention"], seen, seen)
        moved[:, place] += out @ block["time_out"]["kernel"] + block["time_out"]["bias"]
    first, after = [], moved.copy()
    for frame in range(frames):
        seen = norm(block["attention_norm"], np.concatenate([x[:1], moved[frame]]))
        out = attend(block["attention"], seen, seen)
        first.append(out[0])
        after[frame] += out[1:]
    y = np.concatenate([x[:1] + np.mean(first, axis=0), after.reshape(-1, 16)])
    inner = norm(block["mlp_norm"], y) @ block["mlp"]["up"]["kernel"] + block["mlp"]["up"]["bias"]
    inner = np.asarray(jax.nn.gelu(inner, approximate=False))
    expected = y + inner @ block["mlp"]["down"]["kernel"] + block["mlp"]["down"]["bias"]
    np.testing.assert_allclose(aux["encoder"]["hidden"][0][0][0], expected, atol=2e-5)


def test_joint_attention_reads_a_video_as_one_sequence_and_knows_the_order_of_its_frames():
    config = dataclasses.replace(VIDEO, time_attention="joint")
    params, images = init(config), pixels(config)
    hidden = run(config, params, images)
    swapped = run(config, params, images[:, ::-1])
    assert np.abs(hidden[:, 0] - swapped[:, 0]).max() > 1e-3
    timeless = {**params, "embeddings": {**params["embeddings"], "time": jnp.zeros((3, 16))}}
    same = run(config, timeless, images)[:, 0] - run(config, timeless, images[:, ::-1])[:, 0]
    assert np.abs(same).max() < 1e-5  # without times a video is a set of frames
    np.testing.assert_allclose(run(config, params, images[:, :2]).shape, (2, 1 + 2 * 6, 16))


@pytest.mark.slow
@pytest.mark.parametrize("config", [VIT, dataclasses.replace(VIDEO, num_layers=2)], ids=["image", "video"])
def test_neither_scan_nor_remat_nor_split_layers_change_states_or_gradients(config: VitConfig):
    params, images = init(config), pixels(config)

    def grads(config: VitConfig) -> tuple[Array, Params]:
        return jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.sin(run(config, p, images)))))(params)

    expected = grads(config)
    for change in ({"scan": True}, {"remat": "full"}, {"scan": True, "remat": "names"}, {"attention": "chunked"}):
        found = grads(dataclasses.replace(config, **change))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)
    hidden = run(config, split_layers(params, config.stacks), images)
    np.testing.assert_allclose(hidden, run(config, params, images), atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
def test_penultimate_features_leave_out_the_last_block_and_the_final_norm(scan: bool):
    config = dataclasses.replace(VIT, scan=scan)
    params, images = init(config), pixels(config)
    _, aux = run(config, params, images, auxiliary="intermediates")
    found = run(config, params, images, method="features", layer="penultimate", class_token=False)
    np.testing.assert_allclose(found, aux["encoder"]["hidden"][0][-2][:, 1:], atol=1e-6)
    last = run(config, params, images, method="features")
    np.testing.assert_array_equal(last, run(config, params, images))
    alone = nn.unbox(config.make().init(jax.random.key(0), Inputs(IDS, images=images), method="features"))["params"]
    assert named_leaves(alone).keys() == named_leaves(params).keys() - {
        f"classifier/dense/{name}" for name in ("kernel", "bias")
    }


def test_weights_of_another_size_start_with_interpolated_positions_and_compute_the_same_at_their_own_size():
    params = init(VIT)
    larger = dataclasses.replace(VIT, image_size=(16, 24), pooler="mean")
    loaded = weights_for(larger, VIT, jax.device_get(params), "the source")
    images = pixels(VIT, (16, 24))
    np.testing.assert_allclose(
        run(larger, jax.tree.map(jnp.asarray, loaded), images), run(VIT, params, images), atol=1e-5
    )
    with pytest.raises(UserError, match="model.patch_size=4 there but 2 here"):
        weights_for(dataclasses.replace(VIT, patch_size=2), VIT, params, "the source")


def test_a_model_of_images_becomes_one_of_videos_and_not_the_other_way_round():
    config = dataclasses.replace(VIT, frames=3, time_attention="factorised")
    loaded, report = load_pretrained(init(config), weights_for(config, VIT, init(VIT), "the source"))
    fresh = {name.split("/")[1] for name in report["initialised"]}
    assert fresh == {"time", "time_attention", "time_norm", "time_out"} and report["unused"] == []
    np.testing.assert_array_equal(loaded["encoder"]["mlp"]["up"]["kernel"], init(VIT)["encoder"]["mlp"]["up"]["kernel"])
    with pytest.raises(UserError, match="model.frames=3 there but 1 here"):
        weights_for(VIT, config, loaded, "the source")


def test_only_pooler_and_classifier_are_heads_and_lora_finds_the_attention():
    params = init(dataclasses.replace(VIT, pooler="tanh", pre_norm=True))
    assert {name.split("/")[0] for name in named_leaves(params) if is_head(tuple(name.split("/")))} == {
        "classifier", "pooler",
    }  # fmt: skip
    lora = init_lora(Lora(rank=2), params, jax.random.key(0))
    assert lora["encoder"]["attention"]["query"]["a"].shape == (2, 16, 2)


def test_sizes_are_the_published_ones():
    def count(config: VitConfig) -> float:
        inputs = Inputs(IDS, images=jnp.zeros((2, 1, 224, 224, 3), jnp.uint8))
        shapes = jax.eval_shape(config.make().init, jax.random.key(0), inputs)["params"]
        return round(sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6, 1)

    # Without a head: 5.7, 22, 86.6 and 304.3 million with 1,000 classes in DeiT's and timm's tables.
    assert [count(c) for c in (VIT_TI16, VIT_S16, VIT_B16, VIT_L16, VIT_B32)] == [5.5, 21.7, 85.8, 303.3, 87.5]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"image_size": (8, 10)}, "image_size"),
        ({"image_mean": (0.5,)}, "image_mean"),
        ({"vocab_size": 2}, "vocab_size"),
        ({"time_attention": "factorised"}, "frames"),
        ({"num_heads": 3}, "num_heads"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_by_field(change, said: str):
    with pytest.raises(UserError, match=f"^Vit: .*{said}"):
        dataclasses.replace(VIT, **change)


def test_images_that_do_not_fit_are_refused():
    params = init(VIT)
    with pytest.raises(UserError, match="reads images"):
        make_apply(VIT.make())(params, Inputs(IDS))
    for images, said in [
        (pixels(VIT, (8, 10)), "8 × 10 pixels cannot be cut into patches of 4 × 4"),
        (pixels(VIT)[..., :1], "images of 1 channels"),
        (pixels(VIDEO), "3 frames exceed model.frames=1"),
    ]:
        with pytest.raises(UserError, match=said):
            run(VIT, params, images)
    with pytest.raises(UserError, match="2 frames, but model.frames=3"):
        run(VIDEO, init(VIDEO), pixels(VIDEO)[:, :2])
