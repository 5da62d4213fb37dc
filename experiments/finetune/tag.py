"""Sequence tagging of your own data: a CoNLL file with one word and tag per line, or a JSONL file with lists of both.

Question   How well does a pretrained encoder tag your words?
Run        bertgpt train finetune/tag --data.path entities.conll --init_from DIR
           DIR is any encoder in the Hugging Face format, or a run.
           More than two columns: the first is the word and the last the tag, or name them with --data.columns word pos
           tag --data.words_field word --data.tags_field tag. JSONL: --data.words_field, --data.tags_field.
           Other schemes: --data.scheme bioes or iob1. Official splits: --data.validation_path, --data.test_path.
           `:plain` is for tags that mark no entities, such as parts of speech.
Hardware   any; MiniLM on one CPU core: about 1,000 tokens/s
Expect     Better than the most frequent tag of each word, which is reported with it.
Got        See experiments/finetune/README.md.
"""

from bertgpt.config import TEST, VALIDATION, Experiment, arms
from bertgpt.objectives.tag import Tag
from bertgpt.tasks.tagging import MostFrequentTag, TokenTagging
from bertgpt.training.optim import AdamW


def experiment() -> Experiment:
    return Experiment(
        name="tag",
        model=None,  # that of init_from
        objective=Tag(crf=True),
        data=TokenTagging("words.conll", stride=32, packed=True),
        optim=AdamW(lr=5e-5, warmup_steps=50, bias_correction=True),
        steps=500,
        batch_size=16,
        evals=(VALIDATION, TEST),
        baselines=(MostFrequentTag(),),
        init_from="models/bert-base-cased",
        eval_every=250,
    )


ARMS = arms(experiment(), {"plain": {"data.scheme": "plain", "objective.crf": False}})
