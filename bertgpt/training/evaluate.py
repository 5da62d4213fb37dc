"""Evaluations of an experiment: loss and metrics over a split, what its task says of the answers, generated texts."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int

from bertgpt.adaptation.lora import merge_lora
from bertgpt.config import Eval, Experiment
from bertgpt.data.loader import Batches, prefetch
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.generate import answers
from bertgpt.objectives.core import Objective, Targets
from bertgpt.sharding import put_batch
from bertgpt.training.log import means
from bertgpt.training.step import EVAL_NOISE, make_eval_step, stream
from bertgpt.types import Apply, Batch, DataRequest, DataWarning, EvalResult, Loss, Metric, UserError


class Evaluation(NamedTuple):
    """One of the experiment's evaluations, ready to run."""

    item: Eval
    data: Any
    objective: Objective
    batches: Batches
    step: Callable[[Any, Batch, int], tuple[Loss, dict[str, Any]]]
    texts: Callable[[Any], list[str]] | None = None
    """parameters → the texts that the model generates for the split"""

    def score(self, params: Any, mesh: jax.sharding.Mesh) -> dict[str, float]:
        """Loss and metrics of these parameters."""
        return self.evaluate(params, mesh).values

    def evaluate(self, params: Any, mesh: jax.sharding.Mesh) -> EvalResult:
        """Loss and metrics over the split, sums over all batches and one division; and what the task says of it."""
        stop = min(len(self.batches), self.item.max_batches or len(self.batches))
        totals: Loss | None = None
        kept: list[dict[str, np.ndarray]] = []
        for index, batch in enumerate(prefetch(self.batches, 0, stop, functools.partial(put_batch, mesh=mesh))):
            loss, outputs = jax.device_get(self.step(params, batch, index))
            part = jax.tree.map(lambda x: np.asarray(x, np.float64), loss)
            totals = part if totals is None else jax.tree.map(np.add, totals, part)
            kept.append(outputs)
        loss = Metric("loss", sum(means(totals.terms).values()), False)
        metrics = (loss, *(Metric(name, value) for name, value in means(totals.metrics).items()))
        warnings = tuple(DataWarning("repaired", 0, note) for note in notes_of(self.batches.dataset))
        result = EvalResult(metrics, warnings=warnings)
        if kept[0]:
            outputs = together(kept, len(self.batches.dataset))
            result = result.merge(self.data.evaluate(self.item.split, self.batches.dataset, outputs))
        if self.texts is not None:
            result = result.merge(self.data.evaluate_texts(self.item.split, self.texts(params)))
        return result


def notes_of(rows: Any) -> list[str]:
    """What there is to say of rows, such as how many texts had to be cut."""
    return list(getattr(rows, "notes", ()))


def together(answers: Sequence[dict[str, np.ndarray]], count: int) -> dict[str, np.ndarray]:
    """The answers of all batches, of the first `count` rows: the others only fill up the last batch."""
    return {name: np.concatenate([some[name] for some in answers])[:count] for name in answers[0]}


def evaluations(experiment: Experiment, apply: Apply, tokenizer: Tokenizer, cache: Path) -> list[Evaluation]:
    """The experiment's evaluations; data is prepared under `cache` where it is not yet."""
    made: dict[Any, tuple[Objective, Callable]] = {}
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
        judged = hasattr(data, "evaluate") and len(batches) <= (item.max_batches or len(batches))  # a whole split
        if (config, judged) not in made:
            objective = config.make(tokenizer.vocab)
            made[config, judged] = objective, make_eval_step(objective, apply, experiment.seed, answers=judged)
        objective, step = made[config, judged]
        found.append(Evaluation(item, data, objective, batches, step, writer(item, data, experiment, apply, tokenizer)))
    return found


def writer(
    item: Eval, data: Any, experiment: Experiment, apply: Apply, tokenizer: Tokenizer
) -> Callable[[Any], list[str]] | None:
    """What generates an evaluation's texts from parameters, if it wants any."""
    if item.decode is None:
        return None
    if not hasattr(data, "evaluate_texts"):
        raise UserError(f"evals: {item.name!r} has `decode`, but {type(data).__name__} has nothing to judge texts by")
    if not hasattr(experiment.model, "start_id"):
        raise UserError(f"evals: {item.name!r} has `decode`, but the model is an encoder and generates no text")
    prompts = data.prompts(item.split, tokenizer)
    if item.max_batches is not None:
        prompts = prompts[: item.max_batches * experiment.batch_size]
    return lambda params: answers(
        apply,
        merge_lora(params, experiment.lora),
        experiment.model,
        tokenizer,
        prompts,
        item.decode,
        experiment.batch_size,
    )


def score_baselines(
    experiment: Experiment, train_batches: Batches, held_out: list[Evaluation]
) -> dict[str, dict[str, dict[str, float]]]:
    """Each baseline on exactly the batches, noise included, that the model was evaluated on: name → split → metrics.

    Raises:
      UserError: a baseline asks for words, but the objective predicts none.
    """

    def wanted(evaluation: Evaluation) -> Iterator[Targets]:
        objective, batches, item = evaluation.objective, evaluation.batches, evaluation.item
        if objective.targets is None:
            raise UserError(
                f"{experiment.name}: the objective of {item.name!r} asks for no words, baselines cannot count"
            )

        @jax.jit
        def targets(batch: Batch, index: Int[Array, ""] | int) -> Targets:
            return objective.targets(batch, objective.prepare(stream(experiment.seed, EVAL_NOISE, index), batch))

        for index in range(min(len(batches), item.max_batches or len(batches))):
            yield jax.device_get(targets(batches[index], index))

    return {
        baseline.name: {
            evaluation.item.name: baseline.score(
                evaluation.data,
                train_batches,
                evaluation.item.split,
                functools.partial(wanted, evaluation),
            )
            for evaluation in held_out
        }
        for baseline in experiment.baselines
    }
