"""GPT-2's recipe at mini size: a causal language model on a stream of film reviews.

Question   Does GPT-2's pretraining beat n-gram baselines on two CPU cores?
Run        pip install 'bertgpt[demo]' && bertgpt train pretrain/mini_gpt2
           bertgpt generate runs/mini_gpt2 --prompt "This film" --temperature 0.8 --max_new_tokens 40
Hardware   2 CPU cores
Expect     Next-token loss below the unigram and bigram baselines on the same tokens.
Got        Validation loss 4.711, accuracy 0.178 (unigram 6.793, bigram 4.832) after 4.1 million tokens, 25 minutes on a
           machine that was busy with other work.
"""

import dataclasses

from bertgpt.experiments.pretrain.mini import NO_DROPOUT, SIZE, TEXT, VOCAB_SIZE, mini

from bertgpt.config import Experiment
from bertgpt.data.tokenizer import ByteBPE
from bertgpt.models.gpt import GptConfig
from bertgpt.objectives.lm import CausalLM
from bertgpt.training.optim import AdamW

MODEL = GptConfig(**SIZE, **NO_DROPOUT, max_len=64)
ADAM = AdamW(
    lr=2e-3, warmup_steps=100, decay="cosine", end_fraction=0.1, b2=0.95, bias_correction=True, weight_decay=0.1
)


def experiment() -> Experiment:
    data = dataclasses.replace(TEXT, layout="stream", tokenizer=ByteBPE(VOCAB_SIZE, style="gpt2"))
    return mini("mini_gpt2", MODEL, CausalLM(), data, optim=ADAM)
