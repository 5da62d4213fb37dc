"""Endpoints of models that read images answer what the offline functions do; what is wrong is named."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from hostile_images import HOSTILE, encode, uri
from serving_models import live
from test_schema import check_document
from tiny_image_models import SHAPES, make_image_models

from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.image_text import zero_shot
from bertgpt.inference.model import Model
from bertgpt.inference.predict import predict
from bertgpt.serving import image_served
from bertgpt.serving.app import build_app
from bertgpt.serving.image_served import ImageServed, serve_model
from bertgpt.serving.limits import Batching, Limits

RNG = np.random.default_rng(3)
PICTURES = [encode(RNG.integers(0, 256, (30 + n, 20 + 3 * n, 3), np.uint8), ["PNG", "WEBP"][n % 2]) for n in range(11)]
LIMITS = Limits(max_bytes=400_000, max_images=12, max_pixels=100_000, max_texts=8)


@pytest.fixture(scope="session")
def models(tokenizer: Tokenizer, tokenizer_dir: Path) -> dict[str, Model]:
    return make_image_models(tokenizer, tokenizer_dir)


@contextlib.contextmanager
def serving(models: dict[str, Model]) -> Iterator[httpx.Client]:
    """A client of a live server that is ready."""
    app = build_app([serve_model(name, model) for name, model in models.items()], LIMITS, warm_up_first=False)
    with live(app, LIMITS) as url, httpx.Client(base_url=url, timeout=120) as client:
        end = time.monotonic() + 300
        while client.get("/ready").status_code != 200:
            assert time.monotonic() < end and app.state.server.failed is None
            time.sleep(0.1)
        yield client


@pytest.fixture(scope="module")
def client(models: dict[str, Model]) -> Iterator[httpx.Client]:
    """Of a server with a classifier."""
    with serving({"shapes": models["shapes"]}) as client:
        yield client


@pytest.fixture(scope="module")
def every(models: dict[str, Model]) -> Iterator[httpx.Client]:
    """Of a server with models of all kinds."""
    with serving(models) as client:
        yield client


def ask(client: httpx.Client, path: str, **body: object) -> list[dict]:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


@pytest.mark.slow
def test_models_say_what_they_can_do(every: httpx.Client):
    able = {card["id"]: card["capabilities"] for card in every.get("/v1/models").json()["data"]}
    assert able == {
        "shapes": ["classify_image"],
        "says": ["vqa"],
        "captions": ["caption"],
        "answers": ["vqa"],
        "clip": ["zero_shot_image"],
        "vit": ["classify_image"],
        "captioner": ["caption"],
    }


@pytest.mark.parametrize("name", [pytest.param("vit", marks=pytest.mark.slow), "shapes"])
@pytest.mark.parametrize("count", [1, 3, 11])
def test_classes_are_those_of_predict(request: pytest.FixtureRequest, models: dict[str, Model], name: str, count: int):
    client = request.getfixturevalue("client" if name == "shapes" else "every")
    expected = list(predict(models[name], [{"image": content} for content in PICTURES[:count]]))
    inputs = [uri(content) for content in PICTURES[:count]]
    assert ask(client, "/classify-image", inputs=inputs, model=name) == expected
    assert ask(client, "/classify-image", inputs=inputs[0], model=name) == expected[:1]
    assert set(expected[0]["probabilities"]) == set(SHAPES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["captions", "captioner"])
def test_captions_are_those_of_predict(every: httpx.Client, models: dict[str, Model], name: str):
    expected = [answer["answer"] for answer in predict(models[name], [{"image": content} for content in PICTURES[:5]])]
    found = ask(every, "/caption", inputs=[uri(content) for content in PICTURES[:5]], model=name)
    assert [item["text"] for item in found] == expected and len(set(expected)) > 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "field"), [("says", "statement"), ("answers", "question")])
def test_answers_are_those_of_predict(every: httpx.Client, models: dict[str, Model], name: str, field: str):
    questions = ["the cat", "a dog and a very big green bird", "sleeps under?"]
    records = [{"image": content, field: text} for content, text in zip(PICTURES, questions, strict=False)]
    expected = list(predict(models[name], records))
    asked = [{"image": uri(content), "question": text} for content, text in zip(PICTURES, questions, strict=False)]
    found = ask(every, "/vqa", inputs=asked, model=name)
    assert [item["answer"] for item in found] == [item.get("answer", item.get("label")) for item in expected]
    assert [item.get("probabilities") for item in found] == [item.get("probabilities") for item in expected]
    assert ask(every, "/vqa", **asked[1], model=name)[0]["answer"] == found[1]["answer"]


@pytest.mark.slow
def test_zero_shot_classes_are_those_of_the_offline_function(every: httpx.Client, models: dict[str, Model]):
    labels = ["cat", "big dog", "bird in a tree"]
    inputs = [uri(content) for content in PICTURES[:3]]
    found = ask(every, "/zero-shot-image", inputs=inputs, labels=labels)
    expected = zero_shot(models["clip"], PICTURES[:3], labels, "a photo of a {}.")
    for item, probabilities in zip(found, expected, strict=True):
        assert item["probabilities"] == pytest.approx(probabilities, abs=1e-6)
        assert item["label"] == next(iter(probabilities)) and item["probability"] == max(item["probabilities"].values())
    other = ask(every, "/zero-shot-image", inputs=inputs[0], labels=labels, hypothesis="the {label} runs")
    assert other[0]["probabilities"] == pytest.approx(zero_shot(models["clip"], PICTURES[:1], labels, "the {} runs")[0])
    assert other[0]["probabilities"] != found[0]["probabilities"]


def test_requests_at_the_same_time_are_computed_together_with_the_same_results(
    client: httpx.Client, models: dict[str, Model], monkeypatch: pytest.MonkeyPatch
):
    sizes, real = [], image_served.predict

    def slow(model: Model, records: list, batch_size: int) -> Iterator[dict]:
        sizes.append(len(records))
        time.sleep(0.2)
        return real(model, records, batch_size=batch_size)

    monkeypatch.setattr(image_served, "predict", slow)
    expected = list(predict(models["shapes"], [{"image": content} for content in PICTURES]))
    with ThreadPoolExecutor(11) as pool:
        found = list(pool.map(lambda content: ask(client, "/classify-image", inputs=uri(content))[0], PICTURES))
    assert found == expected
    assert len(sizes) < 8 and set(sizes) <= {1, 2, 4, 8}


@pytest.mark.parametrize("name", [name for name in HOSTILE if HOSTILE[name][1] != 200])
def test_hostile_pictures_are_refused_by_name_and_the_server_lives(client: httpx.Client, name: str):
    text, status, said = HOSTILE[name]
    answer = client.post("/classify-image", json={"inputs": [uri(PICTURES[0]), text]})
    error = answer.json()["error"]
    assert answer.status_code == status and said in error["message"] and error["param"] == "inputs[1]"
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/classify-image", {}, 422, "missing required field `inputs`"),
        ("/classify-image", {"inputs": []}, 422, "inputs is empty"),
        ("/classify-image", {"inputs": [""] * 13}, 413, "13 images, but a request may have 12"),
        ("/classify-image", {"inputs": [[]]}, 422, "at `inputs[0]`"),
        ("/classify-image", {"inputs": {"url": "https://example.org/a.png"}}, 422, "at `inputs`"),
        ("/classify-image", {"inputs": "x" * 500_000}, 413, "longer than 400,000 bytes"),
        ("/classify-image", {"inputs": "", "model": "nobody"}, 404, "no model 'nobody'"),
        ("/classify-image", {"inputs": "", "top_k": 5}, 422, "unknown field `top_k`"),
        ("/embed", {"inputs": "a text"}, 400, "no loaded model can embed"),
        ("/v1/embeddings", {"input": "a", "model": "shapes"}, 400, "cannot embed; it can: classify_image"),
    ],
)
def test_wrong_requests_are_refused_in_one_sentence(
    client: httpx.Client, path: str, body: dict, status: int, said: str
):
    answer = client.post(path, json=body)
    assert answer.status_code == status and said in answer.json()["error"]["message"], answer.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/caption", {"inputs": uri(PICTURES[0]), "model": "shapes"}, 400, "cannot caption; it can: classify_image"),
        ("/vqa", {"question": "a?"}, 422, "image is missing; give image and question, or inputs"),
        ("/vqa", {"image": uri(PICTURES[0])}, 422, "question is missing"),
        ("/vqa", {"image": uri(PICTURES[0]), "question": " "}, 422, "question is empty"),
        ("/vqa", {"image": "a", "inputs": []}, 422, "give either image and question, or inputs"),
        ("/vqa", {"inputs": []}, 422, "inputs is empty"),
        ("/vqa", {"image": "https://a.org/b.png", "question": "?"}, 422, "image: an image is a data URI"),
        ("/zero-shot-image", {"inputs": uri(PICTURES[0])}, 422, "missing required field `labels`"),
        ("/zero-shot-image", {"inputs": uri(PICTURES[0]), "labels": ["a"]}, 422, "two or more different ones"),
        ("/zero-shot-image", {"inputs": "", "labels": ["a", "b"], "hypothesis": "{}"}, 422, "must have {label}"),
        ("/zero-shot-image", {"inputs": "", "labels": ["a"] + ["b"] * 2}, 422, "two or more different ones"),
        ("/zero-shot-image", {"inputs": "", "labels": list(map(str, range(9)))}, 413, "9 labels are more than 8"),
    ],
)
def test_wrong_questions_and_labels_are_refused_in_one_sentence(
    every: httpx.Client, path: str, body: dict, status: int, said: str
):
    answer = every.post(path, json=body)
    assert answer.status_code == status and said in answer.json()["error"]["message"], answer.text


@pytest.mark.slow
def test_answers_about_images_are_those_of_the_document(every: httpx.Client):
    check_document(str(every.base_url).rstrip("/"), "--include-path-regex", "caption|vqa|image")


def test_images_are_decoded_off_the_event_loop_and_of_many_that_wait_some_are_refused(
    models: dict[str, Model], monkeypatch: pytest.MonkeyPatch
):
    threads, real = [], image_served.read_pixels

    def watched(*arguments: object) -> list:
        threads.append(threading.current_thread())
        return real(*arguments)

    monkeypatch.setattr(image_served, "read_pixels", watched)
    served = ImageServed("shapes", models["shapes"], Batching(max_waiting=2))
    app = build_app([served], LIMITS)
    with live(app, LIMITS) as url, httpx.Client(base_url=url, timeout=60) as client:
        answer = client.post("/classify-image", json={"inputs": [uri(PICTURES[0])] * 3})
        assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
        assert ask(client, "/classify-image", inputs=uri(PICTURES[0]))
    assert len(threads) == 2 and all("images" in thread.name for thread in threads)


def test_a_caller_that_leaves_is_not_computed(models: dict[str, Model]):
    async def run() -> None:
        served = ImageServed("shapes", models["shapes"])
        record = {"image": np.zeros(served.source.shape, np.uint8)}
        first, second = (asyncio.ensure_future(served.predict([record])) for _ in range(2))
        await asyncio.sleep(0)
        second.cancel()
        assert len(await first) == 1 and served.waiting == 0 and not served.queue.waiting
        await served.stop()

    asyncio.run(run())
