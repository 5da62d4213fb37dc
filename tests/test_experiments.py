"""Every experiment in the repository imports, trains two steps once shrunk, and says what it is."""

import ast
import dataclasses
import json
from pathlib import Path

import pytest
from conftest import TINY, make_text

from bertgpt.cli import load_experiments
from bertgpt.config import Experiment, Mesh, diff
from bertgpt.data.corpus import Corpus
from bertgpt.train import train
from experiments.ablations import bert as ablation

ROOT = Path(__file__).parent.parent
FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "experiments").rglob("*.py"))
ALL = [(str(path), experiment) for path in FILES for experiment in load_experiments(str(ROOT / path))]
SIZES = {name: getattr(TINY, name) for name in ("vocab_size", "d_model", "num_layers", "num_heads", "d_ff", "max_len")}


def shrink(experiment: Experiment, text: Path, labelled: Path, tokenizer: Path) -> Experiment:
    """The same experiment in every choice, in the smallest size."""
    is_corpus = isinstance(experiment.data, Corpus)
    data = dataclasses.replace(
        experiment.data,
        path=str(text if is_corpus else labelled),
        tokenizer=str(tokenizer),
        seq_len=32,
        validation=0.15,
        test=0.15,
        **({"duplicates": 1} if is_corpus else {"max_examples": None, "text_field": "text", "where": None}),
    )
    return dataclasses.replace(
        experiment,
        model=dataclasses.replace(experiment.model, scan=True, **SIZES),
        data=data,
        optim=dataclasses.replace(experiment.optim, warmup_steps=1),
        steps=2,
        batch_size=16,
        microbatches=1,
        mesh=Mesh(),
        evals=tuple(dataclasses.replace(item, max_batches=1) for item in experiment.evals),
        init_from=None,
        log_every=1,
        eval_every=0,
        save_every=0,
    )


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labelled") / "reviews.jsonl"
    rows = [{"text": t, "label": str(i % 2), "source": "rotten_tomatoes"} for i, t in enumerate(make_text(100))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("experiment", [e for _, e in ALL], ids=[e.name for _, e in ALL])
def test_it_trains_two_steps(experiment: Experiment, corpus_file, labelled, tokenizer_dir, tmp_path: Path):
    small = shrink(experiment, corpus_file, labelled, tokenizer_dir)
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
