"""Exported programs give what the models give, for any batch and length, where there is no bertgpt."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from test_export import CONFIG, GPT, TAGS, class_params, data_with, random_params, run_of

from bertgpt.config import TEST
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.encode import embed
from bertgpt.inference.footprint import open_any, scores_on_test
from bertgpt.inference.model import Model
from bertgpt.inference.predict import outputs_for, predict
from bertgpt.inference.program import program_of
from bertgpt.inference.stablehlo import export_stablehlo
from bertgpt.layers.quantized import quantize_params
from bertgpt.models.apply import make_apply
from bertgpt.models.t5 import Experts, T5Config
from bertgpt.objectives.classify import Classify
from bertgpt.objectives.tag import Tag
from bertgpt.tasks.tagging import TokenTagging
from bertgpt.types import Inputs, UserError

TEXTS = ["the cat sleeps", "the big green house sings of the small blue bird", "a dog"]
SHAPES = ((1, 5), (3, 12), (2, 32))
T5 = T5Config(
    vocab_size=200, d_model=16, num_layers=1, num_decoder_layers=1, num_heads=2, head_dim=8, d_ff=32, max_len=32
)
CHILD = """
import importlib.util, json, pathlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("bertgpt", "flax", "orbax", "optax", "safetensors"):
            raise ImportError(name + " is not here")

sys.meta_path.insert(0, Refuse())
import numpy as np
for folder in map(pathlib.Path, sys.argv[1:]):
    spec = importlib.util.spec_from_file_location("run", folder / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    asked = np.load(folder / "asked.npz")
    found = {}
    for number in sorted({name.split("/")[0] for name in asked}):
        inputs = {name: asked[f"{number}/{name}"] for name in module.FACTS["inputs"]}
        found[number] = module.run(**inputs)
    if hasattr(module, "encode"):
        texts = json.loads((folder / "texts.json").read_text())
        found |= {"text/" + name: value for name, value in module.encode(texts).items()}
        found["texts"] = module.run(**module.encode(texts))
    np.savez(folder / "found.npz", **found)
assert not {"bertgpt", "flax"} & set(sys.modules)
"""


def with_objective(model: Model) -> Model:
    return model._replace(objective=model.experiment.objective.make(model.tokenizer.vocab))


@pytest.fixture(autouse=True)
def unchecked():
    """Without checks of annotations while functions are traced: lengths are symbols there, not ints."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def models(tokenizer: Tokenizer) -> dict[str, Model]:
    """One model for each kind of head."""
    tagged = random_params(CONFIG, tag_logits={"num_labels": 3})
    rng = np.random.default_rng(1)
    tagged["crf"] = {name: rng.normal(size=3).astype(np.float32) for name in ("start", "end")}
    tagged["crf"]["transitions"] = rng.normal(size=(3, 3)).astype(np.float32)
    tagging = TokenTagging("nowhere.conll", labels=TAGS, seq_len=32)
    t5 = jax.tree.map(np.asarray, jax.jit(lambda: t5_params())())
    return {
        "classifier": with_objective(run_of(Classify(3), data_with(), class_params(3), tokenizer)),
        "tagger": with_objective(run_of(Tag(TAGS, crf=True), tagging, tagged, tokenizer)),
        "encoder": Model(CONFIG, tokenizer, make_apply(CONFIG.make()), random_params(CONFIG), Path("encoder")),
        "decoder": Model(GPT, tokenizer, make_apply(GPT.make()), random_params(GPT), Path("gpt")),
        "translator": Model(T5, tokenizer, make_apply(T5.make()), t5, Path("t5")),
    }


def t5_params(config: T5Config = T5) -> dict:
    import flax.linen as nn

    ids = jnp.ones((1, 4), jnp.int32)
    init = nn.init(lambda m: m(Inputs(ids, decoder=Inputs(ids))), config.make())
    return nn.unbox(init({"params": jax.random.key(0)}))["params"]


def random_fields(model: Model, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Arguments of all kinds; the last row is half padding."""
    rng, (rows, length) = np.random.default_rng(length_seed(shape)), shape
    real = np.ones(shape, np.int32)
    real[-1, length // 2 :] = 0
    ids = rng.integers(5, 200, shape).astype(np.int32) * real
    starts = (rng.random(shape) < 0.6).astype(np.int32) * real
    target = rng.integers(5, 200, (rows, length // 2 + 1)).astype(np.int32)
    types = (np.arange(length) > length // 2).astype(np.int32) * real
    return {
        "input_ids": ids,
        "segment_ids": real,
        "type_ids": types,
        "word_starts": starts,
        "decoder_input_ids": target,
    }


def length_seed(shape: tuple[int, int]) -> int:
    return shape[0] * 100 + shape[1]


def test_programs_without_bertgpt_give_what_the_models_give(models: dict[str, Model], tmp_path: Path):
    wanted: dict[str, dict[str, np.ndarray]] = {}
    int8 = models["classifier"]._replace(params=quantize_params(models["classifier"].params))
    for name, model in {**models, "int8": int8}.items():
        output = "embedding" if name == "encoder" else None
        export_stablehlo(model, tmp_path / name, output, ("cpu",) if name != "classifier" else ("cpu", "cuda", "tpu"))
        program = program_of(model, output)
        asked = {
            str(i): random_fields(model, shape) for i, shape in enumerate(SHAPES[: 3 if name == "classifier" else 2])
        }
        flat = {f"{i}/{key}": value for i, fields in asked.items() for key, value in fields.items()}
        np.savez(tmp_path / name / "asked.npz", **flat)
        (tmp_path / name / "texts.json").write_text(json.dumps(TEXTS))
        run = jax.jit(program.run)
        wanted[name] = {
            i: np.asarray(run(program.params, {key: fields[key] for key in program.inputs}))
            for i, fields in asked.items()
        }
    (tmp_path / "child.py").write_text(CHILD)
    folders = [str(tmp_path / name) for name in wanted]
    command = [sys.executable, "-I", str(tmp_path / "child.py"), *folders]
    subprocess.run(command, check=True, timeout=300)
    found = {name: np.load(tmp_path / name / "found.npz") for name in wanted}
    for name, values in wanted.items():
        for i, value in values.items():
            np.testing.assert_allclose(found[name][i], value, rtol=0, atol=1e-5 * max(1, np.abs(value).max()))
    # From texts to the answers of the offline API.
    answers = list(predict(models["classifier"], TEXTS))
    probabilities = [list(answer["probabilities"].values()) for answer in answers]
    np.testing.assert_allclose(found["classifier"]["texts"], probabilities, atol=1e-4)  # it rounds to 4 digits
    np.testing.assert_allclose(found["encoder"]["texts"], embed(models["encoder"], TEXTS), atol=1e-5)
    tags, starts = found["tagger"]["texts"], found["tagger"]["text/word_starts"]
    words = [{"text": text.split()} for text in TEXTS]
    dataset, outputs = outputs_for(models["tagger"], words, batch_size=4)
    offline = dataset.predicted(outputs["tags"], TAGS, "O")
    assert [[TAGS[tag] for tag in row[there > 0]] for row, there in zip(tags, starts, strict=True)] == offline
    assert (tags[starts == 0] == -1).all()
    facts = json.loads((tmp_path / "classifier" / "manifest.json").read_text())
    assert facts["platforms"] == ["cpu", "cuda", "tpu"] and facts["labels"] == ["bad", "so", "good"]
    assert facts["outputs"] == {"probabilities": {"dtype": "float32", "axes": ["batch", "label"]}}
    assert facts["longest"] == CONFIG.max_len


def test_sequences_that_are_too_long_are_refused(models: dict[str, Model], tmp_path: Path):
    export_stablehlo(models["encoder"], tmp_path / "out", "hidden_states", ("cpu",))
    opened = open_any(tmp_path / "out")
    with pytest.raises(Exception, match="33 tokens exceeds the model's 32"):
        opened.run(random_fields(models["encoder"], (1, 33)))


def test_outputs_that_a_model_does_not_have_are_refused(models: dict[str, Model], tmp_path: Path):
    for name, output, problem in (
        ("encoder", "logits", "has no head that gives logits"),
        ("translator", "embedding", "gives logits, not embedding"),
        ("decoder", "embedding", "is not an encoder"),
    ):
        with pytest.raises(UserError, match=problem):
            export_stablehlo(models[name], tmp_path / "out", output)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_capacity_that_depends_on_the_length_is_refused(tmp_path: Path, tokenizer: Tokenizer):
    config = dataclasses.replace(T5, num_layers=2, num_decoder_layers=2, experts=Experts(2))
    params = jax.jit(lambda: t5_params(config))()
    model = Model(config, tokenizer, make_apply(config.make()), params, Path("switch"))
    with pytest.raises(UserError, match="switch: T5Config cannot be exported for any length"):
        export_stablehlo(model, tmp_path / "out")


def test_scores_on_the_test_set_are_those_of_the_task(tmp_path: Path, models: dict[str, Model]):
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS * 3, ("bad", "so", "good") * 3, strict=True)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = models["classifier"]
    data = dataclasses.replace(
        model.experiment.data, path=str(tmp_path / "test.jsonl"), test_path=str(tmp_path / "test.jsonl"), packed=True
    )
    model = model._replace(experiment=dataclasses.replace(model.experiment, data=data, evals=(TEST,)))
    found = scores_on_test(model, open_any(Path("nowhere"), model), batch_size=4)
    labels = [answer["label"] for answer in predict(model, [row["text"] for row in rows])]
    correct = np.mean([row["label"] == label for row, label in zip(rows, labels, strict=True)])
    assert found["accuracy"] == pytest.approx(correct)
    assert scores_on_test(models["encoder"], open_any(Path("nowhere"), models["encoder"])) == {}
