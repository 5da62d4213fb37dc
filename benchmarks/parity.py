"""Outputs and gradients of every family on an accelerator against the CPU.

Run as: python -m benchmarks.parity OUT.json [FAMILY ...]

Packed sequences of 64, 192 and 320 tokens (lengths at which cuDNN's attention gradient was NaN for others), float32 at
the highest matmul precision, and bfloat16 for scale.
"""

import dataclasses
import json
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bertgpt.models.albert import ALBERT_BASE
from bertgpt.models.apply import make_apply
from bertgpt.models.bert import BERT_MINI
from bertgpt.models.gpt import GptConfig
from bertgpt.models.switch import SWITCH_BASE_8
from bertgpt.models.t5 import T5_SMALL
from bertgpt.types import Inputs

SMALL: dict[str, Any] = {"vocab_size": 1024, "d_model": 256, "num_layers": 4, "num_heads": 4, "d_ff": 1024}


def small(config: Any, **changes: Any) -> Any:
    """The same architecture in a small size, without dropout."""
    fields = {field.name for field in dataclasses.fields(config)}
    numbers = SMALL | {"dropout": 0.0, "attention_dropout": 0.0, "num_decoder_layers": 4, "scan": False} | changes
    return dataclasses.replace(config, **{name: value for name, value in numbers.items() if name in fields})


CONFIGS = {
    "bert": small(BERT_MINI),
    "albert": small(ALBERT_BASE, embed_dim=128),
    "gpt": small(GptConfig()),
    "t5": small(T5_SMALL),
    "switch": small(SWITCH_BASE_8),
}


def inputs_of(config: Any, length: int) -> Inputs:
    """Two packed sequences of three documents each, the last positions padding."""
    rng = np.random.default_rng(length)
    ids = rng.integers(10, SMALL["vocab_size"], (2, length)).astype(np.int32)
    ends = np.array([length // 3, length // 2, length - 5])
    segments = np.broadcast_to(np.searchsorted(ends, np.arange(length), side="right") + 1, ids.shape)
    segments = np.where(segments > 3, 0, segments).astype(np.int32)
    starts = np.concatenate([[0], ends])
    positions = (np.arange(length) - starts[np.maximum(segments[0], 1) - 1]).astype(np.int32) * (segments > 0)
    inputs = Inputs(ids, segment_ids=segments, positions=positions.astype(np.int32))
    return inputs._replace(decoder=inputs) if config.architecture == "encoder_decoder" else inputs


def run(config: Any, params: Any, inputs: Inputs, dtype: str, device: jax.Device) -> tuple[np.ndarray, Any]:
    """(hidden states, gradient of their weighted sum) on a device."""
    apply = make_apply(config.make(dtype))
    weights = np.random.default_rng(0).normal(size=(config.d_model,)).astype(np.float32)
    real = (inputs.segment_ids > 0)[..., None]

    def value(params: Any) -> tuple[jax.Array, jax.Array]:
        hidden = apply(params, inputs).astype(jnp.float32) * real
        return jnp.sum(hidden * weights) / hidden.size, hidden

    with jax.default_device(device), jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
        params, inputs = jax.device_put((params, inputs), device)
        (_, hidden), grads = jax.jit(jax.value_and_grad(value, has_aux=True))(params)
        return jax.device_get((hidden, grads))


def error(found: Any, wanted: Any) -> tuple[float, str]:
    """The largest difference over all arrays, relative to the largest value of each, and the array where it is.

    The gradient of a key's bias is 0, for softmax ignores what all scores share, and is computed as rounding noise. So
    no array counts as smaller than a thousandth of the largest.
    """
    pairs = list(zip(jax.tree.leaves(found), jax.tree_util.tree_leaves_with_path(wanted), strict=True))
    floor = 1e-3 * max(float(np.max(np.abs(b))) for _, (_, b) in pairs)
    return max(
        (float(np.max(np.abs(a - b))) / max(float(np.max(np.abs(b))), floor), jax.tree_util.keystr(path))
        for a, (path, b) in pairs
    )


def main() -> None:
    cpu, device = jax.devices("cpu")[0], jax.devices()[0]
    rows = []
    for name in sys.argv[2:] or CONFIGS:
        config = CONFIGS[name]
        for length in (64, 192, 320):
            inputs = inputs_of(config, length)
            with jax.default_device(cpu):
                params = nn.unbox(config.make().init(jax.random.key(0), inputs)["params"])
            wanted = run(config, params, inputs, "float32", cpu)
            for dtype in ("float32", "bfloat16"):
                found = run(config, params, inputs, dtype, device)
                gradient, where = error(found[1], wanted[1])
                rows.append({
                    "family": name, "length": length, "dtype": dtype, "hidden": error(found[0], wanted[0])[0],
                    "gradient": gradient, "worst": where,
                })  # fmt: skip
                print(rows[-1], flush=True)
    result = {"device": device.device_kind, "jax": jax.__version__, "records": rows}
    with open(sys.argv[1], "w") as file:
        json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
