"""Translation of picture captions from English to German, with a small T5 trained from scratch (Multi30k task 1).

Question   Does an encoder–decoder learn to translate in minutes on one CPU core?
Run        bertgpt train finetune/translation --data.path 'multi30k/train.{}.gz'
           --data.validation_path 'multi30k/val.{}.gz' --data.test_path 'multi30k/test_2016_flickr.{}.gz'
           with the files of github.com/multi30k/dataset, one sentence per line
Hardware   1 CPU core
Expect     Better than copying the source or the target of the most similar training source. Transformers trained for
           hours reach about 40 BLEU on this test set.
Got        Test BLEU / chrF 33.4 / 56.9 after 6.3 minutes, 1.9 M parameters; copy of the source 0.5 / 16.3; target of
           the most similar training source 7.9 / 32.3.
"""

from bertgpt.config import Eval, Experiment
from bertgpt.data.tokenizer import SentencePiece
from bertgpt.inference.decoding import Decoding
from bertgpt.models.t5 import T5Config
from bertgpt.objectives.seq2seq import Seq2Seq
from bertgpt.tasks.generation import FirstWords, Nearest, TextToText
from bertgpt.training.optim import Adafactor

BEAM = Decoding(max_new_tokens=48, num_beams=4, length_penalty=0.6)
VOCAB_SIZE = 4000
SMALL = T5Config(
    vocab_size=VOCAB_SIZE, d_model=128, num_layers=2, num_decoder_layers=2, num_heads=4, head_dim=32, d_ff=512,
    dropout=0.0, tied=False, max_len=128,
)  # fmt: skip


def experiment() -> Experiment:
    return Experiment(
        name="translation",
        model=SMALL,
        objective=Seq2Seq(label_smoothing=0.1),
        data=TextToText(
            "data/multi30k/train.{}.gz",
            validation_path="data/multi30k/val.{}.gz",
            test_path="data/multi30k/test_2016_flickr.{}.gz",
            tokenizer=SentencePiece(vocab_size=VOCAB_SIZE, sentinels=0),
            source_field="en",
            target_field="de",
            seq_len=48,
            target_len=48,
            metric="bleu",
            packed=True,
        ),
        optim=Adafactor(lr=1.0, warmup_steps=1000),
        steps=2500,
        batch_size=16,
        evals=(Eval("validation", "validation"), Eval("test", "test", final_only=True, decode=BEAM)),
        baselines=(FirstWords(), Nearest()),
        log_every=100,
        eval_every=1000,
    )
