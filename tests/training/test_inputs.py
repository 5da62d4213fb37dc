"""A resumed run notices that its tokenizer or its data are no longer what it began with."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
from conftest import make_text

from bertgpt.config import Eval, Experiment, Mesh, with_overrides
from bertgpt.data.sources.files import digests
from bertgpt.objectives.classify import Classify
from bertgpt.runs.directory import record_tokenizer
from bertgpt.tasks.classification import TextClassification
from bertgpt.training.loop import train
from bertgpt.types import UserError


def swap_two_entries(path: Path) -> None:
    """Two words of a tokenizer.json exchange their ids."""
    content = json.loads(path.read_text())
    vocab = content["model"]["vocab"]
    (first, a), (second, b) = [(word, i) for word, i in vocab.items() if word.isalpha()][-2:]
    content["model"]["vocab"] = vocab | {first: b, second: a}
    path.write_text(json.dumps(content))


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_changed_text_and_a_changed_tokenizer_are_named_and_refused(tiny: Experiment, tmp_path: Path, caplog):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(make_text(90)))
    run = with_overrides(tiny, {"data.path": str(text), "evals": (), "mesh": Mesh()})
    train(run, tmp_path, stop_after=1)
    os.utime(text, ns=(0, 0))  # touched or copied, but the same text
    assert train(run, tmp_path, stop_after=1)["step"] == 2
    text.write_text("\n\n".join(make_text(90)[:30]))
    with pytest.raises(UserError, match=r"tiny: since this run began, .*text.txt has changed; .*accept_changed_inputs"):
        train(run, tmp_path)
    assert train(run, tmp_path, stop_after=1, accept_changed_inputs=True)["step"] == 3
    assert train(run, tmp_path, stop_after=1)["step"] == 4  # accepted once and for all
    (tmp_path / "tiny" / "inputs.json").unlink()
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert not warnings
    assert train(run, tmp_path, stop_after=1)["step"] == 5
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "inputs.json: is missing: whether the data has changed" in warnings[0]

    swap_two_entries(tmp_path / "tiny" / "tokenizer" / "tokenizer.json")
    with pytest.raises(UserError, match=r"tiny/tokenizer: is damaged: tokenizer.json has .* bytes, not "):
        train(run, tmp_path)
    record_tokenizer(tmp_path / "tiny")  # not by accident
    with pytest.raises(UserError, match=r"since this run began, .*tiny/tokenizer has changed; "):
        train(run, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_labelled_files_of_training_and_evaluations_are_compared(tiny: Experiment, tmp_path: Path, tokenizer_dir: Path):
    folder, held_out = tmp_path / "train", tmp_path / "held_out.jsonl"
    folder.mkdir()

    def write(path: Path, count: int) -> None:
        lines = [{"text": text[:100], "label": "ab"[i % 2]} for i, text in enumerate(make_text(count))]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    for name in ("1.jsonl", "2.jsonl"):
        write(folder / name, 40)
    write(held_out, 20)
    data = TextClassification(str(folder), labels=("a", "b"), tokenizer=str(tokenizer_dir), seq_len=32)
    other = Eval("other", "test", data=dataclasses.replace(data, path=str(held_out), validation=0.0, test=0.9))
    run = dataclasses.replace(tiny, name="ab", objective=Classify(2), data=data, evals=(other,), mesh=Mesh())
    train(run, tmp_path, stop_after=1)

    write(held_out, 21)
    write(folder / "2.jsonl", 41)
    write(folder / "3.jsonl", 10)
    with pytest.raises(UserError) as caught:
        train(run, tmp_path)
    assert f"{folder}: 2.jsonl has changed, {held_out} has changed, {folder}: 3.jsonl is new; " in str(caught.value)
    assert "1.jsonl" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_digest_is_that_of_the_content(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("one\n")
    (first,) = digests(str(path)).values()
    path.write_text("two\n")
    os.utime(path, ns=(1, 1))
    assert digests(str(path)).keys() == {str(path)} and digests(str(path)) != {str(path): first}
    path.write_text("one\n")
    assert digests(str(path)) == {str(path): first}
    assert first == "2c8b08da5ce60398e1f19af0e5dccc744df274b826abe585eaba68c525434806"  # sha256sum
