"""Which parameters are trained, and how many layers each is away from the head. Both are decided by parameter names.

The first component of a parameter's path says what it belongs to (in models of several networks the second:
`discriminator/encoder`, `vision/encoder`, …):

  backbone: EMBEDDINGS (token and position embeddings); STACKS of layers, whose arrays have a leading axis of layers;
            FINAL_NORMS, which follow a stack.
  head:     everything else: classifiers, vocabulary projections, and BERT's pooler, which a checkpoint may lack;
            frozen, it would then stay random.
"""

import re

import jax
import numpy as np

from bertgpt.config import Trainable
from bertgpt.types import Params, UserError

EMBEDDINGS = {"embeddings", "embedding_projection", "pre_norm", "token", "encoder_bias", "decoder_bias"}
STACKS = {"encoder", "decoder"}
FINAL_NORMS = {"final_norm", "encoder_norm", "decoder_norm"}
BACKBONE = EMBEDDINGS | STACKS | FINAL_NORMS
NETWORKS = ("generator", "discriminator", "vision", "language")
# Blocks that alternate within a stack: GPT-3's dense and local ones, and those of a group with experts.
MEMBERS = re.compile(r"dense|local|block_\d+")


def without_network(names: tuple[str, ...]) -> tuple[str, ...]:
    """The path inside one network: (("lora",) "discriminator",) "encoder", … → "encoder", …"""
    while len(names) > 1 and names[0] in ("lora", *NETWORKS):
        names = names[1:]
    return names


def is_head(names: tuple[str, ...]) -> bool:
    """Whether the parameter at this path belongs to a head."""
    return without_network(names)[0] not in BACKBONE


def is_trained(names: tuple[str, ...], trainable: Trainable, with_lora: bool) -> bool:
    """Whether the parameter at this path is trained; see `Experiment.trainable`."""
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
    """Splits parameters into (trained, frozen), two trees that together hold every parameter; see `merge`.

    Raises:
      UserError: no parameter would be trained, or adapters are requested and the model has none.
    """
    with_lora = "lora" in params
    if trainable == "all" and not with_lora:
        return params, {}

    def select(tree: dict, prefix: tuple[str, ...], trained: bool) -> dict:
        found = {}
        for name, value in tree.items():
            names = (*prefix, name)
            if isinstance(value, dict):
                inner = select(value, names, trained)
                found |= {name: inner} if inner else {}
            elif is_trained(names, trainable, with_lora) == trained:
                found[name] = value
        return found

    trained = select(params, (), True)
    if trainable == "adapter" and not any("_adapter" in name for name in names_of(trained)):
        raise UserError("trainable='adapter': the model has no adapters; give model.adapter_dim")
    if not trained:
        raise UserError(f"trainable={trainable!r}: the model has no such parameters")
    return trained, select(params, (), False)


def merge(one: dict, other: dict) -> dict:
    """The inverse of `separate`."""
    both = {name: merge(one[name], other[name]) for name in one if name in other}
    return one | other | both


def names_of(tree: dict) -> list[str]:
    """Paths of all leaves, a/b/c."""
    return ["/".join(path_names(path)) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def path_names(path: tuple) -> tuple[str, ...]:
    """The names of a path of jax.tree_util."""
    # At initialisation a leaf is boxed with its axis names, which adds an attribute to its path.
    return tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))


def count_parameters(tree: Params) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def distances(params: dict) -> dict:
    """Distance of each parameter from the head in layers, as integers that broadcast against it: [L, 1, …] in a stack.

    Heads have distance 0, the top layer and its final norm 1, the next layer 2, …, embeddings 1 more than the lowest
    layer. Encoder and decoder each count from their own top. Layers that share parameters count as one.
    """
    leaves = [(path_names(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    members: dict[tuple[str, ...], set[str]] = {}
    depths: dict[tuple[str, ...], int] = {}
    for names, leaf in leaves:
        if without_network(names)[0] in STACKS:
            inside = without_network(names)[1]
            members.setdefault(stack_of(names), set()).update({inside} if MEMBERS.fullmatch(inside) else ())
            depths[stack_of(names)] = leaf.shape[0]
    alternating = {stack: sorted(found, key=lambda name: (len(name), name)) or [""] for stack, found in members.items()}
    depths = {stack: depth * len(alternating[stack]) for stack, depth in depths.items()}

    def distance(path: tuple, leaf: object) -> np.ndarray:
        names = path_names(path)
        first, stack = without_network(names)[0], stack_of(names)
        if first in STACKS:
            offset = alternating[stack].index(without_network(names)[1]) if alternating[stack] != [""] else 0
            layers = offset + len(alternating[stack]) * np.arange(leaf.shape[0])
            return (depths[stack] - layers).reshape(-1, *[1] * (leaf.ndim - 1))
        if first in EMBEDDINGS:
            return np.asarray(1 + max(depths.values(), default=0))
        return np.asarray(int(first in FINAL_NORMS))

    return jax.tree_util.tree_map_with_path(distance, params)


def stack_of(names: tuple[str, ...]) -> tuple[str, ...]:
    """The stack that a parameter belongs to: the first components of its path, without "lora"."""
    names = names[1:] if names[0] == "lora" else names
    return names[:2] if names[0] in NETWORKS else names[:1]
