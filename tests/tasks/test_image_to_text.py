"""Images with captions or questions: what models read, and scores of what they write."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bertgpt.data.images.format import ImageFormat
from bertgpt.data.loader import check_needs
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.objectives.seq2seq import ConditionalLM, Seq2Seq
from bertgpt.tasks.image_to_text import ImageToText
from bertgpt.types import DataRequest, UserError

TINTS = ((200, 20, 20), (20, 200, 20), (20, 20, 200))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine pictures, each with two captions and a question with its answer."""
    path = tmp_path_factory.mktemp("pictures")
    rows = []
    for number in range(9):
        Image.new("RGB", (8, 8), TINTS[number % 3]).save(path / f"{number}.png")
        rows.append(
            {
                "image": f"{number}.png",
                "caption": [f"the {('cat', 'dog', 'bird')[number % 3]} runs", "a river"],
                "question": "the house in the river",
                "answer": ("red", "green", "blue")[number % 3],
                "kind": "ab"[number % 2],
            }
        )
    (path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def captions(folder: Path, tokenizer_dir: Path) -> ImageToText:
    return ImageToText(
        str(folder / "data.jsonl"),
        image=ImageFormat(8, 8),
        tokenizer=str(tokenizer_dir),
        target_len=8,
        validation=0.0,
        test=0.0,
    )


@pytest.fixture
def questions(captions: ImageToText) -> ImageToText:
    return dataclasses.replace(
        captions,
        source_field="question",
        target_field="answer",
        group_field="kind",
        architecture="decoder",
        seq_len=24,
        between=" : ",
    )


def test_each_caption_is_an_example_with_its_image(captions: ImageToText, tokenizer: Tokenizer):
    batches = captions.make(DataRequest("train", tokenizer, 18))
    check_needs(Seq2Seq().needs, batches.spec, "Seq2Seq", "ImageToText")
    batch = batches[0]
    assert batch["input_ids"].shape == (18, 1) and batch["segment_ids"].tolist() == [[1]] * 18
    assert batch["images"].shape == (18, 1, 8, 8, 3)
    for row in range(18):
        assert (batch["images"][row] == TINTS[row // 2 % 3]).all()
        ids = batch["target_ids"][row][batch["target_segment_ids"][row] > 0].tolist()
        text = captions.examples("train")[row // 2].targets[row % 2]
        assert ids == [*tokenizer.encode([text])[0], tokenizer.vocab.sep]


def test_a_decoder_reads_the_question_before_the_answer(questions: ImageToText, tokenizer: Tokenizer):
    batches = questions.make(DataRequest("train", tokenizer, 4))
    check_needs(ConditionalLM().needs, batches.spec, "ConditionalLM", "ImageToText")
    batch, (prompt, *_) = batches[0], questions.prompts("train", tokenizer)
    real = batch["input_ids"][0][batch["segment_ids"][0] > 0].tolist()
    answer = [*tokenizer.encode([questions.examples("train")[0].targets[0]])[0], tokenizer.vocab.sep]
    assert real == [*prompt, *answer]
    assert batch["target_mask"][0].tolist() == [0] * len(prompt) + [1] * len(answer) + [0] * (24 - len(real))


def test_prompts_and_their_pixels_belong_together(questions: ImageToText, folder: Path, tokenizer: Tokenizer):
    pixels = questions.prompt_pixels("train")
    assert (pixels(np.array([4, 0]))[:, 0] == np.array([TINTS[1], TINTS[0]])[:, None, None]).all()
    records = [{"image": str(folder / "2.png"), "question": "the house in the river"}]
    assert questions.inputs == ("image", "question")
    assert questions.prompts_of(records, tokenizer) == questions.prompts("train", tokenizer)[:1]
    assert (questions.prompt_pixels_of(records)(np.array([0])) == TINTS[2]).all()
    assert dataclasses.replace(questions, source_field=None).inputs == ("image",)


def test_texts_for_the_tokenizer_are_captions_and_questions(captions: ImageToText, questions: ImageToText):
    assert set(captions.texts()) == {"the cat runs", "the dog runs", "the bird runs", "a river"}
    assert set(questions.texts()) == {"the house in the river", "red", "green", "blue"}


def test_texts_are_scored_against_every_caption_and_shown(captions: ImageToText):
    texts = ["A river.", "the dog runs", "the cat runs"]
    result = captions.evaluate_texts("train", texts)
    assert result.values["exact_match"] == pytest.approx(2 / 3)
    assert result.values["f1"] == pytest.approx((1 + 1 + 1 / 2) / 3)  # “runs” of “bird runs”, without the article
    assert 0 < result.values["rougeL"] < 100
    sheet = result.figures[-1]
    assert sheet.correct == [True, True, False]
    assert sheet.captions == ["A river.", "the dog runs", "the cat runs\ntruth: the bird runs / a river"]
    assert all((image == tint).all() for image, tint in zip(sheet.images, TINTS, strict=True))
    bleu = dataclasses.replace(captions, metric="bleu").evaluate_texts("train", texts)
    assert {"bleu", "chrf", "exact_match", "f1"} <= bleu.values.keys()


def test_answers_are_counted_by_the_type_of_question(questions: ImageToText):
    answers = [pair.targets[0] for pair in questions.examples("train")]
    result = questions.evaluate_texts("train", [*answers[:8], "wrong"])
    assert result.values["a_accuracy"] == pytest.approx(4 / 5) and result.values["b_accuracy"] == 1.0
    assert result.figures[-1].captions[-1] == "the house in the river\nwrong\ntruth: blue"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"packed": True}, "packed=True is for texts alone"),
        ({"architecture": "decoder"}, "leaves no room for a source"),
    ],
)
def test_settings_that_cannot_be_are_refused(captions: ImageToText, changed: dict, message: str):
    with pytest.raises(UserError, match=f"ImageToText: .*{message}"):
        dataclasses.replace(captions, **changed)


def test_a_missing_question_is_named_by_file_and_line(captions: ImageToText, folder: Path):
    with pytest.raises(UserError, match=r"data.jsonl:1: no column 'asked'"):
        dataclasses.replace(captions, source_field="asked").examples("train")
