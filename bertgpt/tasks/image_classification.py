"""Classification of images and videos, alone or with a statement or a question about them."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool

from bertgpt.data.class_token import ClassToken
from bertgpt.data.examples import EncodedTexts, Example
from bertgpt.data.images.rows import ImageRows
from bertgpt.data.loader import Batches
from bertgpt.data.sources.records import Record
from bertgpt.data.tokenizer import ByteBPE, SentencePiece, Tokenizer, WordPiece
from bertgpt.ranges import Range
from bertgpt.tasks.classification import TextClassification, equal_numbers
from bertgpt.tasks.images import ImageFields, WithPixels, evaluate_groups, sheet_sample, strip
from bertgpt.tasks.source import Collected, Loaded, warnings_of
from bertgpt.types import (
    DataRequest,
    DataWarning,
    EvalResult,
    JsonObject,
    Sheet,
    Split,
    UserError,
)


@dataclasses.dataclass(frozen=True)
class ImageClassification(ImageFields, TextClassification):
    """Images or videos with a label, several labels or a number each; with `text_field` also a text beside each image.

    Without texts a ViT reads the class token and the patches: keep `tokenizer` and `seq_len` as they are. A statement
    about an image (NLVR: Suhr et al. 2017) or a question with a closed set of answers (VQA: Antol et al. 2015) is read
    by a vision–language model, for which `tokenizer` and `seq_len` are set as for texts.

    Which split a record belongs to depends on `split_fields` alone, so that all questions about an image are held out
    together. In training, and in splits that are cut from `path`, records that repeat image and text are skipped.
    """

    text_field: str | None = None
    """column that holds a statement or a question about the image; None: images alone"""
    tokenizer: ClassToken | WordPiece | ByteBPE | SentencePiece | str | None = ClassToken()
    """of the texts; ClassToken() without them"""
    seq_len: Annotated[int, Range(1)] = 1
    """tokens of a text, special tokens included; 1 without texts: the class token"""
    each_image: bool = False
    """each picture of a list is an example of its own with the same text and label, in place of a frame of a video"""

    def __post_init__(self):
        super().__post_init__()
        if self.packed:
            raise UserError("ImageClassification: packed=True is for texts alone; images belong to one sequence each")
        if self.second_field is not None:
            raise UserError("ImageClassification: second_field is for pairs of texts; one text stands beside an image")
        if self.text_field is None and not isinstance(self.tokenizer, ClassToken):
            raise UserError("ImageClassification: tokenizer is for texts: set text_field, or leave it at ClassToken()")
        if self.text_field is not None and isinstance(self.tokenizer, ClassToken):
            raise UserError("ImageClassification: text_field needs a tokenizer (and seq_len)")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Fields of a record that is to be predicted."""
        return (self.image_field,) if self.text_field is None else (self.image_field, self.text_field)

    def texts(self, split: Split = "train") -> Iterator[str]:
        """Every text of a split, to train a tokenizer on."""
        if self.text_field is not None:
            yield from (self.text(record, self.text_field) for record in self.records(split))

    def load(self, split: Split) -> Loaded:
        """The images of a split, with their texts and labels.

        Raises:
          UserError: a label that is not in `labels`, a missing column, or no image at all.
        """
        indices = {label: i for i, label in enumerate(self.labels)}
        collected = Collected[Any](whole=self.own_file(split) is not None, deduplicate=self.deduplicate)
        unlabelled, found = 0, []
        for record in self.records(split):
            labels, texts, images = self._labels(record), self._texts(record), self.images(record)
            if labels == [""]:
                unlabelled += 1
                continue
            label = self._target(record, labels, indices)
            for some in [(image,) for image in images] if self.each_image else [images]:
                collected.add((*(f"{image.file}:{image.member}" for image in some), *texts), label)
                if len(collected.found) > len(found):  # it is not skipped
                    found.append(Example(texts, label, some, self.group(record)))
        examples = self.selected(found, split)
        missing = DataWarning("unlabelled", unlabelled, "images without a label are skipped")
        skipped = [w._replace(text=w.text.replace("texts", "examples")) for w in collected.warnings]
        return Loaded(examples, (*warnings_of(missing, equal_numbers(self.labels)), *skipped))

    def _texts(self, record: Record) -> tuple[str, ...]:
        return () if self.text_field is None else (self.text(record, self.text_field),)

    # -- batches ------------------------------------------------------------------------------------------------------

    def make(self, request: DataRequest) -> Batches:
        """Batches of one split; pictures are decoded when a batch is gathered."""
        examples, warnings = self.load(request.split)
        dataset = self._dataset(examples, self._targets(examples), request.tokenizer, warnings)
        return self.with_images(dataset, [example.images for example in examples], request)

    def predict_batches(self, records: Sequence[JsonObject], batch_size: int, tokenizer: Tokenizer) -> Batches:
        """Batches of new records, in order, without labels. Their images: see `ImageFields.new_pixels`."""
        pixels, texts = self.new_pixels(records), super().predict_batches(records, batch_size, tokenizer).dataset
        return Batches(WithPixels(texts, pixels), batch_size, 0, shuffle=False)

    def _encode(self, examples: Sequence[Example], tokenizer: Tokenizer) -> EncodedTexts:
        if self.text_field is not None:
            return super()._encode(examples, tokenizer)
        return EncodedTexts([[tokenizer.vocab.cls or 0]] * len(examples), np.ones(len(examples), np.int32), 0, 0)

    # -- scores -------------------------------------------------------------------------------------------------------

    def describe(self, dataset: ImageRows | WithPixels, outputs: dict[str, np.ndarray]) -> Iterator[JsonObject]:
        """What `predict` prints for each record: see `TextClassification.describe`."""
        return super().describe(dataset.dataset, outputs)

    def evaluate(self, dataset: ImageRows, outputs: dict[str, np.ndarray]) -> EvalResult:
        """Scores as those of `TextClassification`, the accuracy of each group, and a contact sheet."""
        found = super().evaluate(dataset.dataset, outputs)
        columns = {"texts": "examples"}
        tables = [table._replace(columns=[columns.get(name, name) for name in table.columns]) for table in found.tables]
        right = self._right(dataset, outputs)
        sheet = self._sheet(dataset, outputs, right)
        groups = (
            EvalResult()
            if right is None
            else evaluate_groups([example.group for example in dataset.dataset.examples], right)
        )
        return found._replace(tables=tuple(tables), figures=(*found.figures, sheet)).merge(groups)

    def _right(self, dataset: ImageRows, outputs: dict[str, np.ndarray]) -> Bool[np.ndarray, " N"] | None:
        """Which predictions are those of the file; None where they are numbers."""
        truth = dataset.dataset.extra["label"]
        if self.target == "label":
            return self._predicted(dataset.dataset, outputs) == truth
        return ((outputs["probabilities"] > 0.5) == truth).all(-1) if self.target == "labels" else None

    def _sheet(self, dataset: ImageRows, outputs: dict[str, np.ndarray], right: Bool[np.ndarray, " N"] | None) -> Sheet:
        chosen = sheet_sample(len(dataset))
        captions = []
        answers = self.describe(dataset, {name: values[chosen] for name, values in outputs.items()})
        for index, answer in zip(chosen.tolist(), answers, strict=True):
            example = dataset.dataset.examples[index]
            truth = [] if right is not None and right[index] else [f"truth: {self._shown(example.label)}"]
            captions.append("\n".join([*example.texts, shown_answer(answer), *truth]))
        pictures = [strip(dataset.pixels(np.array([index]))[0]) for index in chosen]
        return Sheet("examples", pictures, captions, () if right is None else right[chosen].tolist())

    def _shown(self, label: int | float | tuple[int, ...]) -> str:
        names = self.label_set.shown
        if self.target == "number":
            return f"{label:g}"
        return names[label] if self.target == "label" else ", ".join(names[i] for i in label) or "none"


def shown_answer(answer: JsonObject) -> str:
    """What `predict` says of an example, in short."""
    if "label" in answer:
        return f"{answer['label']} ({answer['probability']:.2f})"
    return f"{answer['value']:g}" if "value" in answer else ", ".join(answer["labels"]) or "none"
