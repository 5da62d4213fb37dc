"""Text to text: pairs from files, their measures against the libraries, and a model that learns to write backwards."""

import dataclasses
import gzip
import json
import random
from pathlib import Path

import jax
import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from bertgpt.config import Eval, Experiment, Mesh
from bertgpt.data.tokenizer import SentencePiece, Tokenizer
from bertgpt.inference.decoding import Decoding
from bertgpt.inference.model import load
from bertgpt.inference.predict import predict
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import T5Config
from bertgpt.objectives.seq2seq import ConditionalLM, Seq2Seq
from bertgpt.sharding import make_mesh
from bertgpt.tasks.baselines import NGram
from bertgpt.tasks.generation import FirstWords, Nearest, TextToText, bleu, evaluate_summaries
from bertgpt.training.loop import check_fit, train
from bertgpt.training.optim import AdamW
from bertgpt.types import DataRequest, EvalResult, UserError

LETTERS = "a b c d e f g h".split()
TEXTS = ["the cat sat on the mat", "a dog runs in the big park", "two men are walking"]
REFERENCES = [
    ("a cat sat on the mat .", "the cat is on a mat"),
    ("the dog is running in a park",),
    ("two men walk", "two walking men", "men are walking outside"),
]


def rouge(texts, references) -> dict[str, float]:
    """ROUGE by name."""
    return evaluate_summaries(texts, references).values


def write(path: Path, records: list[dict]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="module")
def backwards(tmp_path_factory: pytest.TempPathFactory) -> TextToText:
    """Five letters, and the same from the last to the first."""
    random.seed(0)
    texts = {" ".join(random.choices(LETTERS, k=5)) for _ in range(1500)}
    records = [{"source": text, "target": text[::-1]} for text in sorted(texts)]
    path = write(tmp_path_factory.mktemp("backwards") / "pairs.jsonl", records)
    return TextToText(
        path,
        tokenizer=SentencePiece(vocab_size=24, sentinels=0, character_coverage=1.0),
        seq_len=16,
        target_len=8,
        validation=0.03,
        test=0.03,
        metric="bleu",
    )


@pytest.fixture(scope="module")
def letters(backwards: TextToText) -> Tokenizer:
    return backwards.train_tokenizer()


def rows(data: TextToText, tokenizer: Tokenizer, split: str = "train"):
    return data.make(
        DataRequest(split=split, seed=0, batch_size=4, tokenizer=tokenizer, cache=Path("unused"), shuffle=False)
    ).dataset


def test_bleu_and_chrf_are_those_of_sacrebleu():
    three = [[r[n] if n < len(r) else None for r in REFERENCES] for n in range(3)]
    ours = EvalResult(bleu(TEXTS, REFERENCES)).values
    assert ours["bleu"] == sacrebleu.corpus_bleu(TEXTS, three).score > 5
    assert ours["chrf"] == sacrebleu.corpus_chrf(TEXTS, three).score > 30
    assert EvalResult(bleu(["the cat is on a mat"], [("the cat is on a mat",)])).values["bleu"] == pytest.approx(100.0)


def test_rouge_is_the_librarys_with_the_best_reference():
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    ours = rouge(TEXTS, REFERENCES)
    for name in ("rouge1", "rouge2", "rougeL"):
        best = [
            max(scorer.score(r, text)[name].fmeasure for r in some)
            for text, some in zip(TEXTS, REFERENCES, strict=True)
        ]
        assert ours[name] == pytest.approx(100 * np.mean(best))


def test_chinese_is_judged_by_its_characters():
    text, reference = "我们今天去公园玩", "我们明天去公园玩"
    assert EvalResult(bleu([text], [[reference]])).values["bleu"] > 30  # without words it would be 0
    scores = rouge([text], [[reference]])
    assert scores["rouge1"] == pytest.approx(100 * 7 / 8) and scores["rougeL"] == pytest.approx(100 * 7 / 8)
    assert rouge(["Дом у реки"], [["дом у моря"]])["rouge1"] == pytest.approx(100 * 2 / 3)


def test_a_list_of_targets_is_learnt_from_and_judged_by(tmp_path: Path, letters: Tokenizer):
    records = [{"source": ["a b", "c"], "target": ["c b a", "a"]}, {"source": "d", "target": "e"}]
    path = write(tmp_path / "x.jsonl", records)
    data = TextToText(path, test_path=path, validation=0.0, metric="rouge")
    assert [pair.source for pair in data.examples("train")] == ["a b c", "d"]
    table = rows(data, letters).tables
    assert [letters.decode(row.tolist()) for row in table["input_ids"]] == ["a b c", "a b c", "d"]
    assert [letters.decode(row.tolist()) for row in table["target_ids"]] == ["c b a", "a", "e"]
    assert len(data.prompts("test", letters)) == 2
    assert data.evaluate_texts("test", ["a", "e"]).values["rouge1"] == 100.0
    assert data.evaluate_texts("test", ["a"]).values["rouge1"] == 100.0  # of the first record alone


def test_parallel_files_are_read_line_by_line(tmp_path: Path):
    for name, lines in (("en", "a dog\na cat\na bird\n"), ("de", "ein Hund\neine Katze\nein Vogel\n")):
        (tmp_path / f"train.{name}.gz").write_bytes(gzip.compress(lines.encode()))
    settings = {"source_field": "en", "target_field": "de", "validation": 0.0, "test": 0.0}
    data = TextToText(str(tmp_path / "train.{}.gz"), **settings)
    assert [pair.targets[0] for pair in data.examples("train")] == ["ein Hund", "eine Katze", "ein Vogel"]
    assert list(data.texts("train"))[:2] == ["a dog", "ein Hund"]
    (tmp_path / "train.de.gz").write_bytes(gzip.compress(b"ein Hund\neine Katze\n"))
    with pytest.raises(UserError, match=r"train.en.gz:3: .*train.de.gz has no line 3, but lines must correspond"):
        data.examples("train")


@pytest.mark.parametrize(
    "records, message",
    [
        ([{"source": "a"}], r"x.jsonl:1: no column 'target'; it has 'source'"),
        ([{"source": "a", "target": "b"}, {"source": "a", "target": " "}], r"x.jsonl:2: 'target' is empty"),
        ([{"source": "", "target": "b"}], r"x.jsonl:1: 'source' is empty"),
        ([{"source": "a", "target": []}], r"x.jsonl:1: 'target' is empty"),
        ([{"source": "a", "target": ["b", None]}], r"x.jsonl:1: 'target' is of type list, not text"),
    ],
)
def test_a_record_without_a_source_or_a_target_is_named(tmp_path: Path, records: list[dict], message: str):
    data = TextToText(write(tmp_path / "x.jsonl", records), validation=0.0, test=0.0)
    with pytest.raises(UserError, match=message):
        data.examples("train")


def test_settings_that_leave_no_room_are_refused():
    with pytest.raises(UserError, match="target_len=1 must be at least 2"):
        TextToText("x.jsonl", target_len=1)
    with pytest.raises(UserError, match="target_len=64 leaves no room for a source in seq_len=64"):
        TextToText("x.jsonl", architecture="decoder", seq_len=64)


def test_what_is_cut_is_counted_and_prompts_are_what_training_reads(tmp_path: Path, letters: Tokenizer):
    long = {"source": " ".join("abcdefgh" * 3), "target": " ".join("abcdefgh" * 2)}
    path = write(tmp_path / "x.jsonl", [{"source": "a b", "target": "b a"}, long])
    for architecture, seq_len in (("encoder_decoder", 16), ("decoder", 24)):
        data = TextToText(
            path,
            test_path=path,
            validation=0.0,
            architecture=architecture,
            seq_len=seq_len,
            target_len=8,
            prefix="a: ",
            between=" h",
        )
        made = rows(data, letters)
        assert tuple(w.text for w in made.warnings) == (
            f"1 of 2 sources are truncated to {seq_len} tokens",
            "1 of 2 targets are truncated to 8 tokens",
        )
        ids = made.tables["input_ids"]
        for prompt, row in zip(data.prompts("test", letters), ids, strict=True):
            assert row[: len(prompt)].tolist() == prompt
        assert data.prompts_of([{"source": "a b"}], letters) == data.prompts("test", letters)[:1]
        ends = made.tables["target_mask" if architecture == "decoder" else "target_segment_ids"]
        assert ends.sum(axis=1).tolist() == [letters.encode(["b a"])[0].__len__() + 1, 8]


MODELS = {
    "encoder_decoder": T5Config(
        vocab_size=24, d_model=32, num_layers=1, num_decoder_layers=1, num_heads=2, head_dim=16, d_ff=64,
        dropout=0.0, tied=False, max_len=32, scan=True,
    ),
    "decoder": GptConfig(
        vocab_size=24, d_model=32, num_layers=2, num_heads=2, d_ff=64, max_len=32, dropout=0.0,
        attention_dropout=0.0, scan=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("architecture, objective", [("encoder_decoder", ConditionalLM()), ("decoder", Seq2Seq())])
def test_an_objective_for_another_form_of_model_is_refused(
    architecture: str, objective: Seq2Seq | ConditionalLM, backwards: TextToText, letters: Tokenizer
):
    experiment = Experiment("x", MODELS[architecture], objective, backwards, AdamW(), steps=1, batch_size=8)
    with pytest.raises(
        UserError,
        match=f"{type(objective).__name__} is for a model of architecture .*, but .* of architecture {architecture}",
    ):
        check_fit(experiment, letters, make_mesh(Mesh(), jax.devices()[:1]))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", MODELS)
def test_a_small_model_learns_to_write_backwards(
    architecture: str, backwards: TextToText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("bertgpt.training.loop.make_mesh", lambda mesh: make_mesh(mesh, jax.devices()[:1]))
    data = dataclasses.replace(
        backwards, architecture=architecture, seq_len=16 if architecture == "encoder_decoder" else 24, between=" :"
    )
    objective = Seq2Seq(z_loss=1e-4) if architecture == "encoder_decoder" else ConditionalLM()
    experiment = Experiment(
        name="backwards",
        model=MODELS[architecture],
        objective=objective,
        data=data,
        optim=AdamW(lr=1e-2, warmup_steps=20, b2=0.98, bias_correction=True),
        steps=400 if architecture == "encoder_decoder" else 200,
        batch_size=32,
        evals=(Eval("test", "test", final_only=True, decode=Decoding(max_new_tokens=8, num_beams=2)),),
        baselines=(FirstWords(), Nearest(), NGram(1), NGram(2)),
        log_every=100,
    )
    results = train(experiment, tmp_path)
    found = results["evals"]["test"]
    assert found["bleu"] > 80 and found["target_accuracy"] > 0.9
    baselines = {name: scores["test"] for name, scores in results["baselines"].items()}
    assert baselines["copy of the source"]["bleu"] < 30 and baselines["target of the nearest source"]["bleu"] < 60
    assert found["target_loss"] < baselines["bigram"]["target_loss"] < baselines["unigram"]["target_loss"]
    answers = list(predict(load(tmp_path / "backwards", arrange="training"), ["a b c d e", "h g f e d"]))
    right = sum(answer["answer"] == text for answer, text in zip(answers, ("e d c b a", "d e f g h"), strict=True))
    assert right >= 1
