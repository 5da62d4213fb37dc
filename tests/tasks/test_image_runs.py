"""Runs on images, from training to predictions: a tiny ViT on pictures of three colours."""

import dataclasses
import json
from pathlib import Path

import chex
import numpy as np
import pytest
from conftest import write_experiments
from PIL import Image

import bertgpt
from bertgpt.cli.main import main
from bertgpt.config import TEST, Experiment, Mesh
from bertgpt.data.class_token import ClassToken
from bertgpt.data.images.augment import Augment
from bertgpt.data.images.format import ImageFormat
from bertgpt.inference.model import Model, load
from bertgpt.models.vit import VitConfig
from bertgpt.objectives.classify import Classify
from bertgpt.studies.evaluation_report import write_evaluations
from bertgpt.tasks.image_classification import ImageClassification
from bertgpt.training.evaluate import evaluate
from bertgpt.training.loop import train
from bertgpt.training.optim import AdamW
from bertgpt.types import UserError

COLORS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200)}
VIT = VitConfig(image_size=(8, 8), patch_size=4, d_model=16, num_layers=2, num_heads=2, d_ff=32)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for number in range(48):
        color = tuple(COLORS)[number % 3]
        pixels = np.random.default_rng(number).integers(-20, 20, (10, 12, 3)) + COLORS[color]
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "label": color})
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def experiment(pictures: Path) -> Experiment:
    return Experiment(
        name="vit",
        model=VIT,
        objective=Classify(),
        data=ImageClassification(
            str(pictures / "data.jsonl"),
            image=ImageFormat(8, 8),
            augment=Augment(area=(0.5, 1.0)),
            tokenizer=ClassToken(),
            validation=0.0,
            test=0.25,
        ),
        optim=AdamW(lr=3e-3, warmup_steps=2),
        steps=24,
        batch_size=16,
        mesh=Mesh(data=8),
        evals=(TEST,),
        save_every=12,
    )


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run."""
    workdir = tmp_path_factory.mktemp("runs")
    results = train(experiment(pictures), workdir)
    assert results["evals"]["test"]["accuracy"] == 1.0
    return workdir / "vit"


@pytest.fixture(scope="module")
def model(run: Path) -> Model:
    return load(run)


def test_a_run_on_augmented_images_resumes_bit_for_bit(pictures: Path, run: Path, tmp_path: Path):
    train(experiment(pictures), tmp_path, stop_after=4)
    train(experiment(pictures), tmp_path)
    one, other = (load(path, arrange="host").params for path in (run, tmp_path / "vit"))
    chex.assert_trees_all_equal(one, other)


def test_a_changed_picture_is_noticed_on_resume(pictures: Path, tmp_path: Path):
    copy = tmp_path / "pictures"
    copy.mkdir()
    for path in pictures.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    train(experiment(copy), tmp_path, stop_after=1)
    Image.new("RGB", (100, 100)).save(copy / "0.png")
    with pytest.raises(UserError, match="images"):
        train(experiment(copy), tmp_path)


def test_predictions_of_a_run_are_labels_with_probabilities(pictures: Path, model: Model):
    given = [str(pictures / "1.png"), Image.open(pictures / "2.png"), np.asarray(Image.open(pictures / "0.png"))]
    found = list(bertgpt.predict(model, [{"image": image} for image in given]))
    assert [answer["label"] for answer in found] == ["green", "blue", "red"]
    assert sum(found[0]["probabilities"].values()) == pytest.approx(1.0, abs=1e-3)
    assert next(bertgpt.predict(model, [str(pictures / "1.png")])) == found[0]  # a text is the first field


def test_evaluation_writes_a_contact_sheet(model: Model, tmp_path: Path):
    results = evaluate(model)
    written = write_evaluations(results, tmp_path)
    assert {path.name for path in written} == {"evaluation.md", "test.confusion.png", "test.examples.png"}
    assert "(test.examples.png)" in (tmp_path / "evaluation.md").read_text()
    assert Image.open(tmp_path / "test.examples.png").width > 500
    (sheet,) = results["test"].figures[1:]
    assert all(sheet.correct) and len(sheet.images) == len(model.run.data.examples("test"))


def called(capsys: pytest.CaptureFixture, *words: object) -> tuple[int, list[dict], str]:
    """(exit code, lines of JSON, last line of standard error) of a command."""
    capsys.readouterr()
    code = main(list(map(str, words)))
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()] if code == 0 else []
    return code, lines, err.strip().splitlines()[-1] if err.strip() else ""


def test_predict_reads_images_from_flags_files_and_records(pictures: Path, run: Path, model: Model, tmp_path, capsys):
    files = [pictures / "1.png", pictures / "2.png"]
    expected = list(bertgpt.predict(model, [{"image": str(file)} for file in files]))
    code, lines, _ = called(capsys, "predict", run, "--image", files[0], "--image", files[1])
    assert code == 0 and lines == [{"image": str(f)} | e for f, e in zip(files, expected, strict=True)]
    listed = pictures / "new.jsonl"  # names of files beside it
    listed.write_text('{"image": "1.png", "id": 7}\n{"image": "2.png", "id": 8}\n')
    code, lines, _ = called(capsys, "predict", run, "--input", listed)
    assert code == 0 and lines == [
        {"image": f.name, "id": i} | e for f, i, e in zip(files, (7, 8), expected, strict=True)
    ]
    code, lines, _ = called(capsys, "predict", run, "--record", json.dumps({"image": str(files[1])}))
    assert code == 0 and lines[0]["label"] == expected[1]["label"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--image {0}/none.png", "record:1: {0}/none.png: cannot be read: No such file or directory"),
        ("--image {0}/data.jsonl", "record:1: {0}/data.jsonl: is no picture, or damaged from its beginning"),
        ("--image {0}", "{0}"),  # a folder with pictures, of which the model reads one frame
        ("--image {0}/1.png --text red", "--text: the model reads no text beside an image"),
        ("--text red", "reads images; give --image"),
        ("--image {0}/1.png --input {0}/data.jsonl", "give one of --image, --record and --input"),
        ('--record {"text":"a"}', "has no field 'image'"),
        ('--record {"image":7}', "record:1: an image is of type int"),
    ],
)
def test_a_mistake_about_an_image_is_one_line(pictures: Path, run: Path, words: str, message: str, capsys):
    code, _, line = called(capsys, "predict", run, *words.replace("{0}", str(pictures)).split())
    if words == "--image {0}":
        assert code == 0
    else:
        assert code == 2 and message.replace("{0}", str(pictures)) in line


def test_evaluate_scores_another_file_and_names_its_pictures(pictures: Path, run: Path, tmp_path: Path, capsys):
    code = main(["evaluate", str(run), "--path", str(pictures / "data.jsonl"), "--out", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert code == 0 and "data.jsonl accuracy" in out and "examples.png" in out
    assert (tmp_path / "out" / "data.jsonl.examples.png").exists()


def test_train_writes_a_contact_sheet_at_the_end(pictures: Path, tmp_path: Path, one_device: None, capsys):
    short = dataclasses.replace(experiment(pictures), steps=2, batch_size=8, mesh=Mesh())
    file = write_experiments(tmp_path / "arms.py", {"vit": short})
    assert main(["train", f"{file}:vit", "--workdir", str(tmp_path)]) == 0
    assert {path.name for path in (tmp_path / "vit" / "evaluation").iterdir()} == {
        "evaluation.md",
        "test.confusion.png",
        "test.examples.png",
    }
