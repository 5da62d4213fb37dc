"""A dual encoder from scratch: does it find the name of an emoji that it has never seen, and the picture of a name?

Question   1,331 pictures of Noto Color Emoji with their English names train a small CLIP. Is a held-out picture's own
           name among the nearest of all 161 test names, and the other way round, more often than by chance and than by
           the words of the training picture with the nearest pixels?
Run        python -m bertgpt.experiments.multimodal.emoji_data data/emoji
           bertgpt train multimodal/emoji_clip
Hardware   1 CPU core
Expect     No published number. Above chance; no held-out picture has a variant or near twin in training.
Got        Recall at 1 / 5 / 10 on the test split, after 4.0 minutes on one core that other programs used too:
             names of a picture   model 0.012 / 0.081 / 0.143   nearest pixels 0.082 / 0.181 / 0.237   chance 0.006 /
             pictures of a name   model 0.019 / 0.068 / 0.174   nearest pixels 0.078 / 0.178 / 0.242   0.031 / 0.062
           Median rank 47 and 47 of 161 against 81: better than chance, and worse at the top than the nearest pixels.
           With 1,331 pairs the training loss falls while the validation loss rises. With flips, which change the
           meaning of arrows: 0.012 / 0.099 / 0.130 and 0.031 / 0.118 / 0.168, median ranks 56 and 59.
"""

from bertgpt.config import TEST, VALIDATION, Experiment
from bertgpt.data.images.augment import Augment
from bertgpt.data.images.format import ImageFormat
from bertgpt.data.tokenizer import WordPiece
from bertgpt.models.clip import ClipConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.vit import VitConfig
from bertgpt.objectives.contrast import Contrast
from bertgpt.tasks.image_retrieval import ImageTextPairs, NearestPicture, RandomRanking
from bertgpt.training.optim import AdamW

SIZES = {"d_model": 128, "num_heads": 4, "d_ff": 512, "activation": "quick_gelu", "stddev": 0.06}


def experiment() -> Experiment:
    return Experiment(
        name="emoji_clip",
        model=ClipConfig(
            VitConfig(image_size=(32, 32), patch_size=8, num_layers=3, pre_norm=True, patch_bias=False, **SIZES),
            GptConfig(vocab_size=1500, max_len=16, num_layers=2, **SIZES),
            projection_dim=128,
        ),
        objective=Contrast(),
        data=ImageTextPairs(
            "data/emoji/train.jsonl", validation_path="data/emoji/validation.jsonl", test_path="data/emoji/test.jsonl",
            where="language=en", text_field="name", tokenizer=WordPiece(1500), seq_len=16,
            image=ImageFormat(32, 32, resample="box"), augment=Augment(area=(0.3, 1.0), flip=0.0),
        ),
        optim=AdamW(lr=1.5e-3, warmup_steps=30, decay="cosine", weight_decay=0.1),
        steps=528,
        batch_size=128,
        evals=(VALIDATION, TEST),
        baselines=(RandomRanking(), NearestPicture()),
    )  # fmt: skip
