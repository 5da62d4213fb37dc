"""Checkpoints: which are kept, what damage looks like, and what starting from another model takes."""

import contextlib
import dataclasses
import errno
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.adaptation.init_from import load_pretrained
from bertgpt.config import Experiment, with_overrides
from bertgpt.io.checksums import read_sealed, sealed
from bertgpt.io.files import CannotWrite, publish, write_json
from bertgpt.runs.checkpoint import Checkpoints
from bertgpt.runs.directory import open_run
from bertgpt.training.state import TrainState
from bertgpt.types import UserError


def state(step: int) -> TrainState:
    params = {"kernel": jnp.full((2, 3), step, jnp.float32), "bias": jnp.ones(3)}
    return TrainState(jnp.asarray(step, jnp.int32), params, {"mu": jax.tree.map(jnp.zeros_like, params)})


def save(run: Path, experiment: Experiment, losses: list[float | None]) -> None:
    checkpoints = Checkpoints(run, experiment)
    for step, loss in enumerate(losses, start=1):
        checkpoints.save(state(step), None if loss is None else {"validation/loss": loss, "validation/accuracy": -loss})
    checkpoints.close()


def kept(run: Path) -> list[int]:
    return Checkpoints(run).steps()


def test_the_last_and_the_best_are_kept(tiny: Experiment, tmp_path: Path):
    losses = [3.0, 1.0, 2.0, 5.0, None, 4.0]
    save(tmp_path / "low", with_overrides(tiny, {"keep_last": 2, "keep_best": 2}), losses)
    assert kept(tmp_path / "low") == [2, 3, 5, 6]
    high = {"keep_last": 1, "keep_best": 1, "best_metric": "validation/accuracy", "best_mode": "max"}
    save(tmp_path / "high", with_overrides(tiny, high), losses)
    assert kept(tmp_path / "high") == [2, 6]
    save(tmp_path / "last", tiny, losses)
    assert kept(tmp_path / "last") == [5, 6]


def test_what_is_restored_is_what_was_saved(tiny: Experiment, tmp_path: Path):
    save(tmp_path, with_overrides(tiny, {"keep_last": 3}), [1.0, 1.0, 1.0])
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore(state(0), step=2)
    jax.tree.map(np.testing.assert_array_equal, restored, state(2))
    np.testing.assert_array_equal(checkpoints.read("params")["kernel"], np.full((2, 3), 3.0))
    assert isinstance(checkpoints.read("opt")["mu"]["bias"], np.ndarray)


def test_ctrl_c_while_a_checkpoint_is_read_is_not_taken_for_damage(tiny: Experiment, tmp_path: Path):
    save(tmp_path, tiny, [1.0])
    checkpoints = Checkpoints(tmp_path)
    checkpoints.read("params")
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for moment in range(1, 21):
            with contextlib.suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, moment * 2e-3)
                checkpoints.read("params")
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_missing_checkpoint_is_named(tiny: Experiment, tmp_path: Path):
    with pytest.raises(UserError, match="checkpoints: holds no complete checkpoint"):
        Checkpoints(tmp_path).read("params")
    save(tmp_path, tiny, [1.0])
    with pytest.raises(UserError, match="no checkpoint of step 7; there is 1"):
        Checkpoints(tmp_path).read("params", 7)


def cut_short(directory: Path) -> None:
    """Truncates every array file."""
    files = [file for file in directory.rglob("*") if file.is_file() and "/d/" in str(file)]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("harm", [cut_short, lambda directory: shutil.rmtree(directory / "params")])
def test_a_damaged_checkpoint_is_refused_in_one_line(tiny: Experiment, tmp_path: Path, harm):
    save(tmp_path, tiny, [1.0])
    harm(tmp_path / "checkpoints" / "1")
    for use in (lambda c: c.read("params"), lambda c: c.restore(state(0))):
        with pytest.raises(UserError, match=r"checkpoints.1: ") as caught:
            use(Checkpoints(tmp_path))
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def harms(content: bytes, rng: np.random.Generator) -> Iterator[bytes | None]:
    """A file's content after each kind of damage; None: the file is deleted."""
    yield None
    if content:
        yield b""
        yield content[: len(content) // 2]
        flipped = np.frombuffer(content, np.uint8).copy()
        flipped[rng.integers(len(content))] ^= 1 << rng.integers(8)
        yield flipped.tobytes()


def test_damage_of_any_file_is_noticed_and_the_checkpoint_before_is_used(
    tiny: Experiment, tmp_path: Path, rng: np.random.Generator
):
    save(tmp_path, with_overrides(tiny, {"keep_last": 2}), [1.0, 1.0])
    newest = tmp_path / "checkpoints" / "2"
    files = [file for file in newest.rglob("*") if file.is_file()]
    tried = 0
    for file in files:
        content = file.read_bytes()
        for harm in harms(content, rng):
            file.unlink() if harm is None else file.write_bytes(harm)
            checkpoints = Checkpoints(tmp_path)
            assert checkpoints.latest() == 1, file
            with pytest.raises(UserError, match="2: is damaged: ") as caught:
                checkpoints.restore(state(0), step=2)
            assert "\n" not in str(caught.value) and file.name in str(caught.value)
            file.write_bytes(content)
            tried += 1
    assert tried > 60 and Checkpoints(tmp_path).latest() == 2


def test_a_save_that_fails_leaves_the_one_before_and_says_why(tiny: Experiment, tmp_path: Path, rng, capfd):
    checkpoints = Checkpoints(tmp_path, tiny)
    checkpoints.save(state(1))
    checkpoints.wait()
    large = dataclasses.replace(state(2), params={"kernel": jnp.asarray(rng.normal(size=(100, 1000)))})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        checkpoints.save(large)
        with pytest.raises(CannotWrite, match="checkpoints/2: cannot be saved: File too large$"):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["1"]
    assert "Traceback" not in capfd.readouterr().err
    checkpoints.save(large)
    checkpoints.close()
    assert kept(tmp_path) == [1, 2]


def test_the_newest_intact_checkpoint_is_used_and_the_damaged_ones_are_named(tiny: Experiment, tmp_path: Path, caplog):
    save(tmp_path, with_overrides(tiny, {"keep_last": 3}), [1.0, 1.0, 1.0])
    folder = tmp_path / "checkpoints"
    cut_short(folder / "3")
    (folder / "2" / "checkpoint.json").unlink()  # orbax's own mark is left
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [1, 2, 3] and checkpoints.latest() == 1
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2 and all(f"the checkpoint before it is used: {folder / '1'}" in line for line in lines)
    assert f"{folder / '3'}: is damaged (" in lines[0] and f"{folder / '2'}: is damaged (" in lines[1]
    assert int(checkpoints.restore(state(0)).step) == checkpoints.read_step("params")[0] == 1
    assert len(caplog.records) == 2  # each is named once
    with pytest.raises(UserError, match=r"checkpoints/3: is damaged: params/d/.* bytes, not"):
        Checkpoints(tmp_path).read("params", step=3)
    # A damaged checkpoint is not counted among those kept, and is removed or written again.
    resumed = Checkpoints(tmp_path, with_overrides(tiny, {"keep_last": 2}))
    assert resumed.latest() == 1
    resumed.save(state(2))
    resumed.close()
    assert kept(tmp_path) == [1, 2]
    jax.tree.map(np.testing.assert_array_equal, Checkpoints(tmp_path).restore(state(0)), state(2))


def test_a_state_that_is_not_finite_is_not_saved_and_not_used(tiny: Experiment, tmp_path: Path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, with_overrides(tiny, {"keep_last": 2}))
    checkpoints.save(state(1))
    bad = state(2)
    bad = dataclasses.replace(bad, params=bad.params | {"bias": jnp.array([0.0, jnp.nan, 0.0])})
    checkpoints.save(bad)
    checkpoints.wait()
    assert checkpoints.unsound == 2 and [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["1"]
    with monkeypatch.context() as patch:
        patch.setattr("bertgpt.runs.saving.all_finite", lambda tree: jnp.array(True))  # as an old version did
        checkpoints.save(bad)
        checkpoints.close()
    assert kept(tmp_path) == [1, 2]
    assert checkpoints.restore(state(0)).step == 1 and checkpoints.unsound is None
    assert int(Checkpoints(tmp_path).restore(state(0)).step) == Checkpoints(tmp_path).read_step("params")[0] == 1
    with pytest.raises(UserError, match="2: is damaged: holds numbers that are not finite"):
        Checkpoints(tmp_path).restore(state(0), step=2)


def failing(number: int, times: int, calls: list[str], call: Callable[..., Any]) -> Callable[..., Any]:
    """A function that raises an error of the operating system this many times before it works."""

    def failing(*args: Any, **named: Any) -> Any:
        calls.append(str(args[0]))
        if len(calls) <= times:
            raise OSError(number, os.strerror(number))
        return call(*args, **named)

    return failing


@pytest.mark.parametrize(
    "what, number",
    [
        ("bertgpt.runs.checkpoint.publish", errno.EIO),
        ("bertgpt.runs.saving.start_saving", errno.ESTALE),
        ("os.fsync", errno.ETIMEDOUT),
    ],
)
def test_a_save_that_fails_for_a_while_is_made_up_for(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog, what: str, number: int
):
    for module in ("bertgpt.runs.saving", "bertgpt.io.retry"):
        monkeypatch.setattr(f"{module}.FIRST", 0.01)
    checkpoints = Checkpoints(tmp_path, tiny)
    checkpoints.save(state(1), wait=True)
    module, _, name = what.rpartition(".")
    calls: list[str] = []
    monkeypatch.setattr(what, failing(number, 2, calls, vars(sys.modules[module])[name]))
    for step in range(2, 3000):  # of training, which goes on
        if step == 2 or checkpoints.is_due():
            checkpoints.save(state(step))
        assert 1 in kept(tmp_path)
        if kept(tmp_path) != [1]:
            break
        time.sleep(0.02)
    checkpoints.wait()
    step = max(kept(tmp_path))
    assert not checkpoints.is_due() and len(calls) >= 3 and kept(tmp_path) == [1, step]
    (warning,) = caplog.records
    assert "checkpoints/" in warning.getMessage() and os.strerror(number) in warning.getMessage()
    jax.tree.map(np.testing.assert_array_equal, Checkpoints(tmp_path).restore(state(0)), state(step))
    calls.clear()
    checkpoints.save(state(3000), wait=True)  # the last state is saved again, as there is no later one
    assert len(calls) >= 3 and kept(tmp_path) == [step, 3000]
    checkpoints.close()


@pytest.mark.parametrize("number, patience", [(errno.ENOSPC, 120.0), (errno.EACCES, 120.0), (errno.EIO, 0.0)])
def test_what_does_not_pass_is_an_error_at_once_and_the_rest_after_a_while(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, patience: float
):
    for module in ("bertgpt.runs.saving", "bertgpt.io.retry"):
        monkeypatch.setattr(f"{module}.PATIENCE", patience)
    checkpoints = Checkpoints(tmp_path, tiny)
    checkpoints.save(state(1), wait=True)
    calls: list[str] = []
    monkeypatch.setattr("bertgpt.runs.checkpoint.publish", failing(number, 9, calls, publish))
    message = f"checkpoints/2: cannot be saved: {re.escape(os.strerror(number))}$"
    start = time.monotonic()
    with pytest.raises(CannotWrite, match=message):
        checkpoints.save(state(2), wait=True)
    with pytest.raises(CannotWrite, match=message):
        for _ in range(3):
            checkpoints.save(state(2))
            time.sleep(0.01)
            checkpoints.wait()
    assert time.monotonic() - start < 60 and len(calls) <= 4
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["1"]
    monkeypatch.undo()
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, Checkpoints(tmp_path).restore(state(0)), state(1))


def test_the_best_survives_a_restart(tiny: Experiment, tmp_path: Path):
    experiment = with_overrides(tiny, {"keep_last": 1, "keep_best": 1})
    save(tmp_path, experiment, [3.0, 1.0, 2.0])
    resumed = Checkpoints(tmp_path, experiment)
    for step in (4, 5):
        resumed.save(state(step))
        resumed.add_metrics(step, {"validation/loss": float(step)})
    resumed.close()
    assert kept(tmp_path) == [2, 5]
    assert Checkpoints(tmp_path).metrics(2) == {"validation/loss": 1.0, "validation/accuracy": -1.0}


def test_a_save_that_was_cut_off_does_not_count(tiny: Experiment, tmp_path: Path):
    save(tmp_path, tiny, [1.0])
    folder, cut_off = tmp_path / "checkpoints", (".2.partial", ".2.partial.orbax-checkpoint-tmp")
    foreign = (".2.partial.mine", "notes", "02", ".x.partial")
    for name in cut_off + foreign:
        shutil.copytree(folder / "1", folder / name)
    assert Checkpoints(tmp_path).steps() == [1]
    Checkpoints(tmp_path, tiny).close()
    assert sorted(entry.name for entry in folder.iterdir()) == sorted(("1", *foreign))


def test_a_folder_of_the_user_is_no_checkpoint_and_is_not_removed(tiny: Experiment, tmp_path: Path):
    notes = [tmp_path / "checkpoints" / name / "notes.txt" for name in ("99", "4")]
    for path in notes:
        path.parent.mkdir(parents=True)
        path.touch()
    save(tmp_path, tiny, [1.0, 1.0, 1.0])
    assert kept(tmp_path) == [2, 3]
    checkpoints = Checkpoints(tmp_path, tiny)
    checkpoints.save(state(4))
    with pytest.raises(CannotWrite, match="checkpoints/4: is in the way, and no checkpoint of this run; move it away"):
        checkpoints.close()
    assert kept(tmp_path) == [2, 3] and all(path.exists() for path in notes)


def test_a_checkpoint_of_another_experiment_is_refused_by_name(tiny: Experiment, tmp_path: Path, caplog):
    runs = [tmp_path / name for name in ("a", "b")]
    for run, experiment in zip(runs, (tiny, with_overrides(tiny, {"seed": 1, "optim.lr": 0.5})), strict=True):
        open_run(run, experiment)
        save(run, experiment, [1.0])
    assert int(Checkpoints(runs[0]).restore(state(0)).step) == 1
    shutil.rmtree(runs[0] / "checkpoints")
    shutil.copytree(runs[1] / "checkpoints", runs[0] / "checkpoints")
    message = "a/checkpoints/1: is of another experiment: optim.lr was 0.5, here 0.001; seed was 1, here 0"
    with pytest.raises(UserError, match=f"{message}; move it away, or continue with --accept_changed_inputs"):
        Checkpoints(runs[0]).restore(state(0))
    assert int(Checkpoints(runs[0]).restore(state(0), any_experiment=True).step) == 1
    assert not caplog.records
    Checkpoints(runs[0]).read("params")  # somebody may have edited experiment.json
    assert message in caplog.records[0].getMessage()
    # Fields that do not change what is computed may differ, and old checkpoints do not say.
    open_run(runs[1], with_overrides(tiny, {"seed": 1, "optim.lr": 0.5, "log_every": 7}))
    assert int(Checkpoints(runs[1]).restore(state(0)).step) == 1
    path = runs[0] / "checkpoints" / "1" / "checkpoint.json"
    write_json(path, sealed({name: value for name, value in read_sealed(path).items() if name != "experiment"}))
    assert int(Checkpoints(runs[0]).restore(state(0)).step) == 1


def test_restoring_into_other_shapes_is_refused(tiny: Experiment, tmp_path: Path):
    save(tmp_path, tiny, [1.0])
    other = TrainState(jnp.zeros((), jnp.int32), {"kernel": jnp.zeros((4, 3))}, {"mu": {"kernel": jnp.zeros((4, 3))}})
    with pytest.raises(UserError, match="1: cannot be restored: opt/mu/bias has .* there, but is missing here"):
        Checkpoints(tmp_path).restore(other)
    params = {"kernel": jnp.zeros((4, 3)), "bias": jnp.ones(3)}
    other = dataclasses.replace(state(0), params=params)
    message = r"params/kernel has shape \(2, 3\) and type float32 there, but has shape \(4, 3\) and type float32 here"
    with pytest.raises(UserError, match=message):
        Checkpoints(tmp_path).restore(other)


def test_adopting_takes_what_fits_by_name_and_reports_the_rest():
    here = {"encoder": {"kernel": jnp.zeros((2, 2))}, "classifier": {"bias": jnp.full(3, 7.0)}}
    there = {"encoder": {"kernel": np.ones((2, 2), np.float32)}, "mlm_head": {"bias": np.ones(9, np.float32)}}
    params, report = load_pretrained(here, there)
    np.testing.assert_array_equal(params["encoder"]["kernel"], np.ones((2, 2)))
    np.testing.assert_array_equal(params["classifier"]["bias"], np.full(3, 7.0))
    assert report == {
        "loaded": ["encoder/kernel"],
        "initialised": ["classifier/bias"],
        "unused": ["mlm_head/bias"],
    }


def test_adopting_a_tensor_of_another_shape_is_refused():
    with pytest.raises(UserError, match=r"init_from: kernel has shape \(3, 2\) there but \(2, 2\) in this model"):
        load_pretrained({"kernel": jnp.zeros((2, 2))}, {"kernel": np.zeros((3, 2))})
