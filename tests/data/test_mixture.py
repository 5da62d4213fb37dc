"""Mixtures: exact proportions, whole epochs of every part. Curricula: which stage a step reads. No state in either."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from small_stores import check_spec
from tokenizers import models

from bertgpt.config import Experiment, from_json, to_json, with_overrides
from bertgpt.data.loader import ENDLESS, Batches
from bertgpt.data.mixture import BLOCK, Curriculum, MixedDataset, Mixture, Part, block_counts
from bertgpt.data.tokenizer import Tokenizer, WordPiece
from bertgpt.overrides import parse_overrides
from bertgpt.prepare.corpus import Corpus
from bertgpt.types import DataConfig, DataRequest, Field, UserError


class Numbers:
    """`count` examples, each of which holds its number, beginning with `first`."""

    spec = {"input_ids": Field("int32")}
    warnings = ()
    padding = 0.0

    def __init__(self, count: int, first: int, seq_len: int):
        self.count, self.first, self.seq_len = count, first, seq_len

    def __len__(self) -> int:
        return self.count

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"input_ids": np.repeat((indices + self.first).astype(np.int32)[:, None], self.seq_len, axis=1)}


@dataclasses.dataclass(frozen=True)
class Counting(DataConfig):
    """A data config of numbers."""

    count: int
    first: int = 0
    seq_len: int = 2
    tokenizer: Any = None

    def make(self, request: DataRequest) -> Batches:
        numbers = Numbers(self.count, self.first, self.seq_len)
        return Batches(numbers, request.batch_size, request.seed, request.shuffle)


UNUSED = Tokenizer(tokenizers.Tokenizer(models.WordLevel({"a": 0})), {})


def make(data: Any, batch_size: int = 64, shuffle: bool = True, seed: int = 0) -> Batches:
    settings = dict(split="train", seed=seed, batch_size=batch_size, tokenizer=UNUSED, cache=Path("unused"))
    return data.make(DataRequest(shuffle=shuffle, **settings))


def mixture(counts: dict[str, int], weights: dict[str, float] | None = None, **settings) -> Mixture:
    """Part p holds the numbers p · 10⁶, p · 10⁶ + 1, …"""
    parts = [
        Part(name, Counting(count, p * 10**6), None if weights is None else weights[name])
        for p, (name, count) in enumerate(counts.items())
    ]
    return Mixture(tuple(parts), **settings)


def read(batches: Batches, rows: int, key: str = "part") -> np.ndarray:
    """`key` of the first rows."""
    steps = range(-(-rows // batches.batch_size))
    return np.concatenate([batches[step][key] for step in steps])[:rows]


def test_proportions_are_exact_after_every_block():
    batches = make(mixture({"a": 300, "b": 50, "c": 7}, {"a": 5, "b": 2, "c": 1}))
    part = read(batches, 4 * BLOCK)
    for block in range(4):
        assert np.bincount(part[block * BLOCK : (block + 1) * BLOCK]).tolist() == [640, 256, 128]


def test_every_prefix_has_each_part_within_a_bounded_count_of_its_share():
    part = read(make(mixture({"a": 300, "b": 50, "c": 7}, {"a": 5, "b": 2, "c": 1})), 3 * BLOCK)
    for p, share in enumerate([5 / 8, 2 / 8, 1 / 8]):
        off = np.cumsum(part == p) - share * np.arange(1, len(part) + 1)
        # Inside a block the order is random: the count strays as cards do that are drawn without replacement.
        assert np.abs(off).max() < 4 * np.sqrt(BLOCK * share * (1 - share)) / 2


def test_parts_are_interleaved_not_in_runs_and_differ_between_blocks():
    part = read(make(mixture({"a": 300, "b": 300}, {"a": 1, "b": 1})), 4 * BLOCK).reshape(4, BLOCK)
    changes = (part[:, 1:] != part[:, :-1]).mean(axis=1)
    assert (np.abs(changes - 0.5) < 5 * 0.5 / np.sqrt(BLOCK)).all()
    for one, other in itertools.combinations(part, 2):
        assert abs((one == other).mean() - 0.5) < 5 * 0.5 / np.sqrt(BLOCK)


def test_an_epoch_of_a_part_visits_each_of_its_examples_exactly_once():
    sizes = {"a": 300, "b": 50, "c": 7}
    batches = make(mixture(sizes, {"a": 5, "b": 2, "c": 1}), batch_size=100)
    keys = ("part", "epoch", "row", "input_ids")
    part, epoch, row, ids = (read(batches, 2 * BLOCK, key) for key in keys)
    first_row = np.cumsum([0, 300, 50])
    np.testing.assert_array_equal(ids[:, 0], row - first_row[part] + part * 10**6)
    for p, size in enumerate(sizes.values()):
        seen = Counter(zip(epoch[part == p].tolist(), (row[part == p] - first_row[p]).tolist(), strict=True))
        assert max(seen.values()) == 1
        whole = (part == p).sum() // size  # all epochs but the last, in which the prefix ends
        assert whole >= 4
        assert {pair for pair in seen if pair[0] < whole} == set(itertools.product(range(whole), range(size)))


def test_each_epoch_has_an_order_of_its_own():
    batches = make(mixture({"a": 300, "b": 50}, {"a": 1, "b": 1}))
    part, epoch, ids = (read(batches, 2 * BLOCK, key) for key in ("part", "epoch", "input_ids"))
    first, second = (ids[(part == 0) & (epoch == e), 0] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(300))
    assert first.tolist() != second.tolist() and first.tolist() != list(range(300))


@pytest.mark.parametrize("nested", [False, True])
def test_a_batch_is_the_same_in_any_order_of_access_and_made_anew(nested: bool):
    def data() -> Mixture:
        inner = mixture({"a": 300, "b": 50}, {"a": 2, "b": 1})
        return Mixture((Part("x", inner), Part("y", Counting(70, 9 * 10**6)))) if nested else inner

    def content(batches: Batches, step: int) -> dict:
        return {key: array.tolist() for key, array in batches[step].items()}

    batches = make(data())
    first = [content(batches, step) for step in range(40)]
    assert [content(batches, step) for step in reversed(range(40))] == first[::-1]
    assert [content(make(data()), step) for step in range(40)] == first
    assert content(make(data(), seed=1), 0) != first[0]


def test_a_mixture_in_a_mixture_keeps_both_proportions():
    inner = mixture({"a": 300, "b": 50}, {"a": 3, "b": 1})
    batches = make(Mixture((Part("x", inner, 1.0), Part("y", Counting(70, 9 * 10**6), 1.0))))
    source = read(batches, 2 * BLOCK, "input_ids")[:, 0] // 10**6
    assert Counter(source.tolist()) == {0: 768, 1: 256, 9: BLOCK}  # the inner block of 1,024 is through as well
    assert set(read(batches, BLOCK).tolist()) == {0, 1}  # the outer parts


@pytest.mark.parametrize("temperature, shares", [(1.0, [0.9, 0.1]), (2.0, [0.75, 0.25]), (1e9, [0.5, 0.5])])
def test_without_weights_shares_follow_sizes_and_temperature(temperature: float, shares: list[float]):
    data = mixture({"a": 900, "b": 100}, temperature=temperature)
    np.testing.assert_allclose(data.shares(np.array([900, 100])), shares, atol=1e-8)
    part = read(make(data), BLOCK)
    assert np.bincount(part).tolist() == [round(BLOCK * share) for share in shares]


def test_rare_parts_get_a_larger_block_so_that_rounding_stays_slight():
    names = ["a", "b"]
    for share in (0.3, 0.02, 0.001, 1e-4, 2e-6):
        counts = block_counts(names, np.array([1 - share, share]))
        assert counts.sum() & (counts.sum() - 1) == 0 and BLOCK <= counts.sum() <= 2**20
        assert abs(counts[1] / counts.sum() - share) <= max(share / 16, 2**-20)
    with pytest.raises(UserError, match="part 'b' has a share of 1.0e-07, not one example in 1,048,576"):
        block_counts(names, np.array([1 - 1e-7, 1e-7]))
    assert block_counts(["a", "b", "c"], np.array([1, 1, 1]) / 3).tolist() == [342, 341, 341]


def test_evaluation_goes_through_all_parts_once_whatever_the_weights():
    batches = make(mixture({"a": 5, "b": 3, "c": 2}, {"a": 1, "b": 100, "c": 1}), batch_size=4, shuffle=False)
    got = [batches[step] for step in range(len(batches))]
    assert [batch["part"].tolist() for batch in got] == [[0, 0, 0, 0], [0, 1, 1, 1], [2, 2, -1, -1]]
    assert [batch["row"].tolist() for batch in got] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, -1, -1]]
    assert got[2]["input_ids"][:, 0].tolist() == [2 * 10**6, 2 * 10**6 + 1, 0, 0]


def test_a_part_is_evaluated_alone_by_its_name():
    data = mixture({"a": 5, "b": 3})
    assert make(data.part("b"), 4, shuffle=False)[0]["input_ids"][:, 0].tolist() == [10**6, 10**6 + 1, 10**6 + 2, 0]
    with pytest.raises(UserError, match="no part 'z'; there are 'a', 'b'"):
        data.part("z")


A, B = Part("a", Counting(10)), Part("b", Counting(20))


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: mixture({"a": 5, "b": 5}, {"a": 1, "b": 0}), "part 'b': weight=0 must be positive"),
        (lambda: mixture({"a": 5, "b": 5}, {"a": -0.5, "b": 1}), "part 'a': weight=-0.5 must be positive"),
        (lambda: mixture({"a": 5}, {"a": float("nan")}), "part 'a': weight=nan must be positive and finite"),
        (lambda: Mixture((A, dataclasses.replace(B, weight=1.0))), "part 'a' has no weight, others have"),
        (lambda: Mixture((A, A)), "each with a name of its own"),
        (lambda: Mixture(()), "must be one or more"),
        (lambda: Mixture((A,), temperature=0.0), "temperature=0.0 must be positive"),
        (lambda: mixture({"a": 5}, {"a": 1}, temperature=2.0), "temperature=2.0 is for parts without weights"),
        (lambda: Mixture((A, Part("b", Counting(5, 0, 4)))), "part 'b' has seq_len=4, 'a' has 2"),
        (lambda: make(Mixture((A, Part("b", Curriculum(Counting(5), Counting(5), 3))))), "'b' is a curriculum"),
        (lambda: Curriculum(Counting(5), Counting(5), 0), "switch_step=0 must be at least 1"),
        (lambda: Curriculum(Counting(5), Counting(5), 5, 0), "short_factor=0 must be at least 1"),
        (lambda: Curriculum(Counting(5, 0, 8), Counting(5, 0, 4), 5), "short.seq_len=8 exceeds long.seq_len=4"),
    ],
)
def test_impossible_settings_are_refused_by_name(build: Callable[[], Any], message: str):
    with pytest.raises(UserError, match=message):
        build()


def test_parts_with_other_keys_or_shapes_are_refused_by_name():
    class Labelled(Numbers):
        spec = {**Numbers.spec, "label": Field("int64", ("batch",))}

        def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
            return super().gather(indices) | {"label": indices}

    with pytest.raises(UserError, match=r"parts 'a' and 'b' differ in 'label': none and int64 \[batch\]"):
        MixedDataset(["a", "b"], [Numbers(3, 0, 2), Labelled(3, 0, 2)])
    with pytest.raises(UserError, match=r"parts 'a' and 'b' differ in 'label': int64 \[batch\] and none"):
        MixedDataset(["a", "b"], [Labelled(3, 0, 2), Numbers(3, 0, 2)])
    with pytest.raises(UserError, match=r"parts 'a' and 'b' differ in 'input_ids': \(2,\) and \(4,\)"):
        MixedDataset(["a", "b"], [Numbers(3, 0, 2), Numbers(3, 0, 4)]).gather(np.array([0, 5]))


# -- with text --------------------------------------------------------------------------------------------------------


@pytest.fixture
def corpora(tiny: Experiment, tmp_path: Path) -> Mixture:
    """The tiny corpus and one of other words."""
    path = tmp_path / "more.txt"
    path.write_text("\n\n".join(f"Quick queens quietly quilt {i}. Zebras zigzag. Foxes jump." for i in range(60)))
    more = dataclasses.replace(tiny.data, path=str(path))
    return Mixture((Part("tiny", tiny.data), Part("more", more)), tokenizer=WordPiece(300))


def test_the_tokenizer_of_a_mixture_is_trained_on_the_texts_of_all_parts(corpora: Mixture):
    tokenizer = corpora.train_tokenizer()
    assert tokenizer.vocab.unk not in tokenizer.encode(["cat dog quick zebras"])[0]
    texts = [text for part in corpora.parts for text in part.data.texts()]
    assert tokenizer.hash == WordPiece(300).make(lambda: iter(texts)).hash
    with pytest.raises(UserError, match="part 'a': Counting has no running text to train a tokenizer on"):
        Mixture((A,)).train_tokenizer()


def test_a_mixture_of_corpora_has_the_sequences_of_its_parts(corpora: Mixture, tokenizer: Tokenizer, tmp_path: Path):
    settings = dict(split="train", seed=0, batch_size=16, tokenizer=tokenizer, cache=tmp_path / "cache")
    even = Mixture(tuple(dataclasses.replace(part, weight=1.0) for part in corpora.parts))
    mixed = even.make(DataRequest(shuffle=True, **settings))
    alone = [part.data.make(DataRequest(shuffle=False, **settings)).dataset for part in corpora.parts]
    first_row = (0, len(alone[0]))
    batch = mixed[3]
    check_spec(mixed)
    assert batch["part"].dtype == np.int32 and set(batch["part"].tolist()) == {0, 1}
    for b, (part, row) in enumerate(zip(batch["part"], batch["row"], strict=True)):
        own = alone[part].gather(np.array([row - first_row[part]]))
        assert set(own) == set(batch) - {"part", "row", "epoch"}
        for key, array in own.items():
            np.testing.assert_array_equal(batch[key][b], array[0])
    assert len(mixed) == ENDLESS and mixed.steps_per_epoch == -(-sum(map(len, alone)) // 16)
    assert mixed.dataset.padding == pytest.approx(
        (mixed.dataset.gather(np.arange(len(mixed.dataset)))["segment_ids"] == 0).mean()
    )


def test_a_mixture_predicts_as_its_first_part(corpora: Mixture, tiny: Experiment, tokenizer: Tokenizer):
    batch = corpora.predict_batches([{"text": "the [MASK] sleeps"}], 1, tokenizer)[0]
    assert batch["mlm_positions"].tolist() == [[2]]
    ids = tokenizer.encode(["cat dog"])[0]
    outputs = {"tokens": np.array([[ids]]), "probabilities": np.array([[[0.75, 0.25]]])}
    rows = corpora.predict_batches([{"text": "the [MASK] sleeps"}], 1, tokenizer).dataset
    assert list(corpora.describe(rows, outputs)) == list(tiny.data.describe(rows, outputs)) != []


def test_a_mixture_and_a_curriculum_are_configs_like_any_other(tiny: Experiment, corpora: Mixture):
    staged = Curriculum(dataclasses.replace(tiny.data, seq_len=16), tiny.data, 3, 2)
    for data, path, argument in ((corpora, "data.parts.1.data.layout", "concat"), (staged, "data.short_factor", "4")):
        experiment = dataclasses.replace(tiny, data=data)
        assert from_json(to_json(experiment)) == experiment and hash(experiment) == hash(from_json(to_json(experiment)))
        changed = parse_overrides(experiment, [f"--{path}", argument])
        assert changed == with_overrides(
            experiment, {path: type(staged.short_factor)(4) if data is staged else "concat"}
        )
    weighted = Mixture(tuple(dataclasses.replace(part, weight=1.0) for part in corpora.parts))
    changed = parse_overrides(dataclasses.replace(tiny, data=weighted), ["--data.parts.0.weight", "2.5"])
    assert [part.weight for part in changed.data.parts] == [2.5, 1.0]


# -- curricula --------------------------------------------------------------------------------------------------------


def test_a_curriculum_reads_short_sequences_before_the_switch_and_long_ones_after():
    data = Curriculum(Counting(40, 0, 2), Counting(30, 1000, 8), switch_step=5, short_factor=4)
    batches, short, long = make(data, 4), make(data.short, 16), make(data.long, 4)
    for step in (7, 0, 4, 5, 100):
        expected = short[step] if step < 5 else long[step - 5]
        assert batches[step]["input_ids"].shape == ((16, 2) if step < 5 else (4, 8))
        for key, array in expected.items():
            np.testing.assert_array_equal(batches[step][key], array)
    assert len(batches) == ENDLESS and data.seq_len == 8


def test_evaluation_and_tokenizer_of_a_curriculum_are_those_of_long(tiny: Experiment, tokenizer: Tokenizer):
    data = Curriculum(Counting(40, 0, 2), Counting(30, 1000, 8, tokenizer="runs/x"), switch_step=5)
    held_out = make(data, 4, shuffle=False)
    assert len(held_out) == 8 and held_out[0]["input_ids"][:, 7].tolist() == [1000, 1001, 1002, 1003]
    assert data.tokenizer == "runs/x" and make(data, 4).dataset.first == 1000
    long = dataclasses.replace(tiny.data, tokenizer=WordPiece(150))
    staged = Curriculum(dataclasses.replace(long, seq_len=16, tokenizer=WordPiece(150, lowercase=False)), long, 3)
    assert staged.train_tokenizer().hash == long.train_tokenizer().hash != staged.short.train_tokenizer().hash
    far = "cat " * 20 + "[MASK]"  # beyond the rows of `short`
    assert staged.predict_batches([{"text": far}], 1, tokenizer)[0]["mlm_positions"].tolist() == [[21]]


def test_curricula_nest_into_more_stages():
    data = Curriculum(Curriculum(Counting(9, 0, 2), Counting(9, 100, 4), 3), Counting(9, 200, 8), 5)
    widths = [make(data, 4)[step]["input_ids"].shape[1] for step in range(7)]
    assert widths == [2, 2, 2, 4, 4, 8, 8]
    assert make(data, 4)[5]["epoch"].tolist() == [0] * 4  # each stage begins anew


@pytest.mark.parametrize("switch, expected", [(3, 3 + 12), (5, 5 + 10), (10, 10 + 5), (15, 15), (99, 15)])
def test_steps_per_epoch_of_a_curriculum_reach_the_end_of_the_text(switch: int, expected: int):
    # 60 rows by fours either way: an epoch is 15 steps, wherever the switch.
    assert make(Curriculum(Counting(60), Counting(60), switch), 4).steps_per_epoch == expected
    # Long rows, a quarter as many, in batches of as many rows: what short leaves takes a quarter of the steps.
    quarter = make(Curriculum(Counting(60), Counting(15), switch), 4).steps_per_epoch
    assert quarter == {3: 3 + 4, 5: 5 + 3, 10: 10 + 2}.get(switch, 15)


def test_stages_with_other_keys_are_refused_by_name(tiny: Experiment, tokenizer: Tokenizer, tmp_path: Path):
    data = Curriculum(dataclasses.replace(tiny.data, layout="concat"), tiny.data, 3)
    settings = dict(split="train", seed=0, batch_size=4, tokenizer=tokenizer, cache=tmp_path)
    with pytest.raises(UserError, match="only one of short and long has 'pair_label'"):
        data.make(DataRequest(shuffle=True, **settings))


def test_a_curriculum_of_mixtures_mixes_in_both_stages(corpora: Mixture, tokenizer: Tokenizer, tmp_path: Path):
    short = Mixture(tuple(Part(p.name, dataclasses.replace(p.data, seq_len=16)) for p in corpora.parts))
    batches = Curriculum(short, corpora, switch_step=2, short_factor=2).make(
        DataRequest(split="train", seed=0, batch_size=16, tokenizer=tokenizer, cache=tmp_path, shuffle=True)
    )
    assert isinstance(corpora.part("tiny"), Corpus)
    assert [batches[step]["input_ids"].shape for step in (1, 2)] == [(32, 16), (16, 32)]
    assert all(set(batches[step]["part"].tolist()) == {0, 1} for step in (1, 2))
