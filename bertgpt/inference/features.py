"""Feature extraction: what a frozen encoder says of texts, layer by layer, and a linear model on top.

Devlin et al. 2019 §5.3 took the last layer, the last four side by side, or their mean; which is best depends on the
task. Features are computed once and kept on disk, so that trying classifiers on them takes seconds.
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
from bertgpt.inference.encode import Pooling, batches, encoded
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
    """A vector for each text from each of these layers, with the encoder as it is: no gradient, no dropout.

    Args:
      path: a run, a converted model or a Hugging Face directory.
      texts: texts; what exceeds the model's longest sequence is cut off.
      layers: 0 is the embedded input, 1 … L are the layers, −1 is the last, −2 the one before, …
      pooling: mean over all tokens, [CLS] and [SEP] included, or the state of [CLS].
      batch_size: texts at once; texts of like length go together.
      cache: folder that keeps the features; the same model, texts, layers and pooling are read from it again.

    Raises:
      UserError: the model is no encoder, or has no such layer.
    """
    model = load(path, arrange="host")
    rows = encoded(model, texts)
    depth = model.config.num_layers
    for layer in layers:
        if not -depth - 1 <= layer <= depth:
            raise UserError(
                f"{path}: has no layer {layer}; there are 0 (the embedded input) to {depth}, or -1 the last"
            )
    file = None
    if cache is not None:
        file = Path(cache) / f"features-{digest(model, rows, [layer % (depth + 1) for layer in layers], pooling)}.npy"
        if file.exists():
            return np.load(file)
    params = jax.device_put(model.params)
    found = np.zeros((len(texts), len(layers), model.config.d_model), np.float32)
    for chosen, ids, segments in batches(rows, batch_size, model.config.max_len):
        vectors = _pooled(model.apply, tuple(layers), pooling, params, ids, segments)
        found[chosen] = np.asarray(vectors)[: len(chosen)]
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
    states = [*layers_of(tree, output)[:-2], output]  # what follows the top layer, a final norm, belongs to it
    chosen = [states[layer].astype(jnp.float32) for layer in layers]
    return jnp.stack([mean_pool(x, segments) if pooling == "mean" else x[:, 0] for x in chosen], axis=1)


def combine(features: Float[np.ndarray, "N L D"], how: Combination) -> Float[np.ndarray, "N F"]:
    """Layers side by side, or their mean."""
    return features.reshape(len(features), -1) if how == "concat" else features.mean(axis=1)


def digest(model: Model, rows: Sequence[Sequence[int]], layers: Sequence[int], pooling: str) -> str:
    """Of all that features depend on: the model and its weights, the texts as it reads them, and what is taken."""
    value = hashlib.sha256(json.dumps([to_json(model.config), list(layers), pooling]).encode())
    for name, leaf in named_leaves(model.params).items():
        value.update(name.encode() + np.ascontiguousarray(leaf).tobytes())
    value.update(json.dumps([list(map(int, row)) for row in rows]).encode())
    return value.hexdigest()[:16]


def save_array(file: Path, array: np.ndarray) -> None:
    """Writes a .npy file atomically, in a folder that is created if missing. Errors: as `io.write_atomic`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open_atomic(file) as stream:
        np.save(stream, array)


class Probe(NamedTuple):
    """A linear model on features."""

    model: Any
    """scikit-learn's: predict, predict_proba, score"""
    c: float
    """inverse strength of its regularisation"""
    validation_accuracy: float


def fit_probe(
    features: Float[np.ndarray, "N F"],
    labels: Int[np.ndarray, " N"],
    validation_features: Float[np.ndarray, "V F"],
    validation_labels: Int[np.ndarray, " V"],
    grid: Sequence[float] = GRID,
) -> Probe:
    """Logistic regression on standardised features, its regularisation chosen by validation accuracy (ties: stronger).

    Raises:
      UserError: scikit-learn is missing.
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
