"""BERT's recipe at mini size: masked LM and next-sentence prediction on film reviews.

Question   Does BERT's pretraining beat n-gram baselines on two CPU cores?
Run        pip install 'bertgpt[demo]' && bertgpt train pretrain/mini_bert
Hardware   2 CPU cores
Expect     Masked LM loss below the unigram and bigram baselines on the same tokens.
Got        Validation masked LM loss 4.439, accuracy 0.265 (unigram 6.563, bigram 4.927) after 3.9 million tokens, 5.7
           minutes on one core. Next sentence 0.621, which is the majority class (loss 0.656; class frequencies 0.664).
"""

from bertgpt.experiments.pretrain.mini import ENCODER, VOCAB_SIZE, mini, short_to_long

from bertgpt.config import Experiment
from bertgpt.data.tokenizer import WordPiece
from bertgpt.objectives.mlm import MaskedLM


def experiment() -> Experiment:
    data = short_to_long("pairs", WordPiece(VOCAB_SIZE, limit_alphabet=128), switch_step=1200)
    return mini("mini_bert", ENCODER, MaskedLM(mask_rate=0.15, pair="nsp", static_masks=1), data)
