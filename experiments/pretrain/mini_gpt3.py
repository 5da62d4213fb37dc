"""GPT-3's recipe at mini size: GPT-2's with locally banded attention in every second layer.

Question   Does a decoder with locally banded attention beat n-gram baselines on two CPU cores?
Run        pip install 'bertgpt[demo]' && bertgpt train pretrain/mini_gpt3
Hardware   2 CPU cores
Expect     Next-token loss below the unigram and bigram baselines on the same tokens, and close to mini_gpt2's.
Got        Validation loss 4.753, accuracy 0.171 (unigram 6.793, bigram 4.832) after 4.1 million tokens, 4 minutes on
           two cores; mini_gpt2 has 4.711.
"""

import dataclasses

from bertgpt.experiments.pretrain import mini_gpt2

from bertgpt.config import Experiment


def experiment() -> Experiment:
    model = dataclasses.replace(mini_gpt2.MODEL, local_window=16)
    return dataclasses.replace(mini_gpt2.experiment(), name="mini_gpt3", model=model)
