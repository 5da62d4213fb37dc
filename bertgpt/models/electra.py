"""ELECTRA (Clark et al. 2020): a small generator fills masked positions, a discriminator tells which were replaced.

    x_masked → generator G → sampled tokens → x_corrupt → discriminator D → log-odds “replaced”, for every token

Both are `Bert`s that share one embedding layer, whose width E is the discriminator's `embed_dim`; each projects it to
its own width where that differs. After pretraining only the discriminator is kept: it is a `BertConfig` of its own, and
an experiment that fine-tunes such a model can start from an ELECTRA run.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from bertgpt.models.apply import ModelModule
from bertgpt.models.bert import BERT_BASE, Bert, BertConfig, make_embeddings
from bertgpt.models.config import stacks_of_parts
from bertgpt.ranges import check_fields
from bertgpt.types import Architecture, Inputs, ModelConfig, Params, UserError


@dataclasses.dataclass(frozen=True)
class ElectraConfig(ModelConfig):
    """The two networks of ELECTRA pretraining."""

    discriminator: BertConfig
    """the network that is kept"""
    generator: BertConfig
    """the smaller network that proposes replacements"""

    architecture: ClassVar[Architecture] = "encoder"
    outputs: ClassVar[frozenset[str]] = frozenset(("generate", "mlm_logits", "rtd_logits"))

    def __post_init__(self):
        check_fields(self)
        for field in ("vocab_size", "embed_dim", "max_len", "num_types", "first_position", "norm_eps"):
            generator, discriminator = vars(self.generator)[field], vars(self.discriminator)[field]
            if generator != discriminator:
                raise UserError(
                    f"Electra: generator.{field}={generator} must be the discriminator's, {discriminator}: it is shared"
                )
        if self.discriminator.embed_dim is None:
            raise UserError("Electra: discriminator.embed_dim=None; give the width of the shared embedding")

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""
        return self.discriminator.vocab_size

    @property
    def max_len(self) -> int:
        """Longest sequence."""
        return self.discriminator.max_len

    @property
    def num_types(self) -> int:
        """Token types."""
        return self.discriminator.num_types

    @property
    def stacks(self) -> tuple[str, ...]:
        """Paths of parameters that have a leading axis of layers."""
        return stacks_of_parts({"discriminator": self.discriminator, "generator": self.generator})

    @property
    def main(self) -> BertConfig:
        """The discriminator."""
        return self.discriminator

    def networks(self, params: Params) -> Mapping[str, tuple[BertConfig, Params]]:
        """Both networks, each with the shared embeddings."""
        return {
            name: (config, {"embeddings": params["embeddings"], **params[name]})
            for name, config in (("discriminator", self.discriminator), ("generator", self.generator))
        }

    def make(self, dtype: str = "float32") -> "Electra":
        """The flax module, computing in `dtype`."""
        return Electra(self, jnp.dtype(dtype))


class Electra(ModelModule):
    """Generator and discriminator on shared embeddings."""

    config: ElectraConfig
    dtype: jnp.dtype

    def setup(self):
        # As in the released code, tokens, positions, types and their layer norm are all shared.
        self.embeddings = make_embeddings(self.config.discriminator)
        self.generator = Bert(self.config.generator, self.dtype, self.embeddings)
        self.discriminator = Bert(self.config.discriminator, self.dtype, self.embeddings)

    def __call__(self, inputs: Inputs) -> Float[Array, "B S D"]:
        """Hidden states of the discriminator; see `Bert`."""
        return self.discriminator(inputs)

    def generate(self, inputs: Inputs) -> Float[Array, "B S G"]:
        """Hidden states of the generator, which `mlm_logits` takes."""
        return self.generator(inputs)

    def mlm_logits(self, hidden: Float[Array, "*batch G"]) -> Float[Array, "*batch V"]:
        """The generator's logits over the vocabulary at each given position."""
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
