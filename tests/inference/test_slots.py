"""Settings as arrays choose the tokens that compiled settings choose, row by row."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.inference.decoding import Decoding, choose
from bertgpt.inference.slots import Slots, choose_each, empty_slots, next_tokens, one_slot

VOCAB = 300
SETTINGS = [
    Decoding(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    for temperature, top_k, top_p, min_p in itertools.product(
        (0.0, 0.7, 2.0), (None, 1, 7, 40, 1000), (0.6, 0.98, 1.0), (0.0, 0.05)
    )
]


def slots_of(settings: list[Decoding], **changes: np.ndarray) -> Slots:
    key = np.asarray(jax.random.key_data(jax.random.key(0)))
    rows = [one_slot(decoding, key) for decoding in settings]
    return Slots(*(np.concatenate(field) for field in zip(*rows, strict=True)))._replace(**changes)


@pytest.mark.parametrize("narrow", [1024, 32], ids=["sorted", "narrow where that is enough"])
def test_each_row_gets_the_token_of_its_own_settings(rng, narrow):
    scores = jnp.asarray(rng.normal(size=(len(SETTINGS), VOCAB), scale=2.0), jnp.float32)
    keys = jax.random.split(jax.random.key(1), len(SETTINGS))
    want = [choose(scores[i : i + 1], keys[i : i + 1], decoding)[0] for i, decoding in enumerate(SETTINGS)]
    run = jax.jit(lambda scores, keys, slots: choose_each(scores, keys, slots, narrow))
    np.testing.assert_array_equal(run(scores, keys, slots_of(SETTINGS)), want)
    # Rows that need few ranks are not sorted, and get the same tokens.
    few = [i for i, d in enumerate(SETTINGS) if d.top_k in (1, 7)]
    found = run(scores[np.asarray(few)], keys[np.asarray(few)], slots_of([SETTINGS[i] for i in few]))
    np.testing.assert_array_equal(found, [want[i] for i in few])


def test_tokens_are_counted_and_end_where_the_settings_say(rng):
    scores = jnp.zeros((4, VOCAB)).at[:, 7].set(9.0).at[:, 250].set(20.0)
    slots = empty_slots(4)._replace(
        active=np.asarray([True, True, True, False]), min_new_tokens=np.asarray([0, 2, 0, 0], np.int32),
        max_new_tokens=np.asarray([9, 9, 1, 9], np.int32), repetition_penalty=np.asarray([1, 1, 90, 1], np.float32),
    )  # fmt: skip
    slots.stops[:, :2] = 7, 11
    seen = np.zeros((4, VOCAB), bool)
    seen[2, 7] = True
    after, now, new = jax.jit(next_tokens, static_argnums=3)(scores, seen, slots, 200)  # 250 is padding
    first = next(i for i in range(VOCAB) if i not in (7, 11))
    assert new.tokens[:, 0].tolist() == [7, first, 7 if 9 / 90 > 0 else first, -1]
    assert after.active.tolist() == [False, True, False, False] and after.made.tolist() == [1, 1, 1, 0]
    assert np.asarray(now)[[0, 1], [7, first]].all() and not np.asarray(now)[3].any()
    masked = np.where(np.arange(VOCAB) < 200, np.asarray(scores), -np.inf)
    np.testing.assert_allclose(new.log_probs[0, 0], 9 - np.log(np.exp(masked[0]).sum()), rtol=1e-5)
    assert not np.asarray(new.top_ids).any()  # nobody asked
