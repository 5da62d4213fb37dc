"""Attention, lens and saliency over HTTP are those of `bertgpt.inspect`; what is too large is refused."""

import httpx
import numpy as np
import pytest

from bertgpt.inference import inspect
from bertgpt.serving import inspecting
from bertgpt.serving.served import Served

TEXT = "the small [MASK] sings"


def result(client: httpx.Client, path: str, **body: object) -> dict:
    answer = client.post(f"/inspect/{path}", json=body)
    assert answer.status_code == 200, answer.text
    (found,) = answer.json()["results"]
    assert answer.json()["model"] == body["model"]
    return found


@pytest.mark.parametrize("name, target", [("bert", None), ("t5", "a dog")])
def test_weights_are_rounded_and_tokens_have_their_characters(
    name: str, target: str | None, client: httpx.Client, served: dict[str, Served]
):
    found = result(client, "attention", model=name, inputs=TEXT, target=target)
    wanted = inspect.attention(served[name].model, TEXT, target=target)
    np.testing.assert_allclose(found["attention"], wanted.weights, atol=6e-5)
    assert found["tokens"] == [token._asdict() for token in wanted.tokens]
    assert len(str(found["attention"][0][0][0][0])) <= 6
    if target is None:
        assert found["target_attention"] is found["cross_attention"] is None and found["target_tokens"] == []
        return
    np.testing.assert_allclose(found["target_attention"], wanted.target_weights, atol=6e-5)
    np.testing.assert_allclose(found["cross_attention"], wanted.cross_weights, atol=6e-5)
    assert found["target_tokens"] == [token._asdict() for token in wanted.target_tokens]


@pytest.mark.parametrize("name", ["bert", "gpt"])
def test_each_layer_has_predictions_for_each_token(name: str, client: httpx.Client, served: dict[str, Served]):
    found = result(client, "lens", model=name, inputs=TEXT, top_k=3)
    wanted = inspect.logit_lens(served[name].model, TEXT, 3)
    assert found["tokens"] == [token._asdict() for token in wanted.tokens]
    assert [[[guess["token"] for guess in cell] for cell in layer] for layer in found["layers"]] == wanted.predictions
    p = [[[guess["probability"] for guess in cell] for cell in layer] for layer in found["layers"]]
    np.testing.assert_allclose(p, wanted.probabilities, atol=6e-5)


def test_tokens_have_scores_for_the_predicted_or_another_label(client: httpx.Client, served: dict[str, Served]):
    for label in (None, "bad"):
        found = result(client, "saliency", model="classes", inputs="a green bird", label=label)
        wanted = inspect.saliency(served["classes"].model, "a green bird", label)
        assert found["label"] == wanted.label and found["probability"] == pytest.approx(wanted.probability)
        np.testing.assert_allclose([t["score"] for t in found["tokens"]], wanted.scores, rtol=1e-3)
        assert [t["id"] for t in found["tokens"]] == [t.id for t in wanted.tokens]


WRONG = [
    ("attention", {"inputs": ["a", "b"], "model": "bert"}, 422, "inputs", "Expected `str`"),
    ("attention", {"inputs": "a", "target": "b", "model": "bert"}, 422, "target", "is no encoder–decoder"),
    ("attention", {"inputs": "a", "pair": "b", "model": "gpt"}, 422, "pair", "reads one text"),
    ("lens", {"inputs": "a", "top_k": 21, "model": "bert"}, 422, "top_k", "`top_k`"),
    ("lens", {"inputs": "a", "model": "classes"}, 400, "model", "cannot lens"),
    ("saliency", {"inputs": "a", "label": "best", "model": "classes"}, 422, "label", "it has bad, so, good"),
    ("saliency", {"inputs": "a", "model": "bert"}, 400, "model", "cannot saliency"),
]


@pytest.mark.parametrize("path, body, status, param, message", WRONG)
def test_one_sentence_names_the_field(path, body: dict, status: int, param: str, message: str, client: httpx.Client):
    answer = client.post(f"/inspect/{path}", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param) and message in error["message"]


def test_answers_have_a_largest_size(client: httpx.Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inspecting, "LARGEST", 2 * 2 * 5**2 - 1)  # layers, heads, tokens
    monkeypatch.setattr(inspecting, "LARGEST_LENS", 3 * 5 * 4 - 1)
    for path, more in (("attention", {}), ("lens", {"top_k": 4})):
        answer = client.post(f"/inspect/{path}", json={"model": "bert", "inputs": "the small cat"} | more)
        assert answer.status_code == 413 and answer.json()["error"]["param"] == "inputs"
        assert "of 5 tokens are" in answer.json()["error"]["message"]
        assert client.post(f"/inspect/{path}", json={"model": "bert", "inputs": "the cat"} | more).status_code == 200
