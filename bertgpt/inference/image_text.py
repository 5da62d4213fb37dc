"""Images and texts in one space, by a dual encoder such as CLIP: vectors, zero-shot classification, retrieval."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from bertgpt.data.images.reading import ImageSource
from bertgpt.data.packing import template_of
from bertgpt.inference.embedding import framed
from bertgpt.inference.encode import length_batches
from bertgpt.inference.model import Model
from bertgpt.types import Apply, Inputs, Params, UserError

TEMPLATE = "a photo of a {}."


class Hit(NamedTuple):
    """An answer to a query."""

    index: int
    """which of the answers"""
    similarity: float
    """its cosine with the query"""


def embed_images(model: Model, images: Sequence[ImageSource], batch_size: int = 32) -> Float[np.ndarray, "N E"]:
    """A unit vector for each image.

    Args:
      model: a dual encoder, from `bertgpt.load`.
      images: paths, encoded pictures (bytes) or arrays of pixels; all of any size.
      batch_size: images per batch.

    Raises:
      UserError: the model is no dual encoder, its directory does not say how pictures are resized, or a picture cannot
        be read.
    """
    check_dual(model)
    fmt = model.image_format
    if fmt is None:
        raise UserError(f"{model.path}: does not say how pictures are resized: preprocessor_config.json is missing")
    found = np.zeros((len(images), vars(model.config)["projection_dim"]), np.float32)
    height = min(batch_size, len(images))
    for start in range(0, len(images), max(height, 1)):
        pixels = [fmt.pixels(image) for image in images[start : start + height]]
        stacked = np.stack(pixels + pixels[-1:] * (height - len(pixels)))  # one shape to compile
        vectors = features(model.apply, "image_features", model.params, Inputs(images=stacked))
        found[start : start + len(pixels)] = np.asarray(vectors)[: len(pixels)]
    return found


def embed_texts(model: Model, texts: Sequence[str], batch_size: int = 32) -> Float[np.ndarray, "N E"]:
    """A unit vector for each text, in the space of `embed_images`.

    Args:
      model: a dual encoder, from `bertgpt.load`.
      texts: texts, truncated to the longest that the model reads. Special tokens in them are read as plain text.
      batch_size: texts per batch.

    Raises:
      UserError: the model is no dual encoder, or has no tokenizer.
    """
    check_dual(model)
    if model.tokenizer is None:
        raise UserError(f"{model.path}: has no tokenizer")
    before, after = model.tokenizer.template
    longest = model.config.max_len
    if model.experiment is not None:  # what its data put around a text, and how long it was
        template = template_of(model.tokenizer.vocab)
        before, after, longest = list(template.start), [template.end], model.experiment.data.seq_len
    sequences = framed(model.tokenizer.encode(list(texts)), before, after, longest)
    found = np.zeros((len(texts), vars(model.config)["projection_dim"]), np.float32)
    for indices, ids, segments in length_batches(sequences, batch_size, longest):
        vectors = features(model.apply, "text_features", model.params, Inputs(ids, segments))
        found[indices] = np.asarray(vectors)[: len(indices)]
    return found


def zero_shot(
    model: Model,
    images: Sequence[ImageSource],
    labels: Sequence[str],
    template: str | Sequence[str] = TEMPLATE,
    batch_size: int = 32,
) -> list[dict[str, float]]:
    """Classifies images by texts that describe the classes (Radford et al. 2021 §3.1).

    Args:
      model: a dual encoder, from `bertgpt.load`.
      images: as `embed_images` takes them.
      labels: names of the classes.
      template: a text with {} where the name stands; of several, the vectors are averaged (§3.1.4).
      batch_size: images, and texts, per batch.

    Returns:
      Label → probability for each image, the most probable first: the softmax of exp(s) · cosine.

    Raises:
      UserError: there is no label, two are the same, or a template has no {}.

    Examples:
      >>> model = bertgpt.load("openai/clip-vit-base-patch32")  # doctest: +SKIP
      >>> bertgpt.zero_shot(model, ["cat.png"], ["cat", "dog"])  # doctest: +SKIP
      [{'cat': 0.99, 'dog': 0.01}]
    """
    templates = [template] if isinstance(template, str) else list(template)
    if not labels or len(set(labels)) < len(labels):
        raise UserError(f"labels={list(labels)} must be different names, at least one")
    if not templates or not all("{}" in text for text in templates):
        raise UserError(f"template={template!r} must be a text with {{}} where the label stands")
    texts = [text.replace("{}", label) for label in labels for text in templates]
    classes = embed_texts(model, texts, batch_size).reshape(len(labels), len(templates), -1).mean(axis=1)
    classes /= np.maximum(np.linalg.norm(classes, axis=1, keepdims=True), 1e-12)
    scale = np.exp(np.asarray(model.apply(model.params, method="log_scale")))
    logits = scale * embed_images(model, images, batch_size) @ classes.T
    exponential = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    probabilities = exponential / exponential.sum(axis=1, keepdims=True)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    return [{labels[i]: float(row[i]) for i in best} for row, best in zip(probabilities, order, strict=True)]


def retrieve(queries: Float[np.ndarray, "Q E"], answers: Float[np.ndarray, "A E"], top_k: int = 5) -> list[list[Hit]]:
    """The nearest answers to each query, the nearest first; of equally near ones, the first.

    Args:
      queries: unit vectors, such as those of `embed_texts`.
      answers: unit vectors, such as those of `embed_images`.
      top_k: number of answers to each query, if there are as many.

    Examples:
      >>> images, texts = bertgpt.embed_images(model, paths), bertgpt.embed_texts(model, ["a cat"])  # doctest: +SKIP
      >>> [paths[hit.index] for hit in bertgpt.retrieve(texts, images)[0]]  # doctest: +SKIP
    """
    found = []
    for query in queries:
        cosines = answers @ query
        best = np.argsort(-cosines, kind="stable")[:top_k]
        found.append([Hit(int(i), float(cosines[i])) for i in best])
    return found


@functools.partial(jax.jit, static_argnames=("apply", "method"))
def features(apply: Apply, method: str, params: Params, inputs: Inputs) -> Float[Array, "B E"]:
    """What a method of the model gives for a batch."""
    return apply(params, inputs, method=method)


def compares_images(model: Model) -> bool:
    """Whether it embeds images and texts in one space, as CLIP does."""
    return {"image_features", "text_features"} <= model.config.outputs


def check_dual(model: Model) -> None:
    """Raises UserError if a model does not embed images and texts in one space."""
    if not compares_images(model):
        name = type(model.config).__name__.removesuffix("Config")
        raise UserError(f"{model.path}: {name} does not embed images and texts in one space, as Clip does")
