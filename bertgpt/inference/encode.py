"""Pretrained encoders without fine-tuning: embeddings, masked-token predictions, and the classes of a classifier."""

import functools
from collections.abc import Iterator, Sequence
from typing import Literal

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from bertgpt.convert.sentence_transformers import Embedder, Module, Normalize
from bertgpt.convert.sentence_transformers import Pooling as Pool
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.embedding import encode_texts, framed, normalized, own_embedder, run_modules
from bertgpt.inference.model import Model
from bertgpt.inference.predict import known
from bertgpt.tasks.classification import describe_classes, describe_label_sets, describe_numbers
from bertgpt.types import Apply, Inputs, JsonObject, UserError

Pooling = Literal["mean", "cls"]
SHORTEST_BATCH = 16
"""tokens; shorter sequences are padded to this length"""


def embed(
    model: Model,
    texts: Sequence[str],
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    batch_size: int = 32,
    prompt: str | None = None,
    prompt_name: str | None = None,
) -> Float[np.ndarray, "N D"]:
    """A vector for each text from the last layer.

    A folder of sentence-transformers gives what `SentenceTransformer.encode` gives: its modules pool, project and
    normalise, and its files say how long a text may be and which prompt comes before it. A run with the objective
    `BiEncode` gives the vectors that it was trained on.

    Args:
      model: an encoder, from `bertgpt.load`; of folders and bi-encoders also a decoder.
      texts: texts, truncated to the model's longest sequence. Special tokens in them are read as plain text, except by
        folders of sentence-transformers.
      pooling: "mean" over all tokens including [CLS] and [SEP], or the state of [CLS]; None: that of the folder or
        bi-encoder, of other models the mean.
      normalize: divide by the L2 norm, so that the dot product of two vectors is their cosine similarity; None: as the
        folder's modules do, of other models True. False also leaves out the last Normalize of a folder.
      batch_size: texts per batch; texts of similar length are batched together.
      prompt: what to put before each text; None: the prompt called `prompt_name`.
      prompt_name: a prompt of the folder; None: its default one, if it has one.

    Raises:
      UserError: the model is not an encoder, has no tokenizer, or has no prompt of this name.
    """
    embedder = embedder_for(model, pooling)
    sequences, skipped = encode_texts(model, embedder, texts, embedder.prompt(prompt, prompt_name))
    return embed_ids(model, sequences, pooling, normalize, batch_size, skipped)


def embed_ids(
    model: Model,
    sequences: Sequence[Sequence[int]],
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    batch_size: int = 32,
    skipped: int = 0,
) -> Float[np.ndarray, "N D"]:
    """`embed` for token ids, special tokens included, of which the first `skipped` are a prompt.

    Raises:
      UserError: the model is not an encoder.
    """
    embedder = embedder_for(model, pooling)
    modules, params = embedder.modules, embedder.params
    if normalize is False and isinstance(modules[-1], Normalize):
        modules, params = modules[:-1], params[:-1]
    by_modules = pooling is None and own_embedder(model) is not None
    after = not by_modules if normalize is None else normalize
    rows = {}
    for indices, ids, segments in length_batches(sequences, batch_size, model.config.max_len):
        found = _embed(model.apply, modules, embedder.truncate_dim, after, model.params, params, ids, segments, skipped)
        rows |= dict(zip(indices.tolist(), np.asarray(found), strict=False))
    return np.stack([rows[i] for i in range(len(sequences))]) if rows else np.zeros((0, 0), np.float32)


@functools.partial(jax.jit, static_argnames=("apply", "modules", "truncate_dim", "normalize"))
def _embed(
    apply: Apply,
    modules: tuple[Module, ...],
    truncate_dim: int | None,
    normalize: bool,
    params: PyTree,
    module_params: PyTree,
    ids: Int[Array, "B S"],
    segments: Int[Array, "B S"],
    skipped: Int[Array, ""],
) -> Float[Array, "B D"]:
    hidden = apply(params, Inputs(ids, segments))
    vectors = run_modules(modules, module_params, hidden, segments, skipped)[:, :truncate_dim]
    return normalized(vectors) if normalize else vectors


def embedder_for(model: Model, pooling: Pooling | None) -> Embedder:
    """How to make vectors: as the model itself does unless a pooling is asked for, of models that do not say the mean.

    Raises:
      UserError: the model is not an encoder.
    """
    own = own_embedder(model)
    if not is_encoder(model) and (own is None or model.config.architecture != "decoder"):
        raise not_an_encoder(model)
    if own is not None and pooling is None:
        return own
    pooled = (Pool((pooling or "mean",)),)
    return Embedder(pooled, ({},)) if own is None else own._replace(modules=pooled, params=({},), truncate_dim=None)


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
    if top_k < 1:
        raise UserError(f"top_k={top_k} must be at least 1")
    sequences = tokenize_masked(model, texts)
    tokenizer, vocab = model.tokenizer, model.tokenizer.vocab
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
                answers.setdefault(int(indices[row]), []).append(name_tokens(tokenizer, tokens, p))
    yield from (answers[i] for i in range(len(texts)))


def tokenize_masked(model: Model, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts with masks to fill in. Errors: see `fill_mask`."""
    sequences = tokenize(model, texts, parse_special=True)
    check_mlm(model, "filling masks")
    for ids, text in zip(sequences, texts, strict=True):
        if model.tokenizer.vocab.mask not in ids[: model.config.max_len]:
            mask = model.tokenizer.roles["mask"]
            raise UserError(f"no {mask} to fill in among the first {model.config.max_len} tokens of {text[:60]!r}")
    return sequences


def name_tokens(
    tokenizer: Tokenizer, ids: Int[np.ndarray, " K"], probabilities: Float[np.ndarray, " K"]
) -> dict[str, float]:
    """Token → probability, of four digits."""
    return dict(zip(tokenizer.tokens(ids.tolist()), probabilities.astype(float).round(4).tolist(), strict=True))


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
    """The label of each text with the probability of every label; or its labels, or a number.

    Which of these it is, `problem_type` of a Hugging Face model says: softmax, sigmoid, or the value itself.

    Args:
      model: an encoder or decoder with a classifier, from `bertgpt.load`.
      texts: texts, truncated to the model's longest sequence.
      batch_size: texts per batch.

    Yields:
      One dict per text, as `predict` gives for a run of this kind.

    Raises:
      UserError: the model has no classifier or no tokenizer.
    """
    num_labels = num_classes(model)
    if not num_labels:
        raise UserError(f"{model.path}: has no classifier")
    sequences = tokenize(model, texts, decoders=True)
    found = np.zeros((len(texts), num_labels), np.float32)
    for indices, ids, segments in length_batches(sequences, batch_size, model.config.max_len):
        found[indices] = np.asarray(batch_logits(model.apply, num_labels, model.params, ids, segments))[: len(indices)]
    yield from describe_logits(model, found)


def describe_logits(model: Model, found: Float[np.ndarray, "N C"]) -> Iterator[JsonObject]:
    """What `classify` says of texts with these logits."""
    kind, names = model.labels.kind, class_names(model)
    if kind == "number":
        yield from known(describe_numbers(found, names))
    elif kind == "labels":
        yield from known(describe_label_sets(np.exp(-np.logaddexp(0.0, -found)), names))
    else:
        yield from known(describe_classes(softmax(found), names))


def num_classes(model: Model) -> int:
    """Outputs of the classifier; 0 if there is none."""
    return model.params["classifier"]["dense"]["bias"].shape[0] if "classifier" in model.params else 0


def class_names(model: Model) -> tuple[str, ...]:
    """What the outputs of a classifier are called."""
    return model.labels.shown or tuple(f"LABEL_{i}" for i in range(num_classes(model)))


def softmax(logits: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "N C"]:
    """Probabilities of the classes."""
    exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponential / exponential.sum(axis=1, keepdims=True)


@functools.partial(jax.jit, static_argnames=("apply", "num_labels"))
def batch_logits(
    apply: Apply,
    num_labels: int,
    params: PyTree,
    ids: Int[Array, "B S"],
    segments: Int[Array, "B S"],
    types: Int[Array, "B S"] | None = None,
) -> Float[Array, "B C"]:
    """Class logits of the texts of a batch."""
    hidden = apply(params, Inputs(ids, segments, type_ids=types))
    return apply(params, method="class_logits", hidden=hidden, segment_ids=segments, num_labels=num_labels)


def is_encoder(model: Model) -> bool:
    """Whether it is a single encoder whose hidden states can be pooled; ELECTRA's pair of networks is not."""
    return model.config.architecture == "encoder" and "pool" in model.config.outputs


def not_an_encoder(model: Model) -> UserError:
    """The error for a model that no encoder is."""
    return UserError(f"{model.path}: {type(model.config).__name__.removesuffix('Config')} is not an encoder")


def check_mlm(model: Model, user: str) -> None:
    """Raises UserError, in the name of `user`, if the tokenizer has no mask token or the model no MLM head."""
    model.tokenizer.vocab.require(user, "mask")
    if "mlm_head" not in model.params and model.config.mlm_head == "transform":
        raise UserError(f"{model.path}: has no masked-LM head, which {user} needs")


def tokenize(
    model: Model, texts: Sequence[str], parse_special: bool = False, decoders: bool = False
) -> list[list[int]]:
    """Token ids of each text in the tokenizer's template, truncated to the model's longest sequence, which is logged.

    Args:
      model: an encoder.
      texts: texts.
      parse_special: read special tokens in the texts as such; otherwise they are plain text, as in training.
      decoders: whether the model may be a decoder.

    Raises:
      UserError: the model is not an encoder or has no tokenizer.
    """
    if not is_encoder(model) and not (decoders and model.config.architecture == "decoder"):
        raise not_an_encoder(model)
    if model.tokenizer is None:
        raise UserError(f"{model.path}: has no tokenizer")
    before, after = model.tokenizer.template
    return framed(model.tokenizer.encode(list(texts), parse_special), before, after, model.config.max_len)


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
    for first in range(0, len(sequences), max(height, 1)):
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
