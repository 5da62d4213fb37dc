"""Searches: what a space may say, and real tiny studies that are pruned, killed and gone on with."""

import dataclasses
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import sqlalchemy
from bertgpt.experiments.demo import sentiment
from conftest import write_experiments

from bertgpt.cli.main import main
from bertgpt.cli.tune import best_command
from bertgpt.config import VALIDATION, Eval, Experiment, Mesh, with_overrides
from bertgpt.prepare.workers import Unfinished
from bertgpt.runs.checkpoint import Checkpoints
from bertgpt.studies import sweep as sweeping
from bertgpt.studies import tune as tuning
from bertgpt.studies.search import Search, infer_direction
from bertgpt.studies.space import arguments, read_space
from bertgpt.studies.study_report import draw_study, importances, limits, summary, to_markdown
from bertgpt.studies.tune import best, make_pruner, ranked, tune
from bertgpt.types import ObjectiveConfig, UserError

SPACES = Path(__file__).parents[2] / "experiments" / "finetune" / "spaces"
LR = "optim.lr = {low = 1e-4, high = 1e-1, log = true}\n"


@pytest.fixture
def still(tiny: Experiment) -> Experiment:
    """The tiny experiment, whose compiled programs other tests share, with a short evaluation."""
    return dataclasses.replace(tiny, evals=(dataclasses.replace(VALIDATION, max_batches=1), *tiny.evals[1:]))


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Experiment]]:
    """Training whose loss is the distance of lr from 0.01 in decades + 1/step, in no time; the list of what it ran."""
    ran = []

    def fake(experiment: Experiment, workdir: Path, report: Any) -> dict[str, Any]:
        ran.append(experiment)
        away = abs(math.log10(experiment.optim.lr / 0.01))
        for step in range(experiment.eval_every or experiment.steps, experiment.steps, experiment.eval_every or 1):
            if report(step, {"validation": {"loss": away + 1 / step}}):
                return {"stopped": "report", "step": step}
        evals = {"validation": {"loss": away + 1 / experiment.steps}}
        return {"stopped": None, "step": experiment.steps, "evals": evals}

    monkeypatch.setattr(tuning, "train", fake)

    def careless(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")  # databases of tests need not survive the machine

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", careless)
    yield ran
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", careless)


def search(experiment: Experiment, folder: Path, space: str = LR, **fields: Any) -> Search:
    path = folder / "space.toml"
    path.write_text(space)
    return Search(experiment, read_space(path, experiment), workdir=folder / "runs", **{"trials": 6, **fields})


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.get_trials()]


# -- the space --------------------------------------------------------------------------------------------------------


def test_a_space_is_read_with_types_and_defaults_of_the_fields(tiny: Experiment, tmp_path: Path):
    path = tmp_path / "space.toml"
    path.write_text(
        "optim.lr = {low = 1e-4, high = 1, log = true}\n"
        "model.dropout = {low = 0, high = 0.3, step = 0.1}\n"
        'optim.decay = {choices = ["linear", "cosine"]}\n'
        'optim.clip_norm = {choices = [1.0, "None"]}\n'
        "objective.mask_rate = {low = 0.2, high = 0.4}\n"
        '["optim.warmup_steps"]\nlow = 0\nhigh = 4\n'
    )
    space = {part.path: part for part in read_space(path, tiny)}
    assert list(space) == [
        "optim.lr", "optim.decay", "optim.clip_norm", "model.dropout", "objective.mask_rate", "optim.warmup_steps"
    ]  # fmt: skip
    assert space["optim.warmup_steps"].whole and not space["optim.lr"].whole
    defaults = [part.default for part in space.values()]
    assert defaults == [1e-3, "linear", 1.0, pytest.approx(0.1), None, 2]  # 0.15 is no mask_rate of this space
    values = {
        "optim.lr": 0.012345678, "optim.decay": "cosine", "optim.clip_norm": "None", "model.dropout": 0.2,
        "objective.mask_rate": 0.25, "optim.warmup_steps": 3,
    }  # fmt: skip
    given = arguments(tuple(space.values()), values)
    assert given[:4] == ["--optim.lr", "0.01235", "--optim.decay", "cosine"]
    from bertgpt.overrides import parse_overrides

    made = parse_overrides(tiny, given)
    assert (made.optim.lr, made.optim.clip_norm, made.optim.warmup_steps) == (0.01235, None, 3)


@pytest.mark.parametrize(
    "text, message",
    [
        ("optim.rl = {low = 1, high = 2}", r"optim.rl: no such field; did you mean 'optim.lr'\?"),
        ("optim = {low = 1, high = 2}", "optim: no such field"),
        ("optim.lr = {low = 2, high = 1}", "optim.lr: low=2 is above high=1"),
        ("optim.lr = {low = 1}", r"optim.lr: \{\"low\": 1\} is neither \{low, high, log, step\} nor \{choices\}"),
        ("optim.lr = {low = 1, hgih = 2}", "optim.lr: .*hgih.* is neither"),
        ("optim.lr = 3", "optim.lr: 3 is neither"),
        ("optim.lr = {choices = [1], low = 3}", "optim.lr: .* is neither"),
        ('optim.lr = {low = "a", high = 2}', "optim.lr: --optim.lr a: must be a number"),
        ("optim.lr = {low = 0, high = 2}", "optim.lr: .*lr=0.0 must be positive"),
        ("optim.lr = {low = -1, high = 2, log = true}", "optim.lr: .*must be positive"),
        ("optim.warmup_steps = {low = 0, high = 2, log = true}", "warmup_steps: log must be .* low must be positive"),
        ("optim.warmup_steps = {low = 0.5, high = 2}", "optim.warmup_steps: .*must be a whole number"),
        ("optim.warmup_steps = {low = 0, high = 4, step = 0.5}", "step=0.5 must be a positive whole number"),
        ("optim.decay = {low = 0, high = 4}", "optim.decay: --optim.decay 0: must be"),
        ('optim.decay = {choices = ["linear", "square"]}', "optim.decay: --optim.decay square: must be"),
        ('optim.decay = {choices = ["linear", "linear"]}', "optim.decay: choices must be different"),
        ("optim.decay = {choices = []}", "optim.decay: choices must be different, and one at least"),
        (
            "optim.bias_correction = {low = 0, high = 1}",
            "optim.bias_correction: .*must be True or False",
        ),
        ("data.tokenizer = {low = 0, high = 1}", "data.tokenizer: '0' is no number; give choices"),
        ("eval_every = {low = 1, high = 2}", "eval_every: nothing that training depends on"),
        ('name = {choices = ["a", "b"]}', "name: nothing that training depends on"),
        ("", "names no field to vary"),
        ("optim.lr = = 1", "not valid TOML: .*line 1"),
    ],
)
def test_a_mistake_in_a_space_is_named_with_file_and_field(tiny: Experiment, tmp_path: Path, text: str, message: str):
    path = tmp_path / "space.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_space(path, tiny)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"metric": "accuracy"}, "must be EVALUATION/METRIC"),
        ({"metric": "valid/loss"}, "tiny has no evaluation 'valid'; it has validation, test"),
        ({"metric": "test/loss"}, "'test' is test data, which a search must not see"),
        ({"trials": 0}, "--trials 0 must be at least 1"),
        ({"storage": "nodb://x"}, "--storage: cannot be opened"),
    ],
)
def test_a_wrong_question_is_refused_before_anything_runs(
    tiny: Experiment, tmp_path: Path, pretend: list, fields: dict, message: str
):
    with pytest.raises(UserError, match=message):
        tune(search(tiny, tmp_path, **fields))
    assert not pretend


@dataclasses.dataclass(frozen=True)
class Declares(ObjectiveConfig):
    """An objective that declares a metric as one of which higher is better."""

    @property
    def higher_is_better(self) -> frozenset[str]:
        return frozenset({"accuracy"})


@pytest.mark.parametrize("score", ["mlm_loss", "mean_absolute_error", "perplexity", "accuracy"])
def test_metrics_are_minimised_unless_the_objective_declares_that_higher_is_better(
    tiny: Experiment, tmp_path: Path, score: str
):
    asked = search(tiny, tmp_path, metric=f"validation/{score}")
    asked = dataclasses.replace(asked, experiment=dataclasses.replace(tiny, objective=Declares()))
    assert asked.resolve().direction == ("maximize" if score == "accuracy" else "minimize")
    assert dataclasses.replace(asked, direction="maximize").resolve().direction == "maximize"


def test_best_mode_is_the_direction_of_best_metric_alone(tiny: Experiment):
    rising = dataclasses.replace(tiny, best_metric="validation/mlm_accuracy", best_mode="max")
    assert infer_direction(rising, "validation/mlm_accuracy") == "maximize"
    assert infer_direction(rising, "validation/loss") == "minimize"


def test_the_direction_of_a_metric_of_the_task_must_be_given():
    """Whether F1 should rise is known to the task, which says so only when it has scored predictions."""
    with pytest.raises(UserError, match="--metric validation/f1: give --direction minimize or maximize"):
        infer_direction(sentiment.BASE, "validation/f1")
    assert infer_direction(sentiment.BASE, "validation/loss") == "minimize"


def test_what_is_searched_for_is_evaluated_while_a_trial_trains(tiny: Experiment, tmp_path: Path):
    late = tuple(Eval(name, "validation", final_only=True) for name in ("asked", "other"))
    resolved = search(dataclasses.replace(tiny, evals=late), tmp_path, metric="asked/loss").resolve()
    assert [item.final_only for item in resolved.experiment.evals] == [False, True]


@pytest.mark.parametrize("steps, longest", [("{choices = [3, 40]}", 40), ("{low = 3, high = 50}", 50)])
def test_hyperband_knows_the_longest_trial(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: str, longest: int
):
    monkeypatch.setattr(optuna.pruners, "HyperbandPruner", dict)
    asked = search(tiny, tmp_path, f"steps = {steps}\n", pruner="hyperband").resolve()
    assert make_pruner(asked) == {"min_resource": 1, "max_resource": longest}


@pytest.mark.parametrize("path", sorted(SPACES.glob("*.toml")), ids=lambda path: path.name)
def test_the_example_spaces_fit_a_classifier(path: Path):
    for part in read_space(path, sentiment.BASE):
        assert part.choices or part.low < part.high


# -- the search, with training that takes no time -------------------------------------------------------------------


def test_the_experiments_own_values_come_first_and_the_search_beats_them(still: Experiment, tmp_path: Path, pretend):
    asked = search(still, tmp_path, trials=16, pruner="none")
    study, stopped = tune(asked)
    assert stopped is None and states(study) == ["COMPLETE"] * 16
    assert pretend[0].optim.lr == 1e-3 and pretend[0].name == "tiny.trial000" and pretend[15].name == "tiny.trial015"
    assert study.get_trials()[0].value == pytest.approx(1 + 1 / 6)
    assert best(study).value < 1 / 6 + 0.2  # lr within a fifth of a decade, where one in eight random draws lies
    assert ranked(study)[0].number == best(study).number
    assert "the experiment's own values: 1.1667" in summary(asked.resolve(), study)[1]
    # What is trained is what the printed arguments say: numbers of four digits.
    assert all(
        e.optim.lr == float(f"{t.params['optim.lr']:.4g}") for e, t in zip(pretend, study.get_trials(), strict=True)
    )
    # Trials see no test data.
    assert all([item.name for item in e.evals] == ["validation"] and e.baselines == () for e in pretend)


@pytest.mark.slow
def test_the_same_seed_proposes_the_same_however_often_the_search_is_interrupted(
    still: Experiment, tmp_path: Path, pretend: list
):
    proposed = {}
    for name, calls in {"whole": (8,), "parts": (1, 2, 6, 8)}.items():
        (tmp_path / name).mkdir()
        pretend.clear()
        for trials in calls:
            tune(search(still, tmp_path / name, trials=trials, pruner="none"))
        proposed[name] = [experiment.optim.lr for experiment in pretend]
    assert proposed["whole"] == proposed["parts"] and len(set(proposed["whole"])) == 8
    (tmp_path / "other").mkdir()
    pretend.clear()
    tune(search(dataclasses.replace(still, seed=1), tmp_path / "other", trials=8, pruner="none"))
    assert [e.optim.lr for e in pretend][1:] != proposed["whole"][1:]


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_bad_trials_are_pruned_and_good_ones_are_not(still: Experiment, tmp_path: Path, pretend: list, pruner: str):
    long = dataclasses.replace(still, steps=20)
    study, _ = tune(search(long, tmp_path, trials=15, pruner=pruner))
    assert pretend[0].eval_every == 4  # five evaluations, as the experiment plans none
    pruned = [trial for trial in study.get_trials() if trial.state.name == "PRUNED"]
    assert pruned and best(study).state.name == "COMPLETE"
    assert all(trial.last_step < 20 for trial in pruned)
    if pruner == "median":
        worst = max(trial.value for trial in ranked(study)[: len(ranked(study)) // 2])
        assert all(trial.value > worst - 1 / 4 for trial in pruned)


def test_a_trial_that_diverges_counts_as_failed_and_the_search_goes_on(
    still: Experiment, tmp_path: Path, pretend: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    fake = tuning.train

    def sometimes(experiment: Experiment, workdir: Path, report: Any) -> dict[str, Any]:
        results = fake(experiment, workdir, report=report)
        if len(pretend) == 2:
            raise UserError("the loss is nan at step 3")
        if len(pretend) == 4:
            results["evals"]["validation"]["loss"] = math.nan
        return results

    monkeypatch.setattr(tuning, "train", sometimes)
    study, stopped = tune(search(still, tmp_path, pruner="none"))
    assert stopped is None and states(study) == ["COMPLETE", "FAIL", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    errors = [trial.user_attrs.get("error") for trial in study.get_trials()]
    assert errors[1] == "the loss is nan at step 3" and errors[3] == "the metric is nan"
    assert "tiny.trial001: fail: the loss is nan at step 3" in capsys.readouterr().out


@pytest.mark.slow
def test_a_mistake_that_every_trial_would_make_ends_the_search_and_costs_no_trial(still: Experiment, tmp_path: Path):
    with pytest.raises(UserError, match="nowhere.txt: no such file"):
        tune(search(with_overrides(still, {"data.path": "nowhere.txt"}), tmp_path, trials=2))
    with pytest.raises(UserError, match="validation has no 'accuracy'; it has loss, mlm_accuracy"):
        tune(search(still, tmp_path, trials=2, metric="validation/accuracy"))
    # Nothing was found yet, so the study may become another; the trained run serves it.
    study, _ = tune(search(still, tmp_path, trials=1))
    assert states(study) == ["COMPLETE"]


def test_a_study_goes_on_only_with_the_same_search(still: Experiment, tmp_path: Path, pretend: list):
    tune(search(still, tmp_path, trials=1))
    with pytest.raises(UserError, match=r"another search: experiment.steps was 6, now 8. Give another --study"):
        tune(search(dataclasses.replace(still, steps=8), tmp_path))
    with pytest.raises(UserError, match=r"space.optim.lr.high was 0.1, now 1.0"):
        tune(search(still, tmp_path, LR.replace("1e-1", "1.0")))
    with pytest.raises(UserError, match=r"direction was 'minimize', now 'maximize'"):
        tune(search(still, tmp_path, direction="maximize"))
    study, _ = tune(search(still, tmp_path, LR.replace("1e-1", "1.0"), study="wider", trials=1))
    assert states(study) == ["COMPLETE"] and pretend[-1].name == "wider.trial000"
    # How it is watched and laid out may change.
    study, _ = tune(search(dataclasses.replace(still, log_every=1), tmp_path, trials=2, pruner="hyperband"))
    assert states(study) == ["COMPLETE"] * 2


def test_a_trial_whose_process_died_is_run_again_and_one_that_lives_is_not(
    still: Experiment, tmp_path: Path, pretend: list
):
    study, _ = tune(search(still, tmp_path, trials=1))
    run = tmp_path / "runs" / "tiny.trial001"
    other = study.ask()
    lr = other.suggest_float("optim.lr", 1e-4, 1e-1, log=True)
    other.set_user_attr("host", tuning.platform.node())
    other.set_user_attr("run", str(run))
    run.mkdir()
    with tuning.lock(run / ".lock", "", wait=False):  # as its process would
        study, _ = tune(search(still, tmp_path, trials=3))
        assert states(study) == ["COMPLETE", "RUNNING", "COMPLETE"]
    study, _ = tune(search(still, tmp_path, trials=3))
    assert states(study) == ["COMPLETE"] * 3
    assert pretend[-1].name == "tiny.trial001" and pretend[-1].optim.lr == pytest.approx(lr, rel=1e-3)


def test_a_trial_that_another_process_was_quicker_to_take_is_left_to_it(
    still: Experiment, tmp_path: Path, pretend: list, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tuning, "PAUSE", 0.0)
    study, _ = tune(search(still, tmp_path, trials=1))
    study.enqueue_trial({"optim.lr": 0.01})
    run = tmp_path / "runs" / "tiny.trial001"
    run.mkdir()
    with tuning.lock(run / ".lock", "", wait=False):  # both had found it dead, and this process asks for it later
        assert states(tune(search(still, tmp_path, trials=3))[0]) == ["COMPLETE", "RUNNING", "COMPLETE"]
        study.tell(1, 0.5)  # as its own process does in the end


@pytest.mark.parametrize("meanwhile, ran", [("WAITING", True), ("FAIL", False)])
def test_a_trial_is_told_whatever_another_process_made_of_it_before_it_was_locked(
    still: Experiment, tmp_path: Path, pretend: list, monkeypatch: pytest.MonkeyPatch, meanwhile: str, ran: bool
):
    make_sampler = tuning.make_sampler

    def meddle(seed: int, number: int) -> Any:
        storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'runs' / 'study.db'}")
        if number == 0:
            tuning.set_state(storage, optuna.load_study(study_name="tiny", storage=storage), 0, meanwhile)
        return make_sampler(seed, number)

    monkeypatch.setattr(tuning, "make_sampler", meddle)
    study, _ = tune(search(still, tmp_path, trials=2))
    assert states(study) == ["COMPLETE" if ran else meanwhile, "COMPLETE"]


def test_a_worker_that_dies_while_a_trial_is_set_up_ends_the_search(
    still: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def die(*args: Any, **kwargs: Any) -> None:
        raise Unfinished("a worker process died")

    monkeypatch.setattr(tuning, "train", die)
    with pytest.raises(Unfinished, match="a worker process died"):
        tune(search(still, tmp_path))


def test_a_locked_trial_of_another_machine_is_not_taken_over(still: Experiment, tmp_path: Path, pretend: list):
    study, _ = tune(search(still, tmp_path, trials=1))
    run = tmp_path / "runs" / "tiny.trial001"
    run.mkdir()
    other = study.ask()
    other.set_user_attr("host", "elsewhere")
    other.set_user_attr("run", str(run))
    with tuning.lock(run / ".lock", "", wait=False):
        study, _ = tune(search(still, tmp_path, trials=3, take_over=True))
    assert states(study) == ["COMPLETE", "RUNNING", "COMPLETE"]


def test_trials_of_another_machine_are_taken_over_only_when_asked(still: Experiment, tmp_path: Path, pretend: list):
    study, _ = tune(search(still, tmp_path, trials=1))
    gone = study.ask()
    gone.set_user_attr("host", "elsewhere")
    gone.set_user_attr("run", "/scratch/tiny.trial001")
    assert states(tune(search(still, tmp_path, trials=3))[0]) == ["COMPLETE", "RUNNING", "COMPLETE"]
    assert states(tune(search(still, tmp_path, trials=3, take_over=True))[0]) == ["COMPLETE"] * 3


def test_a_diverged_trial_does_not_flatten_the_picture(still: Experiment, tmp_path: Path, pretend: list):
    asked = search(still, tmp_path, trials=4, pruner="none").resolve()
    study, _ = tune(asked)
    values = [trial.value for trial in ranked(study)]
    assert limits(study, values) == (values[0], values[-1])
    good, bad = limits(study, [*values, 1e6])
    assert good == values[0] and bad <= values[0] + 8 * (values[-1] - values[0])
    page, picture = to_markdown(asked, study, "bertgpt sweep", {}), draw_study(asked, study, {})
    assert "own values" in page and picture.startswith(b"\x89PNG") and len(picture) > 20_000


def test_importances_find_what_matters(still: Experiment, tmp_path: Path, pretend: list):
    space = LR + "optim.weight_decay = {low = 0.0, high = 0.1}\n"
    study, _ = tune(search(still, tmp_path, space, trials=12, pruner="none"))
    shares = importances(study)
    assert shares["optim.lr"] > 2 * shares["optim.weight_decay"] and sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("workdir", ["runs", "my runs"])
def test_the_printed_command_sweeps_the_best_settings_with_seeds_of_its_own(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workdir: str
):
    file = write_experiments(tmp_path / "one.py", {"a": tiny})
    given = [f"{file}:a", "--seed", "4", "--name", "mine", "--tiny/steps", "8"]
    asked = search(dataclasses.replace(tiny, name="mine", seed=4), tmp_path)
    asked = dataclasses.replace(asked, workdir=Path(workdir)).resolve()
    command = shlex.split(best_command(asked, SimpleNamespace(number=3, params={"optim.lr": 0.0123456}), given))
    ran = []

    def refuse(experiment: Experiment, workdir: Path) -> None:
        ran.append((experiment.name, experiment.seed, experiment.steps, experiment.optim.lr, workdir))
        raise UserError("not here")

    monkeypatch.setattr(sweeping, "train", refuse)
    monkeypatch.chdir(tmp_path)
    assert command[0] == "bertgpt" and main(command[1:]) == 1
    assert ran == [(f"mine.best3.{seed}", seed, 8, 0.01235, Path(workdir)) for seed in (5, 6, 7)]


# -- whole commands on real training ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_searches_prunes_and_reports(
    still: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """A learning rate that wrecks the model is stopped at the end of the first third."""
    monkeypatch.setattr(tuning, "STARTUP", 1)
    file = write_experiments(tmp_path / "one.py", {"tiny": still})
    space = tmp_path / "space.toml"
    space.write_text("optim.lr = {choices = [0.001, 30.0]}\n")
    work = tmp_path / "runs"
    asked = ["tune", f"{file}:tiny", "--space", str(space), "--trials", "4", "--workdir", str(work), "--log_every", "3"]
    assert main(asked) == 0
    out = capsys.readouterr().out
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{work / 'study.db'}")
    trials = study.get_trials()
    assert len(trials) == 4 and "4 trials:" in out and "best trials" in out
    wild = [trial for trial in trials if trial.params["optim.lr"] == 30.0]
    assert wild and all(trial.state.name == "PRUNED" and trial.last_step == 2 for trial in wild)
    for trial in trials:
        run = work / f"tiny.trial{trial.number:03d}"
        steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert (max(steps) < 6) == (trial.state.name == "PRUNED")
        assert (Checkpoints(run).latest() is None) == (trial.number != study.best_trial.number)
    assert study.best_trial.params["optim.lr"] == 0.001
    page = (work / "tiny.study" / "study.md").read_text()
    command = (
        f"bertgpt sweep {file}:tiny --log_every 3 --optim.lr 0.001 --name tiny.best{study.best_trial.number}"
        f" --seeds 1,2,3 --workdir {work}"
    )
    assert command in page and command in out and page.count("\n| ") == 5
    assert (work / "tiny.study" / "study.png").read_bytes().startswith(b"\x89PNG")
    # There is nothing left to do.
    assert main(asked) == 0
    assert "4 trials:" in capsys.readouterr().out and len(study.get_trials()) == 4


def start(*args: str) -> subprocess.Popen:
    env = dict(os.environ, XLA_FLAGS="--xla_backend_optimization_level=0")
    process = subprocess.Popen(
        [sys.executable, "-m", "bertgpt", *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )
    threading.Timer(120, process.kill).start()
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_search_that_is_stopped_or_killed_goes_on_with_the_same_trial(
    still: Experiment, tmp_path: Path, number: signal.Signals, code: int
):
    long = with_overrides(
        still, {"mesh": Mesh(), "steps": 4000, "log_every": 10, "save_every": 20, "evals": still.evals[:1]}
    )
    file = write_experiments(tmp_path / "one.py", {"tiny": long})
    space = tmp_path / "space.toml"
    space.write_text(LR)
    args = ["tune", f"{file}:tiny", "--space", str(space), "--workdir", str(tmp_path / "runs"), "--pruner", "none"]
    process = start(*args, "--trials", "2")
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "tiny.trial000    50/4000" in line:
            process.send_signal(number)
            break
    lines += process.stdout.readlines()
    assert process.wait() == code, "".join(lines)
    url = f"sqlite:///{tmp_path / 'runs' / 'study.db'}"
    study = optuna.load_study(study_name="tiny", storage=url)
    assert states(study) == [{signal.SIGTERM: "WAITING", signal.SIGKILL: "RUNNING"}[number]]
    began = Checkpoints(tmp_path / "runs" / "tiny.trial000").latest()
    assert began >= 20

    # Its experiment cannot end soon, so the rest of the training is pretended; where it starts is real.
    seen = []

    def finish(experiment: Experiment, workdir: Path, report: Any) -> dict[str, Any]:
        seen.append((experiment, Checkpoints(workdir / experiment.name).latest()))
        return {"stopped": None, "step": 4000, "evals": {"validation": {"loss": 1.0}}}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "train", finish)
        patch.chdir(tmp_path)
        assert main([*args, "--trials", "2"]) == 0
    assert states(study) == ["COMPLETE", "COMPLETE"]
    assert [(experiment.name, step) for experiment, step in seen] == [("tiny.trial000", began), ("tiny.trial001", None)]


def test_checkpoints_of_another_study_in_a_run_of_the_same_name_are_kept(still: Experiment, tmp_path: Path, pretend):
    wanted = search(still, tmp_path, trials=3)
    foreign = wanted.workdir / wanted.resolve().run_name(1)
    (foreign / "checkpoints" / "6").mkdir(parents=True)
    (foreign / "experiment.json").touch()
    own = wanted.workdir / wanted.resolve().run_name(0) / "checkpoints"
    own.mkdir(parents=True)
    study, _ = tune(wanted)
    assert [trial.user_attrs["run_existed"] for trial in study.get_trials()] == [False, True, False]
    assert (foreign / "checkpoints" / "6").exists()
    assert best(study).number == 2 and not own.exists()
