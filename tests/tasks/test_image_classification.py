"""Images with labels, alone or beside texts: reading, splits, batches, scores."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bertgpt.data.class_token import ClassToken
from bertgpt.data.images.augment import Augment
from bertgpt.data.images.format import ImageFormat
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.tasks.image_classification import ImageClassification
from bertgpt.types import DataRequest, UserError

COLORS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200)}


def picture(color: str, number: int = 0) -> np.ndarray:
    """A square of a colour, a little different for each number."""
    return np.full((8, 8, 3), COLORS[color], np.uint8) + np.uint8(number % 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures of three colours, each with two questions about it."""
    path = tmp_path_factory.mktemp("pictures")
    rows = []
    for number in range(60):
        color = tuple(COLORS)[number % 3]
        Image.fromarray(picture(color, number)).save(path / f"{number}.png")
        for asked in (color, "red"):
            row = {"image": f"{number}.png", "text": f"is it {asked}", "color": color, "kind": asked, "id": number // 2}
            rows.append(row | {"label": "yes" if asked == color else "no"})
    (path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def colors(folder: Path) -> ImageClassification:
    return ImageClassification(
        str(folder / "data.jsonl"), label_field="color", labels=tuple(COLORS), image=ImageFormat(8, 8), test=0.2
    )


@pytest.fixture
def questions(folder: Path, tokenizer_dir: Path) -> ImageClassification:
    return ImageClassification(
        str(folder / "data.jsonl"),
        text_field="text",
        labels=("no", "yes"),
        group_field="kind",
        tokenizer=str(tokenizer_dir),
        seq_len=16,
        image=ImageFormat(8, 8),
        test=0.2,
    )


def request(split: str, tokenizer: Tokenizer, size: int = 4) -> DataRequest:
    return DataRequest(split, tokenizer, size)


@pytest.fixture(scope="module")
def class_token() -> Tokenizer:
    return ClassToken().make(lambda: iter(()))


def test_batches_hold_the_class_token_the_pixels_and_the_label(colors: ImageClassification, class_token: Tokenizer):
    batches = colors.make(request("train", class_token))
    examples = colors.examples("train")
    assert len(examples) == len({example.images[0].file for example in examples})  # two questions name each picture
    batch = batches[0]
    assert batch["input_ids"].tolist() == [[0]] * 4 and batch["segment_ids"].tolist() == [[1]] * 4
    assert batch["images"].shape == (4, 1, 8, 8, 3) and batch["images"].dtype == np.uint8
    for label, pixels, example in zip(batch["label"], batch["images"], examples, strict=False):
        number = int(Path(example.images[0].file).stem)
        assert np.array_equal(pixels[0], picture(tuple(COLORS)[label], number))
    assert "repeat earlier ones" in batches.dataset.warnings[0].text


def test_every_field_of_a_batch_is_what_the_spec_declares(questions: ImageClassification, tokenizer: Tokenizer):
    batches = questions.make(request("train", tokenizer))
    batch = batches[0]
    assert batch.keys() == batches.spec.keys()
    assert {name: array.dtype.name for name, array in batch.items()} == {k: f.dtype for k, f in batches.spec.items()}
    last = batches[len(batches) - 1]  # filled up
    assert last["images"].shape == batch["images"].shape and not last["segment_ids"][-1].any()


def test_all_questions_about_a_picture_are_in_one_split(questions: ImageClassification):
    where: dict[str, set[str]] = {}
    for split in ("train", "validation", "test"):
        for example in questions.examples(split):
            where.setdefault(example.images[0].file, set()).add(split)
    assert len(where) == 60 and all(len(splits) == 1 for splits in where.values())
    assert {split for splits in where.values() for split in splits} == {"train", "validation", "test"}


def test_split_fields_keep_pictures_of_the_same_thing_together(colors: ImageClassification):
    data = dataclasses.replace(colors, split_fields=("id",))  # a number
    where = {
        int(Path(example.images[0].file).stem): split
        for split in ("train", "validation", "test")
        for example in data.examples(split)
    }
    assert len(where) == 60 and all(where[2 * i] == where[2 * i + 1] for i in range(30))
    assert len(set(where.values())) == 3


def test_every_record_of_a_test_file_is_scored(colors: ImageClassification):
    data = dataclasses.replace(colors, test_path=colors.path)
    assert len(data.examples("test")) == 120  # repeated pictures too
    assert len(data.examples("train")) + len(data.examples("validation")) == 60


def test_labels_are_those_of_the_training_split(colors: ImageClassification):
    assert dataclasses.replace(colors, labels=()).infer().labels == ("blue", "green", "red")


def test_the_text_arm_of_a_task_reads_what_stands_beside_the_picture(
    questions: ImageClassification, tokenizer: Tokenizer
):
    batch = questions.make(request("train", tokenizer))[0]
    example = questions.examples("train")[0]
    before, after = tokenizer.template
    ids = [*before, *tokenizer.encode(list(example.texts))[0], *after]
    assert batch["input_ids"][0, : len(ids)].tolist() == ids and batch["segment_ids"][0].sum() == len(ids)


def test_evaluation_counts_classes_and_groups_and_shows_the_pictures(
    questions: ImageClassification, tokenizer: Tokenizer
):
    dataset = questions.make(request("train", tokenizer)).dataset
    truth = dataset.dataset.extra["label"]
    wrong = np.arange(len(truth)) % 5 == 0
    said = np.where(wrong, 1 - truth, truth)
    result = questions.evaluate(dataset, {"probabilities": np.eye(2)[said] * 0.8 + 0.1})
    kinds = [example.group for example in dataset.dataset.examples]
    counts = Counter(kinds)
    for kind, count in counts.items():
        right = sum(g == kind and not w for g, w in zip(kinds, wrong, strict=True))
        assert result.values[f"{kind}_accuracy"] == pytest.approx(right / count)
    (groups,) = [table for table in result.tables if table.title == "groups"]
    assert [row[2] for row in groups.rows] == [str(counts[name]) for name in sorted(counts)]
    confusion, sheet = result.figures
    assert confusion.counts.sum() == len(truth) and np.trace(confusion.counts) == (~wrong).sum()
    assert len(sheet.images) == len(sheet.captions) == len(sheet.correct) == 24
    for image, caption, right in zip(sheet.images, sheet.captions, sheet.correct, strict=True):
        asked, answer, *rest = caption.split("\n")
        color = next(name for name in COLORS if np.abs(image.astype(int) - COLORS[name]).max() < 16)
        is_true = asked == f"is it {color}"
        assert right == (answer == f"{'yes' if is_true else 'no'} (0.90)")
        assert rest == ([] if right else [f"truth: {'yes' if is_true else 'no'}"])


def test_each_picture_of_a_list_is_an_example_or_a_frame(folder: Path, class_token: Tokenizer):
    path = folder / "lists.jsonl"
    rows = [{"image": [f"{i}.png", f"{i + 3}.png"], "label": str(i)} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ImageClassification(str(path), image=ImageFormat(8, 8), labels=("0", "1", "2"), validation=0.0, test=0.0)
    video = dataclasses.replace(data, image=ImageFormat(8, 8, frames=2)).make(request("train", class_token, 1))[0]
    assert np.array_equal(video["images"][0], [picture("red", 0), picture("red", 3)])
    each = dataclasses.replace(data, each_image=True)
    assert [(Path(e.images[0].file).stem, e.label) for e in each.examples("train")] == [
        ("0", 0), ("3", 0), ("1", 1), ("4", 1), ("2", 2), ("5", 2)
    ]  # fmt: skip


def test_the_root_of_pictures_may_depend_on_the_file_of_records(folder: Path, tmp_path: Path):
    (tmp_path / "train.jsonl").write_text('{"image": "0.png", "label": "a"}\n{"image": "1.png", "label": "b"}\n')
    (tmp_path / "train_images").symlink_to(folder)
    data = ImageClassification(
        str(tmp_path / "train.jsonl"), image_root=str(tmp_path / "{}_images"), validation=0.0, test=0.0
    ).infer()
    assert [example.images[0].file for example in data.examples("train")] == [
        str(tmp_path / "train_images" / name) for name in ("0.png", "1.png")
    ]


def test_only_training_images_are_augmented(colors: ImageClassification, class_token: Tokenizer):
    data = dataclasses.replace(colors, augment=Augment("padded", padding=2, flip=0.0))
    training = DataRequest("train", class_token, 8, shuffle=True)
    plain, varied = colors.make(training)[0], data.make(training)[0]
    assert np.array_equal(plain["row"], varied["row"]) and not np.array_equal(plain["images"], varied["images"])
    assert np.array_equal(data.make(training)[0]["images"], varied["images"])
    for split in ("train", "test"):  # of evaluations
        held_out = request(split, class_token)
        assert np.array_equal(data.make(held_out)[0]["images"], colors.make(held_out)[0]["images"])


def test_new_pictures_may_be_paths_bytes_arrays_or_images(
    folder: Path, colors: ImageClassification, class_token: Tokenizer
):
    image = Image.open(folder / "4.png")
    given = [str(folder / "4.png"), folder / "4.png", (folder / "4.png").read_bytes(), np.asarray(image), image]
    batch = colors.predict_batches([{"image": item} for item in given], 5, class_token)[0]
    assert (batch["images"] == picture("green", 4)).all() and batch["label"].tolist() == [-1] * 5
    video = dataclasses.replace(colors, image=ImageFormat(8, 8, frames=2))
    frames = video.predict_batches([{"image": given[:2]}], 1, class_token)[0]["images"]
    assert frames.shape == (1, 2, 8, 8, 3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("none.png", "record:1: none.png: cannot be read: No such file"),
        ("", "record:1: 'image' names no picture"),
        (None, "record:1: 'image' names no picture"),
        ([], "record:1: 'image' names no picture"),
        (b"", r"record:1: image: is empty \(0 bytes\)"),
        (b"GIF89a", "record:1: image: is "),
        (7, "record:1: an image is of type int, not a path"),
        (np.zeros((2, 2, 7), np.uint8), r"record:1: image: pixels are uint8 \[2, 2, 7\]"),
    ],
)
def test_a_bad_picture_is_named_by_its_record(
    colors: ImageClassification, class_token: Tokenizer, value: object, message: str
):
    with pytest.raises(UserError, match=message):
        colors.predict_batches([{"image": value}], 1, class_token)[0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"packed": True}, "packed=True is for texts alone"),
        ({"second_field": "b"}, "one text stands beside an image"),
        ({"text_field": "text"}, "text_field needs a tokenizer"),
        ({"tokenizer": "somewhere"}, "tokenizer is for texts: set text_field"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(colors: ImageClassification, changed: dict, message: str):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(colors, **changed)


def test_a_changed_picture_changes_the_digests(folder: Path, tmp_path: Path, class_token: Tokenizer):
    for name in ("0.png", "1.png"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "data.jsonl").write_text('{"image": "0.png", "label": "a"}\n{"image": "1.png", "label": "b"}\n')
    data = ImageClassification(str(tmp_path / "data.jsonl"))
    before = data.digests(class_token, tmp_path)
    assert data.digests(class_token, tmp_path) == before
    Image.new("RGB", (50, 50)).save(tmp_path / "1.png")
    assert data.digests(class_token, tmp_path) != before


def test_a_damaged_picture_of_a_file_is_named_by_file_and_line(folder: Path, tmp_path: Path, class_token: Tokenizer):
    (tmp_path / "bad.png").write_bytes((folder / "0.png").read_bytes()[:40])
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"image": "{folder / "1.png"}", "label": "a"}}\n{{"image": "bad.png", "label": "b"}}\n')
    data = ImageClassification(str(path), labels=("a", "b"), image=ImageFormat(8, 8), validation=0.0, test=0.0)
    with pytest.raises(UserError, match=r"data.jsonl:2: .*bad.png: is no picture, or damaged"):
        data.make(request("train", class_token))[0]
