"""Tags of words with a model of five lines: what counts, and that packing changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.layers import crf
from bertgpt.objectives.tag import Tag, bio_rules, chains_of
from bertgpt.types import DataConfig, Labels, UserError, Vocab

LABELS = ("O", "B-A", "I-A", "B-B", "I-B")
TAGS, VOCAB = len(LABELS), Vocab(size=10)


class Fake:
    """Gives each token the scores of its id, and holds the scores of a CRF."""

    def __init__(self, rng: np.random.Generator):
        self.params = {
            "tokens": jnp.asarray(2.0 * rng.normal(size=(VOCAB.size, TAGS)), jnp.float32),
            "crf": tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (TAGS, TAGS, (TAGS, TAGS))),
        }

    def __call__(self, params, inputs=None, *, method="__call__", rng=None, **named):
        if method == "__call__":
            return params["tokens"][inputs.input_ids]
        if method == "tag_logits":
            return named["hidden"]
        start, end, transitions = params["crf"]
        if method == "best_tags":
            start, end, transitions = (x * named["crf"] for x in (start, end, transitions))
        emissions, (mask, joined, first, last), rules = (named[name] for name in ("emissions", "chains", "rules"))
        start, transitions = crf.forbid(start, transitions, rules)
        potentials = crf.unary(emissions, start, end, first, last), transitions, mask, joined
        return (
            crf.viterbi(*potentials)[0]
            if method == "best_tags"
            else crf.negative_log_likelihood(*potentials, named["tags"])
        )


def rows(*rows: list[tuple[list[int], list[int], int]]) -> dict[str, jax.Array]:
    """Rows of sentences (ids of words, tags, edges), each word one token, in a width of 8."""
    batch = {
        name: np.zeros((len(rows), 8), np.int32)
        for name in "input_ids segment_ids positions type_ids word_positions chains edges".split()
    }
    batch["tags"] = np.full((len(rows), 8), -1, np.int32)
    for row, sentences in enumerate(rows):
        at = 0
        for chain, (ids, tags, edges) in enumerate(sentences, start=1):
            here = slice(at, at + len(ids))
            batch["input_ids"][row, here], batch["tags"][row, here] = ids, tags
            batch["segment_ids"][row, here] = batch["chains"][row, here] = chain
            batch["word_positions"][row, here] = np.arange(here.start, here.stop)
            batch["edges"][row, at] |= edges & 1
            batch["edges"][row, here.stop - 1] |= edges & 2
            at = here.stop
    return {name: jnp.asarray(array) for name, array in batch.items()}


ONE, TWO = ([1, 2, 3], [0, 1, 2], 3), ([4, 5], [3, 0], 3)
TAGGERS = [Tag(LABELS, crf=crf, constrained=rules) for crf in (False, True) for rules in (False, True)]


@pytest.mark.parametrize("tagger", TAGGERS, ids=str)
def test_packed_sentences_have_the_loss_gradient_and_tags_of_unpacked_ones(tagger: Tag, rng: np.random.Generator):
    model, objective = Fake(rng), tagger.make(VOCAB)
    packed, apart = rows([ONE, TWO], []), rows([ONE], [TWO])

    def value(params, batch):
        loss = objective.loss(model, params, batch, None)
        return loss.terms["tag_loss"].sum / loss.terms["tag_loss"].weight, loss

    (one, losses), gradient = jax.value_and_grad(value, has_aux=True)(model.params, packed)
    (two, others), other = jax.value_and_grad(value, has_aux=True)(model.params, apart)
    assert losses.terms["tag_loss"].weight == 5
    assert float(one) == pytest.approx(float(two), rel=1e-6)
    assert float(losses.metrics["tag_accuracy"].sum) == float(others.metrics["tag_accuracy"].sum)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient, other)
    tags, others = (objective.predict(model, model.params, batch)["tags"] for batch in (packed, apart))
    assert tags[0].tolist() == [*others[0, :3].tolist(), *others[1, :2].tolist(), -1, -1, -1]


def test_the_loss_without_a_crf_is_the_cross_entropy_of_each_word(rng: np.random.Generator):
    model = Fake(rng)
    loss = Tag(LABELS).make(VOCAB).loss(model, model.params, rows([ONE, TWO]), None)
    p = jax.nn.softmax(model.params["tokens"][np.array([1, 2, 3, 4, 5])])
    expected = -sum(float(jnp.log(p[i, tag])) for i, tag in enumerate([0, 1, 2, 3, 0]))
    assert float(loss.terms["tag_loss"].sum) == pytest.approx(expected, rel=1e-5)


def test_a_crf_that_has_learned_nothing_has_the_loss_of_independent_tags(rng: np.random.Generator):
    model = Fake(rng)
    params = model.params | {"crf": jax.tree.map(jnp.zeros_like, model.params["crf"])}
    losses = [
        Tag(LABELS, crf=crf, constrained=False)
        .make(VOCAB)
        .loss(model, params, rows([ONE, TWO]), None)
        .terms["tag_loss"]
        for crf in (False, True)
    ]
    assert float(losses[0].sum) == pytest.approx(float(losses[1].sum), rel=1e-5)
    assert losses[0].weight == losses[1].weight


@pytest.mark.parametrize("crf", [False, True])
def test_unknown_tags_and_filling_rows_add_nothing(crf: bool, rng: np.random.Generator):
    model, objective = Fake(rng), Tag(LABELS, crf=crf).make(VOCAB)
    batch = rows([TWO, ([1, 2, 3], [-1, 1, 2], 3)], [ONE])
    filled = jax.tree.map(lambda x: x.at[1].set(0), batch)  # as Batches fills: tags are 0, and so are the chains
    known = rows([TWO, ([2, 3], [1, 2], 2)])
    found, expected = (objective.loss(model, model.params, b, None).terms["tag_loss"] for b in (filled, known))
    assert found.weight == expected.weight == 4
    assert float(found.sum) == pytest.approx(float(expected.sum), rel=1e-6)
    assert np.all(objective.predict(model, model.params, filled)["tags"][1] == -1)


@pytest.mark.parametrize("crf", [False, True])
def test_constrained_tags_are_always_valid(crf: bool, rng: np.random.Generator):
    model, objective = Fake(rng), Tag(LABELS, crf=crf).make(VOCAB)
    ids = rng.integers(0, VOCAB.size, (64, 4, 2))
    batch = rows(*[[(list(map(int, words)), [0, 0], 3) for words in row] for row in ids])
    tags = np.asarray(objective.predict(model, model.params, batch)["tags"]).reshape(-1, 2)
    start, allowed = bio_rules(LABELS)
    assert start[tags[:, 0]].all() and allowed[tags[:, 0], tags[:, 1]].all()
    assert len(np.unique(tags)) == TAGS


def test_a_sentence_that_goes_on_in_another_row_may_begin_inside_an_entity(rng: np.random.Generator):
    model = Fake(rng)
    params = model.params | {"tokens": jnp.zeros((VOCAB.size, TAGS)).at[:, 2].set(50.0)}
    tags = Tag(LABELS).make(VOCAB).predict(model, params, rows([([1, 2], [0, 0], 2)], [([1, 2], [0, 0], 3)]))["tags"]
    assert tags[:, :2].tolist() == [[2, 2], [1, 2]]


def test_chains_pass_over_unknown_words_but_never_join_another_chain():
    batch = rows([([1, 2, 3], [0, -1, 0], 3), ([4, 5], [-1, 0], 3)])
    there, joined, first, last = chains_of(batch, batch["tags"] >= 0)
    assert there[0].tolist() == [True, False, True, False, True, False, False, False]
    assert joined[0].tolist() == [False, False, True, False, False, False, False, False]
    assert first[0].tolist()[:5] == [True, False, False, True, False]
    assert last[0].tolist()[:5] == [False, False, True, False, True]


def test_bio_allows_inside_only_after_its_own_kind():
    start, allowed = bio_rules(LABELS)
    assert start.tolist() == [True, True, False, True, False]
    expected = {(i, j) for i in range(TAGS) for j in (0, 1, 3)} | {(1, 2), (2, 2), (3, 4), (4, 4)}
    assert set(zip(*map(np.ndarray.tolist, np.nonzero(allowed)), strict=True)) == expected


def test_tags_of_other_schemes_know_no_rules():
    start, allowed = bio_rules(("NN", "IN", "O"))
    assert start.all() and allowed.all()


def data_with(labels: Labels) -> DataConfig:
    """A data config with these labels."""

    class Data(DataConfig):
        label_set = labels

    return Data()


def test_labels_come_from_the_data_and_must_agree_with_it():
    data = data_with(Labels(LABELS, kind="tag", constrained=True))
    assert Tag().infer(data).labels == LABELS
    with pytest.raises(UserError, match="are not the data's"):
        Tag(("O", "B-A")).infer(data)
    with pytest.raises(UserError, match="Data has no labels"):
        Tag().infer(data_with(Labels()))
    with pytest.raises(UserError, match="not known yet"):
        Tag().make(VOCAB)
    with pytest.raises(UserError, match="two or more different"):
        Tag(("O", "O"))


def test_plain_tags_know_no_rules_whatever_their_names():
    inferred = Tag(crf=True).infer(data_with(Labels(("I-LOC", "O"), kind="tag")))
    assert not inferred.constrained
    assert Tag().infer(data_with(Labels(("I-LOC", "O"), kind="tag", constrained=True))).constrained
