"""What Switch layers add to a loss, and what is worth watching of them (Fedus et al. 2022 §2.2)."""

from typing import Any

import jax
import jax.numpy as jnp

from bertgpt.types import Loss, Sum


def router_loss(auxiliary: dict[str, Any], load_balance: float) -> Loss:
    """α · Σ over layers of the mean, over rows, of E · Σ_e f_e P_e, with each layer's numbers as metrics.

    Metrics of the n-th sparse layer of a stack, each averaged over the rows that hold any token: `router_load/STACK_n`,
    the share of tokens each expert was chosen for (a vector: the log shows largest, smallest and entropy), and
    `router_dropped/STACK_n`, the share of tokens over capacity.

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
        stack, place = path.partition("/")[0], path.removesuffix("load")
        used = (jnp.sum(load, axis=-1) > 0).astype(load.dtype)  # [layers, B]: a row of padding has no load
        balance = layers[place + "load_balance"] * used
        for n in range(load.shape[0]):
            name, rows = f"{stack}_{n}", jnp.sum(used[n])
            metrics[f"router_load/{name}"] = Sum(jnp.sum(load[n], axis=0), rows)
            metrics[f"router_dropped/{name}"] = Sum(jnp.sum(layers[place + "dropped"][n] * used[n]), rows)
            metrics[f"router_balance/{name}"] = Sum(jnp.sum(balance[n]), rows)
            terms[f"load_balance/{name}"] = Sum(load_balance * jnp.sum(balance[n]), rows)
    return Loss(terms, metrics)
