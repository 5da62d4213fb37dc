"""What a model computes when it is exported: one function of token ids, by the head that the model has."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bertgpt.config import leaves, with_overrides
from bertgpt.convert.sentence_transformers import Pooling
from bertgpt.inference.embedding import normalized, own_embedder, run_modules
from bertgpt.inference.encode import embedder_for, is_encoder, not_an_encoder
from bertgpt.inference.model import Model, build_apply
from bertgpt.objectives.classify import Classify, ClassifyMany, ClassifyOrdinal, Regress
from bertgpt.objectives.multitask import OfTask, Tasks
from bertgpt.objectives.tag import Tag
from bertgpt.types import Inputs, LabelKind, Params, UserError

Wanted = Literal["embedding", "logits", "hidden_states"]
Fields = dict[str, Array]
CLASSIFIERS = (Classify, ClassifyMany, ClassifyOrdinal, Regress)
AXES = {
    "probabilities": ("batch", "label"),
    "token_probabilities": ("batch", "sequence", "label"),
    "value": ("batch",),
    "tags": ("batch", "sequence"),
    "span_logits": ("batch", "sequence", "start or end"),
    "embedding": ("batch", "width"),
    "logits": ("batch", "sequence", "token"),
    "hidden_states": ("batch", "sequence", "width"),
}
"""output → what its axes are"""


class Program(NamedTuple):
    """A function of int32 arrays [batch, sequence], ready to be traced."""

    inputs: tuple[str, ...]
    """names of its arguments, in order, of `INPUTS`"""
    output: str
    """name of its result, of `AXES`"""
    params: Params
    """its first argument"""
    run: Callable[[Params, Fields], Array]
    """(params, arguments by name) → result"""


INPUTS = {
    "input_ids": "token ids",
    "segment_ids": "1 for tokens, 0 for padding",
    "type_ids": "0, or 1 for the tokens of the second text of a pair",
    "word_starts": "1 for the first token of each word, else 0",
    "decoder_input_ids": "what the decoder has written so far, after its start token",
}
"""argument → its meaning"""


def program_of(model: Model, wanted: Wanted | None = None) -> Program:
    """What a model computes.

    A classifier gives the probabilities of labels (or a value), a tagger the tags of words, a model of sentence
    embeddings the embedding, a model with a language-modelling head the logits of tokens, any other encoder its hidden
    states. Dropout is off. Attention is computed by plain operations, which every platform has.

    Args:
      model: from `load`.
      wanted: what to compute instead of that.

    Raises:
      UserError: the model does not have what is wanted, or several tasks.
    """
    if model.experiment is not None and isinstance(model.experiment.objective, Tasks):
        names = ", ".join(part.name for part in model.experiment.objective.parts)
        raise UserError(f"{model.name}: has several tasks; pick one of {names}: --task_name")
    if networks := model.config.networks(model.params):
        config, params = networks["discriminator"]
        model = model._replace(config=config, params=params)
    config = with_overrides(model.config, {path: "xla" for path, _ in leaves(model.config) if path == "attention"})
    model = model._replace(config=config, apply=build_apply(config.make("float32")))
    typed = ("type_ids",) if config.num_types > 1 else ()
    texts = ("input_ids", "segment_ids", *typed)
    if config.architecture == "encoder_decoder":
        if wanted not in (None, "logits"):
            raise UserError(f"{model.name}: an encoder–decoder gives logits, not {wanted}")
        return Program(("input_ids", "segment_ids", "decoder_input_ids"), "logits", model.params, _translation(model))
    if wanted is None:
        return _by_head(model, texts)
    if wanted == "embedding":
        return _embedding(model, texts)
    if wanted == "logits" and _lm_method(model) is None:
        raise UserError(f"{model.name}: has no head that gives logits of tokens")
    return _of_states(model, texts, wanted)


def _by_head(model: Model, texts: tuple[str, ...]) -> Program:
    objective = None if model.experiment is None else model.experiment.objective
    inner = objective.objective if isinstance(objective, OfTask) else objective
    if isinstance(inner, CLASSIFIERS):
        output = "value" if isinstance(inner, Regress) else "probabilities"
        return Program(texts, output, model.params, _task(model, output))
    if isinstance(inner, Tag):
        return Program((*texts, "word_starts"), "tags", model.params, _tags(model))
    if "classifier" in model.params:
        output = "value" if model.labels.kind == "number" else "probabilities"
        return Program(texts, output, model.params, _classes(model, model.labels.kind))
    if "tagger" in model.params:
        return Program(texts, "token_probabilities", model.params, _token_classes(model))
    if "span_head" in model.params:
        return Program(texts, "span_logits", model.params, _head(model, "span_logits"))
    if own_embedder(model) is not None:
        return _embedding(model, texts)
    return _of_states(model, texts, "hidden_states" if _lm_method(model) is None else "logits")


def _inputs(fields: Fields) -> Inputs:
    return Inputs(fields["input_ids"], fields["segment_ids"], type_ids=fields.get("type_ids"))


def _batch(fields: Fields) -> Fields:
    """The fields that objectives read of a text."""
    ids = fields["input_ids"]
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    return {"type_ids": jnp.zeros_like(ids), **fields, "positions": positions}


def _task(model: Model, output: str) -> Callable[[Params, Fields], Array]:
    return lambda params, fields: model.objective.predict(model.apply, params, _batch(fields))[output]


def _tags(model: Model) -> Callable[[Params, Fields], Int[Array, "B S"]]:
    """Each token is taken for a word, of which only those at word starts are there; see `tasks.tag_dataset`."""

    def run(params: Params, fields: Fields) -> Int[Array, "B S"]:
        batch = _batch(fields)
        starts = batch.pop("word_starts") > 0
        number = jnp.cumsum(starts, axis=1)
        first, last = starts & (number == 1), starts & (number == number[:, -1:])
        edges = first.astype(jnp.int32) + 2 * last.astype(jnp.int32)
        words = {"word_positions": batch["positions"], "chains": starts.astype(jnp.int32), "edges": edges}
        tags = model.objective.predict(model.apply, params, batch | words)["tags"]
        return jnp.where(starts, tags, -1)

    return run


def _classes(model: Model, kind: LabelKind) -> Callable[[Params, Fields], Array]:
    count = model.params["classifier"]["dense"]["bias"].shape[0]

    def run(params: Params, fields: Fields) -> Array:
        hidden = model.apply(params, _inputs(fields))
        named = {"hidden": hidden, "segment_ids": fields["segment_ids"], "num_labels": count}
        logits = model.apply(params, method="class_logits", **named)
        if kind == "number":
            return logits[:, 0]
        return jax.nn.sigmoid(logits) if kind == "labels" else jax.nn.softmax(logits)

    return run


def _token_classes(model: Model) -> Callable[[Params, Fields], Array]:
    count = model.params["tagger"]["dense"]["bias"].shape[0]
    return lambda params, fields: jax.nn.softmax(_head(model, "tag_logits", num_labels=count)(params, fields))


def _head(model: Model, method: str, **named: int) -> Callable[[Params, Fields], Array]:
    return lambda params, fields: model.apply(
        params, method=method, hidden=model.apply(params, _inputs(fields)), **named
    )


def _lm_method(model: Model) -> str | None:
    """The method that gives the logits of tokens, if the model has one."""
    if model.config.architecture == "decoder":
        return "lm_logits"
    return "mlm_logits" if "mlm_head" in model.params else None


def _of_states(model: Model, texts: tuple[str, ...], output: Wanted) -> Program:
    method = _lm_method(model) if output == "logits" else None
    run = (lambda params, fields: model.apply(params, _inputs(fields))) if method is None else _head(model, method)
    return Program(texts, output, model.params, run)


def _embedding(model: Model, texts: tuple[str, ...]) -> Program:
    if not is_encoder(model) and own_embedder(model) is None:
        raise not_an_encoder(model)
    embedder = embedder_for(model, None)
    if embedder.prompt(None, None) and any(isinstance(m, Pooling) and not m.include_prompt for m in embedder.modules):
        raise UserError(f"{model.name}: its pooling leaves out the prompt, which an exported program does not know")
    finish = normalized if own_embedder(model) is None else lambda x: x

    def run(params: Params, fields: Fields) -> Float[Array, "B D"]:
        hidden = model.apply(params["model"], _inputs(fields))
        vectors = run_modules(embedder.modules, params["modules"], hidden, fields["segment_ids"], 0)
        return finish(vectors[:, : embedder.truncate_dim])

    return Program(texts, "embedding", {"model": model.params, "modules": list(embedder.params)}, run)


def _translation(model: Model) -> Callable[[Params, Fields], Array]:
    def run(params: Params, fields: Fields) -> Array:
        inputs = Inputs(fields["input_ids"], fields["segment_ids"], decoder=Inputs(fields["decoder_input_ids"]))
        return model.apply(params, method="lm_logits", hidden=model.apply(params, inputs))

    return run
