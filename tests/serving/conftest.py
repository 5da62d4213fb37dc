"""Tiny models behind the application, in this process. Without the packages of [serve] these tests are skipped."""

from collections.abc import Iterator

import jax.numpy as jnp
import pytest

pytest.importorskip("starlette")

from serving_models import DECODER, ENCODER, ENCODER_DECODER, make_model
from starlette.testclient import TestClient

from bertgpt.data.tokenizer import Tokenizer
from bertgpt.serving.app import build_app
from bertgpt.serving.limits import Limits
from bertgpt.serving.served import Served

LIMITS = Limits(max_bytes=20_000, max_texts=8, max_depth=8, timeout=60, read_timeout=0.5)


@pytest.fixture(scope="session")
def served(tokenizer: Tokenizer) -> dict[str, Served]:
    """An encoder with an MLM head, a cross-encoder, a decoder and an encoder–decoder."""
    segments = jnp.ones((1, 4), jnp.int32)
    pair = {"segment_ids": segments, "num_labels": 1}
    models = {
        "bert": make_model(ENCODER, tokenizer, mlm_logits={}),
        "cross": make_model(ENCODER, tokenizer, class_logits=pair),
        "gpt": make_model(DECODER, tokenizer),
        "t5": make_model(ENCODER_DECODER, tokenizer),
    }
    return {name: Served(name, model) for name, model in models.items()}


@pytest.fixture(scope="session")
def client(served: dict[str, Served]) -> Iterator[TestClient]:
    """A client of all of them."""
    with TestClient(build_app(list(served.values()), LIMITS), raise_server_exceptions=False) as client:
        yield client
