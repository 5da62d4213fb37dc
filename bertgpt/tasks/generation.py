"""Text to text: translation, abstractive summaries, titles. Pairs of a source and a target, scored by BLEU or ROUGE."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np

from bertgpt.data.examples import SequenceDataset, Side
from bertgpt.data.images.reading import ImageReference
from bertgpt.data.loader import Batches
from bertgpt.data.packing import template_of
from bertgpt.data.sources.text import CJK, Record, facts, resolve, texts_of
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.io.files import read_lines
from bertgpt.ranges import Count, Range
from bertgpt.tasks.source import (
    Loaded,
    TaskFiles,
    data_of,
    log_warnings,
    need,
    numbered,
    parsed,
    truncated,
    warnings_of,
)
from bertgpt.types import (
    Curve,
    DataConfig,
    DataRequest,
    Dataset,
    EvalResult,
    GenerationTask,
    HeldOut,
    JsonObject,
    Metric,
    Split,
    UserError,
)

ALIGNED = "{}"  # in a path: two parallel files


class Pair(NamedTuple):
    """A source and its reference targets."""

    source: str
    targets: tuple[str, ...]
    images: tuple[ImageReference, ...] = ()
    """the image that they are about, or the frames of a video"""
    group: str = ""
    """the kind of the example, such as the type of a question"""


@dataclasses.dataclass(frozen=True)
class TextToText(TaskFiles, GenerationTask):
    """Sources with one or several targets each.

    Read from records, or from parallel files with one sentence a line: in `path="corpus/train.{}"`, {} stands for
    `source_field` and for `target_field`.
    """

    source_field: str = "source"
    """column that holds the source; a list in a .jsonl file is joined"""
    target_field: str = "target"
    """column that holds the target; a list in a .jsonl file holds several, to learn from and to score against"""
    prefix: str = ""
    """text before every source, such as “summarize: ”"""
    target_len: Annotated[int, Range(2)] = 64
    """most tokens of a target, the end token included"""
    architecture: Literal["encoder_decoder", "decoder"] = "encoder_decoder"
    """sequences for Seq2Seq, with separate sources and targets, or for ConditionalLM: source, `between` and target in
    one sequence of seq_len tokens, of which target_len are for the target"""
    between: str = "\n"
    """architecture="decoder": separates source and target"""
    tokenize: str | None = None
    """sacreBLEU's name of the tokenisation for BLEU: 13a, zh, ja-mecab, char, …; None: zh or 13a, by the characters"""
    metric: Literal["bleu", "rouge"] = "rouge"
    """corpus BLEU and chrF (sacreBLEU), or the mean ROUGE-1, 2 and L (F1, English stems)"""
    packed: bool = False
    """pack several pairs into a sequence where they fit, with the same loss; `batch_size` counts sequences"""

    def __post_init__(self):
        super().__post_init__()
        if self.architecture == "decoder" and self.target_len + 2 > self.seq_len:
            raise UserError(
                f"{type(self).__name__}: target_len={self.target_len} leaves no room for a source in"
                f" seq_len={self.seq_len}"
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

    def parts_of(self, path: str) -> Sequence[str]:
        """The two parallel files of a path with {}, or the path itself."""
        return (
            [path.replace(ALIGNED, name) for name in (self.source_field, self.target_field)]
            if ALIGNED in path
            else [path]
        )

    def read(self, path: str) -> Sequence[Record]:
        """The records of a path."""
        if ALIGNED not in path:
            return super().read(path)
        fields = self.source_field, self.target_field
        source, target = self.parts_of(path)
        target = resolve(target)[0]
        return parsed(read_aligned, resolve(source)[0], target, fields, tuple(facts(target).values()))

    def load(self, split: Split) -> Loaded:
        """The pairs of a split.

        Raises:
          UserError: a missing column, an empty source or target, or no pair at all.
        """
        pairs = []
        for record in self.records(split):
            targets = self._targets(record)
            pairs.append(Pair(self._source(record), targets))
        return Loaded(self.selected(pairs, split))

    def _targets(self, record: Record) -> tuple[str, ...]:
        targets = tuple(self._texts(record, self.target_field))
        if not targets or not all(text.strip() for text in targets):
            raise UserError(f"{record.file}:{record.line}: {self.target_field!r} is empty")
        return targets

    def _source(self, record: Record) -> str:
        source = " ".join(self._texts(record, self.source_field))
        if not source.strip():
            raise UserError(f"{record.file}:{record.line}: {self.source_field!r} is empty")
        return source

    def _texts(self, record: Record, name: str) -> list[str]:
        return [self.plain(text) for text in texts_of(record, name)]

    def texts(self, split: Split = "train") -> Iterator[str]:
        """Sources with their prefix, and targets, to train a tokenizer on."""
        for pair in self.examples(split):
            yield self.prefix + pair.source
            yield from pair.targets

    def make(self, request: DataRequest) -> Batches:
        """Batches of one split; each target of a source makes a pair."""
        dataset = self._dataset(self.examples(request.split), request.tokenizer)
        return Batches(dataset, request.batch_size, request.seed, request.shuffle)

    def _dataset(self, pairs: Sequence[Pair], tokenizer: Tokenizer) -> SequenceDataset:
        template = template_of(tokenizer.vocab)
        sources, long_sources = self._sources([pair.source for pair in pairs], tokenizer)
        targets = tokenizer.encode([text for pair in pairs for text in pair.targets])
        room = self.target_len - 1
        warnings = warnings_of(
            truncated(long_sources, len(pairs), "sources", self.seq_len),
            truncated(sum(len(ids) > room for ids in targets), len(targets), "targets", self.target_len),
        )
        sources = [source for source, pair in zip(sources, pairs, strict=True) for _ in pair.targets]
        targets = [[*ids[:room], template.end] for ids in targets]
        if self.architecture == "encoder_decoder":
            inputs, mask = Side(sources, self.seq_len, template.pad), None
            outputs = Side(targets, self.target_len, template.pad)
        else:
            texts = [[*source, *target] for source, target in zip(sources, targets, strict=True)]
            mask = [[0] * len(s) + [1] * len(t) for s, t in zip(sources, targets, strict=True)]
            inputs, outputs = Side(texts, self.seq_len, template.pad), None
        return SequenceDataset(
            inputs,
            outputs,
            mask=mask,
            vocab_size=tokenizer.vocab.size,
            packed=self.packed,
            warnings=warnings,
            examples=pairs,
        )

    def _sources(self, texts: Sequence[str], tokenizer: Tokenizer) -> tuple[list[list[int]], int]:
        """(token ids of the sources as a model reads them, how many were truncated)."""
        template = template_of(tokenizer.vocab)
        if self.architecture == "encoder_decoder":
            after, room = [template.end], self.seq_len
        else:
            after, room = tokenizer.encode([self.between], parse_special=True)[0], self.seq_len - self.target_len
        room -= len(template.start) + len(after)
        if room < 1:
            raise UserError(f"{type(self).__name__}: seq_len={self.seq_len} leaves no room for a source")
        ids = tokenizer.encode([self.prefix + text for text in texts])
        return [[*template.start, *row[:room], *after] for row in ids], sum(len(row) > room for row in ids)

    def prompts(self, split: Split, tokenizer: Tokenizer) -> list[list[int]]:
        """What a model reads before it generates the targets of a split."""
        return self._sources([pair.source for pair in self.examples(split)], tokenizer)[0]

    def prompts_of(self, records: Sequence[JsonObject], tokenizer: Tokenizer) -> list[list[int]]:
        """The same of new records, which have the fields in `inputs`."""
        texts = [self._source(record) for record in numbered(records)]
        prompts, long = self._sources(texts, tokenizer)
        log_warnings(truncated(long, len(texts), "sources", self.seq_len))
        return prompts

    @property
    def scores_outputs(self) -> bool:
        """Only generated texts are scored."""
        return False

    def evaluate(self, dataset: Dataset, outputs: dict[str, np.ndarray]) -> EvalResult:
        """No scores: the loss tells what there is to know of outputs."""
        return EvalResult()

    def evaluate_texts(self, split: Split, texts: Sequence[str]) -> EvalResult:
        """Scores of texts generated for the first sources of a split, in order, against all targets of each."""
        references = [pair.targets for pair in self.examples(split)][: len(texts)]
        if self.metric == "bleu":
            return EvalResult(bleu(texts, references, self.tokenize))
        return evaluate_summaries(texts, references)


def read_aligned(source: str, target: str, fields: tuple[str, str], facts: tuple) -> Iterator[Record]:
    """The pairs of lines of two parallel files, as records with these two fields.

    `facts` identify the target file's version; they only make `parsed` read it again if it changes.
    """
    del facts
    readers = [read_lines(source), read_lines(target)]
    line = 0
    while True:
        line += 1
        texts = [next(reader, None) for reader in readers]
        if None in texts:
            break
        yield Record({name: text.rstrip("\r\n") for name, text in zip(fields, texts, strict=True)}, source, line)
    if texts != [None, None]:
        short, long = (source, target) if texts[0] is None else (target, source)
        raise UserError(f"{long}:{line}: {short} has no line {line}, but lines must correspond")


# -- scores -----------------------------------------------------------------------------------------------------------


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]], tokenize: str | None = None) -> tuple[Metric, ...]:
    """BLEU (Papineni et al. 2002) and chrF (Popović 2015) of a corpus, in percent, by sacreBLEU.

    Args:
      texts: generated texts.
      references: of each text; their numbers may differ.
      tokenize: sacreBLEU's name of the tokenisation for BLEU; None: “zh” where references are mostly Chinese or
        Japanese characters, else its default, “13a”.

    Raises:
      UserError: sacreBLEU is missing.
    """
    if tokenize is None:
        tokenize = "zh" if mostly_cjk([text for some in references for text in some]) else "13a"
    metrics = need("sacrebleu.metrics", "sacrebleu")
    most = max(map(len, references))
    streams = [[some[n] if n < len(some) else None for some in references] for n in range(most)]
    scores = {"bleu": metrics.BLEU(tokenize=tokenize), "chrf": metrics.CHRF()}
    return tuple(
        Metric(name, float(metric.corpus_score(list(texts), streams).score), True) for name, metric in scores.items()
    )


ROUGE = ("rouge1", "rouge2", "rougeL")


def evaluate_summaries(texts: Sequence[str], references: Sequence[Sequence[str]]) -> EvalResult:
    """Mean over texts of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), F1 in percent, by rouge-score with its stemmer.

    For several references each metric takes the best match. Only letters a–z and digits count; where references are
    mostly in other letters, their words count, and each Chinese or Japanese character. The curve shows how ROUGE-L is
    distributed over the texts.

    Raises:
      UserError: rouge-score is missing.
    """
    words = rouge_words([text for some in references for text in some])
    scorer = need("rouge_score.rouge_scorer", "rouge-score").RougeScorer(list(ROUGE), tokenizer=words)
    found = [scorer.score_multi(list(some), text) for text, some in zip(texts, references, strict=True)]
    scores = {name: 100.0 * np.array([score[name].fmeasure for score in found]) for name in ROUGE}
    shares = np.linspace(0.0, 1.0, len(found))
    spread = Curve("rougeL", "fraction of texts", "ROUGE-L at least", shares, np.sort(scores["rougeL"])[::-1])
    metrics = tuple(Metric(name, float(np.mean(values)), True) for name, values in scores.items())
    return EvalResult(metrics, figures=(spread,))


class AnyWords:
    """A tokenizer for rouge-score: words of any script, in lower case, and Chinese and Japanese characters."""

    def tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        return re.findall(rf"[{CJK}]|[^\W_{CJK}]+", text.lower())


def rouge_words(references: Sequence[str]) -> object:
    """The tokenizer for such references: rouge-score's own, with its stemmer, if most of their letters are a–z."""
    letters = "".join(c for text in references for c in text if c.isalpha())
    if 2 * sum(c.isascii() for c in letters) >= len(letters):
        return need("rouge_score.tokenizers", "rouge-score").DefaultTokenizer(use_stemmer=True)
    return AnyWords()


def mostly_cjk(texts: Sequence[str]) -> bool:
    """Whether more than half of all characters, without spaces, are Chinese or Japanese."""
    joined = "".join("".join(texts).split())
    return 2 * len(re.findall(f"[{CJK}]", joined)) > len(joined)


# -- baselines --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FirstWords:
    """Copies the beginning of the source."""

    words: Count | None = None
    """number of words; None: all"""

    @property
    def name(self) -> str:
        """Name in tables."""
        return "copy of the source" if self.words is None else f"first {self.words} words"

    def fit(self, data: DataConfig, train: Batches) -> Callable[[HeldOut], EvalResult]:
        """Returns a function with the metrics of the task on a held-out split."""
        del data, train

        def predict(held_out: HeldOut) -> EvalResult:
            task = data_of(held_out, TextToText)
            copies = [first_words(pair.source, self.words) for pair in task.examples(held_out.split)]
            return task.evaluate_texts(held_out.split, copies)

        return predict


@dataclasses.dataclass(frozen=True)
class Nearest:
    """Predicts the target of the most similar training source, by cosine of TF-IDF weighted words (scikit-learn)."""

    name: str = "target of the nearest source"
    """name in tables"""

    def fit(self, data: DataConfig, train: Batches) -> Callable[[HeldOut], EvalResult]:
        """Weights the words of the training sources; returns a function with the metrics of the task."""
        if not isinstance(train.dataset, SequenceDataset):
            raise UserError(f"{self.name}: a baseline for pairs of texts, not for {type(data).__name__}")
        text = need("sklearn.feature_extraction.text", "scikit-learn")
        vectorizer = text.TfidfVectorizer(sublinear_tf=True, token_pattern=rf"[{CJK}]|[^\W{CJK}]+")
        known = train.dataset.examples
        table = vectorizer.fit_transform([pair.source for pair in known])

        def predict(held_out: HeldOut) -> EvalResult:
            task = data_of(held_out, TextToText)
            sources = vectorizer.transform([pair.source for pair in task.examples(held_out.split)])
            nearest = np.asarray((sources @ table.T).argmax(axis=1)).ravel()
            return task.evaluate_texts(held_out.split, [known[int(i)].targets[0] for i in nearest])

        return predict


def first_words(text: str, words: int | None) -> str:
    """The first words of a text, or all of it."""
    return text if words is None else " ".join(text.split()[:words])
