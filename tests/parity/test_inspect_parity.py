"""Attention weights and hidden states are those that transformers returns."""

import jax
import numpy as np
import pytest
from conftest import fast

import bertgpt
from bertgpt.data.tokenizer import Tokenizer
from parity.families import CASES, save, torch, transformers

NAMES = ("bert", "roberta-mlm", "distilbert-mlm", "albert-2-groups", "electra-generator", "gpt2", "t5", "t5-unequal",
         "switch")  # fmt: skip


def stacked(values: tuple) -> np.ndarray:
    return np.stack([value.detach().numpy()[0] for value in values])


@pytest.mark.parametrize("name", fast(NAMES, "bert", "albert-2-groups", "electra-generator", "gpt2", "t5"))
def test_weights_and_states_of_every_layer_equal_transformers(name: str, tokenizer: Tokenizer, tmp_path):
    architecture, config_class, settings = CASES[name]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**settings | {"vocab_size": 200})
    reference = getattr(transformers, architecture)._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    save(reference, tmp_path, name)
    for file, content in tokenizer.files().items():
        (tmp_path / file).write_bytes(content)
    model = bertgpt.load(tmp_path)
    text, pair, target = "The green bird sings", None, None
    if name in ("bert", "albert-2-groups", "electra-generator"):
        pair = "a dog"
    if model.config.architecture == "encoder_decoder":
        target = "a small dog runs"
    found = bertgpt.inspect.attention(model, text, pair, target)
    ids = torch.tensor([[token.id for token in found.tokens]])
    named = {"input_ids": ids, "output_attentions": True, "output_hidden_states": True}
    if pair:
        ends = [i for i, token in enumerate(found.tokens) if token.token == "[SEP]"]
        named["token_type_ids"] = (torch.arange(ids.shape[1]) > ends[0]).long()[None]
    if target:
        named["decoder_input_ids"] = torch.tensor([[token.id for token in found.target_tokens]])
    want = reference(**named)
    if target:
        expected = (want.encoder_attentions, want.decoder_attentions, want.cross_attentions)
        got = (found.weights, found.target_weights, found.cross_weights)
        states = {None: want.encoder_hidden_states, target: want.decoder_hidden_states}
    else:
        expected, got, states = (want.attentions,), (found.weights,), {None: want.hidden_states}
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, stacked(b), atol=1e-5)
    for given, b in states.items():
        found_states = bertgpt.inspect.hidden_states(model, text, pair, given)
        wanted = stacked(b)
        assert found_states.shape == wanted.shape
        assert np.abs(found_states - wanted).max() <= 1e-5 * np.abs(wanted).max()
    if name in ("gpt2", "t5"):
        lens = bertgpt.inspect.logit_lens(model, text, top_k=200, target=target)
        logits = want.logits[0].detach().numpy()[:, : model.tokenizer.vocab.size]
        p = np.take_along_axis(np.asarray(jax.nn.softmax(logits)), lens.ids[-1], axis=-1)
        np.testing.assert_allclose(lens.probabilities[-1], p, atol=1e-5)
