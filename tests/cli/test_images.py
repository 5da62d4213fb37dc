"""Commands on imported models that read images."""

import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import bertgpt
from bertgpt.cli.main import main
from bertgpt.convert.hub import export_model
from bertgpt.models.vit import VitConfig
from bertgpt.types import Inputs, Labels

NAMES = tuple(f"kind {number}" for number in range(12))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of Hugging Face with a classifier of 12 labels, without a tokenizer."""
    config = VitConfig(image_size=(12, 12), patch_size=4, d_model=16, num_layers=1, num_heads=2, d_ff=32)
    inputs = Inputs(jnp.zeros((1, 1), jnp.int32), images=jnp.zeros((1, 1, 12, 12, 3), jnp.uint8))

    def logits(module: nn.Module, inputs: Inputs) -> jax.Array:
        return module.class_logits(module(inputs), jnp.ones((1, 1), jnp.int32), len(NAMES))

    params = nn.unbox(nn.init(logits, config.make())(jax.random.key(0), inputs))["params"]
    kernel = params["classifier"]["dense"]["kernel"]
    params["classifier"]["dense"]["kernel"] = jax.random.normal(jax.random.key(1), kernel.shape)
    path = tmp_path_factory.mktemp("models") / "vit"
    export_model(path, config, params, labels=Labels(NAMES, kind="label"))
    return path


def test_predict_gives_the_most_probable_labels_of_an_imported_vit(vit: Path, picture: Path, capsys):
    assert main(["predict", str(vit), "--image", str(picture), "--top_k", "3"]) == 0
    answer = json.loads(capsys.readouterr().out)
    (full,) = bertgpt.predict(bertgpt.load(vit), [str(picture)])
    assert answer["image"] == str(picture) and answer["label"] == full["label"]
    assert len(full["probabilities"]) == 12 and sum(full["probabilities"].values()) == pytest.approx(1.0, abs=1e-3)
    best = sorted(full["probabilities"].items(), key=lambda item: -item[1])[:3]
    assert list(answer["probabilities"].items()) == best and best[0][0] == full["label"]


def test_a_model_of_texts_reads_no_images(vit: Path, picture: Path, tmp_path: Path, capsys):
    assert main(["generate", str(vit), "--image", str(picture)]) == 2
    assert "is an encoder and generates no text" in capsys.readouterr().err
