"""`bertgpt export`: one line and a table, and one line for a mistake."""

import dataclasses
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
from conftest import TINY
from test_export import random_params

from bertgpt.cli.main import main
from bertgpt.convert.hub import export_model
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.footprint import Footprint, run_child
from bertgpt.types import UserError


@pytest.fixture
def hub(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    config = dataclasses.replace(TINY, vocab_size=tokenizer.vocab.size, scan=False)
    params = random_params(config, pool={"segment_ids": jnp.ones((1, 4), jnp.int32)})
    export_model(tmp_path / "hub", config, params, architecture="BertModel", files=tokenizer.files())
    return tmp_path / "hub"


@pytest.mark.slow
def test_what_it_costs_is_printed_before_and_after(hub: Path, tmp_path: Path, capsys):
    assert main(["export", str(hub), "--format", "int8", "--out", str(tmp_path / "small")]) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'small'}: BertConfig with weights of 8 bits" in printed
    for word in ("before", "int8", "MB on disk", "cold start, s", "one text, ms"):
        assert word in printed


def test_without_measurements_only_the_directory_is_written(hub: Path, tmp_path: Path, capsys):
    out = tmp_path / "small"
    assert main(["export", str(hub), "--format", "int8", "--out", str(out), "--measure", "False"]) == 0
    assert capsys.readouterr().out == f"{out}: BertConfig with weights of 8 bits\n"
    assert (out / "model.json").exists()
    assert main(["export", str(hub), "--format", "int8", "--out", str(out)]) == 2
    assert "exists already; name a new directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, problem",
    [
        ("--format int8 --output logits", "--output is for --format stablehlo and onnx"),
        ("--format stablehlo --drop_crf", "--drop_crf is for --format hf and onnx"),
        ("--format onnx --platforms cpu", "--platforms is for --format stablehlo"),
        ("--format tflite", "--format tflite: must be"),
        ("--format hf", "is in the Hugging Face format already"),
        ("", "--format is required"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(hub: Path, tmp_path: Path, capsys, flags: str, problem: str):
    out = tmp_path / "out"
    assert main(["export", str(hub), "--out", str(out), *flags.split()]) == 2
    error = capsys.readouterr().err
    assert problem in error and error.count("\n") == 1
    assert not out.exists()


def test_a_process_that_fails_is_named_with_its_last_line():
    with pytest.raises(UserError, match="model: cannot be measured: ValueError: no"):
        run_child([sys.executable, "-c", "raise ValueError('no')"], "model")
    code = "print('ready'); print('{\"memory\": 5, \"latency\": 0.5}')"
    memory, cold_start, latency = run_child([sys.executable, "-c", code], "model")
    assert (memory, latency) == (5, 0.5) and 0 < cold_start < 60
    assert Footprint(1, memory, cold_start, latency).size == 1
