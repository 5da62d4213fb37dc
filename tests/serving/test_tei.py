"""text-embeddings-inference's endpoints and the three shapes of ranking, against the offline functions and by hand."""

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.inference.class_scores import class_logits, is_cross_encoder, score_pairs
from bertgpt.inference.encode import classify, embed
from bertgpt.serving.served import Served
from bertgpt.types import Inputs

TEXTS = ["the cat runs", "a big dog sleeps under the tree and sings", "river"]
LONG = "the cat runs " * 30


def post(client: httpx.Client, path: str, status: int = 200, **body):
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def close(found: list[dict], want: list[dict]) -> bool:
    """Whether predictions are the same but for rounding: the batch has another size."""
    return [item["label"] for item in found] == [item["label"] for item in want] and np.allclose(
        [item["score"] for item in found], [item["score"] for item in want], atol=1e-6
    )


def test_vectors_with_and_without_norm_truncated_from_either_side(client: httpx.Client, served: dict[str, Served]):
    model = served["bert"].model
    np.testing.assert_allclose(post(client, "/embed", inputs=TEXTS), embed(model, TEXTS), atol=1e-6)
    plain = post(client, "/embed", inputs=TEXTS[0], normalize=False)
    np.testing.assert_allclose(plain, embed(model, TEXTS[:1], normalize=False), atol=1e-5)
    error = post(client, "/embed", 413, inputs=[TEXTS[0], LONG])["error"]
    assert error["message"].startswith("input 2 has 92 tokens, and the model 'bert' reads 48 at most")
    right = post(client, "/embed", inputs=LONG, truncate=True)
    np.testing.assert_allclose(right, embed(model, [LONG]), atol=1e-6)
    left = post(client, "/embed", inputs=LONG, truncate=True, truncation_direction="Left")
    before, after = model.tokenizer.template
    (ids,) = model.tokenizer.encode([LONG])
    want = post(client, "/embed", inputs=[[*before, *ids[-46:], *after]])
    np.testing.assert_allclose(left, want, atol=1e-6)
    short = np.asarray(post(client, "/embed", inputs=TEXTS, dimensions=3))
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, atol=1e-6)


def test_classes_are_sorted_and_those_of_the_offline_api(client: httpx.Client, served: dict[str, Served]):
    want = list(classify(served["classes"].model, TEXTS))
    found = post(client, "/predict", model="classes", inputs=[[text] for text in TEXTS])
    for row, expected in zip(found, want, strict=True):
        assert [item["score"] for item in row] == sorted((item["score"] for item in row), reverse=True)
        assert {item["label"]: round(item["score"], 4) for item in row} == expected["probabilities"]
    assert close(post(client, "/predict", model="classes", inputs=TEXTS[0]), found[0])
    raw = post(client, "/predict", model="classes", inputs=TEXTS[0], raw_scores=True)
    logits = class_logits(served["classes"].model, [TEXTS[:1]])[0]
    np.testing.assert_allclose([item["score"] for item in raw], sorted(logits, reverse=True), atol=1e-5)
    mixed = post(client, "/predict", model="classes", inputs=[TEXTS[:1], TEXTS[:2]])
    pair = post(client, "/predict", model="classes", inputs=TEXTS[:2])
    assert close(mixed[0], found[0]) and close(mixed[1], pair)
    post(client, "/predict", 413, model="classes", inputs=LONG)
    post(client, "/predict", 422, inputs=["a", "b", "c"])
    post(client, "/predict", 422, inputs=[["a", "b", "c"]])


def test_similarity_is_the_cosine_of_the_vectors(client: httpx.Client, served: dict[str, Served]):
    vectors = embed(served["bert"].model, TEXTS)
    found = post(client, "/similarity", inputs={"source_sentence": TEXTS[0], "sentences": TEXTS[1:]})
    np.testing.assert_allclose(found, vectors[1:] @ vectors[0], atol=1e-6)


def test_tokens_have_ids_and_offsets_and_are_decoded_again(client: httpx.Client, served: dict[str, Served]):
    tokenizer = served["bert"].model.tokenizer
    text = "The café cat."
    (row,) = post(client, "/tokenize", inputs=text)
    assert [item["id"] for item in row] == [
        *tokenizer.template[0],
        *tokenizer.encode([text])[0],
        *tokenizer.template[1],
    ]
    assert [item["special"] for item in row] == [True, *[False] * (len(row) - 2), True]
    assert row[0] == {"id": row[0]["id"], "text": "[CLS]", "special": True, "start": None, "stop": None}
    assert all(text[item["start"] : item["stop"]] == item["text"] for item in row[1:-1])
    (bare,) = post(client, "/tokenize", inputs=[text], add_special_tokens=False)
    assert bare == row[1:-1]
    ids = [item["id"] for item in row]
    assert post(client, "/decode", ids=ids) == [tokenizer.decode(ids)]
    assert post(client, "/decode", ids=[ids], skip_special_tokens=False)[0].startswith("[CLS]")


def test_what_is_served_is_described(client: httpx.Client):
    info = client.get("/info").json()
    assert info["model_id"] == "bert" and info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert info["max_input_length"] == 48 and info["max_client_batch_size"] == 8


def by_hand(served: Served, query: str, text: str) -> float:
    """The logit of [CLS] query [SEP] text [SEP] alone, with its token types."""
    model, vocab = served.model, served.model.tokenizer.vocab
    first, second = model.tokenizer.encode([query, text])
    ids = [vocab.cls, *first, vocab.sep, *second, vocab.sep]
    types = [0] * (len(first) + 2) + [1] * (len(second) + 1)
    segments = jnp.ones((1, len(ids)), jnp.int32)

    @jax.jit
    def logits(params, inputs):
        hidden = model.apply(params, inputs)
        return model.apply(params, method="class_logits", hidden=hidden, segment_ids=segments, num_labels=1)

    return float(logits(model.params, Inputs(jnp.asarray([ids]), segments, type_ids=jnp.asarray([types])))[0, 0])


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_a_cross_encoder_ranks_in_all_shapes(client: httpx.Client, served: dict[str, Served], path: str):
    query, texts = "a dog", TEXTS
    logits = np.array([by_hand(served["cross"], query, text) for text in texts])
    order = np.argsort(-logits).tolist()
    p = 1 / (1 + np.exp(-logits))
    asked = {"model": "cross", "query": query}
    found = post(client, path, **asked, texts=texts, return_text=True)
    assert [item["index"] for item in found] == order and [item["text"] for item in found] == [texts[i] for i in order]
    np.testing.assert_allclose([item["score"] for item in found], p[order], atol=1e-5)
    raw = post(client, path, **asked, texts=texts, raw_scores=True)
    np.testing.assert_allclose([item["score"] for item in raw], logits[order], atol=1e-5)
    assert set(raw[0]) == {"index", "score"}
    cohere = post(client, path, **asked, documents=texts, top_n=2)
    assert [item["index"] for item in cohere["results"]] == order[:2]
    np.testing.assert_allclose([item["relevance_score"] for item in cohere["results"]], p[order[:2]], atol=1e-5)
    assert cohere["meta"]["billed_units"]["search_units"] == 1 and "document" not in cohere["results"][0]
    jina = post(client, path, **asked, documents=[{"text": text} for text in texts], return_documents=True)
    assert [item["document"]["text"] for item in jina["results"]] == [texts[i] for i in order]
    assert jina["usage"]["total_tokens"] > 10 and jina["model"] == "cross"


def test_a_bi_encoder_ranks_by_cosine_similarity(client: httpx.Client, served: dict[str, Served]):
    vectors = embed(served["bert"].model, ["a dog", *TEXTS])
    found = post(client, "/rerank", model="bert", query="a dog", documents=TEXTS)["results"]
    scores = {item["index"]: item["relevance_score"] for item in found}
    np.testing.assert_allclose([scores[i] for i in range(3)], vectors[1:] @ vectors[0], atol=1e-6)
    assert [item["relevance_score"] for item in found] == sorted(scores.values(), reverse=True)


def test_rankings_that_make_no_sense_are_refused(client: httpx.Client):
    post(client, "/rerank", 422, query="a")
    post(client, "/rerank", 422, query="a", texts=["b"], documents=["b"])
    post(client, "/rerank", 422, query="a", texts=[])
    post(client, "/rerank", 422, query="a", documents=[{"title": "b"}])
    post(client, "/rerank", 413, query="a", texts=["b"] * 9)
    post(client, "/rerank", 413, model="cross", query="a", texts=[LONG])
    post(client, "/rerank", model="cross", query="a", documents=[LONG])  # Cohere and Jina truncate
    post(client, "/rerank", 400, model="gpt", query="a", texts=["b"])


def test_scores_of_pairs_do_not_depend_on_the_other_pairs(served: dict[str, Served]):
    assert is_cross_encoder(served["cross"].model) and not is_cross_encoder(served["classes"].model)
    alone = score_pairs(served["cross"].model, "a dog", TEXTS[:1])
    together = score_pairs(served["cross"].model, "a dog", TEXTS)
    np.testing.assert_allclose(alone[0], together[0], atol=1e-5)
