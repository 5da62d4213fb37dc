"""Attention by the kernels of accelerators. `masks.choose` says where they can be used."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from bertgpt.layers.masks import Mask, segment_mask
from bertgpt.sharding import spec


def flash(
    query: Float[Array, "B H S K"], key: Float[Array, "B H T K"], value: Float[Array, "B H T K"], mask: Mask
) -> Float[Array, "B H S K"]:
    """On TPUs: `jax.experimental.pallas.ops.tpu.flash_attention`, with documents by segment ids.

    The compiler cannot split a kernel, so each device runs it on its own examples and heads.
    """
    from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes, SegmentIds, flash_attention

    size = next(size for size in (512, 256, 128) if query.shape[2] % size == 0 and key.shape[2] % size == 0)
    names = "block_q block_k_major block_k block_q_major_dkv block_k_major_dkv block_k_dkv block_q_dkv"
    large = dict.fromkeys((names + " block_q_dq").split(), size)
    # The kernel of dQ gets an array of B · H · S · block_k_major.
    blocks = BlockSizes(block_b=1, **large, block_k_major_dq=128, block_k_dq=128)

    def kernel(query: Array, key: Array, value: Array, segments: SegmentIds | None) -> Array:
        return flash_attention(query, key, value, None, segments, causal=mask.causal, block_sizes=blocks)

    segments = None if mask.query_segments is None else SegmentIds(mask.query_segments, mask.key_segments)
    if jax.sharding.get_abstract_mesh().axis_names:
        heads, rows = spec(("batch", "heads", None, None)), spec(("batch", None))
        inner = P() if segments is None else SegmentIds(rows, rows)
        kernel = jax.shard_map(kernel, in_specs=(heads, heads, heads, inner), out_specs=heads, check_vma=False)
    return kernel(query, key, value, segments)


def cudnn(
    query: Float[Array, "B H S K"], key: Float[Array, "B H T K"], value: Float[Array, "B H T K"], mask: Mask
) -> Float[Array, "B H S K"]:
    """On NVIDIA GPUs: cuDNN by `jax.nn.dot_product_attention`, with documents by a dense mask."""
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    visible = None
    if mask.query_segments is not None:
        visible = segment_mask(mask.query_segments, mask.key_segments)
    window = None if mask.window is None else (mask.window - 1, 0)
    mixed = jax.nn.dot_product_attention(
        query, key, value, mask=visible, scale=1.0, is_causal=mask.causal, local_window_size=window,
        implementation="cudnn",
    )  # fmt: skip
    return jnp.swapaxes(mixed, 1, 2)
