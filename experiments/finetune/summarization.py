"""Abstractive one-sentence summaries of scientific abstracts, a small T5 trained from scratch (SciTLDR-A).

Question   What does training from scratch on 2,000 summaries reach?
Run        bertgpt train finetune/summarization --data.path scitldr_a/train.jsonl
           --data.validation_path scitldr_a/dev.jsonl --data.test_path scitldr_a/test.jsonl
           with the SciTLDR-A files of github.com/allenai/scitldr; --init_from DIR starts from a pretrained T5
Hardware   1 CPU core
Expect     Little: fluent sentences unrelated to the paper, worse than the first words of the abstract. BART-large
           reaches ROUGE-1 / 2 / L 43.3 / 20.8 / 35.0 (from memory, not checked).
Got        Test ROUGE-1 / 2 / L 12.1 / 1.5 / 11.0 after 500 steps, 2 minutes; first 20 words 31.3 / 11.9 / 24.4; summary
           of the most similar abstract 24.7 / 5.9 / 19.7.
"""

from bertgpt.experiments.finetune.translation import SMALL, VOCAB_SIZE

from bertgpt.config import VALIDATION, Eval, Experiment
from bertgpt.data.tokenizer import SentencePiece
from bertgpt.inference.decoding import Decoding
from bertgpt.objectives.seq2seq import Seq2Seq
from bertgpt.tasks.generation import FirstWords, Nearest, TextToText
from bertgpt.training.optim import Adafactor

BEAM = Decoding(max_new_tokens=40, num_beams=4, length_penalty=0.6, no_repeat_ngram_size=3)


def experiment() -> Experiment:
    return Experiment(
        name="summarization",
        model=SMALL,
        objective=Seq2Seq(label_smoothing=0.1),
        data=TextToText(
            "data/scitldr_a/train.jsonl",
            validation_path="data/scitldr_a/dev.jsonl",
            test_path="data/scitldr_a/test.jsonl",
            tokenizer=SentencePiece(vocab_size=VOCAB_SIZE, sentinels=0),
            source_field="source",
            target_field="target",
            prefix="summarize: ",
            seq_len=128,
            target_len=40,
        ),
        optim=Adafactor(lr=1.0, warmup_steps=1000),
        steps=500,
        batch_size=16,
        evals=(VALIDATION, Eval("test", "test", final_only=True, decode=BEAM)),
        baselines=(FirstWords(20), Nearest()),
        log_every=50,
    )
