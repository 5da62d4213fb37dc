"""What the README shows works as it stands."""

import dataclasses
import re
import tomllib
from pathlib import Path

import matplotlib
import pytest
from bertgpt.experiments.demo import pretrain
from conftest import TINY
from test_experiments import shrink
from test_model import init

import bertgpt
from bertgpt.cli.experiments import load_experiments
from bertgpt.convert.hub import export_model
from bertgpt.data.tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_it_fits_on_a_few_screens_and_names_the_command_that_runs_the_tests():
    assert len(README.splitlines()) <= 200
    tests = [line for line in README.splitlines() if "pytest" in line]
    assert len(tests) == 1 and tests[0].startswith("python3 -m venv") and tests[0] + "\n" in blocks("sh")


def test_the_notebook_snippets_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, corpus_file: Path, tokenizer_dir: Path
):
    """Those of the page on notebooks, but for fewer steps of a smaller experiment on a smaller text."""
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    small = shrink(pretrain.experiment(), corpus_file, corpus_file, tokenizer_dir)
    monkeypatch.setattr(pretrain, "experiment", lambda: small)
    page = (ROOT / "docs/how-to/notebooks.md").read_text(encoding="utf-8")
    snippet = "".join(blocks("python", page))
    assert "steps=100, log_every=10" in snippet
    names: dict = {}
    exec(snippet.replace("steps=100, log_every=10", "steps=4, log_every=1"), names)
    assert names["results"]["step"] == 4 and len(names["lines"]) == 4
    assert len(names["plt"].gca().lines[0].get_xdata()) == 4
    assert names["slower"].optim.lr == 1e-4 and len(names["vectors"]) == 2


def test_the_loading_snippet_runs(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    config = dataclasses.replace(TINY, vocab_size=tokenizer.vocab.size)
    export_model(tmp_path / "models" / "bert-base-uncased", config, init(config), files=tokenizer.files())
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(next(block for block in blocks("python") if "bertgpt.load" in block), names)
    assert names["vectors"].shape == (3, config.d_model)


def test_the_experiment_it_shows_can_be_made():
    snippet = next(block for block in blocks("python") if "def experiment" in block)
    page = (ROOT / "docs/concepts/one-idea.md").read_text(encoding="utf-8")
    imports = next(block for block in blocks("python", page) if "def experiment" in block).partition("\n\n\n")[0]
    names: dict = {}
    exec(f"{imports}\nfrom bertgpt import arms\n{snippet}", names)
    assert set(names["ARMS"]) == {"base", "no_nsp", "mask40"}
    assert names["ARMS"]["mask40"].objective.mask_rate == 0.4


def test_every_experiment_and_flag_it_names_exists(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    named = set(re.findall(r"\b((?:demo|pretrain|finetune|ablations)/\w+)(?:\.py)?\b", README)) - {"finetune/spaces"}
    assert {"demo/pretrain", "finetune/classify", "ablations/bert"} <= named
    for name in named - {"finetune/README"}:
        load_experiments(f"experiments/{name}.py")


def test_the_files_it_speaks_of_exist():
    for path in ("docs/mlm_loss.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"):
        assert (ROOT / path).exists()
    assert all((ROOT / path).exists() for path in re.findall(r"\]\(([^)#:]+)", README))
    package = re.findall(r"`(\w+)/`", README[README.index("## Reading the code") :])
    assert len(package) >= 10 and all((ROOT / "bertgpt" / name).is_dir() for name in package)


def test_the_citation_and_the_package_have_the_same_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {project['version']}\n" in citation
    assert project["version"] == bertgpt.__version__ and (ROOT / "bertgpt/py.typed").exists()


def test_every_package_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = [path.parent.relative_to(ROOT) for path in (ROOT / "bertgpt").rglob("__init__.py")]
    inside = [Path("bertgpt", path.parent.relative_to(ROOT)) for path in (ROOT / "experiments").rglob("__init__.py")]
    assert sorted(settings["packages"]) == sorted(".".join(path.parts) for path in folders + inside)
