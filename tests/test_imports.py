"""The floors of DESIGN: nothing imports upward, and importing bertgpt starts nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "bertgpt"
FLOORS = [
    {"config", "sharding", "freezing", "pictures", "result"},
    {"layers", "objectives", "data", "optim", "lora"},
    {"models", "tasks"},
    set("step train evaluation run loading checkpoint convert decoding generate encode log report".split())
    | set("evaluation_report ablation throughput space tune study_report sweep features prompting likelihood".split()),
    set("cli commands prepare_command tune_command features_command prompt_command tokenizer_command".split())
    | {"__main__", "__init__"},
]
# Modules on one floor that may import each other, beyond a package's own parts: (importer, imported).
BESIDE = {
    ("sharding", "config"), ("pictures", "config"), ("freezing", "config"), ("lora", "objectives"),
    ("train", "checkpoint"), ("train", "log"), ("train", "step"), ("train", "throughput"),
    ("convert", "checkpoint"),
    ("loading", "checkpoint"), ("loading", "convert"), ("loading", "step"), ("train", "loading"), ("run", "loading"),
    ("generate", "decoding"), ("generate", "loading"), ("encode", "loading"),
    ("features", "checkpoint"), ("features", "convert"), ("features", "encode"), ("features", "loading"),
    ("features", "step"),
    ("prompting", "decoding"), ("prompting", "generate"), ("prompting", "loading"), ("prompting", "run"),
    ("prompting", "likelihood"), ("likelihood", "encode"), ("likelihood", "loading"),
    ("commands", "prompt_command"), ("prompt_command", "commands"), ("commands", "tokenizer_command"),
    ("run", "checkpoint"), ("run", "step"), ("run", "evaluation"), ("run", "generate"), ("run", "decoding"),
    ("evaluation", "log"), ("evaluation", "step"), ("evaluation", "generate"), ("train", "evaluation"),
    ("evaluation_report", "report"),
    ("report", "log"),
    ("report", "ablation"),
    ("tune", "space"), ("tune", "train"), ("tune", "report"), ("sweep", "ablation"), ("sweep", "train"),
    ("study_report", "tune"), ("study_report", "space"), ("study_report", "report"),
    ("cli", "commands"), ("commands", "prepare_command"), ("__main__", "cli"),
    ("commands", "features_command"), ("commands", "tune_command"), ("tune_command", "cli"),
}  # fmt: skip
NEVER = {  # importer → what it must not know at all
    "objectives": {"models", "layers"},
    "train": {"models", "tasks", "layers"},
    "step": {"models", "tasks", "layers"},
    "data": {"layers", "sharding"},
    "tasks": {"models", "layers"},
}
HEAVY = set("tensorflow_datasets apache_beam optuna starlette uvicorn matplotlib torch sklearn tensorboardX".split())
FILES = sorted(ROOT.rglob("*.py"))


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if name in names)


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_imports_upward(path: Path):
    here = part(path)
    for module in imports(path):
        if module.startswith("bertgpt."):
            there = module.split(".")[1]
            assert there not in NEVER.get(here, set()), f"{here} must not import {there}"
            allowed = floor(there) < floor(here) or there == here or (here, there) in BESIDE
            assert allowed, f"{here} (floor {floor(here)}) must not import {there} (floor {floor(there)})"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_optional_packages_are_imported_where_they_are_used(path: Path):
    assert not {module.split(".")[0] for module in imports(path, top_level_only=True)} & HEAVY


def test_flax_is_used_only_where_it_may_be():
    allowed = {"layers", "models", "sharding", "step"}
    assert {part(path) for path in FILES if any(m.split(".")[0] == "flax" for m in imports(path))} <= allowed


def test_data_knows_no_jax():
    assert not any(m.split(".")[0] == "jax" for path in (ROOT / "data").glob("*.py") for m in imports(path))


def test_importing_bertgpt_imports_no_jax_and_sets_no_flag():
    code = (
        "import os, sys; old = dict(os.environ); import bertgpt\nassert 'jax' not in sys.modules and old == os.environ"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


def test_files_stay_readable():
    long = {str(path.relative_to(ROOT)) for path in FILES if len(path.read_text().splitlines()) > 400}
    assert not long
