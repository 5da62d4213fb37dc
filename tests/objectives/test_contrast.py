"""CLIP's loss: its value and gradient by formula, negatives, the bound of the scale, microbatches and devices."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import fast

from bertgpt.config import Mesh
from bertgpt.models.apply import make_apply
from bertgpt.models.clip import ClipConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.vit import VitConfig
from bertgpt.objectives.contrast import Contrast, bounded
from bertgpt.sharding import make_mesh, put_batch, state_shardings
from bertgpt.training.state import init_state
from bertgpt.training.step import loss_and_grads
from bertgpt.types import Vocab

pytestmark = pytest.mark.usefixtures("float64")
VOCAB = Vocab(size=32, pad=0, bos=1, eos=2)
ROWS, LENGTH, SIDE = 16, 10, 8
SIZES = {"d_model": 8, "num_layers": 1, "num_heads": 2, "d_ff": 16, "stddev": 0.3, "scan": True}
CLIP = ClipConfig(
    VitConfig(image_size=(SIDE, SIDE), patch_size=4, **SIZES),
    GptConfig(vocab_size=32, max_len=LENGTH, dropout=0.0, attention_dropout=0.0, **SIZES),
    projection_dim=6,
)


def make_batch(seed: int = 0) -> dict[str, np.ndarray]:
    """Pairs of which 5 only fills up, 3 and 8 have the same image, and 2 and 9 the same text."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, LENGTH + 1, ROWS)
    lengths[5] = 0
    real = np.arange(LENGTH) < lengths[:, None]
    numbers = np.where(np.arange(ROWS) == 5, -1, np.arange(ROWS))
    batch = {
        "input_ids": np.where(real, rng.integers(3, 32, real.shape), 0).astype(np.int32),
        "segment_ids": real.astype(np.int32),
        "positions": (np.arange(LENGTH) * real).astype(np.int32),
        "type_ids": np.zeros(real.shape, np.int32),
        "images": rng.integers(0, 256, (ROWS, 1, SIDE, SIDE, 3), dtype=np.uint8),
        "image_id": np.where(numbers == 8, 3, numbers).astype(np.int32),
        "text_id": np.where(numbers == 9, 2, numbers).astype(np.int32),
    }
    for name in ("images", "image_id"):
        batch[name][8] = batch[name][3]
    for name in ("input_ids", "segment_ids", "positions"):
        batch[name][9] = batch[name][2]
    return batch


def naive_loss(images: Any, texts: Any, s: Any, batch: dict[str, np.ndarray]) -> Any:
    """Fig. 3 of the paper, example by example, over the pairs that are none of the same image or text."""
    real = [i for i in range(ROWS) if batch["segment_ids"][i].any()]
    total = 0.0
    for i in real:
        same = [j for j in real if batch["image_id"][i] == batch["image_id"][j]]
        same += [j for j in real if batch["text_id"][i] == batch["text_id"][j]]
        others = [j for j in real if j == i or j not in same]
        others = np.array(others)
        row, column = jnp.exp(s) * texts[others] @ images[i], jnp.exp(s) * images[others] @ texts[i]
        own = jnp.exp(s) * images[i] @ texts[i]
        total += (jnp.log(jnp.sum(jnp.exp(row))) - own + jnp.log(jnp.sum(jnp.exp(column))) - own) / 2
    return total / len(real)


def random_vectors(seed: int) -> jax.Array:
    x = np.random.default_rng(seed).normal(size=(ROWS, 6))
    return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def test_value_and_gradient_are_those_of_the_formula():
    images, texts, s, batch = random_vectors(1), random_vectors(2), jnp.asarray(1.3), make_batch()
    joint = Contrast().make(VOCAB).joint

    def loss(images: jax.Array, texts: jax.Array, s: jax.Array) -> jax.Array:
        features = {"image": images, "text": texts, "log_scale": jnp.broadcast_to(s, (ROWS,))}
        term = joint.loss(features, jax.tree.map(jnp.asarray, batch), None).terms["contrast"]
        assert term.weight == ROWS - 1
        return term.sum / term.weight

    found = jax.value_and_grad(loss, argnums=(0, 1, 2))(images, texts, s)
    expected = jax.value_and_grad(functools.partial(naive_loss, batch=batch), argnums=(0, 1, 2))(images, texts, s)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), found, expected)
    assert found[0] > 0.5 and abs(found[1][2]) > 1e-3
    np.testing.assert_array_equal(found[1][0][5], 0.0)  # what only fills up the batch is no negative


def test_the_transformers_loss_is_the_same_where_all_pairs_differ():
    torch = pytest.importorskip("torch", reason="parity needs the extra [peers]")
    clip = pytest.importorskip("transformers.models.clip.modeling_clip", reason="parity needs the extra [peers]")
    images, texts, s = random_vectors(1), random_vectors(2), 1.3
    batch = {"segment_ids": jnp.ones((ROWS, 3), jnp.int32)}
    batch |= {name: jnp.arange(ROWS) for name in ("image_id", "text_id")}
    features = {"image": images, "text": texts, "log_scale": jnp.full(ROWS, s)}
    term = Contrast().make(VOCAB).joint.loss(features, batch, None).terms["contrast"]
    logits = torch.tensor(math.exp(s) * np.asarray(texts @ images.T))
    assert float(term.sum / term.weight) == pytest.approx(float(clip.image_text_contrastive_loss(logits)), rel=1e-12)


def test_in_batch_accuracy_counts_both_directions():
    images = jnp.eye(3)
    texts = jnp.asarray([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 1.0]])
    batch = {"segment_ids": jnp.ones((3, 2), jnp.int32), "image_id": jnp.arange(3), "text_id": jnp.arange(3)}
    features = {"image": images, "text": texts, "log_scale": jnp.zeros(3)}
    metrics = Contrast().make(VOCAB).joint.loss(features, batch, None).metrics
    # All images find their text; text 1 finds image 0.
    assert float(metrics["in_batch_accuracy"].sum) == 2.5 and float(metrics["in_batch_accuracy"].weight) == 3


@pytest.mark.parametrize("s, slope, expected", [
    (1.0, -2.0, -2.0), (1.0, 2.0, 2.0),  # below the bound nothing changes
    (5.0, 2.0, 2.0), (5.0, -2.0, 0.0),  # beyond it, descent may lead back and not farther
])  # fmt: skip
def test_the_scale_is_bounded_and_can_fall_again(s: float, slope: float, expected: float):
    value, gradient = jax.value_and_grad(lambda s: slope * bounded(s, 3.0))(jnp.asarray(s))
    assert value == slope * min(s, 3.0) and gradient == expected


def test_the_bound_of_the_scale_is_the_configured_one():
    images, texts, batch = random_vectors(1), random_vectors(2), jax.tree.map(jnp.asarray, make_batch())
    scales = {}
    for s in (math.log(20.0), 9.0):
        features = {"image": images, "text": texts, "log_scale": jnp.full(ROWS, s)}
        loss = Contrast(max_scale=20.0).make(VOCAB).joint.loss(features, batch, None)
        scales[s] = float(loss.metrics["logit_scale"].sum), float(loss.terms["contrast"].sum)
    assert scales[9.0] == pytest.approx(scales[math.log(20.0)]) and scales[9.0][0] == pytest.approx(20.0)


@functools.cache
def clip_setup() -> tuple[Any, Any, Any]:
    """(objective, apply, float64 parameters)."""
    module, made = CLIP.make("float64"), Contrast(20.0).make(VOCAB)
    batch = jax.tree.map(jnp.asarray, make_batch())
    state, _ = init_state(module, made, optax.identity(), batch, make_mesh(Mesh(), jax.devices()[:1]), seed=0)
    return made, make_apply(module), jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), state.params)


@functools.cache
def program(microbatches: int) -> Any:
    made, apply, _ = clip_setup()
    return jax.jit(lambda p, b: loss_and_grads(made, apply, p, b, None, microbatches))


def with_scale(s: float) -> Any:
    return clip_setup()[2] | {"logit_scale": {"scale": jnp.asarray(s)}}


@pytest.mark.parametrize("s", [1.0, 4.0])  # below the bound of the scale, and beyond it
def test_microbatches_change_neither_loss_nor_gradient(s: float):
    whole, found = (jax.device_get(program(n)(with_scale(s), make_batch())) for n in (1, 4))
    assert whole[0] > 0.5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10), found, whole)


LAYOUTS = {
    "data 8": (1, Mesh(data=8)),
    "data 2, fsdp 4, 2 microbatches": (2, Mesh(data=2, fsdp=4)),
    "data 2, fsdp 2, tensor 2, 4 microbatches": (4, Mesh(data=2, fsdp=2, tensor=2)),
}


@pytest.mark.parametrize("layout", fast(LAYOUTS, "data 2, fsdp 4, 2 microbatches"))
def test_devices_change_neither_loss_nor_gradient(layout: str):
    microbatches, mesh = LAYOUTS[layout]
    devices, params = make_mesh(mesh, jax.devices()), with_scale(1.0)
    whole = jax.device_get(program(1)(params, make_batch()))
    with jax.set_mesh(devices):
        placed = jax.device_put(params, state_shardings(params, devices))
        made, apply, _ = clip_setup()
        run = jax.jit(lambda p, b: loss_and_grads(made, apply, p, b, None, microbatches))
        found = jax.device_get(run(placed, put_batch(make_batch(), devices)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10), found, whole)


def test_the_gradient_of_the_scale_is_the_slope_of_the_loss():
    step = 1e-5
    low, high = (float(program(4)(with_scale(1.0 + sign * step), make_batch())[0]) for sign in (-1, 1))
    gradient = float(program(4)(with_scale(1.0), make_batch())[2]["logit_scale"]["scale"])
    assert gradient == pytest.approx((high - low) / (2 * step), rel=1e-6) and abs(gradient) > 1e-3
