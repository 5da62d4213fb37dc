"""Sequences of two segments, [CLS] A [SEP] B [SEP]: BERT's next-sentence pairs, ALBERT's sentence-order pairs."""

import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from bertgpt.data.packing import TEMPLATE, Pieces, StoreDataset, lay_out, template_of
from bertgpt.data.store import CHECK_BELOW, Store
from bertgpt.io.checksums import checksum, find_damage
from bertgpt.io.files import CannotWrite, open_atomic, read_json, write_json
from bertgpt.types import TEXT_SPEC, Batch, DataWarning, Field, UserError, Vocab

log = logging.getLogger(__name__)
MOST_RANDOM = 0.6  # share of label 1 above which its dataset says so; BERT's recipe gives slightly more than half


class PairDataset(StoreDataset):
    """[CLS] A [SEP] B [SEP] as one segment, type_ids 0 and 1, and `pair_label`.

    Next-sentence pairs, built as BERT's data recipe builds them (google-research/bert, create_pretraining_data): label
    0, B follows A; 1, B is text of another document. Or, `swapped`, sentence-order pairs (Lan et al. 2020 §3.1): 0, B
    follows A; 1, A follows B. With probability `short_seq_prob` a document is cut into shorter pairs. Pairs that are
    too long lose tokens of the longer side, from its front or its back at random. One index holds `duplicates` passes
    over the text with different random pairs; it is a function of the seed.

    A document of one sentence has no next sentence: all its pairs are of label 1. `balance` leaves out as many of these
    pairs, at random, as there are more than of label 0.

    Args:
      store: the documents.
      vocab: has [CLS], [SEP] and padding.
      seq_len: tokens in a sequence, S.
      short_seq_prob: probability that a document is cut into shorter pairs.
      duplicates: passes over the text.
      seed: of the random choices.
      swapped: sentence-order pairs.
      balance: leave out pairs of label 1.
      cache: files that may hold the pairs already, and of which one is written; see `cached`.

    Raises:
      UserError: there is no pair, or next-sentence pairs of a single document were asked for: the text of another
        document would be its own.
    """

    spec = {**TEXT_SPEC, "pair_label": Field("int32", ("batch",), pad=-1)}

    def __init__(
        self,
        store: Store,
        vocab: Vocab,
        seq_len: int,
        *,
        short_seq_prob: float,
        duplicates: int,
        seed: int,
        swapped: bool = False,
        balance: bool = False,
        cache: Sequence[Path] = (),
    ):
        vocab.require(*TEMPLATE)
        super().__init__(store, vocab, seq_len, template_of(vocab))
        build = build_swapped_pairs if swapped else build_pairs

        def make() -> Int[np.ndarray, "N 5"]:
            generators = [random.Random(f"{seed}/{n}") for n in range(duplicates)]
            return np.concatenate([build(store, seq_len - 3, short_seq_prob, rng) for rng in generators])

        drawn = self.pairs = cached(cache, make)
        if not len(drawn):
            raise UserError("zero sentence pairs: every document of the split is a single sentence")
        if balance and not swapped:
            self.pairs = balanced(drawn, np.random.default_rng(seed))
        self.warnings = warn_of_single(store) if swapped else warn_of_labels(drawn, len(drawn) - len(self.pairs))
        self.padding = 1.0 - (float(self.pairs[:, (1, 3)].sum()) / len(self.pairs) + 3) / seq_len

    def __len__(self) -> int:
        return len(self.pairs)

    def gather(self, indices: Int[np.ndarray, " B"]) -> Batch:
        a_start, a_len, b_start, b_len, label = np.asarray(self.pairs[indices]).T
        every = np.ones(2 * len(indices), bool)
        pieces = Pieces(
            np.repeat(np.arange(len(indices)), 2),
            np.stack([a_start - 1, b_start], axis=1).ravel(),
            np.stack([a_len + 2, b_len + 1], axis=1).ravel(),
            np.arange(len(every)) % 2 == 0,
            every,
        )
        batch = lay_out(self.store, self.template, self.seq_len, pieces, apart=False)
        in_b = np.arange(self.seq_len) >= a_len[:, None] + 2  # after [CLS] A [SEP]
        return batch | {"type_ids": in_b * batch["segment_ids"], "pair_label": label.astype(np.int32)}


def balanced(pairs: Int[np.ndarray, "N 5"], rng: np.random.Generator) -> Int[np.ndarray, "M 5"]:
    """The pairs in order, without random ones of label 1 in excess of those of label 0.

    Raises:
      UserError: no pair has label 0.
    """
    chance = np.flatnonzero(pairs[:, 4])
    excess = 2 * len(chance) - len(pairs)
    if len(chance) == len(pairs):
        raise UserError("pairs cannot be balanced: no document has two sentences, so no pair is a next sentence")
    return np.delete(pairs, rng.choice(chance, max(0, excess), replace=False), axis=0)


def warn_of_single(store: Store) -> tuple[DataWarning, ...]:
    """How many documents of one sentence there are, which give no sentence-order pair."""
    sentences = np.diff(np.asarray(store.document_ends), prepend=0)
    single = int(np.sum(sentences == 1))
    text = (
        f"{single} of {len(sentences)} documents have one sentence and give no sentence-order pair: they are not used"
    )
    return (DataWarning("skipped", single, text),) if single else ()


def warn_of_labels(drawn: Int[np.ndarray, "N 5"], left_out: int) -> tuple[DataWarning, ...]:
    """What to say about the labels of next-sentence pairs, of which some are left out to balance them."""
    if left_out:
        text = f"{left_out} of {len(drawn)} next-sentence pairs, with a random second text, are left out"
        return (DataWarning("skipped", left_out, text),)
    chance = int(np.sum(drawn[:, 4]))
    if chance <= MOST_RANDOM * len(drawn):
        return ()
    why = "documents of one sentence have no next sentence; data.balance_pairs=True leaves out the excess"
    text = f"{chance} of {len(drawn)} next-sentence pairs have a random second text (label 1): {why}"
    return (DataWarning("unbalanced", chance, text),)


def cached(paths: Sequence[Path], make: Callable[[], Int[np.ndarray, "N 5"]]) -> Int[np.ndarray, "N 5"]:
    """The pairs that one of the files holds, mapped into memory; else new ones, written to the first that can be.

    Beside FILE.npy, FILE.json records its size and checksum. A file that differs from them is made again.
    """
    for path in paths:
        try:
            check = read_json(path.with_suffix(".json"))
            if find_damage(path.parent, {path.name: check}, contents=check["bytes"] <= CHECK_BELOW) is None:
                return np.load(path, mmap_mode="r")
            log.warning("%s: is damaged; sentence pairs are built again", path)
        except (OSError, UserError, KeyError, TypeError, ValueError):
            continue  # there is none
    pairs = make()
    for path in paths:
        try:
            with open_atomic(path) as file:
                np.save(file, pairs)
            write_json(path.with_suffix(".json"), checksum(path))
            return np.load(path, mmap_mode="r")
        except CannotWrite:  # a read-only disk
            continue
    return pairs


def build_pairs(store: Store, max_tokens: int, short_seq_prob: float, rng: random.Random) -> Int[np.ndarray, "N 5"]:
    """One pass over a store: (a_start, a_len, b_start, b_len, label) of each next-sentence pair, in tokens.

    Sentences of a document are collected up to the target length and divided at random into A and B. Half the time,
    and whenever there is only one sentence, B is text of another document instead (label 1), and the unused sentences
    are put back.
    """
    ends = np.asarray(store.sentence_ends).tolist()
    starts = [0, *ends[:-1]]
    documents = np.asarray(store.document_ends).tolist()
    if len(documents) < 2:
        raise UserError(
            "next-sentence pairs need two documents or more, and the split has one: provide more documents, or choose"
            " another layout, such as swapped_pairs or packed"
        )
    pairs: list[tuple[int, int, int, int, int]] = []
    chance, pick = rng.random, rng.randrange
    for document, last in enumerate(documents):
        i = documents[document - 1] if document else 0
        target = pick(2, max_tokens + 1) if chance() < short_seq_prob else max_tokens
        while i < last:
            stop = i + 1
            while stop < last and ends[stop - 1] - starts[i] < target:
                stop += 1
            middle = i + 1 if stop - i < 2 else pick(i + 1, stop)
            a_start, a_len = starts[i], ends[middle - 1] - starts[i]
            label = int(stop - i == 1 or chance() < 0.5)
            if label:
                other = document
                while other == document:
                    other = pick(len(documents))
                begin = pick(documents[other - 1] if other else 0, documents[other])
                until = begin + 1
                while until < documents[other] and ends[until - 1] - starts[begin] < target - a_len:
                    until += 1
                b_start, b_len = starts[begin], ends[until - 1] - starts[begin]
                stop = middle  # put the rest of the chunk back
            else:
                b_start, b_len = starts[middle], ends[stop - 1] - starts[middle]
            if a_len + b_len > max_tokens:
                a_start, a_len, b_start, b_len = _truncate(a_start, a_len, b_start, b_len, max_tokens, rng)
            pairs.append((a_start, a_len, b_start, b_len, label))
            i = stop
    return np.array(pairs, np.int64).reshape(-1, 5)


def build_swapped_pairs(
    store: Store, max_tokens: int, short_seq_prob: float, rng: random.Random
) -> Int[np.ndarray, "N 5"]:
    """One pass over a store: (a_start, a_len, b_start, b_len, label) of each sentence-order pair, in tokens.

    Sentences of a document are collected up to the target length and divided at random into A and B; half the time the
    two are swapped (label 1). The released ALBERT code pairs a single remaining sentence with text of another document,
    which the paper does not mention; here it is paired with the sentence before or after it, so that labels concern
    only order. A document of one sentence gives no pair.
    """
    ends = np.asarray(store.sentence_ends).tolist()
    starts = [0, *ends[:-1]]
    documents = np.asarray(store.document_ends).tolist()
    pairs: list[tuple[int, int, int, int, int]] = []
    chance, pick = rng.random, rng.randrange
    for first, last in zip([0, *documents[:-1]], documents, strict=True):
        target = pick(2, max_tokens + 1) if chance() < short_seq_prob else max_tokens
        i = first
        while i < last and last - first > 1:
            i = min(i, last - 2)
            stop = i + 2
            while stop < last and ends[stop - 1] - starts[i] < target:
                stop += 1
            middle = pick(i + 1, stop)
            a = starts[i], ends[middle - 1] - starts[i]
            b = starts[middle], ends[stop - 1] - starts[middle]
            label = int(chance() < 0.5)
            pair = (*b, *a) if label else (*a, *b)
            if pair[1] + pair[3] > max_tokens:
                pair = _truncate(*pair, max_tokens, rng)
            pairs.append((*pair, label))
            i = stop
    return np.array(pairs, np.int64).reshape(-1, 5)


def _truncate(
    a_start: int, a_len: int, b_start: int, b_len: int, most: int, rng: random.Random
) -> tuple[int, int, int, int]:
    """Cuts tokens one by one, always from the longer side (B if equal), each from front or back with equal chance."""
    excess = a_len + b_len - most
    level = min(excess, abs(a_len - b_len))  # first the longer side is cut to the length of the other
    cut_a, cut_b = (level, 0) if a_len > b_len else (0, level)
    cut_a, cut_b = cut_a + (excess - level) // 2, cut_b + (excess - level + 1) // 2  # then both are cut alternately
    front_a, front_b = ((rng.getrandbits(cut).bit_count() if cut else 0) for cut in (cut_a, cut_b))
    return a_start + front_a, a_len - cut_a, b_start + front_b, b_len - cut_b
