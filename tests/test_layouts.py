"""The layout of parameters and optimiser states of real sizes, from their shapes alone."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from conftest import fast

from bertgpt.config import Mesh
from bertgpt.models.bert import BERT_BASE, BERT_LARGE
from bertgpt.models.gpt import GPT2_SMALL
from bertgpt.models.switch import SWITCH_BASE_8
from bertgpt.models.t5 import T5_BASE
from bertgpt.objectives.lm import CausalLM
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.objectives.span import SpanCorruption
from bertgpt.sharding import LARGEST_WHOLE, make_mesh, state_shardings
from bertgpt.training.optim import Adafactor, AdamW, Lamb
from bertgpt.training.state import TrainState, boxed_state
from bertgpt.types import UserError, Vocab

MODELS = {
    "BERT-base": (BERT_BASE, MaskedLM(pair="nsp")),
    "BERT-large": (BERT_LARGE, MaskedLM(pair="nsp")),
    "GPT-2": (GPT2_SMALL, CausalLM()),
    "T5-base": (T5_BASE, SpanCorruption()),
    "Switch-base-8": (SWITCH_BASE_8, SpanCorruption()),
}
OPTIMISERS = {"AdamW": AdamW(), "LAMB": Lamb(), "Adafactor": Adafactor()}
MIXED = [Mesh(data=2, fsdp=2, tensor=2), Mesh(data=1, fsdp=4, tensor=2), Mesh(data=1, fsdp=2, expert=2, tensor=2)]


def abstract_state(model: str, optimiser: str) -> TrainState:
    """Shapes of a training state, boxed with the names of their axes."""
    config, objective = MODELS[model]
    size = config.vocab_size
    made = objective.make(Vocab(size, 0, 1, 2, 3, 4, 5, 6, sentinels=tuple(range(size - 100, size))))
    fields = {name: (8, 128) for name in ("input_ids", "segment_ids", "positions", "type_ids")} | {"pair_label": (8,)}
    batch = {name: jnp.zeros(shape, jnp.int32) for name, shape in fields.items()}
    tx, _ = OPTIMISERS[optimiser].make(20_000)
    return jax.eval_shape(lambda: boxed_state(config.make(), made, tx, batch, seed=0))


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("model", fast(MODELS, "BERT-base"))
def test_nothing_large_is_whole_on_a_mixed_mesh(model: str, optimiser: str):
    abstract = abstract_state(model, optimiser)
    leaves = jax.tree_util.tree_leaves_with_path(nn.unbox(abstract))
    for layout in MIXED:
        mesh = make_mesh(layout)
        shardings = jax.tree.leaves(state_shardings(abstract, mesh))
        whole = {
            jax.tree_util.keystr(path): leaf.shape
            for (path, leaf), sharding in zip(leaves, shardings, strict=True)
            if math.prod(leaf.shape) * leaf.dtype.itemsize > LARGEST_WHOLE and sharding.is_fully_replicated
        }
        # An odd number of entries cannot be split; Adafactor keeps a statistic for each row of such a table.
        assert {name for name, shape in whole.items() if shape != (50_257,)} == set()


def test_moments_are_laid_out_as_their_parameters_are():
    mesh = make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    for optimiser in ("AdamW", "LAMB"):
        state = state_shardings(abstract_state("BERT-base", optimiser), mesh)
        assert state.opt[1].mu == state.opt[1].nu == state.params


@pytest.mark.slow
def test_statistics_of_adafactor_are_laid_out_as_the_dimensions_they_are_of():
    mesh = make_mesh(Mesh(data=1, fsdp=2, expert=2, tensor=2))
    statistics = state_shardings(abstract_state("Switch-base-8", "Adafactor"), mesh).opt[0]
    row, column = (tree["encoder"]["block_1"]["mlp"]["up"].spec for tree in (statistics.v_row, statistics.v_col))
    assert (tuple(row), tuple(column)) == ((None, "expert", "fsdp"), (None, "expert", "tensor"))
    heads = statistics.v_row["encoder"]["block_0"]["attention"]["query"]["kernel"].spec
    assert tuple(heads) == (None, "fsdp")
    assert tuple(statistics.v_col["token"].spec) == ("tensor",)


def test_norms_of_a_deep_stack_are_split_although_no_rule_says_so():
    scale = jax.ShapeDtypeStruct((24, 1024), "float32")
    tree = {"norm": {"scale": nn.LogicallyPartitioned(scale, ("layers", "norm"))}, "step": scale}
    for layout, expected in ((Mesh(data=1, fsdp=8), "fsdp"), (Mesh(data=1, tensor=8), "tensor"), (Mesh(data=8), None)):
        spec = state_shardings(tree, make_mesh(layout))["norm"]["scale"].spec
        assert (tuple(spec) + (None, None))[:2] == (None, expected)


def test_a_vocabulary_that_does_not_divide_is_split_along_its_width():
    table = nn.LogicallyPartitioned(jax.ShapeDtypeStruct((50_257, 768), "float32"), ("vocab", "embed"))
    found = state_shardings({"token": table}, make_mesh(Mesh(data=2, fsdp=2, tensor=2)))["token"]
    assert found.shard_shape((50_257, 768)) == (50_257, 192)


@pytest.mark.parametrize(
    ("names", "shape", "layout", "message"),
    [
        (("embed", "heads", "head_dim"), (64, 3, 8), Mesh(tensor=2), r"num_heads=3 is not divisible by mesh\.tensor=2"),
        (("expert", "embed", "mlp"), (6, 64, 64), Mesh(expert=4), r"num_experts=6 is not divisible by mesh\.expert=4"),
        (("embed", "mlp"), (64, 6), Mesh(tensor=4), r"model\.d_ff=6 is not divisible by mesh\.tensor=4"),
        (("embed", "mlp"), (60, 8), Mesh(fsdp=8), r"model\.d_model=60 is not divisible by mesh\.fsdp=8"),
    ],
)  # fmt: skip
def test_a_dimension_that_does_not_divide_names_field_and_axis(names: tuple, shape: tuple, layout: Mesh, message: str):
    tree = {"w": nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, "float32"), names)}
    with pytest.raises(UserError, match=message) as raised:
        state_shardings(tree, make_mesh(layout))
    assert "\n" not in str(raised.value)
