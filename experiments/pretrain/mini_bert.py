"""BERT's recipe at mini size: masked LM + next-sentence prediction on film reviews.

Question   does BERT's pretraining learn on two CPU cores what counting cannot?
Run        pip install 'bertgpt[demo]' && bertgpt train experiments/pretrain/mini_bert.py
Hardware   2 CPU cores
Expect     masked LM loss below unigram and bigram counts on the same words
Got        validation masked LM loss 4.439, accuracy 0.265 (unigram 6.563, bigram 4.927) after 3.9 million tokens, 5.7
           minutes on one core; next sentence 0.621, which always saying the likelier label gives too (loss 0.656,
           that of the shares 0.664)
"""

from bertgpt.experiments.pretrain.mini import ENCODER, VOCAB_SIZE, mini, short_to_long

from bertgpt.config import Experiment
from bertgpt.data.tokenizer import WordPiece
from bertgpt.objectives.mlm import MaskedLM


def experiment() -> Experiment:
    data = short_to_long("pairs", WordPiece(VOCAB_SIZE, limit_alphabet=128), switch_step=1200)
    return mini("mini_bert", ENCODER, MaskedLM(mask_rate=0.15, pair="nsp", static_masks=1), data)
