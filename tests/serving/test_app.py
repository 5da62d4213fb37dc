"""What surrounds all endpoints: token, CORS, back-pressure, time, clients that go away, the end, metrics, document."""

import asyncio
import dataclasses
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx
import msgspec
import numpy as np
import pytest
from serving_models import LIMITS, live
from starlette.testclient import TestClient

from bertgpt.serving.app import ENDPOINTS, GETS, build_app
from bertgpt.serving.batched import BatchedServed
from bertgpt.serving.encoder import EncoderEngine
from bertgpt.serving.pieces import Piece
from bertgpt.serving.served import Served
from bertgpt.types import UserError

QUESTION = {"input": "the cat"}


class Slow(Served):
    """A model whose vectors wait until `go` is set; it counts those that began and those that were given up."""

    def __init__(self, served: Served):
        super().__init__("slow", served.model)
        self.go, self.begun, self.cancelled = threading.Event(), 0, 0

    async def embed_ids(self, sequences, skipped=0, normalize=None):
        self.begun += 1
        try:
            while not self.go.is_set():
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return np.ones((len(sequences), 2), np.float32)


@pytest.fixture
def slow(served: dict[str, Served]) -> Slow:
    return Slow(served["bert"])


def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.01)


def test_a_token_is_asked_for_everywhere_but_at_the_probes_and_the_page(served: dict[str, Served]):
    with TestClient(build_app([served_again(served)], LIMITS, api_key="sesame")) as client:
        for path in ("/health", "/ready", "/", "/docs", "/static/docs.js"):
            assert client.get(path).status_code == 200, path
        for given in (None, "", "Bearer", "Bearer ", "Bearer sesam", "Bearer sesame2", "Basic sesame", "Bearer sésame"):
            headers = {} if given is None else {"Authorization": given.encode("latin-1")}
            for path in ("/v1/models", "/metrics", "/openapi.json", "/info", "/nowhere"):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer", (path, given)
            assert client.post("/v1/embeddings", json=QUESTION, headers=headers).status_code == 401
        headers = {"Authorization": "bearer sesame"}
        assert client.post("/v1/embeddings", json=QUESTION, headers=headers).status_code == 200
        assert client.get("/openapi.json", headers=headers).json()["security"] == [{"token": []}]


def served_again(served: dict[str, Served]) -> Served:
    """The encoder with a thread of its own, for an application that stops."""
    return Served("bert", served["bert"].model)


def test_other_origins_are_refused_unless_they_are_named(served: dict[str, Served]):
    origin = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    with TestClient(build_app([served_again(served)], LIMITS)) as client:
        assert client.options("/v1/embeddings", headers=origin).status_code == 405
        assert "access-control-allow-origin" not in client.get("/health", headers=origin).headers
    with TestClient(build_app([served_again(served)], LIMITS, cors_origins=["https://example.org"])) as client:
        assert client.options("/v1/embeddings", headers=origin).status_code == 200
        refused = client.post("/v1/embeddings", json={}, headers=origin)
        assert refused.status_code == 422
        assert refused.headers["access-control-allow-origin"] == "https://example.org"
        other = client.get("/health", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


def test_requests_beyond_the_queue_are_told_when_to_come_back_and_the_others_are_answered(slow: Slow):
    limits = dataclasses.replace(LIMITS, max_requests=2)
    with live(build_app([slow], limits), limits) as url, httpx.Client(base_url=url, timeout=60) as client:
        found: list[httpx.Response] = []
        threads = [
            threading.Thread(target=lambda: found.append(httpx.post(f"{url}/v1/embeddings", json=QUESTION, timeout=60)))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        until(lambda: slow.begun == 2, "both requests to begin")
        refused = client.post("/v1/embeddings", json=QUESTION)
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        assert "bertgpt_requests_accepted 2.0" in client.get("/metrics").text
        assert client.get("/health").status_code == 200
        slow.go.set()
        for thread in threads:
            thread.join(30)
        assert [answer.status_code for answer in found] == [200, 200]
        assert client.post("/v1/embeddings", json=QUESTION).status_code == 200


def test_what_takes_too_long_is_given_up_and_said_to_be(slow: Slow):
    limits = dataclasses.replace(LIMITS, timeout=0.3)
    with live(build_app([slow], limits), limits) as url:
        answer = httpx.post(f"{url}/v1/embeddings", json=QUESTION, timeout=60)
        assert answer.status_code == 504 and "longer than the server allows" in answer.json()["error"]["message"]
        assert slow.cancelled == 1


def test_a_stream_that_takes_too_long_ends_with_an_error(served: dict[str, Served]):
    limits = dataclasses.replace(LIMITS, timeout=0.5)
    model = Served("gpt", served["gpt"].model)

    async def generate(prompts, decoding, stop=(), logprobs=None):
        yield Piece(0, 0, "begun", (5,))
        await asyncio.sleep(60)

    model.generate = generate
    with live(build_app([model], limits), limits) as url:
        asked = {"prompt": "the cat", "stream": True}
        answer = httpx.post(f"{url}/v1/completions", json=asked, timeout=60)
    events = [json.loads(line[6:]) for line in answer.text.split("\n\n")[:-2]]
    assert answer.status_code == 200 and events[0]["choices"][0]["text"] == "begun"
    assert events[-1]["error"]["code"] == 504 and answer.text.endswith("data: [DONE]\n\n")


def test_messages_name_models_and_not_their_paths(slow: Slow):
    async def embed_ids(sequences, skipped=0, normalize=None):
        raise UserError(f"{slow.model.path}: has no such thing")

    slow.embed_ids = embed_ids
    with TestClient(build_app([slow], LIMITS)) as client:
        answer = client.post("/v1/embeddings", json=QUESTION)
    assert answer.status_code == 400 and answer.json()["error"]["message"] == "slow: has no such thing"


def test_work_for_a_client_that_goes_away_is_given_up(slow: Slow):
    app = build_app([slow], LIMITS)
    with live(app, LIMITS) as url:
        parts = urlsplit(url)
        body = b'{"input": "a"}'
        head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
            connection.sendall(head + body)
            until(lambda: slow.begun == 1, "the request to begin")
            assert app.state.server.accepted == 1
        until(lambda: slow.cancelled == 1, "the request to be given up")
        until(lambda: app.state.server.accepted == 0, "the place of the request to be free")


def test_a_stream_whose_client_goes_away_ends_its_generation(served: dict[str, Served], url: str):
    asked = {"model": "gpt", "prompt": "the cat", "max_tokens": 40, "stream": True}
    with httpx.Client(base_url=url, timeout=60) as client:
        with client.stream("POST", "/v1/completions", json=asked) as answer:
            next(answer.iter_lines())
        until(lambda: served["gpt"].waiting == 0, "the generation to end")


def test_a_server_that_stops_finishes_what_it_accepted_and_refuses_the_rest(slow: Slow):
    app = build_app([slow], LIMITS)
    with live(app, LIMITS) as url, httpx.Client(base_url=url, timeout=60) as client:
        assert client.get("/ready").status_code == 200
        found: list[httpx.Response] = []
        thread = threading.Thread(
            target=lambda: found.append(httpx.post(f"{url}/v1/embeddings", json=QUESTION, timeout=60))
        )
        thread.start()
        until(lambda: slow.begun == 1, "the request to begin")
        app.state.server.stopping = True
        assert client.get("/ready").status_code == 503 and client.get("/health").status_code == 200
        refused = client.post("/v1/embeddings", json=QUESTION)
        assert refused.status_code == 503 and "retry-after" in refused.headers
        slow.go.set()
        thread.join(30)
        assert found[0].status_code == 200


def test_before_models_are_warm_requests_are_refused(slow: Slow):
    warm = threading.Event()

    async def start() -> None:
        while not warm.is_set():
            await asyncio.sleep(0.01)

    slow.start = start
    slow.go.set()
    with TestClient(build_app([slow], LIMITS, warm_up_first=False)) as client:
        assert client.get("/ready").status_code == 503 and client.get("/health").status_code == 200
        assert client.post("/v1/embeddings", json=QUESTION).status_code == 503
        warm.set()
        until(lambda: client.get("/ready").status_code == 200, "the model to be warm")
        assert client.post("/v1/embeddings", json=QUESTION).status_code == 200


def test_a_fault_is_a_500_without_its_details_and_is_logged(slow: Slow, caplog: pytest.LogCaptureFixture):
    async def embed_ids(sequences, skipped=0, normalize=None):
        raise RuntimeError("a secret path")

    slow.embed_ids = embed_ids
    with TestClient(build_app([slow], LIMITS), raise_server_exceptions=False) as client:
        answer = client.post("/v1/embeddings", json=QUESTION)
    assert answer.status_code == 500 and "secret" not in answer.text and "a secret path" in caplog.text


def test_metrics_count_requests_by_endpoint_and_status_tokens_and_time(served: dict[str, Served]):
    with TestClient(build_app([served_again(served)], LIMITS)) as client:
        for question in (QUESTION, QUESTION, {}):
            client.post("/v1/embeddings", json=question)
        for path in ("/a", "/b", "/v1/models/x", "/v1/models/y"):
            client.get(path)
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    values = dict(re.findall(r"^(bertgpt\S+) (\S+)$", answer.text, re.MULTILINE))
    counted = 'bertgpt_requests_total{endpoint="%s",status="%s"}'
    assert values[counted % ("/v1/embeddings", 200)] == "2.0" and values[counted % ("/v1/embeddings", 422)] == "1.0"
    assert values[counted % ("other", 404)] == "2.0" and values[counted % ("/v1/models/…", 404)] == "2.0"
    assert values['bertgpt_request_seconds_count{endpoint="/v1/embeddings"}'] == "3.0"
    assert values['bertgpt_input_tokens_total{model="bert"}'] == "8.0"  # [CLS] the cat [SEP], twice
    assert values['bertgpt_queue_length{model="bert"}'] == "0.0"


def test_metrics_show_how_full_batches_are(served: dict[str, Served]):
    model = BatchedServed("bert", served["bert"].model)
    model.engine = EncoderEngine(model.model, budget=16)  # few shapes to compile
    model.engine.counters = model.counters
    with TestClient(build_app([model], LIMITS)) as client:
        client.post("/v1/embeddings", json={"input": ["the cat", "a dog runs"]})
        text = client.get("/metrics").text
    values = dict(re.findall(r'^bertgpt_(\w+)_total{model="bert"} (\S+)$', text, re.MULTILINE))
    assert values["input_tokens"] == values["batch_tokens"] == "9.0"
    assert float(values["batch_positions"]) >= 9


def test_the_document_names_every_endpoint_and_every_type_it_refers_to(client: httpx.Client):
    document = client.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    assert set(document["paths"]) == {item.path for item in (*ENDPOINTS, *GETS)}
    schemas = document["components"]["schemas"]
    references = set(re.findall(r'"#/components/schemas/(\w+)"', client.get("/openapi.json").text))
    assert references and references <= set(schemas)
    request = schemas["EmbeddingsRequest"]
    assert request["required"] == ["input"] and request["properties"]["input"]["description"].startswith("a text")
    assert request["properties"]["model"]["description"].startswith("name of a loaded model")
    for methods in document["paths"].values():
        for operation in methods.values():
            assert operation["summary"] and "200" in operation["responses"]
    identities = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(set(identities)) == len(identities)


def test_the_documentation_page_loads_only_own_files(client: httpx.Client):
    page = client.get("/docs").text
    assert "//" not in re.sub(r"<!doctype.*?>", "", page)
    for name in re.findall(r'(?:src|href)="(/static/[^"]+)"', page):
        assert client.get(name).status_code == 200, name
    msgspec.json.decode(client.get("/openapi.json").content)
