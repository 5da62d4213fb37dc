"""Starting from pretrained weights: which parameters of a loaded model a new one takes, and what makes them unfit."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from bertgpt.models.vit import fit_images
from bertgpt.runs.checkpoint import named_leaves
from bertgpt.types import Labels, ModelConfig, Params, UserError

# Parameters that mean something only together with their labels.
HEADS = ("classifier", "tagger", "crf")

# Fields in which a model may differ from the one it starts from and still compute the same hidden states.
FREE = set(
    """vocab_size max_len dropout attention_dropout classifier_dropout pooler mlm_head stddev init_scale
    truncated_init scan remat attention""".split()
)


def load_pretrained(
    params: Params, loaded: Params, vocab_sizes: tuple[int, int] | None = None, reinitialize: Sequence[str] = ()
) -> tuple[Params, dict[str, list[str]]]:
    """Replaces every parameter that `loaded` has under the same name, and leaves the others as initialised.

    Args:
      params: initialised parameters.
      loaded: pretrained parameters.
      vocab_sizes: vocabulary sizes of `params` and of `loaded`; where the first is larger, the additional rows of
        embeddings and output biases stay as initialised.
      reinitialize: prefixes of parameter names (whole path components); these parameters stay as initialised.

    Returns:
      The merged parameters, and a report of parameter names: "loaded", "initialised" (not in `loaded`) and "unused"
      (only in `loaded`).

    Raises:
      UserError: shapes differ under the same name, or an entry of `reinitialize` matches no parameter.
    """
    target, source = named_leaves(params), named_leaves(loaded)
    for prefix in reinitialize:
        if not any(has_prefix(name, prefix) for name in target):
            known = ", ".join(dict.fromkeys(name.split("/")[0] for name in target))
            raise UserError(f"reinitialize: no parameters of the model are named {prefix!r}; there are {known}")
    excluded = [name for name in source if any(has_prefix(name, prefix) for prefix in reinitialize)]
    source = {name: leaf for name, leaf in source.items() if name not in excluded}
    merged = []
    for name, leaf in target.items():
        value = source.get(name, leaf)
        if name in source and value.shape != leaf.shape:
            if vocab_sizes is None or not is_padded(leaf.shape, value.shape, *vocab_sizes):
                raise UserError(
                    f"init_from: {name} has shape {value.shape} there but {leaf.shape} in this model;"
                    f" --reinitialize {name.split('/')[0]} initialises it anew"
                )
            corner = tuple(slice(n) for n in value.shape)
            value = np.array(leaf)
            value[corner] = source[name]
        merged.append(jax.device_put(value, leaf.sharding) if name in source else leaf)
    report = {
        "loaded": [name for name in target if name in source],
        "initialised": [name for name in target if name not in source],
        "unused": [*(name for name in source if name not in target), *excluded],
    }
    return jax.tree.unflatten(jax.tree.structure(params), merged), report


def is_padded(shape: tuple[int, ...], old_shape: tuple[int, ...], vocab_size: int, old_vocab_size: int) -> bool:
    """Whether two shapes differ only in that the first has a larger vocabulary."""
    grown = tuple(vocab_size if n == old_vocab_size else n for n in old_shape)
    return vocab_size > old_vocab_size and grown == shape


def has_prefix(name: str, prefix: str) -> bool:
    """Whether the parameter path equals the prefix or lies below it."""
    return f"{name}/".startswith(f"{prefix}/")


def check_same_function(target: ModelConfig, source: ModelConfig, source_name: str) -> None:
    """Checks that weights of a model `source` compute the same hidden states in a model `target`.

    Raises:
      UserError: the configs differ in a field outside `FREE`; the message lists the fields.
    """
    if type(target) is not type(source):
        names = [type(config).__name__.removesuffix("Config") for config in (source, target)]
        raise UserError(f"init_from: {source_name} holds a {names[0]}, but the experiment's model is a {names[1]}")
    new, old = _fields(target), _fields(source)
    changed = [name for name in new if new[name] != old.get(name) and name.split(".")[-1] not in FREE]
    # Adapters may be added: initialised near the identity.
    changed = [name for name in changed if not (name.endswith("adapter_dim") and old[name] is None)]
    if changed:
        lines = ", ".join(f"model.{name}={old.get(name)!r} there but {new[name]!r} here" for name in changed)
        raise UserError(f"init_from: the weights of {source_name} need another model: {lines}")


def _fields(config: ModelConfig, prefix: str = "") -> dict[str, object]:
    """Field → value; those of the parts of a composed model as `part.field`, with the class of the part."""
    found: dict[str, object] = {}
    for field in dataclasses.fields(config):
        value = vars(config)[field.name]
        inner = isinstance(value, ModelConfig)
        found[prefix + field.name] = type(value).__name__ if inner else value
        found |= _fields(value, f"{prefix}{field.name}.") if inner else {}
    return found


def weights_for(target: ModelConfig, source: ModelConfig, params: Params, source_name: str | Path) -> Params:
    """The parameters of a loaded model that a model of config `target` can start from.

    Of a model of several networks (ELECTRA), an encoder starts from the discriminator.

    Raises:
      UserError: they belong to a model that computes something else.
    """
    if source.main is not source and target.main is target:
        source, params = next(part for part in source.networks(params).values() if part[0] is source.main)
    source, params = fit_images(target, source, params)
    check_same_function(target, source, str(source_name))
    return params


def check_labels(
    target: Mapping[str, Labels], source: Mapping[str, Labels], source_name: str, loaded: Sequence[str]
) -> None:
    """Checks that no head was loaded that was trained for labels other than the data's.

    Args:
      target: labels of the data by prefix of the head's parameter names: "" or "task_NAME/".
      source: labels that the loaded model was trained for, likewise.
      source_name: name of the loaded model in messages.
      loaded: names of the loaded parameters.

    Raises:
      UserError: the labels of a loaded head differ.
    """
    for prefix, labels in target.items():
        heads = [name for name in HEADS if any(other.startswith(f"{prefix}{name}/") for other in loaded)]
        old, new = source.get(prefix, Labels()).shown, labels.shown
        if heads and old and new and new != old:
            raise UserError(
                f"init_from: {source_name} has a head for the labels {', '.join(old)}, but the data has"
                f" {', '.join(new)}; --reinitialize {(prefix or heads[0]).rstrip('/')} initialises it anew"
            )
