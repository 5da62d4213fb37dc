"""The conditional random field against enumeration of every sequence of tags."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.layers.crf import (
    forbid,
    log_partition,
    negative_log_likelihood,
    path_score,
    unary,
    viterbi,
)
from bertgpt.objectives.tag import bio_rules

LABELS = ("O", "B-A", "I-A", "B-B", "I-B")
TAGS = len(LABELS)
# Rows of chains, by their lengths; −n is a gap of n words that are not there. All rows are 6 words wide.
ROWS = ((6,), (3,), (1,), (2, 3), (1, 1, 4), (2, -1, 2), ())


def layout() -> tuple[np.ndarray, ...]:
    """mask, joined, first, last of ROWS. The chain after a gap goes on with the one before."""
    mask, joined, first, last = np.zeros((4, len(ROWS), 6), bool)
    for row, lengths in enumerate(ROWS):
        at, gap = 0, False
        for length in lengths:
            if length < 0:
                last[row, at - 1], at, gap = False, at - length, True
                continue
            mask[row, at : at + length] = True
            joined[row, at + (not gap) : at + length] = True
            first[row, at] = not gap
            at, gap = at + length, False
            last[row, at - 1] = True
    return mask, joined, first, last


class Enumeration:
    """Every assignment of tags to the words of a row, scored one by one from the definition."""

    def __init__(self, row: int, emissions, start, end, transitions, allowed_start, allowed):
        mask, _, first, last = layout()
        self.words = np.flatnonzero(mask[row])
        self.tags, self.scores = [], []
        for tags in itertools.product(range(TAGS), repeat=len(self.words)):
            score, legal = 0.0, True
            for n, (word, tag) in enumerate(zip(self.words, tags, strict=True)):
                score += emissions[row, word, tag]
                if first[row, word]:
                    score += start[tag]
                    legal &= bool(allowed_start[tag])
                else:
                    score += transitions[tags[n - 1], tag]
                    legal &= bool(allowed[tags[n - 1], tag])
                score += end[tag] if last[row, word] else 0.0
            if legal:
                self.tags.append(tags)
                self.scores.append(score)
        self.scores = np.array(self.scores)
        self.log_z = self.scores.max() + np.log(np.sum(np.exp(self.scores - self.scores.max())))


@pytest.fixture(params=["free", "constrained"])
def case(request, rng: np.random.Generator, float64):
    """(arguments of the functions, parameters, an enumeration of each row)."""
    mask, joined, first, last = layout()
    emissions = 2.0 * rng.normal(size=(len(ROWS), 6, TAGS))
    start, end, transitions = rng.normal(size=TAGS), rng.normal(size=TAGS), rng.normal(size=(TAGS, TAGS))
    allowed_start, allowed = bio_rules(LABELS)
    if request.param == "free":
        allowed_start, allowed = np.ones_like(allowed_start), np.ones_like(allowed)
    rows = [Enumeration(row, emissions, start, end, transitions, allowed_start, allowed) for row in range(len(ROWS))]
    emissions, start, end, transitions = (jnp.asarray(x) for x in (emissions, start, end, transitions))
    start, transitions = forbid(start, transitions, (jnp.asarray(allowed_start), jnp.asarray(allowed)))
    arrays = (emissions, start, end, first, last), (transitions, mask, joined)
    return *jax.tree.map(jnp.asarray, arrays), rows


def test_partition_equals_the_sum_over_every_sequence(case):
    (emissions, *rest), others, rows = case
    found = log_partition(unary(emissions, *rest), *others)
    error = np.abs(np.asarray(found) - [row.log_z for row in rows]).max()
    print(f"largest error of log Z: {error:.1e}")
    assert error < 1e-12


def test_viterbi_finds_the_best_sequence_and_its_score(case):
    (emissions, *rest), others, rows = case
    tags, score = viterbi(unary(emissions, *rest), *others)
    error = np.abs(np.asarray(score) - [row.scores.max() for row in rows]).max()
    print(f"largest error of the best score: {error:.1e}")
    assert error < 1e-12
    for found, row, there in zip(np.asarray(tags), rows, others[1], strict=True):
        assert tuple(found[row.words]) == row.tags[int(row.scores.argmax())]
        assert np.all(found[~np.asarray(there)] == -1)


def test_likelihood_of_each_sequence_is_its_share(case):
    (emissions, *rest), others, rows = case
    scores, worst = unary(emissions, *rest), 0.0
    for row, known in enumerate(rows):
        for pick in (0, len(known.tags) // 2, len(known.tags) - 1):
            tags = np.full((len(ROWS), 6), -1, np.int32)
            tags[row, known.words] = known.tags[pick]
            one = tuple(x[row : row + 1] for x in (scores, others[1], others[2], jnp.asarray(tags)))
            arguments = (one[0], others[0], *one[1:])
            worst = max(worst, abs(float(path_score(*arguments)[0]) - known.scores[pick]))
            nll = known.log_z - known.scores[pick]
            worst = max(worst, abs(float(negative_log_likelihood(*arguments)[0]) - nll))
    print(f"largest error of scores and likelihoods: {worst:.1e}")
    assert worst < 1e-12


def test_gradients_of_log_z_are_expected_counts(case):
    (emissions, start, end, first, last), (transitions, mask, joined), rows = case

    def total(emissions, start, end, transitions):
        return jnp.sum(log_partition(unary(emissions, start, end, first, last), transitions, mask, joined))

    found = jax.grad(total, argnums=(0, 1, 2, 3))(emissions, start, end, transitions)
    expected = [np.zeros(x.shape) for x in found]
    first, last = np.asarray(first), np.asarray(last)  # which are faster to look into
    for row, known in enumerate(rows):
        for tags, score in zip(known.tags, known.scores, strict=True):
            p = np.exp(score - known.log_z)
            for n, (word, tag) in enumerate(zip(known.words, tags, strict=True)):
                expected[0][row, word, tag] += p
                if first[row, word]:
                    expected[1][tag] += p
                else:
                    expected[3][tags[n - 1], tag] += p
                expected[2][tag] += p if last[row, word] else 0.0
    error = max(np.abs(a - b).max() for a, b in zip(found, expected, strict=True))
    print(f"largest error of expected counts: {error:.1e}")
    assert error < 1e-12


def test_chains_in_one_row_are_the_same_as_in_rows_of_their_own(rng: np.random.Generator):
    emissions = jnp.asarray(rng.normal(size=(1, 5, TAGS)), jnp.float32)
    transitions = jnp.asarray(rng.normal(size=(TAGS, TAGS)), jnp.float32)
    tags = jnp.asarray(rng.integers(0, TAGS, (1, 5)), jnp.int32)
    there = jnp.ones((1, 5), bool)
    together = jnp.array([[False, True, False, True, True]])
    packed = negative_log_likelihood(emissions, transitions, there, together, tags)
    apart = sum(
        negative_log_likelihood(
            emissions[:, part], transitions, there[:, part], jnp.arange(part.stop - part.start)[None] > 0, tags[:, part]
        )
        for part in (slice(0, 2), slice(2, 5))
    )
    np.testing.assert_allclose(packed, apart, rtol=1e-5)


def test_bfloat16_scores_are_summed_in_float32():
    scores = unary(jnp.ones((1, 3, 2), jnp.bfloat16), jnp.zeros(2), jnp.zeros(2), *jnp.zeros((2, 1, 3), bool))
    assert scores.dtype == jnp.float32
