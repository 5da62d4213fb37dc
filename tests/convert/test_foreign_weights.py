"""Weights of strangers: under their names, in their shapes, damaged, or not where they should be."""

import dataclasses
import json
import os
import re
import shutil
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from random_models import BERT, GPT, T5, classifier, edit_config, edit_tensors, random_params

from bertgpt.convert.hub import FAMILIES, export_model, import_model
from bertgpt.inference.encode import classify, embed
from bertgpt.inference.export import convert
from bertgpt.inference.model import load
from bertgpt.models.bert import BertConfig
from bertgpt.types import UserError

WORDS = "bert.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return classifier(tmp_path_factory.mktemp("hub") / "bert")


@pytest.fixture
def hub(source: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(source, tmp_path / "bert"))


def equal(a, b) -> bool:
    same = jax.tree.map(np.array_equal, a, b)
    return all(jax.tree.leaves(same)) and jax.tree.structure(a) == jax.tree.structure(b)


def renamed(change):
    return lambda tensors: {change(name): value for name, value in tensors.items()}


OLD = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


@pytest.mark.parametrize(
    "change",
    [
        renamed(lambda name: re.sub("|".join(OLD), lambda found: OLD[found[0]], name)),
        renamed(lambda name: f"module.{name}"),
        renamed(lambda name: f"module._orig_mod.{name}"),
        renamed(lambda name: name.removeprefix("bert.")),
        lambda tensors: {name: value.astype(np.float64) for name, value in tensors.items()},
        lambda tensors: tensors | {"bert.embeddings.position_ids": np.arange(16)[None]},
    ],
    ids=["gamma", "DataParallel", "compiled", "no prefix", "float64", "position_ids"],
)
def test_tensors_are_found_under_the_names_of_others(source: Path, hub: Path, change):
    edit_tensors(hub, change)
    found = import_model(hub)
    assert equal(found.params, import_model(source).params) and found.report["unused"] == []


def test_an_embedding_saved_under_the_name_of_the_output_matrix_is_found(tmp_path: Path):
    params = random_params(BERT, "mlm_logits")
    export_model(tmp_path / "hub", BERT, params, architecture="BertForMaskedLM")
    edit_tensors(tmp_path / "hub", renamed(lambda n: "cls.predictions.decoder.weight" if n == WORDS else n))
    assert equal(import_model(tmp_path / "hub").params, params)


def test_two_tensors_of_one_name_are_refused(hub: Path):
    edit_tensors(hub, lambda tensors: tensors | {f"module.{WORDS}": tensors[WORDS] + 1})
    with pytest.raises(UserError, match=f"{WORDS} and module.{WORDS} are the same tensor"):
        import_model(hub)


HEADS = {
    "mlm": ("mlm_logits",), "pooler": ("pool",), "nsp": ("pool", "nsp_logits"), "tagger": ("tag_logits",),
    "classifier": ("class_logits",), "span": ("span_logits",), "class_pooler": ("pool",), "rtd": ("rtd_logits",),
}  # fmt: skip
CONFIGS = {
    "bert": {}, "roberta": {"first_position": 2, "num_types": 1, "pooler": "dropout_tanh"},
    "distilbert": {"num_types": 0, "pooler": "relu"}, "albert": {"embed_dim": 4, "shared_groups": 1},
    "electra": {"embed_dim": 4, "pooler": "dropout_gelu"},
}  # fmt: skip
# A model of multiple choice has the tensors of a classifier of one class, and is read as one.
ENCODERS = [(f, a) for f in CONFIGS for a in FAMILIES[f].architectures if not a.endswith("ForMultipleChoice")]


@pytest.mark.parametrize("family, architecture", ENCODERS, ids=[name for _, name in ENCODERS])
@pytest.mark.parametrize("absent", [..., None, []], ids=["missing", "null", "empty"])
def test_an_architecture_that_is_not_named_is_told_by_the_weights(family: str, architecture: str, absent, tmp_path):
    if absent != [] and not architecture.endswith(("Model", "ForSequenceClassification")):
        pytest.skip("one way of not naming it is enough")
    own = {"pooler": "tanh"} if architecture == "RobertaModel" else {}  # its pooler is BERT's
    config = dataclasses.replace(BERT, **CONFIGS[family] | own)
    heads = FAMILIES[family].architectures[architecture]
    params = random_params(config, *dict.fromkeys(method for head in heads for method in HEADS[head]))
    export_model(tmp_path / "hub", config, params, architecture=architecture)
    edit_config(tmp_path / "hub", architectures=absent)
    found = import_model(tmp_path / "hub")
    assert found.architecture == architecture and equal(found.params, params)


@pytest.mark.parametrize("config", [GPT, T5], ids=["gpt2", "t5"])
def test_decoders_without_an_architecture_predict_tokens(config, tmp_path: Path):
    export_model(tmp_path / "hub", config, random_params(config))
    edit_config(tmp_path / "hub", architectures=None)
    assert import_model(tmp_path / "hub").architecture in ("GPT2LMHeadModel", "T5ForConditionalGeneration")


@pytest.mark.parametrize(
    "config, architecture, method",
    [
        (GPT, "GPT2ForSequenceClassification", "class_logits"),  # not the language model, whose head has no tensors
        (dataclasses.replace(BERT, activation="gelu"), "BertForMaskedLM", "mlm_logits"),
        (dataclasses.replace(BERT, activation="gelu"), "BertForQuestionAnswering", "span_logits"),
    ],
)
def test_a_head_is_read_without_an_architecture_even_beside_a_pooler(config, architecture, method, tmp_path: Path):
    params = random_params(config, method)
    export_model(tmp_path / "hub", config, params, architecture=architecture)
    if isinstance(config, BertConfig):  # versions before 4 saved it with every model
        pooler = {"bert.pooler.dense.weight": np.ones((8, 8), np.float32), "bert.pooler.dense.bias": np.ones(8)}
        edit_tensors(tmp_path / "hub", lambda tensors: tensors | pooler)
    edit_config(tmp_path / "hub", architectures=None)
    found = import_model(tmp_path / "hub")
    assert found.architecture == architecture and params.keys() == found.params.keys()


@pytest.mark.parametrize(
    "name, change, message",
    [
        (WORDS, lambda x: x.astype(np.int32), "holds int32, not floating point"),
        (WORDS, lambda x: x.astype(np.uint8), "holds uint8, not floating point"),
        (WORDS, lambda x: np.where(x == x[3, 3], np.nan, x), "holds a value that is not finite"),
        (WORDS, lambda x: np.where(x == x[3, 3], np.inf, x), "holds a value that is not finite"),
        (WORDS, lambda x: x[:-1], r"have \(39, 8\) for embeddings/token, but config.json asks for \(40, 8\)"),
        (WORDS, lambda x: x[0], r"have \(8,\) for embeddings/token"),
        (WORDS, lambda x: x[:0], r"have \(0, 8\) for embeddings/token"),
        ("bert.pooler.dense.weight", lambda x: x[:, :7], r"have \(7, 8\) for pooler/kernel, .* asks for \(8, 8\)"),
        ("classifier.weight", lambda x: x[:2], r"have \(8, 2\) for classifier/dense/kernel, .* asks for \(8, 3\)"),
        ("classifier.weight", lambda x: x.T, r"have \(3, 8\) for classifier/dense/kernel"),
        ("classifier.bias", lambda x: x[None], r"have \(1, 3\) for classifier/dense/bias"),
        ("bert.encoder.layer.1.attention.self.query.weight", lambda x: x[0], "query.* contradicts config.json"),
        ("bert.encoder.layer.1.attention.self.query.weight", lambda x: x[:3], "query.* contradicts config.json"),
        ("bert.encoder.layer.1.attention.output.dense.weight", lambda x: x[:3], "output.dense.* contradicts"),
        ("bert.encoder.layer.1.output.dense.bias", None, "has no tensor encoder.layer.1.output.dense.bias"),
        ("classifier.bias", None, "has no tensor classifier.bias"),
        ("bert.pooler.dense.weight", None, "has no tensor pooler.dense.weight"),
    ],
)
def test_weights_that_do_not_fit_are_named(hub: Path, name: str, change, message: str):
    edit_tensors(hub, lambda t: {k: v for k, v in t.items() if k != name} | ({name: change(t[name])} if change else {}))
    with pytest.raises(UserError, match=message) as caught:
        import_model(hub)
    assert str(hub) in str(caught.value) and "\n" not in str(caught.value)


def header(path: Path, change) -> None:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    changed = change(content[8 : 8 + length])
    path.write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + length :])


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        lambda path: path.write_bytes(struct.pack("<Q", 2**63) + b"{}"),
        lambda path: header(path, lambda text: b"[" * 100_000),
        lambda path: header(path, lambda text: text.replace(b'"F32"', b'"F64"', 1)),
        lambda path: header(path, lambda text: text.replace(b"[40,8]", b"[4000000000,8]", 1)),
        lambda path: header(path, lambda text: text.replace(b'"F32"', b'"F99"', 1)),
    ],
    ids=["empty", "cut", "in the header", "longer", "huge header", "deep", "other type", "huge shape", "no type"],
)
def test_a_damaged_safetensors_file_is_refused_in_one_line(hub: Path, damage):
    damage(hub / "model.safetensors")
    with pytest.raises(UserError, match="model.safetensors: cannot be read as safetensors") as caught:
        import_model(hub)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "weight_map, message",
    [
        ({"a": "../other.safetensors"}, "names '../other.safetensors', which is outside its directory"),
        ({"a": "sub/../../other.safetensors"}, "outside its directory"),
        ({"a": "/etc/passwd"}, "names '/etc/passwd', which is outside its directory"),
        ({"a": "x\0y"}, "outside its directory"),
        ({"a": "gone.safetensors"}, "gone.safetensors: no such file"),
        ({"a": "."}, "cannot be read: Is a directory"),
        ({"a": "pipe"}, "pipe: is a pipe or device, not a file"),
        ({"a": 3}, "has no weight_map"),
        ({}, "has no weight_map"),
        (["a"], "has no weight_map"),
        (None, "has no weight_map"),
    ],
)
def test_an_index_names_only_files_of_its_directory(hub: Path, weight_map, message: str):
    shutil.copy(hub / "model.safetensors", hub.parent / "other.safetensors")
    (hub / "model.safetensors").unlink()
    os.mkfifo(hub / "pipe")
    (hub / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=message):
        import_model(hub)


def test_links_out_of_the_directory_are_followed_as_in_the_hubs_cache(source: Path, hub: Path):
    shutil.move(hub / "model.safetensors", hub.parent / "blob")
    (hub / "model.safetensors").symlink_to("../blob")
    assert equal(import_model(hub).params, import_model(source).params)
    (hub.parent / "blob").unlink()
    with pytest.raises(UserError, match="model.safetensors: no such file"):
        import_model(hub)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pytorch_model.bin"])
def test_pipes_are_refused_and_not_waited_for(hub: Path, name: str):
    if name == "pytorch_model.bin":
        (hub / "model.safetensors").unlink()
    (hub / name).unlink(missing_ok=True)
    os.mkfifo(hub / name)
    with pytest.raises(UserError, match=f"{name}: is a pipe or device, not a file"):
        import_model(hub)


def test_an_encoder_without_pooler_embeds_and_converts_but_does_not_classify(tokenizer, tmp_path: Path):
    config = dataclasses.replace(BERT, vocab_size=tokenizer.vocab.size)
    params = random_params(config)
    export_model(tmp_path / "hub", config, random_params(config, "pool"), files=tokenizer.files())
    edit_tensors(tmp_path / "hub", lambda t: {k: v for k, v in t.items() if "pooler" not in k})
    found = import_model(tmp_path / "hub")
    assert "pooler" not in found.params and equal(found.params.keys(), params.keys())
    assert found.report["initialised"] == ["pooler/kernel", "pooler/bias"]
    model = load(tmp_path / "hub")
    assert embed(model, ["the cat"]).shape == (1, 8)
    with pytest.raises(UserError, match="has no classifier"):
        list(classify(model, ["the cat"]))
    convert(load(tmp_path / "hub", arrange="host"), tmp_path / "ours")
    convert(load(tmp_path / "ours", arrange="host"), tmp_path / "back")
    assert equal(import_model(tmp_path / "back").params, found.params)
