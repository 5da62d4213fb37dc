"""`bertgpt train` in several processes: the run of one process, written once, that ends, stops and fails together."""

import dataclasses
import json
import signal
import time
from pathlib import Path

import jax
import pytest
from conftest import make_text, write_experiments
from launcher import Ended, train_hosts

from bertgpt.config import TEST, Eval, Experiment, Mesh
from bertgpt.inference.decoding import Decoding
from bertgpt.models.t5 import T5Config
from bertgpt.objectives.classify import Classify
from bertgpt.objectives.seq2seq import Seq2Seq
from bertgpt.runs.checkpoint import Checkpoints
from bertgpt.sharding import make_mesh
from bertgpt.tasks.baselines import Majority
from bertgpt.tasks.classification import TextClassification
from bertgpt.tasks.generation import TextToText
from bertgpt.training import loop
from bertgpt.training.log import read_metrics

TIMES = {"time", "tokens_per_second", "matmul_utilisation", "data_wait", "save_wait"}
REDUCTION = 1e-6
"""how much a loss may differ where partial sums are added in another order"""


def lines_of(run: Path) -> list[dict]:
    """The lines of metrics.jsonl without what depends on the clock."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(run / "metrics.jsonl")]


def assert_lines_agree(run: Path, expected: Path, tolerance: float) -> None:
    found, wanted = lines_of(run), lines_of(expected)
    assert [[line["kind"], line["step"]] for line in found] == [[line["kind"], line["step"]] for line in wanted]
    for line, other in zip(found, wanted, strict=True):
        assert line.keys() == other.keys() and line.get("name") == other.get("name")
        numbers = {name: value for name, value in other.items() if not isinstance(value, str)}
        assert {name: line[name] for name in numbers} == pytest.approx(numbers, abs=tolerance, rel=tolerance)


def assert_ended_well(ended: list[Ended]) -> None:
    assert [process.code for process in ended] == [0] * len(ended), ended
    assert all(not process.lines for process in ended[1:]), ended[1:]  # process 0 alone speaks
    last = max(
        t for line, t in zip(ended[0].lines, ended[0].times, strict=True) if line.startswith(("tiny", "task", "run"))
    )
    assert max(process.ended for process in ended[1:]) < last + 15  # of the run; process 0 then writes its report


@pytest.fixture
def hosted(tiny: Experiment) -> Experiment:
    return dataclasses.replace(tiny, mesh=Mesh(), save_every=2, eval_every=4, log_every=1)


@pytest.fixture
def file(hosted: Experiment, tmp_path: Path) -> str:
    return write_experiments(tmp_path / "experiment.py", {"tiny": hosted})


def train(file: str, workdir: Path, count: int, *flags: str, devices: int = 1, timeout: float = 300) -> list[Ended]:
    ended = train_hosts(file, workdir, count, *flags, devices=devices).join(timeout)
    if count > 1:
        assert_ended_well(ended)
    else:
        assert ended[0].code == 0, ended
    return ended


def test_two_processes_train_as_one_and_write_everything_once(
    hosted: Experiment, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patched:
        patched.setattr("bertgpt.training.loop.make_mesh", lambda mesh: make_mesh(mesh, jax.devices()[:2]))
        loop.train(hosted, tmp_path / "one")
    first, _ = train(file, tmp_path / "two", 2)
    run = tmp_path / "two" / "tiny"
    assert lines_of(run) == lines_of(tmp_path / "one" / "tiny")  # two devices add in one order only: the same bits
    results, expected = (json.loads((tmp_path / n / "tiny" / "results.json").read_text()) for n in ("two", "one"))
    assert results["evals"] == expected["evals"]
    steps = [line for line in first.lines if line.startswith("tiny") and "/6  loss" in line]
    assert len(steps) == 6 and sum("parameters trained on 2" in line for line in first.lines) == 1
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert not [path for path in run.rglob("*") if "partial" in path.name or path.name.startswith(".")]


@pytest.mark.slow
def test_four_processes_train_as_one(file: str, tmp_path: Path):
    train(file, tmp_path / "one", 1, devices=4)
    train(file, tmp_path / "four", 4)
    assert_lines_agree(tmp_path / "four" / "tiny", tmp_path / "one" / "tiny", REDUCTION)


@pytest.mark.slow
def test_a_run_continues_with_other_numbers_of_processes_devices_and_meshes(file: str, tmp_path: Path):
    """4 → 2 → 1 → 2 processes, data → fsdp → one device → fsdp × tensor: the losses of a run that was never stopped."""
    train(file, tmp_path / "whole", 1)
    workdir = tmp_path / "elastic"
    for count, devices, mesh in (
        (4, 1, ["--mesh.data", "4"]),
        (2, 1, ["--mesh.fsdp", "2"]),
        (1, 1, []),
        (2, 2, ["--mesh.fsdp", "2", "--mesh.tensor", "2"]),
    ):
        last = [] if count == devices == 2 else ["--stop_after", "2" if count == 4 else "1"]
        train(file, workdir, count, *mesh, *last, devices=devices)
    assert_lines_agree(workdir / "tiny", tmp_path / "whole" / "tiny", REDUCTION)


@pytest.mark.slow
def test_the_same_processes_and_mesh_continue_bit_for_bit(file: str, tmp_path: Path):
    train(file, tmp_path / "whole", 2, devices=2)
    train(file, tmp_path / "parts", 2, "--stop_after", "3", devices=2)
    train(file, tmp_path / "parts", 2, devices=2)
    assert lines_of(tmp_path / "parts" / "tiny") == lines_of(tmp_path / "whole" / "tiny")


def classification(tiny: Experiment, folder: Path) -> Experiment:
    """Outputs are scored; its 37 test examples do not fill the last batch; a baseline is fitted."""
    for name, count in (("train", 48), ("test", 37)):
        rows = [f"{text[:60]},{int('cat' in text)}" for text in make_text(count, seed=count)]
        (folder / f"{name}.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    data = TextClassification(
        str(folder / "train.csv"), test_path=str(folder / "test.csv"), labels=("0", "1"), seq_len=32,
        tokenizer=tiny.data.tokenizer,
    )  # fmt: skip
    return dataclasses.replace(
        tiny, name="task", objective=Classify(2), data=data, steps=3, mesh=Mesh(), evals=(TEST,),
        baselines=(Majority(),), eval_every=2,
    )  # fmt: skip


def generation(tiny: Experiment, folder: Path) -> Experiment:
    """Texts are generated and scored, of 11 examples in batches of 8."""
    for name, count in (("train", 24), ("test", 11)):
        rows = [json.dumps({"source": text[:40], "target": text[:15]}) for text in make_text(count, seed=count)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    data = TextToText(
        str(folder / "train.jsonl"), test_path=str(folder / "test.jsonl"), seq_len=32, target_len=16,
        tokenizer=tiny.data.tokenizer,
    )  # fmt: skip
    model = T5Config(
        vocab_size=200, d_model=16, num_layers=1, num_decoder_layers=1, num_heads=4, head_dim=4, d_ff=32,
        max_len=32,
    )  # fmt: skip
    greedy, beam = Decoding(max_new_tokens=6), Decoding(max_new_tokens=6, num_beams=2)
    sample = Decoding(max_new_tokens=6, temperature=0.7)
    evals = tuple(
        Eval(name, "test", final_only=True, decode=decode)
        for name, decode in (("greedy", greedy), ("beam", beam), ("sample", sample))
    )
    return dataclasses.replace(
        tiny, name="task", model=model, objective=Seq2Seq(), data=data, steps=2, batch_size=8, mesh=Mesh(),
        evals=evals,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", [classification, generation])
@pytest.mark.parametrize("mesh", [["--mesh.data", "2"], ["--mesh.fsdp", "2"]], ids=["data", "fsdp"])
def test_predictions_and_texts_are_scored_once_over_all_examples(kind, mesh, tiny: Experiment, tmp_path: Path):
    file = write_experiments(tmp_path / "experiment.py", {"task": kind(tiny, tmp_path)})
    train(file, tmp_path / "one", 1, *mesh, devices=2)
    train(file, tmp_path / "two", 2, *mesh)
    found, expected = (json.loads((tmp_path / n / "task" / "results.json").read_text()) for n in ("two", "one"))
    assert found["baselines"] == expected["baselines"]
    for name, values in expected["evals"].items():
        assert found["evals"][name] == pytest.approx(values, abs=REDUCTION)


@pytest.mark.slow
def test_sigterm_on_any_host_stops_all_at_one_step_saved(file: str, tmp_path: Path):
    hosts = train_hosts(file, tmp_path / "two", 2, "--steps", "100000", "--save_every", "0", "--eval_every", "0")
    hosts.wait_for(hosts.says("20/100000"))
    sent = time.monotonic()
    hosts.send(1, signal.SIGTERM)
    ended = hosts.join(60)
    assert [process.code for process in ended] == [0, 0], ended
    assert "stopped by SIGTERM after step" in ended[0].lines[-1]
    assert max(process.ended for process in ended) - sent < 20
    step = int(ended[0].lines[-1].split("after step ")[1].split(",  saved")[0].split(", saved")[0].replace(",", ""))
    assert Checkpoints(tmp_path / "two" / "tiny").latest() == step


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_host_that_dies_is_named_and_the_others_end_within_a_minute(victim: int, file: str, tmp_path: Path):
    hosts = train_hosts(file, tmp_path / "two", 2, "--steps", "100000", "--save_every", "10", "--eval_every", "0")
    hosts.wait_for(hosts.says("20/100000"))
    killed = time.monotonic()
    hosts.send(victim, signal.SIGKILL)
    ended = hosts.join(90)
    other = ended[1 - victim]
    assert other.code == 3, other
    assert f"bertgpt: process {victim} of 2" in other.lines[-1] and "is gone" in other.lines[-1]
    assert other.ended - killed < 60
    train(file, tmp_path / "two", 2, "--steps", "100000", "--stop_after", "2")  # the run goes on


@pytest.mark.slow
def test_twenty_runs_are_started_by_two_processes_without_a_race(hosted: Experiment, tmp_path: Path):
    names = [f"run{number}" for number in range(20)]
    arms = {name: dataclasses.replace(hosted, name=name, steps=2, evals=()) for name in names}
    train(write_experiments(tmp_path / "experiment.py", arms), tmp_path / "runs", 2, timeout=900)
    for name in names:
        assert len(read_metrics(tmp_path / "runs" / name / "metrics.jsonl")) == 2
        assert len(list((tmp_path / "runs" / name / "tensorboard").iterdir())) == 1
