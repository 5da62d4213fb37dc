"""Each host gathers its own part of a batch: together they hold the batch, and none holds or reads anything else."""

import textwrap
from pathlib import Path

import numpy as np
import pytest
from launcher import Hosts
from small_stores import GPT, VOCAB, random_store

from bertgpt.data.loader import Batches, Shards
from bertgpt.data.mixture import MixedDataset, StagedBatches, mixed
from bertgpt.data.packing import ConcatDataset, PackedDataset
from bertgpt.data.pairs import PairDataset
from bertgpt.data.streams import SentenceDataset, StreamDataset, TokenDataset
from bertgpt.tasks.mixed import TaskBatches
from bertgpt.types import Dataset

SIZE = 16


class Counted:
    """A dataset that counts the examples that are gathered from it."""

    def __init__(self, dataset: Dataset):
        self.dataset, self.gathered = dataset, 0
        self.spec, self.warnings, self.padding = dataset.spec, dataset.warnings, dataset.padding

    def __len__(self) -> int:
        return len(self.dataset)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        self.gathered += len(indices)
        return self.dataset.gather(indices)


def datasets() -> dict[str, Dataset]:
    store = random_store(np.random.default_rng(0), 60)
    return {
        "pairs": PairDataset(store, VOCAB, 32, short_seq_prob=0.1, duplicates=2, seed=0),
        "stream": StreamDataset(store, GPT, 16, apart=True),
        "concatenated": ConcatDataset(store, VOCAB, 16),
        "packed": PackedDataset(store, VOCAB, 16),
        "tokens": TokenDataset(store, GPT, 16, keep_last=True),
        "sentences": SentenceDataset(store, VOCAB, 16, cross_documents=True),
        "mixed": MixedDataset(["a", "b"], [ConcatDataset(store, VOCAB, 16), PackedDataset(store, VOCAB, 16)]),
    }


def made(kind: str, shuffle: bool) -> tuple[Batches, list[Counted]]:
    """Batches of a kind, and the datasets that they gather from."""
    if kind in ("tasks", "curriculum"):
        a, b = (Counted(datasets()[name]) for name in ("concatenated", "packed"))
        parts = [Batches(dataset, SIZE, 3, shuffle) for dataset in (a, b)]
        if kind == "tasks":
            return TaskBatches(dict(zip("ab", parts, strict=True)), 3, shuffle), [a, b]
        return StagedBatches(*parts, switch_step=1), [a, b]
    dataset = Counted(datasets()[kind])
    order = None
    if kind == "mixed" and shuffle:

        def order(position):
            inner = [Batches(part, SIZE, 3, shuffle=True).order for part in dataset.dataset.parts]
            first = dataset.dataset.ends - dataset.dataset.sizes
            return mixed(position, np.array([24, 8]), tuple(inner), first, seed=3)

    return Batches(dataset, SIZE, 3, shuffle, order), [dataset]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("kind", [*datasets(), "tasks", "curriculum"])
def test_the_parts_of_all_hosts_are_the_batch_and_nothing_else_is_gathered(kind: str, shuffle: bool):
    if kind == "curriculum" and not shuffle:
        pytest.skip("in order, a curriculum is its last stage")
    batches, counted = made(kind, shuffle)
    for step in (0, 1, 2) if shuffle else (0, len(batches) - 1):
        whole = batches[step]
        for owners in (((0, 1), (2, 3)), ((0, 3), (1, 2)), ((0,), (1,), (2,), (3,))):
            for dataset in counted:
                dataset.gathered = 0
            parts = [batches.part(step, Shards(own, 4)) for own in owners]
            if shuffle:
                expected = sum(len(array) for name, array in whole.items() if name.split("/")[-1] == "row")
                assert sum(dataset.gathered for dataset in counted) == expected
            for name, array in whole.items():
                shards = array.reshape(4, -1, *array.shape[1:])
                for own, part in zip(owners, parts, strict=True):
                    np.testing.assert_array_equal(part[name], np.concatenate([shards[i] for i in own]))


def test_a_host_without_any_real_example_of_the_last_batch_holds_padding():
    batches = Batches(datasets()["packed"], 4 * (len(datasets()["packed"]) - 1), 0, shuffle=False)
    part = batches.part(0, Shards((3,), 4))
    assert set(part["row"].tolist()) == {-1} and not part["segment_ids"].any()
    assert part["input_ids"].shape == (len(batches.dataset) - 1, 16)


def test_of_256_hosts_each_gathers_a_256th():
    dataset = Counted(datasets()["tokens"])
    batches = Batches(dataset, 4096, 0, shuffle=True)
    gathered = []
    for host in range(256):
        dataset.gathered = 0
        batches.part(7, Shards((host,), 256))
        gathered.append(dataset.gathered)
    assert gathered == [16] * 256


SCRIPT = """
import functools, sys
import numpy as np
from bertgpt import distributed as d
coordinator, count, number = (sys.argv[2::2] or [None, 1, 0])
d.initialize(d.Distributed(coordinator, int(count), int(number), 60.0))
from test_host_batches import SIZE, Counted, datasets
from bertgpt.config import Mesh
from bertgpt.data.loader import Batches, Shards, prefetch
from bertgpt.sharding import fetch, host_shards, make_mesh, put_batch
import jax
mesh = make_mesh(Mesh(fsdp=2 if jax.device_count() > 1 else 1))
dataset = Counted(datasets()["packed"])
batches = Batches(dataset, SIZE, 0, shuffle=True)
put = functools.partial(put_batch, mesh=mesh)
placed = list(prefetch(batches, 0, 5, put, Shards(*host_shards(mesh))))
print("gathered", dataset.gathered)
for step, batch in enumerate(placed):
    whole = batches[step]
    for name, array in fetch(batch).items():
        np.testing.assert_array_equal(array, whole[name])
d.shutdown()
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_process_of_n_gathers_an_nth_and_the_devices_hold_the_batch(count: int, tmp_path: Path):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT))
    folders = ":".join(map(str, (Path(__file__).parent, Path(__file__).parent.parent)))
    ended = Hosts([str(path)], count, environments=[{"PYTHONPATH": folders}] * count).join(90)
    for process in ended:
        assert process.code == 0 and f"gathered {5 * SIZE // count}" in process.lines, process
