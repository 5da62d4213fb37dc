"""Tiny models with random parameters behind `Served`, for all tests of the server."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.model import Model
from bertgpt.layers.stack import for_inference
from bertgpt.models.apply import make_apply, parameter_shapes
from bertgpt.models.bert import BertConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import T5Config
from bertgpt.types import Inputs, Labels, ModelConfig

SIZE = {"vocab_size": 200, "d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 32, "max_len": 48}
ENCODER = BertConfig(**SIZE)
DECODER = GptConfig(**SIZE)
ENCODER_DECODER = T5Config(**SIZE, num_decoder_layers=2, head_dim=8)


def make_model(config: ModelConfig, tokenizer: Tokenizer, labels: tuple[str, ...] = (), **heads: Any) -> Model:
    """A model as `load` gives it. `heads`: method → its arguments beside the hidden states."""
    ids = np.ones((1, 4), np.int32)
    shapes = nn.unbox(parameter_shapes(config.make(), Inputs(ids, decoder=Inputs(ids)), heads))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape, scale=0.3).astype(np.float32), shapes)
    params = for_inference(params, config.stacks, "float32")
    kind = Labels(labels, kind="label") if labels else Labels()
    return Model(config, tokenizer, make_apply(config.make()), params, Path("tiny"), labels=kind)
