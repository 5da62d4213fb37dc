"""Runs a flax module on parameters: the only way in which objectives, training and inference reach a model."""

import contextlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from bertgpt.types import Apply


def make_apply(module: nn.Module) -> Apply:
    """apply(params, *args, method=name, rng=key, auxiliary=None) for a flax module; without a key there is no dropout.

    `auxiliary` names a collection: the answer is then (output, what layers sowed into it).

    CPUs emulate bfloat16 but for products (a step wholly in it was 4 times slower), so there a module of that type
    computes in float32 and only multiplies in bfloat16.
    """
    emulated = module.dtype == jnp.bfloat16 and jax.default_backend() == "cpu"
    module = module.clone(dtype=jnp.dtype("float32")) if emulated else module

    def apply(
        params: Any,
        *args: Any,
        method: str = "__call__",
        rng: Key[Array, ""] | None = None,
        auxiliary: str | None = None,
    ) -> Any:
        rngs, mutable = None if rng is None else {"dropout": rng}, [auxiliary] if auxiliary else False
        with jax.default_matmul_precision("bfloat16") if emulated else contextlib.nullcontext():
            result = module.apply({"params": params}, *args, method=method, rngs=rngs, mutable=mutable)
        return (result[0], result[1].get(auxiliary, {})) if auxiliary else result

    return apply
