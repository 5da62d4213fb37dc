"""Subject lines of e-mails from their bodies, with a small T5 trained from scratch (AESLC, Zhang & Tetreault 2019).

Question   Does an encoder–decoder learn the subject of an e-mail in minutes on one CPU core?
Run        bertgpt train finetune/titles --data.path aeslc/train.jsonl
           --data.validation_path aeslc/dev.jsonl --data.test_path aeslc/test.jsonl
           Each line of the files is a JSON object with "body" and "subject"; headlines of news work in the same way.
Hardware   1 CPU core
Expect     ROUGE above that of the first words of the body, and hardly that of the subject of the most similar e-mail in
           the training set, which threads share. Pretrained models reach ROUGE-L 35 and more.
Got        Not run as it is. With --steps 500 --optim.warmup_steps 500, 1.5 minutes: test ROUGE-1 / 2 / L 1.2 / 0.7 /
           1.2. First 10 words 13.7 / 5.5 / 12.9; subject of the most similar e-mail 20.1 / 10.5 / 19.8.
"""

from bertgpt.experiments.finetune.translation import SMALL, VOCAB_SIZE

from bertgpt.config import VALIDATION, Eval, Experiment
from bertgpt.data.tokenizer import SentencePiece
from bertgpt.inference.decoding import Decoding
from bertgpt.objectives.seq2seq import Seq2Seq
from bertgpt.tasks.generation import FirstWords, Nearest, TextToText
from bertgpt.training.optim import Adafactor

BEAM = Decoding(max_new_tokens=16, num_beams=4, length_penalty=0.6)


def experiment() -> Experiment:
    return Experiment(
        name="titles",
        model=SMALL,
        objective=Seq2Seq(label_smoothing=0.1),
        data=TextToText(
            "data/aeslc/train.jsonl",
            validation_path="data/aeslc/dev.jsonl",
            test_path="data/aeslc/test.jsonl",
            tokenizer=SentencePiece(vocab_size=VOCAB_SIZE, sentinels=0),
            source_field="body",
            target_field="subject",
            seq_len=96,
            target_len=16,
        ),
        optim=Adafactor(lr=1.0, warmup_steps=1000),
        steps=1000,
        batch_size=32,
        evals=(VALIDATION, Eval("test", "test", final_only=True, decode=BEAM)),
        baselines=(FirstWords(10), Nearest()),
        log_every=50,
    )
