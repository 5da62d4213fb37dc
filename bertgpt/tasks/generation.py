"""Text to text: translation, abstractive summaries, titles. Pairs of a source and a target as data, BLEU and ROUGE."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from bertgpt.data.loader import Batches
from bertgpt.data.packing import template_of
from bertgpt.data.sequences import SequenceDataset, Side
from bertgpt.data.sources.text import CJK, Record, Split, clean, read_lines, record_of, resolve, texts_of
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.objectives.core import Targets
from bertgpt.tasks.source import TaskFiles, cut_note, need, some_of
from bertgpt.types import Curve, DataRequest, EvalResult, Metric, UserError

ALIGNED = "{}"  # in a path: one file for each language


class Pair(NamedTuple):
    """A source and what may be written for it."""

    source: str
    targets: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class TextToText(TaskFiles):
    """Sources with one or several targets each, from the files that every task reads.

    Also from parallel files with a sentence in each line: of `path="corpus/train.{}"`, {} stands for source_field and
    for target_field.
    """

    source_field: str = "source"
    """column that holds the source; a list in a .jsonl file is joined"""
    target_field: str = "target"
    """column that holds the target; a list in a .jsonl file holds several, to learn from and to be judged by"""
    prefix: str = ""
    """what to put before every source, such as “summarize: ”"""
    target_len: int = 64
    """tokens of a target in a row, the end mark included"""
    architecture: Literal["encoder_decoder", "decoder"] = "encoder_decoder"
    """rows for Seq2Seq, which hold source and target apart, or for ConditionalLM: source, `between` and target in one
    row of seq_len tokens, of which target_len are for the target"""
    between: str = "\n"
    """architecture="decoder": what stands between source and target"""
    tokenize: str | None = None
    """how BLEU cuts texts into words, by sacreBLEU's name: 13a, zh, ja-mecab, char, …; None: by their characters"""
    metric: Literal["bleu", "rouge"] = "rouge"
    """BLEU and chrF of the whole split (sacreBLEU), or the mean ROUGE-1, 2 and L (F1, English stems) of its texts"""
    packed: bool = False
    """several pairs in a row where they fit, with the same loss; `batch_size` counts rows"""

    def __post_init__(self):
        super().__post_init__()
        if self.target_len < 2:
            raise UserError(f"TextToText: target_len={self.target_len} must be at least 2")
        if self.architecture == "decoder" and self.target_len + 2 > self.seq_len:
            raise UserError(
                f"TextToText: target_len={self.target_len} leaves no room for a source in seq_len={self.seq_len}"
            )

    @property
    def inputs(self) -> tuple[str, ...]:
        """Fields of a record that is to be predicted."""
        return (self.source_field,)

    @property
    def answer_len(self) -> int:
        """Tokens of an answer at most, unless an evaluation says how to decode."""
        return self.target_len

    @property
    def key_fields(self) -> tuple[str, ...]:
        return (self.source_field,)

    def read(self, path: str) -> Iterator[Record]:
        """The records of one source of files."""
        if ALIGNED not in path:
            yield from super().read(path)
            return
        files = [path.replace(ALIGNED, name) for name in (self.source_field, self.target_field)]
        readers = [read_lines(resolve(file)[0]) for file in files]
        line = 0
        while True:
            line += 1
            texts = [next(reader, None) for reader in readers]
            if None in texts:
                break
            yield Record(dict(zip((self.source_field, self.target_field), texts, strict=True)), files[0], line)
        if texts != [None, None]:
            short, long = files if texts[0] is None else files[::-1]
            raise UserError(f"{long}:{line}: {short} has no line {line}, but lines must correspond")

    def examples(self, split: Split) -> list[Pair]:
        """The pairs of a split, cleaned.

        Raises:
          UserError: a missing column, an empty source or target, or no pair at all.
        """
        pairs = []
        for record in self.records(split):
            source = " ".join(self._texts(record, self.source_field))
            targets = tuple(self._texts(record, self.target_field))
            for name, text in ((self.source_field, source), (self.target_field, min(targets, default=""))):
                if not text:
                    raise UserError(f"{record.file}:{record.line}: {name!r} is empty")
            pairs.append(Pair(source, targets))
        if not pairs:
            raise self.none_of(split)
        return some_of(pairs, self.max_examples, self.subset) if split == "train" else pairs

    def _texts(self, record: Record, name: str) -> list[str]:
        return [clean(text, self.strip_html) for text in texts_of(record, name)]

    def texts(self, split: Split) -> Iterator[str]:
        """Sources with their prefix, and targets, to train a tokenizer on."""
        for pair in self.examples(split):
            yield self.prefix + pair.source
            yield from pair.targets

    def make(self, request: DataRequest) -> Batches:
        """Batches of one split; of several targets each makes a pair."""
        return Batches(
            self._rows(self.examples(request.split), request.tokenizer),
            request.batch_size,
            request.seed,
            request.shuffle,
        )

    def _rows(self, pairs: Sequence[Pair], tokenizer: Tokenizer) -> SequenceDataset:
        template, vocab_size = template_of(tokenizer.vocab), tokenizer.vocab.size
        sources, long_sources = self._sources([pair.source for pair in pairs], tokenizer)
        which = [number for number, pair in enumerate(pairs) for _ in pair.targets]
        targets = tokenizer.encode([text for pair in pairs for text in pair.targets])
        room = self.target_len - 1
        notes = cut_note(long_sources, len(pairs), "sources", self.seq_len)
        notes += cut_note(sum(len(ids) > room for ids in targets), len(targets), "targets", self.target_len)
        sources, targets = [sources[number] for number in which], [[*ids[:room], template.end] for ids in targets]
        settings = {"vocab_size": vocab_size, "packed": self.packed, "notes": notes, "examples": pairs}
        if self.architecture == "encoder_decoder":
            inputs = Side(sources, self.seq_len, template.pad)
            return SequenceDataset(inputs, Side(targets, self.target_len, template.pad), **settings)
        texts = [[*source, *target] for source, target in zip(sources, targets, strict=True)]
        mask = [[0] * len(s) + [1] * len(t) for s, t in zip(sources, targets, strict=True)]
        return SequenceDataset(Side(texts, self.seq_len, template.pad), mask=mask, **settings)

    def _sources(self, texts: Sequence[str], tokenizer: Tokenizer) -> tuple[list[list[int]], int]:
        """(ids of the sources as a model reads them, how many had to be cut)."""
        template = template_of(tokenizer.vocab)
        if self.architecture == "encoder_decoder":
            after, room = [template.end], self.seq_len
        else:
            after, room = tokenizer.encode([self.between], parse_special=True)[0], self.seq_len - self.target_len
        room -= len(template.start) + len(after)
        if room < 1:
            raise UserError(f"TextToText: seq_len={self.seq_len} leaves no room for a source")
        ids = tokenizer.encode([self.prefix + text for text in texts])
        return [[*template.start, *row[:room], *after] for row in ids], sum(len(row) > room for row in ids)

    def prompts(self, split: Split, tokenizer: Tokenizer) -> list[list[int]]:
        """What a model reads before it writes the targets of a split, for generation."""
        return self._sources([pair.source for pair in self.examples(split)], tokenizer)[0]

    def prompts_of(self, records: Sequence[dict[str, Any]], tokenizer: Tokenizer) -> list[list[int]]:
        """The same of new records, which have the fields in `inputs`."""
        named = [record_of(record, "record", number) for number, record in enumerate(records, start=1)]
        return self._sources([" ".join(self._texts(record, self.source_field)) for record in named], tokenizer)[0]

    def evaluate_texts(self, split: Split, texts: Sequence[str]) -> EvalResult:
        """Scores of texts written for the first sources of a split, in their order, against all targets of each."""
        references = [pair.targets for pair in self.examples(split)][: len(texts)]
        if self.metric == "bleu":
            scores = bleu(texts, references, self.tokenize)
            return EvalResult(tuple(Metric(name, value, True) for name, value in scores.items()))
        return evaluate_summaries(texts, references)


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]], tokenize: str | None = None) -> dict[str, float]:
    """BLEU (Papineni et al. 2002) and chrF (Popović 2015) of a corpus, in percent, by sacreBLEU.

    Texts may have different numbers of references. `tokenize` is sacreBLEU's name of how BLEU cuts texts into words;
    None: “zh” where references are mostly Chinese or Japanese characters, else its default, “13a”.
    """
    if tokenize is None:
        tokenize = "zh" if mostly_cjk([text for some in references for text in some]) else "13a"
    metrics = need("sacrebleu.metrics", "sacrebleu")
    most = max(map(len, references))
    streams = [[some[n] if n < len(some) else None for some in references] for n in range(most)]
    scores = {"bleu": metrics.BLEU(tokenize=tokenize), "chrf": metrics.CHRF()}
    return {name: float(metric.corpus_score(list(texts), streams).score) for name, metric in scores.items()}


ROUGE = ("rouge1", "rouge2", "rougeL")


def rouge(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean over texts of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), F1 in percent, by rouge-score with its stemmer.

    Of several references each measure takes the one that agrees best. Only letters a–z and digits count; but where
    references are mostly in other letters, their words do, and each Chinese or Japanese character.
    """
    return evaluate_summaries(texts, references).values


def evaluate_summaries(texts: Sequence[str], references: Sequence[Sequence[str]]) -> EvalResult:
    """As `rouge`, with how ROUGE-L spreads over the texts."""
    words = rouge_words([text for some in references for text in some])
    scorer = need("rouge_score.rouge_scorer", "rouge-score").RougeScorer(list(ROUGE), tokenizer=words)
    found = [scorer.score_multi(list(some), text) for text, some in zip(texts, references, strict=True)]
    scores = {name: 100.0 * np.array([score[name].fmeasure for score in found]) for name in ROUGE}
    shares = np.linspace(0.0, 1.0, len(found))
    spread = Curve("rougeL", "share of texts", "ROUGE-L at least", shares, np.sort(scores["rougeL"])[::-1])
    metrics = tuple(Metric(name, float(np.mean(values)), True) for name, values in scores.items())
    return EvalResult(metrics, figures=(spread,))


class AnyWords:
    """Words of any script, in lower case, and Chinese and Japanese characters: a tokenizer for rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        return re.findall(rf"[{CJK}]|[^\W_{CJK}]+", text.lower())


def rouge_words(references: Sequence[str]) -> Any:
    """The tokenizer for texts like these: rouge-score's own, with its stemmer, if most of their letters are a–z."""
    letters = "".join(c for text in references for c in text if c.isalpha())
    if 2 * sum(c.isascii() for c in letters) >= len(letters):
        return need("rouge_score.tokenizers", "rouge-score").DefaultTokenizer(use_stemmer=True)
    return AnyWords()


def mostly_cjk(texts: Sequence[str]) -> bool:
    """Whether more than half of the characters that are no space are Chinese or Japanese."""
    joined = "".join("".join(texts).split())
    return 2 * len(re.findall(f"[{CJK}]", joined)) > len(joined)


Prepared = Callable[[], Iterator[Targets]]


@dataclasses.dataclass(frozen=True)
class FirstWords:
    """Copies the beginning of the source."""

    words: int | None = None
    """so many words; None: all of it"""

    @property
    def name(self) -> str:
        return "copy of the source" if self.words is None else f"first {self.words} words"

    def score(self, data: Any, train: Any, split: Split, prepared: Prepared) -> dict[str, float]:
        """What the data's measure says of it on a split."""
        del train, prepared
        return data.evaluate_texts(split, [copied(pair.source, self.words) for pair in data.examples(split)]).values


@dataclasses.dataclass(frozen=True)
class Nearest:
    """The target of the training source that is most similar, by cosine of TF-IDF weighted words (scikit-learn)."""

    name: str = "target of the nearest source"
    """name in tables"""

    def score(self, data: Any, train: Any, split: Split, prepared: Prepared) -> dict[str, float]:
        """What the data's measure says of it on a split."""
        del prepared
        text = need("sklearn.feature_extraction.text", "scikit-learn")
        vectorizer = text.TfidfVectorizer(sublinear_tf=True, token_pattern=rf"[{CJK}]|[^\W{CJK}]+")
        known, held_out = train.dataset.examples, data.examples(split)
        table = vectorizer.fit_transform([pair.source for pair in known])
        nearest = (vectorizer.transform([pair.source for pair in held_out]) @ table.T).argmax(axis=1)
        return data.evaluate_texts(split, [known[int(i)].targets[0] for i in np.asarray(nearest).ravel()]).values


def copied(text: str, words: int | None) -> str:
    """The first words of a text, or all of it."""
    return text if words is None else " ".join(text.split()[:words])
