"""Replies in everyday dialogues, with a small GPT trained from scratch on DailyDialog (Li et al. 2017).

Question   Does a decoder beat n-gram baselines on replies after minutes on one CPU core?
Run        bertgpt train finetune/dialogue --data.path dailydialog/train.jsonl
           --data.validation_path dailydialog/validation.jsonl --data.test_path dailydialog/test.jsonl
           bertgpt predict runs/dialogue --text "Hello , may I help you ?"
           Each line of the files is a JSON object with a list of turns, "utterances".
Hardware   1 CPU core
Expect     Loss on the tokens of replies below the unigram and bigram baselines on the same tokens.
Got        After one epoch, 5 minutes: test loss 4.08 nats per token, accuracy 0.272; unigram 6.34, 0.056; bigram 4.03,
           0.239. The model is correct more often than the bigram, but its loss is 0.05 nats higher. It answers “Hello ,
           may I help you ?” with “Yes , I'm sorry .”
"""

from bertgpt.config import VALIDATION, Eval, Experiment
from bertgpt.data.tokenizer import ByteBPE
from bertgpt.models.gpt import GptConfig
from bertgpt.objectives.seq2seq import ConditionalLM
from bertgpt.tasks.baselines import NGram
from bertgpt.tasks.dialogue import Dialogue
from bertgpt.training.optim import AdamW

VOCAB_SIZE = 4096


def experiment() -> Experiment:
    return Experiment(
        name="dialogue",
        model=GptConfig(
            vocab_size=VOCAB_SIZE, d_model=128, num_layers=2, num_heads=2, d_ff=512, max_len=128,
            dropout=0.0, attention_dropout=0.0,
        ),
        objective=ConditionalLM(),
        data=Dialogue(
            "data/dailydialog/train.jsonl",
            validation_path="data/dailydialog/validation.jsonl",
            test_path="data/dailydialog/test.jsonl",
            tokenizer=ByteBPE(VOCAB_SIZE, style="gpt2"),
            turns_field="utterances",
            seq_len=128,
            packed=True,
        ),
        optim=AdamW(lr=2e-3, warmup_steps=100, b2=0.95, bias_correction=True, weight_decay=0.1),
        steps=1800,
        batch_size=10,
        evals=(VALIDATION, Eval("test", "test", final_only=True)),
        baselines=(NGram(1), NGram(2)),
        log_every=100,
    )  # fmt: skip
