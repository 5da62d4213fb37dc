"""Scores of a classifier for texts and pairs of texts, as numbers, as rankings need them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from bertgpt.data.examples import EncodedTexts, encode_texts
from bertgpt.inference.encode import batch_logits, class_names, length_batches, num_classes, softmax
from bertgpt.inference.model import Model
from bertgpt.inference.predict import outputs_for
from bertgpt.types import Dataset, JsonObject, UserError

SMALLEST = 1e-30
"""in place of a probability of 0, whose logarithm is asked for"""


class TooLong(UserError):
    """A text, or a pair of texts, is longer than the model reads."""


def is_cross_encoder(model: Model) -> bool:
    """Whether its score of a pair of texts is one number: a classifier with one output, or a run on pairs with two."""
    if model.experiment is None:
        return num_classes(model) == 1
    pairs, kind = len(model.run.data.inputs) == 2, model.labels.kind
    return (
        pairs and "classifier" in model.params and (kind == "number" or (kind == "label" and num_classes(model) == 2))
    )


def class_logits(
    model: Model, items: Sequence[Sequence[str]], batch_size: int = 32, truncate: bool = True
) -> Float[np.ndarray, "N C"]:
    """Logits of the classifier.

    Args:
      model: an encoder or decoder with a classifier, from `bertgpt.load`.
      items: one or two texts each, the same number in all.
      batch_size: sequences per batch.
      truncate: drop the end of a text that is too long, of a pair the end of the longer text.

    Raises:
      UserError: the model has no classifier or no tokenizer.
      TooLong: a text is too long and may not be truncated.
    """
    encoded, count = encode_items(model, items, truncate), num_classes(model)
    found = np.zeros((len(items), count), np.float32)
    for indices, ids, segments in length_batches(encoded.ids, batch_size, model.config.max_len):
        first = np.full(len(ids), ids.shape[1], np.int32)
        first[: len(indices)] = encoded.first[indices]
        types = ((np.arange(ids.shape[1]) >= first[:, None]) & (segments > 0)).astype(np.int32)
        if model.config.num_types < 2:
            types = np.zeros_like(types)
        found[indices] = np.asarray(batch_logits(model.apply, count, model.params, ids, segments, types))[
            : len(indices)
        ]
    return found


def encode_items(model: Model, items: Sequence[Sequence[str]], truncate: bool = True) -> EncodedTexts:
    """Token ids of texts or pairs of texts. Errors: see `class_logits`."""
    if not num_classes(model):
        raise UserError(f"{model.path}: has no classifier")
    if model.tokenizer is None:
        raise UserError(f"{model.path}: has no tokenizer")
    encoded = encode_texts(model.tokenizer, items, model.config.max_len)
    if encoded.truncated and not truncate:
        raise TooLong(f"{encoded.truncated} of {len(items)} texts have more than {model.config.max_len} tokens")
    return encoded


def class_scores(
    model: Model, items: Sequence[Sequence[str]], raw: bool = False, batch_size: int = 32, truncate: bool = True
) -> tuple[tuple[str, ...], Float[np.ndarray, "N C"]]:
    """(names of the classes, the probability of each): softmax, sigmoid where several may apply, or the number itself.

    Args:
      model: a run of classification, or another model with a classifier.
      items: one or two texts each.
      raw: scores before softmax or sigmoid; of a run the logarithms of its probabilities, which have the same softmax.
      batch_size: sequences per batch.
      truncate: drop the end of a text that is too long, of a pair the end of the longer text.

    Raises:
      UserError: the model has no classifier, or a run reads another number of texts.
      TooLong: a text is too long and may not be truncated.
    """
    if model.experiment is None:
        return scores_of_logits(model, class_logits(model, items, batch_size, truncate), raw)
    dataset, outputs = outputs_for(model, records_of(model, items), batch_size)
    return scores_of_outputs(model, dataset, outputs, raw, truncate)


def records_of(model: Model, items: Sequence[Sequence[str]]) -> list[JsonObject]:
    """The texts of each item as a record of a run. Errors: UserError, if the run reads another number of texts."""
    fields = model.run.data.inputs
    for item in items:
        if len(item) != len(fields):
            raise UserError(f"{model.name}: reads {len(fields)} texts at a time ({', '.join(fields)}), not {len(item)}")
    return [dict(zip(fields, item, strict=True)) for item in items]


def scores_of_logits(
    model: Model, logits: Float[np.ndarray, "N C"], raw: bool
) -> tuple[tuple[str, ...], Float[np.ndarray, "N C"]]:
    """What `class_scores` gives for logits of a model that is no run."""
    kind = model.labels.kind
    if raw or kind == "number":
        return class_names(model), logits
    return class_names(model), softmax(logits) if kind != "labels" else 1.0 / (1.0 + np.exp(-logits))


def scores_of_outputs(
    model: Model, dataset: Dataset, outputs: dict[str, np.ndarray], raw: bool, truncate: bool
) -> tuple[tuple[str, ...], Float[np.ndarray, "N C"]]:
    """What `class_scores` gives for outputs of a run."""
    kind = model.labels.kind
    long = [warning.text for warning in dataset.warnings if warning.kind == "truncated"]
    if long and not truncate:
        raise TooLong(long[0])
    if kind == "number":
        return ("value",), np.asarray(dataset.by_text(outputs["value"]), np.float32)[:, None]
    p = np.asarray(dataset.by_text(outputs["probabilities"]), np.float32)
    if raw:
        p = np.log(np.maximum(p, SMALLEST)) - (np.log(np.maximum(1.0 - p, SMALLEST)) if kind == "labels" else 0.0)
    return model.labels.shown, p


def score_pairs(model: Model, query: str, texts: Sequence[str], truncate: bool = True) -> Float[np.ndarray, " N"]:
    """The logit that a cross-encoder gives each pair (query, text): how well they fit.

    Of two classes it is that of the second against the first.

    Args:
      model: a cross-encoder.
      query: the first text of all pairs.
      texts: the second texts.
      truncate: drop the end of the longer text of a pair that is too long.

    Raises:
      UserError: the model is no cross-encoder.
      TooLong: a pair is too long and may not be truncated.
    """
    if not is_cross_encoder(model):
        raise UserError(f"{model.path}: is no cross-encoder, which has one output for a pair of texts")
    return pair_scores(class_scores(model, [(query, text) for text in texts], raw=True, truncate=truncate)[1])


def pair_scores(scores: Float[np.ndarray, "N C"]) -> Float[np.ndarray, " N"]:
    """One number of the raw scores of each pair: the only one, or that of the second class against the first."""
    return scores[:, 0] if scores.shape[1] == 1 else scores[:, 1] - scores[:, 0]
