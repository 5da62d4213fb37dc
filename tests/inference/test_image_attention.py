"""Attention of the words of a text to the patches of an image."""

import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bertgpt.cli.main import main
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.image_attention import image_attention, words_of
from bertgpt.inference.model import Model
from bertgpt.models.apply import make_apply
from bertgpt.models.captioner import CaptionerConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import T5Config
from bertgpt.models.vision_language import PrefixConfig
from bertgpt.models.vit import VitConfig
from bertgpt.studies.attention_picture import draw_attention
from bertgpt.types import Inputs, UserError

VIT = VitConfig(image_size=(12, 8), patch_size=4, d_model=16, num_layers=2, num_heads=2, d_ff=32)
GPT = GptConfig(200, 16, 3, 4, 32, max_len=32)
T5 = T5Config(
    vocab_size=200, d_model=16, num_layers=2, num_decoder_layers=3, num_heads=2, head_dim=8, d_ff=32, max_len=32
)
CONFIGS = {"captioner": CaptionerConfig(VIT, GPT), "gpt": PrefixConfig(VIT, GPT), "t5": PrefixConfig(VIT, T5)}


def model_of(config: CaptionerConfig | PrefixConfig, tokenizer: Tokenizer) -> Model:
    ids = jnp.ones((1, 4), jnp.int32)
    decoder = Inputs(ids) if config.architecture == "encoder_decoder" else None
    inputs = Inputs(ids, images=jnp.zeros((1, *config.image_shape), jnp.uint8), decoder=decoder)
    params = nn.unbox(nn.init(lambda module, x: module(x), config.make())(jax.random.key(0), inputs))["params"]
    # Large weights, so that attention is far from uniform.
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    return Model(config, tokenizer, make_apply(config.make()), params, Path("model"))


@pytest.fixture(scope="module")
def models(tokenizer: Tokenizer) -> dict[str, Model]:
    return {name: model_of(config, tokenizer) for name, config in CONFIGS.items()}


@pytest.fixture
def picture(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (12, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_weights_of_each_token_sum_to_1_over_image_and_text(name: str, models: dict, picture: np.ndarray):
    record = {"image": picture} | ({"prompt": "the cat"} if name == "gpt" else {})
    found = image_attention(models[name], record, "the dog runs")
    tokens = len(found.tokens)
    assert found.weights.shape[:3] == (3, 2 if name == "t5" else 4, tokens) and found.grid == (1, 3, 2)
    assert np.abs(found.weights.sum(-1) - 1.0).max() <= 1e-6
    shares = found.maps(-1).reshape(tokens, -1).sum(-1)
    assert (shares > 0).all() and (shares < 1).all()  # the rest is the class token, the prompt, or the text so far
    assert np.array_equal(found.pixels[0], picture)


def test_a_token_has_the_weights_of_the_position_that_predicts_it(models: dict, picture: np.ndarray):
    model = models["gpt"]
    whole, part = (
        image_attention(model, {"image": picture, "prompt": "the cat"}, text) for text in ("the dog runs", "the dog")
    )
    count, keys = len(part.tokens), part.weights.shape[-1]
    assert whole.tokens[:count] == part.tokens
    assert np.abs(whole.weights[:, :, :count, :keys] - part.weights).max() <= 1e-6  # later tokens are not attended to
    assert not whole.weights[:, :, 0, keys - count + 1 :].any()


def test_words_are_groups_of_tokens(models: dict, tokenizer: Tokenizer):
    ids = tokenizer.encode(["the catdog runs"])[0]
    words = words_of(models["gpt"], ids)
    assert [word for word, _, _ in words] == ["the", "catdog", "runs"]
    assert [first for _, first, _ in words][1:] == [last for _, _, last in words][:-1] and words[-1][2] == len(ids)


@pytest.mark.parametrize("name", ["captioner", "gpt"])
def test_attention_of_a_generated_text_is_drawn(
    name: str, models: dict, picture: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    Image.fromarray(picture).save(tmp_path / "a.png")
    monkeypatch.setattr("bertgpt.inference.model.load", lambda *args, **named: models[name])
    words = ["generate", "model", "--image", str(tmp_path / "a.png"), "--max_new_tokens=4"]
    words += ["--prompt=the"] if name == "gpt" else []
    code = main([*words, f"--attention={tmp_path / 'b.png'}"])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert json.loads(out)["image"] == str(tmp_path / "a.png")
    assert Image.open(tmp_path / "b.png").width > 200
    assert main([*words, f"--attention={tmp_path / 'b.png'}", "--attention_layer=9"]) == 2
    assert "--attention_layer=9: the model has layers 0 to 2" in capsys.readouterr().err


def test_a_prefix_without_patches_has_no_attention_to_show(tokenizer: Tokenizer, picture: np.ndarray):
    model = model_of(PrefixConfig(VIT, GPT, features="class", projector="clipcap", num_vectors=2), tokenizer)
    with pytest.raises(UserError, match="no patch is attended to"):
        image_attention(model, {"image": picture, "prompt": "the"}, "cat")


def test_panels_show_frames_side_by_side(models: dict, picture: np.ndarray):
    found = image_attention(models["captioner"], {"image": picture}, "the dog")
    twice = found._replace(
        grid=(2, 3, 2),
        pixels=np.concatenate([found.pixels, found.pixels]),
        weights=np.concatenate([found.weights, found.weights[..., 1:]], axis=-1),
    )
    assert np.array_equal(twice.maps()[:, 0], twice.maps()[:, 1])
    assert draw_attention(twice)[:4] == b"\x89PNG"
