"""Endpoints of tasks answer what the offline functions do, and name the field that is wrong."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from serving_models import ENCODER, ENCODER_DECODER, LIMITS, make_model
from starlette.testclient import TestClient

from bertgpt.config import Experiment
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.decoding import Decoding
from bertgpt.inference.encode import classify, fill_mask
from bertgpt.inference.entailment import entail
from bertgpt.inference.generate import generate
from bertgpt.inference.model import Model
from bertgpt.inference.predict import predict
from bertgpt.inference.prompting import Prompt, label
from bertgpt.objectives.qa import ExtractSpan
from bertgpt.objectives.seq2seq import Seq2Seq
from bertgpt.objectives.tag import Tag
from bertgpt.serving import tasks as task_endpoints
from bertgpt.serving import tei
from bertgpt.serving.app import build_app
from bertgpt.serving.served import Served
from bertgpt.tasks.generation import TextToText
from bertgpt.tasks.question_answering import QuestionAnswering
from bertgpt.tasks.tagging import TokenTagging
from bertgpt.training.optim import AdamW
from bertgpt.types import DataConfig, Labels, ObjectiveConfig

TAGS = ("O", "B-A", "I-A", "B-B", "I-B")
TEXTS = ["The cat's house runs under a tree", "a green bird sings"]
CONTEXT = "the small cat runs in a house and the bird sings of a tree"


def as_run(model: Model, objective: ObjectiveConfig, data: DataConfig) -> Model:
    """The model as the run that it might be."""
    experiment = Experiment("run", model.config, objective, data, AdamW(lr=1e-3), steps=1)
    made = objective.make(model.tokenizer.vocab)
    return model._replace(experiment=experiment, objective=made, labels=data.label_set)


@pytest.fixture(scope="module")
def models(tokenizer: Tokenizer, served: dict[str, Served]) -> dict[str, Model]:
    pair = {"segment_ids": jnp.ones((1, 4), jnp.int32), "num_labels": 3}
    tagger = make_model(ENCODER, tokenizer, tag_logits={"num_labels": 5})
    rng = np.random.default_rng(1)
    shapes = {"start": 5, "end": 5, "transitions": (5, 5)}
    crf = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    spans = make_model(ENCODER, tokenizer, span_logits={})
    none = QuestionAnswering("none", seq_len=48, stride=8, max_question=8, null_threshold=-100.0)
    writer = make_model(ENCODER_DECODER, tokenizer)
    return {name: item.model for name, item in served.items()} | {
        "nli": make_model(ENCODER, tokenizer, ("no", "neutral", "Entailment"), class_logits=pair),
        "tags": tagger._replace(labels=Labels(TAGS, kind="tag")),
        "crf": as_run(
            tagger._replace(params=tagger.params | {"crf": crf}),
            Tag(TAGS, crf=True),
            TokenTagging("none", labels=TAGS, seq_len=32),
        ),
        "words": tagger._replace(labels=Labels(tuple("abcde"), kind="tag")),
        "spans": spans,
        "squad2": as_run(spans, ExtractSpan(), none),
        "titles": as_run(writer, Seq2Seq(), TextToText("none", seq_len=32, target_len=6, prefix="the title ")),
    }


@pytest.fixture(scope="module")
def tasks(models: dict[str, Model]) -> Iterator[TestClient]:
    served = [Served(name, model) for name, model in models.items()]
    with TestClient(build_app(served, LIMITS), raise_server_exceptions=False) as client:
        yield client


def post(client: TestClient, path: str, **body: object) -> list[dict]:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json().keys() == {"model", "results"} and answer.json()["model"] == body.get("model", "bert")
    return answer.json()["results"]


def test_masks_are_filled_where_they_stand(tasks: TestClient, models: dict[str, Model]):
    texts = ["the [MASK] runs [MASK]", "a [MASK]"]
    found = post(tasks, "/fill-mask", inputs=texts, top_k=3)
    wanted = list(fill_mask(models["bert"], texts, 3))
    assert [[{t["token"]: t["probability"] for t in mask["tokens"]} for mask in item] for item in found] == wanted
    vocabulary = models["bert"].tokenizer
    for text, masks in zip(texts, found, strict=True):
        for mask in masks:
            assert text[mask["start"] : mask["end"]] == "[MASK]"
            assert all(vocabulary.tokens([t["id"]]) == [t["token"]] for t in mask["tokens"])
    assert post(tasks, "/fill-mask", inputs=texts[1])[0] == post(tasks, "/fill-mask", inputs=texts[1:], top_k=5)[0]


def test_answers_that_would_be_too_large_are_refused(tasks: TestClient, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(task_endpoints, "LARGEST", 9)
    monkeypatch.setattr(tei, "LONGEST", 9)
    assert len(post(tasks, "/fill-mask", inputs="[MASK] [MASK] [MASK]", top_k=3)[0]) == 3
    for path, body in (
        ("/fill-mask", {"inputs": ["[MASK] [MASK]"] * 2, "top_k": 3}),
        ("/tokenize", {"inputs": ["the cat", "a b"]}),
    ):
        answer = tasks.post(path, json=body)
        assert answer.status_code == 413 and answer.json()["error"]["param"] == "inputs", answer.text


def test_classes_are_those_of_the_classifier_or_of_labels_without_training(tasks: TestClient, models: dict[str, Model]):
    assert post(tasks, "/classify", model="classes", inputs=TEXTS) == list(classify(models["classes"], TEXTS))
    labels, sentence = ["cat", "bird"], "it is {label}"
    found = post(tasks, "/classify", model="nli", inputs=TEXTS, labels=labels, hypothesis=sentence)
    assert found == list(entail(models["nli"], [{"text": t} for t in TEXTS], labels, sentence))
    for name, end in (("bert", "."), ("gpt", ""), ("t5", ".")):
        prompt = Prompt("{text} This text is about {label}" + end, tuple(labels))
        if name == "t5":  # of which the tokenizer has no sentinels
            answer = tasks.post("/classify", json={"model": name, "inputs": TEXTS, "labels": labels})
            assert answer.status_code == 400 and "must end with {label}" in answer.json()["error"]["message"]
            continue
        body = {"model": name, "inputs": [t + " {x}" for t in TEXTS], "labels": labels}
        assert post(tasks, "/classify", **body) == list(
            label(models[name], prompt, [{"text": t} for t in body["inputs"]])
        )
    assert tasks.post("/classify", json={"inputs": "a"}).json()["model"] == "cross"  # the first with a classifier
    assert tasks.post("/classify", json={"inputs": "a", "labels": labels}).json()["model"] == "bert"


@pytest.mark.parametrize("name", ["tags", "crf"])
def test_entities_are_parts_of_the_text(name: str, tasks: TestClient, models: dict[str, Model]):
    found = post(tasks, "/ner", model=name, inputs=TEXTS)
    for text, item, wanted in zip(TEXTS, found, predict(models[name], TEXTS), strict=True):
        assert item == {"entities": wanted["entities"], "words_cut": 0}
        assert all(text[e["start"] : e["end"]] == e["text"] for e in item["entities"])
    assert any(item["entities"] for item in found)
    assert post(tasks, "/ner", model=name, inputs="") == [{"entities": [], "words_cut": 0}]


def test_a_tagger_of_all_words_gives_every_word(tasks: TestClient, models: dict[str, Model]):
    ((item,), (wanted,)) = post(tasks, "/ner", model="words", inputs=TEXTS[0]), predict(models["words"], TEXTS[:1])
    assert [[e["text"], e["label"]] for e in item["entities"]] == wanted["tagged"]
    assert all(TEXTS[0][e["start"] : e["end"]] == e["text"] for e in item["entities"])


def test_answers_are_parts_of_the_context_or_empty(tasks: TestClient, models: dict[str, Model]):
    record = {"question": "who sings", "context": CONTEXT}
    (wanted,) = predict(models["spans"], [record])
    fields = ("answer", "start", "end", "score", "probability")
    assert post(tasks, "/qa", model="spans", **record) == [{name: wanted[name] for name in fields}]
    assert post(tasks, "/qa", model="spans", inputs=[record] * 2) == [{name: wanted[name] for name in fields}] * 2
    assert CONTEXT[wanted["start"] : wanted["end"]] == wanted["answer"]
    (none,) = post(tasks, "/qa", model="squad2", **record)
    assert none["answer"] == "" and none["start"] is none["end"] is None


def test_texts_are_made_of_texts(tasks: TestClient, models: dict[str, Model]):
    found = post(tasks, "/summarize", model="t5", inputs=TEXTS, max_new_tokens=6)
    wanted = [texts[0].text for texts in generate(models["t5"], ["summarize: " + t for t in TEXTS], Decoding(6))]
    assert found == [{"text": text} for text in wanted]
    body = {"model": "t5", "inputs": TEXTS[0], "source": "English", "target": "German", "num_beams": 2}
    beams = Decoding(max_new_tokens=5, num_beams=2)
    wanted = next(generate(models["t5"], ["translate English to German: " + TEXTS[0]], beams))[0].text
    assert post(tasks, "/translate", **body, max_new_tokens=5) == [{"text": wanted}]
    for path in ("/summarize", "/translate"):
        found = post(tasks, path, model="titles", inputs=TEXTS)
        assert found == [{"text": answer["answer"]} for answer in predict(models["titles"], TEXTS)]


WRONG = [
    ("/fill-mask", {"inputs": "no mask"}, 422, "inputs", "inputs: text 0 has no [MASK] to fill in"),
    ("/fill-mask", {"inputs": []}, 422, "inputs", "inputs is empty"),
    ("/fill-mask", {"inputs": "a [MASK]", "top_k": 0}, 422, "top_k", "`top_k`"),
    ("/fill-mask", {"inputs": 5}, 422, "inputs", "`inputs`"),
    ("/fill-mask", {"inputs": "a [MASK]", "model": "gpt"}, 400, "model", "cannot fill_mask"),
    ("/classify", {"inputs": "a", "labels": ["one"]}, 422, "labels", "two or more different"),
    ("/classify", {"inputs": "a", "labels": ["one", ""]}, 422, "labels", "none of them empty"),
    ("/classify", {"inputs": "a", "labels": [*"abcdefghi"]}, 413, "labels", "9 labels for 1 texts are more than 8"),
    ("/classify", {"inputs": "a", "hypothesis": "{label}"}, 422, "hypothesis", "hypothesis goes with labels"),
    ("/classify", {"inputs": "a", "labels": ["a", "b"], "hypothesis": "x"}, 422, "hypothesis", "must have {label}"),
    ("/classify", {"inputs": "a", "labels": ["a", "b"], "hypothesis": "{x} {label}"}, 422, "hypothesis", "braces"),
    ("/classify", {"inputs": "a", "labels": ["a", "b"], "model": "classes"}, 400, "model", "cannot zero_shot"),
    ("/ner", {"inputs": ["a"] * 9}, 413, "inputs", "9 texts"),
    ("/ner", {"text": "a"}, 422, None, "unknown field `text`"),
    ("/qa", {"question": "a"}, 422, "context", "context is missing"),
    ("/qa", {"question": " ", "context": "b"}, 422, "question", "question is empty"),
    ("/qa", {"question": "a", "context": "b", "inputs": []}, 422, "inputs", "either question and context, or inputs"),
    ("/qa", {"inputs": []}, 422, "inputs", "inputs is empty"),
    ("/qa", {"inputs": [{"question": "a"}]}, 422, "inputs[0]", "missing required field `context`"),
    ("/summarize", {"inputs": " "}, 422, "inputs", "inputs: text 0 is empty"),
    ("/summarize", {"inputs": "cat " * 60}, 413, "inputs", "and the model reads 48 at most"),
    ("/summarize", {"inputs": "a", "max_new_tokens": 999}, 422, "max_new_tokens", "more than the 200 tokens"),
    ("/translate", {"inputs": "a", "source": "English"}, 422, "target", "source and target go together"),
    ("/translate", {"inputs": "a", "source": "x", "target": "y", "model": "titles"}, 422, "source", "leave source and"),
]


@pytest.mark.parametrize("path, body, status, param, message", WRONG)
def test_one_sentence_names_the_field_that_is_wrong(
    path: str, body: dict, status: int, param: str | None, message: str, tasks: TestClient
):
    answer = tasks.post(path, json=body)
    error = answer.json()["error"]
    assert answer.status_code == status and message in error["message"] and error["param"] == param
    assert "\n" not in error["message"]


def test_second_calls_compile_nothing(tasks: TestClient, caplog: pytest.LogCaptureFixture):
    """A request takes milliseconds, a compilation seconds."""
    requests = [("/ner", {"model": "crf", "inputs": TEXTS}),
                ("/qa", {"model": "spans", "question": "who", "context": CONTEXT})]  # fmt: skip
    for path, body in requests:
        post(tasks, path, **body)
    jax.config.update("jax_log_compiles", True)  # in all threads
    try:
        for path, body in requests:
            post(tasks, path, **body)
    finally:
        jax.config.update("jax_log_compiles", False)
    assert not [record.getMessage() for record in caplog.records if "Compiling" in record.getMessage()]


def test_capabilities_name_what_heads_and_tasks_are_for(models: dict[str, Model]):
    can = {name: Served(name, model).can for name, model in models.items()}
    assert {name for name in can if "tag" in can[name]} == {"tags", "crf", "words"}
    assert {name for name in can if "qa" in can[name]} == {"spans", "squad2"}
    assert {name for name in can if "zero_shot" in can[name]} == {"bert", "gpt", "t5", "nli", "titles"}
    assert {name for name in can if "saliency" in can[name]} == {"cross", "classes", "nli"}
    assert {name for name in can if "lens" in can[name]} == {"bert", "gpt", "t5", "titles"}
    assert all("attention" in words for words in can.values())
    assert {name for name in can if "translate" in can[name]} == {"t5", "titles"}
    assert dataclasses.asdict(LIMITS)["max_texts"] == 8  # as WRONG has it
