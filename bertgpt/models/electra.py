"""ELECTRA (Clark et al. 2020): a small generator fills masked positions, a discriminator tells which were replaced.

    x_masked → generator G → sampled tokens → x_corrupt → discriminator D → log-odds “replaced”, for every token

Both are `Bert`s; they share one embedding layer, whose width E is the discriminator's, and each projects it to its own
width where that differs. After pretraining only the discriminator is kept: `discriminator` alone is a `BertConfig`, so
that a fine-tuning experiment with that model starts from an ELECTRA run's `discriminator` subtree.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bertgpt.models.bert import BERT_BASE, Bert, BertConfig, make_embeddings
from bertgpt.types import UserError


@dataclasses.dataclass(frozen=True)
class ElectraConfig:
    """The two networks of ELECTRA pretraining."""

    discriminator: BertConfig
    """the network that is kept"""
    generator: BertConfig
    """the smaller network that proposes replacements"""

    def __post_init__(self):
        for field in ("vocab_size", "embed_dim", "max_len", "num_types", "first_position", "norm_eps"):
            ours, theirs = getattr(self.generator, field), getattr(self.discriminator, field)
            if ours != theirs:
                raise UserError(
                    f"Electra: generator.{field}={ours} must be the discriminator's, {theirs}: it is shared"
                )
        if self.discriminator.embed_dim is None:
            raise UserError("Electra: discriminator.embed_dim=None; give the width of the shared embedding")

    @property
    def vocab_size(self) -> int:
        return self.discriminator.vocab_size

    @property
    def max_len(self) -> int:
        return self.discriminator.max_len

    @property
    def stacks(self) -> tuple[str, ...]:
        """Parameters that have an axis of layers, each its own."""
        names = ("discriminator", "generator")
        return tuple(f"{name}/{path}" for name in names for path in getattr(self, name).stacks)

    def make(self, dtype: str = "float32") -> "Electra":
        """The flax module, computing in `dtype`."""
        return Electra(self, jnp.dtype(dtype))


class Electra(nn.Module):
    config: ElectraConfig
    dtype: jnp.dtype

    def setup(self):
        # As in the released code, tokens, positions, types and their layer norm are all shared.
        self.embeddings = make_embeddings(self.config.discriminator)
        self.generator = Bert(self.config.generator, self.dtype, self.embeddings)
        self.discriminator = Bert(self.config.discriminator, self.dtype, self.embeddings)

    def __call__(
        self,
        input_ids: Int[Array, "B S"],
        segment_ids: Int[Array, "B S"] | None = None,
        positions: Int[Array, "B S"] | None = None,
        type_ids: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "B S D"]:
        """Hidden states of the discriminator; arguments as for `Bert`."""
        return self.discriminator(input_ids, segment_ids, positions, type_ids)

    def generate(
        self,
        input_ids: Int[Array, "B S"],
        segment_ids: Int[Array, "B S"] | None = None,
        positions: Int[Array, "B S"] | None = None,
        type_ids: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "B S G"]:
        """Hidden states of the generator; `mlm_logits` turns them into scores of words."""
        return self.generator(input_ids, segment_ids, positions, type_ids)

    def mlm_logits(self, hidden: Float[Array, "*batch G"]) -> Float[Array, "*batch V"]:
        """The generator's score of every word at each given position."""
        return self.generator.mlm_logits(hidden)

    def rtd_logits(self, hidden: Float[Array, "B S D"]) -> Float[Array, "B S"]:
        """The discriminator's log-odds that each token was replaced."""
        return self.discriminator.rtd_logits(hidden)


def electra(d_model: int, num_layers: int, num_heads: int, embed_dim: int, generator_fraction: float) -> ElectraConfig:
    """ELECTRA of this size; the generator is narrower by `generator_fraction` and as deep."""
    numbers = {"embed_dim": embed_dim, "num_layers": num_layers, "activation": "gelu", "pooler": "dropout_gelu"}
    discriminator = dataclasses.replace(BERT_BASE, **numbers, d_model=d_model, num_heads=num_heads, d_ff=4 * d_model)
    width, heads = round(d_model * generator_fraction), max(1, round(num_heads * generator_fraction))
    generator = dataclasses.replace(discriminator, d_model=width, num_heads=heads, d_ff=4 * width)
    return ElectraConfig(discriminator, generator)


# google-research/electra, configure_pretraining.py. The released Small checkpoint has a generator of full width.
ELECTRA_SMALL = electra(256, 12, 4, embed_dim=128, generator_fraction=1 / 4)
ELECTRA_BASE = electra(768, 12, 12, embed_dim=768, generator_fraction=1 / 3)
ELECTRA_LARGE = electra(1024, 24, 16, embed_dim=1024, generator_fraction=1 / 4)
