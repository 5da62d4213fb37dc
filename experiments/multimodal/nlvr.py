"""Cornell NLVR: is a statement true of a picture? With 800 labelled statements, and synthetic ones.

Question   What do 160,000 synthetic statements about drawn pictures add to the few labelled ones? Is seeing the limit?
Run        python -m bertgpt.experiments.multimodal.nlvr_data data/nlvr    # beside the official files
           bertgpt train multimodal/nlvr:synthetic; then :tuned, which starts from it (:scratch does not)
           :text sees no picture; :symbols, after :symbols_synthetic, reads the objects as words, an upper bound.
Hardware   1 CPU core, 8 minutes per arm
Expect     Test-P, with 12,409 training statements (Suhr et al. 2017): majority 0.56, text 0.57, neural networks 0.66
Got        text: 0.569 on test-P, 0.547 on test-H (majority 0.562, 0.554), 2 minutes. All other arms: not run.
           Of 200 pictures drawn from `structured_rep`, no pixel differs from NLVR's by more than 64 of 255.
"""

import dataclasses

from bertgpt.config import Eval, Experiment
from bertgpt.data.images.format import ImageFormat
from bertgpt.data.tokenizer import WordPiece
from bertgpt.models.bert import BertConfig
from bertgpt.models.vision_language import PrefixConfig
from bertgpt.models.vit import VitConfig
from bertgpt.objectives.classify import Classify
from bertgpt.tasks.baselines import Majority
from bertgpt.tasks.classification import TextClassification
from bertgpt.tasks.image_baselines import MostFrequentAnswer
from bertgpt.tasks.image_classification import ImageClassification
from bertgpt.training.optim import AdamW

SIZE = {"d_model": 96, "num_heads": 4, "d_ff": 384, "dropout": 0.0, "attention_dropout": 0.0}
LANGUAGE = BertConfig(vocab_size=600, num_layers=3, max_len=96, norm_position="pre", pooler="first", **SIZE)
GREY = {"image_mean": (211 / 255,) * 3, "image_std": (0.25,) * 3}  # the background of a box becomes 0
VISION = VitConfig(num_layers=2, image_size=(100, 400), patch_size=50, **GREY, **SIZE)
WORDS = {"text_field": "sentence", "tokenizer": WordPiece(vocab_size=600), "test": 0.0}
DEV = ImageClassification(
    "data/nlvr/dev_boxes.jsonl", image_root="data/nlvr/{}_images.tar", image_field="images", each_image=True,
    image=ImageFormat(100, 400, resize="none"), split_fields=("sentence",), seq_len=40, validation=0.15, **WORDS,
)  # fmt: skip
TEXT = TextClassification("data/nlvr/dev_boxes.jsonl", seq_len=40, deduplicate=False, validation=0.15, **WORDS)
SYMBOLS, SYNTHETIC = dataclasses.replace(TEXT, second_field="scene", seq_len=96), {"path": "data/nlvr/synthetic.jsonl"}


def arm(name: str, data: TextClassification, start: str | None = None, steps: int = 6000) -> Experiment:
    """An arm, scored on both official test splits, whole: one decision for each of 990 and 985 statements."""
    sees = isinstance(data, ImageClassification)
    own, end = ({"each_image": False, "image_field": "images"}, ".jsonl.gz") if sees else ({}, "_boxes.jsonl")
    p, h = (dataclasses.replace(data, test_path=f"data/nlvr/{file}{end}", **own) for file in ("test", "hidden"))
    evals = (Eval("validation", "validation", 50), Eval("test_p", "test", data=p), Eval("test_h", "test", data=h))
    optim = AdamW(lr=1e-3 if steps > 1000 else 3e-4, warmup_steps=100, b2=0.98, bias_correction=True)
    model, known = (PrefixConfig(VISION, LANGUAGE), (MostFrequentAnswer(),)) if sees else (LANGUAGE, (Majority(),))
    return Experiment(name, model, Classify(), data, optim, steps, init_from=start, evals=evals, baselines=known)


ARMS = {
    "tuned": arm("nlvr.tuned", dataclasses.replace(DEV, tokenizer=None), "nlvr.synthetic", 600),
    "synthetic": arm("nlvr.synthetic", dataclasses.replace(DEV, **SYNTHETIC, image_field="image", each_image=False)),
    "scratch": arm("nlvr.scratch", DEV, steps=600),
    "text": arm("nlvr.text", TEXT, steps=600),
    "symbols_synthetic": arm("nlvr.symbols_synthetic", dataclasses.replace(SYMBOLS, **SYNTHETIC)),
    "symbols": arm("nlvr.symbols", dataclasses.replace(SYMBOLS, tokenizer=None), "nlvr.symbols_synthetic", 600),
}
