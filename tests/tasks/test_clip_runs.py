"""Runs of a dual encoder, from training to zero-shot classes: a tiny CLIP on pictures of four colours."""

import json
from pathlib import Path

import chex
import numpy as np
import pytest

from bertgpt.config import TEST, Experiment, Mesh
from bertgpt.data.images.augment import Augment
from bertgpt.data.images.format import ImageFormat
from bertgpt.inference.export import convert
from bertgpt.inference.image_text import embed_images, embed_texts, retrieve, zero_shot
from bertgpt.inference.model import load
from bertgpt.inference.predict import predict
from bertgpt.models.clip import ClipConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.vit import VitConfig
from bertgpt.objectives.contrast import Contrast
from bertgpt.tasks.image_retrieval import ImageTextPairs
from bertgpt.training.evaluate import evaluate
from bertgpt.training.loop import train
from bertgpt.training.optim import AdamW
from bertgpt.types import UserError

Image = pytest.importorskip("PIL.Image", reason="images need the extra [vision]")
COLORS = {"cat": (200, 20, 20), "dog": (20, 200, 20), "river": (20, 20, 200), "tree": (200, 200, 20)}
SIZES = {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 32, "stddev": 0.1}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for number in range(64):
        name = tuple(COLORS)[number % 4]
        pixels = np.random.default_rng(number).integers(-20, 20, (10, 12, 3)) + COLORS[name]
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "text": f"the {name}"})
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def experiment(pictures: Path, tokenizer: Path) -> Experiment:
    return Experiment(
        name="clip",
        model=ClipConfig(
            VitConfig(image_size=(8, 8), patch_size=4, pre_norm=True, patch_bias=False, **SIZES),
            GptConfig(vocab_size=200, max_len=16, **SIZES),
            projection_dim=8,
        ),
        objective=Contrast(),
        data=ImageTextPairs(
            str(pictures / "data.jsonl"), tokenizer=str(tokenizer), seq_len=16, validation=0.0, test=0.25,
            image=ImageFormat(8, 8), augment=Augment(area=(0.5, 1.0)),
        ),
        optim=AdamW(lr=5e-3, warmup_steps=2),
        steps=150,
        batch_size=16,
        microbatches=2,
        mesh=Mesh(data=8),
        evals=(TEST,),
        save_every=75,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(pictures: Path, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run."""
    workdir = tmp_path_factory.mktemp("runs")
    results = train(experiment(pictures, tokenizer_dir), workdir)
    found = results["evals"]["test"]
    # Each text belongs to all pictures of its colour.
    assert found["image_to_text_recall_at_1"] > 0.9 and found["text_to_image_recall_at_1"] == 1.0
    return workdir / "clip"


def test_a_run_resumes_bit_for_bit(pictures: Path, tokenizer_dir: Path, run: Path, tmp_path: Path):
    train(experiment(pictures, tokenizer_dir), tmp_path, stop_after=4)
    train(experiment(pictures, tokenizer_dir), tmp_path)
    one, other = (load(path, arrange="host").params for path in (run, tmp_path / "clip"))
    chex.assert_trees_all_equal(one, other)


def test_a_run_is_evaluated_on_the_whole_split_with_a_contact_sheet(run: Path):
    found = evaluate(load(run))["test"]
    assert found.values["image_to_text_recall_at_1"] > 0.9 and found.tables[0].rows[0][1] == "4"
    assert found.figures[0].name == "retrieved" and np.mean(found.figures[0].correct) > 0.9


def test_a_run_classifies_retrieves_and_predicts(run: Path, pictures: Path):
    model = load(run)
    paths = [str(pictures / f"{number}.png") for number in range(4)]
    found = zero_shot(model, paths, list(COLORS), "the {}")
    assert [next(iter(row)) for row in found] == list(COLORS)
    assert all(sum(row.values()) == pytest.approx(1.0, abs=1e-5) for row in found)
    images, texts = embed_images(model, paths), embed_texts(model, [f"the {name}" for name in COLORS])
    hits = retrieve(texts, images, top_k=2)
    assert [row[0].index for row in hits] == [0, 1, 2, 3] and all(a.similarity >= b.similarity for a, b in hits)
    records = [{"image": path, "text": f"the {name}"} for path, name in zip(paths, COLORS, strict=True)]
    cosines = [row["similarity"] for row in predict(model, records)]
    np.testing.assert_allclose(cosines, np.sum(images * texts, axis=1), atol=1e-3)


def test_the_export_of_a_run_answers_the_same_and_knows_its_end_token(run: Path, pictures: Path, tmp_path: Path):
    convert(load(run, arrange="host"), tmp_path / "out")
    model, again = load(run), load(tmp_path / "out")
    assert again.config.end_id == model.tokenizer.vocab.sep and again.architecture == "CLIPModel"
    paths = [str(pictures / f"{number}.png") for number in range(4)]
    np.testing.assert_allclose(embed_images(again, paths), embed_images(model, paths), atol=1e-6)
    texts = ["the cat", "a dog", "tree"]
    np.testing.assert_allclose(embed_texts(again, texts), embed_texts(model, texts), atol=1e-6)


def test_a_model_of_texts_alone_is_refused():
    pytest.importorskip("sentence_transformers_data", reason="needs its small model")
    model = load("package:sentence_transformers_data/minilm")
    with pytest.raises(UserError, match="does not embed images and texts in one space"):
        embed_texts(model, ["a text"])
