"""Models with weights of 8 bits load and answer like the models themselves, within the error of the rounding."""

import dataclasses
import json
import random
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, WORDS, fast
from test_export import GPT, random_params

from bertgpt.config import TEST, Experiment
from bertgpt.convert.hub import export_model
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.encode import embed, fill_mask
from bertgpt.inference.footprint import open_any, scores_on_test, size_of
from bertgpt.inference.int8 import export_int8
from bertgpt.inference.model import load
from bertgpt.inference.predict import predict
from bertgpt.layers.quantized import Quantized, dequantize_params, quantize, quantize_params
from bertgpt.layers.stack import for_inference
from bertgpt.models.apply import make_apply
from bertgpt.models.t5 import Experts, T5Config
from bertgpt.objectives.classify import Classify
from bertgpt.runs.checkpoint import named_leaves
from bertgpt.tasks.classification import TextClassification
from bertgpt.training.loop import train
from bertgpt.training.optim import AdamW
from bertgpt.types import Inputs

TEXTS = ["the cat sleeps under the tree", "a dog runs", "the big green house sings"]
T5 = T5Config(
    vocab_size=200, d_model=16, num_layers=2, num_decoder_layers=2, num_heads=2, head_dim=8, d_ff=32, max_len=32
)
CONFIGS = {
    "bert": dataclasses.replace(TINY, scan=False),
    "albert": dataclasses.replace(TINY, shared_groups=1, embed_dim=8),
    "gpt": dataclasses.replace(GPT, local_window=4),
    "t5": dataclasses.replace(T5, tied=False),
    "switch": dataclasses.replace(T5, experts=Experts(2)),
}


@pytest.fixture(scope="module")
def hub(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory of BERT with its MLM head."""
    path = tmp_path_factory.mktemp("hub") / "bert"
    config = dataclasses.replace(TINY, vocab_size=tokenizer.vocab.size, scan=False)
    params = random_params(config, mlm_logits={}, pool={"segment_ids": jnp.ones((1, 4), jnp.int32)})
    export_model(path, config, params, architecture="BertForMaskedLM", files=tokenizer.files(), drop={"pooler"})
    return path


def test_a_model_with_weights_of_8_bits_is_loaded_like_any_other(hub: Path, tmp_path: Path):
    whole = load(hub, arrange="host")
    assert export_int8(whole, tmp_path / "small") == "BertConfig with weights of 8 bits"
    small = load(tmp_path / "small")
    table = small.params["embeddings"]["token"]
    assert isinstance(table, Quantized) and table.values.dtype == jnp.int8
    on_host = named_leaves(load(tmp_path / "small", arrange="host").params)
    for name, leaf in named_leaves(whole.params).items():
        if name.endswith(("token", "position")):
            bound = quantize(leaf, leaf.ndim - 1).scale / 2
        elif name.endswith("kernel"):
            bound = quantize(leaf, int(name.startswith("encoder/"))).scale / 2
        else:
            bound = 0.0
        assert on_host[name].dtype == np.float32
        assert (np.abs(on_host[name] - leaf) <= bound * (1 + 1e-5)).all(), name
    cosine = np.sum(embed(load(hub), TEXTS) * embed(small, TEXTS), axis=1)
    assert (cosine > 0.99).all() and (cosine < 1 - 1e-7).any()
    (found,) = next(fill_mask(small, ["the [MASK] sleeps"], top_k=3))
    assert len(found) == 3


@pytest.mark.parametrize("name", fast(CONFIGS, "bert", "gpt"))
def test_every_family_computes_with_weights_of_8_bits(name: str):
    config = CONFIGS[name]
    ids = jnp.asarray(np.random.default_rng(0).integers(5, 200, (2, 12)), jnp.int32)
    inputs = Inputs(ids, decoder=Inputs(ids) if config.architecture == "encoder_decoder" else None)
    module = config.make()
    params = jax.jit(lambda: unboxed(module, inputs))()
    small = quantize_params(jax.tree.map(np.asarray, params))
    count = sum(isinstance(x, Quantized) for x in jax.tree.leaves(small, is_leaf=lambda x: isinstance(x, Quantized)))
    assert count >= 6
    apply = jax.jit(make_apply(module))
    expected = apply(jax.device_put(dequantize_params(small)), inputs)
    for arranged in (small, for_inference(small, config.stacks, "float32")):
        found = apply(jax.device_put(arranged), inputs)
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert 0 < error < 0.02, error  # of the activations alone


def unboxed(module, inputs: Inputs) -> dict:
    import flax.linen as nn

    return nn.unbox(nn.init(lambda m: m(inputs), module)({"params": jax.random.key(0)}))["params"]


def test_it_takes_a_quarter_of_the_bytes():
    rng = np.random.default_rng(0)
    sizes = {"query": (4, 256, 4, 64), "up": (4, 256, 1024), "down": (4, 1024, 256)}
    layers = {name: {"kernel": rng.normal(size=shape).astype(np.float32)} for name, shape in sizes.items()}
    params = {"encoder": layers, "embeddings": {"token": rng.normal(size=(2000, 256)).astype(np.float32)}}
    small = sum(leaf.nbytes for leaf in jax.tree.leaves(quantize_params(params)))
    assert small / sum(leaf.nbytes for leaf in jax.tree.leaves(params)) < 0.256


@pytest.mark.slow
def test_a_run_loses_at_most_one_point_of_accuracy(tokenizer_dir: Path, tmp_path: Path):
    """Which of two words occurs more often in a text."""
    rng = random.Random(0)

    def record() -> dict[str, str]:
        words = [rng.choice(WORDS) for _ in range(12)]
        count = words.count("cat") + words.count("dog") - words.count("house") - words.count("tree")
        return {"text": " ".join(words), "label": "animals" if count > 0 else "things"}

    for name, number in (("train", 2000), ("test", 600)):
        lines = [json.dumps(record()) + "\n" for _ in range(number)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    data = TextClassification(
        str(tmp_path / "train.jsonl"), labels=("things", "animals"), tokenizer=str(tokenizer_dir), seq_len=32,
        validation=0.0, test_path=str(tmp_path / "test.jsonl"),
    )  # fmt: skip
    model = dataclasses.replace(TINY, d_model=32, d_ff=64, dropout=0.0, pooler="mean")
    optim = AdamW(lr=3e-3, warmup_steps=20)
    run = Experiment("words", model, Classify(2), data, optim, steps=400, batch_size=32, evals=(TEST,))
    train(run, tmp_path)
    assert export_int8(load(tmp_path / "words", arrange="host"), tmp_path / "small").startswith("the run words")
    whole, small = load(tmp_path / "words"), load(tmp_path / "small")
    before, after = (scores_on_test(model, open_any(model.path, model))["accuracy"] for model in (whole, small))
    assert before > 0.8 and after >= before - 0.01, (before, after)
    assert next(predict(small, ["cat dog cat"]))["label"] == "animals"
    assert size_of(tmp_path / "small") < size_of(tmp_path / "words")
