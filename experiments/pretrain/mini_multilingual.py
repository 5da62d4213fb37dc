"""A masked LM on eight languages, including Chinese and Japanese: the translated Debian handbook.

Question   Do one WordPiece vocabulary and one small encoder serve several scripts?
Run        apt-get download debian-handbook && dpkg -x debian-handbook_*.deb handbook
           python -m bertgpt.experiments.pretrain.handbook HTML data/handbook.jsonl
           where HTML is handbook/usr/share/doc/debian-handbook/html
           bertgpt train pretrain/mini_multilingual
Hardware   2 CPU cores
Expect     Masked LM loss below the unigram and bigram baselines on the same tokens.
Got        Validation masked LM loss 3.345, accuracy 0.383 (unigram 7.246, bigram 4.321) after 4.9 million tokens, 10
           minutes on one core.
"""

import dataclasses

from bertgpt.experiments.pretrain.mini import ENCODER, mini, short_to_long

from bertgpt.config import Experiment
from bertgpt.data.tokenizer import WordPiece
from bertgpt.objectives.mlm import MaskedLM

VOCAB_SIZE = 8192


def experiment() -> Experiment:
    data = short_to_long("full_sentences", WordPiece(VOCAB_SIZE, lowercase=False, limit_alphabet=3500), 2000)
    changes = {"path": "data/handbook.jsonl", "strip_html": False}
    parts = {part: dataclasses.replace(getattr(data, part), **changes) for part in ("short", "long")}
    model = dataclasses.replace(ENCODER, vocab_size=VOCAB_SIZE)
    return mini("mini_multilingual", model, MaskedLM(mask_rate=0.15), dataclasses.replace(data, **parts), steps=6000)
