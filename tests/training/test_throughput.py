"""Rates count training steps alone, and of tokens those that are not padding."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from bertgpt.config import VALIDATION, Experiment, Mesh, with_overrides
from bertgpt.data.mixture import Curriculum
from bertgpt.runs.checkpoint import Checkpoints
from bertgpt.training import loop
from bertgpt.training.chips import chip_of
from bertgpt.training.evaluate import Evaluation
from bertgpt.training.log import read_metrics
from bertgpt.training.loop import train
from bertgpt.training.step import count_tokens
from bertgpt.training.throughput import Meter, count_matmul
from bertgpt.types import DataRequest, EvalResult, Metric


class Clock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("bertgpt.training.throughput.time", clock)
    return clock


def test_input_that_comes_while_the_devices_compute_is_not_waited_for(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    meter = Meter(peak=1.0)
    last = jnp.zeros(())
    for ready, seconds in ((False, 2), (True, 1), (False, 1)):
        monkeypatch.setattr(type(last), "is_ready", lambda self, ready=ready: ready)
        with meter.waiting(last):
            clock.now += seconds
    assert meter.lap(flops=0.0, tokens=4)["data_wait"] == 0.25


def test_a_rate_is_tokens_by_the_seconds_that_were_not_paused(clock: Clock):
    meter = Meter(peak=1000.0)
    clock.now += 50  # compilation
    meter.start(tokens=300, seconds=6.0)
    with meter.waiting():
        clock.now += 1  # for input
    clock.now += 3
    with meter.paused():
        clock.now += 70  # evaluation
    with pytest.raises(OSError), meter.paused():
        clock.now += 20
        raise OSError
    for seconds in (2, 5):
        with meter.paused(), meter.saving():
            clock.now += seconds
    assert meter.lap(flops=2000.0, tokens=80) == {
        "tokens": 380, "tokens_per_second": 20.0, "matmul_utilisation": 0.5, "data_wait": 0.25,
        "save_wait": 7.0,
    }  # fmt: skip
    waits = {"saves": 2, "seconds": 7.0, "longest": 5.0}
    assert meter.totals() == {"seconds": 10.0, "tokens": 380, "tokens_per_second": 38.0, "save_wait": waits}
    clock.now += 2
    assert meter.lap(flops=0.0, tokens=40)["tokens_per_second"] == 20.0


def test_tokens_of_an_earlier_session_count_in_total_and_not_in_the_rate(clock: Clock):
    meter = Meter(peak=1.0)
    clock.now += 2
    rates = meter.lap(flops=0.0, tokens=100, carried=300)
    assert (rates["tokens"], rates["tokens_per_second"]) == (400, 50.0)
    assert meter.totals()["seconds"] == 8.0 and meter.totals()["tokens_per_second"] == 50.0


def test_a_pause_begins_when_the_device_has_done_its_steps():
    x = jnp.ones((1500, 1500)) / 1500
    work = jax.jit(lambda x: jax.lax.fori_loop(0, 8, lambda i, y: x @ y, x))
    work(x).block_until_ready()
    start = time.perf_counter()
    work(x).block_until_ready()
    alone = time.perf_counter() - start
    meter = Meter(peak=1.0)
    with meter.paused(after=work(x)):
        time.sleep(0.2)
    meter.lap(flops=0.0, tokens=1)
    assert meter.totals()["seconds"] > 0.3 * alone


def test_tokens_are_counted_by_hand():
    batch = {
        "input_ids": jnp.array([[5, 6, 7, 0], [5, 0, 0, 0]]),
        "segment_ids": jnp.array([[1, 1, 2, 0], [1, 0, 0, 0]]),
        "target_segment_ids": jnp.array([[1, 0], [1, 1]]),
    }
    assert int(count_tokens(batch, ("segment_ids",))) == 4
    assert int(count_tokens(batch, ("segment_ids", "target_segment_ids"))) == 7


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_run_does_not_count_compilation_evaluation_and_saving(
    tiny: Experiment, tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch
):
    pause, slept = 0.5, []

    def sleep() -> None:
        time.sleep(pause)
        slept.append(pause)

    def evaluate(*_: object) -> EvalResult:
        sleep()
        return EvalResult((Metric("loss", 1.0, False),))

    save, flops = Checkpoints.save, loop.step_flops
    monkeypatch.setattr(Evaluation, "evaluate", evaluate)
    monkeypatch.setattr(Checkpoints, "save", lambda *args, **named: (sleep(), save(*args, **named))[1])
    monkeypatch.setattr(loop, "step_flops", lambda *args: (sleep(), flops(*args))[1])  # while a program is compiled
    data = Curriculum(short=dataclasses.replace(tiny.data, seq_len=16), long=tiny.data, switch_step=2)
    run = with_overrides(tiny, {"mesh": Mesh(), "steps": 4, "log_every": 1, "eval_every": 1, "save_every": 1})
    run = dataclasses.replace(run, data=data, evals=(VALIDATION,))
    began = time.perf_counter()
    results = train(run, tmp_path)
    assert len(slept) == 3 + 1 + 3 + 1 + 2  # evaluations and saves, the last of each at the end; two shapes
    assert results["seconds"] < time.perf_counter() - began - sum(slept)

    batches = data.make(DataRequest("train", tokenizer, run.batch_size, run.seed, tmp_path / "cache", True))
    tokens = [int((np.asarray(batches[i]["segment_ids"]) > 0).sum()) for i in range(4)]
    lines = [line for line in read_metrics(tmp_path / "tiny" / "metrics.jsonl") if line["kind"] == "train"]
    assert [line["tokens"] for line in lines] == np.cumsum(tokens).tolist()
    assert results["tokens"] == sum(tokens) < 2 * 16 * 16 + 2 * 16 * 32
    seconds = [count / line["tokens_per_second"] for count, line in zip(tokens, lines, strict=True)]
    assert sum(seconds) == pytest.approx(results["seconds"])


def test_the_kernel_of_a_pallas_call_counts_for_each_point_of_its_grid():
    def product(x: jax.Array, w: jax.Array) -> jax.Array:
        def kernel(x: Any, w: Any, out: Any) -> None:
            out[...] = x[...] @ w[...]

        rows, whole = pl.BlockSpec((8, 16), lambda i: (i, 0)), pl.BlockSpec((16, 32), lambda i: (0, 0))
        shape = jax.ShapeDtypeStruct((64, 32), jnp.float32)
        blocks = pl.BlockSpec((8, 32), lambda i: (i, 0))
        return pl.pallas_call(kernel, shape, grid=(8,), in_specs=[rows, whole], out_specs=blocks)(x, w)

    assert count_matmul(product, jnp.ones((64, 16)), jnp.ones((16, 32))) == 2 * 64 * 16 * 32


@pytest.mark.parametrize(
    "kind, name",
    [
        ("TPU v4", "v4"), ("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v5p", "v5p"), ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"), ("cpu", None),
    ],
)  # fmt: skip
def test_a_device_is_found_in_the_table_of_chips(kind: str, name: str | None):
    chip = chip_of(kind)
    assert (chip.name if chip else None) == name
