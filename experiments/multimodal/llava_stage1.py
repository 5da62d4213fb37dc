"""LLaVA's first stage: only a projector is trained, from CLIP's patches to what a frozen language model reads as words.

Question   Liu et al. 2023 (arXiv:2304.08485) §4.2 and 2024 (arXiv:2310.03744) table 9, with GPT-2 XL for Vicuna.
Run        bertgpt convert openai/clip-vit-large-patch14 runs/clip_gpt2_xl --language openai-community/gpt2-xl
           --layer penultimate
           bertgpt train multimodal/llava_stage1
Hardware   8 accelerators of 40 GB or more. The paper: 3.5 h for 7B and 336 pixels on 8 A100
Expect     A falling loss. Useful answers need the second stage: LoRA on language/decoder/attention/query and value, or
           all parameters trained, with questions and answers (665k records).
Got        Not run.
"""

from bertgpt.config import VALIDATION, Experiment, Mesh, arms
from bertgpt.data.images.format import ImageFormat
from bertgpt.models.clip import CLIP_VIT_L14
from bertgpt.models.gpt import GPT2_XL
from bertgpt.models.vision_language import PrefixConfig
from bertgpt.objectives.seq2seq import ConditionalLM
from bertgpt.tasks.image_to_text import ImageToText
from bertgpt.training.optim import AdamW

# blip_laion_cc_sbu_558k: a file of records with `image` and `caption`, beside its pictures.
DATA = ImageToText(
    "data/llava/pretrain_558k.jsonl", validation=0.01, image_root="data/llava/images", architecture="decoder",
    tokenizer=None, prefix="Caption:", between=" ", seq_len=128, target_len=96, metric="bleu",
    image=ImageFormat(224, 224, resize="shortest", edge=224, crop=True, resample="bicubic"),
)  # fmt: skip
BASE = Experiment(
    "llava_stage1",
    model=PrefixConfig(CLIP_VIT_L14.vision, GPT2_XL, layer="penultimate"),
    objective=ConditionalLM(),
    data=DATA,
    optim=AdamW(lr=1e-3, warmup_steps=65, decay="cosine", weight_decay=0.0),  # 3 % of the steps
    steps=2_158,  # one epoch
    batch_size=256,
    init_from="runs/clip_gpt2_xl",
    trainable="head",
    mesh=Mesh(fsdp=8),
    compute_dtype="bfloat16",
    evals=(VALIDATION,),
)
ARMS = arms(BASE, {"llava_stage1": {}})
