"""A mixture of denoisers at mini size: short spans, long spans, and the continuation of a prefix.

Question   Can one encoder–decoder learn three denoising tasks at once (UL2, Tay et al. 2023 §3.1)?
Run        pip install 'bertgpt[demo]' && bertgpt train pretrain/mini_ul2
Hardware   2 CPU cores
Expect     The loss of each task falls. Half of the sequences have short spans, a quarter long ones, a quarter a prefix.
Got        Not run.
"""

import dataclasses

from bertgpt.experiments.pretrain import mini_t5

from bertgpt.config import Experiment
from bertgpt.objectives.lm import PrefixLM
from bertgpt.objectives.multitask import Multitask, Named
from bertgpt.objectives.span import SpanCorruption

DENOISERS = Multitask(
    (
        Named("short", mini_t5.SPANS, share=0.5),
        Named("long", SpanCorruption(noise_rate=0.5, mean_span=8.0, label_smoothing=0.1), share=0.25),
        Named("prefix", PrefixLM(architecture="encoder_decoder"), share=0.25),
    )
)


def experiment() -> Experiment:
    return dataclasses.replace(mini_t5.experiment(), name="mini_ul2", objective=DENOISERS, baselines=())
