"""Every objective: neither microbatches, devices nor packing change its loss or its gradients, in float64."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import fast

from bertgpt.config import Mesh
from bertgpt.layers.moe import Experts
from bertgpt.models.apply import make_apply
from bertgpt.models.bert import BertConfig
from bertgpt.models.electra import electra
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import T5Config
from bertgpt.objectives.distill import Distill
from bertgpt.objectives.lm import CausalLM, PrefixLM
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.objectives.multitask import Multitask, Named
from bertgpt.objectives.rtd import ReplacedTokenDetection
from bertgpt.objectives.similarity import BiEncode
from bertgpt.objectives.span import SpanCorruption
from bertgpt.sharding import make_mesh, put_batch, state_shardings
from bertgpt.training.state import init_state
from bertgpt.training.step import loss_and_grads
from bertgpt.types import Vocab

pytestmark = pytest.mark.usefixtures("float64")
VOCAB = Vocab(size=64, pad=0, unk=1, cls=2, sep=3, mask=4, eos=5, sentinels=tuple(range(63, 55, -1)))
LENGTH, ROWS = 24, 16

BERT = BertConfig(
    vocab_size=64, d_model=8, num_layers=1, num_heads=2, d_ff=16, max_len=LENGTH, dropout=0.0, attention_dropout=0.0,
    scan=True, stddev=0.3,
)  # fmt: skip
GPT = GptConfig(
    vocab_size=64, d_model=8, num_layers=1, num_heads=2, d_ff=16, max_len=64, dropout=0.0, attention_dropout=0.0,
    scan=True, stddev=0.3,
)  # fmt: skip
T5 = T5Config(
    vocab_size=64,
    d_model=8,
    num_layers=1,
    num_decoder_layers=1,
    num_heads=2,
    head_dim=4,
    d_ff=16,
    dropout=0.0,
    scan=True,
)
# An expert's places belong to a row, so documents in a row share them: here all find room.
SWITCH = dataclasses.replace(
    T5, experts=Experts(4, every=1, train_capacity=8.0, eval_capacity=8.0, jitter=0.0, dropout=0.0)
)
_ELECTRA = electra(8, 1, 2, embed_dim=4, generator_fraction=1.0)
ELECTRA = dataclasses.replace(
    _ELECTRA,
    **{
        name: dataclasses.replace(
            getattr(_ELECTRA, name), vocab_size=64, max_len=LENGTH, dropout=0.0, attention_dropout=0.0, d_ff=16,
            scan=True, stddev=0.3,
        )
        for name in ("generator", "discriminator")
    },
)  # fmt: skip
SPANS = SpanCorruption(input_len=LENGTH, target_len=LENGTH, z_loss=1e-2, label_smoothing=0.1)
WIDE = dataclasses.replace(BERT, d_model=16, num_layers=2)
CASES: dict[str, tuple[Any, Any]] = {
    "distilled": (BERT, Distill(MaskedLM(), "teacher", logits_weight=0.7, hidden_weight=0.5)),
    "distilled_cosine": (
        dataclasses.replace(WIDE, num_layers=1),
        Distill(
            MaskedLM(),
            "teacher",
            logits_weight=0.7,
            hidden_weight=0.5,
            hidden="cosine",
            attention_weight=0.3,
            relation_heads=4,
        ),
    ),
    "mlm": (BERT, MaskedLM(label_smoothing=0.1, z_loss=1e-2)),
    "mlm_nsp": (BERT, MaskedLM(pair="nsp")),
    "mlm_sop": (BERT, MaskedLM(pair="sop")),
    "rtd": (ELECTRA, ReplacedTokenDetection()),
    "clm": (GPT, CausalLM(label_smoothing=0.1, z_loss=1e-2)),
    "prefix_decoder": (GPT, PrefixLM()),
    "prefix": (T5, PrefixLM(architecture="encoder_decoder")),
    "span": (T5, SPANS),
    "span_switch": (SWITCH, SPANS),
    "span_decoder": (GPT, dataclasses.replace(SPANS, architecture="decoder")),
    "mixture": (
        GPT,
        Multitask(
            (
                Named("clm", CausalLM(), weight=0.5, share=0.5),
                Named("span", dataclasses.replace(SPANS, architecture="decoder"), share=0.5),
            )
        ),
    ),
    "negatives": (BERT, BiEncode("negatives", scale=5.0)),
    "negatives_beside": (
        BERT,
        Multitask((Named("pairs", BiEncode("negatives", scale=5.0)), Named("scores", BiEncode("cosine"), 0.5))),
    ),
    "beside": (BERT, Multitask((Named("few", MaskedLM(mask_rate=0.1), 2.0), Named("many", MaskedLM(mask_rate=0.5))))),
}
PAIRS = ("mlm_nsp", "mlm_sop", "negatives", "negatives_beside")  # a pair fills its row


@functools.cache
def raw_batch(packed: bool = True) -> dict[str, np.ndarray]:
    """Rows of one to three documents of unequal length, with padding."""
    rng = np.random.default_rng(0)
    batch = {name: np.zeros((ROWS, LENGTH), np.int32) for name in ("input_ids", "segment_ids", "positions", "type_ids")}
    for r in range(ROWS):
        at = 0
        for segment in range(1, 1 + (rng.integers(1, 4) if packed else 1)):
            n = int(rng.integers(5, 9)) if packed else int(rng.integers(5, LENGTH))
            here = slice(at, at + n)
            batch["input_ids"][r, here] = [2, *rng.integers(6, 56, n - 2), 3]
            batch["segment_ids"][r, here], batch["positions"][r, here] = segment, np.arange(n)
            at += n
    return batch | {
        "pair_label": rng.integers(0, 2, ROWS).astype(np.int32),
        "row": np.arange(ROWS, dtype=np.int32),
        "epoch": np.zeros(ROWS, np.int32),
    }


def two_texts(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Pairs of texts [B, 2, S]: each row, and the row after it; one of them is filler, which has no text."""
    pairs = {name: jnp.stack([x, jnp.roll(x, -1, axis=0)], axis=1) for name, x in batch.items() if x.ndim == 2}
    pairs["segment_ids"] = pairs["segment_ids"].at[5].set(0)
    return pairs | {"label": jnp.linspace(-1.0, 1.0, ROWS)}


def setup(name: str) -> tuple[Any, Any, Any, dict]:
    """(objective, apply, float64 parameters, prepared batch)."""
    config, objective = CASES[name]
    made, module = objective.make(VOCAB), config.make("float64")
    batch = jax.tree.map(jnp.asarray, raw_batch(name not in PAIRS))
    if name.startswith("negatives"):
        batch = two_texts(batch)
    if made.observe is not None:
        batch |= observed(objective, batch)
    state, _ = init_state(module, made, optax.identity(), batch, make_mesh(Mesh(), jax.devices()[:1]), seed=0)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), state.params)
    prepared = made.prepare(jax.random.key(1), batch)
    return made, make_apply(module), params, jax.device_get(prepared)


def observed(objective: Distill, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """What a teacher, which is wider and deeper than the student, adds to the prepared batch."""
    made, module, mesh = objective.make(VOCAB), WIDE.make("float64"), make_mesh(Mesh(), jax.devices()[:1])
    params = init_state(module, made, optax.identity(), batch, mesh, seed=7)[0].params
    apply = make_apply(module)
    return jax.jit(lambda p, b: made.observe(apply, p, made.prepare(jax.random.key(1), b), 1))(params, batch)


def evaluate(made: Any, apply: Any, params: Any, batch: dict, microbatches: int = 1) -> tuple:
    """(loss, metrics, gradients)."""
    return jax.jit(lambda p, b: loss_and_grads(made, apply, p, b, None, microbatches))(params, batch)


def assert_same(ours: tuple, expected: tuple):
    ours, expected = jax.device_get((ours, expected))
    assert expected[0] > 0.1 and np.isfinite(expected[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10), ours, expected)


@pytest.mark.parametrize("name", fast(CASES, "mlm", "clm", "span", "negatives"))
def test_microbatches_and_devices_change_neither_loss_nor_gradient(name: str):
    made, apply, params, batch = setup(name)
    whole = evaluate(made, apply, params, batch)
    mesh = make_mesh(Mesh(data=2, fsdp=2), jax.devices()[:4])
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, state_shardings(params, mesh))
        assert_same(evaluate(made, apply, placed, put_batch(batch, mesh), microbatches=4), whole)


def alone(batch: dict[str, np.ndarray], segment: int) -> dict[str, np.ndarray]:
    """The prepared batch with only the documents of this number in it: all others are turned into padding."""
    kept = dict(batch)
    kept["segment_ids"] = np.where(batch["segment_ids"] == segment, segment, 0)
    where = batch["segment_ids"]
    if "decoder_segment_ids" in batch:
        where = batch["decoder_segment_ids"]
        kept["decoder_segment_ids"] = np.where(where == segment, segment, 0)
    if "mlm_positions" in batch:
        where = np.take_along_axis(where, batch["mlm_positions"], axis=1)
    for name in batch:
        if name.endswith(("_weights", "_words")):
            own = where[:, -batch[name].shape[1] :]
            kept[name] = np.where(own == segment, batch[name], 0)
    return kept


ONE_TEXT = [name for name in CASES if name not in (*PAIRS, "mixture", "beside", "span_switch")]


@pytest.mark.parametrize("name", fast(ONE_TEXT, "mlm", "clm", "prefix"))
def test_packing_changes_neither_loss_nor_gradient(name: str):
    made, apply, params, batch = setup(name)
    packed = raw_batch()["segment_ids"].max()
    assert packed == 3
    parts = [alone(batch, segment) for segment in range(1, packed + 1)]
    apart = {key: np.concatenate([part[key] for part in parts]) for key in batch}
    (loss, metrics, grads), (loss_apart, metrics_apart, grads_apart) = (
        evaluate(made, apply, params, x) for x in (batch, apart)
    )
    assert_same((loss_apart, grads_apart), (loss, grads))
    for metric in metrics.keys() - {"span_cut", "span_input_cut"}:
        np.testing.assert_allclose(metrics_apart[metric], metrics[metric], rtol=1e-8)


@pytest.mark.slow
def test_words_scored_in_several_turns_give_the_same_loss_and_gradients(monkeypatch: pytest.MonkeyPatch):
    for name in ("mlm", "rtd", "clm", "span"):
        made, apply, params, batch = setup(name)
        whole = evaluate(made, apply, params, batch)
        with monkeypatch.context() as patch:
            patch.setattr("bertgpt.objectives.core.MAX_LOGITS", 64 * ROWS * 2)
            turns = jax.make_jaxpr(lambda p, b, m=made, a=apply: m.loss(a, p, b, None).terms)(params, batch)
            assert "checkpoint" in str(turns) or "remat" in str(turns)
            assert_same(evaluate(made, apply, params, batch), whole)
