"""However a run is stopped or killed, the same command ends with the bits and the log lines of one that was not."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import train_until, write_experiments

from bertgpt.config import Eval, Experiment, Mesh, with_overrides
from bertgpt.runs.checkpoint import Checkpoints
from bertgpt.runs.directory import load_experiment, lock_run
from bertgpt.training.evaluate import Evaluation
from bertgpt.training.log import RunLog, read_metrics
from bertgpt.training.loop import train
from bertgpt.training.signals import Stopped, stop_signals
from bertgpt.training.window import Window
from bertgpt.types import Sum, UserError

TIMES = {"time", "tokens_per_second", "matmul_utilisation", "data_wait", "save_wait"}


def lines_of(run: Path) -> list[dict]:
    """The lines of metrics.jsonl without what depends on the clock."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(run / "metrics.jsonl")]


def bits_of(run: Path) -> list[bytes]:
    """Every array of the newest checkpoint."""
    checkpoints = Checkpoints(run)
    return [np.asarray(x).tobytes() for x in jax.tree.leaves([checkpoints.read("params"), checkpoints.read("opt")])]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_waits_outside_and_interrupts_inside_of_work_that_can_be_redone(name: str):
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with stop_signals() as stop:
        with pytest.raises(Stopped), stop.interrupts():
            signal.raise_signal(number)
        assert stop.received == name
        signal.raise_signal(signal.SIGTERM)  # only the first counts
        assert stop.received == name
        with pytest.raises(Stopped), stop.interrupts():
            raise AssertionError("a signal that came before ends the block at its start")
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with stop_signals() as stop:
        signal.raise_signal(number)
        assert stop.received == name
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("name", "processes"), [("SIGHUP", 1), ("SIGTERM", 1), ("SIGTERM", 2)])
def test_a_signal_that_is_ignored_stays_so(name: str, processes: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bertgpt.training.signals.process_count", lambda: processes)
    number = signal.Signals[name]
    before = signal.signal(number, signal.SIG_IGN)  # as nohup does
    try:
        with stop_signals() as stop:
            signal.raise_signal(number)
            assert stop.received is None and signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("cut", range(8))
def test_sums_of_a_window_do_not_depend_on_where_it_was_interrupted(cut: int, rng: np.random.Generator):
    def step(loss: float, load: np.ndarray, tokens: int) -> dict[str, Sum]:
        one = jnp.ones(())
        sums = {"loss": loss, "grad_norm": 2 * loss, "load": load, "nonfinite": 0.0, "tokens": float(tokens)}
        return {name: Sum(jnp.asarray(value, jnp.float32), one) for name, value in sums.items()}

    steps = [step(rng.random(), rng.random(3), int(rng.integers(99))) for _ in range(7)]
    whole = Window({})
    for metrics in steps:
        whole.add(metrics, 5)
    first = Window({})
    for metrics in steps[:cut]:
        first.add(metrics, 5)
    second = Window(json.loads(json.dumps(first.as_json())))
    for metrics in steps[cut:]:
        second.add(metrics, 5)
    assert second.values() == whole.values()
    assert second.tokens() + second.carried == whole.tokens() and second.flops == 5 * (7 - cut)


def test_lines_of_the_start_are_neither_doubled_nor_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    lines = [
        {"kind": "train", "step": 4, "tokens": 9, "tokens_per_second": 3.0, "nonfinite_steps": 1},
        {"kind": "eval", "step": 4, "name": "validation"},
        {"kind": "train", "step": 5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
    with RunLog(tmp_path, name="run", total_steps=10, start_step=4) as log:
        assert (log.tokens, log.seconds, log.nonfinite_steps, log.evaluated) == (9, 3.0, 1, {"validation"})
        log.eval(4, "validation", {"loss": 1.0})
        log.eval(4, "other", {"loss": 1.0})
    found = [(line["kind"], line["step"], line.get("name")) for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert found == [("train", 4, None), ("eval", 4, "validation"), ("eval", 4, "other")]
    with RunLog(tmp_path, name="run", total_steps=4, start_step=4, lines=1):
        pass  # the last evaluations are all run again
    assert not caplog.records
    with RunLog(tmp_path, name="run", total_steps=9, start_step=8, lines=2):
        pass
    (warning,) = caplog.records
    assert "metrics.jsonl: holds 1 of the 2 lines of training up to step 8" in warning.getMessage()
    assert [line["kind"] for line in read_metrics(tmp_path / "metrics.jsonl")] == ["train"]


def test_a_full_disk_is_one_line(tmp_path: Path):
    with (
        pytest.raises(UserError, match="metrics.jsonl: cannot be written: No space left on device"),
        RunLog(tmp_path, name="run", total_steps=4, start_step=0) as log,
    ):
        for name in ("file", "text"):
            vars(log)[name].close()
            vars(log)[name] = open("/dev/full", "a")
        log.message("lost")
        log.eval(4, "validation", {"loss": 1.0})


def test_a_second_process_in_a_run_directory_is_refused_in_one_line(tiny: Experiment, tmp_path: Path):
    with (
        lock_run(tmp_path / "tiny"),
        pytest.raises(UserError, match=r"another process is training .*process \d+ on") as e,
    ):
        train(tiny, tmp_path)
    assert "\n" not in str(e.value) and not (tmp_path / "tiny" / "experiment.json").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_stops_between_all_steps_and_in_evaluations_leave_no_trace(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = with_overrides(tiny, {"mesh": Mesh(), "steps": 4, "log_every": 3, "eval_every": 2})
    run = dataclasses.replace(run, evals=(*run.evals, Eval("again", "validation")))
    whole = train(run, tmp_path / "whole")
    assert whole["stopped"] is None

    evaluate, calls = Evaluation.evaluate, []

    def interrupted(self: Evaluation, params: object, mesh: object, stopping: Callable[[], bool]) -> object:
        """A signal arrives in an evaluation after step 2, in the first of the last ones, and in their second."""
        calls.append(self.item.name)
        if len(calls) in (1, 4, 6):
            signal.raise_signal(signal.SIGTERM)
        return evaluate(self, params, mesh, stopping)

    monkeypatch.setattr(Evaluation, "evaluate", interrupted)
    stops = []
    for _ in range(9):
        results = train(run, tmp_path / "parts", stop_after=1)
        stops.append((results["step"], results["stopped"]))
        if results["stopped"] is None:
            break
        assert Checkpoints(tmp_path / "parts" / "tiny").latest() == results["step"]
    once = "stop_after"
    assert stops == [(1, once), (2, once), (2, "SIGTERM"), (3, once), (4, "SIGTERM"), (4, "SIGTERM"), (4, None)]
    assert results["evals"] == whole["evals"] and results["tokens"] == whole["tokens"]
    assert bits_of(tmp_path / "parts" / "tiny") == bits_of(tmp_path / "whole" / "tiny")
    parts = sorted(lines_of(tmp_path / "parts" / "tiny"), key=json.dumps)
    assert parts == sorted(lines_of(tmp_path / "whole" / "tiny"), key=json.dumps)


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_run_of_epochs_keeps_its_tokenizer_and_resumes(tiny: Experiment, tmp_path: Path):
    run = with_overrides(tiny, {"mesh": Mesh(), "steps": None, "epochs": 0.5, "evals": (), "data.duplicates": 1})
    first = train(run, tmp_path, stop_after=1)
    assert first["stopped"] == "stop_after" and (tmp_path / "tiny" / "tokenizer").is_dir()
    assert load_experiment(tmp_path / "tiny").steps == first["steps"] > 2
    with pytest.raises(UserError, match=rf"steps was {first['steps']}, now"):
        train(dataclasses.replace(run, epochs=0.8), tmp_path)
    results = train(run, tmp_path)
    assert results["step"] == first["steps"] and train(run, tmp_path) == results


@pytest.mark.slow
def test_killed_processes_and_a_closed_pipe_leave_no_trace(tiny: Experiment, tmp_path: Path):
    """Kills at lines of output, in order: before the first step, while training, in evaluations, in the last one."""
    changes = {"mesh": Mesh(data=1), "steps": 12, "log_every": 2, "eval_every": 4, "save_every": 3, "keep_last": 2}
    run = dataclasses.replace(with_overrides(tiny, changes), evals=(*tiny.evals, Eval("again", "validation")))
    file = write_experiments(tmp_path / "killed.py", {"tiny": run})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train_until(file, whole, "no such line", signal.SIGTERM)[0] == 0
    for marker, number, code in (
        ("compiled in", signal.SIGKILL, -signal.SIGKILL),
        (" 4/12", signal.SIGKILL, -signal.SIGKILL),
        ("validation at 4", signal.SIGTERM, 0),
        (" 8/12", signal.SIGHUP, 0),
        ("validation at 12", signal.SIGKILL, -signal.SIGKILL),
    ):
        assert train_until(file, parts, marker, number)[0] == code
    process = subprocess.Popen(
        [sys.executable, "-m", "bertgpt", "train", file, "--workdir", str(parts)],
        stdout=subprocess.PIPE,
        env=dict(os.environ, XLA_FLAGS="--xla_backend_optimization_level=0"),
    )
    process.stdout.close()  # as by `| head -0`
    assert process.wait(120) == 0
    assert "standard output is gone" in (parts / "tiny" / "train.log").read_text()
    assert bits_of(parts / "tiny") == bits_of(whole / "tiny")
    assert sorted(lines_of(parts / "tiny"), key=json.dumps) == sorted(lines_of(whole / "tiny"), key=json.dumps)
    names = [{path.name for path in (folder / "tiny").iterdir()} for folder in (parts, whole)]
    assert names[0] == names[1] and not [name for name in names[0] if name.startswith(".")]
    folders = [sorted(path.name for path in (folder / "tiny" / "checkpoints").iterdir()) for folder in (parts, whole)]
    assert folders[0] == folders[1] == ["12", "9"]


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_the_state_is_on_disk_before_the_last_evaluation_and_saved_by_time(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = with_overrides(tiny, {"mesh": Mesh(), "steps": 3, "keep_last": 9, "save_every_minutes": 1e-9})
    evaluate = Evaluation.evaluate

    def failing(self: Evaluation, params: object, mesh: object, stopping: Callable[[], bool]) -> object:
        assert Checkpoints(tmp_path / "tiny").latest() == 3
        raise UserError("no memory for this evaluation")

    monkeypatch.setattr(Evaluation, "evaluate", failing)
    with pytest.raises(UserError, match="no memory"):
        train(run, tmp_path)
    assert Checkpoints(tmp_path / "tiny").steps() == [1, 2, 3]
    monkeypatch.setattr(Evaluation, "evaluate", evaluate)
    best = dataclasses.replace(run, save_every_minutes=0.0, keep_best=1)
    assert train(best, tmp_path)["step"] == 3
    assert "validation/loss" in Checkpoints(tmp_path / "tiny").metrics(3)  # of an evaluation after the save


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"best_metric": "validaton/loss"},
            "'validaton/loss': no evaluation 'validaton' runs during training; there is va",
        ),
        ({"best_metric": "test/loss"}, "no evaluation 'test' runs during training"),
        (
            {"best_metric": "validation/los"},
            "validation has no metric 'los'; it has loss, mlm_accuracy, mlm_loss, nsp_acc",
        ),
        ({"best_metric": "validation/mlm_accuracy"}, "the best is its max, but best_mode='min'"),
        ({"best_mode": "max"}, "'validation/loss': the best is its min, but best_mode='max'"),
    ],
)
@pytest.mark.usefixtures("one_device")
def test_a_metric_that_cannot_rank_checkpoints_is_refused_at_the_start(
    tiny: Experiment, tmp_path: Path, changes: dict, message: str
):
    with pytest.raises(UserError, match=message):
        train(with_overrides(tiny, {"keep_best": 1, "mesh": Mesh(), **changes}), tmp_path)
    assert not (tmp_path / "tiny" / "metrics.jsonl").exists()


def test_time_to_save_comes_round(tiny: Experiment, tmp_path: Path):
    from bertgpt.training.loop import is_time

    checkpoints, now = Checkpoints(tmp_path, tiny), time.monotonic()
    assert is_time(1, now - 601, 10.0, checkpoints) and not is_time(1, now - 599, 10.0, checkpoints)
    assert not is_time(1, now - 1e9, 0.0, checkpoints)
