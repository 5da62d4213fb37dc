"""Questions about synthetic videos: how many shapes, which first, which way.

Question   Does a small ViT with a position in time answer questions about time, or only those that a set of frames
           answers?
Run        python -m bertgpt.experiments.multimodal.moving_shapes data/moving_shapes
           bertgpt train multimodal/video_qa    # or :shuffled, the frames of each video in a random order; :bert_init
Hardware   1 CPU core (AVX-512), 4 minutes per arm
Expect     The answer prior is 0.25 for counts and 0.50 for the other types, by construction, 0.4375 in all. shuffled
           falls to it on order, horizontal and vertical, and still counts.
Got        Test, 1 seed, 3.2 minutes per arm on an AVX-512 core that other processes kept busy:
                                     count 0.930   horizontal 0.873   vertical 0.833   order 0.500
           :shuffled                       0.965              0.500            0.500         0.500
           shuffled in the test alone      0.940              0.485            0.515         0.502
           :bert_init, stddev 0.02         0.863              0.518            0.500         0.500
           It reads motion, but not which of two shapes appears first (15,000 steps: 0.523). :factorised: not run.
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

SIZE = {"d_model": 64, "num_heads": 4, "d_ff": 256, "dropout": 0.0, "attention_dropout": 0.0, "stddev": 0.12}
GREY = {"image_mean": (30 / 255,) * 3, "image_std": (0.25,) * 3}  # the background becomes 0
VISION = VitConfig(image_size=(24, 24), patch_size=12, frames=4, num_layers=1, **GREY, **SIZE)
LANGUAGE = BertConfig(200, num_layers=2, max_len=32, norm_position="pre", pooler="first", **SIZE)
FOLDER = "data/moving_shapes"
DATA = ImageClassification(
    f"{FOLDER}/train.jsonl", validation_path=f"{FOLDER}/validation.jsonl", test_path=f"{FOLDER}/test.jsonl",
    image_root=f"{FOLDER}/videos.tar", image_field="video", image=ImageFormat(24, 24, resample="box", frames=4),
    text_field="question", label_field="answer", group_field="type", tokenizer=WordPiece(vocab_size=200), seq_len=16,
)  # fmt: skip


def experiment() -> Experiment:
    return Experiment(
        name="video_qa",
        model=PrefixConfig(VISION, LANGUAGE),
        objective=Classify(),
        data=DATA,
        optim=AdamW(lr=2e-3, warmup_steps=200, b2=0.98, bias_correction=True),
        steps=6000,
        batch_size=32,
        evals=(VALIDATION, TEST),
        baselines=(MostFrequentAnswer(),),
    )


ARMS = arms(experiment(), {
    "shuffled": {"data.image_root": f"{FOLDER}/shuffled.tar"},
    "bert_init": {"model.vision.stddev": 0.02, "model.language.stddev": 0.02},
    "factorised": {"model.vision.time_attention": "factorised"},
})  # fmt: skip
