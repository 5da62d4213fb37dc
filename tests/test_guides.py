"""The diffs that the guides for contributors show apply, and what they add trains."""

import dataclasses
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bertgpt.config import TEST, Experiment, with_overrides
from bertgpt.inference.model import load
from bertgpt.inference.predict import predict
from bertgpt.training.loop import train

GUIDES = Path(__file__).parent.parent / "docs/how-to"
NEW_FILE = re.compile(r"^--- /dev/null\n\+\+\+ b/(\S+)\n@@ -0,0 \+1,(\d+) @@\n((?:\+.*\n)+)", re.MULTILINE)
pytestmark = pytest.mark.slow


def files_of(page: str) -> dict[str, str]:
    """Path → content of each file that the diff of a guide adds."""
    text = (GUIDES / page).read_text(encoding="utf-8")
    (diff,) = re.findall(r"^```diff\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(diff.splitlines()) <= 60 and not NEW_FILE.sub("", diff), "only new files"
    for path, count, body in NEW_FILE.findall(diff):
        assert int(count) == len(body.splitlines()), path
    return {path: re.sub(r"^\+", "", body, flags=re.MULTILINE) for path, _, body in NEW_FILE.findall(diff)}


def add(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[ModuleType]:
    """Applies a diff in a folder and imports its files by the names that they would have in the package."""
    modules = []
    for path, text in files_of(page).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
        name = path.removesuffix(".py").replace("/", ".").replace("experiments.", "bertgpt.experiments.")
        spec = importlib.util.spec_from_file_location(name, folder / path)
        modules.append(importlib.util.module_from_spec(spec))
        monkeypatch.setitem(sys.modules, name, modules[-1])
        spec.loader.exec_module(modules[-1])
    return modules


def test_the_objective_trains(tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_device: None):
    (module,) = add("add-an-objective.md", tmp_path, monkeypatch)
    results = train(with_overrides(tiny, {"objective": module.ShuffledTokens(rate=0.3), "mesh.data": 1}), tmp_path)
    found = results["evals"]["test"]
    assert results["step"] == tiny.steps and 0 < found["loss"] < 2 and 0 < found["shuffled_accuracy"] < 1


def test_the_model_family_trains(tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_device: None):
    (module,) = add("add-a-model-family.md", tmp_path, monkeypatch)
    model = module.FnetConfig(vocab_size=200, d_model=16, num_layers=2, num_heads=4, d_ff=32, max_len=32)
    changes = {"model": model, "objective.pair": None, "data.layout": "doc_sentences", "mesh.data": 1}
    results = train(with_overrides(tiny, changes), tmp_path)
    assert results["step"] == tiny.steps and results["evals"]["test"]["mlm_loss"] < 6
    assert load(tmp_path / "tiny").config == model  # the run can be loaded again, with its layers split


def test_the_task_trains_and_scores(
    tiny: Experiment, tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_device: None
):
    task, shown = add("add-a-task.md", tmp_path, monkeypatch)
    assert isinstance(shown.experiment().data, task.Acceptability)
    lines = [f"x\t{i % 2}\t{'*' if i % 2 else ''}\t{'the cat' if i % 2 else 'dog big'} {i} runs\n" for i in range(120)]
    (tmp_path / "cola.tsv").write_text("".join(lines), encoding="utf-8")
    data = task.Acceptability(str(tmp_path / "cola.tsv"), tokenizer=str(tokenizer_dir), seq_len=32, test=0.3)
    experiment = dataclasses.replace(
        shown.experiment(),
        model=tiny.model,
        data=data,
        init_from=None,
        optim=tiny.optim,
        steps=4,
        compute_dtype="float32",
        evals=(TEST,),
    )
    results = train(experiment, tmp_path)
    assert -1 <= results["evals"]["test"]["matthews"] <= 1 and "macro_f1" in results["evals"]["test"]
    answer = next(predict(load(tmp_path / "cola"), ["the cat runs"]))
    assert answer["label"] in ("acceptable", "unacceptable")
    (tmp_path / "cola.tsv").write_text("x\t1\t*\t \n" + "".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=r"cola.tsv:1: 'sentence' is empty"):
        data.examples("train") and data.examples("test")
