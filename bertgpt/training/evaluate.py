"""Evaluations of an experiment: loss and metrics over a split, scores of its task, scores of generated texts."""

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int

from bertgpt.adaptation.lora import merge_lora
from bertgpt.config import Eval, Experiment, Mesh
from bertgpt.data.loader import Batches, Shards, prefetch
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.distributed import on_main, process_count
from bertgpt.inference.generate import answers
from bertgpt.inference.model import Model
from bertgpt.inference.predict import concatenate_outputs
from bertgpt.io.files import CannotWrite
from bertgpt.io.paths import cache_of
from bertgpt.sharding import fetch, host_shards, make_mesh, put_batch
from bertgpt.training.log import means
from bertgpt.training.programs import Program, Submit
from bertgpt.training.signals import Stopped
from bertgpt.training.state import EVAL_NOISE, random_key
from bertgpt.training.step import make_eval_step
from bertgpt.types import (
    Apply,
    Batch,
    DataConfig,
    DataRequest,
    EvalResult,
    GenerationTask,
    HeldOut,
    Loss,
    Metric,
    Objective,
    ObjectiveConfig,
    Params,
    Targets,
    Task,
    UserError,
)


class Evaluation(NamedTuple):
    """An evaluation of an experiment, ready to run."""

    item: Eval
    data: DataConfig
    objective: Objective
    batches: Batches
    step: Program
    """parameters, batch, its number → (loss, outputs), as `make_eval_step`"""
    texts: Callable[[Params], list[str]] | None = None
    """parameters → the texts that the model generates for the split"""
    higher_is_better: frozenset[str] = frozenset()
    """metrics of the objective that should rise"""

    def evaluate(
        self, params: Params, mesh: jax.sharding.Mesh, stopping: Callable[[], bool] = lambda: False
    ) -> EvalResult:
        """Evaluates these parameters on the split.

        Loss and metrics of the objective are summed over all batches and divided once. If the split is evaluated
        completely, the task's metrics are added; they replace the objective's of the same name.

        Args:
          params: the parameters, on `mesh`.
          mesh: the devices.
          stopping: called before each batch; True ends the evaluation.

        Raises:
          Stopped: `stopping` was True.
        """
        stop = min(len(self.batches), self.item.max_batches or len(self.batches))
        totals: Loss | None = None
        kept: list[dict[str, np.ndarray]] = []
        feed = prefetch(self.batches, 0, stop, functools.partial(put_batch, mesh=mesh), Shards(*host_shards(mesh)))
        for index, batch in enumerate(feed):
            if stopping():
                raise Stopped
            loss, outputs = fetch(self.step(params, batch, index))
            part = jax.tree.map(lambda x: np.asarray(x, np.float64), loss)
            totals = part if totals is None else jax.tree.map(np.add, totals, part)
            kept.append(outputs)
        return self._once(totals, kept, None if self.texts is None else self.texts(params))

    def start_compiling(self, params: Params, mesh: jax.sharding.Mesh, submit: Submit) -> None:
        """Traces the step, and compiles it in the background for the first `evaluate`, which raises what fails here."""
        with contextlib.suppress(Exception):
            self.step.start(submit, params, self._first(mesh), 0)

    def _first(self, mesh: jax.sharding.Mesh) -> Batch:
        """The first batch, on the devices."""
        return put_batch(self.batches.part(0, Shards(*host_shards(mesh))), mesh)

    def rehearse(self, params: Params, mesh: jax.sharding.Mesh) -> EvalResult:
        """A result with the metrics that `evaluate` gives, as if all batches were like the first: names, not values."""
        loss, outputs = fetch(self.step(params, self._first(mesh), 0))
        return self._once(loss, [outputs] * len(self.batches), None if self.texts is None else [""])

    def _once(self, totals: Loss, kept: list[dict[str, np.ndarray]], texts: list[str] | None) -> EvalResult:
        """The result in all processes: process 0 scores, the others get its metrics without tables and figures."""
        if process_count() == 1:
            return self._result(totals, kept, texts)
        found: list[EvalResult] = []

        def score() -> list[Metric]:
            found.append(self._result(totals, kept, texts))
            return list(found[0].metrics)

        metrics = on_main(f"score {self.item.name}", score)
        return found[0] if found else EvalResult(tuple(Metric(*metric) for metric in metrics))

    def _result(self, totals: Loss, kept: list[dict[str, np.ndarray]], texts: list[str] | None) -> EvalResult:
        metrics = [Metric("loss", sum(means(totals.terms).values()), False)]
        for name, value in means(totals.metrics).items():  # distributions have no direction
            direction = name in self.higher_is_better if name in totals.metrics else None
            metrics.append(Metric(name, value, direction))
        result = EvalResult(tuple(metrics), warnings=self.batches.dataset.warnings)
        if kept[0]:
            outputs = concatenate_outputs(kept, len(self.batches.dataset))
            result = result.merge(self.data.evaluate(self.batches.dataset, outputs))
        if texts is not None:
            result = result.merge(self.data.evaluate_texts(self.item.split, texts))
        return result


def evaluations(experiment: Experiment, apply: Apply, tokenizer: Tokenizer, cache: Path) -> list[Evaluation]:
    """The experiment's evaluations.

    Args:
      experiment: its `evals`, with the experiment's data and objective where they have none of their own.
      apply: runs the model.
      tokenizer: the run's tokenizer.
      cache: folder for prepared data.

    Returns:
      Evaluations in the order of `evals`. Those of the same objective share a compiled program.

    Raises:
      UserError: data cannot be read, or an evaluation generates text although its data or model cannot.
    """
    made: dict[tuple[ObjectiveConfig, bool], tuple[Objective, Program]] = {}
    found = []
    for item in experiment.evals:
        config, data = item.objective or experiment.objective, item.data or experiment.data
        batches = data.make(
            DataRequest(
                split=item.split,
                seed=experiment.seed,
                batch_size=experiment.batch_size,
                tokenizer=tokenizer,
                cache=cache,
                shuffle=False,
            )
        )
        whole = len(batches) <= (item.max_batches or len(batches))
        scored = isinstance(data, Task) and data.scores_outputs and whole
        if (config, scored) not in made:
            objective = config.make(tokenizer.vocab)
            made[config, scored] = objective, Program(make_eval_step(objective, apply, experiment.seed, outputs=scored))
        objective, step = made[config, scored]
        generate = text_generator(item, data, experiment, apply, tokenizer)
        rising = config.higher_is_better
        found.append(Evaluation(item, data, objective, batches, step, generate, rising))
    return found


def text_generator(
    item: Eval, data: DataConfig, experiment: Experiment, apply: Apply, tokenizer: Tokenizer
) -> Callable[[Params], list[str]] | None:
    """The function that generates an evaluation's texts from parameters; None if it has no `decode`."""
    if item.decode is None:
        return None
    if not isinstance(data, GenerationTask):
        raise UserError(f"evals: {item.name!r} has `decode`, but {type(data).__name__} does not score texts")
    if experiment.model.architecture == "encoder":
        raise UserError(f"evals: {item.name!r} has `decode`, but the model is an encoder and generates no text")
    prompts = data.prompts(item.split, tokenizer)
    if item.max_batches is not None:
        prompts = prompts[: item.max_batches * experiment.batch_size]
    pixels = data.prompt_pixels(item.split)
    return lambda params: answers(
        apply,
        merge_lora(params, experiment.lora),
        experiment.model,
        tokenizer,
        prompts,
        item.decode,
        experiment.batch_size,
        pixels,
    )


def score_baselines(
    experiment: Experiment, train_batches: Batches, held_out: list[Evaluation]
) -> dict[str, dict[str, dict[str, float]]]:
    """Scores each baseline on the batches, with the same noise, on which the model was evaluated.

    Where several processes train, process 0 alone does this.

    Returns:
      Baseline → evaluation → metric → value.

    Raises:
      UserError: a baseline predicts tokens, but the objective does not.
    """

    def examples_of(evaluation: Evaluation) -> HeldOut:
        objective, batches, item = evaluation.objective, evaluation.batches, evaluation.item
        if objective.targets is None:
            return HeldOut(evaluation.data, item.split, batches)

        @jax.jit
        def prepared(batch: Batch, index: Int[Array, ""] | int) -> Targets:
            return objective.targets(batch, objective.prepare(random_key(experiment.seed, EVAL_NOISE, index), batch))

        def targets() -> Iterator[Targets]:
            for index in range(min(len(batches), item.max_batches or len(batches))):
                yield jax.device_get(prepared(batches[index], index))

        return HeldOut(evaluation.data, item.split, batches, targets, objective.target_metric)

    scored: dict[str, dict[str, dict[str, float]]] = {}
    alone = make_mesh(Mesh(), jax.local_devices()[:1])
    with jax.set_mesh(alone) if process_count() > 1 else contextlib.nullcontext():
        examples = {evaluation.item.name: examples_of(evaluation) for evaluation in held_out}
        for baseline in experiment.baselines:
            predict = baseline.fit(experiment.data, train_batches)
            scored[baseline.name] = {name: predict(found).values for name, found in examples.items()}
    return scored


def values_of(evaluated: dict[str, EvalResult]) -> dict[str, dict[str, float]]:
    """Evaluation → metric → value."""
    return {name: result.values for name, result in evaluated.items()}


def directions_of(evaluated: dict[str, EvalResult]) -> dict[str, bool | None]:
    """EVALUATION/METRIC → whether higher is better; None if neither is."""
    return {f"{name}/{m.name}": m.higher_is_better for name, result in evaluated.items() for m in result.metrics}


def evaluate(model: Model, cache: str | Path | None = None) -> dict[str, EvalResult]:
    """Runs every evaluation of a run, as at the end of its training.

    Args:
      model: a run, from `bertgpt.load`.
      cache: folder for prepared data; None: `cache` beside the run, or a temporary one where that cannot be written.

    Returns:
      Name of each evaluation → its metrics, tables and figures.

    Raises:
      UserError: the model is not a run, or its data is missing.
    """
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    folder = cache_of(model.path.parent) if cache is None else Path(cache)
    with tempfile.TemporaryDirectory(prefix="bertgpt-") as temporary:
        try:
            found = evaluations(model.run, model.apply, model.tokenizer, folder)
        except CannotWrite:  # the run lies on read-only media
            if cache is not None:
                raise
            found = evaluations(model.run, model.apply, model.tokenizer, Path(temporary))
        return {evaluation.item.name: evaluation.evaluate(model.params, mesh) for evaluation in found}
