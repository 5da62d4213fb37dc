"""Tiny models that read images, with random parameters: runs of each kind of task."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bertgpt.config import Experiment
from bertgpt.data.class_token import ClassToken
from bertgpt.data.images.format import ImageFormat
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.decoding import Decoding
from bertgpt.inference.model import Model
from bertgpt.layers.stack import for_inference
from bertgpt.models.apply import make_apply
from bertgpt.models.bert import BertConfig
from bertgpt.models.captioner import CaptionerConfig
from bertgpt.models.clip import ClipConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.vision_language import PrefixConfig
from bertgpt.models.vit import VitConfig
from bertgpt.objectives.classify import Classify
from bertgpt.objectives.contrast import Contrast
from bertgpt.objectives.seq2seq import ConditionalLM, Seq2Seq
from bertgpt.tasks.image_classification import ImageClassification
from bertgpt.tasks.image_retrieval import ImageTextPairs
from bertgpt.tasks.image_to_text import ImageToText
from bertgpt.training.optim import AdamW
from bertgpt.types import DataConfig, Inputs, ModelConfig, ObjectiveConfig, Params

SHAPES = ("circle", "square", "star")
CUT = ImageFormat(8, 12, resize="shortest", edge=14, crop=True)
"""resizing twice would not be resizing once"""
VIT = VitConfig(d_model=24, num_layers=2, num_heads=3, d_ff=32, image_size=(8, 12), patch_size=4)
SIZE = {"vocab_size": 200, "d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 32, "max_len": 48}
BERT, GPT = BertConfig(**SIZE), GptConfig(**SIZE)


def random_params(config: ModelConfig, num_labels: int | None) -> Params:
    """Parameters at no special value, with those of a classifier of so many labels."""
    ids = jnp.zeros((1, 4), jnp.int32)
    shape = (1, *config.image_shape)

    def touch(module: nn.Module, inputs: Inputs) -> None:
        hidden = module(inputs)
        if num_labels is not None:
            segments = jnp.ones(hidden.shape[:2], jnp.int32)
            module.run(None, "class_logits", None, dict(hidden=hidden, segment_ids=segments, num_labels=num_labels))
        elif "lm_logits" in config.outputs:
            module.run(None, "lm_logits", None, {"hidden": hidden})
        elif "log_scale" in config.outputs:
            module.run(None, "log_scale", None, {})

    inputs = Inputs(ids, images=jnp.zeros(shape, jnp.uint8), decoder=Inputs(ids))
    shapes = nn.unbox(jax.eval_shape(nn.init(touch, config.make()), {"params": jax.random.key(0)}, inputs)["params"])
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape, scale=0.3).astype(np.float32), shapes)


def make_run(
    name: str, config: ModelConfig, objective: ObjectiveConfig, data: DataConfig, tokenizer: Tokenizer
) -> Model:
    """A model of a run that was not trained."""
    labels = len(data.label_set.values) or None
    params = jax.device_put(for_inference(random_params(config, labels), config.stacks, "float32"))
    experiment = Experiment(name, config, objective, data, AdamW(lr=1e-3), steps=1)
    return Model(
        config, tokenizer, make_apply(config.make()), params, Path(name), labels=data.label_set, experiment=experiment,
        objective=objective.make(tokenizer.vocab), image_format=data.image,
    )  # fmt: skip


def make_image_models(tokenizer: Tokenizer, tokenizer_dir: Path) -> dict[str, Model]:
    """Name → model: of each task a run, and models as imports give them."""
    own, image = {"tokenizer": str(tokenizer_dir)}, {"path": "none.jsonl", "image": CUT}
    class_token = ClassToken().make(lambda: iter(()))
    shapes = ImageClassification(**image, labels=SHAPES)
    says = ImageClassification(**image, **own, labels=("false", "true"), text_field="statement", seq_len=12)
    captions = ImageToText(**image, **own, target_len=6)
    answers = ImageToText(**image, **own, source_field="question", architecture="decoder", seq_len=24, target_len=6)
    writer, pairs = CaptionerConfig(VIT, GPT, start_id=3), ImageTextPairs(**image, **own, seq_len=12)
    runs = {
        "shapes": make_run("shapes", VIT, Classify(num_labels=3), shapes, class_token),
        "says": make_run("says", PrefixConfig(VIT, BERT), Classify(num_labels=2), says, tokenizer),
        "captions": make_run("captions", writer, Seq2Seq(), captions, tokenizer),
        "answers": make_run("answers", PrefixConfig(VIT, GPT), ConditionalLM(), answers, tokenizer),
        "clip": make_run("clip", ClipConfig(VIT, GPT, projection_dim=8), Contrast(), pairs, tokenizer),
    }
    imported = {"experiment": None, "objective": None, "image_format": CUT}
    return runs | {
        "vit": runs["shapes"]._replace(**imported, path=Path("vit")),
        "captioner": runs["captions"]._replace(**imported, path=Path("captioner"), decoding=Decoding(max_new_tokens=5)),
    }
