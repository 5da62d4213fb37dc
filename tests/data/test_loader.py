"""Order is a function of (seed, step): the same batch wherever one starts."""

import numpy as np
import pytest

from bertgpt.data.loader import ENDLESS, Batches, check_needs, permute, prefetch
from bertgpt.types import Dataset, Field, UserError, prefixed


class Numbers:
    """Examples whose content is their index."""

    spec = {"input_ids": Field("int64"), "label": Field("int64", ("batch",), pad=-1)}
    warnings = ()
    padding = 0.0

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"input_ids": np.stack([indices, indices], 1), "label": indices}


@pytest.mark.parametrize("count", [1, 2, 3, 10, 1000, 4097])
def test_permute_is_a_bijection(count: int):
    for epoch in range(3):
        assert sorted(permute(np.arange(count), count, 7, epoch).tolist()) == list(range(count))


def test_permutations_differ_and_mix():
    a, b = (permute(np.arange(10_000), 10_000, 0, epoch) for epoch in (0, 1))
    assert (a == b).mean() < 0.01
    assert abs(np.corrcoef(a, np.arange(10_000))[0, 1]) < 0.05 and abs(np.corrcoef(a, b)[0, 1]) < 0.05
    assert not np.array_equal(a, permute(np.arange(10_000), 10_000, 1, 0))


def test_each_epoch_shows_each_row_once_across_batch_borders():
    batches = Batches(Numbers(10), 4, seed=3, shuffle=True)
    stream = np.concatenate([batches[step]["label"] for step in range(5)])
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    assert stream[:10].tolist() != stream[10:].tolist()
    assert len(batches) == ENDLESS and batches.steps_per_epoch == 3


def test_in_order_the_last_batch_is_padded_with_examples_to_ignore():
    batches = Batches(Numbers(10), 4, seed=0, shuffle=False)
    assert len(batches) == 3
    assert [batches[step]["label"].tolist() for step in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, -1, -1]]
    assert batches[2]["input_ids"][2:].tolist() == [[0, 0], [0, 0]]


def test_batches_carry_the_number_and_the_epoch_of_each_row():
    batches = Batches(Numbers(10), 4, seed=3, shuffle=True)
    for step in (4, 0, 2, 1, 3):
        batch = batches[step]
        assert (
            batch["row"].tolist() == batch["label"].tolist() and batch["row"].dtype == batch["epoch"].dtype == np.int32
        )
        assert batch["epoch"].tolist() == [place // 10 for place in range(4 * step, 4 * step + 4)]
    held_out = Batches(Numbers(6), 4, seed=3, shuffle=False)
    assert [held_out[i]["row"].tolist() for i in (0, 1)] == [[0, 1, 2, 3], [4, 5, -1, -1]]
    assert [held_out[i]["epoch"].tolist() for i in (0, 1)] == [[0] * 4, [0, 0, -1, -1]]


def test_a_batch_is_the_same_in_any_order_of_access_and_made_anew():
    batches = Batches(Numbers(37), 8, seed=5, shuffle=True)
    first = [batches[step]["row"].tolist() for step in range(20)]
    assert [batches[step]["row"].tolist() for step in reversed(range(20))] == first[::-1]
    assert [Batches(Numbers(37), 8, seed=5, shuffle=True)[step]["row"].tolist() for step in range(20)] == first
    assert Batches(Numbers(37), 8, seed=6, shuffle=True)[0]["row"].tolist() != first[0]


def test_row_numbers_beyond_int32_wrap_around():
    batches = Batches(Numbers(2**33), 1024, seed=0, shuffle=True)
    rows = batches[0]["label"]
    assert rows.max() > 2**31 and np.array_equal(batches[0]["row"], rows.astype(np.uint32).view(np.int32))


def test_prefetch_gives_what_indexing_gives_from_any_start():
    batches = Batches(Numbers(1000), 8, seed=1, shuffle=True)
    for start, stop in [(0, 7), (123, 130), (5, 5), (2, 3)]:
        got = list(prefetch(batches, start, stop, place=lambda batch: batch["label"]))
        assert len(got) == stop - start
        for step, labels in zip(range(start, stop), got, strict=True):
            np.testing.assert_array_equal(labels, batches[step]["label"])


def test_an_error_in_a_reader_reaches_the_consumer():
    class Broken(Numbers):
        def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
            raise UserError("row 3 is broken")

    with pytest.raises(UserError, match="row 3 is broken"):
        list(prefetch(Batches(Broken(10), 2, seed=0, shuffle=True), 0, 3, place=lambda batch: batch))


def test_zero_examples_are_refused():
    with pytest.raises(UserError, match="zero training examples"):
        Batches(Numbers(0), 4, seed=0, shuffle=True)


def test_padding_takes_the_declared_value_of_each_field():
    class Padded(Numbers):
        spec = {"input_ids": Field("int64", pad=7), "label": Field("int64", ("batch",), pad=9)}

    batches = Batches(Padded(3), 2, seed=0, shuffle=False)
    assert isinstance(batches.dataset, Dataset) and batches.spec.keys() == batches[1].keys()
    assert {name: array[1].tolist() for name, array in batches[1].items()} == {
        "input_ids": [7, 7],
        "label": 9,
        "row": -1,
        "epoch": -1,
    }


def test_what_an_objective_needs_is_checked_by_name():
    spec = {"input_ids": Field("int32"), "label": Field("int32", ("batch",), pad=-1)}
    check_needs({"input_ids": Field("int32")}, spec, "MaskedLM", "Corpus")
    check_needs({"label": Field("int32", ("batch",))}, spec, "Classify", "Reviews")  # pad values are the data's choice
    with pytest.raises(
        UserError, match="^Similarity needs the field 'score', which batches of Reviews do not have; the"
    ):
        check_needs({"score": Field("float32", ("batch",))}, spec, "Similarity", "Reviews")
    message = (
        r"^Tag needs the field 'label' as int32 \[batch, sequence\], but batches of Reviews have it as int32 \[batch\]"
    )
    with pytest.raises(UserError, match=message):
        check_needs({"label": Field("int32")}, spec, "Tag", "Reviews")


def test_fields_of_a_task_carry_its_name():
    assert prefixed({"label": Field("int32", ("batch",))}, "sst") == {"sst/label": Field("int32", ("batch",))}
