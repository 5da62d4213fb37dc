"""config.json and generation_config.json mean what transformers takes them for."""

import dataclasses
import json
import pathlib
import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convert.random_models import edit_config, edit_tensors

from bertgpt.convert.defaults import DEFAULTS, SYNONYMS
from bertgpt.convert.hub import FAMILIES, import_model
from bertgpt.convert.settings import ACTIVATIONS
from bertgpt.convert.verify import TOLERANCES, verify
from bertgpt.inference.decoding import Decoding, Stops
from bertgpt.inference.encode import classify
from bertgpt.inference.generate import generate_ids
from bertgpt.inference.model import load
from bertgpt.layers import mlp
from bertgpt.types import UserError
from parity.families import CASES, make, save, torch, transformers

safetensors = pytest.importorskip("safetensors.torch", reason="parity needs the extra [peers]")


@pytest.mark.parametrize("model_type", DEFAULTS)
def test_absent_fields_have_the_defaults_of_the_configuration_class(model_type: str):
    assert DEFAULTS.keys() == FAMILIES.keys()
    cls = transformers.CONFIG_MAPPING[model_type]
    declared = {field.name: field.default for field in dataclasses.fields(cls)}
    built = cls().to_dict()
    for field, value in DEFAULTS[model_type].items():
        expected = declared[field] if field in declared else built.get(field)
        assert value == expected and type(value) is type(expected), field
    assert {k: v for k, v in cls.attribute_map.items() if k != "num_classes"} == SYNONYMS.get(model_type, {})


@pytest.mark.parametrize("name", ["bert-classes", "roberta-tags", "distilbert-tags", "electra-tags", "gpt2", "t5"])
def test_a_file_without_the_fields_that_have_their_default_is_the_same_model(name: str, tmp_path):
    save(make(name), tmp_path, name)
    whole = import_model(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    defaults = DEFAULTS[values["model_type"]]
    edit_config(tmp_path, **{k: ... for k, v in values.items() if k in defaults and v == defaults[k]})
    assert len(json.loads((tmp_path / "config.json").read_text())) < len(values)
    again = import_model(tmp_path)
    assert again.config == whole.config
    model = getattr(transformers, CASES[name][0]).from_pretrained(tmp_path)
    assert model.config.to_dict()["vocab_size"] == again.config.vocab_size


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_the_functions_of_that_name(name: str):
    x = np.linspace(-6, 6, 241, dtype=np.float32)
    expected = transformers.activations.ACT2FN[name](torch.tensor(x)).numpy()
    np.testing.assert_allclose(mlp.ACTIVATIONS[ACTIVATIONS[name]](jnp.asarray(x)), expected, atol=2e-6)


@pytest.mark.parametrize("name, field", [("bert-classes", "hidden_act"), ("gpt2", "activation_function")])
@pytest.mark.parametrize("activation", ["quick_gelu", "tanh"])
def test_models_with_other_activations_equal_transformers(name: str, field: str, activation: str, tmp_path):
    save(make(name), tmp_path, name)
    edit_config(tmp_path, **{field: activation})
    errors = verify(tmp_path)
    assert not {kind: error for kind, error in errors.items() if not error <= TOLERANCES[kind]}


@pytest.mark.parametrize("name", ["bert", "bert-classes", "electra-discriminator", "albert"])
def test_norms_called_gamma_and_beta_are_those_of_transformers(name: str, tmp_path):
    model = make(name)
    save(model, tmp_path, name)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def rename(key: str) -> str:
        return next((key.removesuffix(new) + gamma for new, gamma in old.items() if key.endswith(new)), key)

    edit_tensors(tmp_path, lambda tensors: {rename(key): value for key, value in tensors.items()})
    errors = verify(tmp_path, model)
    errors.pop("files")  # the names are today's
    assert not {kind: error for kind, error in errors.items() if not error <= TOLERANCES[kind]}


def test_positions_of_distilbert_that_were_once_sinusoids_are_read_from_the_file(tmp_path):
    model = make("distilbert-tags")
    save(model, tmp_path, "distilbert-tags")
    edit_config(tmp_path, sinusoidal_pos_embds=True)
    assert np.array_equal(
        import_model(tmp_path).params["embeddings"]["position"],
        model.distilbert.embeddings.position_embeddings.weight.detach().numpy(),
    )


@pytest.mark.parametrize("where", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("many", [False, True], ids=["one", "list"])
def test_generation_ends_where_that_of_transformers_does(many: bool, where: str, tmp_path):
    model = make("gpt2")
    save(model, tmp_path, "gpt2")
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 61, n).tolist() for n in range(1, 13)]

    def run(model, prompt: list[int]) -> list[int]:
        output = model.generate(torch.tensor([prompt]), max_new_tokens=30, do_sample=False, pad_token_id=0)
        return output[0, len(prompt) :].tolist()

    # End tokens that do come up, at different places.
    model.generation_config.eos_token_id = None
    free = [run(model, prompt) for prompt in prompts]
    ends = list(dict.fromkeys((free[0][3], free[3][5], free[6][8])))
    named = ends if many else ends[0]
    edit_config(tmp_path, eos_token_id=named if where == "config.json" else 60)
    if where == "generation_config.json":
        (tmp_path / where).write_text(json.dumps({"eos_token_id": named, "repetition_penalty": 1.2}))
    theirs, ours = transformers.GPT2LMHeadModel.from_pretrained(tmp_path), load(tmp_path)
    assert ours.stop_ids == (tuple(ends) if many else (ends[0],))
    decoding = dataclasses.replace(ours.decoding, max_new_tokens=30)
    assert decoding == Decoding(30, repetition_penalty=1.2 if where == "generation_config.json" else 1.0)
    outputs = generate_ids(ours.apply, ours.params, ours.config, prompts, decoding, Stops(ours.stop_ids, 0, 61))
    lengths = set()
    for prompt, (output,) in zip(prompts, outputs, strict=True):
        row = run(theirs, prompt)
        ended = row[-1] in ours.stop_ids
        assert (output.ids, output.ended) == (row[:-1] if ended else row, ended)
        lengths.add(len(row))
    assert min(lengths) < 10


KINDS = {
    "multi": {"num_labels": 3, "problem_type": "multi_label_classification"},
    "regression": {"num_labels": 1, "problem_type": "regression"},
    "regressions": {"num_labels": 3, "problem_type": "regression"},
    "single": {"num_labels": 3, "problem_type": "single_label_classification"},
    "one": {"num_labels": 1},
    "plain": {"num_labels": 3},
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"the film was good bad paris is in france a b".split()]
TEXTS = ["the film was good", "paris is in france", "bad bad film", "a"]


@pytest.mark.parametrize("kind", KINDS)
def test_classes_and_numbers_are_those_of_the_pipeline(kind: str, tmp_path):
    torch.manual_seed(1)
    settings = CASES["bert-classes"][2] | {"vocab_size": len(WORDS)} | KINDS[kind]
    transformers.BertForSequenceClassification(transformers.BertConfig(**settings)).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    pipeline = transformers.pipeline("text-classification", model=str(tmp_path), top_k=None)
    expected = [{item["label"]: item["score"] for item in row} for row in pipeline(TEXTS)]
    for answer, scores in zip(classify(load(tmp_path), TEXTS), expected, strict=True):
        found = answer.get("probabilities") or answer.get("values") or {"LABEL_0": answer["value"]}
        assert found == pytest.approx(scores, abs=1e-4)
        if "labels" in answer:
            assert answer["labels"] == [name for name in found if scores[name] > 0.5]


def halves(tensors: dict, folder) -> None:
    names = list(tensors)
    parts = {"a.bin": names[:7], "b.bin": names[7:]}
    for file, part in parts.items():
        torch.save({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def one(content):
    return lambda tensors, folder: torch.save(content(tensors), folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    "write, message",
    [
        (halves, None),
        (one(lambda t: t), None),
        (one(lambda t: {f"module.{k}": torch.nn.Parameter(v) for k, v in t.items()}), None),
        (one(lambda t: {"model": t, "step": 3}), "'model' is not a dense tensor; save the model's state_dict alone"),
        (one(lambda t: [1]), "holds no dict of tensors"),
        (one(lambda t: {k: v.to(torch.int8) for k, v in t.items()}), "holds int8, not floating point"),
        (
            lambda t, folder: (folder / "pytorch_model.bin").write_bytes(pickle.dumps(pathlib.PurePosixPath("x"))),
            "cannot be read as weights: is damaged, or holds more than tensors",
        ),
        (lambda t, folder: (folder / "pytorch_model.bin").write_bytes(b"garbage"), "cannot be read as weights"),
        (
            lambda t, folder: safetensors.save_file(
                {k: v.to(torch.float8_e4m3fn) for k, v in t.items()}, folder / "model.safetensors"
            ),
            "quantised types are not supported, only F64, F32, F16 and BF16",
        ),
    ],
)
def test_weights_that_torch_wrote_are_read_or_named(write, message, tmp_path):
    model = make("bert-classes")
    save(model, tmp_path, "bert-classes")
    whole = import_model(tmp_path).params
    (tmp_path / "model.safetensors").unlink()
    write(model.state_dict(), tmp_path)
    if message is None:
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, import_model(tmp_path).params, whole)))
    else:
        with pytest.raises(UserError, match=message) as caught:
            import_model(tmp_path)
        assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.to("meta"),
        lambda x: x.to_sparse(),
        lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    ],
)
def test_tensors_without_numbers_of_their_own_are_refused_without_warnings(change, tmp_path, recwarn):
    make("bert-encoder").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with warnings.catch_warnings(action="ignore"):
        torch.save({"embeddings.word_embeddings.weight": change(torch.ones(61, 24))}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="'embeddings.word_embeddings.weight' is not a dense tensor"):
        import_model(tmp_path)
    assert not recwarn
