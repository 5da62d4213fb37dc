"""Every experiment in the repository imports, trains two steps once shrunk, and says what it is."""

import ast
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bertgpt.experiments.ablations import bert as ablation
from conftest import TINY, fast, make_text
from PIL import Image

from bertgpt.cli.experiments import import_source, load_experiments
from bertgpt.config import Experiment, Mesh, diff, to_json
from bertgpt.data.class_token import ClassToken
from bertgpt.data.images.format import ImageFormat
from bertgpt.data.mixture import Curriculum
from bertgpt.data.tokenizer import SentencePiece
from bertgpt.models.bert import BertConfig
from bertgpt.models.electra import ElectraConfig
from bertgpt.models.vit import VitConfig
from bertgpt.objectives.distill import Distill
from bertgpt.prepare.corpus import Corpus
from bertgpt.tasks.mixed import TaskMixture
from bertgpt.training.loop import train


def beside(file: str) -> list[Experiment]:
    """The arms of a file that has an experiment too, which `FILE.py:ARM` names."""
    module = import_source(file)
    return list(getattr(module, "ARMS", {}).values()) if hasattr(module, "experiment") else []


ROOT = Path(__file__).parent.parent
SOURCES = sorted(path.relative_to(ROOT) for path in (ROOT / "experiments").rglob("*.py"))
# What experiments share, or make text with, is not one itself.
FILES = [path for path in SOURCES if "def experiment(" in (text := (ROOT / path).read_text()) or "ARMS = " in text]
ALL = [
    (str(path), experiment)
    for path in FILES
    for experiment in [*load_experiments(str(ROOT / path)), *beside(str(ROOT / path))]
]
IMAGE = (8, 8)  # pixels
SIZES = {name: getattr(TINY, name) for name in ("vocab_size", "d_model", "num_layers", "num_heads", "d_ff", "max_len")}


def shrink_model(model: Any) -> Any:
    """The same architecture in the smallest size; of a pretrained one that is not known here, BERT's."""
    if model is None:
        return TINY
    if isinstance(model, ElectraConfig):
        parts = {name: shrink_model(getattr(model, name)) for name in ("discriminator", "generator")}
        return dataclasses.replace(model, **parts)
    parts = {name: vars(model)[name] for name in ("vision", "language", "text") if name in vars(model)}
    if parts:  # of images and texts
        shrunk = {name: shrink_model(part) for name, part in parts.items()}
        shrunk |= {"end_id": None} if "end_id" in vars(model) else {}  # of another vocabulary
        if "language" in shrunk:  # a prefix of patches takes some of its positions
            shrunk["language"] = dataclasses.replace(shrunk["language"], max_len=2 * TINY.max_len)
        return dataclasses.replace(model, **shrunk)
    small = SIZES | {"scan": True, "num_decoder_layers": 2, "head_dim": 4, "embed_dim": 8, "local_window": 8}
    if getattr(model, "experts", None) is not None:
        small["experts"] = dataclasses.replace(model.experts, num_experts=2)
    if isinstance(model, VitConfig):
        small |= {"vocab_size": 1, "max_len": 1, "image_size": IMAGE, "patch_size": 4}
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    if fields.get("mlm_head") == "plain":
        small["embed_dim"] = small["d_model"]
    return dataclasses.replace(model, **{k: v for k, v in small.items() if fields.get(k) is not None})


def shrink_data(data: Any, text: Path, labelled: Path, tokenizer: Path, seq_len: int = 32) -> Any:
    """The same kind of data, from a small file."""
    if isinstance(data, Curriculum):
        short, long = (
            shrink_data(data.short, text, labelled, tokenizer, 16),
            shrink_data(data.long, text, labelled, tokenizer),
        )
        return dataclasses.replace(data, short=short, long=long, switch_step=1)
    if isinstance(data, TaskMixture):
        parts = tuple(
            dataclasses.replace(part, data=shrink_data(part.data, text, labelled, tokenizer), weight=1.0)
            for part in data.parts
        )
        return dataclasses.replace(data, parts=parts, multiple=8, tokenizer=str(tokenizer), temperature=1.0)
    small = {"text_field": "text", "duplicates": 1, "max_examples": None, "where": None, "max_question": 8, "stride": 8}
    small |= {"validation_path": None, "test_path": None, "target_len": 8, "subset": 0}
    if hasattr(data, "image"):
        small |= {"image": ImageFormat(*IMAGE, frames=data.image.frames), "image_field": "image", "image_root": None}
        small["text_field"] = data.text_field and "text" if hasattr(data, "text_field") else None
        small |= {"group_field": None, "split_fields": ()}
    fields = {field.name for field in dataclasses.fields(data)}
    alone = isinstance(data.tokenizer, ClassToken)  # images without texts
    return dataclasses.replace(
        data,
        path=str(text if isinstance(data, Corpus) else labelled),
        tokenizer=data.tokenizer if alone else str(tokenizer),
        seq_len=1 if data.seq_len == 1 else seq_len,
        validation=0.15,
        test=0.15,
        **{name: value for name, value in small.items() if name in fields},
    )


def shrink(experiment: Experiment, text: Path, labelled: Path, tokenizer: Path) -> Experiment:
    """The same experiment in every choice, in the smallest size."""
    fields = {field.name for field in dataclasses.fields(experiment.optim)}
    schedule = {
        name: value for name, value in (("warmup_steps", 1), ("decay_steps", None), ("lr", 1e-3)) if name in fields
    }
    evals = tuple(
        dataclasses.replace(item, max_batches=1, data=item.data and shrink_data(item.data, text, labelled, tokenizer))
        for item in experiment.evals
    )
    return dataclasses.replace(
        experiment,
        model=shrink_model(experiment.model),
        data=shrink_data(experiment.data, text, labelled, tokenizer),
        optim=dataclasses.replace(experiment.optim, **schedule),
        steps=2,
        batch_size=8 * len(experiment.data.parts) if isinstance(experiment.data, TaskMixture) else 16,
        microbatches=1,
        mesh=Mesh(),
        evals=evals,
        init_from=None,
        seed=0,
        log_every=1,
        eval_every=0,
        save_every=0,
    )


def distinct() -> dict[str, Experiment]:
    """Experiments that still differ once shrunk, in more than their name, by name."""
    here = Path()
    found = {
        json.dumps(to_json(dataclasses.replace(shrink(experiment, here, here, here), name="x"))): experiment
        for _, experiment in ALL
    }
    return {experiment.name: experiment for experiment in found.values()}


DISTINCT = distinct()


def first_of_each_kind() -> set[str]:
    """Names of the first experiment of each triple (model, objective, data); the others are trained by slow tests."""
    first: dict[tuple[type, ...], str] = {}
    for name, experiment in DISTINCT.items():
        kind = (type(shrink_model(experiment.model)), type(experiment.objective), type(experiment.data))
        first.setdefault(kind, name)
    return set(first.values())


FIRST = first_of_each_kind()


@pytest.fixture(scope="session")
def sentencepiece_dir(corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with an end mark and sentinels, for decoders."""
    path = tmp_path_factory.mktemp("sentencepiece") / "tokenizer"
    Corpus(str(corpus_file), SentencePiece(vocab_size=100, sentinels=20)).train_tokenizer().save(path)
    return path


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labelled") / "reviews.jsonl"
    """Texts with what every task may ask for: a label, a question and its answer, choices."""
    rows = [{"text": t, "label": str(i % 2), "source": t} for i, t in enumerate(make_text(100))]
    for i, row in enumerate(rows):
        answer = row["text"].split()[1]
        row |= {"category": row["label"], "gt": row["label"]}
        row |= {"context": row["text"], "question": f"what is it {i}", "answers": [answer]}
        row |= {"choices": ["sleeps", answer], "answer": answer}
        row |= {name: row["text"] for name in ("en", "de", "body", "subject", "target", "caption")}
        row |= {"utterances": [row["text"], "the cat sleeps"], "act": [1 + i % 4, 2]}
        row |= {name: row["text"] for name in ("#1 String", "#2 String", "sentence2", "first", "second", "scene")}
        row |= {"Quality": row["label"], "cls": row["label"], "score": i % 6}
        row |= {"image": f"{i}.png", "name": row["text"], "language": ("en", "de")[i % 2]}
        words = row["text"].split()
        tags = ["B-A", *["O"] * (len(words) - 1)]
        row |= dict.fromkeys(("tokens", "word"), words) | {"frames": [{"pred": 0, "tags": tags}]}
        row |= dict.fromkeys(("tags", "slots", "entity", "chunk", "pos"), tags)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for i in range(len(rows)):
        Image.fromarray(np.full((*IMAGE, 3), 2 * i, np.uint8)).save(path.parent / f"{i}.png")
    return path


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("name", fast(DISTINCT, *FIRST))
def test_it_trains_two_steps(name: str, corpus_file, labelled, tokenizer_dir, sentencepiece_dir, tmp_path: Path):
    experiment = DISTINCT[name]
    encoder = isinstance(experiment.model, BertConfig | ElectraConfig)
    small = shrink(experiment, corpus_file, labelled, tokenizer_dir if encoder else sentencepiece_dir)
    if isinstance(small.objective, Distill):
        teacher = dataclasses.replace(small, name="teacher", objective=small.objective.objective)
        train(teacher, tmp_path)
        small = dataclasses.replace(small, objective=dataclasses.replace(small.objective, teacher="teacher"))
    results = train(small, tmp_path)
    assert results["step"] == 2 and set(results["evals"]) == {item.name for item in small.evals}
    assert set(results["baselines"]) == {baseline.name for baseline in small.baselines}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_are_short_and_say_what_they_are(path: Path):
    source = (ROOT / path).read_text()
    assert len(source.splitlines()) < 60
    doc = ast.get_docstring(ast.parse(source))
    for heading in ("Question", "Run", "Hardware", "Expect", "Got"):
        assert f"\n{heading} " in doc, f"{path}: its docstring has no line {heading}"


def test_names_are_unique():
    names = [experiment.name for _, experiment in ALL]
    assert len(set(names)) == len(names)


def test_arms_differ_from_their_base_exactly_as_declared():
    assert set(ablation.ARMS) == set(ablation.DELTAS)
    for name, arm in ablation.ARMS.items():
        declared = ablation.DELTAS[name]
        changed = diff(ablation.BASE, arm)
        assert set(changed) == {"name", *declared}
        assert {path: new for path, (_, new) in changed.items() if path != "name"} == declared
