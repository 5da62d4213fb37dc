"""What a run answers to real texts, transformers answers from its export, and so does the export loaded again."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.config import Experiment, Mesh, to_json
from bertgpt.data.tokenizer import ByteBPE, SentencePiece, Tokenizer, WordPiece
from bertgpt.inference.decoding import Decoding
from bertgpt.inference.encode import classify, embed, fill_mask
from bertgpt.inference.export import convert
from bertgpt.inference.generate import generate
from bertgpt.inference.model import Model, load
from bertgpt.inference.predict import predict
from bertgpt.io.files import write_json
from bertgpt.layers.moe import Experts
from bertgpt.models.bert import BertConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import T5Config
from bertgpt.objectives.classify import Classify, ClassifyMany, Regress
from bertgpt.objectives.lm import CausalLM
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.objectives.qa import ChooseOne, ExtractSpan
from bertgpt.objectives.seq2seq import Seq2Seq
from bertgpt.objectives.similarity import BiEncode
from bertgpt.objectives.tag import Tag
from bertgpt.prepare.corpus import Corpus
from bertgpt.runs.checkpoint import write_params
from bertgpt.sharding import make_mesh
from bertgpt.tasks.classification import TextClassification
from bertgpt.tasks.generation import TextToText
from bertgpt.tasks.multiple_choice import MultipleChoice
from bertgpt.tasks.question_answering import QuestionAnswering
from bertgpt.tasks.similarity import TextPairs
from bertgpt.tasks.tagging import TokenTagging
from bertgpt.training.optim import AdamW
from bertgpt.training.state import init_state
from bertgpt.types import DataConfig, Inputs, ObjectiveConfig
from parity.families import torch, transformers
from parity.texts import REVIEWS

LENGTH = 160
SIZES = {"vocab_size": 640, "d_model": 24, "num_layers": 2, "num_heads": 3, "d_ff": 40, "max_len": LENGTH}
SIZES |= {"stddev": 0.3}
BERT = BertConfig(**SIZES)
MODELS = {
    "bert": BERT,
    "bert-no-types": dataclasses.replace(BERT, num_types=0, activation="gelu"),
    "bert-one-type": dataclasses.replace(BERT, num_types=1),
    "roberta": dataclasses.replace(
        BERT, num_types=0, first_position=2, activation="gelu", norm_eps=1e-5, pooler="dropout_tanh"
    ),
    "distilbert": dataclasses.replace(BERT, num_types=1, activation="gelu", pooler="relu"),
    "albert": dataclasses.replace(BERT, embed_dim=12, shared_groups=1),
    "electra": dataclasses.replace(BERT, embed_dim=12, activation="gelu", pooler="dropout_gelu"),
    "gpt": GptConfig(**SIZES),
}
T5 = T5Config(
    vocab_size=640, d_model=24, num_layers=2, num_decoder_layers=2, num_heads=3, head_dim=8, d_ff=40, max_len=LENGTH
)
TOKENIZERS = {
    "wordpiece": WordPiece(600),
    "roberta": ByteBPE(600),
    "gpt": ByteBPE(600, "gpt2"),
    "albert": SentencePiece("unigram", "albert", 600, character_coverage=0.99),
    "t5": SentencePiece("unigram", "t5", 600, character_coverage=0.99),
}
CLOSE = {"atol": 1e-4, "rtol": 1e-4}  # predictions are rounded to four decimals


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    return {name: config.make(lambda: iter(REVIEWS)) for name, config in TOKENIZERS.items()}


def save_run(
    path: Path,
    config: Any,
    objective: ObjectiveConfig,
    data: DataConfig,
    tokenizer: Tokenizer,
    records: Sequence[dict] = (),
    method: str = "",
) -> Path:
    """A run with random weights, initialised by its objective on these records, or by a method on hidden states."""
    module = config.make()
    if method:
        ids = jnp.ones((1, 4), jnp.int32)
        inputs = Inputs(ids, decoder=Inputs(ids))
        run = nn.init(lambda m, x: m.run(None, method, None, {"hidden": m(x)}), module)
        params = jax.jit(lambda: nn.unbox(run({"params": jax.random.key(0)}, inputs)["params"]))()
    else:
        mesh = make_mesh(Mesh(), jax.devices()[:1])
        batch = jax.tree.map(jnp.asarray, data.predict_batches(list(records[:2]), 2, tokenizer)[0])
        params = init_state(module, objective.make(tokenizer.vocab), AdamW().make(1)[0], batch, mesh, 0)[0].params
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: np.asarray(x) + 0.1 * rng.normal(size=x.shape).astype(np.float32), params)
    path.mkdir()
    experiment = Experiment(path.name, config, objective, data, AdamW(), steps=1)
    write_json(path / "experiment.json", to_json(experiment))
    tokenizer.save(path / "tokenizer")
    write_params(path, params)
    return path


def export(run: Path, **options: Any) -> tuple[Model, Path, Model]:
    """The run, the directory of its export, and the export loaded again."""
    out = run.parent / "out"
    convert(load(run, arrange="host"), out, **options)
    return load(run), out, load(out)


def tokenizer_of(name: str) -> str:
    return name if name in TOKENIZERS else "wordpiece"


def data_for(target: str, pair: bool = False) -> TextClassification:
    labels = () if target == "number" else ("bad", "mixed", "good")
    fields = {"text_field": "text", "second_field": "other"} if pair else {}
    return TextClassification("nowhere.jsonl", labels=labels, target=target, seq_len=LENGTH, **fields)


def pipeline(task: str, path: Path, **options: Any):
    return transformers.pipeline(task, model=str(path), device="cpu", **options)


@pytest.mark.parametrize("target, name", [
    *(("label", name) for name in MODELS if name != "bert-one-type"),
    *((target, name) for target in ("labels", "number") for name in ("bert", "roberta", "gpt")),
])  # fmt: skip
def test_classifiers_of_texts(name: str, target: str, tokenizers, tmp_path: Path):
    objective = {"label": Classify(3), "labels": ClassifyMany(3), "number": Regress(scale=5.0)}[target]
    records = [{"text": text} for text in REVIEWS]
    run, out, again = export(
        save_run(tmp_path / "run", MODELS[name], objective, data_for(target), tokenizers[tokenizer_of(name)], records)
    )
    found = list(predict(run, REVIEWS))
    theirs = pipeline("text-classification", out, top_k=None)(REVIEWS, truncation=True, max_length=LENGTH)
    for mine, row, third in zip(found, theirs, classify(again, REVIEWS), strict=True):
        scores = {item["label"]: item["score"] for item in row}
        if target == "number":
            assert scores["LABEL_0"] == pytest.approx(mine["value"], abs=1e-3)
            assert third["value"] == pytest.approx(mine["value"], abs=1e-3)
        else:
            assert scores == pytest.approx(mine["probabilities"], abs=1e-4)
            assert third["probabilities"] == pytest.approx(mine["probabilities"], abs=2e-4)
            assert third.keys() == mine.keys()
    values = [str(answer) for answer in found]
    assert len(set(values)) > 25  # the model tells texts apart


@pytest.mark.parametrize("name", ["bert", "bert-no-types", "bert-one-type", "roberta", "distilbert", "albert", "gpt"])
def test_classifiers_of_pairs(name: str, tokenizers, tmp_path: Path):
    records = [{"text": a, "other": b} for a, b in zip(REVIEWS, REVIEWS[1:] + REVIEWS[:1], strict=True)]
    data = data_for("label", pair=True)
    path = save_run(tmp_path / "run", MODELS[name], Classify(3), data, tokenizers[tokenizer_of(name)], records)
    run, out, _ = export(path)
    pairs = [{"text": record["text"][:80], "text_pair": record["other"][:80]} for record in records]
    theirs = pipeline("text-classification", out, top_k=None)(pairs)
    short = [{"text": pair["text"], "other": pair["text_pair"]} for pair in pairs]
    for mine, row in zip(predict(run, short), theirs, strict=True):
        assert {item["label"]: item["score"] for item in row} == pytest.approx(mine["probabilities"], abs=1e-4)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "albert", "electra"])
def test_tags(name: str, tokenizers, tmp_path: Path):
    labels = ("NOUN", "VERB", "OTHER", "ADJ")
    data = TokenTagging("nowhere.conll", labels=labels, scheme="plain", seq_len=LENGTH)
    # Other signs are words of their own here and not to WordPiece, or have no token.
    texts = [text.encode("ascii", "ignore").decode()[:90] for text in REVIEWS]
    records = [{"text": text} for text in texts]
    objective = Tag(labels, constrained=False)
    path = save_run(tmp_path / "run", MODELS[name], objective, data, tokenizers[tokenizer_of(name)], records)
    run, out, _ = export(path)
    tag = words_tagged(out) if tokenizer_of(name) != "wordpiece" else None
    whole = pipeline("token-classification", out, ignore_labels=[])
    for text, mine in zip(texts, predict(run, records), strict=True):
        words = [word for word, _ in mine["tagged"]]
        assert len(words) > 3
        if tag is not None:
            assert [entity for _, entity in mine["tagged"]] == tag(words)
            continue
        first = {item["start"]: item["entity"] for item in reversed(whole(text))}
        start = 0
        for word, entity in mine["tagged"]:
            start = text.index(word, start)
            assert first[start] == entity, (text, word)
            start += len(word)


def words_tagged(path: Path) -> Callable[[list[str]], list[str]]:
    """transformers' tags of lists of words: with these tokenizers each word is encoded by itself, after a space."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForTokenClassification.from_pretrained(path).eval()

    def tag(words: list[str]) -> list[str]:
        inputs = tokenizer([f" {word}" for word in words], is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            best = model(**inputs).logits[0].argmax(-1).tolist()
        numbers = inputs.word_ids(0)
        return [model.config.id2label[best[numbers.index(i)]] for i in range(len(words))]

    return tag


@pytest.mark.parametrize("name", ["bert", "roberta", "albert", "electra"])
def test_answers_in_a_context(name: str, tokenizers, tmp_path: Path):
    records = [{"question": b[:30], "context": a} for a, b in zip(REVIEWS, REVIEWS[1:] + REVIEWS[:1], strict=True)]
    data = QuestionAnswering("nowhere.jsonl", seq_len=LENGTH, stride=None, null_threshold=None)
    path = save_run(tmp_path / "run", MODELS[name], ExtractSpan(), data, tokenizers[tokenizer_of(name)], records)
    run, out, _ = export(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(out).eval()
    compared = 0
    for record, mine in zip(records, predict(run, records), strict=True):
        inputs = tokenizer(
            record["question"], record["context"], truncation="only_second", max_length=LENGTH,
            return_offsets_mapping=True, return_tensors="pt",
        )  # fmt: skip
        offsets = inputs.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            output = model(**inputs)
        start, end = (x[0].numpy() for x in (output.start_logits, output.end_logits))
        inside = [i for i, part in enumerate(inputs.sequence_ids(0)) if part == 1]
        spans = [(start[i] + end[j], i, j) for i in inside for j in inside if 0 <= j - i < 30]
        score, i, j = max(spans)
        assert mine["score"] == pytest.approx(float(score), abs=1e-3)
        assert mine["answer"].strip() == record["context"][offsets[i][0] : offsets[j][1]].strip()
        compared += 1
    assert compared == len(REVIEWS)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "albert", "electra"])
def test_choices(name: str, tokenizers, tmp_path: Path):
    choices = [[text[-30:], text[20:50], "nothing"] for text in REVIEWS]
    records = [{"question": text[:60], "choices": row} for text, row in zip(REVIEWS, choices, strict=True)]
    data = MultipleChoice("nowhere.jsonl", seq_len=LENGTH)
    path = save_run(tmp_path / "run", MODELS[name], ChooseOne(), data, tokenizers[tokenizer_of(name)], records)
    run, out, _ = export(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    model = transformers.AutoModelForMultipleChoice.from_pretrained(out).eval()
    for record, mine in zip(records, predict(run, records), strict=True):
        rows = tokenizer([record["question"]] * 3, record["choices"], padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**{key: value[None] for key, value in rows.items()}).logits[0]
        np.testing.assert_allclose(mine["probabilities"], torch.softmax(logits, 0).numpy(), **CLOSE)


@pytest.mark.parametrize("name", ["bert", "bert-no-types", "roberta", "distilbert", "albert", "electra"])
def test_masks(name: str, tokenizers, tmp_path: Path):
    tokenizer = tokenizers[tokenizer_of(name)]
    path = save_run(tmp_path / "run", MODELS[name], MaskedLM(), Corpus("nowhere.txt"), tokenizer, method="mlm_logits")
    run, out, again = export(path)
    texts = [" ".join([*text.split()[:3], tokenizer.roles["mask"], *text.split()[4:9]]) for text in REVIEWS]
    fill = pipeline("fill-mask", out)
    for text, mine, third in zip(texts, fill_mask(run, texts), fill_mask(again, texts), strict=True):
        theirs = {fill.tokenizer.convert_ids_to_tokens(item["token"]): item["score"] for item in fill(text)}
        assert mine[0] == pytest.approx(theirs, abs=1e-4) and list(mine[0]) == list(theirs)
        assert third[0] == pytest.approx(mine[0], abs=2e-4)


def test_continuations(tokenizers, tmp_path: Path):
    tokenizer = tokenizers["gpt"]
    path = save_run(tmp_path / "run", MODELS["gpt"], CausalLM(), Corpus("nowhere.txt"), tokenizer, method="lm_logits")
    run, out, again = export(path)
    prompts = [text[:40] for text in REVIEWS]
    decoding = Decoding(max_new_tokens=12)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    reader = transformers.AutoTokenizer.from_pretrained(out)
    mine, third = ([row[0].text for row in generate(model, prompts, decoding)] for model in (run, again))
    for prompt, text in zip(prompts, mine, strict=True):
        inputs = reader(prompt, return_tensors="pt")
        ids = theirs.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert text == reader.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert mine == third and len(set(mine)) > 25


@pytest.mark.parametrize("name", ["t5", "t5-v1.1", "switch"])
def test_answers_of_encoder_decoders(name: str, tokenizers, tmp_path: Path):
    change: dict[str, Any] = {
        "t5": {},
        "t5-v1.1": {"gated": True, "activation": "gelu_tanh", "tied": False},
        "switch": {"experts": Experts(num_experts=4, every=2, eval_capacity=8.0)},
    }[name]
    config = dataclasses.replace(T5, **change)
    data = TextToText("nowhere.jsonl", seq_len=LENGTH, target_len=12)
    run, out, again = export(save_run(tmp_path / "run", config, Seq2Seq(), data, tokenizers["t5"], method="lm_logits"))
    records = [{"source": text} for text in REVIEWS]
    mine = [answer["answer"] for answer in predict(run, records)]
    reader = transformers.AutoTokenizer.from_pretrained(out)
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(out).eval()
    if name == "t5-v1.1":  # transformers 5 ties the output matrix, which v1.1 does not
        from bertgpt.convert.files import read_tensors

        theirs.lm_head.weight = torch.nn.Parameter(torch.tensor(read_tensors(out)["lm_head.weight"]))
    for text, answer in zip(REVIEWS, mine, strict=True):
        inputs = reader(text, truncation=True, max_length=LENGTH, return_tensors="pt")
        ids = theirs.generate(input_ids=inputs["input_ids"], max_new_tokens=12, do_sample=False)[0]
        assert answer == reader.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    third = generate(again, REVIEWS, Decoding(max_new_tokens=12))
    assert [row[0].text for row in third] == mine and len(set(mine)) > 2


@pytest.mark.parametrize("name, pooler", [
    ("bert", "tanh"), ("bert", "mean"), ("roberta", "dropout_tanh"), ("roberta", "first"), ("distilbert", "relu"),
    ("albert", "tanh"), ("electra", "dropout_gelu"), ("gpt", ""),
])  # fmt: skip
def test_vectors_of_bi_encoders(name: str, pooler: str, tokenizers, tmp_path: Path):
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="parity needs the extra [peers]")
    config = dataclasses.replace(MODELS[name], pooler=pooler) if pooler else MODELS[name]
    data = TextPairs("nowhere.jsonl", seq_len=40)
    records = [{"first": a, "second": b} for a, b in zip(REVIEWS, REVIEWS[1:] + REVIEWS[:1], strict=True)]
    records = [dict(zip(data.inputs, record.values(), strict=True)) for record in records]
    path = save_run(tmp_path / "run", config, BiEncode(), data, tokenizers[tokenizer_of(name)], records)
    run, out, again = export(path)
    wanted = sentence_transformers.SentenceTransformer(str(out), device="cpu").encode(REVIEWS)
    for model in (run, again):
        np.testing.assert_allclose(embed(model, REVIEWS), wanted, atol=1e-5)
    cosines = np.sum(wanted * np.roll(wanted, -1, axis=0), axis=1)
    np.testing.assert_allclose([answer["similarity"] for answer in predict(run, records)], cosines, atol=1e-4)
