"""Sentence pairs: paraphrase, entailment and similarity, with a cross-encoder and a bi-encoder.

Question   What does a pretrained encoder reach on pairs, as a cross-encoder and as a bi-encoder?
Run        bertgpt train finetune/pairs:paraphrase    # or :entailment, :similarity, :bi_encoder, :negatives
           The data is in the repositories listed in README.md; keep seven columns of STS-B's files: cut -f1-7
Hardware   2 CPU cores, 5 to 8 minutes per arm
Expect     BERT-base: MRPC 86.7 accuracy, RTE 66.4, STS-B 85.8 Spearman (GLUE). MiniLM was trained on similar pairs.
Got        Test accuracy: paraphrase 0.767 (majority class 0.665, TF-IDF 0.689), entailment 0.603 (0.527, 0.480; 277
           texts: ± 0.029). Spearman: similarity 0.803, bi_encoder 0.855, before training 0.820. negatives: recall at 1
           over 1,147 texts 0.979, before training 0.969. 3 to 6 minutes on one core each.
"""

import dataclasses

from bertgpt.experiments.finetune.classify import minilm

from bertgpt.objectives.classify import Regress
from bertgpt.objectives.similarity import BiEncode
from bertgpt.tasks.classification import TextClassification
from bertgpt.tasks.similarity import TextPairs

MRPC = {
    "path": "data/mrpc/train.tsv.gz",
    "test_path": "data/mrpc/test.tsv.gz",
    "second_field": "#2 String",
    "label_field": "Quality",
}
PARAPHRASE = TextClassification(
    **MRPC, text_field="#1 String", names=("different", "paraphrase"), labels=("0", "1"), packed=True
)
RTE = TextClassification(
    "data/rte/train.tsv.gz",
    test_path="data/rte/dev.tsv.gz",
    text_field="sentence1",
    second_field="sentence2",
    seq_len=192,
    packed=True,
)
STSB = {
    "path": "data/stsb/train.tsv",
    "validation_path": "data/stsb/dev.tsv",
    "test_path": "data/stsb/test.tsv",
    "columns": ("genre", "file", "year", "id", "score", "first", "second"),
    "label_field": "score",
    "second_field": "second",
}
similarity = minilm("similarity", TextClassification(**STSB, text_field="first", target="number", packed=True), 150)
bi_encoder = minilm("bi_encoder", TextPairs(**STSB, first_field="first", seq_len=48), 150)
negatives = minilm("negatives", TextPairs(**MRPC, first_field="#1 String", only="1", seq_len=48), 100)
ARMS = {
    "paraphrase": minilm("paraphrase", PARAPHRASE, steps=150),
    "entailment": minilm("entailment", RTE, steps=100),
    "similarity": dataclasses.replace(similarity, objective=Regress(scale=5.0), baselines=()),
    "bi_encoder": dataclasses.replace(bi_encoder, objective=BiEncode(scale=5.0), baselines=(), batch_size=32),
    "negatives": dataclasses.replace(negatives, objective=BiEncode("negatives", 20.0), baselines=(), batch_size=32),
}
