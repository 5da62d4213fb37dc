"""Hugging Face directories of random models, made without compiling anything."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from bertgpt.convert.core import ConvertibleConfig, put
from bertgpt.convert.hub import export_model
from bertgpt.models.apply import parameter_shapes
from bertgpt.models.bert import BertConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import T5Config
from bertgpt.types import Inputs, Params

SIZE = {"vocab_size": 40, "d_model": 8, "num_layers": 2, "num_heads": 2, "d_ff": 12}
BERT = BertConfig(**SIZE, max_len=16, activation="gelu")
GPT = GptConfig(**SIZE, max_len=16)
T5 = T5Config(**SIZE, num_decoder_layers=2, head_dim=4)
CLASSES = 3


def random_params(config: ConvertibleConfig, *methods: str) -> Params:
    """Random parameters of a model and of the heads that these methods use."""
    ids = jnp.zeros((1, 1), jnp.int32)
    heads: dict[str, dict[str, object]] = {}
    for method in methods:
        heads[method] = {"segment_ids": ids} if method in ("pool", "nsp_logits", "class_logits") else {}
        heads[method] |= {"num_labels": CLASSES} if method in ("class_logits", "tag_logits") else {}
    rng, params = np.random.default_rng(0), {}
    shapes = parameter_shapes(config.make(), Inputs(ids, decoder=Inputs(ids)), heads)
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        name = "/".join(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        put(params, name, rng.normal(0.3, 0.2, leaf.shape).astype(np.float32))
    return params


def classifier(path: Path) -> Path:
    """A BertForSequenceClassification of three classes."""
    export_model(path, BERT, random_params(BERT, "class_logits"), architecture="BertForSequenceClassification")
    return path


def edit_config(path: Path, **changes: object) -> None:
    """Changes fields of config.json; ... removes one."""
    values = json.loads((path / "config.json").read_text()) | changes
    kept = {key: value for key, value in values.items() if value is not ...}
    (path / "config.json").write_text(json.dumps(kept))


def edit_tensors(path: Path, change) -> None:
    """Rewrites the weights: change(tensors by name) → tensors by name."""
    tensors = change(safetensors.numpy.load_file(path / "model.safetensors"))
    safetensors.numpy.save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
