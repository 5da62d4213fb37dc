"""What the model configs share."""

import dataclasses
from collections.abc import Mapping

from bertgpt.ranges import Count, Layers, Width, check_fields
from bertgpt.types import ModelConfig, UserError


@dataclasses.dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """Sizes of a single stack of Transformer blocks."""

    vocab_size: Count
    """rows of the embedding table; at least the tokens of the tokenizer"""
    d_model: Width = 768
    """width of the hidden states"""
    num_layers: Layers = 12
    """Transformer blocks"""
    num_heads: Width = 12
    """attention heads in each block; d_model must be divisible by it, unless head_dim is given"""
    head_dim: Width | None = None
    """width of a head; None: d_model / num_heads. Models with pruned heads keep the width of those that are left"""
    d_ff: Width = 3072
    """width inside the feed-forward network"""

    def check(self, name: str) -> None:
        """Raises UserError, in the name of the model, if a field is out of range."""
        check_fields(self)
        if self.head_dim is None and self.d_model % self.num_heads:
            raise UserError(f"{name}: d_model={self.d_model} is not divisible by num_heads={self.num_heads}")

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.d_model // self.num_heads if self.head_dim is None else self.head_dim


def stacks_of_parts(parts: Mapping[str, ModelConfig]) -> tuple[str, ...]:
    """`ModelConfig.stacks` of a model composed of others, whose parameters lie under these names."""
    return tuple(f"{name}/{path}" for name, config in parts.items() for path in config.stacks)
