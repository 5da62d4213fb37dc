"""Images and videos to text: captions, and answers to questions about them. Scored by BLEU or ROUGE and exact match."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Int, UInt8

from bertgpt.data.images.rows import pixels_of
from bertgpt.data.loader import Batches
from bertgpt.data.packing import template_of
from bertgpt.data.sources.records import Record
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.ranges import Range
from bertgpt.tasks.answers import score_answers
from bertgpt.tasks.generation import Pair, TextToText
from bertgpt.tasks.images import ImageFields, evaluate_groups, sheet_sample, strip
from bertgpt.tasks.source import Loaded
from bertgpt.types import DataRequest, EvalResult, JsonObject, Metric, Pixels, Sheet, Split, UserError


@dataclasses.dataclass(frozen=True)
class ImageToText(ImageFields, TextToText):
    """Images or videos with one or several captions each, or with a question and its answers.

    architecture="encoder_decoder" is for models that read the image in their encoder, with Seq2Seq: a Captioner, whose
    encoder reads no text, or T5 behind a prefix of image patches. architecture="decoder" is for GPT behind such a
    prefix, with ConditionalLM. Which split a record belongs to depends on `split_fields` alone.
    """

    source_field: str | None = None
    """column that holds a question or a prompt about the image; None: nothing but `prefix`"""
    target_field: str = "caption"
    """column that holds the caption or answer; a list holds several, to learn from and to score against"""
    seq_len: Annotated[int, Range(1)] = 1
    """tokens that the encoder reads beside the image, 1 without a question; of a decoder question and target"""

    def __post_init__(self):
        super().__post_init__()
        if self.packed:
            raise UserError("ImageToText: packed=True is for texts alone; images belong to one sequence each")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Fields of a record that is to be answered."""
        return (self.image_field,) if self.source_field is None else (self.image_field, self.source_field)

    def load(self, split: Split) -> Loaded:
        """The images of a split, with their questions and targets.

        Raises:
          UserError: a missing column, an empty question or target, or no image at all.
        """
        pairs = [
            Pair(self._source(record), self._targets(record), self.images(record), self.group(record))
            for record in self.records(split)
        ]
        return Loaded(self.selected(pairs, split))

    def _source(self, record: Record) -> str:
        return "" if self.source_field is None else super()._source(record)

    def texts(self, split: Split = "train") -> Iterator[str]:
        """Questions with their prefix, and targets, to train a tokenizer on."""
        yield from filter(None, super().texts(split))

    def make(self, request: DataRequest) -> Batches:
        """Batches of one split; each target makes an example with its image."""
        pairs = self.examples(request.split)
        images = [pair.images for pair in pairs for _ in pair.targets]
        return self.with_images(self._dataset(pairs, request.tokenizer), images, request)

    def _sources(self, texts: Sequence[str], tokenizer: Tokenizer) -> tuple[list[list[int]], int]:
        if self.architecture == "encoder_decoder" and not self.prefix and not any(texts):
            return [[template_of(tokenizer.vocab).end] for _ in texts], 0  # the image is all there is to read
        return super()._sources(texts, tokenizer)

    def prompt_pixels(self, split: Split) -> Pixels:
        """The images that belong to `prompts`."""
        pairs = self.examples(split)

        def pixels(indices: Int[np.ndarray, " B"]) -> UInt8[np.ndarray, "B F H W C"]:
            return np.stack([pixels_of(pairs[index].images, self.image) for index in indices.tolist()])

        return pixels

    def prompt_pixels_of(self, records: Sequence[JsonObject]) -> Pixels:
        """The same of new records; see `ImageFields.new_pixels`."""
        return self.new_pixels(records)

    def evaluate_texts(self, split: Split, texts: Sequence[str]) -> EvalResult:
        """Scores of texts generated for the first images of a split, in order, against all targets of each.

        Beside BLEU or ROUGE: how many texts are equal to a target after lower-casing and without punctuation and
        articles, also of each group, and the mean F1 of their words. The contact sheet marks equal ones as right.
        """
        pairs = self.examples(split)[: len(texts)]
        scores = score_answers(texts, [pair.targets for pair in pairs])
        found = super().evaluate_texts(split, texts).merge(evaluate_groups([p.group for p in pairs], scores.exact > 0))
        words = Metric("exact_match", float(np.mean(scores.exact)), True), Metric("f1", float(np.mean(scores.f1)), True)
        chosen, pixels = sheet_sample(len(texts)), self.prompt_pixels(split)
        captions = []
        for index in chosen.tolist():
            source, targets = pairs[index].source, pairs[index].targets
            truth = [] if scores.exact[index] else [f"truth: {' / '.join(targets)}"]
            captions.append("\n".join([*filter(None, [source]), texts[index] or "(nothing)", *truth]))
        pictures = [strip(pixels(np.array([index]))[0]) for index in chosen]
        sheet = Sheet("examples", pictures, captions, [bool(scores.exact[index]) for index in chosen])
        return found.merge(EvalResult(words, figures=(sheet,)))
