"""What a search varies, what it optimises, and the experiment of each of its trials."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bertgpt.config import OPERATIONAL, Eval, Experiment, to_json
from bertgpt.overrides import parse_overrides
from bertgpt.ranges import Count
from bertgpt.studies.space import Dimension, arguments
from bertgpt.types import JsonObject, ObjectiveConfig, Task, UserError

if TYPE_CHECKING:
    import optuna


# Evaluations of a trial that a pruner sees if the experiment sets no eval_every.
EVALUATIONS = 5

Direction = Literal["minimize", "maximize"]


@dataclasses.dataclass(frozen=True)
class Search:
    """The settings of a search."""

    experiment: Experiment
    space: tuple[Dimension, ...]
    trials: Count
    """total number, including finished, pruned and failed trials of earlier calls and of other machines"""
    workdir: Path = Path("runs")
    """folder of the trials' runs"""
    study: str | None = None
    """name of the study in the storage and prefix of the trials' names; None: the experiment's name"""
    storage: str | None = None
    """database URL; None: a file in workdir"""
    pruner: str = "median"
    """stops bad trials early: median, hyperband or none"""
    metric: str | None = None
    """EVALUATION/METRIC to optimise; None: the experiment's best_metric"""
    direction: Direction | None = None
    """None: see `infer_direction`"""
    take_over: bool = False
    """also resume unfinished trials of other machines; only if none of them works on the study any more"""
    keep_checkpoints: bool = False
    """keep the checkpoints of all trials, not only of the best"""

    def resolve(self) -> "Search":
        """Replaces every None by its value, and the experiment by what the trials run.

        Trials read no test data and score no baselines. The metric is evaluated during training too, even if the
        experiment evaluates it only at the end.

        Raises:
          UserError: there is no such evaluation, it reads the test split, or the direction is not known.
        """
        if self.trials < 1:
            raise UserError(f"--trials {self.trials} must be at least 1")
        if self.experiment.steps is None:
            raise UserError("tune compares trials by their steps: give --steps in place of epochs")
        metric = self.metric or self.experiment.best_metric
        item = evaluation_of(self.experiment, metric)
        every = self.experiment.eval_every
        if self.pruner != "none" and not every:
            every = max(1, self.experiment.steps // EVALUATIONS)
        kept = tuple(
            dataclasses.replace(other, final_only=other.final_only and other.name != item.name)
            for other in self.experiment.evals
            if other.split != "test"
        )
        experiment = dataclasses.replace(
            self.experiment, evals=kept, baselines=(), eval_every=every, keep_best=0, best_metric=metric
        )
        return dataclasses.replace(
            self,
            experiment=experiment,
            metric=metric,
            direction=self.direction or infer_direction(self.experiment, metric),
            study=self.study or self.experiment.name,
            storage=self.storage or f"sqlite:///{(self.workdir / 'study.db').absolute()}",
        )

    def definition(self) -> JsonObject:
        """What must not change between calls on the same study, as JSON."""
        free = (*OPERATIONAL, "name")
        experiment = {name: value for name, value in to_json(self.experiment).items() if name not in free}
        space = {part.path: {k: v for k, v in part._asdict().items() if k != "path"} for part in self.space}
        known = {"experiment": experiment, "space": space, "metric": self.metric, "direction": self.direction}
        return json.loads(json.dumps(known))

    def trial(self, trial: "optuna.Trial") -> Experiment:
        """The experiment of an Optuna trial; values that the trial does not have yet are proposed.

        Raises:
          UserError: the values do not fit together.
        """
        params = {part.path: part.suggest(trial) for part in self.space}
        experiment = parse_overrides(self.experiment, arguments(self.space, params))
        return dataclasses.replace(experiment, name=self.run_name(trial.number))

    def run_name(self, number: int) -> str:
        """Name of a trial's run."""
        return f"{self.study}.trial{number:03d}"


def evaluation_of(experiment: Experiment, metric: str) -> Eval:
    """The evaluation that yields EVALUATION/METRIC.

    Raises:
      UserError: there is none, or it reads the test split.
    """
    name, _, score = metric.partition("/")
    evals = {item.name: item for item in experiment.evals}
    if not score:
        raise UserError(f"--metric {metric}: must be EVALUATION/METRIC, such as {next(iter(evals), 'validation')}/loss")
    if name not in evals:
        has = ", ".join(evals) or "none"
        raise UserError(f"--metric {metric}: {experiment.name} has no evaluation {name!r}; it has {has}")
    if evals[name].split == "test":
        raise UserError(f"--metric {metric}: {name!r} is test data, which a search must not see")
    return evals[name]


def infer_direction(experiment: Experiment, metric: str) -> Direction:
    """Whether EVALUATION/METRIC is to be minimised or maximised, from what the experiment declares.

    That is best_mode for its best_metric; else `ObjectiveConfig.higher_is_better`, whose other metrics should fall.

    Raises:
      UserError: the metric may be one of the task's own, such as F1, whose direction is known only once it is scored.
    """
    if metric == experiment.best_metric:
        return "minimize" if experiment.best_mode == "min" else "maximize"
    item, score = evaluation_of(experiment, metric), metric.partition("/")[2]
    objective, data = item.objective or experiment.objective, item.data or experiment.data
    if isinstance(objective, ObjectiveConfig) and score in objective.higher_is_better:
        return "maximize"
    if score == "loss" or not isinstance(data, Task):
        return "minimize"
    raise UserError(f"--metric {metric}: give --direction minimize or maximize; the objective does not declare it")
