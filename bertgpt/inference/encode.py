"""Pretrained encoders without fine-tuning: embeddings, masked-token predictions, and the classes of a classifier."""

import functools
from collections.abc import Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from bertgpt.inference.model import Model
from bertgpt.layers.heads import mean_pool
from bertgpt.tasks.classification import describe_classes
from bertgpt.types import Apply, Inputs, JsonObject, UserError

Pooling = Literal["mean", "cls"]
SHORTEST_BATCH = 16
"""tokens; shorter sequences are padded to this length"""


def embed(
    model: Model, texts: Sequence[str], pooling: Pooling = "mean", normalize: bool = True, batch_size: int = 32
) -> Float[np.ndarray, "N D"]:
    """A vector for each text from the last layer.

    Args:
      model: an encoder, from `bertgpt.load`.
      texts: texts, truncated to the model's longest sequence. Special tokens in them are read as plain text.
      pooling: "mean" over all tokens including [CLS] and [SEP], or the state of [CLS].
      normalize: divide by the L2 norm, so that the dot product of two vectors is their cosine similarity.
      batch_size: texts per batch; texts of similar length are batched together.

    Raises:
      UserError: the model is not an encoder or has no tokenizer.
    """
    sequences = tokenize(model, texts)
    vectors = np.zeros((len(texts), model.config.d_model), np.float32)
    for indices, ids, segments in length_batches(sequences, batch_size, model.config.max_len):
        found = _embed(model.apply, pooling, normalize, model.params, ids, segments)
        vectors[indices] = np.asarray(found)[: len(indices)]
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
    """The most probable tokens for each mask token of each text.

    Args:
      model: an encoder with an MLM head, from `bertgpt.load`.
      texts: texts that contain the tokenizer's mask token, truncated to the model's longest sequence.
      top_k: tokens per mask.
      batch_size: texts per batch.

    Yields:
      For each text, one dict per mask: token → probability, most probable first.

    Raises:
      UserError: the model is not an encoder with an MLM head, or a text has no mask within the longest sequence.
    """
    sequences = tokenize(model, texts, parse_special=True)
    tokenizer, vocab = model.tokenizer, model.tokenizer.vocab
    check_mlm(model, "filling masks")
    for ids, text in zip(sequences, texts, strict=True):
        if vocab.mask not in ids[: model.config.max_len]:
            mask = tokenizer.roles["mask"]
            raise UserError(f"no {mask} to fill in among the first {model.config.max_len} tokens of {text[:60]!r}")
    answers: dict[int, list[dict[str, float]]] = {}
    for indices, ids, segments in length_batches(sequences, batch_size, model.config.max_len):
        masks = np.argwhere(ids == vocab.mask)
        # Padded, so that not every number of masks compiles a program of its own.
        padded = np.zeros((padded_length(len(masks)), 2), np.int32)
        padded[: len(masks)] = masks
        best, probabilities = _fill(
            model.apply, min(top_k, vocab.size), vocab.size, model.params, ids, segments, padded
        )
        for (row, _), tokens, p in zip(masks, np.asarray(best), np.asarray(probabilities), strict=False):
            if row < len(indices):
                found = dict(zip(tokenizer.tokens(tokens.tolist()), p.astype(float).round(4).tolist(), strict=True))
                answers.setdefault(int(indices[row]), []).append(found)
    yield from (answers[i] for i in range(len(texts)))


@functools.partial(jax.jit, static_argnames=("apply", "top_k", "vocab_size"))
def _fill(
    apply: Apply,
    top_k: int,
    vocab_size: int,
    params: PyTree,
    ids: Int[Array, "B S"],
    segments: Int[Array, "B S"],
    masks: Int[Array, "N 2"],
) -> tuple[Int[Array, "N K"], Float[Array, "N K"]]:
    """The best tokens of the vocabulary at each (row, column), and their probabilities."""
    hidden = apply(params, Inputs(ids, segments))[masks[:, 0], masks[:, 1]]
    logits = apply(params, method="mlm_logits", hidden=hidden)
    probabilities, best = jax.lax.top_k(jax.nn.softmax(logits[:, :vocab_size]), top_k)
    return best, probabilities


def classify(model: Model, texts: Sequence[str], batch_size: int = 32) -> Iterator[JsonObject]:
    """The most probable label of each text, and the probability of every label.

    Args:
      model: an encoder with a classifier, from `bertgpt.load`.
      texts: texts, truncated to the model's longest sequence.
      batch_size: texts per batch.

    Yields:
      One dict per text, see `tasks.classification.describe_classes`.

    Raises:
      UserError: the model is not an encoder with a classifier.
    """
    sequences = tokenize(model, texts)
    if "classifier" not in model.params:
        raise UserError(f"{model.path}: has no classifier")
    num_labels = model.params["classifier"]["dense"]["bias"].shape[0]
    names = model.labels.shown or tuple(f"LABEL_{i}" for i in range(num_labels))
    found = np.zeros((len(texts), num_labels), np.float32)
    for indices, ids, segments in length_batches(sequences, batch_size, model.config.max_len):
        found[indices] = np.asarray(_classify(model.apply, num_labels, model.params, ids, segments))[: len(indices)]
    yield from describe_classes(found, names)


@functools.partial(jax.jit, static_argnames=("apply", "num_labels"))
def _classify(
    apply: Apply, num_labels: int, params: PyTree, ids: Int[Array, "B S"], segments: Int[Array, "B S"]
) -> Float[Array, "B C"]:
    hidden = apply(params, Inputs(ids, segments))
    logits = apply(params, method="class_logits", hidden=hidden, segment_ids=segments, num_labels=num_labels)
    return jax.nn.softmax(logits)


def is_encoder(model: Model) -> bool:
    """Whether it is a single encoder whose hidden states can be pooled; ELECTRA's pair of networks is not."""
    return model.config.architecture == "encoder" and "pool" in model.config.outputs


def check_mlm(model: Model, user: str) -> None:
    """Raises UserError, in the name of `user`, if the tokenizer has no mask token or the model no MLM head."""
    model.tokenizer.vocab.require(user, "mask")
    if "mlm_head" not in model.params and model.config.mlm_head == "transform":
        raise UserError(f"{model.path}: has no masked-LM head, which {user} needs")


def tokenize(model: Model, texts: Sequence[str], parse_special: bool = False) -> list[list[int]]:
    """Token ids of each text in the tokenizer's template, truncated to the model's longest sequence.

    Args:
      model: an encoder.
      texts: texts.
      parse_special: read special tokens in the texts as such; otherwise they are plain text, as in training.

    Raises:
      UserError: the model is not an encoder or has no tokenizer.
    """
    if not is_encoder(model):
        raise UserError(f"{model.path}: {type(model.config).__name__.removesuffix('Config')} is not an encoder")
    if model.tokenizer is None:
        raise UserError(f"{model.path}: has no tokenizer")
    before, after = model.tokenizer.template
    room = model.config.max_len - len(before) - len(after)
    return [[*before, *ids[:room], *after] for ids in model.tokenizer.encode(list(texts), parse_special)]


def padded_length(length: int) -> int:
    """The smallest of 16, 24, 32, 48, 64, 96, … that is at least `length`: few shapes to compile, little padding."""
    size = max(SHORTEST_BATCH, 1 << (length - 1).bit_length())
    return size * 3 // 4 if SHORTEST_BATCH < size and length <= size * 3 // 4 else size


def length_batches(
    sequences: Sequence[Sequence[int]], batch_size: int, max_len: int
) -> Iterator[tuple[Int[np.ndarray, " N"], Int[np.ndarray, "B S"], Int[np.ndarray, "B S"]]]:
    """Yields (indices of the sequences, token ids, segment ids), sequences of similar length together.

    The last batch is filled up with padding, so that it has the same number of rows.
    """
    order = np.argsort([len(ids) for ids in sequences], kind="stable")
    height = min(batch_size, len(sequences))
    for first in range(0, len(sequences), height):
        indices = order[first : first + height]
        width = min(padded_length(len(sequences[indices[-1]])), max_len)
        yield indices, *pad([sequences[i] for i in indices], height, width)


def pad(
    sequences: Sequence[Sequence[int]], height: int, width: int
) -> tuple[Int[np.ndarray, "B S"], Int[np.ndarray, "B S"]]:
    """(token ids, segment ids) of shape [height, width], padded on the right and below."""
    ids, segments = np.zeros((height, width), np.int32), np.zeros((height, width), np.int32)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)], segments[i, : len(sequence)] = sequence, 1
    return ids, segments
