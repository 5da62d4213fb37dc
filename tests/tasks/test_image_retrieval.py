"""Images and texts: which are the same, recall over a whole split in both directions, and what it is compared with."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from bertgpt.data.images.format import ImageFormat
from bertgpt.data.loader import Batches
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.tasks.image_retrieval import (
    ImageTextPairs,
    NearestPicture,
    RandomRanking,
    chance_of_hit,
    evaluate_pairs,
)
from bertgpt.types import DataRequest, HeldOut, UserError

Image = pytest.importorskip("PIL.Image", reason="images need the extra [vision]")
FORMAT = ImageFormat(8, 8)


def write(folder: Path, name: str, records: list[dict]) -> str:
    """A file of records beside pictures of one colour, which their names say: r, g, b as hexadecimal digits."""
    for value in itertools.chain.from_iterable(np.atleast_1d(record["image"]) for record in records):
        colour = tuple(17 * int(digit, 16) for digit in Path(value).stem)
        Image.new("RGB", (6, 4), colour).save(folder / value)
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(folder / name)


@pytest.fixture
def data(tmp_path: Path) -> ImageTextPairs:
    train = [
        {"image": "f00.png", "text": ["a big red cat", "the cat"]},
        {"image": "00f.png", "text": "a blue river"},
        {"image": "0f0.png", "text": "a green tree"},
        {"image": "0f0.png", "text": "a green tree"},
        {"image": "fff.png", "text": " "},
    ]
    test = [
        {"image": "e00.png", "text": ["the red cat", "a cat"]},
        {"image": "00e.png", "text": "the river"},
        {"image": "0e0.png", "text": "a tree"},
        {"image": "0d0.png", "text": "a tree"},
        {"image": "0e0.png", "text": "a tree"},
    ]
    files = {"path": write(tmp_path, "train.jsonl", train), "test_path": write(tmp_path, "test.jsonl", test)}
    return ImageTextPairs(**files, validation=0.0, seq_len=16, image=FORMAT)


def batches_of(data: ImageTextPairs, split: str, tokenizer: Tokenizer) -> Batches:
    return data.make(DataRequest(split, tokenizer, 4))


def test_pairs_are_numbered_and_repetitions_are_skipped_in_training_alone(data: ImageTextPairs, tokenizer: Tokenizer):
    train, test = (batches_of(data, split, tokenizer).dataset for split in ("train", "test"))
    assert [pair.texts[0] for pair in train.dataset.examples] == [
        "a big red cat",
        "the cat",
        "a blue river",
        "a green tree",
    ]
    assert [(w.kind, w.count) for w in train.warnings] == [("empty", 1), ("repeated", 1)]
    assert list(train.dataset.extra["image_id"]) == [0, 0, 1, 2] and list(train.dataset.extra["text_id"]) == [
        0,
        1,
        2,
        3,
    ]
    numbers = test.dataset.extra
    assert list(numbers["image_id"]) == [0, 0, 1, 2, 3, 2] and list(numbers["text_id"]) == [0, 1, 2, 3, 3, 3]
    assert [(w.kind, w.count, "scored" in w.text) for w in test.warnings] == [("repeated", 1, True)]
    batch = batches_of(data, "test", tokenizer)[1]
    assert batch["images"].shape == (4, 1, 8, 8, 3) and batch["images"].dtype == np.uint8
    assert (batch["images"][0, 0] == [0, 13 * 17, 0]).all()
    assert list(batch["image_id"]) == [3, 2, -1, -1]  # the last batch is filled up
    assert list(data.texts("test")) == ["the red cat", "a cat", "the river", "a tree", "a tree", "a tree"]


def naive_recall(images: np.ndarray, texts: np.ndarray, image_id: list, text_id: list, n: int) -> tuple[float, float]:
    """Whether one of the n nearest is right, query by query; no two are equally near."""
    right = set(zip(image_id, text_id, strict=True))
    rows = {number: images[image_id.index(number)] for number in set(image_id)}
    columns = {number: texts[text_id.index(number)] for number in set(text_id)}
    hits = []
    for one, other, swap in ((rows, columns, False), (columns, rows, True)):
        found = []
        for key, query in one.items():
            nearest = sorted(other, key=lambda k: -float(query @ other[k]))[:n]
            found.append(any(((k, key) if swap else (key, k)) in right for k in nearest))
        hits.append(float(np.mean(found)))
    return hits[0], hits[1]


def test_recall_is_that_of_all_images_and_all_texts_and_any_right_answer_counts(rng: np.random.Generator):
    image_id = [int(i) for i in rng.integers(0, 25, 60)]
    text_id = [int(i) for i in rng.integers(0, 40, 60)]
    vectors = {"i": rng.normal(size=(25, 5)), "t": rng.normal(size=(40, 5))}
    images, texts = vectors["i"][image_id], vectors["t"][text_id]
    numbers = {"image_id": np.array(image_id, np.int32), "text_id": np.array(text_id, np.int32)}
    found = evaluate_pairs(images, texts, numbers).values
    for n in (1, 5, 10):
        expected = naive_recall(images, texts, image_id, text_id, n)
        assert (found[f"image_to_text_recall_at_{n}"], found[f"text_to_image_recall_at_{n}"]) == expected
    assert 0 < found["image_to_text_recall_at_1"] < found["image_to_text_recall_at_10"] < 1


def test_more_queries_than_are_ranked_at_once_are_all_ranked(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch):
    images, texts = rng.normal(size=(30, 4)), rng.normal(size=(30, 4))
    numbers = {"image_id": np.arange(30), "text_id": np.arange(30) % 20}
    texts = texts[numbers["text_id"]]
    whole = evaluate_pairs(images, texts, numbers).values
    monkeypatch.setattr("bertgpt.tasks.image_retrieval.CHUNK", 7)
    assert evaluate_pairs(images, texts, numbers).values == whole


def test_equally_near_answers_are_in_random_order(rng: np.random.Generator):
    image_id, text_id = np.array([0, 0, 1, 2, 3, 4]), np.array([0, 1, 2, 3, 4, 5])
    images = np.array([[2.0, 0], [1, 1], [0, 2], [3, 1], [1, 3]])[image_id]
    texts = np.array([[1.0, 0], [1, 0], [0, 1], [1, 0], [0, 1], [1, 0]])[text_id]
    found = evaluate_pairs(images, texts, {"image_id": image_id, "text_id": text_id}).values
    hits = {n: [] for n in (1, 5)}
    for _ in range(4000):
        noise = rng.uniform(size=(5, 6)) * 1e-6
        for n in hits:
            top = np.argsort(-(images[[0, 2, 3, 4, 5]] @ texts.T + noise), axis=1)[:, :n]
            hits[n].append(np.mean([any(image_id[t] == i for t in top[i]) for i in range(5)]))
    for n, values in hits.items():
        assert found[f"image_to_text_recall_at_{n}"] == pytest.approx(np.mean(values), abs=0.01)
    assert found["image_to_text_recall_at_1"] == pytest.approx((1 / 2 + 1 / 6 + 0 + 0 + 0) / 5)


def test_chance_is_the_mean_over_all_orders(data: ImageTextPairs, tokenizer: Tokenizer):
    for right, count, n in ((1, 5, 1), (2, 5, 2), (2, 6, 3), (1, 3, 5)):
        drawn = list(itertools.permutations(range(count)))
        hits = [any(answer < right for answer in order[:n]) for order in drawn]
        assert chance_of_hit(right, count, n) == pytest.approx(np.mean(hits))
    held_out = HeldOut(data, "test", batches_of(data, "test", tokenizer))
    found = RandomRanking().fit(data, batches_of(data, "train", tokenizer))(held_out).values
    # Four images among four texts, one of which belongs to two images; the first image has two texts.
    assert found["image_to_text_recall_at_1"] == pytest.approx((2 + 1 + 1 + 1) / 16)
    assert found["text_to_image_recall_at_1"] == pytest.approx((1 + 1 + 1 + 2) / 16)
    assert found["image_to_text_recall_at_5"] == 1.0


def test_the_nearest_picture_gives_its_words(data: ImageTextPairs, tokenizer: Tokenizer, tmp_path: Path):
    train = batches_of(data, "train", tokenizer)
    predict = NearestPicture().fit(data, train)
    found = predict(HeldOut(data, "test", batches_of(data, "test", tokenizer))).values
    assert found["image_to_text_recall_at_1"] == found["text_to_image_recall_at_1"] == 1.0
    # The words of the nearest picture, {blue, river}, are in no text; those of this text are in another picture's.
    other = write(tmp_path, "other.jsonl", [{"image": "e00.png", "text": "red"}, {"image": "00e.png", "text": "a cat"}])
    data = dataclasses.replace(data, test_path=other)
    found = predict(HeldOut(data, "test", batches_of(data, "test", tokenizer))).values
    assert found["image_to_text_recall_at_1"] == 0.5  # both texts are as near to each image
    assert found["text_to_image_recall_at_1"] == 0.5


def test_predictions_are_cosines_and_the_sheet_shows_the_nearest_text(data: ImageTextPairs, tokenizer: Tokenizer):
    dataset = batches_of(data, "test", tokenizer).dataset
    images = np.eye(4)[dataset.dataset.extra["image_id"]]
    texts = np.eye(4)[[0, 0, 1, 3, 3, 3]]
    assert [row["similarity"] for row in data.describe(dataset, {"image": images, "text": texts})] == [1, 1, 1, 0, 1, 0]
    result = data.evaluate(dataset, {"image": images, "text": texts})
    sheet = result.figures[0]
    assert sheet.captions[:2] == ["the red cat", "the river"] and sheet.captions[3] == "a tree"
    assert sheet.correct == [True, True, False, True] and sheet.images[1].shape == (8, 8, 3)
    assert result.tables[0].rows == [["4", "4", "5"]]


def test_new_records_need_one_text(data: ImageTextPairs, tokenizer: Tokenizer, tmp_path: Path):
    records = [{"image": str(tmp_path / "f00.png"), "text": "a cat"}]
    batch = data.predict_batches(records, 1, tokenizer)[0]
    assert (batch["images"][0, 0, 0, 0] == [255, 0, 0]).all()
    with pytest.raises(UserError, match="record:1: 'text' must be one text"):
        data.predict_batches([{"image": str(tmp_path / "f00.png"), "text": ["a", "b"]}], 1, tokenizer)


def test_a_missing_picture_is_named_with_its_record(data: ImageTextPairs, tokenizer: Tokenizer, tmp_path: Path):
    (tmp_path / "00e.png").unlink()
    with pytest.raises(UserError, match=r"test\.jsonl:2: .*00e\.png"):
        batches_of(data, "test", tokenizer)
