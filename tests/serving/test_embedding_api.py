"""Embeddings over HTTP are those of the offline API."""

import base64

import httpx
import numpy as np

from bertgpt.inference.encode import embed
from bertgpt.serving.served import Served

TEXTS = ["the cat runs", "a big dog sleeps under the tree and sings"]


def test_vectors_are_those_of_the_offline_api_in_both_formats(client: httpx.Client, served: dict[str, Served]):
    want = embed(served["bert"].model, TEXTS)
    answer = client.post("/v1/embeddings", json={"input": TEXTS, "model": "bert"}).json()
    np.testing.assert_allclose([item["embedding"] for item in answer["data"]], want, atol=1e-6)
    ids = [[2, *row, 3] for row in served["bert"].model.tokenizer.encode(TEXTS)]
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == sum(map(len, ids))
    encoded = client.post("/v1/embeddings", json={"input": ids, "encoding_format": "base64"}).json()
    found = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in encoded["data"]]
    np.testing.assert_array_equal(np.asarray(found, np.float32), want)
