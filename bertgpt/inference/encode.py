"""What an encoder says of texts without fine-tuning: embeddings, and words for [MASK]."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from bertgpt.inference.model import Model
from bertgpt.layers.heads import mean_pool
from bertgpt.tasks.classification import describe_classes
from bertgpt.types import Apply, Inputs, UserError

Pooling = Literal["mean", "cls"]
NARROWEST = 16


def embed(
    model: Model, texts: Sequence[str], pooling: Pooling = "mean", normalize: bool = True, batch_size: int = 32
) -> Float[np.ndarray, "N D"]:
    """A vector for each text, from the last layer.

    Args:
      model: from `bertgpt.load`.
      texts: texts; what exceeds the model's longest sequence is cut off. Special tokens in them are but characters.
      pooling: mean over all tokens, [CLS] and [SEP] included, or the state of [CLS].
      normalize: divide by the L2 norm, so that the dot product of two vectors is their cosine.
      batch_size: texts at once; texts of like length go together.

    Raises:
      UserError: the model is no encoder.
    """
    rows = encoded(model, texts)
    vectors = np.zeros((len(texts), model.config.d_model), np.float32)
    for chosen, ids, segments in batches(rows, batch_size, model.config.max_len):
        found = _embed(model.apply, pooling, normalize, model.params, ids, segments)
        vectors[chosen] = np.asarray(found)[: len(chosen)]
    return vectors


@functools.partial(jax.jit, static_argnames=("apply", "pooling", "normalize"))
def _embed(
    apply: Apply,
    pooling: Pooling,
    normalize: bool,
    params: PyTree,
    ids: Int[Array, "B S"],
    segments: Int[Array, "B S"],
) -> Float[Array, "B D"]:
    hidden = apply(params, Inputs(ids, segments)).astype(jnp.float32)
    pooled = mean_pool(hidden, segments) if pooling == "mean" else hidden[:, 0]
    return pooled / jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12) if normalize else pooled


def fill_mask(
    model: Model, texts: Sequence[str], top_k: int = 5, batch_size: int = 32
) -> Iterator[list[dict[str, float]]]:
    """For each text, for each mask token in it, the likeliest tokens and their probabilities.

    Raises:
      UserError: the model is no encoder with an MLM head, or a text has no mask within the longest sequence.
    """
    rows = encoded(model, texts, parse_special=True)
    tokenizer, vocab = model.tokenizer, model.tokenizer.vocab
    vocab.require("filling masks", "mask")
    if "mlm_head" not in model.params and model.config.mlm_head == "transform":
        raise UserError(f"{model.path}: has no masked-LM head, so it cannot fill masks")
    for row, text in zip(rows, texts, strict=True):
        if vocab.mask not in row[: model.config.max_len]:
            mask = tokenizer.roles["mask"]
            raise UserError(f"no {mask} to fill in among the first {model.config.max_len} tokens of {text[:60]!r}")
    answers: dict[int, list[dict[str, float]]] = {}
    for chosen, ids, segments in batches(rows, batch_size, model.config.max_len):
        places = np.argwhere(ids == vocab.mask)
        # Padded to a bucket, so that the number of masks does not make a new program each time.
        padded = np.zeros((bucket(len(places)), 2), np.int32)
        padded[: len(places)] = places
        best, probabilities = _fill(
            model.apply, min(top_k, vocab.size), vocab.size, model.params, ids, segments, padded
        )
        for (row, _), tokens, p in zip(places, np.asarray(best), np.asarray(probabilities), strict=False):
            if row < len(chosen):
                words = dict(zip(tokenizer.tokens(tokens.tolist()), p.astype(float).round(4).tolist(), strict=True))
                answers.setdefault(int(chosen[row]), []).append(words)
    yield from (answers[i] for i in range(len(texts)))


@functools.partial(jax.jit, static_argnames=("apply", "top_k", "vocab_size"))
def _fill(
    apply: Apply,
    top_k: int,
    vocab_size: int,
    params: PyTree,
    ids: Int[Array, "B S"],
    segments: Int[Array, "B S"],
    places: Int[Array, "N 2"],
) -> tuple[Int[Array, "N K"], Float[Array, "N K"]]:
    """The best tokens and their probabilities at these (row, column)s, among the tokens that the tokenizer has."""
    hidden = apply(params, Inputs(ids, segments))[places[:, 0], places[:, 1]]
    logits = apply(params, method="mlm_logits", hidden=hidden)
    probabilities, best = jax.lax.top_k(jax.nn.softmax(logits[:, :vocab_size]), top_k)
    return best, probabilities


def classify(model: Model, texts: Sequence[str], batch_size: int = 32) -> Iterator[dict[str, Any]]:
    """For each text, the likeliest label of a classifier and the probability of every one.

    Raises:
      UserError: the model is no encoder with a classifier.
    """
    rows = encoded(model, texts)
    if "classifier" not in model.params:
        raise UserError(f"{model.path}: has no classifier")
    number = model.params["classifier"]["dense"]["bias"].shape[0]
    names = model.labels.shown or tuple(f"LABEL_{i}" for i in range(number))
    found = np.zeros((len(texts), number), np.float32)
    for chosen, ids, segments in batches(rows, batch_size, model.config.max_len):
        found[chosen] = np.asarray(_classify(model.apply, number, model.params, ids, segments))[: len(chosen)]
    yield from describe_classes(found, names)


@functools.partial(jax.jit, static_argnames=("apply", "number"))
def _classify(
    apply: Apply, number: int, params: PyTree, ids: Int[Array, "B S"], segments: Int[Array, "B S"]
) -> Float[Array, "B C"]:
    hidden = apply(params, Inputs(ids, segments))
    return jax.nn.softmax(apply(params, method="class_logits", hidden=hidden, segment_ids=segments, num_labels=number))


def encoded(model: Model, texts: Sequence[str], parse_special: bool = False) -> list[list[int]]:
    """Ids of each text in the tokenizer's template, cut to the longest sequence.

    Unless `parse_special`, “[SEP]” in a text is but characters, as in training.

    Raises:
      UserError: the model is no encoder or has no tokenizer.
    """
    if "pool" not in model.config.outputs or model.config.architecture != "encoder":
        raise UserError(f"{model.path}: {type(model.config).__name__.removesuffix('Config')} is not an encoder")
    if model.tokenizer is None:
        raise UserError(f"{model.path}: has no tokenizer")
    before, after = model.tokenizer.template
    room = model.config.max_len - len(before) - len(after)
    return [[*before, *row[:room], *after] for row in model.tokenizer.encode(list(texts), parse_special)]


def bucket(length: int) -> int:
    """The smallest of 16, 24, 32, 48, 64, 96, … that is no less: few programs, and little padding."""
    size = max(NARROWEST, 1 << (length - 1).bit_length())
    return size * 3 // 4 if NARROWEST < size and length <= size * 3 // 4 else size


def batches(
    rows: Sequence[Sequence[int]], batch_size: int, max_len: int
) -> Iterator[tuple[Int[np.ndarray, " N"], Int[np.ndarray, "B S"], Int[np.ndarray, "B S"]]]:
    """(numbers of the rows, ids, segment ids) of like length together; a batch with too few rows is filled up."""
    order = np.argsort([len(row) for row in rows], kind="stable")
    height = min(batch_size, len(rows))
    for first in range(0, len(rows), height):
        chosen = order[first : first + height]
        width = min(bucket(len(rows[chosen[-1]])), max_len)
        yield chosen, *pad_rows([rows[number] for number in chosen], height, width)


def pad_rows(
    rows: Sequence[Sequence[int]], height: int, width: int
) -> tuple[Int[np.ndarray, "B S"], Int[np.ndarray, "B S"]]:
    """(ids, segment ids) of these rows, filled up on the right and below."""
    ids, segments = np.zeros((height, width), np.int32), np.zeros((height, width), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)], segments[i, : len(row)] = row, 1
    return ids, segments
