"""A seeded fuzzer: valid requests to all endpoints, damaged in their values, their structure or their bytes."""

import collections
import copy
import json
import random
from typing import Any

import httpx

TEXTS = ["the cat runs", "a big dog", "", "\u0000", "é🏳️‍🌈", "[MASK]", "a" * 3000, "river " * 60, "\u202e", "'; DROP"]
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, "", "a", "1", [], {}, [[]],
    [None], ["a", 1], [1, 2, 3], [[1, 2]], [[1], "a"], {"a": 1}, "bert", "gpt", "t5", "cross", "classes", "nobody",
    "no", "Left", ["a"] * 20, [-1], [5_000_000_000],
]  # fmt: skip
RAW = [
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"01", b"+1", b"'a'", b"\xff", b"\\u0000", b'"\\ud800"', b"{", b"]",
    b"[" * 50, b"/**/", b"\x00", b",,", b'"', b"\\",
]  # fmt: skip


def requests() -> list[tuple[str, dict[str, Any]]]:
    """A valid request to each endpoint."""
    sampling = {"max_tokens": 8, "temperature": 0}
    return [
        ("/v1/embeddings", {"input": ["the cat", "a dog"], "encoding_format": "base64", "dimensions": 4}),
        ("/v1/completions", {"prompt": "the cat", "model": "gpt", "n": 1, "stop": ["x"], "logprobs": 1, **sampling}),
        ("/v1/completions", {"prompt": [5, 6, 7], "stream": True, **sampling}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "cat"}], "model": "t5", **sampling}),
        ("/embed", {"inputs": "the cat", "truncate": True, "normalize": False, "truncation_direction": "Left"}),
        ("/predict", {"inputs": [["the cat"], ["a", "b"]], "raw_scores": True}),
        (
            "/similarity",
            {"inputs": {"source_sentence": "a", "sentences": ["b", "c"]}, "parameters": {"truncate": True}},
        ),
        ("/tokenize", {"inputs": ["the cat"], "add_special_tokens": False}),
        ("/decode", {"ids": [[5, 6], [7]], "skip_special_tokens": True}),
        ("/rerank", {"query": "a", "texts": ["b", "c"], "return_text": True, "model": "cross", "truncate": True}),
        ("/v1/rerank", {"query": "a", "documents": ["b", {"text": "c"}], "top_n": 1, "return_documents": True}),
        ("/v2/rerank", {"query": "a", "documents": ["b"], "model": "bert"}),
    ]


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Paths of all values within a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def damage(body: dict[str, Any], rng: random.Random) -> Any:
    """Replaces, removes, repeats or adds a value."""
    body = copy.deepcopy(body)
    path = rng.choice(places(body))
    new = rng.choice([rng.choice(VALUES), rng.choice(TEXTS), [rng.choice(TEXTS)] * rng.randint(0, 10)])
    if not path:
        return rng.choice([new, body | {rng.choice(["x", "__class__", "", "input "]): new}])
    parent = body
    for key in path[:-1]:
        parent = parent[key]
    kind = rng.randrange(3)
    if kind == 0:
        del parent[path[-1]]
    elif kind == 1:
        for _ in range(rng.choice([1, 3, 40])):
            new = [new] if rng.random() < 0.5 else {"a": new}
        parent[path[-1]] = new
    else:
        parent[path[-1]] = new
    return body


def fuzz(client: httpx.Client, count: int, rng: random.Random) -> collections.Counter[int]:
    """Sends `count` requests; status → how many answers had it.

    Raises:
      AssertionError: an answer is neither JSON nor a stream of events, or shows a traceback.
    """
    found: collections.Counter[int] = collections.Counter()
    valid = requests()
    for _ in range(count):
        path, body = rng.choice(valid)
        for _ in range(rng.choice([0, 1, 1, 2, 4])):
            if isinstance(body, dict):
                body = damage(body, rng)
        data = bytearray(json.dumps(body).encode())
        if rng.random() < 0.25 and data:
            for _ in range(rng.choice([1, 1, 5])):
                place = rng.randrange(len(data) + 1)
                data[place : place + rng.randrange(3)] = rng.choice(RAW + [bytes([rng.randrange(256)])])
        method, headers = "POST", {}
        if rng.random() < 0.05:
            method = rng.choice(["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "QUERY"])
        if rng.random() < 0.05:
            path = rng.choice(["/v1/embeddings/../..", path + "/", path + "%00", path.upper(), "//", "/static/..%2f"])
        if rng.random() < 0.1:
            headers = {rng.choice(["Content-Type", "Accept", "Authorization", "Cookie", "X-Y", "Origin"]): "a\tb" * 50}
        answer = client.request(method, path, content=bytes(data), headers=headers)
        found[answer.status_code] += 1
        assert answer.status_code < 500, (method, path, bytes(data)[:300], answer.text[:300])
        assert "Traceback" not in answer.text
        if answer.status_code != 200 and method != "HEAD":
            assert answer.json()["error"]["message"], (method, path, bytes(data)[:300])
    return found
