"""Classification of your own pictures: class folders, records beside pictures, tar shards, or a dataset of TFDS.

Question   How well does a Vision Transformer classify your pictures?
Run        bertgpt train multimodal/classify --data.path birds --init_from DIR
           birds/CLASS/picture.jpg; other layouts: docs/how-to/images.md. DIR is a ViT in the Hugging Face format, or a
           run. Official splits: --data.validation_path, --data.test_path.
           Arms: `:scratch` trains a small ViT of 64 × 64 pixels without pretraining; `:video` reads eight frames.
Hardware   any; `:scratch` on 1 CPU core: about 200 pictures/s
Expect     Better than the most frequent class and than the nearest training picture, which are reported with it.
Got        Depends on the pictures; see multimodal/digits_vit for a measured one.
"""

from bertgpt.config import TEST, VALIDATION, Experiment, arms
from bertgpt.data.images.augment import Augment
from bertgpt.data.images.format import ImageFormat
from bertgpt.models.vit import VitConfig
from bertgpt.objectives.classify import Classify
from bertgpt.tasks.image_baselines import MostFrequentAnswer, NearestImage
from bertgpt.tasks.image_classification import ImageClassification
from bertgpt.training.optim import AdamW

BASE = Experiment(
    name="classify_images",
    model=None,  # that of init_from
    objective=Classify(),
    data=ImageClassification("pictures", image=ImageFormat(224, 224), augment=Augment(area=(0.3, 1.0))),
    optim=AdamW(lr=3e-5, warmup_steps=50, decay="cosine", bias_correction=True),
    steps=1000,
    batch_size=32,
    evals=(VALIDATION, TEST),
    baselines=(MostFrequentAnswer(), NearestImage()),
    init_from="models/vit-base-patch16-224-in21k",
    eval_every=250,
)
SMALL = {"d_model": 128, "num_layers": 4, "num_heads": 4, "d_ff": 512, "patch_size": 8, "stddev": 0.06}
SCRATCH = {"init_from": None, "model": VitConfig(image_size=(64, 64), pooler="mean", **SMALL), "optim.lr": 1e-3}
VIDEO = SCRATCH | {"model": VitConfig(image_size=(64, 64), pooler="mean", frames=8, **SMALL)}
ARMS = arms(BASE, {
    "pretrained": {},
    "scratch": SCRATCH | {"data.image": ImageFormat(64, 64)},
    "video": VIDEO | {"data.image": ImageFormat(64, 64, frames=8)},
})  # fmt: skip
