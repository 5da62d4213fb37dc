"""Buckets of relative positions against a transcription of the definition, one number at a time."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.layers.position import relative_bucket


def bucket(relative: int, bidirectional: bool, buckets: int, largest: int) -> int:
    offset = 0
    if bidirectional:
        buckets //= 2
        offset = buckets if relative > 0 else 0
        distance = abs(relative)
    else:
        distance = max(-relative, 0)
    exact = buckets // 2
    if distance < exact:
        return offset + distance
    far = exact + int(math.log(distance / exact) / math.log(largest / exact) * (buckets - exact) + 1e-6)
    return offset + min(far, buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("buckets, largest", [(32, 128), (8, 20)])
def test_buckets_are_the_definition(bidirectional, buckets, largest):
    relative = np.arange(-300, 301)
    got = relative_bucket(jnp.asarray(relative), bidirectional, buckets, largest)
    assert got.tolist() == [bucket(int(r), bidirectional, buckets, largest) for r in relative]
