"""The one training loop. It knows no model, no objective and no task: all three arrive as values.

`train` reads from top to bottom: open the run, make the data, build, decide how to start, compile, train, finish. What
one step computes is in `step`.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from bertgpt.adaptation.freezing import count_parameters, separate
from bertgpt.checkpoint import Checkpoints
from bertgpt.config import Experiment, infer, with_steps
from bertgpt.data.loader import prefetch
from bertgpt.inference.model import build_apply, label_sets
from bertgpt.io import read_json, write_json
from bertgpt.run_directory import lock_run, open_run
from bertgpt.sharding import make_mesh, put_batch
from bertgpt.training.checks import check_batch, check_fit
from bertgpt.training.evaluate import directions_of, evaluations, score_baselines, values_of
from bertgpt.training.log import RunLog, means, tokens_before
from bertgpt.training.signals import stop_signals
from bertgpt.training.start import find_architecture, find_tokenizer, init_from
from bertgpt.training.state import init_state
from bertgpt.training.step import compile_by_shape, make_train_step, step_flops
from bertgpt.training.throughput import Meter, peak_rate
from bertgpt.types import DataRequest, DataWarning, EvalResult, JsonObject, Labels, Sum, UserError


def train(
    experiment: Experiment,
    workdir: str | Path = "runs",
    stop_after: int | None = None,
    report: Callable[[int, dict[str, dict[str, float]]], bool] | None = None,
) -> JsonObject:
    """Runs an experiment in `workdir/<name>`. A run that has begun is resumed, bit for bit.

    Starting order: this run's newest checkpoint, else weights of `init_from`, else from scratch.

    Args:
      experiment: what to run.
      workdir: folder of runs.
      stop_after: save and stop after this many steps of this call; the schedule is not changed.
      report: called with (step, evaluation → metric → value) after each evaluation but the last; True stops the run.

    Returns:
      The content of results.json. "stopped" is None, or why the run ended early: "stop_after", "report" or the name of
      a signal.

    Raises:
      UserError: the experiment is invalid, does not fit the run in its directory, or its data cannot be read.

    Examples:
      >>> results = train(experiment, "runs")  # doctest: +SKIP
      >>> results["evals"]["validation"]["accuracy"]  # doctest: +SKIP
      0.84
    """
    with contextlib.ExitStack() as stack:
        # Open the run.
        workdir = Path(workdir)
        run = workdir / experiment.name
        stack.enter_context(lock_run(run))
        mesh = make_mesh(experiment.mesh)
        stack.enter_context(jax.set_mesh(mesh))
        experiment, pretrained = find_architecture(experiment, run, workdir)
        experiment = infer(experiment)
        open_run(run, experiment)
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(run, experiment)))
        if is_finished(run, checkpoints, experiment):
            return read_json(run / "results.json")

        # Make the data.
        tokenizer = find_tokenizer(experiment, run, workdir)
        check_fit(experiment, tokenizer, mesh)
        request = DataRequest("train", tokenizer, experiment.batch_size, experiment.seed, workdir / "cache", True)
        batches = experiment.data.make(request)
        if experiment.steps is None:
            experiment = with_steps(experiment, batches.steps_per_epoch)
            open_run(run, experiment)
            if is_finished(run, checkpoints, experiment):
                return read_json(run / "results.json")
        check_batch(experiment, batches.spec, batches[0], mesh)
        put = functools.partial(put_batch, mesh=mesh)

        # Build.
        module, objective = experiment.model.make(experiment.compute_dtype), experiment.objective.make(tokenizer.vocab)
        apply = build_apply(module, experiment.lora)
        held_out = evaluations(experiment, apply, tokenizer, workdir / "cache")
        tx, schedule = experiment.optim.make(experiment.steps)
        state, shardings = init_state(
            module, objective, tx, put(batches[0]), mesh, experiment.seed, experiment.trainable, experiment.lora
        )

        # Decide how to start.
        loading = None
        if checkpoints.steps():
            state = checkpoints.restore(state)
        elif experiment.init_from is not None:
            params, loading = init_from(experiment, state.params, pretrained, workdir)
            state = dataclasses.replace(state, params=params)
        start = int(state.step)
        last = experiment.steps if stop_after is None else min(experiment.steps, start + stop_after)

        # Compile.
        train_step = make_train_step(
            objective, apply, tx, schedule, shardings,
            seed=experiment.seed, microbatches=experiment.microbatches, trainable=experiment.trainable,
            token_fields=tuple(name for name, field in batches.spec.items() if field.counts_tokens),
        )  # fmt: skip
        program_for = compile_by_shape(train_step, functools.partial(step_flops, experiment, objective, apply))
        compile_start = time.perf_counter()
        _, flops = program_for(state, put(batches[start if start < experiment.steps else 0]))
        compile_seconds = time.perf_counter() - compile_start
        meter = Meter(peak_rate(), tokens_before(run, start))

        # Announce.
        log = stack.enter_context(RunLog(run, total_steps=experiment.steps, start_step=start, name=experiment.name))
        stopped_by = stack.enter_context(stop_signals())
        warnings = {"train": batches.dataset.warnings}
        warnings |= {evaluation.item.name: evaluation.batches.dataset.warnings for evaluation in held_out}
        facts = {
            "name": experiment.name,
            "parameters": count_parameters(state.params),
            "trained_parameters": count_parameters(separate(state.params, experiment.trainable)[0]),
            "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
            "steps": experiment.steps,
            "steps_per_epoch": batches.steps_per_epoch,
            "notes": {name: [warning.text for warning in found] for name, found in warnings.items()},
        }
        log.message(
            f"{experiment.name}: {facts['trained_parameters']:,} of {facts['parameters']:,} parameters trained on"
            f" {facts['device']}; {batches.steps_per_epoch:,} steps per epoch; {flops / 1e9:.2f} GFLOP of matmul per"
            f" step, peak {meter.peak / 1e9:,.0f} GFLOP/s; compiled in {compile_seconds:.1f} s"
        )
        for line in (*describe_data(experiment, warnings), *describe_start(experiment, start, loading)):
            log.message(f"{experiment.name}: {line}")

        def run_evals(final: bool) -> dict[str, EvalResult]:
            results = {}
            for evaluation in held_out:
                name = evaluation.item.name
                if final or not evaluation.item.final_only:
                    results[name] = evaluation.evaluate(state.params, mesh)
                    log.eval(int(state.step), name, results[name].values)
            return results

        def save(evaluated: dict[str, EvalResult]) -> None:
            flat = {f"{name}/{metric}": v for name, result in evaluated.items() for metric, v in result.values.items()}
            checkpoints.save(state, flat)

        # Train.
        pending: list[dict[str, Sum]] = []
        pending_flops = 0
        feed = prefetch(batches, start, last, put)
        for step in range(start + 1, last + 1):
            with meter.waiting():
                batch = next(feed)
            with meter.paused():
                program, flops = program_for(state, batch)
            state, metrics = program(state, batch)
            pending.append(metrics)
            pending_flops += flops
            stopping = step == last or stopped_by() is not None
            if step % experiment.log_every == 0 or stopping:
                log.train(step, summarise(experiment.name, step, pending, meter, pending_flops))
                pending, pending_flops = [], 0
            if stopping:
                break
            with meter.paused():
                evaluated = run_evals(final=False) if is_due(step, experiment.eval_every) else {}
                if is_due(step, experiment.save_every):
                    save(evaluated)
                if evaluated and report is not None and report(step, values_of(evaluated)):
                    break

        # Finish.
        step = int(state.step)
        evaluated = {}
        try:
            evaluated = run_evals(final=True) if step == experiment.steps else {}
        finally:
            save(evaluated)  # even if an evaluation failed
        results = facts | meter.totals() | {"step": step, "evals": values_of(evaluated), "stopped": None}
        if step < experiment.steps:
            return results | {"stopped": stopped_by() or ("stop_after" if step == last else "report")}
        results["higher_is_better"] = directions_of(evaluated)
        results["baselines"] = score_baselines(experiment, batches, held_out)
        write_json(run / "results.json", results)
        return results


def is_finished(run: Path, checkpoints: Checkpoints, experiment: Experiment) -> bool:
    """Whether all steps are done and the results are written."""
    return checkpoints.latest() == experiment.steps and (run / "results.json").exists()


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens after this one."""
    return every > 0 and step % every == 0


def summarise(name: str, step: int, pending: list[dict[str, Sum]], meter: Meter, flops: int) -> dict[str, float]:
    """Means over the steps since the last call, which took `flops`, fetched from the device at once.

    Raises:
      UserError: the loss is no longer finite; nothing is saved, so the last checkpoint is intact.
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


def describe_data(experiment: Experiment, warnings: dict[str, tuple[DataWarning, ...]]) -> list[str]:
    """Log lines about labels and about truncated, skipped or repaired examples."""
    labels = label_sets(experiment.data).get("", Labels()).values
    shown = ", ".join([*labels[:20], *["…"] * (len(labels) > 20)])
    lines = [f"{len(labels)} labels: {shown}"] if labels else []
    return lines + [f"{name}: {warning.text}" for name, found in warnings.items() for warning in found]


def describe_start(experiment: Experiment, start: int, loading: dict[str, list[str]] | None) -> list[str]:
    """Log lines about where the run starts."""
    lines = []
    if loading is not None:
        new, unused = (", ".join(loading[kind]) or "none" for kind in ("initialised", "unused"))
        lines += [
            f"weights from {experiment.init_from}: {len(loading['loaded'])} tensors loaded; new: {new};"
            f" not used: {unused}"
        ]
    return lines + ([f"resuming at step {start:,}"] if start else [])
