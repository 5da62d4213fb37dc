"""Which parameters are trained, and how far each lies below the top: told by names alone.

The first name of a parameter says what it belongs to (in ELECTRA the second: `discriminator/encoder`, …):

  backbone: BELOW the layers, embeddings and what is learnt of positions; STACKS of layers, of which every array has an
            axis of layers in front; ABOVE them, the norm that closes a stack.
  head:     everything else: classifiers, word scores, and BERT's pooler, which a checkpoint may lack, and which would
            then stay random if it were frozen.
"""

import re
from typing import Any

import jax
import numpy as np

from bertgpt.config import Trainable
from bertgpt.types import UserError

BELOW = {"embeddings", "embedding_projection", "token", "encoder_bias", "decoder_bias"}
STACKS = {"encoder", "decoder"}
ABOVE = {"final_norm", "encoder_norm", "decoder_norm"}
BACKBONE = BELOW | STACKS | ABOVE
NETWORKS = ("generator", "discriminator")
# Blocks that take turns within a stack: GPT-3's dense and local ones, and those of a group with experts.
MEMBERS = re.compile(r"dense|local|block_\d+")


def within(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names inside one network: (“lora”,) (“discriminator”,) “encoder”, … → “encoder”, …"""
    while len(names) > 1 and names[0] in ("lora", *NETWORKS):
        names = names[1:]
    return names


def is_head(names: tuple[str, ...]) -> bool:
    return within(names)[0] not in BACKBONE


def is_trained(names: tuple[str, ...], trainable: Trainable, with_lora: bool) -> bool:
    """Whether the parameter of these names is trained; see `Experiment.trainable`."""
    if names[0] == "lora" or is_head(names):
        return True
    match trainable:
        case "all":
            return not with_lora
        case "head":
            return False
        case "bias":
            return names[-1] == "bias"
        case "adapter":
            return any(name.endswith(("_adapter", "norm")) for name in names)


def separate(params: dict, trainable: Trainable) -> tuple[dict, dict]:
    """(trained, frozen): two trees that together hold every parameter; see `merge`.

    Raises:
      UserError: nothing is trained, or adapters are wanted of a model that has none.
    """
    with_lora = "lora" in params
    if trainable == "all" and not with_lora:
        return params, {}

    def part(tree: dict, above: tuple[str, ...], wanted: bool) -> dict:
        found = {}
        for name, value in tree.items():
            names = (*above, name)
            if isinstance(value, dict):
                inner = part(value, names, wanted)
                found |= {name: inner} if inner else {}
            elif is_trained(names, trainable, with_lora) == wanted:
                found[name] = value
        return found

    trained = part(params, (), True)
    if trainable == "adapter" and not any("_adapter" in name for name in names_of(trained)):
        raise UserError("trainable='adapter': the model has no adapters; give model.adapter_dim")
    if not trained:
        raise UserError(f"trainable={trainable!r}: the model has no such parameters")
    return trained, part(params, (), False)


def merge(one: dict, other: dict) -> dict:
    """The inverse of `separate`."""
    both = {name: merge(one[name], other[name]) for name in one.keys() & other.keys()}
    return one | other | both


def names_of(tree: dict) -> list[str]:
    """Paths of all leaves, a/b/c."""
    return ["/".join(keys(path)) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def keys(path: tuple) -> tuple[str, ...]:
    # At birth a leaf sits in a box of axis names, which adds an attribute to its path.
    return tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))


def count_parameters(tree: Any) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def distances(params: dict) -> dict:
    """How many layers up the head is from each parameter: integers that broadcast against it, [L, 1, …] in a stack.

    Heads 0; the top layer, and the norm above it, 1; the layer below 2; …; embeddings 1 more than the lowest layer.
    Encoder and decoder each count from their own top, and layers that share their parameters count as one.
    """
    leaves = [(keys(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    members: dict[tuple[str, ...], set[str]] = {}
    depths: dict[tuple[str, ...], int] = {}
    for names, leaf in leaves:
        if within(names)[0] in STACKS:
            inside = within(names)[1]
            members.setdefault(stack_of(names), set()).update({inside} if MEMBERS.fullmatch(inside) else ())
            depths[stack_of(names)] = leaf.shape[0]
    turns = {stack: sorted(found, key=lambda name: (len(name), name)) or [""] for stack, found in members.items()}
    depths = {stack: depth * len(turns[stack]) for stack, depth in depths.items()}

    def distance(path: tuple, leaf: Any) -> np.ndarray:
        names = keys(path)
        first, stack = within(names)[0], stack_of(names)
        if first in STACKS:
            turn = turns[stack].index(within(names)[1]) if turns[stack] != [""] else 0
            layers = turn + len(turns[stack]) * np.arange(leaf.shape[0])
            return (depths[stack] - layers).reshape(-1, *[1] * (leaf.ndim - 1))
        if first in BELOW:
            return np.asarray(1 + max(depths.values(), default=0))
        return np.asarray(int(first in ABOVE))

    return jax.tree_util.tree_map_with_path(distance, params)


def stack_of(names: tuple[str, ...]) -> tuple[str, ...]:
    """Which stack a parameter belongs to: its first names, without “lora”."""
    names = names[1:] if names[0] == "lora" else names
    return names[:2] if names[0] in NETWORKS else names[:1]
