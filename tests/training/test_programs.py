"""What is compiled: each program exactly once, however often it runs; and no deprecated API of orbax is called."""

import collections
import dataclasses
import logging
import re
import subprocess
import sys
from pathlib import Path

import chex
import jax
import pytest

from bertgpt.config import Experiment, Mesh
from bertgpt.data.loader import Batches
from bertgpt.inference.model import build_apply
from bertgpt.sharding import make_mesh, put_batch
from bertgpt.training.loop import train
from bertgpt.training.state import init_state
from bertgpt.training.step import make_train_step
from bertgpt.types import DataRequest


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
    compiled = collections.Counter(re.findall(r"^Compiling jit\((\w+_step)\)", "\n".join(caplog.messages), re.M))
    # Two evaluations (validation, test), the first of them several times, share one program.
    assert compiled == {"train_step": 1, "eval_step": 1}


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
