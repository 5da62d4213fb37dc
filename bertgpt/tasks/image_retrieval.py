"""Images and texts that belong together: training of dual encoders, and retrieval in both directions."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from bertgpt.data.examples import Example, TextDataset, encode_texts
from bertgpt.data.images.rows import ImageRows
from bertgpt.data.loader import Batches
from bertgpt.data.sources.records import Record, texts_of
from bertgpt.data.sources.text import clean
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.tasks.baselines import WORD
from bertgpt.tasks.images import ImageFields, Images, WithPixels, sheet_sample, strip
from bertgpt.tasks.similarity import RANKS
from bertgpt.tasks.source import Loaded, TaskFiles, numbered, truncated, warnings_of
from bertgpt.types import (
    PAIR_SPEC,
    DataConfig,
    DataRequest,
    DataWarning,
    EvalResult,
    HeldOut,
    JsonObject,
    Metric,
    Sheet,
    Split,
    Table,
    UserError,
)

CHUNK = 1024  # queries that are ranked at once


@dataclasses.dataclass(frozen=True)
class ImageTextPairs(ImageFields, TaskFiles):
    """Images with the texts that describe them: one text in a record, or a list of them.

    An image that several records name, and a text that several images have, count as the same.
    """

    text_field: str = "text"
    """column that holds the text, or a list of texts of the same image"""

    def __post_init__(self):
        super().__post_init__()
        if self.group_field is not None:
            raise UserError(f"ImageTextPairs: group_field={self.group_field!r} must be None: recall has no groups")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Fields of a record that is to be predicted."""
        return self.image_field, self.text_field

    def texts(self, split: Split = "train") -> Iterator[str]:
        """Every text of a split, to train a tokenizer on."""
        for record in self.records(split):
            yield from self._texts(record)

    def load(self, split: Split) -> Loaded:
        """The pairs of a split.

        Empty texts, and pairs that repeat earlier ones, are skipped in training and in splits that are cut from `path`.

        Raises:
          UserError: a column is missing, or there is no pair.
        """
        whole = self.own_file(split) is not None
        found: list[Example] = []
        seen: set[tuple] = set()
        empty = repeated = 0
        for record in self.records(split):
            images = self.images(record)
            for text in self._texts(record):
                key = (image_key(images), clean(text, strip_html=False))
                empty += not key[1]
                repeated += key in seen
                if whole or (key[1] and key not in seen):
                    found.append(Example((text,), images=images))
                seen.add(key)
        what = "are scored too" if whole else "are skipped"
        warnings = warnings_of(
            DataWarning("empty", empty, f"empty texts {what}"),
            DataWarning("repeated", repeated, f"pairs of image and text repeat earlier ones and {what}"),
        )
        return Loaded(self.selected(found, split), warnings)

    def _texts(self, record: Record) -> list[str]:
        return [self.plain(text) for text in texts_of(record, self.text_field)]

    def _dataset(
        self, pairs: Sequence[Example], tokenizer: Tokenizer, warnings: tuple[DataWarning, ...] = ()
    ) -> TextDataset:
        """The texts of pairs, and the numbers of both: equal ones are the same."""
        encoded = encode_texts(tokenizer, [pair.texts for pair in pairs], self.seq_len)
        warnings += warnings_of(truncated(encoded.truncated, len(pairs), "texts", self.seq_len))
        numbers = {
            "image_id": numbered_by([image_key(pair.images) for pair in pairs]),
            "text_id": numbered_by([clean(pair.texts[0], strip_html=False) for pair in pairs]),
        }
        return TextDataset(encoded, self.seq_len, numbers, PAIR_SPEC, warnings, pairs)

    def make(self, request: DataRequest) -> Batches:
        """Batches of one split; pictures are decoded when they are used."""
        pairs, warnings = self.load(request.split)
        dataset = self._dataset(pairs, request.tokenizer, warnings)
        return self.with_images(dataset, [pair.images for pair in pairs], request)

    def predict_batches(self, records: Sequence[JsonObject], batch_size: int, tokenizer: Tokenizer) -> Batches:
        """Batches of new pairs, in order; their images: see `ImageFields.new_pixels`.

        Raises:
          UserError: a record has several texts, or no picture.
        """
        pixels, pairs = self.new_pixels(records), []
        texts = numbered([{self.text_field: record.get(self.text_field)} for record in records])
        for record in texts:
            own = self._texts(record)
            if len(own) != 1:
                raise UserError(f"{record.file}:{record.line}: {self.text_field!r} must be one text")
            pairs.append(Example((own[0],)))
        return Batches(WithPixels(self._dataset(pairs, tokenizer), pixels), batch_size, 0, shuffle=False)

    def describe(self, dataset: ImageRows | WithPixels, outputs: dict[str, np.ndarray]) -> Iterator[JsonObject]:
        """What `predict` prints for each pair: the cosine of image and text."""
        del dataset
        cosines = np.sum(outputs["image"] * outputs["text"], axis=1)
        yield from ({"similarity": round(float(value), 4)} for value in cosines)

    def evaluate(self, dataset: ImageRows, outputs: dict[str, np.ndarray]) -> EvalResult:
        """Retrieval of all texts of the split by its images and the other way round, and some pictures with theirs."""
        found = evaluate_pairs(outputs["image"], outputs["text"], dataset.dataset.extra)
        return found._replace(figures=(contact_sheet(dataset, outputs["image"], outputs["text"]),))


def image_key(images: Images) -> tuple[tuple[str, str], ...]:
    """Equal for the same image, whichever record names it."""
    return tuple((reference.file, reference.member) for reference in images)


def numbered_by(keys: Sequence[object]) -> Int[np.ndarray, " N"]:
    """The number of each key, in the order in which they first occur."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], np.int32)


# -- scores -----------------------------------------------------------------------------------------------------------


class Sides(NamedTuple):
    """The different images and the different texts of a split."""

    images: Float[np.ndarray, "I D"]
    texts: Float[np.ndarray, "T D"]
    related: Int[np.ndarray, "K 2"]
    """(image, text) that belong together, each pair once"""


def sides(images: Float[np.ndarray, "N D"], texts: Float[np.ndarray, "N D"], numbers: dict[str, np.ndarray]) -> Sides:
    """The vectors of each image and each text once, of those of all pairs."""
    _, first_image, image = np.unique(numbers["image_id"], return_index=True, return_inverse=True)
    _, first_text, text = np.unique(numbers["text_id"], return_index=True, return_inverse=True)
    return Sides(images[first_image], texts[first_text], np.unique(np.stack([image, text], axis=1), axis=0))


def evaluate_pairs(
    images: Float[np.ndarray, "N D"], texts: Float[np.ndarray, "N D"], numbers: dict[str, np.ndarray]
) -> EvalResult:
    """Recall at several ranks: how often one of the answers that belong to a query is among the nearest so many.

    Every image is compared with every text of the split. Answers that are equally near are in random order: the recall
    is its expectation.

    Args:
      images: the vector of the image of each pair.
      texts: the vector of the text of each pair.
      numbers: image_id and text_id of each pair.
    """
    each = sides(images, texts, numbers)
    ways = {
        "image_to_text": rank(each.images, each.texts, each.related),
        "text_to_image": rank(each.texts, each.images, each.related[:, ::-1]),
    }
    metrics = [
        Metric(f"{way}_recall_at_{n}", recall_at(n, places), True) for way, places in ways.items() for n in RANKS
    ]
    metrics += [
        Metric(f"{way}_median_rank", float(np.median(places.nearer + places.wrong / 2)) + 1, False)
        for way, places in ways.items()
    ]
    counts = [f"{len(each.images):,}", f"{len(each.texts):,}", f"{len(each.related):,}"]
    return EvalResult(tuple(metrics), (Table("retrieval", ("images", "texts", "pairs"), [counts]),))


class Places(NamedTuple):
    """Where the nearest right answer of each query is among all answers."""

    nearer: Int[np.ndarray, " Q"]
    """how many wrong answers are nearer"""
    wrong: Int[np.ndarray, " Q"]
    """how many wrong answers are exactly as near"""
    right: Int[np.ndarray, " Q"]
    """how many right answers are as near, itself included"""


def rank(
    queries: Float[np.ndarray, "Q D"], answers: Float[np.ndarray, "A D"], related: Int[np.ndarray, "K 2"]
) -> Places:
    """Ranks all answers for each query; `related` are the indices of queries and of their right answers."""
    found = []
    for start in range(0, len(queries), CHUNK):  # a thousand queries at a time bound the memory
        cosines = queries[start : start + CHUNK] @ answers.T
        right = relation(related, start, cosines.shape)
        best = np.max(np.where(right, cosines, -np.inf), axis=1, keepdims=True)
        found.append([np.sum(x, axis=1) for x in ((cosines > best) & ~right, (cosines == best) & ~right,
                                                  (cosines == best) & right)])  # fmt: skip
    return Places(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def recall_at(n: int, places: Places) -> float:
    """Fraction of queries with a right answer among the nearest n."""
    hits = [
        chance_of_hit(right, wrong + right, n - nearer) if wrong else float(nearer < n)
        for nearer, wrong, right in zip(*(part.tolist() for part in places), strict=True)
    ]
    return float(np.mean(hits))


def chance_of_hit(right: int, count: int, n: int) -> float:
    """Probability that n of `count` answers, drawn at random, include one of those that are right."""
    return 1.0 - math.comb(count - right, max(n, 0)) / math.comb(count, max(n, 0)) if n < count else 1.0


def relation(related: Int[np.ndarray, "K 2"], start: int, shape: tuple[int, int]) -> Bool[np.ndarray, "Q A"]:
    """Whether each answer belongs to each of the queries from `start` on."""
    right = np.zeros(shape, bool)
    own = related[(related[:, 0] >= start) & (related[:, 0] < start + shape[0])]
    right[own[:, 0] - start, own[:, 1]] = True
    return right


def contact_sheet(dataset: ImageRows, images: Float[np.ndarray, "N D"], texts: Float[np.ndarray, "N D"]) -> Sheet:
    """Some pictures of the split with the text that is nearest to each, of all texts."""
    numbers, pairs = dataset.dataset.extra, dataset.dataset.examples
    _, first = np.unique(numbers["image_id"], return_index=True)
    chosen = first[sheet_sample(len(first))]
    nearest = np.argmax(images[chosen] @ texts.T, axis=1)
    right = set(zip(numbers["image_id"].tolist(), numbers["text_id"].tolist(), strict=True))
    hits = [
        (int(numbers["image_id"][i]), int(numbers["text_id"][t])) in right for i, t in zip(chosen, nearest, strict=True)
    ]
    pixels = [strip(frames) for frames in dataset.pixels(chosen)]
    return Sheet("retrieved", pixels, [pairs[t].texts[0] for t in nearest], hits)


# -- baselines --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RandomRanking:
    """Ranks the answers at random: the expected recall, computed and not drawn."""

    name: str = "chance"
    """name in tables"""

    def fit(self, data: DataConfig, train: Batches) -> Callable[[HeldOut], EvalResult]:
        """Learns nothing; returns a function that computes the expected recall on held-out pairs."""
        del data, train

        def predict(held_out: HeldOut) -> EvalResult:
            numbers = paired(held_out.batches)[1]
            one = np.zeros((len(numbers["image_id"]), 1))
            each = sides(one, one, numbers)
            metrics = []
            for way, query, count in (("image_to_text", 0, len(each.texts)), ("text_to_image", 1, len(each.images))):
                right = np.bincount(each.related[:, query])
                for n in RANKS:
                    recall = np.mean([chance_of_hit(int(r), count, n) for r in right])
                    metrics.append(Metric(f"{way}_recall_at_{n}", float(recall), True))
            return EvalResult(tuple(metrics))

        return predict


@dataclasses.dataclass(frozen=True)
class NearestPicture:
    """Gives each image the texts of the training image whose pixels are nearest, and compares words.

    The similarity of an image and a text is the cosine of their sets of words: |A ∩ B| / √(|A| |B|).
    """

    name: str = "words of the nearest training picture"
    """name in tables"""

    def fit(self, data: DataConfig, train: Batches) -> Callable[[HeldOut], EvalResult]:
        """Keeps the training images; returns a function that scores retrieval on held-out pairs.

        Raises:
          UserError: the data is not of `ImageTextPairs`.
        """
        del data
        rows, numbers, pairs = paired(train)
        ids, first = np.unique(numbers["image_id"], return_index=True)
        pixels = flat_pixels(rows, first)
        words: list[set[str]] = [set() for _ in ids]
        for number, pair in zip(numbers["image_id"], pairs, strict=True):
            words[number] |= words_of(pair.texts[0])

        def predict(held_out: HeldOut) -> EvalResult:
            rows, numbers, pairs = paired(held_out.batches)
            nearest = np.concatenate([
                nearest_rows(flat_pixels(rows, np.arange(len(pairs))[start : start + CHUNK]), pixels)
                for start in range(0, len(pairs), CHUNK)
            ])  # fmt: skip
            texts = [words_of(pair.texts[0]) for pair in pairs]
            index = numbers_of_words([*words, *texts])
            guessed = word_vectors([words[i] for i in nearest], index)
            return evaluate_pairs(guessed, word_vectors(texts, index), numbers)

        return predict


def paired(batches: Batches) -> tuple[ImageRows, dict[str, np.ndarray], Sequence[Example]]:
    """(images, numbers of images and texts, pairs) of batches. Raises UserError if they hold something else."""
    rows = batches.dataset
    if not isinstance(rows, ImageRows) or not isinstance(rows.dataset, TextDataset) or "text_id" not in rows.spec:
        raise UserError("this baseline is for images and texts: remove it, or use data of ImageTextPairs")
    return rows, rows.dataset.extra, rows.dataset.examples


def flat_pixels(rows: ImageRows, indices: Int[np.ndarray, " N"]) -> Float[np.ndarray, "N P"]:
    """The pixels of images as vectors of numbers in [0, 1]."""
    return rows.pixels(indices).reshape(len(indices), -1).astype(np.float32) / 255.0


def nearest_rows(x: Float[np.ndarray, "N P"], among: Float[np.ndarray, "M P"]) -> Int[np.ndarray, " N"]:
    """Index of the vector with the smallest squared distance to each."""
    return np.argmin(np.sum(np.square(among), axis=1) - 2.0 * x @ among.T, axis=1)


def words_of(text: str) -> set[str]:
    """The different words of a text, in lower case; each Chinese or Japanese character is a word."""
    return set(re.findall(WORD, text.lower()))


def numbers_of_words(sets: Sequence[set[str]]) -> dict[str, int]:
    """Word → its number."""
    return {word: number for number, word in enumerate(sorted(set().union(*sets)))}


def word_vectors(sets: Sequence[set[str]], index: dict[str, int]) -> Float[np.ndarray, "N V"]:
    """Unit vectors with one axis for each word; 0 for a text without words."""
    found = np.zeros((len(sets), len(index)), np.float32)
    for row, words in zip(found, sets, strict=True):
        row[[index[word] for word in words]] = len(words) ** -0.5 if words else 0.0
    return found
