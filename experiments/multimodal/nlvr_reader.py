"""Decides NLVR's statements from facts about the three boxes: the true ones, or those that a ViT reads from pixels.

    pip install scikit-learn
    python -m bertgpt.experiments.multimodal.nlvr_reader data/nlvr runs/nlvr.facts

A statement is a set of words, in which colors, shapes and numbers are named by their order: “a C1 block at the base”.
A picture is a set of properties of what the statement mentions: “some box has C1 at the base”. The classifier is a
support vector machine on all products of a word and a property: its kernel is the product of two dot products. C was
chosen by cross-validation on the development split, whose repeated statements were kept together. The properties were
written by hand, with that split in view.
"""

import itertools
import re
import sys
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from bertgpt.experiments.multimodal.nlvr_scenes import COLORS, SHAPES
from bertgpt.experiments.multimodal.nlvr_statements import NUMBERS

import bertgpt
from bertgpt.io.files import read_json_lines
from bertgpt.types import JsonObject

WORDS = {"zero": 0} | {word: n for n, word in enumerate(NUMBERS) if n} | {str(n): n for n in range(10)}
SPELLING = ((r"at ?le?ast", "at least"), ("colour", "color"), (r"\bll 3", "all 3"), ("squere", "square"))
C = 30.0
Boxes = Sequence[Sequence[str]]
"""the facts of the three boxes: see nlvr_scenes.facts"""


def abstract(sentence: str) -> tuple[list[str], dict[str, list]]:
    """The words of a statement, and the colors C, shapes S and numbers N that it mentions, in order."""
    sentence = sentence.lower()
    for pattern, word in SPELLING:
        sentence = re.sub(pattern, word, sentence)
    words, mentions = [], defaultdict(list)
    for word in re.findall(r"[a-z]+|\d+", sentence):
        word = word if word.endswith("ss") else word.removesuffix("s")
        kind = "C" if word in COLORS else "S" if word in SHAPES else "N" if word in WORDS else ""
        value = WORDS[word] if kind == "N" else word
        if kind and value not in mentions[kind]:
            mentions[kind].append(value)
        words.append(f"{kind}{mentions[kind].index(value) + 1}" if kind else word)
    return words, mentions


class Box:
    """Counts in one box."""

    def __init__(self, facts: Sequence[str]):
        self.counts, self.levels, self.highest = defaultdict(int), {}, None
        for fact in facts:
            first, *rest = fact.split()
            if first == "level":
                self.levels[int(rest[0])] = rest[1]
            elif first == "highest":
                self.highest = rest[0]
            elif first != "lowest":
                color, shape, place = (*rest, "")[:3]
                self.counts[color, shape, place] = max(self.counts[color, shape, place], int(first))
        self.tower = [self.levels[level] for level in sorted(self.levels)]

    def count(self, color: str | None, shape: str | None, place: str) -> int:
        """How many objects of a color and shape (None: any) are at a place; "": anywhere."""
        at = {"base": self.tower[:1], "top": self.tower[-1:], "second": self.tower[1:2], "highest": [self.highest]}
        if place in at:
            return sum(color in (None, found) for found in at[place])
        if place == "free":
            return self.count(color, shape, "") - self.count(color, shape, "edge")
        kinds = ((c, s) for c, s, p in self.counts if p == place and color in (None, c) and shape in (None, s))
        return sum(self.counts[c, s, place] for c, s in kinds)


def properties(facts: Boxes, mentions: dict[str, list]) -> Iterator[tuple[str, bool]]:
    """What holds of a picture, as far as the mentioned colors, shapes and numbers are concerned."""
    boxes = [Box(each) for each in facts]
    colors, shapes, numbers = mentions["C"][:2], mentions["S"][:2], dict(enumerate(mentions["N"][:2], start=1))
    nouns = {"any": (None, None)} | {f"C{i}": (color, None) for i, color in enumerate(colors, start=1)}
    nouns |= {f"S{i}": (None, shape) for i, shape in enumerate(shapes, start=1)}
    if shapes:
        nouns |= {f"C{i + 1}S": (color, shapes[min(i, len(shapes) - 1)]) for i, color in enumerate(colors)}
    towers = any(box.tower for box in boxes)
    places = ("base", "top", "second") if towers else ("edge", "free", "bottom", "corner", "right", "highest")
    sizes = np.array([box.count(None, None, "") for box in boxes])
    yield "always", True
    for (name, noun), place in itertools.product(nouns.items(), ("", *places)):
        found = np.array([box.count(*noun, place) for box in boxes])
        total, each = {">0": found.sum() > 0}, {">0": found > 0, "only": found == sizes}
        for i, n in numbers.items():
            total |= {f"=N{i}": found.sum() == n, f">=N{i}": found.sum() >= n}
            each |= {f"=N{i}": found == n, f">=N{i}": found >= n}
            each |= {f"of=N{i}": (found > 0) & (sizes == n), f"of>=N{i}": (found > 0) & (sizes >= n)}
        for test, holds in total.items():
            yield f"total {name} {place} {test}", holds
        for test, holds in each.items():
            yield from quantified(f"{name} {place} {test}", holds, numbers)
    present = [{color for color in COLORS if box.count(color, None, "")} for box in boxes]
    for n in (1, 2, 3):
        yield from quantified(f"{n} colors", np.array([len(some) == n for some in present]), {})
    if len(colors) == 2:
        yield from quantified("only C1 C2", np.array([some == set(colors) for some in present]), {})
        yield from quantified("C1 and C2", np.array([some >= set(colors) for some in present]), {})
    if towers:
        for (i, low), (j, high) in itertools.product(enumerate(colors, start=1), repeat=2):
            over = [(low, high) in zip(box.tower, box.tower[1:], strict=False) for box in boxes]
            yield from quantified(f"C{j} over C{i}", np.array(over), {})
        ends = {"height": [len(b.tower) for b in boxes], "base": [b.tower[:1] for b in boxes]}
        for name, values in (ends | {"top": [b.tower[-1:] for b in boxes]}).items():
            different = len({str(value) for value in values})
            yield from ((f"some same {name}", different < 3), (f"all same {name}", different == 1))


def quantified(name: str, holds: np.ndarray, numbers: dict[int, int]) -> Iterator[tuple[str, bool]]:
    """Whether a property holds of some box, of each, and of as many as a number says."""
    yield from ((f"some {name}", holds.any()), (f"each {name}", holds.all()))
    for i, n in numbers.items():
        yield from ((f"=N{i} boxes {name}", holds.sum() == n), (f">=N{i} boxes {name}", holds.sum() >= n))


class Reader:
    """The classifier. Args: statements, the facts of their pictures, and whether they are true."""

    def __init__(self, sentences: Sequence[str], pictures: Sequence[Boxes], truth: np.ndarray):
        from sklearn.feature_extraction import DictVectorizer
        from sklearn.svm import SVC

        self.vectorizers = DictVectorizer(dtype=np.float32), DictVectorizer(dtype=np.float32)
        for vectorizer, found in zip(self.vectorizers, self._features(sentences, pictures), strict=True):
            vectorizer.fit(found)
        self.known = self._vectors(sentences, pictures)
        self.svm = SVC(C=C, kernel="precomputed").fit(self._kernel(self.known), truth)

    def predict(self, sentences: Sequence[str], pictures: Sequence[Boxes]) -> np.ndarray:
        """Whether statements are true."""
        return self.svm.predict(self._kernel(self._vectors(sentences, pictures)))

    def _features(self, sentences: Sequence[str], pictures: Sequence[Boxes]) -> tuple[list[dict], list[dict]]:
        read = [abstract(sentence) for sentence in sentences]
        texts = [dict.fromkeys(["<", *words, " ".join(words)], 1.0) for words, _ in read]
        scenes = [
            {name: 1.0 if holds else -1.0 for name, holds in properties(boxes, mentions)}
            for boxes, (_, mentions) in zip(pictures, read, strict=True)
        ]
        return texts, scenes

    def _vectors(self, sentences: Sequence[str], pictures: Sequence[Boxes]) -> list:
        vectors = []
        for vectorizer, found in zip(self.vectorizers, self._features(sentences, pictures), strict=True):
            matrix = vectorizer.transform(found)
            lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(1)))
            vectors.append(matrix.multiply(1 / lengths).tocsr())
        return vectors

    def _kernel(self, new: list) -> np.ndarray:
        words, scenes = ((a @ b.T).toarray() for a, b in zip(new, self.known, strict=True))
        return words * scenes


def records(path: Path) -> list[JsonObject]:
    """All records of a file."""
    return [record for _, record in read_json_lines(path)]


def official(folder: Path, split: str, run: str | None = None) -> tuple[list[str], list[Boxes], np.ndarray]:
    """Statements of an official split, facts of their boxes, true or read from pixels by a run, and their labels."""
    rows, boxes = records(folder / f"{split}.jsonl.gz"), records(folder / f"{split}_boxes.jsonl")
    facts = [box["label"] for box in boxes]
    if run is not None:
        with tarfile.open(folder / "boxes.tar") as tar:
            pictures = [{"image": tar.extractfile(box["image"]).read()} for box in boxes]
        facts = [found["labels"] for found in bertgpt.predict(bertgpt.load(run), pictures, batch_size=128)]
    truth = np.array([row["label"] == "true" for row in rows])
    return [row["sentence"] for row in rows], list(itertools.batched(facts, 3, strict=True)), truth


def main(folder: Path, run: str | None = None) -> None:
    """Prints the accuracy on test-P and test-H of readers trained on NLVR's and on synthetic statements."""
    drawn = records(folder / "synthetic_statements.jsonl")
    synthetic = [row["sentence"] for row in drawn], [row["boxes"] for row in drawn]
    synthetic = *synthetic, np.array([row["label"] == "true" for row in drawn])
    dev, tests = official(folder, "dev"), {"true": [official(folder, split) for split in ("test", "hidden")]}
    if run is not None:
        tests["predicted"] = [official(folder, split, run) for split in ("test", "hidden")]
    both = [*dev[0], *synthetic[0]], [*dev[1], *synthetic[1]], np.concatenate([dev[2], synthetic[2]])
    for name, known in {"dev": dev, "synthetic": synthetic, "dev + synthetic": both}.items():
        reader = Reader(*known)
        for facts, splits in tests.items():
            p, h = ((reader.predict(*split[:2]) == split[2]).mean() for split in splits)
            print(f"{name}, {len(known[0]):,} statements, {facts} facts: test-P {p:.3f}, test-H {h:.3f}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3])
