"""Steps that are not finite change nothing and are counted; a policy decides; such a state is never saved."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bertgpt.config import Experiment, Mesh, NonFinite, Spikes, with_overrides
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.runs.checkpoint import Checkpoints
from bertgpt.runs.saving import all_finite
from bertgpt.sharding import make_mesh
from bertgpt.training.log import read_metrics
from bertgpt.training.loop import train
from bertgpt.training.nonfinite import MOST_FROM_ONE, MOST_IN_A_ROW, Guard
from bertgpt.training.state import TrainState
from bertgpt.training.step import Health, make_train_step
from bertgpt.training.window import Window
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

    unsound = None

    def __init__(self, state: TrainState | None):
        self.state = state

    def wait(self) -> None:
        pass

    def latest(self) -> int | None:
        return None if self.state is None else int(self.state.step)

    def found(self) -> list[int]:
        return [] if self.state is None else [int(self.state.step)]

    def restore(self, like: TrainState, step: int | None = None, any_experiment: bool = False) -> TrainState:
        assert step == int(self.state.step) and any_experiment
        return self.state


def guard(policy: NonFinite, checkpoint: TrainState | None = None, **options: Any) -> tuple[Guard, list[str]]:
    said: list[str] = []
    return Guard("run", policy, Remembered(checkpoint), said.append, **options), said


@pytest.mark.parametrize("what", BAD)
def test_stop_names_the_step_and_what_can_be_done(what: str):
    watcher, _ = guard("stop")
    for step in (1, 2):
        watcher.watch(step, health())
    watcher.watch(3, health(*BAD[what]))
    found = {"loss": "the loss is nan", "gradient": "the norm of the gradient is inf"}[what]
    state = state_at(5)
    for step in (4, 5):  # numbers are read two steps later, so that no step waits for them
        assert watcher.checked(state, step, wait=False) is None
        watcher.watch(step, health())
    with pytest.raises(UserError, match=rf"^run: {found} at step 3; lower optim.lr, .*--nonfinite skip or roll_back$"):
        watcher.checked(state, 5, wait=False)


def test_before_saving_every_step_and_every_number_is_checked():
    watcher, _ = guard("skip")
    assert watcher.sound(state_at(1), 1, now=True) is None
    bad = dataclasses.replace(state_at(2), opt={"mu": jnp.array([1.0, np.inf, 1.0])})
    message = "parameters or optimiser state are no longer finite after step 2, and are not"
    with pytest.raises(UserError, match=message):
        watcher.sound(bad, 2, now=True)
    assert watcher.sound(bad, 2, now=False) is None
    watcher.checkpoints.unsound = 2  # which the checkpoints notice while they save
    with pytest.raises(UserError, match=message):
        watcher.sound(state_at(3), 3, now=False)
    watcher, _ = guard("stop")
    watcher.watch(2, health(*BAD["loss"]))
    with pytest.raises(UserError, match="at step 2"):
        watcher.sound(state_at(2), 2, now=False)


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
        watcher.watch(10, health())
        state, step, skipped = watcher.checked(state_at(10), 10, wait=True)
        assert int(state.step) == step == 9 and skipped == 5  # step 10 was taken before its predecessor was judged
        assert float(state.params["w"][0]) == float(state.opt["mu"][0]) == 7.0
        assert len(said) == returns
    assert said[0] == ("run: the loss is nan at step 9: continuing with the state of step 4, without the batches since")
    watcher.watch(12, health(*BAD["loss"]))
    with pytest.raises(UserError, match=f"again after {MOST_FROM_ONE} returns to step 4"):
        watcher.checked(state_at(12), 12, wait=True)
    watcher, _ = guard("roll_back", None)
    watcher.watch(1, health(*BAD["gradient"]))
    with pytest.raises(UserError, match="there is no checkpoint yet to return to"):
        watcher.checked(state_at(1), 1, wait=True)


LOSSES = [2.0, 2.1, 1.9, 2.0, 2.1, 1.9, 2.0, 2.1]  # mean 2.0125, standard deviation 0.078


def watched(losses: list[float], **options: float) -> tuple[Guard, list[str]]:
    """A guard that has seen these losses, with a checkpoint every four steps."""
    watcher, said = guard("stop", spikes=Spikes(**{"threshold": 6.0, "window": 8, "rewind": 4} | options))
    for step, loss in enumerate(losses, start=1):
        watcher.watch(step, health(loss))
        assert watcher.checked(state_at(step), step, wait=True) is None
        if step % 4 == 0:
            watcher.checkpoints.state = state_at(step, value=step)
            watcher.saving(step)
    return watcher, said


def test_a_spike_is_a_loss_far_above_those_before_it():
    mean, std = np.mean(LOSSES), np.std(LOSSES)
    for loss, found in ((mean + 5.99 * std, False), (mean + 6.01 * std, True)):
        watcher, _ = watched([3.0, *LOSSES])  # of nine losses the last eight count
        watcher.checkpoints.state = state_at(4)
        watcher.watch(10, health(loss))
        assert (watcher.checked(state_at(10), 10, wait=True) is not None) == found
    for losses, options in ((LOSSES[:7], {}), (LOSSES, {"threshold": 0.0})):  # too few, and not watched
        watcher, said = watched(losses, **options)
        watcher.watch(9, health(1e9))
        assert watcher.checked(state_at(9), 9, wait=True) is None and not said
    watcher, _ = watched([2.0] * 8)  # a loss that does not vary at all
    watcher.watch(9, health(2.1))
    assert watcher.checked(state_at(9), 9, wait=True) is None


def test_a_spike_returns_to_the_last_checkpoint_far_enough_before_it():
    watcher, said = watched([*LOSSES, 2.0, 2.0])
    assert watcher.anchors == [4, 8]
    watcher.checkpoints.state = state_at(4, value=4.0)
    for step, loss in ((11, 9.0), (12, 8.0), (13, 7.0)):
        watcher.watch(step, health(loss))
    state, step, skipped = watcher.checked(state_at(13), 13, wait=False)
    assert (int(state.step), step, skipped, float(state.params["w"][0])) == (11, 11, 7, 4.0)
    assert said == [
        "run: the loss is 9 at step 11, above 2.424: continuing with the state of step 4, without the batches since"
    ]
    # Losses and checkpoints of the steps that were left out do not count any more.
    assert watcher.saving(12) == {
        "skipped": [(4, 11)], "anchors": [4, 12], "losses": list(enumerate(map(float, np.float32(LOSSES[:4])), start=1))
    }  # fmt: skip
    again, _ = guard("stop", spikes=watcher.spikes, saved=json.loads(json.dumps(watcher.saving(12))))
    assert again.saving(12) == watcher.saving(12) and again.skipped == watcher.skipped


def test_a_spike_before_the_first_checkpoint_is_reported_only():
    watcher, said = watched(LOSSES, rewind=9)
    watcher.watch(9, health(9.0))
    assert watcher.checked(state_at(9), 9, wait=True) is None
    assert "there is no checkpoint yet to return to: continuing" in said[0]


def test_a_checkpoint_that_could_not_be_saved_is_not_returned_to():
    watcher, _ = watched(LOSSES)
    assert watcher.anchors == [4, 8]
    watcher.checkpoints.state = state_at(4)  # that of step 8 is not on disk
    watcher.watch(12, health(9.0))
    back = watcher.checked(state_at(12), 12, wait=True)
    assert (back.step, back.skipped) == (12, 8)


@dataclasses.dataclass(frozen=True)
class Poisoned(MaskedLM):
    """A masked LM whose loss is not a number on one example, or many times too high."""

    example: int = 0
    factor: float | None = None

    def make(self, vocab: Vocab) -> Objective:
        objective = super().make(vocab)

        def loss(apply: Any, params: Any, batch: Any, key: Any) -> Loss:
            found = objective.loss(apply, params, batch, key)
            poison = jnp.where((batch["row"] == self.example).any(), self.factor or jnp.nan, 1.0)
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


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_spike_is_rolled_back_to_the_same_bits_however_often_the_run_is_interrupted(
    tiny: Experiment, tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch
):
    """The loss of step 9 is 30 times too high: the run returns to step 6 of 3, 6 and 9."""
    from bertgpt.types import DataRequest

    changes = {
        "evals": (),
        "steps": 12,
        "log_every": 2,
        "save_every": 5,
        "keep_last": 2,
        "mesh": Mesh(),
        "optim.lr": 0.01,
    }
    run = with_overrides(tiny, changes)
    batches = run.data.make(DataRequest("train", tokenizer, run.batch_size, run.seed, tmp_path / "cache", True))
    seen = [set(batches[i]["row"].tolist()) for i in range(12)]
    (example, *_) = seen[8].difference(*seen[:8], *seen[9:])  # of step 9 alone
    plain = dataclasses.replace(run, objective=Poisoned(pair="nsp", example=example, factor=30.0))
    run = dataclasses.replace(plain, spikes=Spikes(threshold=6.0, window=4, rewind=3))

    whole = train(run, tmp_path / "whole")
    assert whole["skipped_batches"] == 3 and whole["step"] == 12
    said = (tmp_path / "whole" / "tiny" / "train.log").read_text()
    assert "at step 9, above " in said and said.count("continuing with the state of step 6, without the batches") == 1

    # By hand: the state of step 6 as that of step 9.
    train(plain, tmp_path / "hand", stop_after=6)
    checkpoints = Checkpoints(tmp_path / "hand" / "tiny", plain)
    params, opt = (jax.tree.map(jnp.asarray, checkpoints.read(item)) for item in ("params", "opt"))
    checkpoints.save(TrainState(jnp.array(9), params, opt), wait=True)
    checkpoints.close()
    train(plain, tmp_path / "hand")

    once = None
    while once is None or once["stopped"] == "stop_after":  # stopped after every step, and saved
        once = train(run, tmp_path / "stopped", stop_after=1)

    add, dying = (
        Window.add,
        iter((4, 8, 10, 11, 7, 3, 99)),
    )  # steps of each session, nothing of which is saved at its end

    def dies(window: Window, *args: Any) -> None:
        window.left -= 1
        if not window.left:
            raise RuntimeError
        add(window, *args)

    monkeypatch.setattr(Window, "add", dies)
    for left in dying:
        monkeypatch.setattr(Window, "left", left, raising=False)
        with contextlib.suppress(RuntimeError):
            killed = train(run, tmp_path / "killed")

    for name, results in (("stopped", once), ("killed", killed), ("hand", None)):
        for item in ("params", "opt"):
            saved = [Checkpoints(tmp_path / kind / "tiny").read(item, 12) for kind in ("whole", name)]
            jax.tree.map(np.testing.assert_array_equal, *saved)
        if results is not None:
            assert results["skipped_batches"] == 3
            lines = [read_metrics(tmp_path / kind / "tiny" / "metrics.jsonl") for kind in ("whole", name)]
            kept = ("step", "loss", "skipped_batches")
            assert [[line[key] for key in kept] for line in lines[0]] == [
                [line[key] for key in kept] for line in lines[1]
            ]
