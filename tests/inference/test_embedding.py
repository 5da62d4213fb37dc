"""Folders of sentence-transformers without the library: pooling by hand, and what is not supported is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.cli.main import main
from bertgpt.convert.sentence_transformers import MODES, Dense, Normalize, Pooling, read_embedder
from bertgpt.inference.embedding import run_modules
from bertgpt.types import UserError

STATES = jnp.asarray([[[1.0, -2.0], [3.0, 0.5], [-5.0, 4.0], [9.0, 9.0]]])
SEGMENTS = jnp.asarray([[1, 1, 1, 0]])


@pytest.mark.parametrize(
    "mode, whole, rest",
    [
        ("cls", [1.0, -2.0], [3.0, 0.5]),
        ("max", [3.0, 4.0], [3.0, 4.0]),
        ("mean", [-1 / 3, 2.5 / 3], [-1.0, 2.25]),
        ("mean_sqrt_len_tokens", [-1 / 3**0.5, 2.5 / 3**0.5], [-2 / 2**0.5, 4.5 / 2**0.5]),
        ("weightedmean", [(1 + 6 - 15) / 6, (-2 + 1 + 12) / 6], [(6 - 15) / 5, (1 + 12) / 5]),
        ("lasttoken", [-5.0, 4.0], [-5.0, 4.0]),
    ],
)
def test_each_pooling_with_and_without_the_prompt(mode: str, whole: list[float], rest: list[float]):
    for include, want in ((True, whole), (False, rest)):
        found = run_modules((Pooling((mode,), include),), ({},), STATES, SEGMENTS, 1)
        np.testing.assert_allclose(found[0], want, rtol=1e-6)


def test_modes_are_concatenated_projected_and_normalised_in_order():
    kernel = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    modules = (Pooling(("lasttoken", "cls")), Dense("ReLU"), Normalize())
    found = run_modules(modules, ({}, {"kernel": kernel}, {}), STATES, SEGMENTS, 0)
    want = np.maximum(np.array([-5.0, 4.0, 1.0, -2.0]) @ kernel, 0)
    np.testing.assert_allclose(found[0], want / max(np.linalg.norm(want), 1e-12), atol=1e-6)


def write_folder(path: Path, change: Callable[[dict[str, Any]], None] = lambda files: None) -> Path:
    """The settings of a folder, after a change to them: file → content."""
    entries = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    files: dict[str, Any] = {
        "modules.json": [{"type": f"sentence_transformers.models.{kind}", "path": to} for kind, to in entries],
        "sentence_bert_config.json": {"max_seq_length": 128, "do_lower_case": True},
        "1_Pooling/config.json": {"word_embedding_dimension": 2, "pooling_mode_cls_token": True},
        "config_sentence_transformers.json": {"prompts": {"query": "q: "}, "default_prompt_name": "query"},
    }
    change(files)
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(json.dumps(content))
    return path


def test_a_folder_says_how_vectors_are_made(tmp_path: Path):
    embedder = read_embedder(write_folder(tmp_path))
    assert embedder.modules == (Pooling(("cls",)), Normalize()) and embedder.max_tokens == 128 and embedder.lowercase
    assert (
        embedder.prompt(None, None) == embedder.prompt(None, "query") == "q: " and embedder.prompt("x", "query") == "x"
    )
    with pytest.raises(UserError, match="no prompt 'passage'; there are: query"):
        embedder.prompt(None, "passage")
    every = read_embedder(
        write_folder(tmp_path, lambda f: f["1_Pooling/config.json"].update(dict.fromkeys(MODES, True)))
    )
    assert every.modules[0] == Pooling(tuple(MODES.values()))
    new = {"embedding_dimension": 2, "pooling_mode": ["max", "cls"], "include_prompt": False}
    listed = read_embedder(write_folder(tmp_path, lambda files: files.update({"1_Pooling/config.json": new})))
    assert listed.modules[0] == Pooling(("max", "cls"), include_prompt=False)


def module(kind: str, path: str = "3_Other") -> Callable[[dict], None]:
    return lambda files: files["modules.json"].append({"type": kind, "path": path})


def setting(file: str, **fields: Any) -> Callable[[dict], None]:
    return lambda files: files.setdefault(file, {}).update(fields)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            module("sentence_transformers.models.LSTM"),
            "modules.json: module 'sentence_transformers.models.LSTM' is not su",
        ),
        (module("custom_st.Pooling"), "module 'custom_st.Pooling' is not supported"),
        (module("sentence_transformers.models.Dense", "../outside"), "leads out of the directory"),
        (module("sentence_transformers.models.Pooling", "1_Pooling"), "must have one Pooling module"),
        (module("sentence_transformers.models.Dense", "a\0b"), "leads out of the directory"),
        (module("sentence_transformers.models.Dense", "3_Dense"), "3_Dense/config.json: no such file"),
        (lambda files: files.pop("1_Pooling/config.json"), "1_Pooling/config.json: no such file"),
        (lambda files: files.update({"modules.json": {}}), "must hold a list of modules"),
        (setting("1_Pooling/config.json", pooling_mode="median"), "pooling mode 'median' is not supported"),
        (setting("1_Pooling/config.json", pooling_mode_cls_token="yes"), "pooling_mode_cls_token='yes' must be bool"),
        (setting("1_Pooling/config.json", weighting="idf"), "unknown field weighting='idf'"),
        (setting("sentence_bert_config.json", max_seq_length=0), "max_seq_length=0 must be at least 1"),
        (
            setting("sentence_bert_config.json", transformer_task="fill-mask"),
            "transformer_task='fill-mask' is not supp",
        ),
        (
            setting("config_sentence_transformers.json", default_prompt_name="x"),
            "default_prompt_name='x' is not one of",
        ),
        (setting("config_sentence_transformers.json", model_type="SparseEncoder"), "model_type='SparseEncoder' is not"),
        (setting("config_sentence_transformers.json", truncate_dim=0), "truncate_dim=0 must be at least 1"),
    ],
)
def test_what_is_not_supported_is_named(change: Callable[[dict], None], message: str, tmp_path: Path, capsys):
    with pytest.raises(UserError, match=message):
        read_embedder(write_folder(tmp_path, change))
    assert main(["predict", str(tmp_path), "--text", "a"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
