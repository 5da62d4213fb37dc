"""Tiny models with random parameters behind `Served`, for all tests of the server."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from starlette.applications import Starlette

from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.model import Model
from bertgpt.layers.stack import for_inference
from bertgpt.models.apply import make_apply, parameter_shapes
from bertgpt.models.bert import BertConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import T5Config
from bertgpt.serving.limits import Limits
from bertgpt.serving.served import Served
from bertgpt.serving.server import make_server, open_socket
from bertgpt.types import Inputs, Labels, ModelConfig

LIMITS = Limits(max_bytes=20_000, max_texts=8, max_depth=8, max_new_tokens=200, timeout=60, read_timeout=0.5)
SIZE = {"vocab_size": 200, "d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 32, "max_len": 48}
ENCODER = BertConfig(**SIZE)
DECODER = GptConfig(**SIZE)
ENCODER_DECODER = T5Config(**SIZE, num_decoder_layers=2, head_dim=8)


def random_params(config: ModelConfig, **heads: Any) -> dict:
    """Random parameters as checkpoints have them. `heads`: method → its arguments beside the hidden states."""
    ids = np.ones((1, 4), np.int32)
    shapes = nn.unbox(parameter_shapes(config.make(), Inputs(ids, decoder=Inputs(ids)), heads))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape, scale=0.3).astype(np.float32), shapes)


def make_model(config: ModelConfig, tokenizer: Tokenizer, labels: tuple[str, ...] = (), **heads: Any) -> Model:
    """A model as `load` gives it."""
    params = jax.device_put(for_inference(random_params(config, **heads), config.stacks, "float32"))
    kind = Labels(labels, kind="label") if labels else Labels()
    return Model(config, tokenizer, make_apply(config.make()), params, Path("tiny"), labels=kind)


def make_served(tokenizer: Tokenizer) -> dict[str, Served]:
    """An encoder with an MLM head, a cross-encoder, a classifier, a decoder and an encoder–decoder."""
    segments = jnp.ones((1, 4), jnp.int32)
    one, three = ({"segment_ids": segments, "num_labels": count} for count in (1, 3))
    models = {
        "bert": make_model(ENCODER, tokenizer, mlm_logits={}),
        "cross": make_model(ENCODER, tokenizer, class_logits=one),
        "classes": make_model(ENCODER, tokenizer, ("bad", "so", "good"), class_logits=three),
        "gpt": make_model(DECODER, tokenizer),
        "t5": make_model(ENCODER_DECODER, tokenizer),
    }
    return {name: Served(name, model) for name, model in models.items()}


@contextlib.contextmanager
def live(app: Starlette, limits: Limits) -> Iterator[str]:
    """The URL of a live server on a free port of the loopback interface."""
    listener = open_socket("127.0.0.1", 0)
    server = make_server(app, limits)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        end = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive() and time.monotonic() < end, "the server does not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server does not stop"
