"""Cross-lingual transfer: topics learnt from English sentences, tested on German, Chinese, Spanish and Russian.

Question   Does a small encoder pretrained on eight languages transfer a task to languages without labels?
Run        bertgpt train pretrain/mini_multilingual finetune/cross_lingual
           The data, SIB-200, is in the repository listed in README.md.
Hardware   2 CPU cores, a minute per arm after pretraining
Expect     Above chance (1/7) where the languages share words, and little more: 701 training sentences, a mini encoder.
           Multilingual BERT on XNLI: English 81.4, German 70.5, Chinese 63.8.
Got        Test accuracy in English: 0.520 from scratch, 0.471 pretrained. Nothing transfers: German 0.265, 0.142;
           Chinese 0.206, 0.152; Spanish 0.275, 0.118; Russian 0.142, 0.147 (204 sentences: ± 0.03). The pretraining
           corpus, one technical book, is from another domain, and the encoder is too small.
"""

import dataclasses

from bertgpt.experiments.finetune.classify import minilm
from bertgpt.experiments.pretrain import mini_multilingual

from bertgpt.config import VALIDATION, Eval, arms
from bertgpt.tasks.baselines import Majority, TfidfLogisticRegression
from bertgpt.tasks.classification import TextClassification

LANGUAGES = {
    "english": "eng_Latn",
    "german": "deu_Latn",
    "chinese": "zho_Hans",
    "spanish": "spa_Latn",
    "russian": "rus_Cyrl",
}
SIB = TextClassification(
    "data/sib200_15lang/train.jsonl.gz",
    validation_path="data/sib200_15lang/dev.jsonl.gz",
    test_path="data/sib200_15lang/test.jsonl.gz",
    where="lang=eng_Latn",
    tokenizer="mini_multilingual",
    seq_len=64,
)
TESTS = tuple(
    Eval(name, "test", final_only=True, data=dataclasses.replace(SIB, where=f"lang={code}"))
    for name, code in LANGUAGES.items()
)
BASE = dataclasses.replace(
    minilm("cross_lingual", SIB, steps=150, lr=1e-3),
    model=dataclasses.replace(mini_multilingual.experiment().model, pooler="mean", dropout=0.1),
    evals=(VALIDATION, *TESTS),
    baselines=(Majority(), TfidfLogisticRegression()),
    init_from=None,
    batch_size=32,
)
ARMS = arms(BASE, {"scratch": {}, "pretrained": {"init_from": "mini_multilingual"}})
