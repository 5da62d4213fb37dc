"""Steps that are not finite change nothing and are counted; a policy decides; such a state is never saved."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bertgpt.config import Experiment, Mesh, NonFinite, with_overrides
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.runs.checkpoint import Checkpoints, all_finite
from bertgpt.sharding import make_mesh
from bertgpt.training.log import read_metrics
from bertgpt.training.loop import train
from bertgpt.training.nonfinite import MOST_FROM_ONE, MOST_IN_A_ROW, Guard
from bertgpt.training.state import TrainState
from bertgpt.training.step import Health, make_train_step
from bertgpt.types import Loss, Objective, Sum, UserError, Vocab

BAD = {"loss": (float("nan"), 1.0), "gradient": (2.0, float("inf"))}


def state_at(step: int, value: float = 1.0) -> TrainState:
    return TrainState(jnp.array(step), {"w": jnp.full(3, value)}, {"mu": jnp.full(3, value)})


def health(loss: float = 2.0, grad_norm: float = 1.0) -> Health:
    return Health(jnp.array(loss), jnp.array(grad_norm))


@pytest.mark.parametrize("x", [np.nan, np.inf, 0.0], ids=["loss is nan", "loss is inf", "only the gradient is inf"])
def test_a_step_that_is_not_finite_changes_neither_parameters_nor_optimiser(x: float):
    """loss = Σ √(w x): at x = 0 it is 0 and its derivative infinite."""

    def loss(apply: Any, params: Any, batch: Any, key: Any) -> Loss:
        value = jnp.sqrt(params["w"] * batch["x"]).sum()
        return Loss({"root": Sum(value, jnp.ones(()))}, {"root": Sum(value, jnp.ones(()))})

    objective = Objective(lambda key, batch: batch, loss, lambda apply, params, batch: {})
    tx, params = optax.adam(0.1), {"w": jnp.arange(1.0, 4.0)}
    state = TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shardings = jax.tree.map(lambda _: replicated, state)
    step = make_train_step(
        objective, lambda *_, **__: None, tx, lambda count: 0.1, shardings, seed=0, token_fields=("x",)
    )
    state, metrics, _ = step(jax.device_put(state, replicated), {"x": jnp.ones(3)})
    assert float(metrics["nonfinite"].sum) == 0 and float(metrics["loss"].weight) == 1
    before = jax.device_get(state)
    assert not np.array_equal(before.params["w"], [1.0, 2.0, 3.0])

    state, metrics, found = step(state, {"x": jnp.array([1.0, x, 1.0])})
    assert int(state.step) == 2 and float(metrics["nonfinite"].sum) == 1
    jax.tree.map(np.testing.assert_array_equal, before.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, before.opt, state.opt)
    assert float(metrics["root"].weight) == float(metrics["loss"].weight) == float(metrics["loss"].sum) == 0
    assert not (np.isfinite(float(found.loss)) and np.isfinite(float(found.grad_norm)))
    state, metrics, _ = step(state, {"x": jnp.ones(3)})
    assert float(metrics["nonfinite"].sum) == 0 and all_finite((state.params, state.opt))


class Remembered(Checkpoints):
    """One checkpoint, in memory."""

    def __init__(self, state: TrainState | None):
        self.state = state

    def wait(self) -> None:
        pass

    def latest(self) -> int | None:
        return None if self.state is None else int(self.state.step)

    def restore(self, like: TrainState, step: int | None = None) -> TrainState:
        return self.state


def guard(policy: NonFinite, saved: TrainState | None = None) -> tuple[Guard, list[str]]:
    said: list[str] = []
    return Guard("run", policy, Remembered(saved), said.append), said


@pytest.mark.parametrize("what", BAD)
def test_stop_names_the_step_and_what_can_be_done(what: str):
    watcher, _ = guard("stop")
    for step in (1, 2):
        watcher.watch(step, health())
    watcher.watch(3, health(*BAD[what]))
    found = {"loss": "the loss is nan", "gradient": "the norm of the gradient is inf"}[what]
    state = state_at(5)
    for step in (4, 5):  # numbers are read two steps later, so that no step waits for them
        assert watcher.checked(state, step, wait=False) is state
        watcher.watch(step, health())
    with pytest.raises(UserError, match=rf"^run: {found} at step 3; lower optim.lr, .*--nonfinite skip or roll_back$"):
        watcher.checked(state, 5, wait=False)


def test_before_saving_every_step_and_every_number_is_checked():
    watcher, _ = guard("skip")
    assert watcher.sound(state_at(1), 1).step == 1
    with pytest.raises(UserError, match="parameters or optimiser state are no longer finite after step 2, and are not"):
        watcher.sound(dataclasses.replace(state_at(2), opt={"mu": jnp.array([1.0, np.inf, 1.0])}), 2)
    watcher, _ = guard("stop")
    watcher.watch(2, health(*BAD["loss"]))
    with pytest.raises(UserError, match="at step 2"):
        watcher.sound(state_at(2), 2)


def test_skip_says_so_and_gives_up_when_nothing_else_happens():
    watcher, said = guard("skip")
    for step in range(1, 2 * MOST_IN_A_ROW):
        watcher.watch(step, health(*BAD["loss"]) if step % 2 else health())
    watcher.checked(state_at(1), 1, wait=True)
    assert len(said) == MOST_IN_A_ROW and said[0] == "run: the loss is nan at step 1: its update is skipped"
    for step in range(MOST_IN_A_ROW):
        watcher.watch(step, health(*BAD["loss"]))
    with pytest.raises(UserError, match=f"at step 98, as for {MOST_IN_A_ROW} steps"):
        watcher.checked(state_at(1), 1, wait=True)


def test_roll_back_returns_to_the_checkpoint_and_leaves_the_batches_out():
    saved = state_at(4, value=7.0)
    watcher, said = guard("roll_back", saved)
    for returns in range(1, MOST_FROM_ONE + 1):
        watcher.watch(9, health(*BAD["loss"]))
        state = watcher.checked(state_at(10), 10, wait=True)
        assert int(state.step) == 10 and float(state.params["w"][0]) == float(state.opt["mu"][0]) == 7.0
        assert len(said) == returns
    assert said[0] == ("run: the loss is nan at step 9: continuing with the state of step 4, without the batches since")
    watcher.watch(12, health(*BAD["loss"]))
    with pytest.raises(UserError, match=f"again after {MOST_FROM_ONE} returns to step 4"):
        watcher.checked(state_at(12), 12, wait=True)
    watcher, _ = guard("roll_back", None)
    watcher.watch(1, health(*BAD["gradient"]))
    with pytest.raises(UserError, match="there is no checkpoint yet to return to"):
        watcher.checked(state_at(1), 1, wait=True)


@dataclasses.dataclass(frozen=True)
class Poisoned(MaskedLM):
    """A masked LM whose loss is not a number on one example."""

    example: int = 0

    def make(self, vocab: Vocab) -> Objective:
        objective = super().make(vocab)

        def loss(apply: Any, params: Any, batch: Any, key: Any) -> Loss:
            found = objective.loss(apply, params, batch, key)
            poison = jnp.where((batch["row"] == self.example).any(), jnp.nan, 1.0)
            return found._replace(terms={n: Sum(t.sum * poison, t.weight) for n, t in found.terms.items()})

        return objective._replace(loss=loss)


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_poisoned_example_stops_is_skipped_or_rolled_back(tiny: Experiment, tmp_path: Path, tokenizer):
    from bertgpt.types import DataRequest

    run = with_overrides(tiny, {"evals": (), "log_every": 1, "save_every": 2, "keep_last": 9, "mesh": Mesh()})
    batches = run.data.make(DataRequest("train", tokenizer, run.batch_size, run.seed, tmp_path / "cache", True))
    seen = [set(batches[i]["row"].tolist()) for i in range(6)]
    (example, *_) = seen[4] - seen[0] - seen[1] - seen[2] - seen[3] - seen[5]  # of step 5 alone
    run = dataclasses.replace(run, objective=Poisoned(pair="nsp", example=example))

    for policy in ("stop", "skip", "roll_back"):
        once = dataclasses.replace(run, name=policy, nonfinite=policy)
        if policy == "stop":
            for _ in range(2):  # the same command resumes from the same checkpoint, and says the same
                with pytest.raises(UserError, match="stop: the loss is nan at step 5; .*--nonfinite skip or roll_back"):
                    train(once, tmp_path)
                assert Checkpoints(tmp_path / "stop").steps() == [2, 4]
            assert train(dataclasses.replace(once, nonfinite="skip"), tmp_path)["nonfinite_steps"] == 1
            continue
        results = train(once, tmp_path)
        assert results["step"] == 6 and results["nonfinite_steps"] == 1
        lines = read_metrics(tmp_path / policy / "metrics.jsonl")
        assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
        assert [line["nonfinite_steps"] for line in lines] == [0, 0, 0, 0, 1, 0]
        assert lines[4]["loss"] is None and lines[5]["loss"] > 0
    saved = {name: Checkpoints(tmp_path / name).read("params") for name in ("stop", "skip", "roll_back")}
    jax.tree.map(np.testing.assert_array_equal, saved["stop"], saved["skip"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved))
