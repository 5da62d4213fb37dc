"""What a loaded model can be asked for."""

from bertgpt.inference.class_scores import is_cross_encoder
from bertgpt.inference.embedding import own_embedder
from bertgpt.inference.encode import is_encoder, num_classes
from bertgpt.inference.entailment import entailment_index
from bertgpt.inference.model import Model
from bertgpt.objectives.multitask import OfTask
from bertgpt.objectives.qa import ExtractSpan
from bertgpt.serving.image_models import image_capabilities, reads_images
from bertgpt.tasks.summarization import ExtractiveSummary
from bertgpt.types import GenerationTask

WORDS = (
    "embed", "fill_mask", "classify", "zero_shot", "tag", "qa", "rerank", "generate", "summarize", "translate",
    "tokenize", "attention", "lens", "saliency", "caption", "vqa", "classify_image", "zero_shot_image",
)  # fmt: skip


def capabilities(model: Model) -> frozenset[str]:
    """Words of `WORDS` for what the model has the heads, the tokenizer and the labels for."""
    if reads_images(model):
        return image_capabilities(model)
    if model.tokenizer is None:
        return frozenset()
    found = {"tokenize"}
    encoder, kind = is_encoder(model), model.labels.kind
    has_mlm = encoder and ("mlm_head" in model.params or model.config.mlm_head != "transform")
    if encoder or (own_embedder(model) is not None and model.config.architecture == "decoder"):
        found.add("embed")
    has_mlm = has_mlm and model.tokenizer.vocab.mask is not None
    if has_mlm:
        found |= {"fill_mask", "zero_shot"}
    if "classifier" in model.params and kind != "tag":
        found.add("classify")
    if can_entail(model):
        found.add("zero_shot")
    if model.experiment is not None:
        objective = model.experiment.objective
        objective = objective.objective if isinstance(objective, OfTask) else objective
        found |= {"tag"} if kind == "tag" else {"qa"} if isinstance(objective, ExtractSpan) else set()
        found |= {"classify"} if kind in ("label", "labels", "number") else set()
        found |= {"summarize"} if isinstance(model.experiment.data, GenerationTask | ExtractiveSummary) else set()
        found |= {"translate"} if isinstance(model.experiment.data, GenerationTask) else set()
    elif encoder:
        found |= {word for word, head in (("tag", "tagger"), ("qa", "span_head")) if head in model.params}
    if model.config.architecture == "decoder":
        found |= {"generate", "zero_shot"}
    elif model.config.architecture == "encoder_decoder":
        found |= {"generate", "zero_shot", "summarize", "translate"}
    found |= {"attention"}
    if has_mlm or model.config.architecture != "encoder":
        found.add("lens")
    if "classifier" in model.params and kind != "tag" and len(model.labels.shown) in (0, num_classes(model)):
        found.add("saliency")
    if "embed" in found or is_cross_encoder(model):
        found.add("rerank")
    return frozenset(found)


def can_entail(model: Model) -> bool:
    """Whether it tells if one text implies another: a classifier of pairs with a label for entailment."""
    return "classifier" in model.params and entailment_index(model) is not None
