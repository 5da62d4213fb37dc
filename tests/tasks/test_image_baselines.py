"""Baselines for images, against brute force and by hand."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bertgpt.data.images.format import ImageFormat
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.tasks.classification import TextClassification
from bertgpt.tasks.generation import bleu
from bertgpt.tasks.image_baselines import MostFrequentAnswer, NearestImage, squared_distances
from bertgpt.tasks.image_classification import ImageClassification
from bertgpt.tasks.image_to_text import ImageToText
from bertgpt.types import DataConfig, DataRequest, EvalResult, HeldOut, UserError

COLORS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 training pictures of noise and 12 test pictures; two records in two languages of each, and a label."""
    path, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 12)):
        rows = []
        for number in range(count):
            Image.fromarray(random.integers(0, 256, (9, 11, 3), np.uint8)).save(path / f"{split}{number}.png")
            for language in ("en", "de")[: 1 if split == "train" and number % 3 else 2]:
                name = f"{language} picture {number} {random.integers(3)}"
                row = {"image": f"{split}{number}.png", "caption": name, "language": language}
                rows.append(row | {"label": COLORS[random.integers(3)]})
        (path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def captions(folder: Path, tokenizer_dir: Path) -> ImageToText:
    paths = {name: str(folder / f"{split}.jsonl") for name, split in (("path", "train"), ("test_path", "test"))}
    return ImageToText(
        **paths, source_field="language", seq_len=8, image=ImageFormat(8, 12), tokenizer=str(tokenizer_dir),
        validation=0.0, metric="bleu",
    )  # fmt: skip


@pytest.fixture
def labels(folder: Path) -> ImageClassification:
    paths = {name: str(folder / f"{split}.jsonl") for name, split in (("path", "train"), ("test_path", "test"))}
    return ImageClassification(**paths, labels=COLORS, image=ImageFormat(8, 12), validation=0.0, where="language=en")


def score(baseline: NearestImage | MostFrequentAnswer, data: DataConfig, tokenizer: Tokenizer) -> EvalResult:
    train, test = (data.make(DataRequest(split, tokenizer, 8)) for split in ("train", "test"))
    return baseline.fit(data, train)(HeldOut(data, "test", test))


def records(folder: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


def nearest(folder: Path, image: str, candidates: list[dict], side: int) -> dict:
    """By a loop over files, in Pillow and integers."""

    def thumbnail(name: str) -> np.ndarray:
        with Image.open(folder / name) as opened:
            model_size = opened.convert("RGB").resize((12, 8), Image.Resampling.BILINEAR)
        return np.asarray(model_size.resize((side, side), Image.Resampling.BOX), np.int64)

    own = thumbnail(image)
    return min(candidates, key=lambda row: int(((thumbnail(row["image"]) - own) ** 2).sum()))


@pytest.mark.parametrize("side", [4, 16])
def test_the_nearest_picture_gives_the_caption_in_the_same_language(
    side: int, captions: ImageToText, folder: Path, tokenizer: Tokenizer
):
    train, test = records(folder, "train"), records(folder, "test")
    expected = [
        nearest(folder, row["image"], [r for r in train if r["language"] == row["language"]], side)["caption"]
        for row in test
    ]
    scores = bleu(expected, [[row["caption"]] for row in test])
    found = score(NearestImage(side), captions, tokenizer)
    assert found.metrics[: len(scores)] == scores and not found.figures
    assert found.values["exact_match"] == np.mean([e == row["caption"] for e, row in zip(expected, test, strict=True)])


def test_the_nearest_picture_gives_the_label(labels: ImageClassification, folder: Path, tokenizer: Tokenizer):
    train, test = ([r for r in records(folder, split) if r["language"] == "en"] for split in ("train", "test"))
    right = [nearest(folder, row["image"], train, 16)["label"] == row["label"] for row in test]
    assert 0 < np.mean(right) < 1
    assert score(NearestImage(), labels, tokenizer).values == {"accuracy": np.mean(right)}
    own = dataclasses.replace(labels, test_path=labels.path)  # each picture is its own neighbour
    assert score(NearestImage(), own, tokenizer).values == {"accuracy": 1.0}


def test_the_most_frequent_answer_is_that_of_the_same_question(
    folder: Path, captions: ImageToText, tokenizer: Tokenizer
):
    """Where a question is new, it is the most frequent of all."""
    rows = records(folder, "train")
    for number, (question, caption) in enumerate(
        [("a", "x"), ("b", "y"), ("b", "y"), ("b", "y"), ("a", "x"), ("a", "z")]
    ):
        rows[number] |= {"language": question, "caption": caption}
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:6]))
    tests = [rows[0] | {"language": "a", "caption": "x"}, rows[1] | {"language": "c", "caption": "y"}]
    (folder / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tests))
    data = dataclasses.replace(captions, path=str(folder / "asked.jsonl"), test_path=str(folder / "new.jsonl"))
    assert score(MostFrequentAnswer(), data, tokenizer).values["exact_match"] == 1.0


def test_the_most_frequent_label(labels: ImageClassification, folder: Path, tokenizer: Tokenizer):
    train, test = ([r["label"] for r in records(folder, s) if r["language"] == "en"] for s in ("train", "test"))
    most = max(COLORS, key=train.count)
    assert [train.count(color) for color in COLORS].count(train.count(most)) == 1
    assert score(MostFrequentAnswer(), labels, tokenizer).values == {"accuracy": test.count(most) / len(test)}


def test_distances_of_pixels_are_exact():
    random = np.random.default_rng(1)
    left, right = (random.integers(0, 256, (n, 768)).astype(np.float64) for n in (3, 4))
    assert np.array_equal(squared_distances(left, right), ((left[:, None] - right) ** 2).sum(-1))


@pytest.mark.parametrize("baseline", [NearestImage(), MostFrequentAnswer()], ids=lambda item: type(item).__name__)
def test_they_are_for_images_with_one_answer(baseline, labels: ImageClassification, tokenizer: Tokenizer):
    with pytest.raises(UserError, match="for data of ImageClassification or ImageToText, not TextClassification"):
        baseline.fit(TextClassification(labels.path), labels.make(DataRequest("train", tokenizer, 8)))
