"""Objectives for fine-tuning on whole texts: one fully connected layer on a model, trained end to end.

After Devlin et al. 2019 §4. All use the model's `class_logits`. A batch has one label per sequence or, where several
texts are packed into a sequence, one per segment (`label` then has a second axis).
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from bertgpt.objectives.core import Objective, ScoreKind, Scores, encode, valid_labels
from bertgpt.ranges import Positive, Range, Rate, Width, check_fields
from bertgpt.types import (
    Apply,
    Architecture,
    Batch,
    DataConfig,
    Loss,
    ObjectiveConfig,
    Params,
    Sum,
    UserError,
    Vocab,
)


@dataclasses.dataclass(frozen=True)
class Classify(ObjectiveConfig):
    """Cross-entropy over the labels of a text, exactly one of which is correct."""

    num_labels: Annotated[int, Range(2, 1_000_000)] | None = None
    """number of classes; None: that of the data"""
    label_smoothing: Rate = 0.0
    """probability mass that the target distribution spreads evenly over the classes"""
    balance: bool = False
    """weight classes by their inverse frequency in the training texts"""
    class_weights: tuple[Positive, ...] = ()
    """weight of each class, in the order of the labels; (): equal, or computed if `balance`"""

    def __post_init__(self):
        check_fields(self)
        if self.class_weights and self.num_labels not in (None, len(self.class_weights)):
            raise UserError(f"Classify: {len(self.class_weights)} class_weights for {self.num_labels} labels")

    def infer(self, data: DataConfig) -> "Classify":
        """With the number of labels of this data and, if `balance`, the class weights N / (C · N_c)."""
        inferred = dataclasses.replace(self, num_labels=infer_num_labels("Classify", data, self.num_labels, "label"))
        if not self.balance or self.class_weights:
            return inferred
        counts = np.bincount([example.label for example in data.examples("train")], minlength=inferred.num_labels)
        if not counts.all():
            raise UserError(
                f"Classify: balance=True: no training text has the label {data.label_set.values[counts.argmin()]!r}"
            )
        return dataclasses.replace(inferred, class_weights=tuple((counts.sum() / (len(counts) * counts)).tolist()))

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """Models with `class_logits`."""
        return ("encoder", "decoder")

    @property
    def higher_is_better(self) -> frozenset[str]:
        """Metrics that should rise."""
        return frozenset(("accuracy",))

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective."""
        factors = jnp.asarray(self.class_weights or (1.0,) * self.num_labels, jnp.float32)

        def measure(logits: Float[Array, "*N C"], batch: Batch) -> Loss:
            labels, present = valid_labels(batch["label"])
            present = present * real_targets(batch)
            weights = present * factors[labels]
            # From log_softmax, because label smoothing needs log p of all classes.
            log_p = jax.nn.log_softmax(logits)
            value = -(1.0 - self.label_smoothing) * jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
            value = value - self.label_smoothing * jnp.mean(log_p, axis=-1)
            correct = jnp.argmax(logits, axis=-1) == labels
            return Loss(
                {"cross_entropy": Sum(jnp.sum(value * weights), jnp.sum(weights))},
                {"accuracy": Sum(jnp.sum(correct * present), jnp.sum(present))},
            )

        return text_objective(self.num_labels, measure, lambda logits: {"probabilities": jax.nn.softmax(logits)})


@dataclasses.dataclass(frozen=True)
class ClassifyMany(ObjectiveConfig):
    """Binary cross-entropy for each label of a text, any number of which may apply."""

    num_labels: Width | None = None
    """number of labels; None: that of the data"""

    def __post_init__(self):
        check_fields(self)

    def infer(self, data: DataConfig) -> "ClassifyMany":
        """With the number of labels of this data."""
        return dataclasses.replace(self, num_labels=infer_num_labels("ClassifyMany", data, self.num_labels, "labels"))

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """Models with `class_logits`."""
        return ("encoder", "decoder")

    @property
    def higher_is_better(self) -> frozenset[str]:
        """Metrics that should rise."""
        return frozenset(("label_accuracy",))

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective; `label` has a 0 or 1 for each label of a text."""

        def measure(logits: Float[Array, "B C"], batch: Batch) -> Loss:
            truth = batch["label"].astype(jnp.float32)
            weights = real_examples(batch)[:, None] * jnp.ones_like(truth)
            correct = (logits > 0) == (truth > 0)
            return Loss(
                {"binary_cross_entropy": binary_cross_entropy(logits, truth, weights)},
                {"label_accuracy": Sum(jnp.sum(correct * weights), jnp.sum(weights))},
            )

        def outputs(logits: Float[Array, "B C"]) -> dict[str, Array]:
            return {"probabilities": jax.nn.sigmoid(logits)}

        return text_objective(self.num_labels, measure, outputs, "sigmoid")


@dataclasses.dataclass(frozen=True)
class ClassifyOrdinal(ObjectiveConfig):
    """Ordinal labels, such as ratings: one binary classifier “more than k?” for each k (Frank & Hall 2001).

    The order is that of the data's `labels`. If these are inferred from the files, numbers are sorted by value and
    words alphabetically, so name the labels in the data config if they are words.
    """

    num_labels: Annotated[int, Range(2, 1_000_000)] | None = None
    """number of classes; None: that of the data"""

    def __post_init__(self):
        check_fields(self)

    def infer(self, data: DataConfig) -> "ClassifyOrdinal":
        """With the number of labels of this data."""
        return dataclasses.replace(self, num_labels=infer_num_labels("ClassifyOrdinal", data, self.num_labels, "label"))

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """Models with `class_logits`."""
        return ("encoder", "decoder")

    @property
    def higher_is_better(self) -> frozenset[str]:
        """Metrics that should rise."""
        return frozenset(("accuracy",))

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective. The predicted class is the number of positive binary decisions."""
        steps = jnp.arange(self.num_labels - 1)

        def measure(logits: Float[Array, "*N K"], batch: Batch) -> Loss:
            labels, present = valid_labels(batch["label"])
            present = present * real_targets(batch)
            truth = (labels[..., None] > steps).astype(jnp.float32)
            predicted = jnp.sum(logits > 0, axis=-1)
            total = jnp.sum(present)
            return Loss(
                {"ordinal": binary_cross_entropy(logits, truth, present[..., None] * jnp.ones_like(truth))},
                {
                    "accuracy": Sum(jnp.sum((predicted == labels) * present), total),
                    "mean_absolute_error": Sum(jnp.sum(jnp.abs(predicted - labels) * present), total),
                },
            )

        def outputs(logits: Float[Array, "*N K"]) -> dict[str, Array]:
            # p(> k) may increase with k, because each classifier decides on its own. Sorted in descending order, their
            # differences are the probabilities of the classes.
            above = -jnp.sort(-jax.nn.sigmoid(logits), axis=-1)
            padded = jnp.pad(above, [(0, 0)] * (above.ndim - 1) + [(1, 1)], constant_values=0.0).at[..., 0].set(1.0)
            return {"probabilities": padded[..., :-1] - padded[..., 1:], "number": jnp.sum(logits > 0, axis=-1)}

        return text_objective(self.num_labels - 1, measure, outputs, "sigmoid")


@dataclasses.dataclass(frozen=True)
class Regress(ObjectiveConfig):
    """Squared error of a number, such as a degree of similarity (Cer et al. 2017)."""

    scale: Positive = 1.0
    """the model predicts the number divided by this, so that targets are of the order of 1"""

    def __post_init__(self):
        check_fields(self)

    def infer(self, data: DataConfig) -> "Regress":
        """The objective itself. Errors: UserError, if the labels of the data are not numbers."""
        check_label_kind("Regress", data, "number")
        return self

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """Models with `class_logits`."""
        return ("encoder", "decoder")

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective; `label` has a number for each text, NaN if it is unknown."""

        def measure(logits: Float[Array, "*N 1"], batch: Batch) -> Loss:
            target = batch["label"].astype(jnp.float32)
            known = ~jnp.isnan(target) & (real_targets(batch) > 0)
            error = jnp.where(known, logits[..., 0] - jnp.where(known, target, 0.0) / self.scale, 0.0)
            total = jnp.sum(known.astype(jnp.float32))
            absolute = Sum(jnp.sum(jnp.abs(error)) * self.scale, total)
            return Loss({"squared_error": Sum(jnp.sum(jnp.square(error)), total)}, {"mean_absolute_error": absolute})

        return text_objective(1, measure, lambda logits: {"value": logits[..., 0] * self.scale}, "number")


def check_label_kind(name: str, data: DataConfig, target: str) -> None:
    """Raises UserError if the labels of the data are of another kind than the objective expects."""
    given = data.label_set.kind
    if given not in (target, "none"):
        raise UserError(f"{name}: needs data with data.target={target!r}, not {given!r}")


def infer_num_labels(name: str, data: DataConfig, num_labels: int | None, target: str) -> int:
    """The number of labels of the data.

    Raises:
      UserError: the data has no labels, not as many as the objective is configured for, or labels of another kind.
    """
    check_label_kind(name, data, target)
    labels = data.label_set.values
    if not labels:
        raise UserError(f"{name}: data of {type(data).__name__} has no labels")
    if num_labels not in (None, len(labels)):
        raise UserError(f"{name}: num_labels={num_labels}, but the data has {len(labels)} labels: {', '.join(labels)}")
    return len(labels)


def text_objective(
    num_outputs: int,
    measure: Callable[[Array, Batch], Loss],
    predictions: Callable[[Array], dict[str, Array]],
    kind: ScoreKind = "softmax",
) -> Objective:
    """An objective on `class_logits`.

    Args:
      num_outputs: number of logits per text.
      measure: (logits, batch) → loss and metrics.
      predictions: logits → arrays for `Objective.predict`.
      kind: what the logits are.
    """

    def logits(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Array:
        hidden = encode(apply, params, batch, rng)
        packed = batch["label"].shape[1] if is_packed(batch) else None
        return apply(
            params,
            method="class_logits",
            hidden=hidden,
            segment_ids=batch["segment_ids"],
            num_labels=num_outputs,
            packed=packed,
            rng=rng,
        )

    def loss(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Loss:
        return measure(logits(apply, params, batch, rng), batch)

    def predict(apply: Apply, params: Params, batch: Batch) -> dict[str, Array]:
        return predictions(logits(apply, params, batch, None))

    def scores(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Scores:
        # With several labels a text, `label` has an axis of labels, and sequences are never packed.
        return Scores(logits(apply, params, batch, rng), real_targets(batch), kind)

    return Objective(lambda key, batch: batch, loss, predict, logits=scores)


def is_packed(batch: Batch) -> bool:
    """Whether sequences hold several texts, each with a label."""
    return "text" in batch


def real_examples(batch: Batch) -> Float[Array, " B"]:
    """1 for examples, 0 for those that only fill up a batch."""
    return jnp.any(batch["segment_ids"] > 0, axis=1).astype(jnp.float32)


def real_targets(batch: Batch) -> Float[Array, "*N"]:
    """1 for each label that belongs to a text, of a sequence or of a segment; else 0."""
    if not is_packed(batch):
        return real_examples(batch)
    count: Int[Array, " B"] = jnp.max(batch["segment_ids"], axis=1)
    return (jnp.arange(batch["label"].shape[1]) < count[:, None]).astype(jnp.float32)


def binary_cross_entropy(
    logits: Float[Array, "*N C"], truth: Float[Array, "*N C"], weights: Float[Array, "*N C"]
) -> Sum:
    """Mean over all binary decisions of −t log σ(z) − (1 − t) log(1 − σ(z))."""
    value = jax.nn.softplus(logits) - truth * logits
    return Sum(jnp.sum(value * weights), jnp.sum(weights))
