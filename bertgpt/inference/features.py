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

from bertgpt.checkpoint import named_leaves
from bertgpt.config import to_json
from bertgpt.convert.verify import layers_of
from bertgpt.inference.encode import Pooling, length_batches, tokenize
from bertgpt.inference.model import Model, load
from bertgpt.io import open_atomic
from bertgpt.layers.heads import mean_pool
from bertgpt.tasks.source import need
from bertgpt.types import Apply, Inputs, UserError

Combination = Literal["concat", "mean"]
GRID = (0.001, 0.01, 0.1, 1.0, 10.0)


def extract_features(
    path: str | Path,
    texts: Sequence[str],
    layers: Sequence[int] = (-1,),
    pooling: Pooling = "mean",
    batch_size: int = 32,
    cache: str | Path | None = None,
) -> Float[np.ndarray, "N L D"]:
    """A vector for each text from each of these layers, without dropout.

    Args:
      path: directory of a run, a converted model or a Hugging Face model.
      texts: texts, truncated to the model's longest sequence.
      layers: 0 is the embedded input, 1 … L are the layers, −1 is the last one, −2 the one before it.
      pooling: "mean" over all tokens including [CLS] and [SEP], or the state of [CLS].
      batch_size: texts per batch; texts of similar length are batched together.
      cache: folder for the features; a call with the same model, texts, layers and pooling reads them from there.

    Raises:
      UserError: the model is not an encoder, or has no such layer.

    Examples:
      >>> extract_features("runs/bert", ["a text"], layers=(-4, -3, -2, -1)).shape  # doctest: +SKIP
      (1, 4, 768)
    """
    model = load(path, arrange="host")
    sequences = tokenize(model, texts)
    depth = model.config.num_layers
    for layer in layers:
        if not -depth - 1 <= layer <= depth:
            raise UserError(
                f"{path}: has no layer {layer}; there are 0 (the embedded input) to {depth}, or -1 the last"
            )
    file = None
    if cache is not None:
        file = (
            Path(cache) / f"features-{digest(model, sequences, [layer % (depth + 1) for layer in layers], pooling)}.npy"
        )
        if file.exists():
            return np.load(file)
    params = jax.device_put(model.params)
    found = np.zeros((len(texts), len(layers), model.config.d_model), np.float32)
    for indices, ids, segments in length_batches(sequences, batch_size, model.config.max_len):
        vectors = _pooled(model.apply, tuple(layers), pooling, params, ids, segments)
        found[indices] = np.asarray(vectors)[: len(indices)]
    if file is not None:
        save_array(file, found)
    return found


@functools.partial(jax.jit, static_argnames=("apply", "layers", "pooling"))
def _pooled(
    apply: Apply,
    layers: tuple[int, ...],
    pooling: Pooling,
    params: PyTree,
    ids: Int[Array, "B S"],
    segments: Int[Array, "B S"],
) -> Float[Array, "B L D"]:
    output, tree = apply(params, Inputs(ids, segments), auxiliary="intermediates")
    states = [*layers_of(tree, output)[:-2], output]  # a final norm counts as part of the last layer
    chosen = [states[layer].astype(jnp.float32) for layer in layers]
    return jnp.stack([mean_pool(x, segments) if pooling == "mean" else x[:, 0] for x in chosen], axis=1)


def combine(features: Float[np.ndarray, "N L D"], how: Combination) -> Float[np.ndarray, "N F"]:
    """The layers concatenated, or their mean."""
    return features.reshape(len(features), -1) if how == "concat" else features.mean(axis=1)


def digest(model: Model, sequences: Sequence[Sequence[int]], layers: Sequence[int], pooling: str) -> str:
    """A hash of everything that the features depend on: config, weights, token ids, layers and pooling."""
    value = hashlib.sha256(json.dumps([to_json(model.config), list(layers), pooling]).encode())
    for name, leaf in named_leaves(model.params).items():
        value.update(name.encode() + np.ascontiguousarray(leaf).tobytes())
    value.update(json.dumps([list(map(int, row)) for row in sequences]).encode())
    return value.hexdigest()[:16]


def save_array(file: Path, array: np.ndarray) -> None:
    """Writes a .npy file atomically, in a folder that is created if missing. Errors: as `io.write_atomic`."""
    file.parent.mkdir(parents=True, exist_ok=True)
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
