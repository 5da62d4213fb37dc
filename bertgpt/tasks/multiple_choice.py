"""Multiple choice: a question, perhaps about a text, with two or more choices of which one is correct.

The suffix of a file decides its format: .json files are those of DREAM (Sun et al. 2019), dialogues with questions; all
others hold records, .jsonl files with the choices as a list, tables with a column for each choice.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from bertgpt.data.examples import TextDataset, encode_texts
from bertgpt.data.loader import Batches
from bertgpt.data.sources.files import suffix_of
from bertgpt.data.sources.text import Record, clean, field, read_records, text_of, texts_of
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.tasks.source import (
    Loaded,
    TaskFiles,
    data_of,
    listed,
    numbered,
    parsed,
    require_text,
    truncated,
    warnings_of,
)
from bertgpt.tasks.squad import read_json, words_of
from bertgpt.types import (
    TEXT_SPEC,
    Batch,
    BatchSpec,
    Confusion,
    DataConfig,
    DataRequest,
    DataWarning,
    EvalResult,
    Field,
    HeldOut,
    JsonObject,
    Metric,
    Split,
    Table,
    UserError,
)


class Choice(NamedTuple):
    """A question and its choices."""

    text: str
    """first text of each pair: the context, or the question if there is none"""
    choices: tuple[str, ...]
    """second texts of the pairs: each choice, after the question if there is a context"""
    answers: tuple[str, ...]
    """the choices as the file has them"""
    label: int
    """index of the correct choice; −1: not known"""


@dataclasses.dataclass(frozen=True)
class MultipleChoice(TaskFiles):
    """Questions with any number of choices, each encoded as [CLS] text [SEP] choice [SEP]."""

    question_field: str = "question"
    """column that holds the question, or the beginning of a sentence that the choices continue"""
    context_field: str | None = None
    """column with the text that the question is about, a text or a list of lines; choices are then encoded as
    [CLS] context [SEP] question choice [SEP]"""
    choices_field: str = "choices"
    """field of a .jsonl file with the list of choices"""
    choice_fields: tuple[str, ...] = ()
    """columns that hold one choice each, in place of `choices_field`"""
    label_field: str = "label"
    """column that names the correct choice"""
    label_as: Literal["number", "text"] = "number"
    """whether that column holds the number of the choice, from 0, or its text"""
    label_names: tuple[str, ...] = ()
    """how the column names the first, second, … choice, such as A B C D; (): by number"""

    def __post_init__(self):
        super().__post_init__()
        if len(self.choice_fields) == 1:
            raise UserError(f"MultipleChoice: choice_fields={self.choice_fields} must be two or more columns")
        if len(set(self.label_names)) < len(self.label_names):
            raise UserError(f"MultipleChoice: label_names={self.label_names} must be different ones")
        if self.label_names and self.label_as == "text":
            raise UserError("MultipleChoice: label_names have no use where label_as='text'")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Fields of a record that is to be answered."""
        context = () if self.context_field is None else (self.context_field,)
        return (*context, self.question_field, *(self.choice_fields or (self.choices_field,)))

    @property
    def key_fields(self) -> tuple[str, ...]:
        return (self.context_field or self.question_field,)

    def read(self, path: str) -> Sequence[Record]:
        """Every question of a path."""
        return parsed(read_questions, path, self.columns)

    def texts(self, split: Split = "train") -> Iterator[str]:
        """Every text of a split, to train a tokenizer on."""
        for record in self.records(split):
            item = self._choice(record, -1)
            yield item.text
            yield from item.choices

    def load(self, split: Split) -> Loaded:
        """The questions of a split.

        Raises:
          UserError: a question has no text or fewer than two choices, its label names none of them, a column is
            missing, or there is no question.
        """
        return Loaded(self.selected([self._choice(record, None) for record in self.records(split)], split))

    def make(self, request: DataRequest) -> Batches:
        """Batches of one split, held in memory."""
        dataset = ChoiceDataset(self.examples(request.split), request.tokenizer, self.seq_len)
        return Batches(dataset, request.batch_size, request.seed, request.shuffle)

    def predict_batches(self, records: Sequence[JsonObject], batch_size: int, tokenizer: Tokenizer) -> Batches:
        """Batches of new questions, in order, without labels."""
        questions = [self._choice(record, -1) for record in numbered(records)]
        return Batches(ChoiceDataset(questions, tokenizer, self.seq_len), batch_size, 0, shuffle=False)

    def describe(self, dataset: "ChoiceDataset", outputs: dict[str, np.ndarray]) -> Iterator[JsonObject]:
        """What `predict` prints for each question: the most probable choice, its index, and all probabilities."""
        for item, row in zip(dataset.examples, outputs["probabilities"], strict=True):
            every = [round(float(p), 4) for p in row[: len(item.answers)]]
            best = int(np.argmax(every))
            yield {"choice": item.answers[best], "number": best, "probability": every[best], "probabilities": every}

    def evaluate(self, dataset: "ChoiceDataset", outputs: dict[str, np.ndarray]) -> EvalResult:
        """Accuracy, that of guessing, and a table by position of the correct choice, for models that favour one."""
        known = np.array([item.label >= 0 for item in dataset.examples])
        label = np.array([item.label for item in dataset.examples])[known]
        predicted = outputs["probabilities"].argmax(axis=1)[known]
        chance = np.mean([1.0 / len(item.answers) for item in dataset.examples])
        lines = [
            [f"{i + 1}", f"{np.mean(predicted[label == i] == i):.3f}", f"{np.sum(label == i):,}"]
            + [f"{np.sum(predicted == i):,}"]
            for i in np.unique(label)
        ]
        table = Table("choices", ("position", "accuracy", "correct", "predicted"), lines)
        most = int(max(label.max(), predicted.max())) + 1
        counts = np.zeros((most, most), np.int64)
        np.add.at(counts, (label, predicted), 1)
        confusion = Confusion(tuple(f"choice {i + 1}" for i in range(most)), counts)
        accuracy = Metric("accuracy", float(np.mean(predicted == label)), True)
        return EvalResult((accuracy, Metric("chance", float(chance))), (table,), (confusion,))

    def _choice(self, record: Record, label: int | None) -> Choice:
        """The question of a record; `label` None: the label is read from the record too."""
        question = self.plain(require_text(record, self.question_field))
        where = f"{record.file}:{record.line}"
        if self.choice_fields:
            choices = [text_of(record, name) for name in self.choice_fields]
        elif self.choices_field in record.lists:
            choices = texts_of(record, self.choices_field)
        else:
            found = text_of(record, self.choices_field)
            raise UserError(f"{where}: {self.choices_field!r} is {found!r:.60}, not a list of choices")
        if len(choices) < 2:
            raise UserError(f"{where}: {self.choices_field!r} has {len(choices)} of the two or more choices it needs")
        if not all(choice.strip() for choice in choices):
            raise UserError(f"{where}: a choice is empty")
        answers = tuple(map(self.plain, choices))
        number = self._label(record, answers, choices) if label is None else label
        if self.context_field is None:
            return Choice(question, answers, answers, number)
        lines = texts_of(record, self.context_field)
        context = self.plain("\n".join(lines))
        if not context.strip():
            raise UserError(f"{where}: {self.context_field!r} is empty")
        return Choice(context, tuple(f"{question} {answer}" for answer in answers), answers, number)

    def _label(self, record: Record, answers: tuple[str, ...], choices: Sequence[str]) -> int:
        value = (text_of if self.label_as == "text" else field)(record, self.label_field)
        if self.label_as == "text":
            names: Sequence[str] = [clean(answer, strip_html=False) for answer in answers]
            value = clean(value, self.strip_html)
        else:
            names = (self.label_names or [str(i) for i in range(len(choices))])[: len(choices)]
        if value not in names:
            where = f"{record.file}:{record.line}"
            raise UserError(f"{where}: {self.label_field!r} is {value!r:.60}, none of {listed(names)}")
        return list(names).index(value)


class ChoiceDataset:
    """[CLS] text [SEP] choice [SEP] for each choice: arrays [batch, choice, sequence] for the most choices of any
    question, zeros where a question has fewer. Of a pair that is too long, the longer text loses its end.
    """

    spec: BatchSpec = {
        **{name: declared._replace(axes=("batch", "choice", "sequence")) for name, declared in TEXT_SPEC.items()},
        "label": Field("int32", ("batch",), -1),
    }

    def __init__(self, questions: Sequence[Choice], tokenizer: Tokenizer, seq_len: int):
        self.examples = list(questions)
        pairs = [(item.text, choice) for item in questions for choice in item.choices]
        encoded = encode_texts(tokenizer, pairs, seq_len)
        self.pairs = TextDataset(encoded, seq_len, {}, {})
        self.count = np.array([len(item.choices) for item in questions], np.int64)
        self.first = np.cumsum(self.count) - self.count
        self.extra = {"label": np.array([item.label for item in questions], np.int32)}
        fewest, most = int(self.count.min()), int(self.count.max())
        size = len(questions) * most * seq_len
        self.padding = 1.0 - float(self.pairs.lengths.sum()) / size
        unused = f"sequences are padding, because questions have {fewest} to {most} choices"
        self.warnings = warnings_of(
            truncated(encoded.truncated, len(pairs), "pairs of text and choice", seq_len),
            DataWarning("packing", len(questions) * most - len(pairs), unused),
        )

    def __len__(self) -> int:
        return len(self.examples)

    def gather(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """The questions at these indices."""
        choice = np.arange(int(self.count.max()))
        present = choice < self.count[indices, None]
        batch = self.pairs.gather(np.where(present, self.first[indices, None] + choice, 0).ravel())
        shaped = {name: array.reshape(*present.shape, -1) for name, array in batch.items()}
        choices = {name: array * present[..., None] for name, array in shaped.items()}
        return choices | {"label": self.extra["label"][indices]}


def read_questions(path: str, columns: tuple[str, ...]) -> Iterator[Record]:
    """The questions of one file: of .json files in the format of DREAM, of others the records."""
    return read_dream(path) if suffix_of(path) == ".json" else read_records(path, columns)


def read_dream(path: str) -> Iterator[Record]:
    """The questions of a file of DREAM, [[turns, [{"question", "choice", "answer"}, …], id], …].

    Records have `context` (the turns), `question`, `choices`, `answer` (the text of the correct choice) and `id`; their
    `line` is the number of the question.

    Raises:
      UserError: the file has another format.
    """
    content, number = read_json(path), 0
    for place, item in enumerate(content if isinstance(content, list) else [None], start=1):
        try:
            turns, questions, name = item
            for values in questions:
                number += 1
                fields = {"question": values["question"], "answer": values["answer"], "id": name}
                lists = {"context": turns, "choices": values["choice"]}
                texts = [*fields.values(), *turns, *values["choice"]]
                if not all(isinstance(some, list) for some in lists.values()):
                    raise TypeError
                if not all(isinstance(text, str) for text in texts):
                    raise TypeError
                yield Record(fields, path, number, dict.fromkeys(lists, "of type list"), lists)
        except (TypeError, ValueError, KeyError):
            form = '[turns, [{"question", "choice", "answer"}, ...], id]'
            raise UserError(f"{path}: item {place} is not in DREAM's format {form}") from None


# -- baselines --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class LongestChoice:
    """Predicts the choice with most characters."""

    name: str = "longest choice"
    """name in tables"""

    def fit(self, data: DataConfig, train: Batches) -> Callable[[HeldOut], EvalResult]:
        """Returns a function that scores the accuracy on held-out questions."""
        del data, train
        return lambda held_out: accuracy_of(held_out, lambda item: [len(answer) for answer in item.answers])


@dataclasses.dataclass(frozen=True)
class OverlapChoice:
    """Predicts the choice that shares the largest fraction of its words with the text."""

    name: str = "choice with most words of the text"
    """name in tables"""

    def fit(self, data: DataConfig, train: Batches) -> Callable[[HeldOut], EvalResult]:
        """Returns a function that scores the accuracy on held-out questions."""
        del data, train
        return lambda held_out: accuracy_of(held_out, shared_words)


def shared_words(item: Choice) -> list[float]:
    """The fraction of each choice's words that occur in the text."""
    text = words_of(item.text)
    return [len(words & text) / max(len(words), 1) for words in map(words_of, item.answers)]


def accuracy_of(held_out: HeldOut, rate: Callable[[Choice], Sequence[float]]) -> EvalResult:
    """Accuracy of the choice with the highest rating; choices that tie for it share the prediction equally."""
    hits = []
    for item in data_of(held_out, MultipleChoice).examples(held_out.split):
        ratings = np.array(rate(item))
        best = ratings == ratings.max()
        hits.append(best[item.label] / best.sum())
    return EvalResult((Metric("accuracy", float(np.mean(hits)), True),))
