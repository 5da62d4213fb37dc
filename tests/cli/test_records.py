"""Records given to commands and lines that they print: types checked, valid UTF-8, strict JSON."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertgpt.cli.records import parse_records, read_input, write_lines
from bertgpt.tasks.classification import describe_classes
from bertgpt.types import UserError


def strict(line: str) -> Any:
    return json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_predictions_that_are_not_finite_are_null_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
):
    nan = float("nan")
    records = [{"text": "a"}, {"text": "b", "score": nan}, {"text": "c"}]
    probabilities = np.array([[0.25, 0.75], [nan, nan], [0.5, 0.5]])
    right = [
        {"text": "a", "label": "pos", "probability": 0.75, "probabilities": {"neg": 0.25, "pos": 0.75}},
        {"text": "b", "score": None, "label": None, "probability": None, "probabilities": None},
        {"text": "c", "label": "neg", "probability": 0.5, "probabilities": {"neg": 0.5, "pos": 0.5}},
    ]
    for output in (None, str(tmp_path / "a.jsonl")):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert write_lines(output, records, describe_classes(probabilities, ("neg", "pos"))) == 0
        lines = capsys.readouterr().out if output is None else Path(output).read_text()
        assert [strict(line) for line in lines.splitlines()] == right
        assert [record.getMessage() for record in caplog.records] == [
            "1 of 3 predictions are null, because the model's numbers are not finite",
            "1 of 3 records hold NaN or an infinity, which is written as null",
        ]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("[" * 10_000, "not valid JSON: brackets are nested too deep"),
        ('{"text": "x"', "not valid JSON: Expecting"),
        ('{"text": ' + "9" * 5000 + "}", "not valid JSON: Exceeds the limit"),
        ("5", "not a JSON object"),
        ("null", "not a JSON object"),
        ('["text"]', "not a JSON object"),
        ("{}", "has no field 'text'"),
        ('{"text": null}', "has no field 'text'"),
        ('{"text": 5}', "'text' is of type int, not text"),
        ('{"text": true}', "'text' is of type bool, not text"),
        ('{"text": ["x"]}', "'text' is of type list, not text"),
        ('{"text": "\\ud800"}', "is not valid UTF-8"),
        ('{"text": "\udce9"}', "--record .*: is not valid UTF-8 at character 11"),
    ],
)
def test_a_record_on_the_command_line_that_is_no_text_is_refused(record: str, message: str):
    with pytest.raises(UserError, match=message) as caught:
        parse_records([record], ["text"])
    assert str(caught.value).startswith("--record ") and len(str(caught.value)) < 300
    str(caught.value).encode()  # can be printed


def test_a_text_of_another_encoding_is_refused():
    with pytest.raises(UserError, match=r"--text 'caf\\udce9': is not valid UTF-8 at character 4"):
        read_input("text", ["caf\udce9"], None, ["text"])
    assert read_input("text", ["café \U0001f600"], None, ["text"]) == [{"text": "café \U0001f600"}]


@pytest.mark.parametrize("value", [5, True, ["x"], {"a": "x"}])
def test_a_field_of_a_file_that_is_no_text_is_refused_with_its_line(tmp_path: Path, value: Any):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "x"}) + "\n" + json.dumps({"text": value}) + "\n")
    with pytest.raises(UserError, match=rf"a.jsonl:2: 'text' is of type {type(value).__name__}, not text"):
        read_input("text", [], str(path), ["text"])
    assert read_input("text", [], str(path), ["text"], lists=True)[1] == {"text": value}  # the task checks it
