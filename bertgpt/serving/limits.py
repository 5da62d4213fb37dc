"""Bounds on what one request may ask for, and on how much the server accepts at a time."""

import dataclasses
from typing import Annotated

from bertgpt.ranges import Count, Positive, Range, check_fields
from bertgpt.serving.errors import Refusal


@dataclasses.dataclass(frozen=True)
class Batching:
    """How much each model computes at a time, and how much may wait for it."""

    slots: Count = 8
    """outputs that a decoder or encoder–decoder generates at a time"""
    slot_len: Count | None = None
    """longest text of a slot in tokens, of decoders with its prompt; longer ones are generated one at a time (None: the
    model's max_len)"""
    max_waiting: Count = 256
    """outputs that may wait for a slot; further requests get 429"""
    batch_tokens: Count | None = None
    """tokens of a batch of an encoder (None: 512 on CPUs, 8,192 on accelerators)"""
    max_waiting_tokens: Count = 2**18
    """tokens that may wait for an encoder; further requests get 429"""

    def __post_init__(self):
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds on requests. What exceeds them is answered with 413, 422 or 429 at once."""

    max_bytes: Count = 4 * 2**20
    """bytes of a request's body"""
    max_depth: Annotated[int, Range(1, 500)] = 32
    """nesting of JSON"""
    max_texts: Count = 1024
    """texts of a request"""
    max_images: Count = 32
    """images of a request"""
    max_pixels: Count = 2**25
    """pixels of an image, of all its frames together if the model reads videos"""
    max_new_tokens: Count = 4096
    """tokens to generate of a request, for all its outputs together"""
    max_requests: Count = 256
    """requests that are accepted and not answered yet; further ones get 429 with Retry-After"""
    timeout: Positive = 60.0
    """seconds that a request may take once its body has arrived"""
    read_timeout: Positive = 10.0
    """seconds that the head of a request may take, and each wait for more of its body"""

    def __post_init__(self):
        check_fields(self)

    def check_texts(self, count: int, param: str) -> None:
        """Raises Refusal if a request has no text or too many."""
        if count == 0:
            raise Refusal(422, f"{param} is empty", param=param)
        if count > self.max_texts:
            raise Refusal(
                413, f"{param} has {count} texts, but a request may have {self.max_texts} at most", param=param
            )
