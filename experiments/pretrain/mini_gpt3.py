"""GPT-3's recipe at mini size: as GPT-2's, with every second layer's attention banded.

Question   does a decoder with locally banded attention learn on two CPU cores what counting cannot?
Run        pip install 'bertgpt[demo]' && bertgpt train experiments/pretrain/mini_gpt3.py
Hardware   2 CPU cores
Expect     next-token loss below unigram and bigram counts on the same words, near mini_gpt2's
Got        validation loss 4.768, accuracy 0.168 (unigram 6.792, bigram 4.842) after 4.1 million tokens, 10 minutes on
           one core; mini_gpt2 has 4.724
"""

import dataclasses

from bertgpt.experiments.pretrain import mini_gpt2

from bertgpt.config import Experiment


def experiment() -> Experiment:
    model = dataclasses.replace(mini_gpt2.MODEL, local_window=16)
    return dataclasses.replace(mini_gpt2.experiment(), name="mini_gpt3", model=model)
