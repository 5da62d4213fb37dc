"""The command line as its users meet it: what it prints, how it exits, what it leaves."""

import dataclasses
import json
import re
import signal
from pathlib import Path

import pytest
from conftest import TINY, make_text, train_until, write_experiments

from bertgpt.cli.experiments import overrides_by_name
from bertgpt.cli.main import main
from bertgpt.cli.records import read_input, records_in, write_lines
from bertgpt.config import Experiment, Mesh
from bertgpt.data.tokenizer import Tokenizer, load_tokenizer
from bertgpt.inference.encode import tokenize
from bertgpt.inference.model import Model
from bertgpt.objectives.classify import Classify
from bertgpt.runs.checkpoint import Checkpoints
from bertgpt.tasks.baselines import Majority
from bertgpt.tasks.classification import TextClassification
from bertgpt.types import UserError


@pytest.fixture
def pretrain(tiny: Experiment) -> Experiment:
    return dataclasses.replace(tiny, name="pre", steps=2)


@pytest.fixture
def tune(tiny: Experiment, tmp_path: Path) -> Experiment:
    path = tmp_path / "cats.csv"
    rows = [f"{text[:100]},{int('cat' in text)}" for text in make_text(80)]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    return dataclasses.replace(
        tiny,
        name="cats",
        objective=Classify(2),
        data=TextClassification(str(path), labels=("0", "1"), names=("no cat", "cat"), seq_len=32),
        init_from="pre",
        baselines=(Majority(),),
        steps=2,
    )


def run(capsys: pytest.CaptureFixture, *args: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(arg) for arg in args])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_overrides_go_to_all_experiments_or_to_the_one_that_they_name():
    args = ["--steps", "9", "--cats/data.labels", "a", "b", "--seed=3", "--pre/optim.lr=1"]
    assert overrides_by_name(args, ["pre", "cats"]) == {
        "pre": ["--steps", "9", "--seed=3", "--optim.lr=1"],
        "cats": ["--steps", "9", "--data.labels", "a", "b", "--seed=3"],
    }
    assert overrides_by_name(["--data.path=x/y"], ["pre"]) == {"pre": ["--data.path=x/y"]}
    with pytest.raises(UserError, match="--dogs/steps: no experiment is named 'dogs'; there are pre, cats"):
        overrides_by_name(["--dogs/steps", "1"], ["pre", "cats"])


def test_a_missing_package_is_reported_before_anything_is_trained(
    pretrain: Experiment, tune: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture
):
    tune = dataclasses.replace(tune, init_from="package:no_such_package/model")
    file = write_experiments(tmp_path / "both.py", {"pre": pretrain, "cats": tune})
    code, _, err = run(capsys, "train", file, "--workdir", tmp_path / "runs")
    assert code == 2 and "pip install no_such_package" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_whole_path(pretrain: Experiment, tune: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture):
    """Train two experiments in a row, then evaluate, predict and report from what they left."""
    file = write_experiments(tmp_path / "both.py", {"pre": pretrain, "cats": tune})
    work = tmp_path / "runs"
    code, out, err = run(capsys, "train", f"{file}:pre", f"{file}:cats", "--workdir", work, "--log_every", 1)
    assert code == 0, err
    assert "weights from pre" in out and "majority class" in out and "truly" in out
    assert re.search(r"cats classifies [\d.]+ % of the test examples correctly; majority class [\d.]+ %", out)
    assert (work / "report" / "report.html").exists() and "report:" in out

    # A second time there is nothing to do, and the same tables appear.
    code, again, _ = run(capsys, "train", file, "--workdir", work, "--log_every", 1)
    assert code == 0 and again == out[out.index("\n", out.index("cats  test at")) + 1 :]

    results = json.loads((work / "cats" / "results.json").read_text())
    code, out, _ = run(capsys, "evaluate", work / "cats")
    assert code == 0 and f"{results['evals']['test']['accuracy']:.4f}" in out

    code, out, _ = run(capsys, "predict", work / "cats", "--text", "A cat.", "--text", "A dog.")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [a["text"] for a in answers] == ["A cat.", "A dog."]
    assert all(a["label"] in ("no cat", "cat") and set(a["probabilities"]) == {"no cat", "cat"} for a in answers)

    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text": "A cat.", "id": 7}\n\n{"text": "A dog.", "id": 8}\n')
    code, out, _ = run(capsys, "predict", work / "cats", "--input", source, "--output", target)
    written = [json.loads(line) for line in target.read_text().splitlines()]
    assert code == 0 and out == "" and [r["id"] for r in written] == [7, 8]
    assert [r["probability"] for r in written] == [a["probability"] for a in answers]

    code, out, _ = run(capsys, "predict", work / "cats", "--text", "A cat.", "--data.names", "dog", "cat")
    assert code == 0 and set(json.loads(out)["probabilities"]) == {"dog", "cat"}
    labelled = tmp_path / "new.csv"
    labelled.write_text("text,label\nA cat.,1\nA dog.,0\n")
    code, out, _ = run(capsys, "evaluate", work / "cats", "--path", labelled, "--out", tmp_path / "judged")
    assert code == 0 and "new.csv accuracy" in out and "precision" in out
    assert {path.name for path in (tmp_path / "judged").iterdir()} == {"evaluation.md", "new.csv.confusion.png"}

    code, out, _ = run(capsys, "predict", work / "pre", "--text", "the [MASK] sleeps")
    assert code == 0 and len(json.loads(out)["masks"][0]) == 5

    code, out, _ = run(capsys, "report", work / "pre", work / "cats", "--out", tmp_path / "page")
    assert code == 0 and [Path(line).exists() for line in out.splitlines()] == [True] * 3

    for args, message in [
        (["predict", work / "cats"], "give either --text or --input"),
        (["predict", work / "cats", "--input", tmp_path / "none.jsonl"], "none.jsonl: cannot be read"),
        (["predict", work / "cats", "--text", "x", "--batch_size", 0], "--batch_size 0 must be at least 1"),
        (["predict", work / "cats", "--text", "x", "--step", 9], "no checkpoint of step 9; there is 2"),
        (["predict", work / "cats", "--text", "x", "--output", tmp_path / "no" / "x"], "cannot be written: No such"),
        (["predict", work / "pre", "--text", "no mask"], "no [MASK] to fill in"),
        (["predict", work / "cats", "--record", '{"body": "x"}'], "has no field 'text'"),
        (["predict", work / "cats", "--text", "x", "--data.name", "x"], "unknown option --data.name; did you mean"),
        (["evaluate", tmp_path], "no run here"),
        (["report", tmp_path], "no run here"),
        (["train", file, "--workdir", work, "--optim.lr", "0.5"], "holds a run of another experiment: optim.lr was"),
    ]:
        code, _, err = run(capsys, *args)
        assert code == 2 and message in err and len(err.splitlines()) == 1, err
    source.write_text('{"text": "fine"}\n{"body": "no text"}\n')
    code, _, err = run(capsys, "predict", work / "cats", "--input", source, "--output", tmp_path / "bad.jsonl")
    assert code == 2 and "in.jsonl:2: has no field 'text'" in err and not (tmp_path / "bad.jsonl").exists()


def test_records_come_from_every_format_and_lines_of_json_keep_their_types(tmp_path: Path):
    import pyarrow as pa
    from pyarrow import parquet

    (tmp_path / "a.jsonl").write_text('\n{"text": ["A", "cat."], "predicate": 1}\n')
    (tmp_path / "lines").write_text('{"text": "A cat.", "predicate": 1}\n')
    (tmp_path / "a.csv").write_text('text,predicate\n"A\ncat.",1\nA dog.,2\n')
    (tmp_path / "a.tsv").write_text("text\tpredicate\nA cat.\t1\n")
    parquet.write_table(pa.table({"text": ["A cat."], "predicate": [1]}), tmp_path / "a.parquet")
    found = {path.name: records_in(str(path), ("text", "predicate")) for path in tmp_path.iterdir()}
    assert found["a.jsonl"] == [(f"{tmp_path}/a.jsonl:2", {"text": ["A", "cat."], "predicate": 1})]
    assert found["lines"] == [(f"{tmp_path}/lines:1", {"text": "A cat.", "predicate": 1})]
    assert found["a.csv"][0][1] == {"text": "A\ncat.", "predicate": "1"}
    assert found["a.csv"][1] == (f"{tmp_path}/a.csv:4", {"text": "A dog.", "predicate": "2"})
    for name in ("a.tsv", "a.parquet"):
        assert [record for _, record in found[name]] == [{"text": "A cat.", "predicate": "1"}]
    assert read_input("text", (), str(tmp_path / "a.tsv"), ("text",)) == [{"text": "A cat.", "predicate": "1"}]
    (tmp_path / "b.csv").write_text("body\nA cat.\n")
    (tmp_path / "c.csv").write_text("text,label\nA cat.\n")
    (tmp_path / "d.txt").write_text("A cat.\n")
    for name, message in (
        ("b.csv", "b.csv:2: has no field 'text'; it has 'body'"),
        ("c.csv", "c.csv:2: has 1 columns, the header has 2"),
        ("d.txt", "d.txt: does not hold records: its name must end in .jsonl"),
    ):
        with pytest.raises(UserError, match=message):
            records_in(str(tmp_path / name), ("text",))


def test_answers_overwrite_nothing_of_their_records(capsys: pytest.CaptureFixture):
    records = [{"text": "A cat.", "label": "pos", "predicted_label": 1}, {"text": "A dog."}]
    write_lines(None, records, [{"label": "neg", "probability": 0.7}, {"label": "neg", "probability": 0.7}])
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == records[0] | {"predicted_predicted_label": "neg", "probability": 0.7}
    assert second == records[1] | {"label": "neg", "probability": 0.7}


def test_special_tokens_in_texts_are_but_characters_unless_masks_are_filled(tokenizer: Tokenizer):
    model = Model(TINY, tokenizer, None, {}, Path("model"))
    (plain,), (parsed,) = tokenize(model, ["a [SEP] b"]), tokenize(model, ["a [SEP] b"], parse_special=True)
    assert plain.count(tokenizer.vocab.sep) == 1 and parsed.count(tokenizer.vocab.sep) == 2


@pytest.mark.parametrize(
    "args, message",
    [
        (["trian"], "no command 'trian'; did you mean 'train'?"),
        (["train"], "EXPERIMENTS is required"),
        (["train", "no/such.py"], "no/such.py: no such file"),
        (["train", "no.such.module"], "no.such.module: no such experiment file or module"),
        (["train", "experiments/ablations/bert.py:nsp"], "has no arm 'nsp'; it has base, no_nsp"),
        (["train", "experiments/pretrain/bert_base.py:big"], "defines no ARMS"),
        (["train", "bertgpt.config"], "defines no experiment() and no ARMS"),
        (["train", "experiments/pretrain/bert_base.py", "--stepz", "3"], "--stepz; did you mean --steps?"),
        (["train", "experiments/pretrain/bert_base.py", "--steps", "x"], "steps"),
        (["train", "experiments/pretrain/bert_base.py", "--model.num_heads", "7"], "d_model=768 is not divisible by"),
        (["train", "experiments/pretrain/bert_base.py", "--workdir"], "--workdir: must be followed by a value"),
        (["train", "experiments/pretrain/bert_base.py", "--stop_after", "-1"], "--stop_after -1 must be at least 1"),
        (["train", *["experiments/pretrain/bert_base.py"] * 2], "two experiments are named 'bert_base'"),
        (["predict", "x", "--text"], "--text: must be followed by a value"),
        (["predict", "--text", "x"], "RUN is required"),
        (["tokenizer"], "give an action, train or inspect"),
        (["tokenizer", "train", "no.txt", "--out", "t"], "no.txt: no such file"),
        (["prepare", "no.txt", "--out", "s", "--tokenizer", "t"], "t: "),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_exit_2(args: list, message: str, capsys, monkeypatch, tmp_path: Path):
    monkeypatch.chdir(Path(__file__).parents[2])
    code, _, err = run(capsys, *args)
    assert code == 2 and message in err
    assert len(err.splitlines()) == 1 and err.startswith("bertgpt: ") and "Traceback" not in err


def test_an_experiment_file_with_a_syntax_error_names_the_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "bad.py").write_text("x = 1\ndef experiment(:\n")
    code, _, err = run(capsys, "train", tmp_path / "bad.py")
    assert code == 2 and "bad.py:2: " in err


def test_help_comes_in_one_piece(capsys: pytest.CaptureFixture):
    for args in (["--help"], ["train", "--help"], ["predict", "--help"], ["tokenizer", "train", "--help"]):
        try:
            assert main(args) == 0
        except SystemExit as stop:
            assert stop.code == 0
        assert "usage: bertgpt" in capsys.readouterr().out


def test_tokenizer_and_store_from_the_command_line(corpus_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    code, out, _ = run(
        capsys, "tokenizer", "train", corpus_file, "--out", tmp_path / "tok", "--vocab_size", 90, "--min_frequency", 1
    )
    assert code == 0 and load_tokenizer(tmp_path / "tok").hash in out
    code, out, _ = run(capsys, "prepare", corpus_file, "--tokenizer", tmp_path / "tok", "--out", tmp_path / "store")
    facts = json.loads((tmp_path / "store" / "store.json").read_text())
    assert code == 0 and f"{facts['splits']['train']['tokens']:,} tokens" in out and "dropped" in out
    assert sum(part["documents"] for part in facts["splits"].values()) == 120
    code, _, err = run(capsys, "prepare", corpus_file, "--tokenizer", tmp_path / "tok", "--out", tmp_path / "store")
    assert code == 2 and "exists already" in err


@pytest.mark.slow
def test_ctrl_c_saves_says_so_and_the_same_command_goes_on(pretrain: Experiment, tmp_path: Path):
    long = dataclasses.replace(pretrain, steps=100_000, log_every=1, evals=(), mesh=Mesh())
    file = write_experiments(tmp_path / "long.py", {"long": long})
    for first in (True, False):
        code, lines = train_until(file, tmp_path / "runs", "/100000", signal.SIGINT)
        assert code == 130, "".join(lines)
        assert re.match(r"pre: stopped by SIGINT after step [\d,]+, saved. The same command resumes it.", lines[-1])
        assert any("resuming at step" in line for line in lines) != first
    assert Checkpoints(tmp_path / "runs" / "pre").latest() >= 2
