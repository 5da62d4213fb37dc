"""Running a model: the base class of all model modules, and `Apply` functions of them."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from bertgpt.config import scanned
from bertgpt.sharding import target_platform
from bertgpt.types import Apply, Inputs, ModelConfig, Params, UserError


class ModelModule(nn.Module):
    """The flax module of a model. Subclasses have the fields `config` and `dtype`."""

    task_methods: ClassVar[frozenset[str]] = frozenset()
    """methods that take a `task`, whose own layers they then use"""

    def run(self, inputs: Inputs | None, method: str, task: str | None, named: dict[str, Any]) -> Any:
        """Calls a method by its name; with `inputs`, if given, and with `task` if it has layers for each task.

        Raises:
          UserError: the model does not have the method.
        """
        if method != "__call__":
            check_outputs(self.config, method)
        if task is not None and method in self.task_methods:
            named = named | {"task": task}
        # The only lookup by name: objectives import no model, so they know its outputs by name (`config.outputs`).
        function = getattr(self, method)
        return function(**named) if inputs is None else function(inputs, **named)


def make_apply(module: ModelModule) -> Apply:
    """The `Apply` function of a module; dropout acts only if `rng` is given.

    On CPUs a bfloat16 module computes in float32 and only multiplies in bfloat16, because CPUs emulate every other
    operation in it (a training step entirely in bfloat16 was 4 times slower).
    """
    in_float32 = module.clone(dtype=jnp.dtype("float32"))

    def apply(
        params: Params,
        inputs: Inputs | None = None,
        *,
        method: str = "__call__",
        rng: Key[Array, ""] | None = None,
        auxiliary: str | tuple[str, ...] | None = None,
        task: str | None = None,
        **named: Any,
    ) -> Any:
        names = [auxiliary] if isinstance(auxiliary, str) else list(auxiliary or ())
        emulated = module.dtype == jnp.bfloat16 and target_platform() == "cpu"
        rngs, mutable = None if rng is None else {"dropout": rng}, names or False
        with jax.default_matmul_precision("bfloat16") if emulated else contextlib.nullcontext():
            result = (in_float32 if emulated else module).apply(
                {"params": params}, inputs, method, task, named, method="run", rngs=rngs, mutable=mutable
            )
        if not names:
            return result
        found = {name: result[1].get(name, {}) for name in names}
        return result[0], found[auxiliary] if isinstance(auxiliary, str) else found

    return apply


def parameter_shapes(module: ModelModule, inputs: Inputs, heads: Mapping[str, Mapping[str, Any]]) -> Params:
    """Shapes of the parameters of a model and of some heads. Nothing is computed or allocated.

    Args:
      module: the model.
      inputs: any inputs of its kind.
      heads: method → its arguments beside the hidden states.

    Returns:
      The tree of parameters, with shapes in place of arrays, boxed with the names of their axes.
    """

    return jax.eval_shape(_initializer(module, heads), {"params": jax.random.key(0)}, inputs)["params"]


def initial_parameters(
    module: ModelModule, inputs: Inputs, heads: Mapping[str, Mapping[str, object]], seed: int
) -> Params:
    """Parameters of a model and of some heads, initialised from a seed; arguments as `parameter_shapes`."""
    looped = module.clone(config=scanned(module.config))  # the same numbers, compiled in a fraction of the time
    return nn.unbox(jax.jit(_initializer(looped, heads))({"params": jax.random.key(seed)}, inputs)["params"])


def _initializer(module: ModelModule, heads: Mapping[str, Mapping[str, object]]) -> Callable[..., Params]:
    def touch(module: ModelModule, inputs: Inputs) -> None:
        hidden = module(inputs)
        for method, named in heads.items():
            module.run(None, method, None, {"hidden": hidden, **named})

    return nn.init(touch, module)


def check_outputs(config: ModelConfig, *methods: str) -> None:
    """Raises UserError if a model of this config lacks one of these methods."""
    for method in methods:
        if method not in config.outputs:
            name = type(config).__name__.removesuffix("Config")
            raise UserError(
                f"{name} has no {method}, which the objective asks for: it is for another family of models (spans and"
                " tags need an encoder such as Bert)"
            )
