"""The one training loop. It knows no model, no objective and no task: all three arrive as values.

What one update computes is in `step`; here is what a run does: find its data and tokenizer, decide how to start, train,
evaluate, save, stop cleanly, and leave a directory that is complete.
"""

import contextlib
import dataclasses
import functools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bertgpt.adaptation.freezing import separate, size
from bertgpt.adaptation.init_from import check_labels, load_pretrained, weights_for
from bertgpt.checkpoint import Checkpoints, load_experiment, open_run
from bertgpt.config import Experiment, infer
from bertgpt.data.loader import prefetch
from bertgpt.data.tokenizer import Tokenizer, load_tokenizer
from bertgpt.inference.model import Model, build_apply, find_model, find_optional, label_sets, load, tokenizer_folder
from bertgpt.inference.predict import warnings_of
from bertgpt.io import read_json, write_json
from bertgpt.sharding import make_mesh, put_batch
from bertgpt.training.evaluate import evaluations, score_baselines
from bertgpt.training.log import RunLog, means, read_metrics
from bertgpt.training.state import NOISE, init_state, stream
from bertgpt.training.step import loss_and_grads, make_train_step
from bertgpt.training.throughput import Meter, count_matmul, peak_rate
from bertgpt.types import Apply, Batch, DataRequest, Objective, Sum, UserError


def find_tokenizer(experiment: Experiment, run: Path, workdir: Path) -> Tokenizer:
    """The run's own tokenizer if it has one, else the one its data names, else that of `init_from`, else a new one."""
    wanted = experiment.data.tokenizer
    if (run / "tokenizer").exists():
        return load_tokenizer(run / "tokenizer")
    if wanted is None and experiment.init_from is None:
        raise UserError("data.tokenizer=None needs init_from, whose tokenizer it takes")
    if wanted is None or isinstance(wanted, str):
        name = experiment.init_from if wanted is None else wanted
        must_be_model = wanted is None or name.startswith("package:")
        folder = find_model(name, workdir) if must_be_model else find_optional(name, workdir)
        tokenizer = load_tokenizer(name if folder is None else tokenizer_folder(folder))
    else:
        tokenizer = experiment.data.train_tokenizer()
    run.mkdir(parents=True, exist_ok=True)
    tokenizer.save(run / "tokenizer")
    return tokenizer


def with_model(experiment: Experiment, run: Path, workdir: Path) -> tuple[Experiment, Model | None]:
    """With the architecture of `init_from` where the experiment names none, and the weights if they had to be read.

    Raises:
      UserError: the experiment names neither a model nor `init_from`.
    """
    if experiment.model is not None:
        return experiment, None
    if (run / "experiment.json").exists() and Checkpoints(run).latest() is not None:
        return dataclasses.replace(experiment, model=load_experiment(run).model), None
    if experiment.init_from is None:
        raise UserError("model=None needs init_from, whose architecture it takes")
    pretrained = load(find_model(experiment.init_from, workdir), arrange="host")
    config = pretrained.config.main
    return dataclasses.replace(experiment, model=config), pretrained


def check_fit(experiment: Experiment, tokenizer: Tokenizer, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError where parts of the experiment do not fit together."""
    if tokenizer.vocab.size > experiment.model.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab.size} tokens but model.vocab_size={experiment.model.vocab_size}"
        )
    if experiment.data.seq_len > experiment.model.max_len:
        raise UserError(f"data.seq_len={experiment.data.seq_len} exceeds model.max_len={experiment.model.max_len}")
    form, kind = getattr(experiment.objective, "architecture", None), experiment.model.architecture
    if form not in (None, kind):
        names = type(experiment.objective).__name__, type(experiment.model).__name__
        raise UserError(f"objective: {names[0]} is for a model of form {form}, but {names[1]} is one of form {kind}")
    types, known = getattr(experiment.data, "num_types", 1), experiment.model.num_types
    if types > max(known, 1):
        raise UserError(
            f"data: {type(experiment.data).__name__} marks words by {types} token types, but model.num_types={known}"
        )
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if experiment.batch_size % (ways * experiment.microbatches):
        raise UserError(
            f"batch_size={experiment.batch_size} is not divisible by {ways} devices (data × fsdp)"
            f" × {experiment.microbatches} microbatches"
        )


def check_rows(batch: Mapping[str, np.ndarray], experiment: Experiment, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError if the rows of some array, such as a task's, cannot be shared out."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"] * experiment.microbatches
    for name, array in batch.items():
        if len(array) % ways:
            raise UserError(
                f"batch_size={experiment.batch_size}: {len(array)} rows of {name} are not divisible by"
                f" {ways} (data × fsdp × microbatches)"
            )


@contextlib.contextmanager
def rows_suit(experiment: Experiment, batch: Mapping[str, np.ndarray]) -> Iterator[None]:
    """Raises UserError if within it the objective asks for an array that the batch does not have."""
    try:
        yield
    except KeyError as error:
        if error.args[0] in batch:
            raise
        names = type(experiment.objective).__name__, type(experiment.data).__name__
        raise UserError(
            f"objective: {names[0]} needs {error.args[0]!r}, which rows of {names[1]} do not have"
        ) from None


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], int | None]]:
    """Within it, SIGTERM and Ctrl-C do not kill but are remembered: the function tells which came, or None.

    A second Ctrl-C interrupts at once. Off the main thread (a notebook's worker) signals are left alone.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def remember(number: int, frame: Any) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: caught[0] if caught else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(
    experiment: Experiment,
    workdir: str | Path = "runs",
    stop_after: int | None = None,
    report: Callable[[int, dict[str, dict[str, float]]], bool] | None = None,
) -> dict[str, Any]:
    """Carries out an experiment in `workdir/<name>` and returns its results; a run already begun goes on, bit for bit.

    How to start, in this order: resume this run's newest checkpoint › weights of `init_from` › from scratch.

    Args:
      experiment: what to do.
      workdir: folder that holds the runs.
      stop_after: stop, saved, after this many updates of this call; the schedule is not changed.
      report: told (step, name → metrics) after each evaluation but the last; True stops the run, saved.

    Returns:
      The content of results.json; its "stopped" is None, "stop_after", "report", or the name of the signal that ended
      it early.

    Raises:
      UserError: something its user can mend; see the message.
    """
    workdir = Path(workdir)
    run = workdir / experiment.name
    mesh = make_mesh(experiment.mesh)
    experiment, pretrained = with_model(experiment, run, workdir)
    experiment = infer(experiment)
    open_run(run, experiment)
    checkpoints = Checkpoints(run, experiment)
    try:
        if checkpoints.latest() == experiment.steps and (run / "results.json").exists():
            return read_json(run / "results.json")
        with jax.set_mesh(mesh):
            return _train(experiment, pretrained, workdir, run, mesh, checkpoints, stop_after, report)
    finally:
        checkpoints.close()


def _train(
    experiment: Experiment,
    pretrained: Model | None,
    workdir: Path,
    run: Path,
    mesh: jax.sharding.Mesh,
    checkpoints: Checkpoints,
    stop_after: int | None,
    report: Callable[[int, dict[str, dict[str, float]]], bool] | None,
) -> dict[str, Any]:
    tokenizer = find_tokenizer(experiment, run, workdir)
    check_fit(experiment, tokenizer, mesh)
    batches = experiment.data.make(
        DataRequest(
            split="train",
            seed=experiment.seed,
            batch_size=experiment.batch_size,
            tokenizer=tokenizer,
            cache=workdir / "cache",
            shuffle=True,
        )
    )
    first = batches[0]
    check_rows(first, experiment, mesh)
    place = functools.partial(put_batch, mesh=mesh)

    # Build.
    module = experiment.model.make(experiment.compute_dtype)
    apply, objective = build_apply(module, experiment.lora), experiment.objective.make(tokenizer.vocab)
    held_out = evaluations(experiment, apply, tokenizer, workdir / "cache")
    tx, schedule = experiment.optim.make(experiment.steps)
    batch = place(first)
    with rows_suit(experiment, first):
        state, shardings = init_state(
            *(module, objective, tx, batch, mesh, experiment.seed, experiment.trainable, experiment.lora)
        )

    # Decide how to start: this run › init_from › scratch.
    start, loading = checkpoints.latest() or 0, None
    if start:
        state = checkpoints.restore(state)
    elif experiment.init_from is not None:
        source = pretrained or load(find_model(experiment.init_from, workdir), arrange="host")
        params, loading = load_pretrained(
            state.params,
            weights_for(experiment.model, source.config, source.params, source.path),
            (experiment.model.vocab_size, source.config.vocab_size),
            experiment.reinitialize,
        )
        source_labels = {"": source.labels} if source.experiment is None else label_sets(source.experiment.data)
        check_labels(label_sets(experiment.data), source_labels, experiment.init_from, loading["loaded"])
        state = dataclasses.replace(state, params=params)

    # Compile.
    train_step = make_train_step(
        *(objective, apply, tx, schedule, shardings),
        seed=experiment.seed, microbatches=experiment.microbatches, trainable=experiment.trainable,
    )  # fmt: skip
    programs: dict[tuple, tuple[Callable[..., Any], int]] = {}

    def program_for(batch: Batch) -> tuple[Callable[..., Any], int]:
        """The update compiled for batches of these shapes, and its matmul FLOPs: a curriculum has several shapes."""
        shapes = tuple((name, array.shape) for name, array in batch.items())
        if shapes not in programs:
            flops = step_flops(experiment, objective, apply, state.params, batch)
            programs[shapes] = train_step.lower(state, batch).compile(), flops
        return programs[shapes]

    batch = place(batches[start if start < experiment.steps else 0])
    clock = time.perf_counter()
    _, flops = program_for(batch)
    compile_seconds = time.perf_counter() - clock
    datasets = {"train": batches.dataset} | {e.item.name: e.batches.dataset for e in held_out}
    meter = Meter(peak_rate(), tokens_before(run, start))
    facts = {
        "name": experiment.name,
        "parameters": size(state.params),
        "trained_parameters": size(separate(state.params, experiment.trainable)[0]),
        "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "steps_per_epoch": batches.steps_per_epoch,
        "notes": {name: [warning.text for warning in warnings_of(dataset)] for name, dataset in datasets.items()},
    }

    last = experiment.steps if stop_after is None else min(experiment.steps, start + stop_after)
    with (
        RunLog(run, total_steps=experiment.steps, start_step=start, name=experiment.name) as log,
        stop_signals() as stopped_by,
    ):
        log.message(
            f"{experiment.name}: {facts['trained_parameters']:,} of {facts['parameters']:,} parameters trained on"
            f" {facts['device']};"
            f" {batches.steps_per_epoch:,} steps an epoch; {flops / 1e9:.2f} GFLOP of matmul a step,"
            f" peak {meter.peak / 1e9:,.0f} GFLOP/s; compiled in {compile_seconds:.1f} s"
        )
        if labels := getattr(experiment.data, "labels", ()):
            shown = ", ".join([*labels[:20], *["…"] * (len(labels) > 20)])
            log.message(f"{experiment.name}: {len(labels)} labels: {shown}")
        for name, dataset in datasets.items():
            for warning in warnings_of(dataset):
                log.message(f"{experiment.name}: {name}: {warning.text}")
        if loading is not None:
            log.message(f"{experiment.name}: weights from {experiment.init_from}: " + describe_loading(loading))
        if start:
            log.message(f"{experiment.name}: goes on after step {start:,}")

        def run_evals(final: bool) -> dict[str, dict[str, float]]:
            scores = {}
            for evaluation in held_out:
                name = evaluation.item.name
                if final or not evaluation.item.final_only:
                    scores[name] = evaluation.score(state.params, mesh)
                    log.eval(int(state.step), name, scores[name])
            return scores

        def save(scores: dict[str, dict[str, float]]) -> None:
            checkpoints.save(
                state, {f"{name}/{metric}": v for name, values in scores.items() for metric, v in values.items()}
            )

        # Train.
        pending: list[dict[str, Sum]] = []
        work = 0
        feed = prefetch(batches, start, last, place)
        for done in range(start + 1, last + 1):
            with meter.waiting():
                batch = next(feed)
            with meter.paused():
                update, flops = program_for(batch)
            state, metrics = update(state, batch)
            pending.append(metrics)
            work += flops
            stopping = done == last or stopped_by() is not None
            if done % experiment.log_every == 0 or stopping:
                log.train(done, summarise(experiment.name, done, pending, meter, work))
                pending, work = [], 0
            if stopping:
                break
            with meter.paused():
                scores = run_evals(final=False) if is_due(done, experiment.eval_every) else {}
                if is_due(done, experiment.save_every):
                    save(scores)
                if scores and report is not None and report(done, scores):
                    break

        # Finish.
        step = int(state.step)
        scores = {}
        try:
            scores = run_evals(final=True) if step == experiment.steps else {}
        finally:
            save(scores)  # whatever an evaluation ran into
        results = facts | meter.totals() | {"step": step, "evals": scores, "stopped": None}
        if step < experiment.steps:
            ended = "stop_after" if step == last else "report"
            return results | {"stopped": signal.Signals(stopped_by()).name if stopped_by() else ended}
        results["baselines"] = score_baselines(experiment, batches, held_out)
    write_json(run / "results.json", results)
    return results


def is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def tokens_before(run: Path, start: int) -> int:
    """Non-padding tokens that the run has seen up to step `start`, from its log."""
    lines = read_metrics(run / "metrics.jsonl") if start and (run / "metrics.jsonl").exists() else []
    return max((line["tokens"] for line in lines if line["kind"] == "train" and line["step"] <= start), default=0)


def step_flops(experiment: Experiment, objective: Objective, apply: Apply, params: Any, batch: Batch) -> int:
    """Matmul FLOPs of one update: one microbatch's loss and gradient, times their number."""
    piece = jax.tree.map(lambda x: x[: x.shape[0] // experiment.microbatches], batch)

    def update(params: Any, piece: Batch, key: Any) -> Any:
        return loss_and_grads(objective, apply, params, objective.prepare(key, piece), key, 1, experiment.trainable)

    return experiment.microbatches * count_matmul(update, params, piece, stream(experiment.seed, NOISE, 0))


def summarise(name: str, step: int, pending: list[dict[str, Sum]], meter: Meter, flops: int) -> dict[str, float]:
    """Means over the updates since the last call, which took `flops`, fetched from the device at once.

    Raises:
      UserError: the loss is no longer finite; nothing is saved, so the last checkpoint is sound.
    """
    host = jax.device_get(pending)
    totals = jax.tree.map(lambda *xs: np.sum(np.asarray(xs, np.float64), axis=0), *host)
    tokens = totals.pop("tokens").sum
    values = means(totals)
    if not math.isfinite(values["loss"]):
        raise UserError(
            f"{name}: the loss is {values['loss']} at step {step}; lower optim.lr, or clip with optim.clip_norm"
        )
    return values | meter.lap(flops, int(tokens))


def describe_loading(report: dict[str, list[str]]) -> str:
    loaded, fresh, unused = report["loaded"], report["initialised"], report["unused"]
    return f"{len(loaded)} tensors loaded; new: {', '.join(fresh) or 'none'}; not used: {', '.join(unused) or 'none'}"
