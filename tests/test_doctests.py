"""The examples in docstrings give the results that they show.

They run in a folder that holds a small BERT in Hugging Face format, models/bert-base-uncased, and reviews.csv with the
columns text and label. Examples that need more than this carry `# doctest: +SKIP`.
"""

import dataclasses
import doctest
import importlib
from pathlib import Path

import pytest
from conftest import TINY
from test_model import init

import bertgpt
from bertgpt.convert.hub import export_model
from bertgpt.data.tokenizer import Tokenizer

ROOT = Path(bertgpt.__file__).parent
MODULES = sorted(
    ".".join(("bertgpt", *path.relative_to(ROOT).with_suffix("").parts))
    for path in ROOT.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module(name: str, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = dataclasses.replace(TINY, vocab_size=tokenizer.vocab.size)
    export_model(tmp_path / "models" / "bert-base-uncased", config, init(config), files=tokenizer.files())
    (tmp_path / "reviews.csv").write_text("text,label\na fine film,good\na dull film,bad\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, tried = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert tried and not failed
