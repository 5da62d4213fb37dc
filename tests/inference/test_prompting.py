"""Prompts: likelihoods against full forward passes in float64, whatever the batch; labels, examples, entailment."""

import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from bertgpt.cli.main import main
from bertgpt.config import Experiment, to_json
from bertgpt.data.tokenizer import ByteBPE, SentencePiece, Tokenizer
from bertgpt.inference import prompting
from bertgpt.inference.entailment import entail
from bertgpt.inference.generate import Text, check_prompts
from bertgpt.inference.model import Model
from bertgpt.inference.prompting import (
    CONTENT_FREE,
    Prompt,
    ask,
    fill,
    label,
    named_in,
    pick_examples,
    question,
    score_labels,
)
from bertgpt.inference.scoring import log_likelihoods
from bertgpt.io.files import write_json
from bertgpt.models.apply import make_apply
from bertgpt.models.bert import BertConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import T5Config
from bertgpt.objectives.classify import Classify
from bertgpt.objectives.core import Objective
from bertgpt.prepare.corpus import Corpus
from bertgpt.runs.checkpoint import write_params
from bertgpt.tasks.classification import TextClassification
from bertgpt.training.optim import AdamW
from bertgpt.types import Inputs, UserError

SIZE = {"vocab_size": 320, "d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 32, "max_len": 64}
CONFIGS = {
    "gpt": GptConfig(**SIZE, stddev=0.3),
    "t5": T5Config(**SIZE, num_decoder_layers=1, head_dim=8),
    "bert": BertConfig(**SIZE, stddev=0.3),
}
TOKENIZERS = {
    "gpt": ByteBPE(style="gpt2", vocab_size=300),
    "t5": SentencePiece(vocab_size=100, sentinels=4),
}
RECORDS = [{"text": "the cat eats"}, {"text": "a small dog runs under the big green tree"}, {"text": "river"}]
LABELS = ("good", "not bad", "cat dog bird")
TEMPLATE = {"gpt": "Text: {text}\nIt is {label}", "t5": "{text} is {label}.", "bert": "{text} is {label}."}


def init(config) -> dict:
    def run(module: nn.Module) -> None:
        ids = jnp.zeros((1, 4), jnp.int32)
        hidden = module(Inputs(ids, decoder=Inputs(ids)))
        module.mlm_logits(hidden) if isinstance(config, BertConfig) else module.lm_logits(hidden)

    return jax.jit(lambda: nn.unbox(nn.init(run, config.make())({"params": jax.random.key(0)})["params"]))()


@pytest.fixture(scope="module", params=CONFIGS)
def model(request, tokenizer: Tokenizer, corpus_file: Path) -> Model:
    config = CONFIGS[request.param]
    trained = TOKENIZERS.get(request.param)
    own = tokenizer if trained is None else Corpus(str(corpus_file), trained).train_tokenizer()
    return Model(config, own, make_apply(config.make()), init(config), Path(request.param))


def prompt_for(model: Model) -> Prompt:
    return Prompt(TEMPLATE[model.path.name], LABELS)


def naive(model: Model, before: str, word: str, after: str) -> float:
    """Σ log softmax of whole forward passes, one text at a time without padding, in float64."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), model.params)
        apply, tokenizer = make_apply(model.config.make("float64")), model.tokenizer
        left, answer, right = tokenizer.encode([before, word, after])
        start, end = tokenizer.template
        if model.path.name == "gpt":
            ids = [*start, *left, *answer]
            hidden = apply(params, Inputs(jnp.asarray([ids])))
            places, targets, method = range(len(ids) - len(answer) - 1, len(ids) - 1), answer, "lm_logits"
        elif model.path.name == "bert":
            ids = [*start, *left, *[tokenizer.vocab.mask] * len(answer), *right, *end]
            hidden = apply(params, Inputs(jnp.asarray([ids])))
            places = [i for i, token in enumerate(ids) if token == tokenizer.vocab.mask]
            targets, method = answer, "mlm_logits"
        else:
            first, second = tokenizer.vocab.sentinels[:2]
            source = [*start, *left, first, *right, *end]
            target = [first, *answer, second]
            hidden = apply(params, Inputs(jnp.asarray([source]), decoder=Inputs(jnp.asarray([[0, *target[:-1]]]))))
            places, targets, method = range(1, len(target)), target[1:], "lm_logits"
        logits = np.asarray(apply(params, method=method, hidden=hidden))[0, :, : tokenizer.vocab.size]
    total = 0.0
    for place, token in zip(places, targets, strict=True):
        total += logits[place, token] - np.log(np.sum(np.exp(logits[place])))
    return total


def test_scores_are_sums_of_log_softmax_of_whole_forward_passes(model: Model):
    prompt = prompt_for(model)
    scores = score_labels(model, prompt, RECORDS[:2])
    for row, record in zip(scores, RECORDS, strict=False):
        before, after = prompt.around(record)
        bare = before.rstrip()
        expected = [naive(model, bare, f" {word}", after) for word in LABELS]
        np.testing.assert_allclose(row, expected, rtol=2e-5, atol=2e-5)


def test_neither_batches_nor_neighbours_change_scores(model: Model):
    prompt = prompt_for(model)
    together = score_labels(model, prompt, RECORDS)
    alone = np.concatenate([score_labels(model, prompt, [record]) for record in RECORDS])
    threes = score_labels(model, prompt, RECORDS[::-1], batch_size=3)[::-1]
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    np.testing.assert_allclose(together, threes, rtol=1e-4)


def test_averages_and_calibration_are_what_they_are_called(model: Model):
    prompt = prompt_for(model)
    raw = score_labels(model, prompt, RECORDS)
    counts = [[len(q.tokens) for q in ask(model, prompt, record).questions] for record in RECORDS]
    np.testing.assert_allclose(score_labels(model, prompt, RECORDS, average=True), raw / np.array(counts), rtol=1e-4)
    prior = softmax(score_labels(model, prompt, [{"text": text} for text in CONTENT_FREE]), axis=1).mean(axis=0)
    fair = softmax(score_labels(model, prompt, RECORDS, calibrate=True), axis=1)
    expected = softmax(raw, axis=1) / prior
    np.testing.assert_allclose(fair, expected / expected.sum(axis=1, keepdims=True), rtol=1e-3)


def test_a_word_after_two_texts_fed_alike_is_computed_once_and_right(model: Model):
    asked = question(model, "the cat is", " good", "")
    twice = log_likelihoods(model, [asked, asked._replace(tokens=asked.tokens[::-1]), asked])
    np.testing.assert_array_equal(twice[0], twice[2])
    assert len(twice[1]) == len(asked.tokens)


def test_what_is_too_long_loses_its_first_examples_then_the_end_of_its_text(
    model: Model, caplog: pytest.LogCaptureFixture
):
    prompt = prompt_for(model)
    examples = [({"text": f"the dog sleeps {i}"}, LABELS[i % 3]) for i in range(4)]
    before, _ = prompt.around({"text": "river"}, examples[:2])
    assert before.startswith(prompt.template.replace("{text}", "the dog sleeps 0").replace("{label}", "good") + "\n\n")
    shown = ask(model, prompt, {"text": "river"}, examples * 6).examples
    assert 0 < len(shown) < 24 and shown == tuple(range(24 - len(shown), 24))
    long = ask(model, prompt, {"text": "the cat " * 80}, examples)
    assert long.truncated and long.examples == () and max(max(len(q.ids), len(q.source)) for q in long.questions) > 60
    score_labels(model, prompt, [{"text": "cat"}, {"text": "the cat " * 80}])
    assert "1 of 2 prompts are truncated to fit the model's 64 tokens" in caplog.text
    endless = Prompt("the cat " * 80 + TEMPLATE[model.path.name], LABELS)
    with pytest.raises(UserError, match="record 1: the template exceeds the model's 64 tokens even around empty texts"):
        score_labels(model, endless, RECORDS)
    with pytest.raises(UserError, match="record 1: the template names the field 'text'; the record has 'body'"):
        score_labels(model, prompt, [{"body": "cat"}])


@pytest.mark.parametrize("calibrate", [False, True])
def test_no_record_is_shown_its_own_label(model: Model, calibrate: bool, caplog: pytest.LogCaptureFixture):
    prompt = Prompt("{text} {label}", ("cat", "dog"))
    examples = [({"text": "river", "id": 1}, "cat"), ({"text": "tree"}, "dog")]
    records = [{"text": "river"}, {"text": "house"}]
    scores = score_labels(model, prompt, records, examples, calibrate=calibrate)
    assert "1 of 2 records are among the examples" in caplog.text and "fewer" not in caplog.text
    expected = [
        score_labels(model, prompt, records[:1], examples[1:], calibrate=calibrate),
        score_labels(model, prompt, records[1:], examples, calibrate=calibrate),
    ]
    np.testing.assert_allclose(scores, np.concatenate(expected), rtol=1e-4)


def test_prompts_to_write_after_fit_and_have_no_control_tokens_of_the_texts(
    model: Model, monkeypatch: pytest.MonkeyPatch
):
    if model.path.name == "bert":
        with pytest.raises(UserError, match="Bert is an encoder and generates no text"):
            list(label(model, prompt_for(model), RECORDS, by="generation"))
        return
    given = []

    def write(model, ids, decoding, **_):
        check_prompts(model.config, ids, decoding)
        given.extend(list(row) for row in ids)
        assert max(map(len, ids)) <= 64
        return ([Text("not bad.", 0.0, True)] for _ in ids)

    monkeypatch.setattr(prompting, "continue_ids", write)
    end = model.tokenizer.roles["eos"]
    records = [{"text": f"a{end}b"}, {"text": "the cat " * 80}, {"text": "river"}]
    prompt = Prompt("{text} is {label}", LABELS)
    examples = [({"text": "river"}, "good"), ({"text": "tree"}, "not bad")]
    answers = list(label(model, prompt, records, examples, by="generation"))
    assert answers == [{"label": "not bad", "text": "not bad."}] * 3
    ends = int(model.path.name == "t5")  # T5 alone reads one itself
    assert [row.count(model.tokenizer.vocab.eos) for row in given] == [ends] * 3
    assert model.tokenizer.decode(given[2]).split() == "tree is not bad river is".split()


def test_labels_are_scored_or_written(model: Model):
    prompt = prompt_for(model)
    answers = list(label(model, prompt, RECORDS))
    for answer, scores in zip(answers, score_labels(model, prompt, RECORDS), strict=True):
        assert answer["label"] == LABELS[int(np.argmax(scores))]
        assert sum(answer["probabilities"].values()) == pytest.approx(1.0, abs=2e-4)
    if model.path.name != "bert":
        written = list(label(model, Prompt("{text} is {label}", LABELS), RECORDS[:1], by="generation"))
        assert set(written[0]) == {"label", "text"}


def test_the_longest_word_that_an_answer_begins_with_is_meant():
    prompt = Prompt("{text} {label}", ("a", "b", "c"), ("good", "Good enough", "bad"))
    assert [named_in(text, prompt) for text in (" good!", "good ENOUGH.", "not bad", "")] == ["a", "b", None, None]


def test_an_answer_names_a_label_by_whole_words():
    prompt = Prompt("{text} {label}", ("no", "yes", "好"))
    texts = ("Nothing special", "No, never", "no", "yes好", "Yes_or_no", "好电影", "yes!")
    assert [named_in(text, prompt) for text in texts] == [None, "no", "no", "yes", None, "好", "yes"]
    assert named_in("C++ and more", Prompt("{label}", ("C++", "D"))) == "C++"


def test_every_label_has_its_chance_among_few_examples():
    labels = tuple("abcdefgh")
    records = [{"text": str(i), "label": labels[i % 8]} for i in range(80)]
    picks = [[name for _, name in pick_examples(records, labels, "label", 4, seed)] for seed in range(30)]
    assert {name for names in picks for name in names} == set(labels)
    assert all(len(set(names)) == 4 for names in picks)
    twelve = [name for _, name in pick_examples(records, labels, "label", 12)]
    assert sorted(map(twelve.count, labels)) == [1] * 4 + [2] * 4


def test_examples_are_balanced_and_drawn_by_seed():
    records = [{"text": str(i), "label": "ab"[i > 1]} for i in range(20)]
    picked = pick_examples(records, ("a", "b"), "label", 6)
    assert sorted(name for _, name in picked) == ["a", "a", "b", "b", "b", "b"]  # there are but two of a
    assert picked == pick_examples(records, ("a", "b"), "label", 6)
    assert picked != pick_examples(records, ("a", "b"), "label", 6, seed=1)
    with pytest.raises(UserError, match="example 3: 'label' is 'b'; labels are 'a', 'c'"):
        pick_examples(records, ("a", "c"), "label", 6)
    with pytest.raises(UserError, match="there are 20 examples, not 21"):
        pick_examples(records, ("a", "b"), "label", 21)


def test_values_of_json_are_written_as_json_writes_them():
    assert fill("{a} {b} {c} {d} {label}", {"a": "x", "b": True, "c": 1.5, "d": 3}, "w") == "x true 1.5 3 w"
    records = [{"label": value} for value in (True, False, "true", 1)]
    assert [name for _, name in pick_examples(records, ("true", "false", "1"), "label", 4)].count("true") == 2
    for value in (None, ["x"], {"a": "x"}):
        with pytest.raises(UserError, match="'a' is of type"):
            fill("{a} {label}", {"a": value}, "w")


def test_unusable_prompts_are_named(model: Model):
    for arguments, message in (
        (("{text}", ("a", "b")), r"must have \{label\} in it once"),
        (("{label}{label}", ("a", "b")), r"must have \{label\} in it once"),
        (("{label}", ("a",)), "two or more different ones"),
        (("{label}", ("a", "a")), "two or more different ones"),
        (("{label}", ("a", "b"), ("x",)), "a different text for each of 2 labels"),
        (("{label}", ("a", "b"), ("x", "x")), "a different text for each of 2 labels"),
        (("{label}", ("a", "b"), ("x", "y", "z")), "a different text for each of 2 labels"),
    ):
        with pytest.raises(UserError, match=message):
            Prompt(*arguments)
    if model.path.name == "gpt":
        with pytest.raises(UserError, match=r"end the template with \{label\}"):
            question(model, "it is", " good", " today")
    if model.path.name == "bert":
        headless = {name: tree for name, tree in model.params.items() if name != "mlm_head"}
        with pytest.raises(UserError, match="has no masked-LM head"):
            question(model._replace(params=headless), "it is", " good", "")
        with pytest.raises(UserError, match="'€€' cannot be written"):
            question(model, "it is", " €€", "")


def test_the_label_whose_hypothesis_follows_is_chosen(tokenizer: Tokenizer):
    """The stand-in for a model says that a pair follows the more, the longer it is."""

    def predict(apply, params, batch):
        length = jnp.sum(batch["segment_ids"] > 0, axis=1) / 100.0
        return {"probabilities": jnp.stack([1.0 - length, length], axis=1)}

    data = TextClassification(
        "none", labels=("0", "1"), names=("no", "entailment"), text_field="premise", second_field="hypothesis"
    )
    experiment = Experiment("nli", CONFIGS["bert"], Classify(2), data, AdamW(lr=1e-3), steps=1, batch_size=2)
    run = Model(
        *(experiment.model, tokenizer, make_apply(experiment.model.make()), {}, Path("nli")),
        experiment=experiment,
        objective=Objective(lambda key, batch: batch, None, predict),
    )
    labels = ("cat", "cat dog", "cat dog bird")
    records = [{"premise": "the cat"}, {"premise": "a dog runs"}]
    answers = list(entail(run, records, labels, "it is {label}"))
    assert [answer["label"] for answer in answers] == ["cat dog bird"] * 2
    lengths = [len(tokenizer.encode([f"the cat it is {name}"])[0]) + 3 for name in labels]  # [CLS] [SEP] [SEP]
    assert list(answers[0]["probabilities"].values()) == pytest.approx([n / sum(lengths) for n in lengths], abs=1e-4)
    with pytest.raises(UserError, match="needs a run on pairs of texts with the label 'follows'"):
        list(entail(run, records, labels, entailment="follows"))
    with pytest.raises(UserError, match="record 1: has no field 'premise'"):
        list(entail(run, [{"text": "cat"}], labels))


def test_the_command_labels_a_file(model: Model, tmp_path: Path, capsys: pytest.CaptureFixture):
    if model.path.name != "gpt":
        pytest.skip("once is enough")
    write_json(tmp_path / "model.json", {"model": to_json(model.config), "architecture": None, "labels": ()})
    write_params(tmp_path, model.params)
    model.tokenizer.save(tmp_path / "tokenizer")
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r | {"label": "good"}) + "\n" for r in RECORDS))
    command = ["prompt", str(tmp_path), "--input", str(tmp_path / "in.jsonl"), "--labels", "good", "bad"]
    few = tmp_path / "few.csv"
    few.write_text("label,text\ngood,tree\nbad,house\n")
    command += ["--template", TEMPLATE["gpt"], "--examples", str(few), "--k", "2", "--calibrate"]
    assert main(command) == 0
    printed = capsys.readouterr()
    answers = [json.loads(line) for line in printed.out.splitlines()]
    assert [answer["text"] for answer in answers] == [record["text"] for record in RECORDS]
    right = sum(answer["predicted_label"] == "good" for answer in answers)
    assert f"accuracy {right / 3:.4f} on 3 records" in printed.err
    assert main([*command, "--entailment", "entailment"]) == 2
    assert "--entailment goes with" in capsys.readouterr().err
    few.write_text("label,text\ngood,tree\nfine,house\n")
    assert main(command) == 2
    assert "few.csv:3: 'label' is 'fine'; labels are 'good', 'bad'" in capsys.readouterr().err
