"""Tagged words from files to rows, result and predictions; one run from end to end."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from bertgpt.config import TEST, Experiment
from bertgpt.data.sources.conll import Sentence, WarningCounter, entities
from bertgpt.data.tokenizer import ByteBPE, Tokenizer
from bertgpt.inference.model import load
from bertgpt.inference.predict import predict
from bertgpt.objectives.tag import Tag
from bertgpt.tasks.tag_dataset import TaggedDataset, Window, windows
from bertgpt.tasks.tag_metrics import evaluate_entities, evaluate_words
from bertgpt.tasks.tagging import RECORDS, MostFrequentTag, TokenTagging
from bertgpt.training.loop import train
from bertgpt.types import DataRequest, HeldOut, UserError

KINDS = {"cat": "B-ANIMAL", "dog": "B-ANIMAL", "tree": "B-PLANT", "big": "B-ANIMAL"}  # “big” begins “big cat”


def sentence(rng: np.random.Generator) -> list[tuple[str, str]]:
    """Words with tags that the words themselves give away."""
    pairs = []
    for word in rng.choice(["the", "cat", "dog", "tree", "runs", "under", "big"], rng.integers(2, 7)):
        goes_on = word == "cat" and pairs and pairs[-1][0] == "big"
        pairs.append((str(word), "I-ANIMAL" if goes_on else KINDS.get(word, "O")))
    return pairs


def write_columns(path: Path, count: int, seed: int) -> str:
    rng = np.random.default_rng(seed)
    text = "\n\n".join("\n".join(f"{word} {tag}" for word, tag in sentence(rng)) for _ in range(count))
    path.write_text(text + "\n")
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> TokenTagging:
    train, test = (write_columns(tmp_path / name, 120, seed) for name, seed in (("train.txt", 1), ("test.txt", 2)))
    return TokenTagging(train, validation_path=test, test_path=test, seq_len=32)


def rows_of(data: TokenTagging, tokenizer: Tokenizer, split: str = "train") -> TaggedDataset:
    return data.make(
        DataRequest(split=split, seed=0, batch_size=4, tokenizer=tokenizer, cache=Path(), shuffle=False)
    ).dataset


def test_every_tag_stands_at_the_first_piece_of_its_word(data: TokenTagging, tokenizer: Tokenizer):
    data = data.infer()
    for settings in ({}, {"packed": True}, {"packed": True, "documents": True}):
        rows = rows_of(dataclasses.replace(data, **settings), tokenizer)
        found = []
        for window, row, slot in zip(rows.windows, rows.row, rows.slot, strict=True):
            places = rows.tables["word_positions"][row, slot : slot + window.last - window.first]
            segment = rows.tables["segment_ids"][row, places[0]]
            ends = np.append(places[1:], np.flatnonzero(rows.tables["segment_ids"][row] == segment)[-1])
            words = [
                tokenizer.decode(rows.tables["input_ids"][row, a:b].tolist()) for a, b in zip(places, ends, strict=True)
            ]
            tags = [data.labels[tag] for tag in rows.tables["tags"][row, slot : slot + len(words)]]
            found.append((tuple(words), tuple(tags)))
        assert found == [(s.words, s.tags) for s in rows.examples]


def test_packing_keeps_every_sentence_and_says_what_it_saves(data: TokenTagging, tokenizer: Tokenizer):
    data = data.infer()
    apart, packed = (rows_of(dataclasses.replace(data, packed=packed), tokenizer) for packed in (False, True))
    assert len(apart) == 120 and len(packed) < 50 and packed.padding < 0.1 < apart.padding
    assert tuple(w.text for w in packed.warnings) == (
        f"120 segments packed into {len(packed)} sequences:"
        f" {packed.padding:.1%} padding instead of {apart.padding:.1%}",
    )
    for tables in (apart.tables, packed.tables):
        assert np.sum(tables["tags"] >= 0) == np.sum(tables["chains"] > 0) == sum(len(s.words) for s in apart.examples)
        assert np.sum(tables["edges"] & 1 > 0) == np.sum(tables["edges"] & 2 > 0) == 120
    starts = packed.tables["input_ids"] == tokenizer.vocab.cls
    assert np.all(packed.tables["positions"][starts] == 0) and np.sum(starts) == 120


def test_neighbours_in_a_document_share_a_segment_but_no_chain(tmp_path: Path, tokenizer: Tokenizer):
    path = tmp_path / "a.txt"
    path.write_text("-DOCSTART- O\n\nthe O\ncat B-A\n\nruns O\n\n-DOCSTART- O\n\nthe O\ndog B-A\n")
    data = TokenTagging(str(path), seq_len=16, validation=0.0, test=0.0, documents=True).infer()
    rows = rows_of(data, tokenizer)
    assert len(rows) == 2
    assert rows.tables["chains"].tolist() == [[1, 1, 2], [1, 1, 0]]
    assert rows.tables["edges"].tolist() == [[1, 2, 3], [1, 2, 0]]
    assert set(rows.tables["segment_ids"].ravel().tolist()) == {0, 1}


@pytest.mark.parametrize("seed", range(20))
def test_windows_decide_each_word_once_and_where_it_has_most_context(seed: int):
    rng = np.random.default_rng(seed)
    room, stride = 12, int(rng.integers(1, 12))
    lengths = rng.integers(1, 5 if seed % 2 else 13, rng.integers(1, 40))
    found = windows(7, lengths.tolist(), room, stride)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    decided = [word for window in found for word in range(window.first, window.last)]
    assert decided == list(range(len(lengths)))
    spans = [(window.begin, window.end) for window in found]
    for window in found:
        assert window.sentence == 7 and sum(lengths[window.begin : window.end]) <= room
        for word in range(window.first, window.last):
            context = [
                min(starts[word] - starts[begin], ends[end - 1] - ends[word])
                for begin, end in spans
                if begin <= word < end
            ]
            mine = min(starts[word] - starts[window.begin], ends[window.end - 1] - ends[word])
            assert mine == max(context)
    for before, after in zip(found, found[1:], strict=False):
        assert sum(lengths[after.begin : before.end]) <= stride


def test_without_a_stride_the_rest_of_a_sentence_is_cut():
    assert windows(0, [3] * 6, 12, 0) == [Window(0, 0, 4, 0, 4)]
    assert windows(0, [], 12, 4) == [Window(0, 0, 0, 0, 0)]


def test_words_beyond_the_window_are_counted_and_with_a_stride_kept(tmp_path: Path, tokenizer: Tokenizer):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(["the O"] * 10 + ["cat B-A"] * 10) + "\n\nthe O\n")
    data = TokenTagging(str(path), seq_len=16, validation=0.0, test=0.0).infer()
    rows = rows_of(data, tokenizer)
    ((_, _, note),) = rows.warnings
    assert note.startswith("6 words are beyond seq_len") and note.endswith("a.txt:15")
    every = np.full(rows.tables["tags"].shape, data.labels.index("B-A"))
    assert rows.predicted(every, data.labels, data.other)[0] == ["B-A"] * 14 + ["O"] * 6
    rows = rows_of(dataclasses.replace(data, stride=6), tokenizer)
    assert rows.warnings == () and rows.tables["tags"].max(initial=0) == 1
    assert rows.predicted(rows.tables["tags"], data.labels, data.other)[0] == list(rows.examples[0].tags)


def test_tags_that_training_never_saw_are_counted(tmp_path: Path, data: TokenTagging, tokenizer: Tokenizer):
    path = tmp_path / "odd.txt"
    path.write_text("the O\ncat B-ANIMAL\n\nnew B-TOWN\nrome I-TOWN\n")
    data = dataclasses.replace(data.infer(), test_path=str(path))
    rows = rows_of(data, tokenizer, "test")
    ((_, _, note),) = rows.warnings
    assert note.startswith("2 words have tags that are not among the training labels") and note.endswith("odd.txt:4")
    assert rows.tables["tags"][1].tolist() == [-1, -1]
    result = data.evaluate(rows, {"tags": np.maximum(rows.tables["tags"], 0)})
    assert result.values == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3)}


def test_a_tag_that_training_labels_lack_is_named(data: TokenTagging):
    data = dataclasses.replace(data, labels=("O", "B-ANIMAL", "I-ANIMAL"))
    with pytest.raises(UserError, match=r"train.txt:\d+: unknown tag 'B-PLANT'; labels are O, B-ANIMAL, I-ANIMAL"):
        data.examples("train")


def test_labels_are_those_of_training_with_both_tags_of_each_kind(data: TokenTagging):
    settled = data.infer()
    assert settled.labels == ("O", "B-ANIMAL", "I-ANIMAL", "B-PLANT", "I-PLANT")
    assert dataclasses.replace(data, path="elsewhere").infer(settled).labels == settled.labels


def test_sentences_without_words_are_left_out_and_counted(tmp_path: Path, tokenizer: Tokenizer):
    path = tmp_path / "a.jsonl"
    records = [{"tokens": [], "tags": []}, {"tokens": ["the", "cat"], "tags": ["O", "I-A"]}]
    path.write_text("\n".join(map(json.dumps, records)))
    rows = rows_of(TokenTagging(str(path), validation=0.0, test=0.0).infer(), tokenizer)
    assert len(rows) == 1
    assert [warning.text.split(";")[0] for warning in rows.warnings] == [
        "1 sentences without words are skipped",
        "1 tags continue an entity that is not open and are read as its beginning",
    ]


def test_one_tag_alone_is_nothing_to_learn(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("the O\ncat O\n")
    with pytest.raises(UserError, match="every training word has the tag 'O'"):
        TokenTagging(str(path), validation=0.0, test=0.0).infer()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stride": 30, "seq_len": 32}, "stride=30 must lie in"),
        ({"frames_field": "frames"}, "frames_field needs predicate_field"),
        ({"spans_field": "label", "scheme": "bioes"}, "spans become BIO"),
        ({"capitals": True, "predicate_field": "pred"}, "token types mark the predicate"),
        ({"where": "a=b"}, "where does not apply"),
        ({"labels": ("O", "O")}, "must be two or more different ones"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: dict, message: str):
    with pytest.raises(UserError, match=f"TokenTagging: .*{message}"):
        TokenTagging("a.jsonl", **settings)


def test_held_out_sentences_depend_on_their_words_alone(tmp_path: Path):
    path = write_columns(tmp_path / "a.txt", 200, 3)
    data = TokenTagging(path, validation=0.2, test=0.2).infer()
    splits = {split: {s.words for s in data.examples(split)} for split in ("train", "validation", "test")}
    assert all(splits.values()) and not splits["train"] & (splits["validation"] | splits["test"])
    assert len(data.examples("train")) > 3 * len(dataclasses.replace(data, max_examples=9).examples("train")) == 27


def test_words_of_byte_level_bpe_begin_with_their_space():
    tokenizer = ByteBPE(300, style="roberta").make(lambda: iter(["the cat and the dog"] * 9))
    words = Sentence(("cat", "the"), ("O", "O"), "f", (1, 1))
    settings = dict(stride=0, packed=False, documents=False, capitals=False, counter=WarningCounter())
    rows = TaggedDataset([words], ("O",), tokenizer, 16, **settings)
    start, end = tokenizer.template
    assert rows.tables["input_ids"][0, : len(tokenizer.encode([" cat the"])[0]) + 2].tolist() == [
        *start, *tokenizer.encode([" cat the"])[0], *end
    ]  # fmt: skip


def test_a_word_without_pieces_stands_as_unknown(tokenizer: Tokenizer):
    counter = WarningCounter()
    words = Sentence(("the", "\u200d", "cat"), ("O", "O", "O"), "f", (1, 2, 3))
    rows = TaggedDataset(
        [words], ("O",), tokenizer, 16, stride=0, packed=False, documents=False, capitals=False, counter=counter
    )
    assert rows.tables["input_ids"][0, rows.tables["word_positions"][0, 1]] == tokenizer.vocab.unk
    assert tuple(w.text for w in rows.warnings) == (
        "1 words tokenise to nothing and are replaced by the unknown token; the first at f:2",
    )


def test_capitals_are_marked_by_type_where_the_tokenizer_folds_case(data: TokenTagging, tokenizer: Tokenizer):
    records = [{"text": ["The", "cat", "Sings"]}]
    for capitals in (False, True):
        settled = dataclasses.replace(data.infer(), capitals=capitals)
        tables = settled.predict_batches(records, 4, tokenizer).dataset.tables
        marked = tables["input_ids"][0][tables["type_ids"][0] == 1].tolist()
        assert tokenizer.decode(marked) == ("the sings" if capitals else "")


# -- result --------------------------------------------------------------------------------------------------------


def test_entities_are_counted_whole_as_sets_of_spans(rng: np.random.Generator):
    tags = ["O", "B-A", "I-A", "B-B", "I-B"]
    truth, predicted = ([list(rng.choice(tags, n)) for n in range(2, 30)] for _ in range(2))
    truth = [["O" if tag[0] == "I" and i == 0 else tag for i, tag in enumerate(row)] for row in truth]
    spans = [{(i, *entity) for i, row in enumerate(side) for entity in entities(row)} for side in (truth, predicted)]
    right = len(spans[0] & spans[1])
    result = evaluate_entities(truth, predicted)
    assert result.values["precision"] == pytest.approx(right / len(spans[1]))
    assert result.values["recall"] == pytest.approx(right / len(spans[0]))
    assert result.values["f1"] == pytest.approx(2 * right / (len(spans[0]) + len(spans[1])))
    assert [row[0] for row in result.tables[0].rows] == ["A", "B"]
    assert result.figures[0].names == ("O", "A", "B")
    assert result.figures[0].counts.sum() == sum(map(len, truth))


def test_ignored_kinds_and_texts_without_entities_count_nothing():
    truth, predicted = [["B-A", "B-V", "O"]], [["B-A", "O", "O"]]
    assert evaluate_entities(truth, predicted, ignored=("V",)).values["f1"] == 1.0
    assert evaluate_entities([["O"]], [["O"]]).values == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_plain_tags_are_judged_word_by_word():
    result = evaluate_words(("DET", "NOUN"), [["DET", "NOUN"], ["VERB", "NOUN"]], [["DET", "DET"], ["NOUN", ""]])
    assert result.values["accuracy"] == 0.25
    assert [row[0] for row in result.tables[0].rows] == ["DET", "NOUN", "(truncated)", "VERB"]
    assert result.tables[0].columns[-1] == "words"


def test_the_most_frequent_tag_knows_words_but_no_sentences(data: TokenTagging, tokenizer: Tokenizer):
    data = data.infer()
    batches = data.make(
        DataRequest(split="train", seed=0, batch_size=4, tokenizer=tokenizer, cache=Path(), shuffle=True)
    )
    score = MostFrequentTag().fit(data, batches)(HeldOut(data, "test", batches)).values
    assert 0.6 < score["f1"] < 1.0  # “cat” is B or I


# -- predictions ------------------------------------------------------------------------------------------------------


def answers(data: TokenTagging, records: list[dict], tokenizer: Tokenizer, tag: str) -> list[dict]:
    """What is printed if each word that contains “cat” or “猫” has this tag and the others none."""
    rows = data.predict_batches(records, 4, tokenizer).dataset
    tags = np.full(rows.tables["tags"].shape, data.labels.index("O" if "O" in data.labels else "X"))
    for window, row, slot in zip(rows.windows, rows.row, rows.slot, strict=True):
        for i, word in enumerate(rows.examples[window.sentence].words[window.first : window.last]):
            if "cat" in word or "猫" in word:
                tags[row, slot + i] = data.labels.index(tag)
    return list(data.describe(rows, {"tags": tags}))


def test_entities_come_with_characters_of_a_text_and_words_of_a_list(data: TokenTagging, tokenizer: Tokenizer):
    records = [{"text": "A  cat, a cat."}, {"text": ["big", "cat"]}, {"text": ""}, {"text": "黑猫cat"}]
    found = answers(data.infer(), records, tokenizer, "B-ANIMAL")
    cat = {"text": "cat", "label": "ANIMAL"}
    assert found == [
        {"entities": [cat | {"start": 3, "end": 6}, cat | {"start": 10, "end": 13}]},
        {"entities": [cat | {"start": 1, "end": 2}]},
        {"entities": []},
        {"entities": [{"text": "猫", "label": "ANIMAL", "start": 1, "end": 2}, cat | {"start": 2, "end": 5}]},
    ]


def test_marks_belong_to_their_letters_and_numbers_stay_whole(data: TokenTagging, tokenizer: Tokenizer):
    def words(text: str) -> list[str]:
        return list(data.predict_batches([{data.inputs[0]: text}], 1, tokenizer).dataset.examples[0].words)

    assert words("Zu\u0308rich, \u0939\u093f\u0928\u094d\u0926\u0940") == [
        "Zu\u0308rich", ",", "\u0939\u093f\u0928\u094d\u0926\u0940"
    ]  # fmt: skip
    assert words("3.5 of 1,000 \U00020000\U00020001.") == ["3.5", "of", "1,000", "\U00020000", "\U00020001", "."]


def test_chinese_sets_split_texts_into_characters(data: TokenTagging, tokenizer: Tokenizer):
    rows = (
        dataclasses.replace(data.infer(), characters=True).predict_batches([{"text": "黑 cat"}], 4, tokenizer).dataset
    )
    assert rows.examples[0].words == ("黑", "c", "a", "t") and rows.examples[0].file == RECORDS


def test_plain_tags_come_with_their_words_and_cut_words_are_counted(tokenizer: Tokenizer):
    data = TokenTagging("a.txt", labels=("X", "N"), scheme="plain", seq_len=8)
    found = answers(data, [{"text": "the cat"}, {"text": "the " * 9}], tokenizer, "N")
    assert found[0] == {"tagged": [["the", "X"], ["cat", "N"]]}
    assert found[1]["words_cut"] == 3 and found[1]["tagged"][-1] == ["the", ""]


def test_a_predicate_is_marked_and_its_arguments_told(tokenizer: Tokenizer):
    data = TokenTagging(
        "a.jsonl", labels=("O", "B-A0", "I-A0", "B-V", "I-V"), predicate_field="pred", frames_field="frames"
    )
    assert data.inputs == ("tokens", "pred")
    record = {"tokens": ["the", "cat", "sleeps"], "pred": 2}
    (found,) = answers(data, [record], tokenizer, "B-A0")
    assert found == {"verb": "sleeps", "arguments": [{"text": "cat", "label": "A0", "start": 1, "end": 2}]}
    rows = data.predict_batches([record], 4, tokenizer).dataset
    marked = rows.tables["input_ids"][0][rows.tables["type_ids"][0] == 1]
    assert tokenizer.decode(marked.tolist()) == "sleeps"
    with pytest.raises(UserError, match="record 1: 'pred' is 3, not the index of a word from 0 to 2"):
        data.predict_batches([record | {"pred": 3}], 4, tokenizer)
    with pytest.raises(UserError, match="record 1: 'tokens' must be a text or a list of words"):
        data.predict_batches([record | {"tokens": 3}], 4, tokenizer)


# -- from end to end --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_learns_to_tag_and_predicts_entities(tiny: Experiment, data: TokenTagging, tmp_path: Path):
    experiment = dataclasses.replace(
        tiny,
        name="tags",
        data=dataclasses.replace(data, tokenizer=tiny.data.tokenizer, packed=True, stride=8),
        objective=Tag(crf=True),
        optim=dataclasses.replace(tiny.optim, lr=0.01, warmup_steps=4, bias_correction=True),
        steps=80,
        evals=(TEST,),
        log_every=40,
        baselines=(MostFrequentTag(),),
    )
    results = train(experiment, tmp_path / "runs")
    scores = results["evals"]["test"]
    assert scores["f1"] > 0.95 > results["baselines"]["most frequent tag"]["test"]["f1"]
    run = load(tmp_path / "runs" / "tags", arrange="training")
    assert run.experiment.objective.labels == run.experiment.data.labels
    assert {"start", "end", "transitions"} == set(run.params["crf"])
    (answer,) = predict(run, ["the big cat runs"])
    assert answer == {"entities": [{"text": "big cat", "label": "ANIMAL", "start": 4, "end": 11}]}
    assert np.isfinite(jax.device_get(run.params["crf"]["transitions"])).all()
