"""One model of a pretrained ViT and a pretrained language model, from which training starts (`init_from`)."""

import dataclasses
import logging
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt.adaptation.init_from import load_pretrained
from bertgpt.inference.export import write_model
from bertgpt.inference.model import Model, load, resolve
from bertgpt.models.apply import initial_parameters
from bertgpt.models.bert import BertConfig
from bertgpt.models.captioner import CaptionerConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import T5Config
from bertgpt.models.vision_language import Features, Layer, PrefixConfig, ProjectorKind
from bertgpt.models.vit import VitConfig, vision_of
from bertgpt.types import Inputs, Params, UserError

log = logging.getLogger(__name__)

Join = Literal["prefix", "captioner"]


@dataclasses.dataclass(frozen=True)
class Joining:
    """How the two models are joined."""

    join: Join = "prefix"
    """prefix: the image's vectors stand before the tokens (LLaVA); captioner: cross-attention is added to a decoder"""
    projector: ProjectorKind = "mlp"
    """of a prefix: one layer, two with GELU, or ClipCap's"""
    features: Features = "patches"
    """of a prefix: which of the ViT's vectors are projected"""
    layer: Layer = "last"
    """of a prefix: after which of the ViT's blocks; LLaVA reads CLIP's penultimate one"""


def compose(
    vision: str | Path, language: str | Path, directory: str | Path, how: Joining | None = None, seed: int = 0
) -> Model:
    """Joins two pretrained models and writes the result in bertgpt's format, with the language model's tokenizer.

    What neither has, the projector or the layers of cross-attention, is initialised at random and is to be trained.

    Args:
      vision: a ViT, or a model with one, such as a CLIP: a run, a converted model, a Hugging Face directory or id.
      language: a GPT, T5 or BERT, likewise.
      directory: a new or empty one, which `Experiment.init_from` can name.
      how: how they are joined; None: as a prefix, by two layers.
      seed: of the parameters that are initialised.

    Returns:
      The model, with parameters on the host; its `report` says which were loaded, initialised and left out.

    Raises:
      UserError: the first has no ViT, the second is no language model that this way of joining supports, or the
        directory is not empty.

    Examples:
      >>> from bertgpt.inference.compose import Joining, compose
      >>> clip, gpt2 = "openai/clip-vit-large-patch14", "openai-community/gpt2-xl"
      >>> compose(clip, gpt2, "runs/start", Joining(layer="penultimate"))  # doctest: +SKIP
    """
    how = how or Joining()
    eye, voice = (load(resolve(name), arrange="host") for name in (vision, language))
    tower = vision_of(eye.config)
    if tower is None:
        raise UserError(f"{vision}: {type(eye.config).__name__.removesuffix('Config')} has no part that reads images")
    config = joined_config(tower, voice, str(language), how)
    seen = eye.params if isinstance(eye.config, VitConfig) else eye.params["vision"]
    params, report = join_parameters(config, {"vision": seen, "language": voice.params}, seed)
    model = voice._replace(
        config=config, params=params, path=Path(directory), labels=Model._field_defaults["labels"], experiment=None,
        objective=None, architecture=None, embedder=None, image_format=eye.image_format, report=report,
    )  # fmt: skip
    write_model(model, Path(directory))
    return model


def joined_config(tower: VitConfig, voice: Model, name: str, how: Joining) -> PrefixConfig | CaptionerConfig:
    """The config of the whole. Errors: UserError, see `compose`."""
    language = voice.config
    known = (GptConfig, BertConfig) if how.join == "captioner" else (GptConfig, BertConfig, T5Config)
    if not isinstance(language, known):
        names = ", ".join(kind.__name__.removesuffix("Config") for kind in known)
        raise UserError(f"{name}: {type(language).__name__.removesuffix('Config')} is not one of {names}")
    if how.join == "prefix":
        return PrefixConfig(tower, language, how.projector, how.features, how.layer)
    vocab = None if voice.tokenizer is None else voice.tokenizer.vocab
    # Seq2Seq trains it to start with the padding token; GPT-2 has none, and its texts begin with the end token.
    starts = () if vocab is None else (vocab.pad, vocab.bos, vocab.eos, vocab.cls)
    start = next((token for token in starts if token is not None), 0)
    return CaptionerConfig(tower, language, start_id=start)


def join_parameters(
    config: PrefixConfig | CaptionerConfig, parts: Params, seed: int
) -> tuple[Params, dict[str, list[str]]]:
    """The parameters of the whole on the host, and the report of `load_pretrained`."""
    ids = jnp.zeros((1, 1), jnp.int32)
    images = jnp.zeros((1, *config.image_shape), jnp.uint8)
    heads = {"lm_logits": {}} if config.architecture != "encoder" else {}
    inputs = Inputs(ids, images=images, decoder=Inputs(ids))
    params = initial_parameters(config.make(), inputs, heads, seed)
    params, report = load_pretrained(params, parts)
    for kind, text in (("initialised", "are new, and are to be trained"), ("unused", "have no part in the whole")):
        names = dict.fromkeys("/".join(name.split("/")[:3]) for name in report[kind])
        if names:
            log.warning("compose: %d parameters %s: %s", len(report[kind]), text, ", ".join(names))
    return jax.tree.map(np.asarray, params), report
