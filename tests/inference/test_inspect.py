"""What goes on inside a model is told as it is: against naive formulas, finite differences and the model's outputs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, fast
from jaxtyping import Array

import bertgpt
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.encode import fill_mask
from bertgpt.inference.inspect import attention, hidden_states, logit_lens, saliency, tokens
from bertgpt.inference.model import Model
from bertgpt.layers.attention import MultiHeadAttention
from bertgpt.layers.moe import Experts
from bertgpt.layers.stack import for_inference
from bertgpt.models.apply import make_apply, parameter_shapes
from bertgpt.models.bert import BertConfig
from bertgpt.models.electra import ElectraConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import T5Config
from bertgpt.types import Inputs, Labels, ModelConfig, UserError

SIZE = {"vocab_size": 200, "d_model": 16, "num_heads": 2, "d_ff": 32, "max_len": 32}
BERT = BertConfig(**SIZE, num_layers=2)
GPT = GptConfig(**SIZE, num_layers=2)
LOCAL = dataclasses.replace(GPT, num_layers=4, local_window=3)
T5 = T5Config(**SIZE, head_dim=8, num_layers=2, num_decoder_layers=3, scan=True)
CONFIGS = {
    "bert": BERT,
    "bert, scanned and recomputed": dataclasses.replace(BERT, scan=True, remat="names", norm_position="pre"),
    "albert": dataclasses.replace(BERT, num_layers=4, shared_groups=2, embed_dim=8),
    "electra": ElectraConfig(dataclasses.replace(BERT, embed_dim=8), dataclasses.replace(BERT, embed_dim=8)),
    "gpt": GPT,
    "gpt, local": LOCAL,
    "t5": T5,
    "switch": dataclasses.replace(T5, num_layers=4, num_decoder_layers=4, experts=Experts(num_experts=2)),
}
TEXT = "The cat sleeps in the green house."


def heads_of(config: ModelConfig) -> dict:
    if isinstance(config, BertConfig):
        return {"mlm_logits": {}, "class_logits": {"segment_ids": jnp.ones((1, 4), int), "num_labels": 3}}
    return {"class_logits": {"segment_ids": jnp.ones((1, 4), int), "num_labels": 3}} if config == GPT else {}


def make(config: ModelConfig, tokenizer: Tokenizer, dtype: str = "float32", split: bool = True) -> Model:
    """A random model with weights that are large enough to attend unevenly."""

    ids, rng = jnp.ones((1, 4), jnp.int32), np.random.default_rng(0)
    shapes = nn.unbox(parameter_shapes(config.make(), Inputs(ids, decoder=Inputs(ids)), heads_of(config)))

    def start(path: Sequence[object], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return np.asarray((path[-1].key == "scale") + 0.3 * rng.normal(size=leaf.shape), dtype)

    params = jax.tree_util.tree_map_with_path(start, shapes)
    labels = Labels(("bad", "fair", "good"), kind="label")
    if split and config != CONFIGS["electra"]:  # whose generator is not made, because nothing calls it
        params = for_inference(params, config.stacks, "float32")
    return Model(config, tokenizer, make_apply(config.make(dtype)), jax.tree.map(jnp.asarray, params), Path("x"),
                 labels=labels)  # fmt: skip


@pytest.fixture(scope="module")
def bert(tokenizer: Tokenizer) -> Model:
    return make(BERT, tokenizer)


def test_tokens_have_their_characters_and_special_tokens_in_a_text_count(bert: Model):
    text = "The [MASK] sleeps"
    found = tokens(bert, text, "a dog")
    words = [text, "a dog"]
    assert [token.token for token in found if token.end == 0] == ["[CLS]", "[SEP]", "[SEP]"]
    assert found[0].id == bert.tokenizer.vocab.cls
    second = [token.token for token in found].index("[SEP]")
    pieces = [words[i > second][t.start : t.end].lower() for i, t in enumerate(found) if t.end]
    assert "".join(pieces) == "the[mask]sleepsadog" and bert.tokenizer.vocab.mask in [t.id for t in found]
    assert [t.token.removeprefix("##") for t in found if t.end and t.token != "[MASK]"] == [
        p for p in pieces if p != "[mask]"
    ]
    assert len(tokens(bert, "the cat " * 40, "a dog")) == 32  # the longest sequence; the shorter text stays whole
    assert "".join(words[1][t.start : t.end] for t in tokens(bert, "the cat " * 40, "a dog")[-6:]).endswith("adog")


def test_weights_of_the_first_layer_are_the_formula(bert: Model):
    """softmax(QKᵀ / √d_k) with the matrices of the model, head by head."""
    found = attention(bert, TEXT, "A dog runs.")
    p = bert.params["encoder"]["0"]["attention"]
    x = hidden_states(bert, TEXT, "A dog runs.")[0]
    for head in range(2):
        q, k = (x @ np.asarray(p[n]["kernel"])[:, head] + np.asarray(p[n]["bias"])[head] for n in ("query", "key"))
        scores = np.exp(q @ k.T / np.sqrt(8))
        np.testing.assert_allclose(found.weights[0, head], scores / scores.sum(1, keepdims=True), atol=2e-6)
    assert np.ptp(found.weights[0]) > 0.3  # the model does not attend evenly, so that errors would be seen


@pytest.mark.parametrize("name", fast(CONFIGS, "bert", "gpt, local", "t5"))
def test_every_layer_of_every_family_shows_its_weights_and_states(name: str, tokenizer: Tokenizer):
    config = CONFIGS[name]
    model, target = make(config, tokenizer), "A dog" if name in ("t5", "switch") else None
    found = attention(model, TEXT, target=target)
    size, depth = len(found.tokens), (config.main if name == "electra" else config).num_layers
    assert found.weights.shape == (depth, 2, size, size)
    kinds = [found.weights]
    if target:
        length = len(found.target_tokens)
        assert [t.token for t in found.target_tokens[1:]] == [t.token for t in tokens(model, target)[1:-1]]
        assert found.target_weights.shape == (config.num_decoder_layers, 2, length, length)
        assert found.cross_weights.shape == (config.num_decoder_layers, 2, length, size)
        assert not np.triu(found.target_weights, 1).any()
        np.testing.assert_array_equal(attention(model, TEXT).weights, found.weights)
        kinds += [found.target_weights, found.cross_weights]
    for weights in kinds:
        np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)
        assert len({layer.tobytes() for layer in weights}) == len(weights)  # of one layer each
    if name.startswith("gpt"):
        assert not np.triu(found.weights, 1).any()
        local = np.tril(np.ones((size, size)), -3) > 0
        assert [not layer[:, local].any() for layer in found.weights] == [name != "gpt" and i % 2 for i in range(depth)]
    states = hidden_states(model, TEXT)
    ids = jnp.asarray([[token.id for token in found.tokens]])
    method = "encode" if target else "__call__"
    assert states.shape == (depth + 1, size, 16)
    np.testing.assert_allclose(states[-1], model.apply(model.params, Inputs(ids), method=method)[0], atol=1e-5)


@pytest.mark.parametrize("name", fast(["bert", "gpt, local", "t5"], "t5"))
def test_neither_the_arrangement_nor_the_implementation_changes_what_is_shown(name: str, tokenizer: Tokenizer):
    config, target = CONFIGS[name], "A dog" if name == "t5" else None
    shown = attention(make(config, tokenizer), TEXT, target=target)
    for other in (
        make(config, tokenizer, split=False),
        make(dataclasses.replace(config, attention="chunked"), tokenizer),
    ):
        for a, b in zip(shown[1::2], attention(other, TEXT, target=target)[1::2], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5) if target or a is not None else None


def test_who_does_not_ask_gets_the_program_of_a_model_that_shows_nothing(monkeypatch: pytest.MonkeyPatch):
    module = TINY.make()
    ids = jnp.ones((1, 8), jnp.int32)
    params = jax.eval_shape(lambda: nn.unbox(module.init(jax.random.key(0), Inputs(ids)))["params"])

    def text(**named: str) -> str:
        apply = make_apply(module)
        loss = jax.grad(lambda p: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(apply(p, Inputs(ids), **named))))
        return jax.jit(loss).lower(params).as_text()

    plain, states, asked = text(), text(auxiliary="intermediates"), text(auxiliary="attention")
    monkeypatch.setattr(MultiHeadAttention, "is_mutable_collection", lambda self, name: False)
    assert (plain, states) == (text(), text(auxiliary="intermediates")) and asked != text(auxiliary="attention")


def test_the_last_layer_of_the_lens_predicts_what_the_model_predicts(bert: Model, tokenizer: Tokenizer):
    text = "The [MASK] sleeps."
    lens = logit_lens(bert, text, top_k=3)
    mask = [token.token for token in lens.tokens].index("[MASK]")
    (filled,) = next(fill_mask(bert, [text], top_k=3))
    assert dict(zip(lens.predictions[-1][mask], lens.probabilities[-1, mask].round(4), strict=True)) == pytest.approx(
        filled, abs=1e-4
    )
    assert lens.ids.shape == (3, len(lens.tokens), 3) and (np.diff(lens.probabilities, axis=-1) <= 0).all()
    assert lens.predictions[1][0] == tokenizer.tokens(lens.ids[1, 0].tolist())

    gpt = make(CONFIGS["gpt"], tokenizer)
    lens = logit_lens(gpt, TEXT, top_k=200)
    ids = jnp.asarray([[token.id for token in lens.tokens]])
    hidden, tree = gpt.apply(gpt.params, Inputs(ids), auxiliary="intermediates")
    size = tokenizer.vocab.size
    for layer, state in ((2, hidden), (1, None)):
        if state is None:  # the layer before the last one, through the final norm by hand
            x = tree["decoder"]["hidden"][0][0]
            x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
            state = x * gpt.params["final_norm"]["scale"] + gpt.params["final_norm"]["bias"]
        logits = gpt.apply(gpt.params, method="lm_logits", hidden=state)[0, :, :size]
        expected = np.take_along_axis(np.asarray(jax.nn.softmax(logits)), lens.ids[layer], axis=-1)
        np.testing.assert_allclose(lens.probabilities[layer], expected, atol=1e-6)
    t5 = logit_lens(make(T5, tokenizer), TEXT, target="a dog", top_k=1)
    assert len(t5.predictions) == T5.num_decoder_layers + 1 and t5.tokens[0].id == T5.start_id


@pytest.mark.parametrize("config", [BERT, GPT], ids=["bert", "gpt"])
def test_saliency_is_the_derivative_in_a_factor_on_each_embedding(config: ModelConfig, tokenizer, float64):
    """Central differences; all factors together: the gradient along the input, whose path completeness integrates."""
    model = make(config, tokenizer, "float64")
    found = saliency(model, TEXT, "good")
    assert found.label == "good" and found.scores.dtype == np.float64
    ids = np.array([[token.id for token in found.tokens]])
    embedded = np.asarray(model.params["embeddings"]["token"])[ids]
    ones = np.ones(ids.shape)

    @jax.jit
    def logits(factors: Array) -> Array:
        segments = jnp.ones(ids.shape, jnp.int32)
        hidden = model.apply(model.params, Inputs(embeds=embedded * factors[..., None], segment_ids=segments))
        named = {"segment_ids": segments, "num_labels": 3}
        return model.apply(model.params, method="class_logits", hidden=hidden, **named)[0]

    assert found.value == pytest.approx(float(logits(ones)[2]), rel=1e-12)
    assert found.probability == pytest.approx(float(jax.nn.softmax(logits(ones))[2]), rel=1e-9)
    step = 1e-5
    moves = [np.eye(len(ids[0]))[[i]] for i in range(len(ids[0]))] + [ones]
    slopes = [float(logits(ones + step * m)[2] - logits(ones - step * m)[2]) / (2 * step) for m in moves]
    np.testing.assert_allclose([*found.scores, found.scores.sum()], slopes, rtol=1e-6, atol=1e-9)
    assert np.abs(found.scores).max() > 0.01
    assert saliency(model, TEXT).label == model.labels.shown[int(logits(ones).argmax())]


def test_numbers_and_label_sets_are_explained_too(bert: Model):
    kind = bert.labels._replace(kind="labels")
    found = saliency(bert._replace(labels=kind), TEXT, "bad")
    assert found.probability == pytest.approx(1 / (1 + np.exp(-found.value)), rel=1e-5)
    dense = {name: leaf[..., :1] for name, leaf in bert.params["classifier"]["dense"].items()}
    number = bert._replace(params=bert.params | {"classifier": {"dense": dense}}, labels=Labels(kind="number"))
    explained = saliency(number, TEXT)
    assert explained.label is explained.probability is None and explained.value == pytest.approx(found.value, rel=1e-4)
    np.testing.assert_allclose(explained.scores, found.scores, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="x: has no label 'bad'; it has a number and no labels"):
        saliency(number, TEXT, "bad")


def test_what_cannot_be_shown_is_said_in_one_line(bert: Model, tokenizer: Tokenizer):
    with pytest.raises(UserError, match="x: has no label 'best'; it has the labels bad, fair, good"):
        saliency(bert, TEXT, "best")
    without = {name: leaf for name, leaf in bert.params.items() if name not in ("classifier", "mlm_head")}
    with pytest.raises(UserError, match="x: has no classifier"):
        saliency(bert._replace(params=without), TEXT)
    with pytest.raises(UserError, match="x: has no masked-LM head, which the logit lens needs"):
        logit_lens(bert._replace(params=without), TEXT)
    with pytest.raises(UserError, match="top_k=0 must be at least 1"):
        logit_lens(bert, TEXT, top_k=0)
    with pytest.raises(UserError, match="a target is for encoder–decoders"):
        attention(bert, TEXT, target="a")
    with pytest.raises(UserError, match="labels are ordinal"):
        saliency(bert._replace(labels=Labels(tuple("1234"), kind="label")), TEXT)
    with pytest.raises(UserError, match="ELECTRA is two networks"):
        logit_lens(bert._replace(config=CONFIGS["electra"]), TEXT)
    for function in (attention, hidden_states, logit_lens, saliency, tokens):
        with pytest.raises(UserError, match="x: has no tokenizer"):
            function(bert._replace(tokenizer=None), TEXT)
        with pytest.raises(UserError, match="half of a surrogate pair"):
            function(bert, "a \ud800")


def test_the_module_is_reached_from_the_package():
    assert bertgpt.inspect.attention is attention
