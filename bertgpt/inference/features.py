"""Features from the layers of a frozen encoder, and a linear classifier on them.

Devlin et al. 2019 §5.3 compare the last layer, the last four concatenated, and their mean; which is best depends on the
task. Features are computed once and cached on disk, so that training a classifier on them takes seconds.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from bertgpt.config import to_json
from bertgpt.convert.sentence_transformers import Module
from bertgpt.convert.verify import layers_of
from bertgpt.inference.embedding import encode_texts, run_modules
from bertgpt.inference.encode import Pooling, embedder_for, length_batches
from bertgpt.inference.model import Model, load
from bertgpt.io.directories import make_directory
from bertgpt.io.files import open_atomic
from bertgpt.runs.checkpoint import named_leaves
from bertgpt.tasks.source import need
from bertgpt.types import Apply, Inputs, UserError

Combination = Literal["concat", "mean"]
GRID = (0.001, 0.01, 0.1, 1.0, 10.0)


def extract_features(
    path: str | Path,
    texts: Sequence[str],
    layers: Sequence[int] = (-1,),
    pooling: Pooling | None = None,
    batch_size: int = 32,
    cache: str | Path | None = None,
    prompt: str | None = None,
    prompt_name: str | None = None,
) -> Float[np.ndarray, "N L D"]:
    """A vector for each text from each of these layers, without dropout.

    The states of every layer go through the modules of a sentence-transformers folder; those of the last layer then
    give what `SentenceTransformer.encode` gives.

    Args:
      path: directory of a run, a converted model or a Hugging Face model.
      texts: texts, truncated to the model's longest sequence.
      layers: 0 is the embedded input, 1 … L are the layers, −1 is the last one, −2 the one before it.
      pooling: "mean" over all tokens including [CLS] and [SEP], or the state of [CLS]; None: that of a folder of
        sentence-transformers or of a bi-encoder, of other models the mean.
      batch_size: texts per batch; texts of similar length are batched together.
      cache: folder for the features; a call with the same model, texts, layers and pooling reads them from there.
      prompt: what to put before each text; None: the prompt called `prompt_name`.
      prompt_name: a prompt of a sentence-transformers folder; None: its default one, if it has one.

    Raises:
      UserError: the model is not an encoder, or has no such layer or prompt.

    Examples:
      >>> extract_features("runs/bert", ["a text"], layers=(-4, -3, -2, -1)).shape  # doctest: +SKIP
      (1, 4, 768)
    """
    model = load(path, arrange="host")
    embedder = embedder_for(model, pooling)
    sequences, skipped = encode_texts(model, embedder, texts, embedder.prompt(prompt, prompt_name))
    depth = model.config.num_layers
    for layer in layers:
        if not -depth - 1 <= layer <= depth:
            raise UserError(
                f"{path}: has no layer {layer}; there are 0 (the embedded input) to {depth}, or -1 the last"
            )
    file = None
    if cache is not None:
        how = repr((embedder.modules, embedder.truncate_dim, skipped))
        key = digest(model, sequences, [layer % (depth + 1) for layer in layers], how, embedder.params)
        file = Path(cache) / f"features-{key}.npy"
        if file.exists():
            return np.load(file)
    params = jax.device_put(model.params)
    rows = {}
    for indices, ids, segments in length_batches(sequences, batch_size, model.config.max_len):
        vectors = _pooled(model.apply, tuple(layers), embedder.modules, params, embedder.params, ids, segments, skipped)
        rows |= dict(zip(indices.tolist(), np.asarray(vectors)[..., : embedder.truncate_dim], strict=False))
    found = np.stack([rows[i] for i in range(len(texts))]) if rows else np.zeros((0, len(layers), 0), np.float32)
    if file is not None:
        save_array(file, found)
    return found


@functools.partial(jax.jit, static_argnames=("apply", "layers", "modules"))
def _pooled(
    apply: Apply,
    layers: tuple[int, ...],
    modules: tuple[Module, ...],
    params: PyTree,
    module_params: PyTree,
    ids: Int[Array, "B S"],
    segments: Int[Array, "B S"],
    skipped: Int[Array, ""],
) -> Float[Array, "B L D"]:
    output, tree = apply(params, Inputs(ids, segments), auxiliary="intermediates")
    states = [*layers_of(tree, output)[:-2], output]  # a final norm counts as part of the last layer
    return jnp.stack(
        [run_modules(modules, module_params, states[layer], segments, skipped) for layer in layers], axis=1
    )


def combine(features: Float[np.ndarray, "N L D"], how: Combination) -> Float[np.ndarray, "N F"]:
    """The layers concatenated, or their mean."""
    return features.reshape(len(features), -1) if how == "concat" else features.mean(axis=1)


def digest(
    model: Model, sequences: Sequence[Sequence[int]], layers: Sequence[int], pooling: str, params: PyTree
) -> str:
    """A hash of everything that the features depend on: config, weights, token ids, layers and pooling."""
    value = hashlib.sha256(json.dumps([to_json(model.config), list(layers), pooling]).encode())
    for name, leaf in named_leaves({"model": model.params, "modules": params}).items():
        value.update(name.encode() + np.ascontiguousarray(leaf).tobytes())
    value.update(json.dumps([list(map(int, row)) for row in sequences]).encode())
    return value.hexdigest()[:16]


def save_array(file: Path, array: np.ndarray) -> None:
    """Writes a .npy file atomically, in a folder that is created if missing. Errors: as `io.files.write_atomic`."""
    make_directory(file.parent)
    with open_atomic(file) as stream:
        np.save(stream, array)


class Probe(NamedTuple):
    """A linear model on features."""

    model: Any
    """a scikit-learn pipeline, with predict, predict_proba and score"""
    c: float
    """inverse strength of the regularisation"""
    validation_accuracy: float


def fit_probe(
    features: Float[np.ndarray, "N F"],
    labels: Int[np.ndarray, " N"],
    validation_features: Float[np.ndarray, "V F"],
    validation_labels: Int[np.ndarray, " V"],
    grid: Sequence[float] = GRID,
) -> Probe:
    """Logistic regression on standardised features, with the regularisation that is best on the validation split.

    Args:
      features: training features, from `combine`.
      labels: training labels.
      validation_features: features of the validation split.
      validation_labels: its labels.
      grid: values of c to try; of equally accurate ones the smallest is chosen.

    Raises:
      UserError: scikit-learn is not installed.
    """
    linear_model, pipeline = need("sklearn.linear_model", "scikit-learn"), need("sklearn.pipeline", "scikit-learn")
    preprocessing = need("sklearn.preprocessing", "scikit-learn")
    best: Probe | None = None
    for c in sorted(grid):
        model = pipeline.make_pipeline(
            preprocessing.StandardScaler(), linear_model.LogisticRegression(C=c, max_iter=1000)
        )
        model.fit(features, labels)
        accuracy = float(model.score(validation_features, validation_labels))
        if best is None or accuracy > best.validation_accuracy:
            best = Probe(model, c, accuracy)
    return best
