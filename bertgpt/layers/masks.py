"""Which keys a query may attend to, and which implementation of attention computes it."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from bertgpt.ranges import Count
from bertgpt.sharding import splits, target_platform
from bertgpt.types import UserError

Implementation = Literal["xla", "chunked", "flash", "cudnn"]
"""xla: all scores at once, B·H·S·T of them. chunked: blocks of scores (`layers.chunked`). flash: the TPU's Pallas
kernel. cudnn: the GPU's kernel"""
Attention = Literal["auto", Implementation]
"""the type of a config's field; auto: by device and shape, see `choose`"""

LONGEST_XLA = 1024
"""with longer sequences the scores are no longer computed all at once"""
LONGEST_DENSE = 1024
"""cuDNN gets the documents of packed rows as a dense mask, which longer rows would make too large"""


def segment_mask(
    query_segments: Int[Array, "B S"], key_segments: Int[Array, "B T"] | None = None
) -> Bool[Array, "B 1 S T"]:
    """True where query s may look at key t: the same document of a packed row. Segment 0 is padding.

    Padding looks at padding, so that no query is left without a key; nothing else ever looks at it.
    """
    key_segments = query_segments if key_segments is None else key_segments
    return query_segments[:, None, :, None] == key_segments[:, None, None, :]


def causal_mask(length: int) -> Bool[Array, "1 1 S S"]:
    """True where key t does not come after query s."""
    position = jnp.arange(length)  # not `tril`, which takes no symbolic length
    return (position[:, None] >= position[None, :])[None, None]


def window_mask(length: int, window: int) -> Bool[Array, "1 1 S S"]:
    """True where key t is fewer than `window` tokens before query s."""
    position = jnp.arange(length)
    return (position[:, None] - position[None, :] < window)[None, None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """Which keys a query may attend to, as rules: no array of S · T elements, unlike `dense`."""

    query_segments: Int[Array, "B S"] | None = None
    """document of each query; it attends to keys of the same document. None: all are one document"""
    key_segments: Int[Array, "B T"] | None = None
    """document of each key; given with `query_segments`"""
    bidirectional: Bool[Array, "B T"] | None = None
    """keys that all of their document may attend to, although the mask is causal"""
    causal: bool = dataclasses.field(default=False, metadata={"static": True})
    """a query attends to no key that comes after it"""
    window: Count | None = dataclasses.field(default=None, metadata={"static": True})
    """a query attends to this many keys up to its own; None: to all"""
    implementation: Implementation = dataclasses.field(default="xla", metadata={"static": True})
    """what computes the attention"""

    def dense(self, length: int) -> Bool[Array, "#B 1 S T"] | None:
        """The mask as an array; None if every query may attend to every key. `length`: of queries, if causal."""
        mask = causal_mask(length) if self.causal else None
        if self.bidirectional is not None:
            mask = mask | self.bidirectional[:, None, None, :]
        if self.query_segments is not None:
            same = segment_mask(self.query_segments, self.key_segments)
            mask = same if mask is None else mask & same
        return mask if self.window is None else mask & window_mask(length, self.window)


def choose(
    requested: Attention,
    mask: Mask,
    lengths: tuple[int, int],
    head_dim: int,
    dtype: jnp.dtype,
    *,
    bias: bool = False,
    dropout: bool = False,
) -> Implementation:
    """The implementation of attention for the devices of the traced program and these shapes.

    Args:
      requested: the config's field.
      mask: which keys a query may attend to.
      lengths: of queries and of keys.
      head_dim: width of a head.
      dtype: of queries, keys and values.
      bias: whether a relative bias is added to the scores.
      dropout: whether attention weights are dropped.

    Returns:
      The requested one. For "auto": the device's kernel if it can compute this; else xla for up to 1,024 tokens, so
      that short sequences give the same bits everywhere, and chunked beyond.

    Raises:
      UserError: the requested implementation cannot compute this; the message says why.
    """
    kernels = {"flash": _no_flash, "cudnn": _no_cudnn}
    problems = {name: why(mask, lengths, head_dim, dtype, bias, dropout) for name, why in kernels.items()}
    if requested != "auto":
        if problem := problems.get(requested, ""):
            raise UserError(f"model.attention={requested}: {problem}; auto or chunked computes it")
        return requested
    usable = [name for name, problem in problems.items() if not problem]
    return usable[0] if usable else "xla" if max(lengths) <= LONGEST_XLA else "chunked"


def _common(bias: bool, dropout: bool, mask: Mask) -> str:
    if dropout:
        return "the kernel has no dropout on attention weights (set it to 0)"
    if bias:
        return "the kernel would need the relative bias of all pairs of positions"
    if mask.bidirectional is not None:
        return "the kernel has no causal mask with a bidirectional prefix"
    return ""


def _no_flash(mask: Mask, lengths: tuple[int, int], head_dim: int, dtype: jnp.dtype, bias: bool, dropout: bool) -> str:
    """Why the TPU's kernel cannot compute an attention; "" if it can."""
    del head_dim, dtype
    if (platform := target_platform()) != "tpu":
        return f"the kernel is for TPUs, and the program for {platform}"
    if problem := _common(bias, dropout, mask):
        return problem
    if mask.window is not None:
        return "the kernel has no local window"
    if any(length % 128 for length in lengths):
        return f"lengths {lengths} must be multiples of 128"
    if splits("sequence"):
        return "the kernel does not split sequences over devices (mesh.sequence)"
    return ""


def _no_cudnn(mask: Mask, lengths: tuple[int, int], head_dim: int, dtype: jnp.dtype, bias: bool, dropout: bool) -> str:
    """Why cuDNN cannot compute an attention; "" if it can."""
    if (platform := target_platform()) not in ("gpu", "cuda"):
        return f"the kernel is for NVIDIA GPUs, and the program for {platform}"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"the kernel computes in 16 bits, not in {dtype} (compute_dtype bfloat16)"
    if problem := _common(bias, dropout, mask):
        return problem
    if head_dim % 8 or head_dim > 128:
        return f"the width of a head, {head_dim}, must be a multiple of 8 up to 128"
    if any(length % 2 for length in lengths):
        return f"lengths {lengths} must be even"
    if mask.query_segments is not None and max(lengths) > LONGEST_DENSE:
        return f"packed or padded rows of more than {LONGEST_DENSE:,} tokens need a dense mask"
    if mask.window is not None and not mask.causal:
        return "the kernel has local windows in causal attention only"
    return ""


def make_mask(
    requested: Attention,
    lengths: tuple[int, int],
    head_dim: int,
    dtype: jnp.dtype,
    mask: Mask,
    *,
    bias: bool = False,
    dropout: bool = False,
) -> Mask | Bool[Array, "#B 1 S T"] | None:
    """What `attend` takes as a mask: an array or None for xla, else the rules with the implementation of `choose`."""
    found = choose(requested, mask, lengths, head_dim, dtype, bias=bias, dropout=dropout)
    return mask.dense(lengths[0]) if found == "xla" else dataclasses.replace(mask, implementation=found)
