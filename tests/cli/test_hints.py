"""Unknown flags lead to the field that is meant; experiments are found by name, path and module; help is light."""

import subprocess
import sys
from pathlib import Path

import pytest

from bertgpt.cli.experiments import find_all, load_experiments, packaged
from bertgpt.cli.main import main


@pytest.mark.parametrize(
    "flag, field",
    [
        ("--lr", "--optim.lr"),
        ("--learning_rate", "--optim.lr"),
        ("--output_dir", "--workdir"),
        ("--bf16", "--compute_dtype bfloat16"),
        ("--wandb", "metrics.jsonl"),
        ("--max_seq_length", "--data.seq_len"),
        ("--per-device-train-batch-size", "--batch_size"),
        ("--stepz", "--steps"),
        ("--optim:adafactor", "with_overrides(experiment, {'optim': …})"),
    ],
)
def test_the_names_of_transformers_lead_to_the_right_field(flag: str, field: str, capsys: pytest.CaptureFixture):
    assert main(["train", "demo/sentiment:scratch", flag, "1"]) == 2
    error = capsys.readouterr().err
    assert field in error and error.count("\n") == 1


@pytest.mark.parametrize("flag", ["--epochs", "--num_train_epochs"])
def test_epochs_lead_to_epochs_or_steps(flag: str, capsys: pytest.CaptureFixture):
    assert main(["train", "demo/sentiment:scratch", flag, "x"]) == 2
    error = capsys.readouterr().err
    assert "--epochs" in error or "--steps" in error


def test_an_experiment_has_the_same_module_however_it_is_named():
    names = ("demo/pretrain", "experiments/demo/pretrain.py", "bertgpt.experiments.demo.pretrain")
    assert len({load_experiments(name)[0] for name in names}) == 1
    assert {"demo/pretrain", "pretrain/bert_base"} <= {found.name for found in find_all()}
    module = sys.modules["bertgpt.experiments.demo.pretrain"]
    assert packaged(Path(module.__file__)) == module.__name__


def test_bertgpt_alone_prints_help_without_heavy_imports(capsys: pytest.CaptureFixture):
    assert main([]) == 0 and "usage: bertgpt" in capsys.readouterr().out
    code = (
        "import sys; from bertgpt.cli.main import main; main(['--help'])"
        "; assert not {'jax', 'flax', 'grain'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
