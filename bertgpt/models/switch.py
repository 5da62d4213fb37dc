"""Switch Transformer (Fedus et al. 2022): T5 in which every second feed-forward network is a layer of experts.

    y = x + p_e(x) · FFN_e(RMSNorm(x)),   p = softmax(W_r RMSNorm(x)),   e = argmax p

The layer itself, with its capacity and its auxiliary losses, is in layers/moe.py; here are the sizes, as numbers on T5.
"""

import dataclasses

from bertgpt.layers.moe import Experts
from bertgpt.models.t5 import T5_BASE, T5Config


def switch_base(num_experts: int) -> T5Config:
    """Switch-Base with this many experts, as the released checkpoints have it; initial weights after §2.4, s = 0.1."""
    return dataclasses.replace(T5_BASE, experts=Experts(num_experts), init_scale=0.1, truncated_init=True)


SWITCH_BASE_8 = switch_base(8)
SWITCH_BASE_16 = switch_base(16)
SWITCH_BASE_32 = switch_base(32)
SWITCH_BASE_64 = switch_base(64)
SWITCH_BASE_128 = switch_base(128)
SWITCH_BASE_256 = switch_base(256)
