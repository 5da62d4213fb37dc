"""What is compiled: each program exactly once, however often it runs; and no deprecated API of orbax is called."""

import collections
import concurrent.futures
import dataclasses
import logging
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.cli.main import end
from bertgpt.config import Experiment, Mesh
from bertgpt.data.loader import Batches
from bertgpt.inference.model import build_apply
from bertgpt.runs.checkpoint import Checkpoints
from bertgpt.runs.compiler import COMPILING
from bertgpt.sharding import make_mesh, put_batch
from bertgpt.training.evaluate import Evaluation
from bertgpt.training.loop import train
from bertgpt.training.programs import Program, StepPrograms, background
from bertgpt.training.state import TrainState, init_state
from bertgpt.training.step import make_train_step
from bertgpt.types import DataRequest, EvalResult, UserError


@pytest.fixture
def batches(tiny: Experiment, tokenizer, tmp_path: Path) -> Batches:
    return tiny.data.make(DataRequest("train", tokenizer, batch_size=8, seed=0, cache=tmp_path, shuffle=True))


def test_an_epoch_with_evaluations_compiles_each_program_once(
    tiny: Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    watched = dataclasses.replace(tiny, steps=None, epochs=1.0, eval_every=2, save_every=4)
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        results = train(watched, tmp_path)
    assert results["step"] == results["steps_per_epoch"] == results["steps"]
    compiled = collections.Counter(re.findall(r"^Compiling jit\((\S+)\)", "\n".join(caplog.messages), re.M))
    # Two evaluations (validation, test), the first of them several times, share one program.
    assert (compiled["train_step"], compiled["eval_step"]) == (1, 1)
    # The others initialise the state, check that it is finite, and measure the rate of a matrix product.
    assert compiled.total() <= 6, compiled


def test_evaluations_are_compiled_before_they_are_run(
    tiny: Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    evaluate, compiled = Evaluation.evaluate, []

    def watched(self: Evaluation, *args: object) -> EvalResult:
        before = len(caplog.messages)
        result = evaluate(self, *args)
        compiled.extend(line for line in caplog.messages[before:] if re.match(r"(Compiling|Finished XLA).*_step", line))
        return result

    monkeypatch.setattr(Evaluation, "evaluate", watched)
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        train(dataclasses.replace(tiny, steps=4, eval_every=2), tmp_path)
    assert any("Compiling jit(eval_step)" in line for line in caplog.messages) and not compiled


def test_what_fails_in_the_background_fails_again_where_it_is_called():
    failed: concurrent.futures.Future = concurrent.futures.Future()
    failed.set_exception(RuntimeError("out of memory"))
    batch = {"x": jnp.ones(3)}
    program = Program(jax.jit(lambda params, batch, number: params * batch["x"] + number))
    program.start(lambda compiled: failed, jnp.ones(()), batch, 0)
    np.testing.assert_array_equal(program(jnp.ones(()), batch, 1), [2.0, 2.0, 2.0])  # compiled again, successfully

    def refuse(params: jax.Array, batch: dict, number: int) -> None:
        raise UserError("no such method")

    with background() as submit, pytest.raises(UserError, match="no such method"):
        Program(jax.jit(refuse)).start(submit, jnp.ones(()), batch, 0)


def test_an_evaluation_that_cannot_be_compiled_ends_the_run_when_it_is_due(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(*args: object, **settings: object) -> jax.stages.Wrapped:
        def eval_step(params: dict, batch: dict, index: int) -> None:
            raise UserError("the model lacks a method")

        return jax.jit(eval_step)

    monkeypatch.setattr("bertgpt.training.evaluate.make_eval_step", broken)
    with pytest.raises(UserError, match="the model lacks a method"):
        train(dataclasses.replace(tiny, steps=4), tmp_path)
    assert Checkpoints(tmp_path / tiny.name).latest() == 4


def test_a_step_that_does_not_fit_is_refused_when_it_is_needed(tiny: Experiment, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bertgpt.training.memory.device_memory", lambda device: 3)
    state, batch = TrainState(jnp.zeros((), jnp.int32), {}, {}), {"x": jnp.ones(1000)}
    step = jax.jit(lambda state, batch: (state, batch["x"].sum(), None))
    with background() as submit:
        programs = StepPrograms(step, tiny, lambda params, batch: 7, submit)
        programs.start(state, batch)
        with pytest.raises(UserError, match="a training step takes .* lower batch_size"):
            programs.get(state, batch)
        monkeypatch.undo()
        program, flops = programs.get(state, batch)
    assert flops == 7 and program(state, batch)[1] == 1000 and programs.seconds > 0


@pytest.mark.usefixtures("one_device")
def test_a_signal_while_the_step_compiles_ends_the_run_before_its_first_step(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    entered, stopped, ended = threading.Event(), threading.Event(), threading.Event()
    compiled = jax.stages.Lowered.compile

    def slow(self: jax.stages.Lowered) -> jax.stages.Compiled:
        if "train_step" in self.as_text()[:200]:
            entered.set()
            assert stopped.wait(60)
            ended.set()
        return compiled(self)

    def interrupted(tree: object) -> bool:
        assert entered.wait(60)
        signal.raise_signal(signal.SIGINT)
        return True

    run = dataclasses.replace(tiny, mesh=Mesh(), steps=2)
    monkeypatch.setattr(jax.stages.Lowered, "compile", slow)
    monkeypatch.setattr("bertgpt.training.loop.all_finite", interrupted)
    results = train(run, tmp_path)
    assert (results["step"], results["stopped"]) == (0, "SIGINT") and not ended.is_set()
    stopped.set()
    assert ended.wait(60)  # the thread is not torn down in the middle of a compilation
    monkeypatch.undo()
    results = train(run, tmp_path)
    assert (results["step"], results["stopped"]) == (2, None)


def test_a_step_is_traced_once_for_all_its_batches(tiny: Experiment, tmp_path: Path, tokenizer, batches: Batches):
    chex.clear_trace_counter()
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    module, objective = tiny.model.make(), tiny.objective.make(tokenizer.vocab)
    tx, schedule = tiny.optim.make(tiny.steps)
    placed = [put_batch(batches[i], mesh) for i in range(3)]
    with jax.set_mesh(mesh):
        state, shardings = init_state(module, objective, tx, placed[0], mesh, seed=0)
        traced_once = chex.assert_max_traces(objective.prepare, n=1)
        step = make_train_step(
            objective._replace(prepare=traced_once), build_apply(module), tx, schedule, shardings, seed=0
        )
        for batch in placed:
            state, metrics, health = step(state, batch)
    chex.assert_tree_all_finite((state.params, metrics, health))
    assert int(state.step) == 3


def test_checkpoints_call_nothing_that_is_deprecated(tmp_path: Path):
    """In a process of its own, where orbax is imported with warnings as errors."""
    code = f"""
import dataclasses, warnings
from pathlib import Path
import jax.numpy as jnp
warnings.simplefilter("error", DeprecationWarning)
from bertgpt.runs.checkpoint import Checkpoints, write_params
from bertgpt.config import Experiment
from bertgpt.training.state import TrainState

experiment = Experiment("x", None, None, None, None, steps=1, keep_best=1)
state = TrainState(jnp.ones((), jnp.int32), {{"w": jnp.ones(3)}}, {{"mu": jnp.ones(3)}})
run = Path({str(tmp_path)!r})
checkpoints = Checkpoints(run, experiment)
checkpoints.save(state, {{"validation/loss": 1.0}})
checkpoints.close()
Checkpoints(run).restore(state)
Checkpoints(run).read("params")
write_params(run / "model", state.params)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_command_does_not_wait_for_a_program_that_nobody_needs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os._exit", sys.exit)
    done = threading.Event()
    with background() as submit:
        submit(lambda: done.wait(60))
        with pytest.raises(SystemExit, match="130"):
            end(130)
    done.set()
    for thread in threading.enumerate():
        if thread.name.startswith(COMPILING):
            thread.join(60)
    assert end(3) == 3
