"""The report of a search: a table of trials, a picture of their values, and a page with both.

The pictures are our own. Those of `optuna.visualization.matplotlib` fill a pyplot figure each, leave out pruned trials,
scale their axes by the worst trial, so that one diverged loss hides all others, and their parallel coordinates cannot
be read.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bertgpt.studies.pages import markdown_table
from bertgpt.studies.plots import BLUE, GREY, RED, figure_type, png, style, write_files
from bertgpt.studies.search import Search
from bertgpt.studies.space import Dimension, Value
from bertgpt.studies.tune import best, import_optuna, ranked
from bertgpt.types import Table

if TYPE_CHECKING:
    import matplotlib.axes
    import optuna


def trial_rows(search: Search, trials: Sequence["optuna.trial.FrozenTrial"]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of a table with a row per trial."""
    columns = ["trial", "state", search.metric, *(part.path for part in search.space), "steps", "seconds"]
    rows = [
        [
            str(trial.number),
            "own values" if is_own(search, trial) and trial.state.name == "COMPLETE" else trial.state.name.lower(),
            "–" if trial.value is None else f"{trial.value:.4f}",
            *(part.text(trial.params[part.path]) if part.path in trial.params else "–" for part in search.space),
            "–" if trial.last_step is None else f"{trial.last_step:,}",
            f"{trial.user_attrs['seconds']:.0f}" if "seconds" in trial.user_attrs else "–",
        ]
        for trial in trials
    ]
    return columns, rows


def is_own(search: Search, trial: "optuna.trial.FrozenTrial") -> bool:
    """Whether the trial has the experiment's own values."""
    return bool(trial.params) and all(trial.params.get(part.path) == part.default for part in search.space)


def summary(search: Search, study: "optuna.Study") -> list[str]:
    """Lines with the number of trials, the best one, and the value of the experiment's own settings."""
    trials = study.get_trials(deepcopy=False)
    states = [trial.state.name for trial in trials]
    counts = {state: states.count(state) for state in ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")}
    words = ("complete", "pruned", "failed", "running", "waiting")
    lines = [
        f"{len(trials)} trials: "
        + ", ".join(f"{n} {word}" for word, n in zip(words, counts.values(), strict=True) if n)
    ]
    leader = best(study)
    if leader is None:
        errors = [trial.user_attrs["error"] for trial in trials if "error" in trial.user_attrs]
        return lines + ["no trial is complete" + (f"; the last error: {errors[-1]}" if errors else "")]
    own = next((trial for trial in trials if is_own(search, trial) and trial.value is not None), None)
    beside = f"; the experiment's own values: {own.value:.4f}" if own is not None else ""
    lines.append(f"best: trial {leader.number}, {search.metric} {leader.value:.4f}{beside}")
    return lines


def importances(study: "optuna.Study") -> dict[str, float]:
    """Share of the variance between complete trials that each field explains (fANOVA, Hutter et al. 2014).

    {} if there are too few trials or all have the same value. For a dozen trials it is no more than a hint.
    """
    optuna = import_optuna()
    done = ranked(study)
    if len(done) < 4 or len({trial.value for trial in done}) < 2:
        return {}
    try:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
    except (ValueError, RuntimeError, ImportError):  # nothing varies, or scikit-learn is not installed
        return {}


def write_study(search: Search, study: "optuna.Study", command: str) -> list[Path]:
    """Writes study.png and study.md to WORKDIR/STUDY.study.

    Args:
      search: the resolved search.
      study: its Optuna study.
      command: the command that trains with the best values.

    Returns:
      The paths of the files.

    Raises:
      UserError: matplotlib is not installed.
    """
    out = search.workdir / f"{search.study}.study"
    shares = importances(study)
    contents = {
        "study.png": draw_study(search, study, shares),
        "study.md": to_markdown(search, study, command, shares).encode(),
    }
    return write_files(out, contents)


def to_markdown(search: Search, study: "optuna.Study", command: str, shares: dict[str, float]) -> str:
    """The page as Markdown; its picture is study.png in the same folder."""
    parts = [f"# Search {search.study}", "\n".join(f"- {line}" for line in summary(search, study))]
    if best(study) is not None:
        parts.append(f"```sh\n{command}\n```")
    parts.append("![values by trial, training curves, importances, parallel coordinates](study.png)")
    others = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name != "COMPLETE"]
    columns, rows = trial_rows(search, [*ranked(study), *others])
    parts.append(markdown_table(Table("Trials, best first", columns, rows)))
    errors = [trial for trial in others if "error" in trial.user_attrs]
    if errors:
        parts += ["## Errors", "\n".join(f"- trial {trial.number}: {trial.user_attrs['error']}" for trial in errors)]
    if shares:
        rows = [[name, f"{share:.2f}"] for name, share in shares.items()]
        parts.append(markdown_table(Table("Importances (fANOVA)", ["field", "share"], rows)))
    return "\n\n".join(parts) + "\n"


# -- pictures ---------------------------------------------------------------------------------------------------------


def draw_study(search: Search, study: "optuna.Study", shares: dict[str, float]) -> bytes:
    """A PNG: values by trial, training curves, importances, and parallel coordinates."""
    figure = figure_type()(figsize=(13, 7.6), layout="constrained", dpi=100)
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.15])
    history, curves, bars = top.subplots(1, 3)
    draw_history(history, search, study)
    draw_training(curves, study)
    draw_importances(bars, shares)
    draw_parallel(bottom.subplots(), search, study)
    return png(figure)


def draw_history(axis: "matplotlib.axes.Axes", search: Search, study: "optuna.Study") -> None:
    """The value of each trial, and the best value so far."""
    trials = study.get_trials(deepcopy=False)
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    pruned = [trial for trial in trials if trial.state.name == "PRUNED" and trial.value is not None]
    failed = [trial.number for trial in trials if trial.state.name == "FAIL"]
    for some, mark, color, word in ((pruned, "x", GREY, "pruned"), (done, "o", BLUE, "complete")):
        if some:
            axis.plot([t.number for t in some], [t.value for t in some], mark, color=color, ms=6, label=word)
    if done:
        choose = min if study.direction.name == "MINIMIZE" else max
        records = [choose(t.value for t in done[: i + 1]) for i in range(len(done))]
        numbers = [*(t.number for t in done), trials[-1].number]
        axis.step(numbers, [*records, records[-1]], where="post", color=RED, lw=1.2, label="best so far")
    for i, number in enumerate(failed):
        axis.axvline(number, color=RED, lw=0.8, ls=":", label=None if i else "failed")
    style(axis, search.metric)
    focus(axis, study, [trial.value for trial in done + pruned])
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("trial", fontsize=9)
    if trials:
        axis.legend(fontsize=8, frameon=False)


def draw_training(axis: "matplotlib.axes.Axes", study: "optuna.Study") -> None:
    """The values that each trial reported during training."""
    leader = best(study)
    for trial in study.get_trials(deepcopy=False):
        points = sorted(trial.intermediate_values.items())
        if not points:
            continue
        is_best = leader is not None and trial.number == leader.number
        pruned = trial.state.name != "COMPLETE"
        line = {"color": GREY, "ls": "--", "lw": 1.0} if pruned else {"color": BLUE, "lw": 1.0, "alpha": 0.6}
        axis.plot(*zip(*points, strict=True), **({"color": RED, "lw": 2.0} if is_best else line), marker=".", ms=4)
    style(axis, "during training (best: red, pruned: dashed)")
    points = [trial.intermediate_values.values() for trial in study.get_trials(deepcopy=False)]
    focus(axis, study, [value for values in points for value in values if math.isfinite(value)])
    axis.set_xlabel("step", fontsize=9)


def focus(axis: "matplotlib.axes.Axes", study: "optuna.Study", values: Sequence[float]) -> None:
    """Limits the axis to `limits`, so that one diverged trial does not hide the differences between the others."""
    if not values:
        return
    good, bad = limits(study, values)
    margin = 0.05 * abs(bad - good) or 0.01
    axis.set_ylim(min(good, bad) - margin, max(good, bad) + margin)


def limits(study: "optuna.Study", values: Sequence[float]) -> tuple[float, float]:
    """(best, worst) value to show: at most eight times as far from the best value as the median is."""
    ordered = sorted(values, reverse=study.direction.name == "MAXIMIZE")
    reach = 8 * abs(ordered[len(ordered) // 2] - ordered[0])
    away = ordered[-1] - ordered[0]
    return ordered[0], ordered[0] + math.copysign(min(abs(away), reach), away)


def draw_importances(axis: "matplotlib.axes.Axes", shares: dict[str, float]) -> None:
    """A bar for each field."""
    style(axis, "importances (fANOVA)")
    if not shares:
        axis.text(0.5, 0.5, "too few trials", ha="center", va="center", transform=axis.transAxes, fontsize=9)
        axis.set_axis_off()
        return
    names = list(shares)
    axis.barh(range(len(names)), list(shares.values()), color=BLUE, height=0.6)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlabel("share of the variance between trials", fontsize=9)


def draw_parallel(axis: "matplotlib.axes.Axes", search: Search, study: "optuna.Study") -> None:
    """A vertical axis for each field and one for the metric; a line for each complete trial, the best on top."""
    from matplotlib import colormaps

    done = ranked(study)
    columns = len(search.space)
    low, high = sorted(limits(study, [trial.value for trial in done])) if done else (0.0, 1.0)
    spread = (high - low) or 1.0
    for rank, trial in reversed(list(enumerate(done))):
        heights = [height(part, trial.params[part.path]) for part in search.space]
        heights.append(min(max((trial.value - low) / spread, 0.0), 1.0))
        shade = 1 - rank / max(len(done) - 1, 1)
        line = {"color": RED, "lw": 2.4} if rank == 0 else {"color": colormaps["Blues"](0.25 + 0.6 * shade), "lw": 1.2}
        axis.plot(range(columns + 1), heights, **line, solid_capstyle="round")
    scales = [ticks(part) for part in search.space]
    scales.append([(i / 4, f"{low + i / 4 * spread:.3f}") for i in range(5)] if done else [])
    for column, scale in enumerate(scales):
        axis.axvline(column, color="#444444", lw=1.0)
        for at, text in scale:
            box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
            axis.text(column + 0.015, at, text, fontsize=8, va="center", ha="left", bbox=box, zorder=5)
    axis.set_xticks(range(columns + 1), [*(part.path for part in search.space), search.metric], fontsize=9)
    axis.set_xlim(-0.1, columns + 0.25)
    axis.set_ylim(-0.06, 1.06)
    axis.set_yticks([])
    axis.tick_params(axis="x", length=0)
    axis.spines[:].set_visible(False)
    axis.set_title("complete trials (best: red, darker is better)", fontsize=9)


def height(part: Dimension, value: Value) -> float:
    """Height of a value on its axis, from 0 to 1."""
    if part.choices:
        return part.choices.index(value) / max(len(part.choices) - 1, 1)
    if part.high == part.low:
        return 0.5
    if part.log:
        return math.log(value / part.low) / math.log(part.high / part.low)
    return (value - part.low) / (part.high - part.low)


def ticks(part: Dimension) -> list[tuple[float, str]]:
    """(height, label) of the ticks of an axis."""
    if part.choices:
        return [(height(part, value), str(value)) for value in part.choices]
    if part.high == part.low:
        return [(0.5, f"{part.low:g}")]
    if part.step is not None and (part.high - part.low) / part.step < 8:
        values = [part.low + i * part.step for i in range(round((part.high - part.low) / part.step) + 1)]
        return [(height(part, value), f"{value:.3g}") for value in values]
    shares = (0, 0.25, 0.5, 0.75, 1)
    if part.log:
        return [(share, f"{part.low * (part.high / part.low) ** share:.2g}") for share in shares]
    return [(share, f"{part.low + share * (part.high - part.low):.3g}") for share in shares]
