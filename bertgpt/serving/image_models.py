"""What a model that reads images can be asked for, and how pictures are brought to its size."""

import dataclasses

from bertgpt.data.images.format import ImageFormat
from bertgpt.inference.model import Model
from bertgpt.tasks.image_classification import ImageClassification
from bertgpt.tasks.image_to_text import ImageToText


def reads_images(model: Model) -> bool:
    """Whether it is a model of images."""
    return model.config.image_shape is not None


def image_capabilities(model: Model) -> frozenset[str]:
    """What it is for: of a run its task."""
    data = None if model.experiment is None else model.experiment.data
    if isinstance(data, ImageToText):
        return frozenset(("caption" if len(data.inputs) == 1 else "vqa",))
    if isinstance(data, ImageClassification):
        return frozenset(("classify_image" if len(data.inputs) == 1 else "vqa",))
    return frozenset()


def format_of(model: Model) -> ImageFormat:
    """How pictures become the pixels that the model reads."""
    return model.run.data.image


def with_pixels(model: Model, source: ImageFormat) -> Model:
    """The model whose records hold images that have its size already: resizing twice is not resizing once."""
    done = ImageFormat(source.height, source.width, resize="none", frames=source.frames)
    experiment = dataclasses.replace(model.run, data=dataclasses.replace(model.run.data, image=done))
    return model._replace(experiment=experiment)
