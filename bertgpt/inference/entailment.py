"""Zero-shot classification by textual entailment (Yin et al. 2019)."""

from collections.abc import Iterator, Sequence

import numpy as np

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
      model: a run, from `bertgpt.load`, trained on pairs of texts with `Classify`.
      records: mappings with the field that the run reads its first texts from.
      labels: words for {label} in the hypothesis.
      hypothesis: template with {label}.
      entailment: the run's label for entailment.
      batch_size: pairs per batch.

    Yields:
      For each record the most probable label and the probability of each.

    Raises:
      UserError: the run has another task or no such label, or a record lacks its text.
    """
    fields, names = model.run.data.inputs, model.run.data.label_set.shown
    prompt = Prompt(hypothesis, tuple(labels))
    if len(fields) != 2 or entailment not in names:
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
    dataset, outputs = outputs_for(model, pairs, batch_size)
    entailed = np.asarray(dataset.by_text(outputs["probabilities"]), np.float64)[:, names.index(entailment)]
    p = entailed.reshape(-1, len(labels))
    yield from known(describe_classes(p / np.maximum(p.sum(axis=1, keepdims=True), 1e-30), prompt.labels))
