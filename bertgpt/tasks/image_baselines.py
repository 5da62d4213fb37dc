"""Predictors without a network for images: the nearest training picture by its pixels, and the most frequent answer."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Float, Int

from bertgpt.data.examples import Example
from bertgpt.data.images.decode import pillow
from bertgpt.data.images.format import ImageFormat
from bertgpt.data.images.reading import ImageReference
from bertgpt.data.images.rows import pixels_of
from bertgpt.data.loader import Batches
from bertgpt.ranges import Range
from bertgpt.tasks.baselines import accuracy
from bertgpt.tasks.generation import Pair
from bertgpt.tasks.image_classification import ImageClassification
from bertgpt.tasks.image_to_text import ImageToText
from bertgpt.types import DataConfig, EvalResult, HeldOut, UserError

ImageTask = ImageClassification | ImageToText


@dataclasses.dataclass(frozen=True)
class NearestImage:
    """Predicts the label or text of the nearest training picture, by the squared difference of downscaled pixels.

    Of a video all frames are compared. Where training examples have the same text or question beside their image,
    only those are candidates. Of equally near pictures the first counts.
    """

    side: Annotated[int, Range(1, 256)] = 16
    """height and width to which pictures are downscaled"""
    name: str = "nearest image"
    """name in tables"""

    def fit(self, data: DataConfig, train: Batches) -> Callable[[HeldOut], EvalResult]:
        """Reads the training pictures; returns a function with the scores of the task on a held-out split.

        Raises:
          UserError: the data is no task with images.
        """
        del train
        known = image_task(data).examples("train")
        rows, pixels = self._thumbnails(known, image_task(data).image)
        members = by_text(known)

        def predict(held_out: HeldOut) -> EvalResult:
            task = image_task(held_out.data)
            examples = task.examples(held_out.split)
            own, theirs = self._thumbnails(examples, task.image)
            distances = squared_distances(theirs, pixels)
            chosen = []
            for example, row in zip(examples, own, strict=True):
                candidates = members.get(text_of(example), members[ALL])
                chosen.append(known[candidates[distances[row, rows[candidates]].argmin()]])
            return evaluate(task, held_out, chosen)

        return predict

    def _thumbnails(
        self, examples: Sequence[Example | Pair], fmt: ImageFormat
    ) -> tuple[Int[np.ndarray, " N"], Float[np.ndarray, "U P"]]:
        """(index of the picture of each example, downscaled pixels of each different picture)."""
        found: dict[tuple[ImageReference, ...], int] = {}
        rows = np.array([found.setdefault(example.images, len(found)) for example in examples])
        image, size = pillow(), (self.side, self.side)
        pixels = []
        for references in found:
            frames = [image.fromarray(frame) for frame in pixels_of(references, fmt)]
            pixels.append([np.asarray(frame.resize(size, image.Resampling.BOX)) for frame in frames])
        return rows, np.array(pixels, np.float64).reshape(len(found), -1)


@dataclasses.dataclass(frozen=True)
class MostFrequentAnswer:
    """Predicts the most frequent training label or text, of those that have the same question, if there are any.

    Of equally frequent ones the first counts.
    """

    name: str = "most frequent answer"
    """name in tables"""

    def fit(self, data: DataConfig, train: Batches) -> Callable[[HeldOut], EvalResult]:
        """Counts the training answers; returns a function with the scores of the task on a held-out split.

        Raises:
          UserError: the data is no task with images.
        """
        del train
        known = image_task(data).examples("train")
        best = {}
        for text, members in by_text(known).items():
            counts = Counter(answer_of(known[i]) for i in members)
            best[text] = next(known[i] for i in members if counts[answer_of(known[i])] == max(counts.values()))

        def predict(held_out: HeldOut) -> EvalResult:
            task = image_task(held_out.data)
            examples = task.examples(held_out.split)
            return evaluate(task, held_out, [best.get(text_of(example), best[ALL]) for example in examples])

        return predict


ALL = None  # in place of a text: all examples


def by_text(examples: Sequence[Example | Pair]) -> dict[Hashable, Int[np.ndarray, " N"]]:
    """Indices of the examples with each text, and of all under ALL."""
    found = defaultdict(list)
    for index, example in enumerate(examples):
        found[text_of(example)].append(index)
    return {ALL: np.arange(len(examples)), **{text: np.array(members) for text, members in found.items()}}


def text_of(example: Example | Pair) -> Hashable:
    """The text or question beside an image."""
    return example.texts if isinstance(example, Example) else example.source


def answer_of(example: Example | Pair) -> Hashable:
    """What is to be predicted: the label, or the first of the texts."""
    return example.label if isinstance(example, Example) else example.targets[0]


def image_task(data: DataConfig) -> ImageTask:
    """The data as a task with images. Raises UserError if it is none."""
    if not isinstance(data, ImageTask):
        raise UserError(f"this baseline is for data of ImageClassification or ImageToText, not {type(data).__name__}")
    return data


def evaluate(task: ImageTask, held_out: HeldOut, chosen: Sequence[Example | Pair]) -> EvalResult:
    """Scores of the answers of one training example for each held-out one: numbers alone, without a contact sheet.

    Raises:
      UserError: the labels of the task are sets or numbers.
    """
    answers = [answer_of(example) for example in chosen]
    if isinstance(task, ImageToText):
        return task.evaluate_texts(held_out.split, answers)._replace(figures=())
    if task.target != "label":
        raise UserError(f"this baseline is for one label of each image, not for target={task.target!r}")
    truth = [example.label for example in task.examples(held_out.split)]
    return accuracy(float(np.mean([answer == label for answer, label in zip(answers, truth, strict=True)])))


def squared_distances(left: Float[np.ndarray, "N P"], right: Float[np.ndarray, "M P"]) -> Float[np.ndarray, "N M"]:
    """Squared distances of all pairs of rows; exact if they hold integers, as pixels are."""
    return (left**2).sum(1)[:, None] + (right**2).sum(1) - 2.0 * left @ right.T
