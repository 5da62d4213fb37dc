"""What Hugging Face's format cannot represent is refused by name, and nothing is left out without a word."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

from bertgpt.config import Experiment
from bertgpt.convert.equivalent import absorb_bias, fit_to_family
from bertgpt.convert.files import read_safetensors
from bertgpt.convert.hub import FAMILIES, check_same_function, export_model, import_model, parameter_shapes
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.export import convert
from bertgpt.inference.model import Model, load
from bertgpt.models.apply import make_apply
from bertgpt.models.bert import BertConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.objectives.classify import Classify, ClassifyMany, ClassifyOrdinal, Regress
from bertgpt.objectives.lm import PrefixLM
from bertgpt.objectives.multitask import Named, Tasks
from bertgpt.objectives.seq2seq import ConditionalLM
from bertgpt.objectives.span import SpanCorruption
from bertgpt.objectives.tag import Tag
from bertgpt.prepare.corpus import Corpus
from bertgpt.tasks.classification import TextClassification
from bertgpt.tasks.tagging import TokenTagging
from bertgpt.training.optim import AdamW
from bertgpt.types import Inputs, Labels, ObjectiveConfig, UserError

CONFIG = dataclasses.replace(TINY, scan=False)
GPT = GptConfig(vocab_size=200, d_model=16, num_layers=2, num_heads=4, d_ff=32, max_len=32)
TAGS = ("O", "B-X", "I-X")


def random_params(config: Any, **heads: dict[str, Any]) -> dict:
    """Random parameters of a model with these heads: method → its arguments."""
    import flax.linen as nn
    import jax

    shapes = nn.unbox(parameter_shapes(config.make(), Inputs(np.ones((1, 4), np.int32)), heads))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


def run_of(objective: ObjectiveConfig, data: Any, params: dict, tokenizer: Tokenizer, config: Any = CONFIG) -> Model:
    """A run as `load` gives it, without files."""
    experiment = Experiment("run", config, objective, data, AdamW(), steps=1)
    return Model(
        config, tokenizer, make_apply(config.make()), params, Path("run"), labels=data.label_set, experiment=experiment
    )


def data_with(target: str = "label") -> TextClassification:
    labels = () if target == "number" else ("bad", "so", "good")
    return TextClassification("nowhere.jsonl", labels=labels, target=target, seq_len=32)


def class_params(rows: int, config: Any = CONFIG) -> dict:
    segments = {"segment_ids": jnp.ones((1, 4), jnp.int32)}
    return random_params(config, class_logits={**segments, "num_labels": rows})


@pytest.fixture
def tagger(tokenizer: Tokenizer) -> Model:
    params = random_params(CONFIG, tag_logits={"num_labels": 3}) | {"crf": {"start": np.zeros(3, np.float32)}}
    return run_of(Tag(TAGS, crf=True), TokenTagging("nowhere.conll", labels=TAGS, seq_len=32), params, tokenizer)


def test_a_crf_is_refused_unless_it_may_be_dropped_which_is_said(tagger: Model, tmp_path: Path, caplog):
    for architecture in (None, "BertForTokenClassification"):
        with pytest.raises(UserError, match="crf: transformers has no conditional random field; --drop_crf"):
            convert(tagger, tmp_path / "out", architecture)
    assert not (tmp_path / "out").exists()
    with caplog.at_level(logging.WARNING):
        convert(tagger, tmp_path / "out", drop_crf=True)
    assert "does not have crf, which is left out" in caplog.text and "I-X is predicted only after" in caplog.text
    assert import_model(tmp_path / "out").labels == Labels(TAGS, kind="tag")
    convert(tagger, tmp_path / "base", "BertModel")
    assert "does not have tagger, crf, which" in caplog.text or "does not have crf, tagger, which" in caplog.text


def test_ordered_labels_are_refused(tokenizer: Tokenizer, tmp_path: Path):
    run = run_of(ClassifyOrdinal(3), data_with(), class_params(2), tokenizer)
    for architecture in (None, "BertForSequenceClassification"):
        with pytest.raises(UserError, match="ClassifyOrdinal: transformers has no classifier of ordered labels"):
            convert(run, tmp_path / "out", architecture)


@pytest.mark.parametrize(
    "objective, target, problem",
    [
        (Classify(3), "label", "single_label_classification"),
        (ClassifyMany(3), "labels", "multi_label_classification"),
        (Regress(scale=5.0), "number", "regression"),
    ],
)
def test_the_problem_is_named_and_the_scale_is_part_of_the_classifier(objective, target, problem, tokenizer, tmp_path):
    params = class_params(1 if target == "number" else 3)
    convert(run_of(objective, data_with(target), params, tokenizer), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["problem_type"] == problem
    names = ["LABEL_0"] if target == "number" else ["bad", "so", "good"]
    assert list(config["id2label"].values()) == names
    scale = 5.0 if target == "number" else 1.0
    again = load(tmp_path / "out", arrange="host")
    assert again.labels.kind == target
    for name, value in params["classifier"]["dense"].items():
        np.testing.assert_allclose(again.params["classifier"]["dense"][name], value * scale, rtol=1e-6)


@pytest.mark.parametrize(
    "objective",
    [ConditionalLM(bidirectional=True), PrefixLM(), SpanCorruption(architecture="decoder")],
    ids=lambda objective: type(objective).__name__,
)
def test_prompts_that_attend_in_both_directions_need_consent(objective, tokenizer, tmp_path, caplog):
    run = run_of(objective, Corpus("nowhere.txt"), random_params(GPT), tokenizer, GPT)
    with pytest.raises(UserError, match=f"{type(objective).__name__}: the prompt attends to itself in both directions"):
        convert(run, tmp_path / "out")
    convert(run, tmp_path / "out", "GPT2LMHeadModel")
    assert "the answers will differ" in caplog.text


def test_parameters_without_a_counterpart_are_refused_by_name(tokenizer: Tokenizer, tmp_path: Path, caplog):
    params = class_params(3) | {"rtd_head": {"score": np.zeros(3, np.float32)}}
    run = run_of(Classify(3), data_with(), params, tokenizer)
    with pytest.raises(UserError, match="BertForSequenceClassification has no counterpart of rtd_head"):
        convert(run, tmp_path / "out")
    convert(run, tmp_path / "out", "BertForSequenceClassification")
    assert "does not have rtd_head, which is left out" in caplog.text


def test_of_several_tasks_one_must_be_picked(tokenizer: Tokenizer, tmp_path: Path):
    tasks = Tasks((Named("one", Classify(3)), Named("two", Regress())))
    params = random_params(CONFIG) | {"task_one": {}, "task_two": {}}
    with pytest.raises(UserError, match="pick one of one, two: --task_name"):
        convert(run_of(tasks, data_with(), params, tokenizer), tmp_path / "out")


@pytest.mark.parametrize("labels", [("a", "b"), ("a", "a", "b")])
def test_labels_must_be_those_of_the_outputs(labels: tuple[str, ...], tmp_path: Path):
    with pytest.raises(UserError, match="has 3 outputs, but there are 2 labels|two labels are called 'a'"):
        export_model(tmp_path / "out", CONFIG, class_params(3), labels=Labels(labels))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pooler": "relu", "first_position": 2}, "pooler='relu' has no counterpart in RobertaForSequenceClass"),
        ({"embed_dim": 8}, "pooler='tanh' has no counterpart in ElectraForSequenceClassification"),
        ({"pooler": "relu", "num_types": 2}, "num_types=2: distilbert has no token types"),
    ],
)
def test_what_a_family_computes_otherwise_is_refused(change: dict, message: str, tmp_path: Path):
    config = dataclasses.replace(CONFIG, **change)
    with pytest.raises(UserError, match=message):
        export_model(tmp_path / "out", config, class_params(3, config))
    assert not (tmp_path / "out").exists()


def test_positions_are_moved_to_the_padding_id_of_the_tokenizer(tmp_path: Path):
    config = dataclasses.replace(CONFIG, first_position=2, num_types=0, pooler="dropout_tanh", activation="gelu")
    params = random_params(config, mlm_logits={})
    export_model(tmp_path / "out", config, params, settings={"pad_token_id": 4})
    facts = json.loads((tmp_path / "out" / "config.json").read_text())
    assert facts["pad_token_id"] == 4 and facts["max_position_embeddings"] == 32 + 5 and facts["type_vocab_size"] == 1
    tensors = read_safetensors(tmp_path / "out" / "model.safetensors")
    rows = tensors["roberta.embeddings.position_embeddings.weight"]
    np.testing.assert_array_equal(rows[5:], params["embeddings"]["position"][2:])
    assert not tensors["roberta.embeddings.token_type_embeddings.weight"].any()


def test_a_single_token_type_becomes_part_of_the_positions_of_a_distilbert():
    config = dataclasses.replace(CONFIG, pooler="relu", num_types=1)
    params = random_params(config)
    fitted, moved = fit_to_family(FAMILIES["distilbert"], config, params, None)
    assert isinstance(fitted, BertConfig) and fitted.num_types == 0 and "type" not in moved["embeddings"]
    want = params["embeddings"]["position"] + params["embeddings"]["type"]
    np.testing.assert_array_equal(moved["embeddings"]["position"], want)
    assert "type" in params["embeddings"]  # the model's own parameters stay
    with pytest.raises(UserError, match="norm_eps=1e-12 has no counterpart in X, which computes 1e-05"):
        check_same_function(CONFIG, dataclasses.replace(CONFIG, norm_eps=1e-5), "X", set())


def test_the_bias_of_a_decoders_classifier_moves_into_the_final_norm(tmp_path: Path):
    params = class_params(3, GPT)
    moved, dense = absorb_bias(params), params["classifier"]["dense"]
    hidden = np.random.default_rng(1).normal(size=(5, 16))
    shift = moved["final_norm"]["bias"] - params["final_norm"]["bias"]
    want = hidden @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose((hidden + shift) @ dense["kernel"], want, rtol=1e-4, atol=1e-5)
    assert not moved["classifier"]["dense"]["bias"].any()
    dense["kernel"][:, 1] = dense["kernel"][:, 0]
    with pytest.raises(UserError, match="linearly dependent"):
        absorb_bias(params)
