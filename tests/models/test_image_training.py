"""Training of models that read images: resumed bit for bit, and the same in any number of microbatches and devices."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from bertgpt.config import VALIDATION, Experiment, Mesh, with_overrides
from bertgpt.data.images.augment import Augment
from bertgpt.data.images.format import ImageFormat
from bertgpt.models.captioner import CaptionerConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.vision_language import PrefixConfig
from bertgpt.models.vit import VitConfig
from bertgpt.objectives.seq2seq import ConditionalLM, Seq2Seq
from bertgpt.runs.checkpoint import Checkpoints, named_leaves
from bertgpt.tasks.image_to_text import ImageToText
from bertgpt.training.log import read_metrics
from bertgpt.training.loop import train
from bertgpt.training.optim import AdamW
from bertgpt.types import UserError

VIT = VitConfig(d_model=16, num_layers=1, num_heads=2, d_ff=32, image_size=(8, 8), patch_size=4, dropout=0.1)
GPT = GptConfig(vocab_size=200, d_model=16, num_layers=1, num_heads=2, d_ff=32, max_len=48)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    rows = []
    for number, word in enumerate(("cat", "dog", "house", "river") * 8):
        Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        rows.append(json.dumps({"image": f"{number}.png", "caption": f"the {word} sleeps {number}"}))
    (folder / "records.jsonl").write_text("\n".join(rows))
    return folder / "records.jsonl"


def experiment(name: str, records: Path, tokenizer_dir: Path) -> Experiment:
    image, augment = ImageFormat(8, 8), Augment(area=(0.5, 1.0))
    data = ImageToText(str(records), tokenizer=str(tokenizer_dir), target_len=12, validation=0.25, image=image,
                       augment=augment)  # fmt: skip
    base = Experiment(
        name, CaptionerConfig(VIT, GPT), Seq2Seq(), data, AdamW(lr=1e-2, warmup_steps=1), steps=4, batch_size=8,
        evals=(VALIDATION,), log_every=1, mesh=Mesh(data=8),
    )  # fmt: skip
    if name == "captioner":
        return base
    decoder = dataclasses.replace(data, architecture="decoder", seq_len=24, prefix="say:")
    return dataclasses.replace(base, model=PrefixConfig(VIT, GPT), objective=ConditionalLM(), data=decoder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["captioner", "prefix"])
def test_training_resumes_bit_for_bit_and_devices_and_microbatches_change_nothing(
    name: str, records: Path, tokenizer_dir: Path, tmp_path: Path
):
    whole = experiment(name, records, tokenizer_dir)
    train(whole, tmp_path / "whole")
    train(whole, tmp_path / "stopped", stop_after=2)
    train(whole, tmp_path / "stopped")
    first, again = (named_leaves(Checkpoints(tmp_path / x / name).read("params")) for x in ("whole", "stopped"))
    assert first.keys() == again.keys() and all(np.array_equal(first[path], again[path]) for path in first)

    # Without dropout, of which each microbatch has its own.
    off = {f"model.{part}.{rate}": 0.0 for part in ("vision", "language") for rate in ("dropout", "attention_dropout")}
    still = with_overrides(whole, off | {"evals": ()})
    split = dataclasses.replace(still, name="split", mesh=Mesh(data=2, fsdp=2, tensor=2), microbatches=2)
    losses = []
    for run in (dataclasses.replace(still, name="one"), split):
        train(run, tmp_path)
        lines = read_metrics(tmp_path / run.name / "metrics.jsonl")
        losses.append([line["loss"] for line in lines if line["kind"] == "train"])
    assert len(losses[0]) == 4 and losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_packed_sequences_are_refused_by_name(records: Path, tokenizer_dir: Path):
    data = experiment("prefix", records, tokenizer_dir).data
    with pytest.raises(UserError, match="packed=True is for texts alone"):
        dataclasses.replace(data, packed=True)
