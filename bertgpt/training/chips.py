"""Published peaks of accelerators: one table for throughput while training and for plans.

Sources, as read in 2026:
  TPU   https://docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} (FLOP/s, HBM, interconnect, data centre network);
        links of the v4: Jouppi et al. 2023, https://arxiv.org/abs/2304.01433; its network: 200 Gbit/s for a host of
        four chips, https://jax-ml.github.io/scaling-book/tpus.
        `limit` is what the compiler of libtpu 0.0.50 lets a program use.
  GPU   https://www.nvidia.com/en-us/data-center/{a100,h100,h200} (the H100's 1979 TFLOP/s is with sparsity), NVLink in
        one direction; network: the DGX systems, one 200 Gbit/s (A100) or 400 Gbit/s port for each GPU.
"""

from typing import NamedTuple


class Chip(NamedTuple):
    """Peaks of one chip. Bytes are bytes, and rates are per second."""

    name: str
    """as in a topology, `v5e:16x16`"""
    kind: str
    """how jax's `device_kind` begins"""
    flops: float
    """dense bfloat16 FLOP/s"""
    memory: float
    """bytes of HBM"""
    limit: float
    """bytes of HBM that a program may use"""
    bandwidth: float
    """bytes of HBM read or written"""
    link: float
    """bytes that one link of the interconnect carries in one direction; of a GPU, all its NVLinks together"""
    torus: tuple[int, ...] | None
    """TPU: for each axis of the interconnect, the size from which its ends are joined; None: all reach all (NVLink)"""
    network: float
    """bytes that reach other slices or hosts, a chip's share of the data centre network, in one direction"""


GIB = 2**30
CHIPS = (
    # The ends of an axis are joined from 4 chips on (v4, v5p: by optical switches), or on full axes of 16 (v5e, v6e).
    Chip("v4", "TPU v4", 275e12, 32 * GIB, 30.75 * GIB, 1.2e12, 50e9, (4, 4, 4), 6.25e9),
    Chip("v5e", "TPU v5 lite", 197e12, 16 * GIB, 15.75 * GIB, 819e9, 50e9, (16, 16), 3.125e9),
    Chip("v5p", "TPU v5", 459e12, 95 * GIB, 95.73 * GIB, 2.765e12, 100e9, (4, 4, 4), 6.25e9),
    Chip("v6e", "TPU v6 lite", 918e12, 32 * GIB, 31.24 * GIB, 1.638e12, 100e9, (16, 16), 12.5e9),
    Chip("a100", "NVIDIA A100", 312e12, 80e9, 80e9, 2.039e12, 300e9, None, 25e9),
    Chip("h100", "NVIDIA H100", 989.4e12, 80e9, 80e9, 3.35e12, 450e9, None, 50e9),
    Chip("h200", "NVIDIA H200", 989.4e12, 141e9, 141e9, 4.8e12, 450e9, None, 50e9),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip that a `device_kind` of jax names; None if it is not in the table."""
    found = [chip for chip in CHIPS if device_kind.startswith(chip.kind)]
    return max(found, key=lambda chip: len(chip.kind), default=None)  # "TPU v5 lite" is not a "TPU v5"
