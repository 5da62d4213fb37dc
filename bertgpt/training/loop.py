"""The one training loop. It knows no model, no objective and no task: all three arrive as values.

`train` reads from top to bottom: open the run, make the data, build, decide how to start, compile, train, finish. What
one step computes is in `step`.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from bertgpt.adaptation.freezing import count_parameters, separate
from bertgpt.config import Experiment, infer, leaves, with_steps
from bertgpt.data.loader import Shards, prefetch
from bertgpt.distributed import barrier, check_same, main_first, on_main, process_count
from bertgpt.inference.model import build_apply, label_sets
from bertgpt.io.paths import cache_of, local_path
from bertgpt.runs.checkpoint import Checkpoints
from bertgpt.runs.directory import check_shared, lock_run, open_run, read_results, write_results
from bertgpt.runs.saving import all_finite
from bertgpt.sharding import host_shards, make_mesh, put_batch
from bertgpt.training.checks import check_batch, check_best_metric, check_fit
from bertgpt.training.evaluate import directions_of, evaluations, score_baselines, values_of
from bertgpt.training.log import open_log
from bertgpt.training.memory import check_batch_memory, check_state_memory
from bertgpt.training.nonfinite import Guard
from bertgpt.training.programs import StepPrograms, background
from bertgpt.training.signals import Stopped, StopSignals, stop_signals
from bertgpt.training.start import check_inputs, find_architecture, find_tokenizer, init_from
from bertgpt.training.state import plan_state
from bertgpt.training.step import make_train_step, step_flops
from bertgpt.training.teacher import digest, load_teacher, make_teach
from bertgpt.training.throughput import Meter, peak_rate
from bertgpt.training.window import Window
from bertgpt.types import DataRequest, DataWarning, EvalResult, JsonObject, Labels, UserError

CLOCK_EVERY = 10
"""steps after which several processes ask process 0 for the time, which takes a network round trip"""
Report = Callable[[int, dict[str, dict[str, float]]], bool]
"""called with (step, evaluation → metric → value); True stops the run"""


def train(
    experiment: Experiment,
    workdir: str | Path = "runs",
    stop_after: int | None = None,
    report: Report | None = None,
    accept_changed_inputs: bool = False,
    show: Callable[[dict[str, EvalResult]], None] | None = None,
) -> JsonObject:
    """Runs an experiment in `workdir/<name>`. A run that has begun is resumed, bit for bit.

    Starting order: this run's newest checkpoint, else weights of `init_from`, else from scratch.

    Args:
      experiment: what to run.
      workdir: folder of runs, also gs://BUCKET/FOLDER or s3://BUCKET/FOLDER.
      stop_after: save and stop after this many steps of this call; the schedule is not changed.
      accept_changed_inputs: resume although the tokenizer or the data have changed since the run began.
      report: called with (step, evaluation → metric → value) after each evaluation but the last; True stops the run.
      show: called with the results of the last evaluations, figures included, in process 0.

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
    workdir = local_path(workdir)
    run = workdir / experiment.name
    opened: list[Callable[[], None]] = []  # in process 0: makes what was written visible where the run is kept
    with stop_signals() as stop, contextlib.ExitStack() as held:
        on_main("open the run", lambda: opened.append(held.enter_context(lock_run(run))))
        try:
            return _train(experiment, workdir, run, opened, stop, stop_after, report, accept_changed_inputs, show)
        except Stopped:  # before the first step
            saved = Checkpoints(run).steps()
            return {"name": experiment.name, "step": max(saved, default=0), "evals": {}, "stopped": stop.received}


def _train(
    experiment: Experiment,
    workdir: Path,
    run: Path,
    opened: Sequence[Callable[[], None]],
    stop: StopSignals,
    stop_after: int | None,
    report: Report | None,
    accept_changed_inputs: bool,
    show: Callable[[dict[str, EvalResult]], None] | None,
) -> JsonObject:
    with contextlib.ExitStack() as stack:
        starting = stack.enter_context(contextlib.ExitStack())
        starting.enter_context(stop.interrupts())  # until the first step there is nothing to save

        # Open the run. Several processes do everything together, in the same order; process 0 alone writes and prints.
        check_shared(run)
        mesh = make_mesh(experiment.mesh)
        stack.enter_context(jax.set_mesh(mesh))
        experiment, pretrained = find_architecture(experiment, run, workdir)
        experiment = infer(experiment)
        check_same("the experiment", dict(leaves(experiment)) | device_facts())
        on_main("open the run", lambda: open_run(run, experiment))
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(run, experiment, *opened)))
        if is_finished(run, checkpoints, experiment):
            return read_results(run)

        # Make the data.
        with main_first("find or train the tokenizer"):
            tokenizer = find_tokenizer(experiment, run, workdir)
        check_fit(experiment, tokenizer, mesh)
        check_batch_memory(experiment)
        request = DataRequest("train", tokenizer, experiment.batch_size, experiment.seed, cache_of(workdir), True)
        with main_first("prepare the training data"):
            batches = experiment.data.make(request)
        begun = on_main("look for checkpoints", lambda: bool(checkpoints.steps()))
        teacher = load_teacher(experiment, tokenizer, workdir)
        check_inputs(
            run, experiment, tokenizer, request.cache, begun=begun, accept=accept_changed_inputs, more=digest(teacher)
        )
        if experiment.steps is None:
            experiment = with_steps(experiment, batches.steps_per_epoch)
            on_main("open the run", lambda: open_run(run, experiment))
            if is_finished(run, checkpoints, experiment):
                return read_results(run)
        check_batch(experiment, batches.spec, batches[0], mesh)
        put, shards = functools.partial(put_batch, mesh=mesh), Shards(*host_shards(mesh))

        # Build.
        module, objective = experiment.model.make(experiment.compute_dtype), experiment.objective.make(tokenizer.vocab)
        apply = build_apply(module, experiment.lora)
        with main_first("prepare the evaluation data"):
            held_out = evaluations(experiment, apply, tokenizer, cache_of(workdir))
        tx, schedule = experiment.optim.make(experiment.steps)
        first = put(batches.part(0, shards))
        teach = make_teach(experiment, objective, teacher, first, mesh)
        first = teach(first, 0)
        initial = plan_state(
            module, objective, tx, first, mesh, experiment.seed, experiment.trainable, experiment.lora,
            check=lambda abstract: check_state_memory(abstract.params, abstract.opt, mesh),
        )  # fmt: skip
        train_step = make_train_step(
            objective, apply, tx, schedule, initial.shardings,
            seed=experiment.seed, microbatches=experiment.microbatches, trainable=experiment.trainable,
            token_fields=tuple(name for name, field in batches.spec.items() if field.counts_tokens),
        )  # fmt: skip
        meter = Meter(peak_rate(mesh.devices.flatten().tolist()))

        # Initialise, restore or load while the training step compiles.
        submit = stack.enter_context(background())
        programs = StepPrograms(
            train_step, experiment, functools.partial(step_flops, experiment, objective, apply), submit,
            waiting=lambda state: meter.paused(after=state),
        )  # fmt: skip
        state, loading = initial.shapes, None
        if begun:
            programs.start(state, first)  # the shapes of most runs; another one is compiled below
            state = checkpoints.restore(state, any_experiment=accept_changed_inputs)
        else:
            run_init = initial.run.lower()
            initialising = submit(lambda: run_init.compile()())
            programs.start(state, first)
            state = initialising.result()
            if experiment.init_from is not None:
                params, loading = init_from(experiment, state.params, pretrained, workdir)
                state = dataclasses.replace(state, params=params)
        start = step = int(state.step)
        barrier("initialise or restore the model")
        check_best_metric(experiment, held_out, state.params, mesh)
        last = experiment.steps if stop_after is None else min(experiment.steps, start + stop_after)
        if not begun and not all_finite(
            {"params": state.params, "opt": state.opt}
        ):  # compiled here, as no save may wait for it
            raise UserError(f"{experiment.name}: the initial parameters are not finite")
        if 0 < start < experiment.steps:
            first = teach(put(batches.part(start, shards)), start)
        _, flops = programs.get(state, first)
        barrier("compile the training step")  # gloo, between CPUs, waits no longer than 30 s for a process that is late

        # Announce.
        saved = on_main("read the progress", lambda: checkpoints.progress(start)) if begun else {}
        lines = saved.get("lines", 0)
        log = stack.enter_context(
            open_log(run, total_steps=experiment.steps, start_step=start, name=experiment.name, lines=lines)
        )
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
            f" step, peak {meter.peak / 1e9:,.0f} GFLOP/s; compiled in {programs.seconds:.1f} s"
        )
        for line in (*describe_data(experiment, warnings), *describe_start(experiment, start, loading)):
            log.message(f"{experiment.name}: {line}")
        starting.close()
        window, spikes = Window(saved.get("window", {})), experiment.spikes
        guard = Guard(experiment.name, experiment.nonfinite, checkpoints, log.message, spikes, saved.get("guard"))

        def run_evals(final: bool) -> dict[str, EvalResult]:
            """The evaluations that are due; {} if a signal ends them: a resumed run evaluates this step again."""
            results = {}
            with contextlib.suppress(Stopped), stop.interrupts():
                for evaluation in held_out:
                    name = evaluation.item.name
                    if final or not evaluation.item.final_only:
                        results[name] = evaluation.evaluate(state.params, mesh, stop.asked)
                        log.eval(step, name, results[name].values)
            return {} if stop.received else results

        def compile_ahead() -> None:
            """Starts to compile what this call of `train` will run later: evaluations, and the last step."""
            for evaluation in held_out:
                regular = 0 < experiment.eval_every <= last and not evaluation.item.final_only
                if regular or last == experiment.steps:
                    evaluation.start_compiling(state.params, mesh, submit)
            programs.start(state, teach(put(batches.part(last - 1, shards)), last - 1))

        def save(evaluated: dict[str, EvalResult], wait: bool = False) -> None:
            """Saves the state, or the one that replaces it if it is not finite. `wait`: until it is on disk."""
            nonlocal state
            if (back := guard.sound(state, step, now=wait)) is not None:
                state, evaluated = back.state, {}  # the scores are of the state that is dropped
                window.drop(0, back.skipped)
            progress = {"window": window.as_json(), "guard": guard.saving(step), "lines": log.lines}
            metrics = flatten_metrics(evaluated)
            checkpoints.save(state, metrics, progress, before=log.sync, keep=guard.anchors, wait=wait)

        def is_ordered(step: int) -> tuple[bool, bool, bool]:
            """Whether a log line, evaluations and a checkpoint are due by the number of steps."""
            saving = is_due(step, experiment.save_every) or (spikes.threshold > 0 and is_due(step, spikes.rewind))
            logging = is_due(step, experiment.log_every) or step == experiment.steps
            return logging, is_due(step, experiment.eval_every), saving

        def is_enough(evaluated: dict[str, EvalResult]) -> bool:
            """Whether `report` ends the run."""
            if not evaluated or report is None:
                return False
            return on_main("report", lambda: bool(report(step, values_of(evaluated))))

        # Train.
        ended = False  # by `report`
        regular = {evaluation.item.name for evaluation in held_out if not evaluation.item.final_only}
        if 0 < start < experiment.steps and is_due(start, experiment.eval_every) and not regular <= log.evaluated:
            evaluated = run_evals(final=False)  # which the run was stopped before
            checkpoints.add_metrics(start, flatten_metrics(evaluated))
            ended = is_enough(evaluated)
        feed = prefetch(batches, start, last, put, shards)
        saved_at = time.monotonic()
        meter.start(log.tokens, log.seconds)
        while step < last and not ended and stop.received is None:
            with meter.waiting(state.step):
                batch = teach(next(feed), state.step)
            program, flops = programs.get(state, batch)
            state, metrics, health = program(state, batch)
            step += 1
            if step == start + 1:
                with meter.paused(after=state):
                    compile_ahead()
            window.add(metrics, flops)
            guard.watch(step, health)
            ending = stop.asked() or step == last
            logging, evaluating, saving = is_ordered(step)
            saving = saving or is_time(step, saved_at, experiment.save_every_minutes, checkpoints)
            back = guard.checked(state, step, wait=logging or evaluating or saving or ending)
            if back is not None:
                state, feed = back.state, prefetch(batches, back.step, last, put, shards)
                window.drop(step - back.step, back.skipped)
                step = back.step
                ending = step == last or stop.received is not None
                logging, evaluating, saving = *is_ordered(step)[:2], True
            if logging or ending:
                rates = meter.lap(window.flops, window.tokens(), window.carried)
                log.train(step, window.values() | rates, record=logging)
            if logging:
                window.clear()
            if ending:
                break
            if evaluating or saving:
                with meter.paused(after=state):
                    evaluated = run_evals(final=False) if evaluating else {}
                    if saving:
                        with meter.saving():
                            save(evaluated)
                        saved_at = time.monotonic()
                        log.note(f"{experiment.name}: saving step {step:,}; training waited {meter.stalls[-1]:.3f} s")
                    ended = is_enough(evaluated)

        # Finish. The state is on disk before the last evaluations, which may take long, fail or be interrupted.
        save({}, wait=True)
        evaluated: dict[str, EvalResult] = {}
        if step == experiment.steps:
            evaluated = run_evals(final=True)
            checkpoints.add_metrics(step, flatten_metrics(evaluated))
            on_main("show the results", lambda: show(evaluated) if show is not None else None)
        results = facts | meter.totals() | {"step": step, "evals": values_of(evaluated), "stopped": None}
        if step < experiment.steps and stop.received is None:
            results["stopped"] = "report" if ended else "stop_after"
        elif stop.received is None:
            results["higher_is_better"] = directions_of(evaluated)
            results |= {"nonfinite_steps": log.nonfinite_steps, "skipped_batches": log.skipped_batches}
            with contextlib.suppress(Stopped), stop.interrupts():
                baselines = on_main("score the baselines", lambda: score_baselines(experiment, batches, held_out))
                results["baselines"] = baselines
                on_main("write the results", lambda: write_results(run, results))
                return results
        if stop.received is not None:
            results["stopped"] = stop.received
            log.message(f"{experiment.name}: stopped by {stop.received} after step {step:,}, saved")
        return results


def is_finished(run: Path, checkpoints: Checkpoints, experiment: Experiment) -> bool:
    """Whether all steps are done and the results are written."""
    found = checkpoints.latest()
    return on_main("look for results", lambda: found == experiment.steps and (run / "results.json").exists())


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens after this one."""
    return every > 0 and step % every == 0


def is_time(step: int, since: float, minutes: float, checkpoints: Checkpoints) -> bool:
    """Whether a checkpoint is due by the clock of process 0: every so many minutes (0: never), or after a failure."""
    if process_count() > 1 and not is_due(step, CLOCK_EVERY):
        return False
    return on_main("look at the clock", lambda: checkpoints.is_due() or 0 < minutes * 60 <= time.monotonic() - since)


def device_facts() -> dict[str, object]:
    """What the devices of all hosts have in common."""
    devices = jax.local_devices()
    return {"the number of devices": len(devices), "the kind of devices": devices[0].device_kind}


def flatten_metrics(evaluated: dict[str, EvalResult]) -> dict[str, float]:
    """EVALUATION/METRIC → value."""
    return {f"{name}/{metric}": value for name, result in evaluated.items() for metric, value in result.values.items()}


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
