"""ViT-B/16 on ImageNet from scratch, the recipe of the paper.

Question   Does the published recipe give the published accuracy here?
Run        bertgpt train multimodal/vit_b16
           with ImageNet-1k (ILSVRC 2012) as WebDataset shards, members KEY.jpg and KEY.cls, in data/imagenet
Hardware   8 accelerators of 80 GB: 4 · 10¹⁹ FLOP, and 384 million pictures to be decoded
Expect     Top-1 accuracy 77.9 on the validation images, after further training at 384 × 384 pixels (Dosovitskiy et al.
           2021, table 5); table 3 and appendix B.1 give the recipe: 300 epochs, batch 4096, 10,000 steps of warm-up.
           The second stage is --init_from of this run with model.image_size=(384,384), which interpolates positions.
Got        Not run.
"""

import dataclasses

from bertgpt.config import VALIDATION, Experiment
from bertgpt.data.images.augment import Augment
from bertgpt.data.images.format import ImageFormat
from bertgpt.models.vit import VIT_B16
from bertgpt.objectives.classify import Classify
from bertgpt.tasks.image_classification import ImageClassification
from bertgpt.training.optim import AdamW


def experiment() -> Experiment:
    return Experiment(
        name="vit_b16",
        model=dataclasses.replace(VIT_B16, pooler="tanh", dropout=0.1, scan=True),
        objective=Classify(),
        data=ImageClassification(
            "data/imagenet/train-{0000..1023}.tar",
            validation_path="data/imagenet/validation-{00..63}.tar",
            label_field="cls",
            image=ImageFormat(224, 224, resize="shortest", edge=256, crop=True),
            augment=Augment("resized"),
        ),
        optim=AdamW(lr=3e-3, warmup_steps=10_000, decay="cosine", weight_decay=0.3, eps=1e-8, bias_correction=True),
        steps=300 * 1_281_167 // 4096,
        batch_size=4096,
        compute_dtype="bfloat16",
        evals=(VALIDATION,),
        eval_every=5000,
    )
