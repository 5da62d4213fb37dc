"""Tagging of your own words: a CoNLL file with a word and its tag in each line, or a JSONL file with lists of both.

Question   how well does a pretrained encoder tag words like yours?
Run        bertgpt train experiments/finetune/tag.py --data.path entities.conll --init_from DIR, of any encoder
           more columns than two: the first is the word, the last the tag, or name them: --data.columns word pos tag
             --data.words_field word --data.tags_field tag; a .jsonl file: --data.words_field, --data.tags_field
           other schemes: --data.scheme bioes, or iob1; files of splits: --data.validation_path, --data.test_path
           `:plain` for tags that mark no entities, such as parts of speech
Hardware   any; MiniLM on a CPU core: about 1,000 tokens a second
Expect     above the most frequent tag of each word, which the table shows
Got        see experiments/finetune/README.md
"""

from bertgpt.config import TEST, VALIDATION, Experiment, arms
from bertgpt.objectives.tag import Tag
from bertgpt.tasks.tag_metrics import MostFrequentTag
from bertgpt.tasks.tagging import TokenTagging
from bertgpt.training.optim import AdamW


def experiment() -> Experiment:
    return Experiment(
        name="tag",
        model=None,  # what init_from holds
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
