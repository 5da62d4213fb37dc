"""What a loaded model can be asked for."""

from bertgpt.inference.class_scores import is_cross_encoder
from bertgpt.inference.embedding import own_embedder
from bertgpt.inference.encode import is_encoder
from bertgpt.inference.model import Model
from bertgpt.objectives.multitask import OfTask
from bertgpt.objectives.qa import ExtractSpan
from bertgpt.types import GenerationTask

WORDS = (
    "embed", "fill_mask", "classify", "zero_shot", "tag", "qa", "rerank", "generate", "summarize", "translate",
    "tokenize", "attention", "lens", "saliency",
)  # fmt: skip


def capabilities(model: Model) -> frozenset[str]:
    """Words of `WORDS` for what the model has the heads, the tokenizer and the labels for."""
    if model.tokenizer is None:
        return frozenset()
    found = {"tokenize"}
    encoder, kind = is_encoder(model), model.labels.kind
    has_mlm = encoder and ("mlm_head" in model.params or model.config.mlm_head != "transform")
    if encoder or (own_embedder(model) is not None and model.config.architecture == "decoder"):
        found.add("embed")
    if has_mlm and model.tokenizer.vocab.mask is not None:
        found |= {"fill_mask", "zero_shot"}
    if "classifier" in model.params and kind != "tag":
        found.add("classify")
    if model.experiment is not None:
        objective = model.experiment.objective
        objective = objective.objective if isinstance(objective, OfTask) else objective
        found |= {"tag"} if kind == "tag" else {"qa"} if isinstance(objective, ExtractSpan) else set()
        found |= {"classify"} if kind in ("label", "labels", "number") else set()
    if model.config.architecture == "decoder":
        found.add("generate")
    elif model.config.architecture == "encoder_decoder":
        found |= {"generate", "summarize", "translate"}
    elif model.experiment is not None and isinstance(model.experiment.data, GenerationTask):
        found |= {"summarize", "translate"}
    if "embed" in found or is_cross_encoder(model):
        found.add("rerank")
    return frozenset(found)
