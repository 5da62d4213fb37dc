"""ONNX files give in onnxruntime what the models give, for any batch and length."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import fast
from test_export import CONFIG, GPT, TAGS, class_params, data_with, random_params, run_of

from bertgpt.convert.sentence_transformers import Dense, Embedder, Normalize, Pooling
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.encode import classify, embed
from bertgpt.inference.footprint import import_runner, open_any
from bertgpt.inference.model import Model
from bertgpt.inference.onnx import export_onnx
from bertgpt.inference.program import program_of
from bertgpt.models.apply import make_apply
from bertgpt.objectives.classify import ClassifyMany, ClassifyOrdinal, Regress
from bertgpt.objectives.tag import Tag
from bertgpt.tasks.tagging import TokenTagging
from bertgpt.types import Labels, ObjectiveConfig, UserError

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SHAPES = ((1, 5), (3, 17), (2, 32))
TEXTS = ["the cat sleeps", "the big green house sings of the small blue bird", "a dog"]
VARIANTS = {
    "bert": {},
    "roberta": {"num_types": 0, "first_position": 2, "activation": "gelu", "pooler": "dropout_tanh"},
    "distilbert": {"num_types": 0, "pooler": "relu"},
    "albert": {"shared_groups": 1, "embed_dim": 8},
    "pre": {"norm_position": "pre", "activation": "silu", "pooler": "mean"},
    "adapters": {"adapter_dim": 4, "activation": "quick_gelu", "pooler": "first"},
}


def fields_of(shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Arguments by our names; half of the last row is padding."""
    rng, real = np.random.default_rng(shape[1]), np.ones(shape, np.int32)
    real[-1, shape[1] // 2 :] = 0
    types = (np.arange(shape[1]) > shape[1] // 2).astype(np.int32) * real
    return {"input_ids": rng.integers(5, 200, shape).astype(np.int32) * real, "segment_ids": real, "type_ids": types}


def assert_equal(model: Model, folder: Path, wanted: str | None = None, shapes=SHAPES) -> None:
    """Compares with the program of the model, at all positions that are no padding."""
    export_onnx(model, folder, wanted)
    program, opened = program_of(model, wanted), open_any(folder)
    run = jax.jit(program.run)
    for shape in shapes:
        fields = fields_of(shape)
        expected = np.asarray(run(program.params, {name: fields[name] for name in program.inputs}))
        found = opened.run(fields)
        real = fields["segment_ids"].astype(bool) if expected.ndim == 3 else ...
        np.testing.assert_allclose(found[real], expected[real], rtol=0, atol=1e-4 * max(1.0, np.abs(expected).max()))


def model_of(config, params: dict, tokenizer: Tokenizer, **more: object) -> Model:
    return Model(config, tokenizer, make_apply(config.make()), params, Path("model"), **more)


@pytest.mark.parametrize("name", fast(VARIANTS, "bert", "pre"))
def test_every_variant_gives_the_same_probabilities(name: str, tokenizer: Tokenizer, tmp_path: Path):
    config = dataclasses.replace(CONFIG, **VARIANTS[name])
    labels = Labels(("bad", "so", "good"), kind="label")
    model = model_of(config, scaled(class_params(3, config)), tokenizer, labels=labels)
    assert_equal(model, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if config.num_types else [])]
    assert list(manifest["inputs"]) == names and manifest["labels"] == ["bad", "so", "good"]
    if name == "bert":
        module = import_runner(tmp_path / "out")
        answers = [list(answer["probabilities"].values()) for answer in classify(model, TEXTS)]
        np.testing.assert_allclose(module.run(**module.encode(TEXTS)), answers, atol=2e-4)


def scaled(params: dict) -> dict:
    """Smaller kernels than those of `random_params`, with which probabilities are not all 0 or 1."""
    return jax.tree_util.tree_map_with_path(lambda path, x: x * 0.2 if "kernel" in str(path[-1]) else x, params)


@pytest.mark.parametrize("objective, target", [(ClassifyMany(3), "labels"), (Regress(scale=5.0), "number")])
def test_other_classifiers(objective: ObjectiveConfig, target: str, tokenizer: Tokenizer, tmp_path: Path):
    params = scaled(class_params(1 if target == "number" else 3))
    model = run_of(objective, data_with(target), params, tokenizer)
    model = model._replace(objective=objective.make(tokenizer.vocab))
    assert_equal(model, tmp_path / "out", shapes=SHAPES[:1])


def test_states_logits_and_embeddings(tokenizer: Tokenizer, tmp_path: Path):
    params = scaled(random_params(CONFIG, mlm_logits={}))
    model = model_of(CONFIG, params, tokenizer)
    assert_equal(model, tmp_path / "logits", shapes=SHAPES[:2])
    assert_equal(model, tmp_path / "states", "hidden_states", SHAPES[:2])
    dense = {"kernel": params["mlm_head"]["dense"]["kernel"], "bias": np.ones(16, np.float32)}
    modules = (Pooling(("mean",)), Dense("Tanh"), Normalize())
    embedder = Embedder(modules, ({}, dense, {}), truncate_dim=None)
    model = model_of(CONFIG, random_params(CONFIG), tokenizer, embedder=embedder)
    assert_equal(model, tmp_path / "embedding", shapes=SHAPES[:2])
    module = import_runner(tmp_path / "embedding")
    np.testing.assert_allclose(module.run(**module.encode(TEXTS)), embed(model, TEXTS), atol=1e-4)


def test_what_cannot_be_written_is_refused_by_name(tokenizer: Tokenizer, tmp_path: Path):
    tagged = random_params(CONFIG, tag_logits={"num_labels": 3}) | {"crf": {"start": np.zeros(3, np.float32)}}
    data = TokenTagging("nowhere.conll", labels=TAGS, seq_len=32)
    tagger = run_of(Tag(TAGS, crf=True), data, tagged, tokenizer)
    with pytest.raises(UserError, match="conditional random field here; --drop_crf"):
        export_onnx(tagger, tmp_path / "out")
    export_onnx(tagger, tmp_path / "tags", drop_crf=True)
    assert open_any(tmp_path / "tags").run(fields_of((2, 9))).shape == (2, 9, 3)
    ordinal = run_of(ClassifyOrdinal(3), data_with(), class_params(2), tokenizer)
    with pytest.raises(UserError, match="thresholds of ClassifyOrdinal"):
        export_onnx(ordinal, tmp_path / "out")
    with pytest.raises(UserError, match="GptConfig is not of the BERT family"):
        export_onnx(model_of(GPT, {}, tokenizer), tmp_path / "out")
    assert not (tmp_path / "out").exists()
