"""Token stores in memory, a vocabulary for each family of tokenizers, and a check of what batches declare."""

import numpy as np

from bertgpt.data.loader import Batches
from bertgpt.data.store import Store
from bertgpt.types import Vocab

VOCAB = Vocab(size=1000, pad=0, unk=1, cls=2, sep=3, mask=4)
GPT = Vocab(size=1000, unk=9, bos=9, eos=9)
T5 = Vocab(size=1000, pad=0, unk=2, eos=1)
DOCUMENTS = [[[10, 11, 12], [13, 14]], [[20]], [[30, 31, 32, 33, 34, 35, 36, 37], [38, 39]]]


def make_store(documents: list[list[list[int]]]) -> Store:
    tokens = [t for document in documents for sentence in document for t in sentence]
    sentence_ends = np.cumsum([len(sentence) for document in documents for sentence in document])
    return Store(np.array(tokens, np.uint16), sentence_ends, np.cumsum([len(document) for document in documents]))


def random_store(rng: np.random.Generator, documents: int) -> Store:
    """Every token tells its position: distinct ascending numbers."""
    made, number = [], 10
    for _ in range(documents):
        document = []
        for _ in range(rng.integers(1, 9)):
            length = int(rng.integers(1, 15))
            document.append(list(range(number, number + length)))
            number += length
        made.append(document)
    return make_store(made)


def all_rows(rows) -> dict[str, np.ndarray]:
    return rows.gather(np.arange(len(rows)))


def check_spec(batches: Batches) -> None:
    """A batch holds exactly the fields that it declares, with their types and axes."""
    spec, batch = batches.spec, batches[0]
    assert spec.keys() == batch.keys()
    for name, field in spec.items():
        assert (batch[name].dtype.name, batch[name].ndim, field.axes[0]) == (field.dtype, len(field.axes), "batch")
