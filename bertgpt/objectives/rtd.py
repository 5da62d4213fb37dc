"""Replaced-token detection (ELECTRA, Clark et al. 2020): a discriminator finds the tokens of a generator.

    L = Σ over masked positions −log p_G(w | x_masked)  /  their number
      + λ · Σ over all tokens −log D(x_corrupt, t)      /  their number,      λ = 50

x_corrupt has, at each masked position, a token sampled from p_G; if that is the original token, it counts as original.
No gradient flows through the sampling. `prepare` samples all noise for the whole batch: that of the masks, and one
uniform number for each masked position, with which the generator's token is then sampled.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from bertgpt.objectives.core import Objective, encode, gather_positions, scaled, token_losses, token_metrics
from bertgpt.objectives.corruption import scatter_tokens
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.ranges import Positive, check_fields
from bertgpt.types import Apply, Batch, BatchSpec, Loss, ObjectiveConfig, Params, Sum, UserError, Vocab


@dataclasses.dataclass(frozen=True)
class ReplacedTokenDetection(ObjectiveConfig):
    """Jointly train a generator to fill masks and a discriminator to tell its tokens from the original ones."""

    masking: MaskedLM = MaskedLM(mask_token_rate=0.85, random_token_rate=0.0)
    """how positions are chosen and shown to the generator: 85 % [MASK], the rest unchanged, none random"""
    generator_weight: Positive = 1.0
    """factor on the generator's mean loss"""
    discriminator_weight: Positive = 50.0
    """factor on the discriminator's mean loss, which is much smaller"""
    temperature: Positive = 1.0
    """replacements are sampled from the generator's softmax(logits / temperature); above 1 they are less plausible"""

    def __post_init__(self):
        check_fields(self)
        if self.masking.pair:
            raise UserError(
                f"ReplacedTokenDetection: masking.pair={self.masking.pair!r} is not part of ELECTRA; use None"
            )

    @property
    def higher_is_better(self) -> frozenset[str]:
        """Metrics that should rise."""
        return frozenset(("mlm_accuracy", "rtd_accuracy", "rtd_precision", "rtd_recall"))

    @property
    def needs(self) -> BatchSpec:
        """Fields that the masking reads."""
        return self.masking.needs

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective, for this vocabulary.

        Raises:
          UserError: it has no mask token.
        """
        masked = self.masking.make(vocab)

        def prepare(key: Key[Array, ""], batch: Batch) -> Batch:
            mask_key, sample_key = jax.random.split(key)
            prepared = masked.prepare(mask_key, batch)
            return prepared | {
                "original_ids": batch["input_ids"],
                "rtd_uniforms": jax.random.uniform(sample_key, prepared["mlm_positions"].shape),
            }

        def loss(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Loss:
            generator_key, discriminator_key = (None, None) if rng is None else jax.random.split(rng)
            hidden = encode(apply, params, batch, generator_key, method="generate")
            losses = token_losses(
                apply,
                params,
                gather_positions(hidden, batch["mlm_positions"]),
                batch["mlm_labels"],
                method="mlm_logits",
                rng=generator_key,
                uniforms=batch["rtd_uniforms"],
                vocab_size=vocab.size,
                temperature=self.temperature,
            )
            sampled = jnp.broadcast_to(jax.lax.stop_gradient(losses.sampled), batch["mlm_labels"].shape)
            original = batch["original_ids"]
            corrupted = scatter_tokens(original, batch["mlm_positions"], sampled, batch["mlm_weights"])
            hidden = encode(apply, params, batch | {"input_ids": corrupted}, discriminator_key)
            logits = apply(params, method="rtd_logits", hidden=hidden, rng=discriminator_key)
            real = (batch["segment_ids"] > 0).astype(logits.dtype)
            replaced = (corrupted != original).astype(logits.dtype) * real
            # −log σ(±logit), where the label determines the sign.
            nll = jax.nn.softplus(jnp.where(replaced > 0, -logits, logits)) * real
            metrics = token_metrics("mlm", losses, batch["mlm_weights"])
            generator = metrics["mlm_loss"]
            discriminator = Sum(jnp.sum(nll), jnp.sum(real))
            terms = {
                "generator": scaled(generator, self.generator_weight),
                "discriminator": scaled(discriminator, self.discriminator_weight),
            }
            return Loss(terms, metrics | {"rtd_loss": discriminator} | detection_metrics(logits, replaced, real))

        def predict(apply: Apply, params: Params, batch: Batch) -> dict[str, Array]:
            logits = apply(params, method="rtd_logits", hidden=encode(apply, params, batch))
            return {"replaced": jax.nn.sigmoid(logits)}

        return Objective(prepare, loss, predict, masked.targets, masked.target_metric)


def detection_metrics(
    logits: Float[Array, "B S"], replaced: Float[Array, "B S"], real: Float[Array, "B S"]
) -> dict[str, Sum]:
    """Accuracy, that of always predicting “original”, and precision and recall of “replaced”."""
    predicted = (logits > 0).astype(real.dtype) * real
    count, hits = jnp.sum(real), jnp.sum(predicted * replaced)
    return {
        "rtd_accuracy": Sum(jnp.sum((predicted == replaced) * real), count),
        "rtd_always_original": Sum(jnp.sum((1.0 - replaced) * real), count),
        "rtd_precision": Sum(hits, jnp.sum(predicted)),
        "rtd_recall": Sum(hits, jnp.sum(replaced)),
    }
