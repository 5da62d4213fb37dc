"""Hostile and broken input: a correct 4xx with one sentence, and the server lives. A fuzzer of 500 requests."""

import collections
import json
import random
import socket
import time
import zlib
from urllib.parse import urlsplit

import httpx
import pytest
from serving_fuzz import fuzz
from serving_models import LIMITS

from bertgpt.serving.body import depth_of

TEXT = "/v1/embeddings"


def check(answer: httpx.Response, *statuses: int) -> str:
    """The one sentence of a refusal."""
    assert answer.status_code in statuses, (answer.status_code, answer.text)
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "code", "param"} and error["code"] == answer.status_code
    assert "\n" not in error["message"] and "Traceback" not in error["message"] and len(error["message"]) < 400
    assert answer.headers["x-content-type-options"] == "nosniff"
    return error["message"]


@pytest.mark.parametrize(
    "body, status, message",
    [
        (b"", 400, "not valid JSON"),
        (b"{", 400, "not valid JSON"),
        (b'{"input": "a"} {}', 400, "not valid JSON"),
        (b'{"input": NaN}', 400, "not valid JSON"),
        (b'{"input": "a", "dimensions": Infinity}', 400, "not valid JSON"),
        (b"{'input': 'a'}", 400, "not valid JSON"),
        (b'\xef\xbb\xbf{"input": "a"}', 400, "not valid JSON"),
        (b'{"input": "\xff"}', 400, "not valid UTF-8"),
        (b'{"input": "\xed\xa0\x80"}', 400, "not valid UTF-8"),
        (b'{"input": "\\ud800"}', 400, "not valid JSON"),
        (b'{"input": "\\udc00 a"}', 400, "not valid JSON"),
        (b'{"input": "\\ud800\\u0041"}', 400, "not valid JSON"),
        (b"[]", 422, "Expected `object`"),
        (b"null", 422, "Expected `object`"),
        (b"{}", 422, "missing required field `input`"),
        (b'{"input": null}', 422, "at `input`"),
        (b'{"input": "a", "inputs": "b"}', 422, "unknown field `inputs`"),
        (b'{"input": "a", "dimensions": "3"}', 422, "at `dimensions`"),
        (b'{"input": "a", "dimensions": 1e999}', 422, "at `dimensions`"),
        (b'{"input": "a", "dimensions": -1}', 422, "at `dimensions`"),
        (b'{"input": "a", "dimensions": 17}', 422, "must lie in 1 … 16"),
        (b'{"input": [99999999999999999999]}', 422, "input"),
        (b'{"input": "a", "encoding_format": "hex"}', 422, "at `encoding_format`"),
        (b'{"input": "a", "model": "../../etc/passwd"}', 404, "no model '../../etc/passwd'"),
        (b'{"input": "a", "model": {"a": 1}}', 422, "at `model`"),
        (b'{"input": ' + b"[" * 10_000, 400, "nested deeper than 8 levels"),
        (b'{"x":' * 2_000, 400, "nested deeper than 8 levels"),
        (b'{"input": ["a","a","a","a","a","a","a","a","a"]}', 413, "9 texts, but a request may have 8"),
        (b'{"input": "' + b"a " * 9_000 + b'"}', 413, "has 9002 tokens"),
        (b'{"input": "' + b"a" * 30_000 + b'"}', 413, "longer than 20,000 bytes"),
    ],
)
def test_bodies_that_are_no_request_are_refused_in_one_sentence(client, body: bytes, status: int, message: str):
    assert message in check(client.post(TEXT, content=body), status)


@pytest.mark.parametrize(
    "text", ["", " ", "\0", "\u202e\ufeff\uffff", "🏳️‍🌈" * 5, "a" * 15_000, "[MASK] [SEP]", "\n\t\r"]
)
def test_strange_texts_are_answered(client: httpx.Client, text: str):
    answer = client.post(TEXT, json={"input": text, "truncate": True})
    assert answer.status_code == 200 and len(answer.json()["data"][0]["embedding"]) == 16


def test_depth_is_that_of_json_whatever_strings_hold():
    for value in ([], [[1], {"a": [[]]}], {"[[[": '}]\\"[['}, "[[[", ["\\", '"', "[" * 50], {"a": [{"b": [1, [2]]}]}):

        def depth(value) -> int:
            inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
            return 0 if inner is None else 1 + max(map(depth, inner), default=0)

        assert depth_of(json.dumps(value).encode()) == depth(value)
    begun = time.monotonic()
    for bad in (b'"\\' * 1_000_000, b'"' * 2_000_001, b'{"a' * 500_000, b"\\" * 2_000_000):
        depth_of(bad)
    assert time.monotonic() - begun < 20  # linear: quadratic time would be hours


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "/nowhere", 404),
        ("GET", TEXT, 405),
        ("DELETE", "/v1/models", 405),
        ("PUT", TEXT, 405),
        ("TRACE", "/", 405),
        ("POST", "/v1/embeddings/", 404),
        ("POST", "/V1/EMBEDDINGS", 404),
        ("GET", "/static/../app.py", 404),
        ("GET", "/static/%2e%2e/app.py", 404),
        ("GET", "/static/..%2f..%2f..%2fpyproject.toml", 404),
        ("GET", "/static/%00", 404),
        ("GET", "/static//etc/passwd", 404),
        ("GET", "/static/" + "a" * 5_000, 404),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/%ff%fe", 404),
    ],
)
def test_wrong_methods_and_paths_are_refused(client: httpx.Client, method: str, path: str, status: int):
    check(client.request(method, path), status)


def talk(url: str, data: bytes, wait: float = 10.0, close_writing: bool = False) -> bytes:
    """What the server answers to these bytes until it closes the connection or `wait` seconds pass."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=wait) as connection:
        found = b""
        try:
            connection.sendall(data)
            if close_writing:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                found += part
        except (TimeoutError, ConnectionResetError, BrokenPipeError):
            pass
        return found


HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "data, status",
    [
        (b"hello\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20 + b"\r\n\r\n", b"400"),  # TLS
        (b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: -5\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: 999999999999\r\n\r\n", b"413"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzzz\r\n", b"400"),
        (HEAD + b"X: " + b"a" * 100_000, b"400"),
        (HEAD + b"".join(b"X-%d: 1\r\n" % i for i in range(20_000)), b"400"),
        (HEAD + b"Content-Length: 10\r\n\r\n{", b"408"),  # the rest never arrives
        (HEAD + b"X-Half: ", b"408"),  # half a head
    ],
)
def test_what_is_no_http_or_never_arrives_is_refused_and_closed(url: str, data: bytes, status: bytes):
    begun = time.monotonic()
    found = talk(url, data)
    assert found.startswith(b"HTTP/1.1 " + status), found[:200]
    assert b'"message"' in found and b"Traceback" not in found
    assert time.monotonic() - begun < LIMITS.read_timeout * 8


def test_silent_and_half_closed_clients_are_let_go(url: str, client: httpx.Client):
    begun = time.monotonic()
    assert talk(url, b"") == b""  # nothing is sent
    talk(url, HEAD + b"Content-Length: 10\r\n\r\n{", close_writing=True)
    assert time.monotonic() - begun < LIMITS.read_timeout * 8
    assert client.get("/health").status_code == 200


def test_a_body_that_drips_is_cut_off_and_pipelined_requests_are_answered_in_order(url: str):
    body = b'{"input": "a"}'
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    last = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    found = talk(url, request * 3 + last)
    assert found.count(b"HTTP/1.1 200") == 4 and found.rstrip().endswith(b'{"status":"ok"}')
    bad = HEAD + b"Content-Length: 2\r\n\r\n[]"
    found = talk(url, bad + request + last)
    assert [part[:3] for part in found.split(b"HTTP/1.1 ")[1:]] == [b"422", b"200", b"200"]


def test_chunked_bodies_are_counted_too(url: str, client: httpx.Client):
    def parts():
        for _ in range(30):
            yield b" " * 1_000

    assert "longer than 20,000 bytes" in check(client.post(TEXT, content=parts()), 413)

    def small():
        yield b'{"input":'
        yield b' "a"}'

    assert client.post(TEXT, content=small()).status_code == 200


def test_compressed_bodies_are_no_json(client: httpx.Client):
    bomb = zlib.compress(b" " * 10_000_000)
    check(client.post(TEXT, content=bomb, headers={"Content-Encoding": "deflate"}), 400)


def test_the_fuzzer_finds_no_fault(client: httpx.Client):
    statuses = fuzz(client, 500, random.Random(1))
    assert sum(statuses.values()) == 500 and max(statuses) < 500, statuses
    assert statuses[200] > 20 and statuses[422] > 20 and statuses[400] > 20


@pytest.mark.slow
def test_the_fuzzer_finds_no_fault_in_ten_thousand_requests(client: httpx.Client):
    statuses: collections.Counter[int] = fuzz(client, 10_000, random.Random(2))
    print(sorted(statuses.items()))
    assert sum(statuses.values()) == 10_000 and max(statuses) < 500, statuses
