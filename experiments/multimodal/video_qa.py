"""Questions about synthetic videos: how many shapes, which first, which way.

Question   Does a small ViT with a position in time answer questions about time, or only those that a set of frames
           answers?
Run        python -m bertgpt.experiments.multimodal.moving_shapes data/moving_shapes
           bertgpt train multimodal/video_qa    # or :shuffled, the frames of each video in a random order; :factorised
Hardware   1 CPU core, 8 minutes per arm
Expect     The answer prior is 0.25 for counts and 0.50 for the other types, by construction, 0.4375 in all. shuffled
           falls to it on order, horizontal and vertical, and still counts.
Got        Test, 3,000 steps: count 0.728; order, horizontal and vertical 0.500 each. With this budget the model counts,
           but does not read time yet, so that the control proves nothing: shuffled and factorised are not run.
           27 minutes on one AVX-512 core that other processes kept busy, at 6 to 24 % of its peak.
"""

from bertgpt.config import TEST, VALIDATION, Experiment, arms
from bertgpt.data.images.format import ImageFormat
from bertgpt.data.tokenizer import WordPiece
from bertgpt.models.bert import BertConfig
from bertgpt.models.vision_language import PrefixConfig
from bertgpt.models.vit import VitConfig
from bertgpt.objectives.classify import Classify
from bertgpt.tasks.image_baselines import MostFrequentAnswer
from bertgpt.tasks.image_classification import ImageClassification
from bertgpt.training.optim import AdamW

SIZE = {"d_model": 96, "num_layers": 2, "num_heads": 4, "d_ff": 384, "dropout": 0.0, "attention_dropout": 0.0}
GREY = {"image_mean": (30 / 255,) * 3, "image_std": (0.25,) * 3}  # the background becomes 0
VISION = VitConfig(image_size=(48, 48), patch_size=24, frames=8, **GREY, **SIZE)
FOLDER = "data/moving_shapes"
DATA = ImageClassification(
    f"{FOLDER}/train.jsonl", validation_path=f"{FOLDER}/validation.jsonl", test_path=f"{FOLDER}/test.jsonl",
    image_root=f"{FOLDER}/videos.tar", image_field="video", image=ImageFormat(48, 48, frames=8), text_field="question",
    label_field="answer", group_field="type", tokenizer=WordPiece(vocab_size=200), seq_len=16,
)  # fmt: skip


def experiment() -> Experiment:
    return Experiment(
        name="video_qa",
        model=PrefixConfig(VISION, BertConfig(200, max_len=48, norm_position="pre", pooler="first", **SIZE)),
        objective=Classify(),
        data=DATA,
        optim=AdamW(lr=1e-3, warmup_steps=100, b2=0.98, bias_correction=True),
        steps=3000,
        batch_size=32,
        evals=(VALIDATION, TEST),
        baselines=(MostFrequentAnswer(),),
    )


ARMS = arms(experiment(), {
    "shuffled": {"data.image_root": f"{FOLDER}/shuffled.tar"},
    "factorised": {"model.vision.time_attention": "factorised"},
})  # fmt: skip
