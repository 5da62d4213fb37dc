"""What a model that reads images can be asked for, and how pictures are brought to its size."""

import dataclasses

from bertgpt.data.images.format import ImageFormat
from bertgpt.inference.image_tasks import image_task
from bertgpt.inference.image_text import compares_images
from bertgpt.inference.model import Model
from bertgpt.tasks.image_classification import ImageClassification


def reads_images(model: Model) -> bool:
    """Whether it is a model of images."""
    return model.config.image_shape is not None


def image_capabilities(model: Model) -> frozenset[str]:
    """What it is for: of a run its task, of other models what its head or architecture is for."""
    if compares_images(model):
        return frozenset() if model.tokenizer is None else frozenset(("zero_shot_image",))
    task = image_task(model)
    if task is None:
        return frozenset()
    alone = "classify_image" if isinstance(task, ImageClassification) else "caption"
    return frozenset((alone if len(task.inputs) == 1 else "vqa",))


def with_pixels(model: Model, source: ImageFormat) -> Model:
    """The model whose records hold images that have its size already: resizing twice is not resizing once."""
    done = ImageFormat(source.height, source.width, resize="none", frames=source.frames)
    if model.experiment is not None:
        data = dataclasses.replace(model.experiment.data, image=done)
        model = model._replace(experiment=dataclasses.replace(model.experiment, data=data))
    return model._replace(image_format=done)
