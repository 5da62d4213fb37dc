"""Models that read images: the task that an imported one is for, and prompts with images."""

from collections.abc import Sequence

from bertgpt.data.images.format import ImageFormat
from bertgpt.data.packing import template_of
from bertgpt.inference.generate import prompt_ids
from bertgpt.inference.model import Model
from bertgpt.tasks.image_classification import ImageClassification
from bertgpt.tasks.image_to_text import ImageToText
from bertgpt.tasks.images import ImageFields
from bertgpt.types import JsonObject, Pixels, UserError


def format_of(model: Model) -> ImageFormat:
    """How pictures become the pixels that a model reads: as its run or directory says, else stretched to its size.

    Raises:
      UserError: it reads no images.
    """
    if model.config.image_shape is None:
        raise UserError(f"{model.name}: reads no images")
    frames, height, width, _ = model.config.image_shape
    return model.image_format or ImageFormat(height, width, frames=frames)


def image_task(model: Model) -> ImageClassification | ImageToText | None:
    """The task of a run on images, or what an imported model that reads images is for; None of other models.

    That is the classification of images alone for an encoder with a classifier, and captions for models that write.
    """
    if model.experiment is not None:
        data = model.experiment.data
        return data if isinstance(data, ImageClassification | ImageToText) else None
    if model.config.image_shape is None or model.tokenizer is None:
        return None
    path, fmt = str(model.path), format_of(model)
    if "classifier" in model.params:
        count = model.params["classifier"]["dense"]["bias"].shape[0]
        labels = model.labels.shown or tuple(f"LABEL_{number}" for number in range(count))
        return ImageClassification(path, labels=labels, image=fmt)
    return ImageToText(path, image=fmt) if model.config.architecture == "encoder_decoder" else None


def image_prompts(model: Model, records: Sequence[JsonObject]) -> tuple[list[list[int]], Pixels]:
    """(token ids of prompts, their images), for `bertgpt.generate`.

    Args:
      model: a model that writes and reads images.
      records: each with the field `image` and, for a model that reads text beside it, `prompt`. A run on images reads
        these as the image and the question or prompt of its own task.

    Raises:
      UserError: the model reads no images, or a prompt is missing or has no use.
    """
    fmt, task = format_of(model), image_task(model)
    if isinstance(task, ImageToText):
        names = dict(zip(("image", "prompt"), task.inputs, strict=False))
        for number, record in enumerate(records, start=1):
            if ("prompt" in record) != ("prompt" in names):
                said = "needs a prompt" if "prompt" in names else "reads no prompt"
                raise UserError(f"record {number}: {model.name} {said} beside an image")
        named = [{own: record[name] for name, own in names.items()} for record in records]
        return task.prompts_of(named, model.tokenizer), task.prompt_pixels_of(named)
    ids = prompt_ids(model, [record.get("prompt", "") for record in records])
    start = list(template_of(model.tokenizer.vocab).start)
    pixels = ImageFields(image=fmt).new_pixels(records)
    return [row or start for row in ids], pixels
