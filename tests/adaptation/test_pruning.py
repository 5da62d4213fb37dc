"""Structured pruning: what is removed is what matters least, and what is left computes what the masked model does."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import TINY

from bertgpt.adaptation.pruning import (
    Importance,
    choose_layers,
    gated,
    measure_importance,
    most_important,
    prune_params,
    take_layers,
    with_zero_heads,
)
from bertgpt.cli.main import main
from bertgpt.config import Experiment, Mesh, with_overrides
from bertgpt.inference.model import load
from bertgpt.inference.prune import prune, save
from bertgpt.models.apply import make_apply
from bertgpt.models.electra import ELECTRA_SMALL
from bertgpt.models.gpt import GptConfig
from bertgpt.objectives.classify import Classify
from bertgpt.objectives.lm import CausalLM
from bertgpt.objectives.similarity import BiEncode
from bertgpt.sharding import make_mesh
from bertgpt.training.evaluate import evaluate
from bertgpt.training.loop import train
from bertgpt.training.state import init_state
from bertgpt.types import Inputs, UserError, Vocab

VOCAB = Vocab(200, pad=0, unk=1, cls=2, sep=3, mask=4)
BERT = dataclasses.replace(TINY, num_layers=3, dropout=0.0, attention_dropout=0.0, stddev=0.3)
GPT = GptConfig(
    vocab_size=200, d_model=16, num_layers=3, num_heads=4, d_ff=32, max_len=32, dropout=0.0, attention_dropout=0.0,
    scan=True, stddev=0.3,
)  # fmt: skip
BATCH = {
    "input_ids": np.random.default_rng(0).integers(5, 200, (4, 12)).astype(np.int32),
    "segment_ids": (np.arange(12) < np.array([[12], [7], [9], [3]])).astype(np.int32),
    "positions": np.tile(np.arange(12, dtype=np.int32), (4, 1)),
    "type_ids": np.zeros((4, 12), np.int32),
    "label": np.array([0, 1, 1, 0], np.int32),
}
INPUTS = Inputs(jnp.asarray(BATCH["input_ids"]), jnp.asarray(BATCH["segment_ids"]))


def start(config: Any, objective: Any = Classify(num_labels=2)) -> tuple[Any, Any, dict]:  # noqa: B008
    """(objective, apply, parameters on the host)."""
    made, module, mesh = objective.make(VOCAB), config.make(), make_mesh(Mesh(), jax.devices()[:1])
    state, _ = init_state(module, made, optax.identity(), jax.tree.map(jnp.asarray, BATCH), mesh, seed=0)
    rng = np.random.default_rng(3)  # biases too are away from 0
    params = jax.tree.map(lambda x: np.asarray(x) + rng.normal(size=x.shape).astype(x.dtype) * 0.1, state.params)
    return made, make_apply(module), params


def scores(config: Any) -> Importance:
    rng = np.random.default_rng(1)
    return Importance(rng.random((config.num_layers, config.num_heads)), rng.random((config.num_layers, config.d_ff)))


def hidden(config: Any, params: dict) -> np.ndarray:
    return np.asarray(jax.jit(make_apply(config.make()))(params, INPUTS))


@pytest.mark.usefixtures("float64")
def test_importance_is_the_mean_size_of_the_derivative_by_a_gate_of_each_example():
    made, _, params = start(BERT)
    apply, params = make_apply(BERT.make("float64")), jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
    half = {name: x[:2] for name, x in BATCH.items()}, {name: x[2:] for name, x in BATCH.items()}
    found = measure_importance(made, apply, params, BERT, half)

    @jax.jit
    def loss_of(heads: Any, units: Any, example: dict) -> Any:
        gates = Importance(heads, units)
        term = made.loss(apply, gated(params, "encoder", gates), example, None).terms["cross_entropy"]
        return term.sum / term.weight

    assert found.heads.shape == (3, 4) and found.units.shape == (3, 32) and found.heads.min() > 0
    for kind, at in ((0, (0, 1)), (0, (2, 3)), (1, (1, 30))):
        sizes = []
        for b in range(4):
            example, values, step = {name: x[b : b + 1] for name, x in BATCH.items()}, [], 1e-5
            for side in (1.0 + step, 1.0 - step):
                gates = [np.ones((3, 4)), np.ones((3, 32))]
                gates[kind][at] = side
                values.append(float(loss_of(*gates, example)))
            sizes.append(abs(values[0] - values[1]) / (2 * step))
        np.testing.assert_allclose(found[kind][at], np.mean(sizes), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("config", "objective"), [(BERT, Classify(num_labels=2)), (GPT, CausalLM())])
def test_a_pruned_model_equals_the_masked_one(config: Any, objective: Any):
    _, _, params = start(config, objective)
    importance = scores(config)
    small, kept = prune_params(config, params, num_heads=2, d_ff=20, importance=importance)
    assert (small.num_heads, small.head_dim, small.d_ff) == (2, 4, 20)
    assert kept[config.stacks[0]]["attention"]["query"]["kernel"].shape == (3, 16, 2, 4)
    masks = Importance(*(np.zeros_like(each, np.float32) for each in importance))
    for mask, each, count in zip(masks, importance, (2, 20), strict=True):
        for layer in range(3):
            mask[layer, sorted(range(each.shape[1]), key=lambda i: -each[layer, i])[:count]] = 1.0
    masked = hidden(config, gated(params, config.stacks[0], masks))
    np.testing.assert_allclose(hidden(small, kept), masked, rtol=0, atol=1e-6 * np.abs(masked).max())
    assert np.abs(hidden(config, params) - masked).max() > 0.1


def test_removing_heads_and_units_that_write_nothing_changes_nothing():
    made, apply, params = start(BERT)
    dead = Importance(np.tile(np.array([1, 0, 1, 0], np.float32), (3, 1)), np.ones((3, 32), np.float32))
    dead.units[:, 5:15] = 0
    params = jax.tree.map(np.asarray, gated(params, "encoder", dead))
    importance = measure_importance(made, apply, params, BERT, [BATCH])
    assert np.all((importance.heads == 0) == (dead.heads == 0)) and np.all(importance.units[:, 5:15] == 0)
    small, kept = prune_params(BERT, params, num_heads=2, d_ff=22, importance=importance)
    before = hidden(BERT, params)
    np.testing.assert_allclose(hidden(small, kept), before, rtol=0, atol=1e-6 * np.abs(before).max())


def test_a_layer_that_passes_its_input_on_can_be_dropped():
    config = dataclasses.replace(BERT, norm_position="pre")
    _, _, params = start(config)
    encoder = params["encoder"]
    for sublayer, name in (("attention", "out"), ("mlp", "down")):
        for array in encoder[sublayer][name].values():
            array[1] = 0
    small, kept = take_layers(config, params, (0, 2))
    assert small.num_layers == 2
    before = hidden(config, params)
    np.testing.assert_allclose(hidden(small, kept), before, rtol=0, atol=1e-6 * np.abs(before).max())


def test_of_equal_scores_the_first_are_kept_and_layers_are_dropped_from_the_top_or_evenly():
    assert most_important(np.array([[0.1, 0.3, 0.3, 0.2], [1, 1, 1, 1]]), 2).tolist() == [[1, 2], [0, 1]]
    assert choose_layers(6, 3, "top") == (0, 1, 2) and choose_layers(6, 3, "alternate") == (0, 2, 4)
    assert choose_layers(12, 4, "alternate") == (0, 3, 6, 9) and choose_layers(6, 4, "alternate") == (0, 1, 3, 4)
    with pytest.raises(UserError, match="num_layers=7 must be between 1 and the model's 6"):
        choose_layers(6, 7, "top")


def test_heads_of_zeros_restore_the_shape_that_others_require():
    _, _, params = start(BERT)
    small, kept = prune_params(BERT, params, num_heads=3, importance=scores(BERT))
    whole, padded = with_zero_heads(small, kept)
    assert (whole.num_heads, whole.head_dim, whole.head_width) == (4, None, 4)
    expected = hidden(small, kept)
    np.testing.assert_allclose(hidden(whole, padded), expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert with_zero_heads(BERT, params) == (BERT, params)
    with pytest.raises(UserError, match="head_dim=5: 4 heads of this width have no counterpart"):
        with_zero_heads(dataclasses.replace(BERT, head_dim=5), params)


def test_what_cannot_be_pruned_is_named():
    _, apply, params = start(BERT)
    with pytest.raises(UserError, match="num_heads=5 must be between 1 and the model's 4"):
        prune_params(BERT, params, num_heads=5, importance=scores(BERT))
    with pytest.raises(UserError, match="d_ff=8 needs the importance"):
        prune_params(BERT, params, d_ff=8)
    with pytest.raises(UserError, match="layers=\\(0, 3\\) must be layers of the model, 0 to 2"):
        prune_params(BERT, params, layers=(0, 3))
    for config in (
        dataclasses.replace(BERT, shared_groups=1),
        dataclasses.replace(GPT, num_layers=2, local_window=4),
        ELECTRA_SMALL,
    ):
        with pytest.raises(UserError, match="only BERT and GPT models whose layers are all alike"):
            prune_params(config, params, layers=(0,))
    with pytest.raises(UserError, match="compares the examples of a batch"):
        measure_importance(BiEncode("negatives").make(VOCAB), apply, params, BERT, [])


@pytest.mark.slow
def test_a_pruned_run_is_a_run_from_which_others_start_and_which_is_exported(
    tiny: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tiny = with_overrides(tiny, {"mesh": Mesh(data=1, tensor=2, fsdp=4), "steps": 2, "evals": tiny.evals[:1]})
    train(tiny, tmp_path)
    out = tmp_path / "small"
    command = ["prune", str(tmp_path / "tiny"), str(out), "--num_layers", "1", "--num_heads", "2", "--d_ff", "8"]
    assert main([*command, "--examples", "20"]) == 0
    assert "num_heads: 4 → 2" in capsys.readouterr().out
    model = load(out)
    assert (model.config.num_layers, model.config.num_heads, model.config.head_dim) == (1, 2, 4)
    assert model.name == "small" and np.isfinite(evaluate(model)["validation"].values["loss"])
    assert main(command) == 2 and "small" in capsys.readouterr().err
    # Another run starts from it.
    student = with_overrides(tiny, {"name": "student", "model": None, "init_from": "small", "mesh": Mesh(data=8)})
    assert train(student, tmp_path)["step"] == 2
    assert load(tmp_path / "student").config == model.config
    # Exported with heads of zeros, and read again, it computes the same.
    assert main(["convert", str(out), str(tmp_path / "hf"), "--architecture", "BertForPreTraining"]) == 0
    assert "2 heads of zeros in each layer" in capsys.readouterr().out
    again = load(tmp_path / "hf")
    assert (again.config.num_heads, again.config.d_ff, again.config.num_layers) == (4, 8, 1)
    # Rows of the embedding beyond the tokenizer's are not exported.
    known = INPUTS._replace(input_ids=INPUTS.input_ids % again.config.vocab_size)
    expected, found = (np.asarray(each.apply(each.params, known)) for each in (model, again))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    # A model without data loses layers only.
    with pytest.raises(UserError, match="is not a run, so it has no training data"):
        prune(again, num_heads=2)
    save(prune(load(tmp_path / "hf"), layers=(0,)), tmp_path / "hf_small")
    assert load(tmp_path / "hf_small").config.num_layers == 1


@pytest.mark.slow
def test_a_student_starts_from_some_layers_of_a_model(tiny: Experiment, tmp_path: Path):
    tiny = with_overrides(tiny, {"steps": 2, "evals": (), "model.num_layers": 3, "mesh": Mesh(data=8)})
    train(tiny, tmp_path)
    changes = {"name": "student", "model": None, "init_from": "tiny", "init_layers": (0, 2), "optim.lr": 1e-30}
    student = with_overrides(tiny, changes)
    train(student, tmp_path)
    teacher, found = (load(tmp_path / name, arrange="host") for name in ("tiny", "student"))
    assert found.config == dataclasses.replace(teacher.config, num_layers=2)
    kernels = [model.params["encoder"]["mlp"]["up"]["kernel"] for model in (teacher, found)]
    np.testing.assert_allclose(kernels[1], kernels[0][[0, 2]], rtol=1e-6)
    with pytest.raises(UserError, match="init_layers: tiny: layers=\\(0, 5\\) must be layers of the model, 0 to 2"):
        train(with_overrides(student, {"name": "other", "init_layers": (0, 5)}), tmp_path)
    with pytest.raises(UserError, match="needs init_from"):
        with_overrides(tiny, {"init_layers": (0,)})
