"""Experiments as values: overriding, comparing, storing, and the mistakes one makes on a command line."""

import dataclasses
import json

import pytest

from bertgpt.cli.options import print_fields
from bertgpt.config import (
    Experiment,
    Mesh,
    arms,
    diff,
    fingerprint,
    from_json,
    leaves,
    to_json,
    with_overrides,
    with_steps,
)
from bertgpt.overrides import parse_overrides
from bertgpt.types import UserError


@pytest.mark.parametrize("name", ["cache", "report", "Cache"])
def test_names_of_other_folders_beside_the_runs_are_refused(tiny: Experiment, name: str):
    with pytest.raises(UserError, match=f"name='{name}' is the folder of"):
        with_overrides(tiny, {"name": name})


def test_json_round_trip_is_the_identity(tiny: Experiment):
    text = json.dumps(to_json(tiny))
    assert from_json(json.loads(text)) == tiny


def test_experiments_written_before_a_mesh_had_all_its_axes_are_read(tiny: Experiment):
    written = to_json(tiny)
    written["mesh"] = {"type": "bertgpt.config:Mesh", "data": 2, "fsdp": 2, "tensor": 2}
    assert from_json(written).mesh == Mesh(dcn=1, data=2, fsdp=2, expert=1, sequence=1, tensor=2)


def test_json_builds_dataclasses_only():
    with pytest.raises(UserError, match="cannot rebuild 'subprocess:run'"):
        from_json({"type": "subprocess:run", "args": "true"})
    with pytest.raises(UserError, match="is not part of bertgpt"):
        from_json({"type": "antigravity:Thing"})
    with pytest.raises(UserError, match="unexpected keyword argument 'old_field'"):
        from_json({"type": "bertgpt.config:Mesh", "old_field": 1})


def test_overrides_reach_leaves_parts_and_members_of_tuples(tiny: Experiment):
    changed = with_overrides(tiny, {"optim.lr": 0.5, "mesh": Mesh(fsdp=2), "evals.1.name": "held_out"})
    assert changed.optim.lr == 0.5 and changed.mesh.fsdp == 2 and changed.evals[1].name == "held_out"
    assert set(diff(tiny, changed)) == {"optim.lr", "mesh.data", "mesh.fsdp", "evals.1.name"}


def test_overrides_apply_at_once_so_that_only_the_result_must_be_valid(tiny: Experiment):
    changes = {"objective.mask_token_rate": 1.0, "objective.random_token_rate": 0.0}  # the first alone would exceed 1
    assert with_overrides(tiny, changes).objective.mask_token_rate == 1.0
    with pytest.raises(UserError, match="exceed 1"):
        with_overrides(tiny, {"objective.mask_token_rate": 1.0})


def test_a_misspelt_path_names_the_nearest(tiny: Experiment):
    with pytest.raises(UserError, match="no field 'objective.mask_rat'; did you mean 'objective.mask_rate'?"):
        with_overrides(tiny, {"objective.mask_rat": 0.4})


def test_diff_shows_parts_of_another_type(tiny: Experiment):
    from bertgpt.objectives.classify import Classify

    changed = diff(tiny, dataclasses.replace(tiny, objective=Classify()))
    assert changed["objective.type"] == ("bertgpt.objectives.mlm:MaskedLM", "bertgpt.objectives.classify:Classify")
    assert changed["objective.mask_rate"] == (0.15, "<absent>") and changed["objective.num_labels"] == (
        "<absent>",
        None,
    )


def test_fingerprints_are_equal_exactly_when_runs_compute_the_same(tiny: Experiment):
    assert fingerprint(tiny) == fingerprint(dataclasses.replace(tiny))
    assert fingerprint(tiny) != fingerprint(dataclasses.replace(tiny, seed=1))
    watched = dataclasses.replace(tiny, log_every=7, eval_every=3, evals=(), mesh=Mesh(fsdp=2), best_mode="max")
    assert fingerprint(tiny) == fingerprint(watched) and len(diff(tiny, watched)) > 5


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 5, "epochs": 2.0}, "steps=5 and epochs=2.0 are both given"),
        ({"steps": None}, "neither steps nor epochs is given"),
        ({"steps": None, "epochs": 0.0}, "epochs=0.0 must be positive"),
    ],
)
def test_either_steps_or_epochs_is_given(tiny: Experiment, changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        with_overrides(tiny, changes)


def test_epochs_are_rounded_up_to_steps(tiny: Experiment):
    for epochs, steps in ((1.0, 10), (2.5, 25), (0.01, 1), (1.01, 11), (0.3, 3)):
        counted = with_steps(with_overrides(tiny, {"steps": None, "epochs": epochs}), steps_per_epoch=10)
        assert (counted.steps, counted.epochs) == (steps, None)
    assert with_steps(tiny, steps_per_epoch=10) == tiny


def test_arms_are_named_after_their_base(tiny: Experiment):
    made = arms(tiny, {"base": {}, "high": {"optim.lr": 1.0}})
    assert [arm.name for arm in made.values()] == ["tiny.base", "tiny.high"]
    assert set(diff(made["base"], made["high"])) == {"name", "optim.lr"}


def test_every_field_has_a_doc(tiny: Experiment):
    """`--help` shows the string below each field; a field without one is shown bare."""
    import ast
    import inspect
    import sys

    for part in (tiny, tiny.model, tiny.objective, tiny.data, tiny.optim, tiny.mesh, tiny.evals[0]):
        source = ast.parse(inspect.getsource(sys.modules[type(part).__module__]))
        body = next(n.body for n in ast.walk(source) if isinstance(n, ast.ClassDef) and n.name == type(part).__name__)
        for field, doc in zip(body, [*body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and "ClassVar" not in ast.unparse(field.annotation):
                assert isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant), ast.unparse(field)


def test_the_command_line_sets_leaves(tiny: Experiment):
    args = "--optim.lr 3e-4 --objective.pair None --data.strip_html True --mesh.fsdp=2 --init_from x".split()
    args += "--evals.0.max_batches 3 --compute-dtype bfloat16".split()
    changed = parse_overrides(tiny, args)
    assert changed.optim.lr == 3e-4 and changed.objective.pair is None and changed.data.strip_html is True
    assert changed.mesh.fsdp == 2 and changed.init_from == "x" and changed.evals[0].max_batches == 3
    assert changed.compute_dtype == "bfloat16"
    assert parse_overrides(tiny, []) == tiny


@pytest.mark.parametrize(
    "args, message",
    [
        (["--objective.mask_rat", "0.4"], r"unknown option --objective.mask_rat; did you mean --objective.mask_rate\?"),
        (["--qwertz", "1"], "unknown option --qwertz"),
        (["--steps", "many"], "steps.*many"),
        (["--optim.decay", "exponential"], "--optim.decay exponential: must be linear or cosine"),
        (["--steps"], "steps"),
        (["--steps", "0"], "steps=0 must be at least 1"),
        (["--model.num_heads", "3"], "Bert: d_model=16 is not divisible by num_heads=3"),
        (["--batch_size", "10", "--microbatches", "3"], "batch_size=10 is not divisible by microbatches=3"),
        (["stray"], "stray"),
        (["--model", "bert"], r"--model: .*cannot replace a component; .*with_overrides\(experiment, \{'model': …\}\)"),
        (["--optim.type", "Adafactor"], "cannot replace a component.*'optim'"),
        (["--lora.rank", "8"], "--lora.rank: lora is None.*'lora'"),
    ],
)
def test_mistakes_are_one_line_that_names_the_field(tiny: Experiment, args: list, message: str):
    with pytest.raises(UserError, match=message) as caught:
        parse_overrides(tiny, args)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_tokenizer_to_train_can_be_replaced_by_the_name_of_one(tiny: Experiment):
    from bertgpt.data.tokenizer import WordPiece

    trained = with_overrides(tiny, {"data.tokenizer": WordPiece()})
    assert parse_overrides(trained, ["--data.tokenizer", "some/dir", "--steps", "9"]).data.tokenizer == "some/dir"
    assert parse_overrides(trained, ["--data.tokenizer.vocab_size", "99"]).data.tokenizer == WordPiece(99)


def test_help_lists_every_field_with_its_doc(tiny: Experiment, capsys: pytest.CaptureFixture):
    print_fields(type(tiny), tiny, "bertgpt train tiny")
    text = capsys.readouterr().out
    for path, _ in leaves(tiny):
        if not path.endswith(".type"):
            assert f"--{path}" in text, path
    assert "fraction of each document's tokens that are" in " ".join(text.split())
