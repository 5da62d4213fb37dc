"""CLIP ViT-B/32 as published: zero-shot classification from 400 million pairs of images and texts.

Question   Does the recipe of Radford et al. 2021 give their zero-shot accuracy?
Run        bertgpt train multimodal/clip_vit_b32
           with WebDataset shards of pairs in data/pairs, such as those of LAION; the pairs of the paper are not public
Hardware   256 V100s in the paper; mesh.data is for as many devices
Expect     63.2 % of ImageNet zero-shot (table 11)
Got        Not run.

Tables 18 and 19 and §2.5: batch of 32,768, 32 epochs, Adam with decoupled weight decay of 0.2 on all weights that are
no gains or biases, learning rate of 5e-4 with 2,000 warm-up steps and cosine decay, β₂ = 0.98 and ε = 1e-6, random
square crops as the only augmentation, temperature initialised to 0.07. Differences: initial weights are those of GPT-2
and ViT here.
"""

from bertgpt.config import VALIDATION, Experiment, Mesh
from bertgpt.data.images.augment import Augment
from bertgpt.data.images.format import ImageFormat
from bertgpt.models.clip import CLIP_VIT_B32
from bertgpt.objectives.contrast import Contrast
from bertgpt.tasks.image_retrieval import ImageTextPairs
from bertgpt.training.optim import AdamW


def experiment() -> Experiment:
    return Experiment(
        name="clip_vit_b32",
        model=CLIP_VIT_B32,
        objective=Contrast(),
        data=ImageTextPairs(
            "data/pairs/shard-*.tar", text_field="txt", tokenizer="openai/clip-vit-base-patch32", seq_len=77,
            validation=0.001, test=0.0, image=ImageFormat(224, 224, "shortest", 224, crop=True, resample="bicubic"),
            augment=Augment(area=(0.9, 1.0), ratio=(1.0, 1.0), flip=0.0),
        ),
        optim=AdamW(
            lr=5e-4, warmup_steps=2000, decay="cosine", b2=0.98, weight_decay=0.2, bias_correction=True, clip_norm=None
        ),
        steps=390_625,  # 32 epochs of 400 million pairs
        batch_size=32_768,
        compute_dtype="bfloat16",
        mesh=Mesh(data=-1),
        evals=(VALIDATION,),
        save_every=1000,
    )  # fmt: skip
