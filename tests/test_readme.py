"""What the README shows works as it stands."""

import dataclasses
import re
from pathlib import Path

import matplotlib
import pytest
from bertgpt.experiments.demo import pretrain
from conftest import TINY
from test_experiments import shrink
from test_model import init

from bertgpt.cli.main import load_experiments
from bertgpt.config import parse_overrides
from bertgpt.convert.hub import export_model
from bertgpt.data.tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_notebook_snippet_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, corpus_file: Path, tokenizer_dir: Path
):
    """As printed, but for fewer steps of a smaller experiment on a smaller text."""
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    small = {name: shrink(arm, corpus_file, corpus_file, tokenizer_dir) for name, arm in pretrain.ARMS.items()}
    monkeypatch.setattr(pretrain, "ARMS", small)
    snippet = next(block for block in blocks("python") if "read_metrics" in block)
    assert "steps=100, log_every=10" in snippet
    names: dict = {}
    exec(snippet.replace("steps=100, log_every=10", "steps=4, log_every=1"), names)
    assert names["results"]["step"] == 4 and len(names["lines"]) == 4
    assert len(names["plt"].gca().lines[0].get_xdata()) == 4


def test_the_loading_snippet_runs(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    config = dataclasses.replace(TINY, vocab_size=tokenizer.vocab.size)
    export_model(tmp_path / "models" / "bert-base-uncased", config, init(config), files=tokenizer.files())
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(next(block for block in blocks("python") if "bertgpt.load" in block), names)
    assert names["vectors"].shape == (3, config.d_model)


def test_every_experiment_and_flag_it_names_exists(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    named = set(re.findall(r"(?:experiments/)?((?:demo|pretrain|finetune|ablations)/\w+\.py)", README))
    assert {"demo/pretrain.py", "demo/sentiment.py", "ablations/bert.py"} <= named
    for name in named:
        load_experiments(f"experiments/{name}")
    commands = next(block for block in blocks("sh") if "--name mine" in block).replace("\\\n", " ").splitlines()
    found = {}
    for words in map(str.split, commands):
        (arm,) = load_experiments(words[2])
        found[words[2]] = parse_overrides(arm, words[3:])
    mine = found["experiments/finetune/classify.py"]
    assert (mine.data.path, mine.data.label_field, mine.name) == ("reviews.csv", "label", "mine")


def test_the_files_it_speaks_of_exist():
    for path in ("docs/mlm_loss.md", "bertgpt/step.py", "bertgpt/train.py", "LICENSE"):
        assert (ROOT / path).exists()
    assert all((ROOT / path).exists() for path in re.findall(r"\]\(([^)#:]+)\)", README))
