"""Corruption: which positions are predicted and what the model sees there, as pure functions of (key, ids).

Drawn on device for the whole batch at once: row b, position s gets the same noise from the same key, however the batch
is split over devices.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from bertgpt.config import Vocab


def choose_positions(
    key: Key[Array, ""],
    maskable: Bool[Array, "B S"],
    segment_ids: Int[Array, "B S"],
    rate: float,
    count: int,
) -> tuple[Int[Array, "B M"], Float[Array, "B M"]]:
    """Chooses positions to predict, without replacement, `count` slots per row of which those with weight 1 are real.

    Each document of a packed row gets its own budget, max(1, round(n · rate)) of its n maskable tokens, as BERT's data
    recipe gives each sequence. A row that wants more than `count` drops the excess at random, but never a document's
    only position while another document has two.
    """
    noise = jnp.where(maskable, jax.random.uniform(key, maskable.shape), 2.0)
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    # Rank of a token among the maskable tokens of its document, in the order of the noise (equal noise: of place).
    place = jnp.arange(maskable.shape[1])
    before = (noise[:, None, :] < noise[:, :, None]) | (
        (noise[:, None, :] == noise[:, :, None]) & (place[None, None, :] < place[None, :, None])
    )
    rank = jnp.sum(same & before, axis=-1)
    size = jnp.sum(same & maskable[:, None, :], axis=-1)
    budget = jnp.maximum(1, jnp.round(size * rate).astype(jnp.int32))
    chosen = maskable & (rank < budget)
    first = rank == 0
    scores, positions = jax.lax.top_k(jnp.where(chosen, 2.0 - noise + 2.0 * first, 0.0), count)
    return positions, (scores > 0.0).astype(jnp.float32)


def corrupt(
    key: Key[Array, ""], tokens: Int[Array, "B M"], vocab: Vocab, mask_token_rate: float, random_token_rate: float
) -> Int[Array, "B M"]:
    """What the model sees at predicted positions: [MASK], a random ordinary token, or the token itself (80/10/10)."""
    kind_key, token_key = jax.random.split(key)
    kind = jax.random.uniform(kind_key, tokens.shape)
    # Draw among the ordinary ids only: number them 0 … n−1, then step over the special ids in ascending order.
    drawn = jax.random.randint(token_key, tokens.shape, 0, vocab.size - len(set(vocab.special)), tokens.dtype)
    for special in sorted(set(vocab.special)):
        drawn = drawn + (drawn >= special)
    return jnp.where(
        kind < mask_token_rate, vocab.mask, jnp.where(kind < mask_token_rate + random_token_rate, drawn, tokens)
    )


def scatter_tokens(
    ids: Int[Array, "B S"], positions: Int[Array, "B M"], tokens: Int[Array, "B M"], weights: Float[Array, "B M"]
) -> Int[Array, "B S"]:
    """ids with `tokens` put at `positions` where weight is 1 (positions within a row are distinct)."""
    tokens = jnp.where(weights > 0, tokens, jnp.take_along_axis(ids, positions, axis=1))
    return jax.vmap(lambda row, at, new: row.at[at].set(new, unique_indices=True))(ids, positions, tokens)
