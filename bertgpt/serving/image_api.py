"""Tasks of models that read images: captions, questions about an image, classes. Images arrive as data URIs in JSON."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from bertgpt.serving.endpoints import Endpoint, ModelRequest
from bertgpt.serving.errors import Refusal
from bertgpt.serving.image_served import ImageServed
from bertgpt.serving.limits import Limits
from bertgpt.serving.pictures import check_images
from bertgpt.serving.rewriting import RewriteAnswer, Written
from bertgpt.serving.tasks import LABEL, Classified, ClassifyAnswer
from bertgpt.types import JsonObject

Image = Annotated[str, Meta(description="an image as a data URI, data:image/png;base64,…: PNG, JPEG, GIF or WebP")]


class ImagesRequest(ModelRequest, kw_only=True):
    """A request about one or several images."""

    inputs: Image | list[Image]
    """an image, or images; models of videos sample the frames of an animated GIF, PNG or WebP"""

    @property
    def images(self) -> list[str]:
        """The images as a list."""
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs


class AskedImage(msgspec.Struct, forbid_unknown_fields=True):
    """A question, or a statement to judge, and the image that it is about."""

    image: Image
    question: str


class VqaRequest(ModelRequest, kw_only=True):
    """A request to /vqa: an image with a question, or a list of them in `inputs`."""

    image: Image | None = None
    question: str | None = None
    """the question, or the statement to judge"""
    inputs: list[AskedImage] | None = None
    """several questions, each with its image"""

    @property
    def asked(self) -> list[AskedImage]:
        """The questions as a list. Errors: Refusal, if there are none."""
        if self.inputs is None:
            for name, value in (("image", self.image), ("question", self.question)):
                if value is None:
                    raise Refusal(422, f"{name} is missing; give image and question, or inputs", param=name)
            return [AskedImage(self.image, self.question)]
        if self.image is not None or self.question is not None:
            raise Refusal(422, "give either image and question, or inputs", param="inputs")
        return self.inputs


class ImageAnswered(msgspec.Struct):
    """The answer to a question about an image."""

    answer: str | None
    probabilities: dict[str, float] | None | UnsetType = UNSET
    """of all answers, where the model chooses one of a fixed list"""


class VqaAnswer(msgspec.Struct):
    """For each question its answer."""

    model: str
    results: list[ImageAnswered]


class ZeroShotImageRequest(ImagesRequest, kw_only=True):
    """A request to /zero-shot-image."""

    labels: list[str]
    """labels to choose from, without training on them"""
    hypothesis: str = f"a photo of a {LABEL}."
    """a sentence with {label}, which is compared with the image"""


async def caption(request: ImagesRequest, served: ImageServed, limits: Limits) -> RewriteAnswer:
    """A caption of each image."""
    records = await read_records(served, request.images, limits, "inputs")
    return RewriteAnswer(served.name, [Written(answer["answer"]) for answer in await served.predict(records)])


async def vqa(request: VqaRequest, served: ImageServed, limits: Limits) -> VqaAnswer:
    """The answer to each question about an image."""
    asked = request.asked
    for item in asked:
        if not item.question.strip():
            raise Refusal(422, "question is empty", param="question")
    param = "image" if request.inputs is None else "inputs"
    records = await read_records(served, [item.image for item in asked], limits, param)
    records = [record | {served.text_field: item.question} for record, item in zip(records, asked, strict=True)]
    found = await served.predict(records)
    return VqaAnswer(served.name, [answered(item) for item in found])


def answered(answer: JsonObject) -> ImageAnswered:
    """What `predict` says of a record: a text, or one of the labels."""
    if "answer" in answer:
        return ImageAnswered(answer["answer"])
    return ImageAnswered(answer["label"], answer["probabilities"])


async def classify_image(request: ImagesRequest, served: ImageServed, limits: Limits) -> ClassifyAnswer:
    """The class of each image."""
    records = await read_records(served, request.images, limits, "inputs")
    return ClassifyAnswer(served.name, [Classified(**answer) for answer in await served.predict(records)])


async def zero_shot_image(request: ZeroShotImageRequest, served: ImageServed, limits: Limits) -> ClassifyAnswer:
    """The label that fits each image best, of labels that the model was not trained on."""
    labels, hypothesis = request.labels, request.hypothesis
    if len(labels) < 2 or len(set(labels)) < len(labels) or not all(word.strip() for word in labels):
        raise Refusal(422, "labels must be two or more different ones, none of them empty", param="labels")
    if len(labels) > limits.max_texts:
        text = f"labels: {len(labels)} labels are more than {limits.max_texts}, which is what a request may have"
        raise Refusal(413, text, param="labels")
    if hypothesis.count(LABEL) != 1 or "{" in hypothesis.replace(LABEL, ""):
        raise Refusal(422, f"hypothesis must have {LABEL} in it once, and no other braces", param="hypothesis")
    records = await read_records(served, request.images, limits, "inputs")
    found = await served.choose(records, labels, hypothesis)  # the most probable first
    results = [Classified(label=next(iter(p)), probability=next(iter(p.values())), probabilities=p) for p in found]
    return ClassifyAnswer(served.name, results)


async def read_records(served: ImageServed, uris: Sequence[str], limits: Limits, param: str) -> list[JsonObject]:
    """Records of decoded images, as the model's task reads them."""
    check_images(uris, limits, param)
    return [{served.image_field: pixels} for pixels in await served.decode(uris, limits, param)]


ENDPOINTS = (
    Endpoint("/caption", ImagesRequest, RewriteAnswer, caption, "caption"),
    Endpoint("/vqa", VqaRequest, VqaAnswer, vqa, "vqa"),
    Endpoint("/classify-image", ImagesRequest, ClassifyAnswer, classify_image, "classify_image"),
    Endpoint("/zero-shot-image", ZeroShotImageRequest, ClassifyAnswer, zero_shot_image, "zero_shot_image"),
)
