"""Reports from run directories written by hand: every number in them can be checked."""

import json
from pathlib import Path

import pytest

from bertgpt.studies.ablation import arm_table, collect, find_series
from bertgpt.studies.report import comparison, differences, overview, panels, report
from bertgpt.studies.results import read_run
from bertgpt.studies.verdicts import summary, verdicts
from bertgpt.types import Table, UserError


def write_run(
    path: Path, name: str, accuracy: float, lr: float, finished: bool = True, init_from: str | None = None
) -> Path:
    run = path / name
    run.mkdir()
    experiment = {
        "type": "bertgpt.config:Experiment",
        "name": name,
        "objective": {"type": "bertgpt.objectives.classify:Classify"},
        "data": {"type": "bertgpt.tasks.classification:TextClassification", "path": "reviews.csv"},
        "optim": {"type": "bertgpt.training.optim:AdamW", "lr": lr},
        "init_from": init_from,
        "seed": 0,
    }
    (run / "experiment.json").write_text(json.dumps(experiment))
    lines = [
        {"kind": "train", "step": 10 * i, "time": i, "loss": 1 / i, "accuracy": 1 - 1 / i, "lr": lr, "grad_norm": 1.0,
         "tokens": 100 * i, "tokens_per_second": 1000.0, "matmul_utilisation": 0.5, "data_wait": 0.0}
        for i in (1, 2, 3)
    ]  # fmt: skip
    lines.append({"kind": "eval", "step": 30, "name": "validation", "time": 4, "loss": 0.5, "accuracy": accuracy})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        results = {
            "step": 30, "parameters": 1234, "tokens": 300, "tokens_per_second": 1000.0, "seconds": 0.3,
            "evals": {"validation": {"loss": 0.5, "accuracy": accuracy}, "test": {"loss": 0.6, "accuracy": accuracy}},
            "notes": {"train": ["3 of 9 texts are cut to 8 tokens"], "test": []},
            "higher_is_better": {
                f"{split}/{metric}": metric == "accuracy"
                for split in ("validation", "test")
                for metric in ("loss", "accuracy")
            },
            "baselines": {"majority class": {"validation": {"accuracy": 0.5}, "test": {"accuracy": 0.7}}},
        }  # fmt: skip
        (run / "results.json").write_text(json.dumps(results))
    return run


def test_the_page_holds_picture_tables_and_verdicts(tmp_path: Path):
    runs = [write_run(tmp_path, "a", 0.6125, 0.1), write_run(tmp_path, "b", 0.8, 0.2)]
    png, markdown, page = report(runs, tmp_path / "out")
    assert png.read_bytes().startswith(b"\x89PNG\r\n") and len(png.read_bytes()) > 10_000
    for text in (markdown.read_text(), page.read_text()):
        for expected in (
            "3 of 9 texts are cut",
            "majority class",
            "0.6125",
            "0.8000",
            "1,234",
            "optim.lr",
            "0.1",
            "0.2",
        ):
            assert expected in text, expected
        assert "b classifies 80.0 % of the test examples correctly; majority class 70.0 %, a 61.3 %." in text
    assert "![curves](report.png)" in markdown.read_text()
    assert "data:image/png;base64," in page.read_text()


def test_tables_say_what_the_runs_say(tmp_path: Path):
    records = [read_run(write_run(tmp_path, "a", 0.6, 0.1)), read_run(write_run(tmp_path, "b", 0.8, 0.2))]
    (table,) = comparison(records)
    assert table.columns == ["", "validation accuracy", "test accuracy", "validation loss", "test loss"]
    assert table.rows == [
        ["majority class", "0.5000", "0.7000", "–", "–"],
        ["a", "0.6000", "0.6000", "0.5000", "0.6000"],
        ["b", "0.8000", "0.8000", "0.5000", "0.6000"],
    ]
    assert overview(records).rows[0] == ["a", "30", "1,234", "300", "1,000", "0"]
    assert differences(records)[0].rows == [["optim.lr", "0.1", "0.2"]]
    assert summary(records) == Table(
        "Held-out results",
        ["", "accuracy", "loss"],
        [
            ["classify, test split", "", ""],
            ["  majority class", "0.700", "–"],
            ["  a", "0.600", "0.600"],
            ["  b", "0.800", "0.600"],
        ],
    )


def test_a_verdict_compares_the_best_run_with_itself_from_scratch(tmp_path: Path):
    scratch = write_run(tmp_path, "scratch", 0.75, 0.1)
    tuned = write_run(tmp_path, "tuned", 0.8, 0.1, init_from="pre")
    other = write_run(tmp_path, "other", 0.72, 0.2)
    assert verdicts([read_run(run) for run in (scratch, tuned, other)]) == [
        "tuned classifies 80.0 % of the test examples correctly; the same network from scratch (scratch) 75.0 %,"
        " other 72.0 %, majority class 70.0 %."
    ]


def test_a_verdict_says_which_baselines_are_not_beaten(tmp_path: Path):
    (line,) = verdicts([read_run(write_run(tmp_path, "a", 0.7, 0.1))])
    assert line.endswith("correctly; majority class 70.0 %. It does not beat majority class.")


def test_a_verdict_lists_no_more_than_a_few_runs(tmp_path: Path):
    runs = [write_run(tmp_path, f"r{i}", 0.7 + 0.02 * i, 0.1 * i) for i in range(1, 9)]
    (line,) = verdicts([read_run(run) for run in runs])
    assert line == (
        "r8 classifies 86.0 % of the test examples correctly; majority class 70.0 %; the other 7 runs 84.0 % to 72.0 %."
    )


def test_a_language_model_is_compared_by_its_loss_per_token(tmp_path: Path):
    run = read_run(write_run(tmp_path, "pre", 0.5, 0.1))
    values = {"loss": 5.0, "mlm_loss": 4.314, "mlm_accuracy": 0.28, "nsp_loss": 0.686, "nsp_accuracy": 0.6}
    counts = {"unigram": {"mlm_loss": 6.57, "mlm_accuracy": 0.04}, "bigram": {"mlm_loss": 4.92, "mlm_accuracy": 0.15}}
    run.experiment["objective"]["type"] = "bertgpt.objectives.mlm:MaskedLM"
    run.results.update(
        evals={"validation": values}, baselines={name: {"validation": found} for name, found in counts.items()}
    )
    run.results["higher_is_better"] = {f"validation/{metric}": metric.endswith("accuracy") for metric in values}
    assert verdicts([run]) == [
        "pre (masked LM) reaches a validation loss of 4.31 nats per token; bigram 4.92, unigram 6.57."
    ]
    table = summary([run])
    assert table.columns == ["", "mlm accuracy", "nsp accuracy", "mlm loss", "nsp loss"]
    assert table.rows[0] == ["masked LM, validation split", "", "", "", ""]
    assert table.rows[-1] == ["  pre", "0.280", "0.600", "4.314", "0.686"]


def test_a_metric_that_was_measured_once_is_no_curve(tmp_path: Path):
    run = read_run(write_run(tmp_path, "a", 0.6, 0.1))
    once = run._replace(lines=[line | ({"macro_f1": 0.5} if line["kind"] == "eval" else {}) for line in run.lines])
    assert panels([once]) == ["loss", "accuracy", "lr", "tokens_per_second"]


def test_an_unfinished_run_is_drawn_and_marked(tmp_path: Path):
    records = [read_run(write_run(tmp_path, "a", 0.6, 0.1, finished=False))]
    assert overview(records).rows == [["a", "30 (unfinished)", "–", "–", "–", "–"]]
    assert comparison(records) == [] and verdicts(records) == []
    assert report([tmp_path / "a"], tmp_path / "out")[0].exists()


def test_what_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no run here"):
        report([tmp_path], tmp_path / "out")
    run = write_run(tmp_path, "a", 0.6, 0.1)
    (run / "results.json").write_text("{")
    with pytest.raises(UserError, match="results.json: cannot be read as JSON"):
        report([run], tmp_path / "out")
    (run / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="has logged nothing yet"):
        report([run], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_runs_that_differ_in_their_seed_alone_become_one_arm_with_mean_and_deviation(tmp_path: Path):
    for arm, lr, values in (("low", 0.1, (0.5, 0.6, 0.7)), ("high", 0.2, (0.8, 0.8, 0.95)), ("once", 0.3, (0.4,))):
        for seed, value in enumerate(values):
            run = write_run(tmp_path, f"{arm}.{seed}", value, lr)
            experiment = json.loads((run / "experiment.json").read_text()) | {"seed": seed}
            (run / "experiment.json").write_text(json.dumps(experiment))
    paths = sorted(path for path in tmp_path.iterdir())
    low, high = sorted(collect([read_run(path) for path in paths]), key=lambda arm: arm.mean("test accuracy"))
    assert (low.name, low.seeds, high.name) == ("low", [0, 1, 2], "high")
    assert (low.mean("validation accuracy"), low.deviation("validation accuracy")) == pytest.approx((0.6, 0.1))
    titles, body = arm_table([low, high])
    assert titles == ["", "seeds", "validation accuracy", "test accuracy"]  # the losses are all the same
    assert body[0] == ["low", "3", "0.6000 ± 0.1000", "0.6000 ± 0.1000"]
    written = report(paths, tmp_path / "out")
    assert [path.name for path in written] == ["ablation.png", "report.png", "report.md", "report.html"]
    assert "0.6000 ± 0.1000" in written[2].read_text() and written[0].read_bytes().startswith(b"\x89PNG")


def test_shares_of_labels_are_no_curves_but_those_of_experts_are(tmp_path: Path):
    run = read_run(write_run(tmp_path, "a", 0.6, 0.1))
    ends = ("max", "min", "entropy")
    shares = {f"{name}_{end}": 0.5 for name in ("nsp_labels", "router_load") for end in ends}
    logged = run._replace(lines=[line | shares for line in run.lines])
    assert panels([logged]) == ["loss", "accuracy", *(f"router_load_{end}" for end in ends), "lr", "tokens_per_second"]


def test_arms_with_the_same_numbers_leave_nothing_to_draw_apart(tmp_path: Path):
    for arm, lr in (("a", 0.1), ("b", 0.2)):
        for seed in (0, 1):
            run = write_run(tmp_path, f"{arm}.{seed}", 0.6, lr)
            experiment = json.loads((run / "experiment.json").read_text()) | {"seed": seed}
            (run / "experiment.json").write_text(json.dumps(experiment))
    written = report(sorted(tmp_path.iterdir()), tmp_path / "out")
    assert [path.name for path in written] == ["report.png", "report.md", "report.html"]


def test_arms_that_differ_in_one_number_become_curves_whichever_examples_their_seeds_draw(tmp_path: Path):
    for start, floor in ((None, 0.5), ("package:encoder", 0.7)):
        for size in (8, 32, 512):
            for seed in (0, 1):
                name = f"few.{'scratch' if start is None else 'pretrained'}.{size}.{seed}"
                run = write_run(tmp_path, name, floor + size / 5000 + seed / 100, 0.1, init_from=start)
                experiment = json.loads((run / "experiment.json").read_text()) | {"seed": seed}
                experiment["data"] |= {"max_examples": size, "subset": seed}
                experiment["steps"] = max(60, size)  # goes with the number
                (run / "experiment.json").write_text(json.dumps(experiment))
    paths = sorted(path for path in tmp_path.iterdir())
    arms = collect([read_run(path) for path in paths])
    series = find_series(arms)
    assert len(arms) == 6 and series.field == "data.max_examples"
    assert {name: [x for x, _ in line] for name, line in series.lines.items()} == dict.fromkeys(
        ("few.pretrained", "few.scratch"), [8, 32, 512]
    )
    x, arm = series.lines["few.scratch"][1]
    assert arm.mean("test accuracy") == pytest.approx(0.5 + x / 5000 + 0.005)
    assert find_series(arms[:4]) is None  # a line of two points is none
    written = report(paths, tmp_path / "out")
    assert [path.name for path in written][:2] == ["curve.png", "ablation.png"]
    assert written[0].read_bytes().startswith(b"\x89PNG")


def test_directions_of_results_that_lack_them_are_those_the_objective_declares(tmp_path: Path):
    run = read_run(write_run(tmp_path, "a", 0.6, 0.1))
    del run.results["higher_is_better"]
    run.results["evals"]["test"]["macro_f1"] = 0.5
    assert run.directions["test accuracy"] and run.directions["test loss"] is False
    assert "test macro_f1" not in run.directions
