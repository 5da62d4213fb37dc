"""Models as StableHLO programs for any batch and length, by `jax.export`: they run where jax is, without bertgpt."""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import safetensors.numpy
from jax import export

from bertgpt.inference.model import Model
from bertgpt.inference.program import AXES, INPUTS, Program, Wanted, program_of
from bertgpt.inference.runner import STABLEHLO, reading, write_runner
from bertgpt.io.directories import new_directory
from bertgpt.io.files import one_line
from bertgpt.runs.checkpoint import named_leaves
from bertgpt.types import JsonObject, UserError

Platform = Literal["cpu", "cuda", "rocm", "tpu"]
PROGRAM, WEIGHTS = "program.jax", "weights.safetensors"


def export_stablehlo(
    model: Model, directory: Path, wanted: Wanted | None = None, platforms: Sequence[Platform] = ("cpu", "cuda", "tpu")
) -> str:
    """Writes a program, its weights, a manifest, the tokenizer and a runner.

    The program is traced once, for a batch of b sequences of s tokens, s ≤ max_len, and lowered for each platform.

    Args:
      model: from `load`.
      directory: a new directory.
      wanted: what to compute; None: what the model's head gives (see `program.program_of`).
      platforms: where it may run.

    Returns:
      A description of what was written.

    Raises:
      UserError: the directory is not empty, the model has no such output, or cannot be traced for any length.
    """
    program = program_of(model, wanted)
    exported, weights = trace(model, program, platforms)
    facts = manifest(model, program, exported)
    with new_directory(directory) as folder:
        (folder / PROGRAM).write_bytes(exported.serialize())
        safetensors.numpy.save_file({name: np.ascontiguousarray(x) for name, x in weights.items()}, folder / WEIGHTS)
        write_runner(folder, model, STABLEHLO, facts)
    return f"{type(model.config).__name__} as StableHLO: {', '.join(program.inputs)} → {program.output}"


def trace(
    model: Model, program: Program, platforms: Sequence[Platform]
) -> tuple[export.Exported, dict[str, np.ndarray]]:
    """The exported function of (weights by name, arrays in the order of `program.inputs`), and the weights.

    Raises:
      UserError: it cannot be traced for any batch and length.
    """
    weights = {name: np.asarray(leaf) for name, leaf in named_leaves(program.params).items()}
    names, tree = list(weights), jax.tree.structure(program.params)
    limit = model.config.max_len
    lengths = ["t" if name == "decoder_input_ids" else "s" for name in program.inputs]
    symbols = ["b", *dict.fromkeys(lengths)]
    dims = export.symbolic_shape(", ".join(symbols), constraints=[f"{x} <= {limit}" for x in symbols[1:]])
    of = dict(zip(symbols, dims, strict=True))

    def function(weights: dict[str, jax.Array], *arrays: jax.Array) -> jax.Array:
        params = jax.tree.unflatten(tree, [weights[name] for name in names])
        return program.run(params, dict(zip(program.inputs, arrays, strict=True)))

    arguments = [jax.ShapeDtypeStruct((of["b"], of[length]), np.int32) for length in lengths]
    like = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    try:
        return export.export(jax.jit(function), platforms=list(platforms))(like, *arguments), weights
    except (TypeError, ValueError, NotImplementedError) as error:  # jax's InconclusiveDimensionOperation is one
        if isinstance(error, UserError):
            raise
        name = type(model.config).__name__
        raise UserError(f"{model.name}: {name} cannot be exported for any length: {one_line(error)[:200]}") from None


def manifest(model: Model, program: Program, exported: export.Exported) -> JsonObject:
    """What a user of the program must know."""
    (output,) = exported.out_avals
    axes = {name: ["batch", "target" if name.startswith("decoder") else "sequence"] for name in program.inputs}
    return {
        "format": "stablehlo", "program": PROGRAM, "weights": WEIGHTS,
        "inputs": {name: {"dtype": "int32", "axes": axes[name], "meaning": INPUTS[name]} for name in program.inputs},
        "outputs": {program.output: {"dtype": output.dtype.name, "axes": list(AXES[program.output])}},
        "mask": "segment_ids", "reading": reading(model, program), "platforms": list(exported.platforms),
        "calling_convention": exported.calling_convention_version, "jax": importlib.metadata.version("jax"),
    }  # fmt: skip
