"""A caption's attention to an image is what transformers returns as cross-attention."""

import numpy as np
import pytest

import bertgpt
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.image_attention import image_attention
from parity.families import CASES, save, torch, transformers


@pytest.mark.parametrize("name", ["captioner-gpt2", "captioner-bert"])
def test_attention_to_an_image_equals_the_cross_attention_of_transformers(name: str, tokenizer: Tokenizer, tmp_path):
    architecture, config_class, settings = CASES[name]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**settings)
    reference = getattr(transformers, architecture)._from_config(config, attn_implementation="eager").eval()
    reference.decoder.resize_token_embeddings(200)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    save(reference, tmp_path, name)
    for file, content in tokenizer.files().items():
        (tmp_path / file).write_bytes(content)
    model = bertgpt.load(tmp_path)
    _, height, width, _ = model.config.image_shape
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = image_attention(model, {"image": picture}, "a small dog runs")
    ids = tokenizer.encode(["a small dog runs"])[0]
    mean, std = (np.array(x, np.float32) for x in (model.config.vision.image_mean, model.config.vision.image_std))
    pixels = (picture.astype(np.float32) / 255 - mean) / std
    with torch.no_grad():
        theirs = reference(
            pixel_values=torch.tensor(pixels.transpose(2, 0, 1)[None]),
            decoder_input_ids=torch.tensor([[model.config.start_id, *ids[:-1]]]),
            output_attentions=True,
        )
    want = np.stack([layer.numpy()[0] for layer in theirs.cross_attentions])
    assert found.weights.shape == want.shape == (len(want), want.shape[1], len(ids), 1 + np.prod(found.grid))
    error = np.abs(found.weights - want).max()
    assert error <= 1e-5 and np.ptp(want) > 1e-3
    np.testing.assert_allclose(found.maps(0).reshape(len(ids), -1), want[0].mean(0)[:, 1:], atol=1e-5)
