"""What the model configs share."""

import dataclasses

from bertgpt.types import ModelConfig, UserError


@dataclasses.dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """Sizes of a single stack of Transformer blocks."""

    vocab_size: int
    """rows of the embedding table; at least the tokens of the tokenizer"""
    d_model: int = 768
    """width of the hidden states"""
    num_layers: int = 12
    """Transformer blocks"""
    num_heads: int = 12
    """attention heads in each block; d_model must be divisible by it"""
    d_ff: int = 3072
    """width inside the feed-forward network"""

    def check(self, name: str) -> None:
        """Raises UserError, in the name of the model, if a size or dropout rate makes no sense."""
        check_sizes(name, self, "vocab_size", "d_model", "num_layers", "num_heads", "d_ff", "max_len")
        if self.d_model % self.num_heads:
            raise UserError(f"{name}: d_model={self.d_model} is not divisible by num_heads={self.num_heads}")
        check_rates(name, self, "dropout", "attention_dropout")


def check_sizes(name: str, config: object, *fields: str) -> None:
    """Raises UserError if one of these fields is below 1."""
    for field in fields:
        if vars(config)[field] < 1:
            raise UserError(f"{name}: {field}={vars(config)[field]} must be at least 1")


def check_rates(name: str, config: object, *fields: str) -> None:
    """Raises UserError if one of these fields is not in [0, 1)."""
    for field in fields:
        if not 0.0 <= vars(config)[field] < 1.0:
            raise UserError(f"{name}: {field}={vars(config)[field]} must lie in [0, 1)")
