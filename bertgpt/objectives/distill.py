"""Distillation: a small student learns a task from its labels and from what a large, trained teacher computes.

    L = (1 − α) L_task + α L_logits + β L_hidden + γ L_attention

    L_logits = T² KL(softmax(z_T / T) ‖ softmax(z_S / T))        Hinton et al. 2015 §2; T² keeps its gradient's size
    L_hidden = Σ_m MSE(W_h H_S^m, H_T^g(m))                      TinyBERT (Jiao et al. 2020 §3.1, eq. 8 and 9), or
               1 − cos(H_S, H_T)                                 DistilBERT (Sanh et al. 2019 §3), last layers
    L_attention = KL(R_T^QK ‖ R_S^QK) + KL(R_T^VV ‖ R_S^VV)      MiniLM (Wang et al. 2020 §3, eq. 5 to 8), last layers,
                  with R^XY = softmax(XYᵀ / √d), or
               Σ_m MSE(QKᵀ / √d of the student, of the teacher)  TinyBERT (eq. 7), scores before the softmax

The teacher is no part of the state that is trained. A program of its own (`training.teacher`) computes its outputs for
each prepared batch and adds them to the batch as the fields LOGITS, HIDDEN and PROJECTIONS. The student's step is
therefore like that of any other objective, and the loss is a sum over examples. A batch without these fields, as in
evaluations, is scored by the task alone, so that the losses of students with and without a teacher are comparable.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from bertgpt.objectives.core import Objective, scaled
from bertgpt.objectives.distill_losses import agreement, attention_loss, hidden_loss, logits_loss
from bertgpt.ranges import Count, Fraction, Natural, NonNegative, Positive, check_fields
from bertgpt.types import (
    Apply,
    Architecture,
    Batch,
    BatchSpec,
    DataConfig,
    Inputs,
    Loss,
    ObjectiveConfig,
    Params,
    Sum,
    UserError,
    Vocab,
)

LOGITS, HIDDEN, PROJECTIONS = "teacher/logits", "teacher/hidden", "teacher/projections"
"""fields that the teacher adds to a batch: its logits; its hidden states [B, pairs, S, D]; its queries, keys and values
[B, pairs, 3, heads, S, head_dim]"""


@dataclasses.dataclass(frozen=True)
class Distill(ObjectiveConfig):
    """A task's objective with a teacher beside the labels. Examples without a label have a teacher all the same."""

    objective: ObjectiveConfig
    """the task: Classify, ClassifyMany, ClassifyOrdinal, Regress, Tag, ExtractSpan, ChooseOne or MaskedLM"""
    teacher: str
    """a model trained on the same labels with the same tokenizer: a run under the same --workdir by name, or the path
    of a run, a converted model or a Hugging Face directory"""
    temperature: Positive = 2.0
    """T, by which the logits of both are divided: the higher, the more the teacher's small probabilities count"""
    logits_weight: Fraction = 0.5
    """α, the weight of the teacher's logits; the labels have the rest"""
    hidden_weight: NonNegative = 0.0
    """β, the weight of the teacher's hidden states; 0: they do not count"""
    hidden: Literal["mse", "cosine"] = "mse"
    """how hidden states are compared: squared error, through a learnt projection where the widths differ, or cosine"""
    layers: tuple[tuple[Natural, Natural], ...] = ()
    """(layer of the student, layer of the teacher) to compare, from 0, the embedded input; (): with mse all layers of
    the student with evenly spaced ones of the teacher, with cosine the last ones"""

    attention_weight: NonNegative = 0.0
    """γ, the weight of the teacher's attention; 0: it does not count"""
    attention: Literal["minilm", "scores"] = "minilm"
    """how attention is compared: distributions of attention and relations between values in the last layers, or scores
    before the softmax in all layers of the student with evenly spaced ones of the teacher"""
    relation_heads: Count | None = None
    """cut the queries, keys and values of all heads anew into this many, for students with other heads than their
    teacher (MiniLMv2, Wang et al. 2021 §3.1); None: as they are"""

    def __post_init__(self):
        check_fields(self)
        if not isinstance(self.objective, ObjectiveConfig) or isinstance(self.objective, Distill):
            raise UserError("Distill: objective must be that of a task, such as Classify()")
        if not self.teacher:
            raise UserError("Distill: teacher='' must name a model")
        if not (self.logits_weight or self.hidden_weight or self.attention_weight):
            raise UserError(
                "Distill: logits_weight=0, hidden_weight=0 and attention_weight=0 leave nothing to learn from the"
                " teacher"
            )

    @property
    def learns_from(self) -> str:
        """The teacher."""
        return self.teacher

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """Those of the task."""
        return self.objective.architectures

    @property
    def needs(self) -> BatchSpec:
        """Those of the task; the training loop adds what the teacher computes."""
        return self.objective.needs

    @property
    def higher_is_better(self) -> frozenset[str]:
        """Metrics that should rise."""
        return self.objective.higher_is_better | {"teacher_agreement"}

    def hint(self, field: str) -> str:
        """That of the task."""
        return self.objective.hint(field)

    def infer(self, data: DataConfig) -> "Distill":
        """With what the task infers from the data."""
        return dataclasses.replace(self, objective=self.objective.infer(data))

    def pairs(self, student: int, teacher: int) -> list[tuple[int, int]]:
        """The (layer of the student, layer of the teacher) to compare, of models with so many layers.

        Raises:
          UserError: one of them has no such layer.
        """
        if not self.hidden_weight:
            return []
        default = [student] if self.hidden == "cosine" else range(student + 1)
        found = list(self.layers) or [(m, round(m * teacher / student)) for m in default]
        for m, g in found:
            if m > student or g > teacher:
                raise UserError(
                    f"Distill: layers={self.layers}: the student has the layers 0 to {student}, the teacher 0 to"
                    f" {teacher}"
                )
        return found

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the task's objective, with a loss that also reads what the teacher has added to the batch.

        Raises:
          UserError: the task has no logits, or its loss compares examples with each other.
        """
        task = self.objective.make(vocab)
        if task.logits is None or task.joint is not None:
            raise UserError(f"Distill: {type(self.objective).__name__} has no logits that a student could learn")

        def observe(apply: Apply, params: Params, batch: Batch, student_layers: int) -> Batch:
            seen = Observer(apply, *self._watched())
            found = {LOGITS: task.logits(seen, params, batch, None).logits}
            if self.hidden_weight:
                states = seen.states()
                chosen = [g for _, g in self.pairs(student_layers, len(states) - 1)]
                found[HIDDEN] = jnp.stack([states[g] for g in chosen], axis=1)
            if self.attention_weight:
                layers = seen.projections()
                chosen = [round(m * len(layers) / student_layers) - 1 for m in self._attending(student_layers)]
                found[PROJECTIONS] = jnp.stack([layers[g] for g in chosen], axis=1)
            return found

        def loss(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Loss:
            if LOGITS not in batch:
                return task.loss(apply, params, batch, rng)
            seen = Observer(apply, *self._watched())
            labels = task.loss(seen, params, batch, rng)
            terms = {name: scaled(term, 1.0 - self.logits_weight) for name, term in labels.terms.items()}
            scores = task.logits(seen, params, batch, rng)
            logits_term = logits_loss(scores, batch[LOGITS], self.temperature)
            terms["teacher_logits"] = scaled(logits_term, self.logits_weight)
            metrics = labels.metrics | {"teacher_logits": logits_term}
            if scores.kind == "softmax":
                metrics["teacher_agreement"] = agreement(scores, batch[LOGITS])
            if self.hidden_weight:
                term = self._hidden(seen, params, batch)
                terms["teacher_hidden"] = scaled(term, self.hidden_weight)
                metrics["teacher_hidden"] = term
            if self.attention_weight and params is not None:
                layers = seen.projections()
                own = jnp.stack([layers[m - 1] for m in self._attending(len(layers))], axis=1)
                term = attention_loss(
                    own, batch[PROJECTIONS], batch["segment_ids"], self.attention, self.relation_heads
                )
                terms["teacher_attention"] = scaled(term, self.attention_weight)
                metrics["teacher_attention"] = term
            return Loss(terms, metrics)

        return task._replace(loss=loss, observe=observe)

    def _watched(self) -> list[str]:
        """The auxiliary outputs that are compared."""
        weights = {"intermediates": self.hidden_weight, "projections": self.attention_weight}
        return [name for name, weight in weights.items() if weight]

    def _attending(self, layers: int) -> list[int]:
        """The layers of a student, from 1, whose attention is compared."""
        return [layers] if self.attention == "minilm" else list(range(1, layers + 1))

    def _hidden(self, seen: "Observer", params: Params, batch: Batch) -> Sum:
        teacher = batch[HIDDEN]
        if params is None:  # the model is being initialised, which only needs to know the widths
            chosen = jnp.stack([seen.output] * teacher.shape[1], axis=1)
        else:
            states = seen.states()
            # The teacher's layers were chosen by `observe`; only the student's are to be told here.
            students = [m for m, _ in self.pairs(len(states) - 1, max((g for _, g in self.layers), default=1))]
            chosen = jnp.stack([states[m] for m in students], axis=1)
        if chosen.shape[-1] != teacher.shape[-1]:
            if self.hidden == "cosine":
                raise UserError(
                    f"Distill: hidden='cosine' needs states of one width, not {chosen.shape[-1]} and"
                    f" {teacher.shape[-1]}; hidden='mse' learns a projection"
                )
            chosen = seen(params, method="project_states", hidden=chosen, width=teacher.shape[-1])
        return hidden_loss(chosen, teacher, batch["segment_ids"] > 0, self.hidden)


class Observer:
    """An `Apply` that keeps what the model's layers write down while an objective runs it.

    The model is run once for the same inputs, however often the objective asks for them.
    """

    def __init__(self, apply: Apply, *watching: str):
        """`watching`: the auxiliary outputs to keep, beside the output itself."""
        self.apply, self.watching = apply, watching
        self.inputs: tuple[object, ...] = ()
        self.output: Float[Array, "B S D"] | None = None
        self.tree: Params = {}

    def __call__(
        self,
        params: Params,
        inputs: Inputs | None = None,
        *,
        method: str = "__call__",
        rng: Key[Array, ""] | None = None,
        auxiliary: str | None = None,
        task: str | None = None,
        **named: Any,
    ) -> Any:
        run = functools.partial(self.apply, params, inputs, method=method, rng=rng, task=task, **named)
        if method != "__call__" or auxiliary is not None:
            return run(auxiliary=auxiliary)
        leaves = tuple(jax.tree.leaves(inputs))
        if len(leaves) != len(self.inputs) or any(a is not b for a, b in zip(leaves, self.inputs, strict=True)):
            self.inputs = leaves
            self.output, self.tree = run(auxiliary=self.watching) if self.watching else (run(), {})
        return self.output

    def states(self) -> list[Float[Array, "B S D"]]:
        """The embedded input and the states after each layer.

        Raises:
          UserError: the model is no single stack of layers.
        """
        tree = self.tree["intermediates"]
        stacks = [side for name, side in tree.items() if name in ("encoder", "decoder")]
        if len(stacks) != 1 or len(jax.tree.leaves(stacks[0])) != 1:
            raise UserError("Distill: hidden_weight: hidden states of a single stack of equal layers can be compared")
        layers = jax.tree.leaves(stacks[0])[0]
        return [tree["embedded"][0], *layers.reshape(-1, *layers.shape[-3:])]

    def projections(self) -> list[Float[Array, "B 3 H S K"]]:
        """Queries, keys and values of each layer.

        Raises:
          UserError: the model is no single stack of layers.
        """
        stacks = list(self.tree["projections"].values())
        if len(stacks) != 1 or len(jax.tree.leaves(stacks[0])) != 3 or "attention" not in stacks[0]:
            raise UserError("Distill: attention_weight: attention of a single stack of equal layers can be compared")
        found = [stacks[0]["attention"][name][0] for name in ("queries", "keys", "values")]
        return list(jnp.stack(found, axis=2))
