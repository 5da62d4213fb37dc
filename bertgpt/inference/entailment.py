"""Zero-shot classification by textual entailment (Yin et al. 2019)."""

from collections.abc import Iterator, Sequence

import numpy as np

from bertgpt.inference.class_scores import class_scores
from bertgpt.inference.model import Model
from bertgpt.inference.predict import known, outputs_for
from bertgpt.inference.prompting import Prompt, Record, fill
from bertgpt.tasks.classification import describe_classes
from bertgpt.types import JsonObject, UserError


def entail(
    model: Model,
    records: Sequence[Record],
    labels: Sequence[str],
    hypothesis: str = "This text is about {label}.",
    entailment: str = "entailment",
    batch_size: int = 32,
) -> Iterator[JsonObject]:
    """Zero-shot classification with a model of textual entailment (Yin et al. 2019).

    The text is the premise, and the hypothesis states that a label applies. The probabilities of entailment of all
    labels are normalised to sum to 1.

    Args:
      model: a run, from `bertgpt.load`, trained on pairs of texts with `Classify`; or an imported classifier that names
        its labels.
      records: mappings with the field that the run reads its first texts from; of imported models, "text".
      labels: words for {label} in the hypothesis.
      hypothesis: template with {label}.
      entailment: the model's label for entailment, in capitals or not.
      batch_size: pairs per batch.

    Yields:
      For each record the most probable label and the probability of each.

    Raises:
      UserError: the model has another task or no such label, or a record lacks its text.
    """
    fields, names = entailment_task(model)
    prompt = Prompt(hypothesis, tuple(labels))
    index = entailment_index(model, entailment)
    if index is None:
        raise UserError(
            f"{model.name}: entailment needs a run on pairs of texts with the label {entailment!r};"
            f" this one reads {', '.join(fields)} and has {', '.join(names) or 'no labels'}"
        )
    first, second = fields
    pairs = []
    for number, record in enumerate(records, start=1):
        if first not in record:
            raise UserError(f"record {number}: has no field {first!r}")
        pairs += [{first: record[first], second: fill(hypothesis, record, word)} for word in prompt.labels]
    if model.experiment is None:
        _, found = class_scores(model, [(pair[first], pair[second]) for pair in pairs], batch_size=batch_size)
    else:
        dataset, outputs = outputs_for(model, pairs, batch_size)
        found = dataset.by_text(outputs["probabilities"])
    entailed = np.asarray(found, np.float64)[:, index]
    p = entailed.reshape(-1, len(labels))
    yield from known(describe_classes(p / np.maximum(p.sum(axis=1, keepdims=True), 1e-30), prompt.labels))


def entailment_task(model: Model) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(fields of a record, names of the labels) of a classifier of pairs of texts; of imported models text and pair."""
    if model.experiment is None and "classifier" in model.params:
        return ("text", "pair"), model.labels.shown if model.labels.kind == "label" else ()
    return model.run.data.inputs, model.run.data.label_set.shown


def entailment_index(model: Model, entailment: str = "entailment") -> int | None:
    """The number of the label for entailment; None if the model does not judge pairs of texts with such a label."""
    fields, names = entailment_task(model)
    folded = [name.casefold() for name in names]
    return folded.index(entailment.casefold()) if len(fields) == 2 and entailment.casefold() in folded else None
