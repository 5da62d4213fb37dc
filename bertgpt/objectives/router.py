"""The load-balancing loss and the metrics of Switch layers (Fedus et al. 2022 §2.2)."""

import jax
import jax.numpy as jnp

from bertgpt.types import Loss, Params, Sum


def router_loss(auxiliary: Params, load_balance: float) -> Loss:
    """The load-balancing loss: α · Σ over layers of the mean over sequences of E · Σ_e f_e P_e.

    The metrics of the n-th sparse layer of a stack are averaged over the sequences that are not all padding. They are
    router_load/STACK_n, the fraction of tokens routed to each expert (a vector: the log shows its largest and smallest
    entry and its entropy), router_dropped/STACK_n, the fraction of tokens over capacity, and router_balance/STACK_n,
    E · Σ_e f_e P_e, which is 1 when balanced.

    Args:
      auxiliary: the collection “router” of a forward pass, stack → … → name → ([layers, B, ...],); {} without experts.
      load_balance: α.
    """
    terms: dict[str, Sum] = {}
    metrics: dict[str, Sum] = {}
    layers = {
        jax.tree_util.keystr(path[:-1], simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(auxiliary)
    }
    for path, load in layers.items():
        if not path.endswith("/load"):
            continue
        stack, layer_path = path.partition("/")[0], path.removesuffix("load")
        used = (jnp.sum(load, axis=-1) > 0).astype(load.dtype)  # [layers, B]: a sequence of padding has no load
        balance = layers[layer_path + "load_balance"] * used
        for n in range(load.shape[0]):
            name, count = f"{stack}_{n}", jnp.sum(used[n])
            metrics[f"router_load/{name}"] = Sum(jnp.sum(load[n], axis=0), count)
            metrics[f"router_dropped/{name}"] = Sum(jnp.sum(layers[layer_path + "dropped"][n] * used[n]), count)
            metrics[f"router_balance/{name}"] = Sum(jnp.sum(balance[n]), count)
            terms[f"load_balance/{name}"] = Sum(load_balance * jnp.sum(balance[n]), count)
    return Loss(terms, metrics)
