"""Multiple choice: a question, perhaps about a text, and two or more answers of which one is right.

.jsonl files with the choices as a list, tables with a column for each choice, or the .json files of DREAM (Sun et al.
2019), dialogues with their questions.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from bertgpt.data.examples import TextDataset, encode_texts
from bertgpt.data.loader import Batches
from bertgpt.data.packing import Batch
from bertgpt.data.sources.files import suffix_of
from bertgpt.data.sources.text import Record, Split, clean, field, read_records, record_of, resolve, texts_of
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.tasks.question_answering import filled, words_of
from bertgpt.tasks.source import TaskFiles, cut_note, noted, some_of
from bertgpt.tasks.squad import read_json
from bertgpt.types import Confusion, DataRequest, EvalResult, Metric, Table, UserError


class Choice(NamedTuple):
    """A question and its choices."""

    text: str
    """what each choice is read after: the context, or the question if there is none"""
    choices: tuple[str, ...]
    """each as it is read, after the question if there is a context"""
    answers: tuple[str, ...]
    """each as it stands in the file"""
    label: int
    """number of the right one; −1: not known"""


@dataclasses.dataclass(frozen=True)
class MultipleChoice(TaskFiles):
    """Questions with any number of choices; rows are [CLS] text [SEP] choice [SEP], one for each choice."""

    question_field: str = "question"
    """column that holds the question, or whatever the choices go on from"""
    context_field: str | None = None
    """column with a text that the question is about, a text or a list of lines; rows are then [CLS] context [SEP]
    question choice [SEP]"""
    choices_field: str = "choices"
    """field of a .jsonl file with the list of choices"""
    choice_fields: tuple[str, ...] = ()
    """columns that hold one choice each, in place of `choices_field`"""
    label_field: str = "label"
    """column that tells the right choice"""
    label_as: Literal["number", "text"] = "number"
    """it holds its number, counted from 0, or the very text of the choice"""
    label_names: tuple[str, ...] = ()
    """how the column names the first, second, … choice, such as A B C D; (): by its number"""

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

    def read(self, path: str) -> Iterator[Record]:
        """Every question of a path."""
        for file in resolve(path):
            yield from read_dream(file) if suffix_of(file) == ".json" else read_records(file, self.columns)

    def texts(self, split: Split) -> Iterator[str]:
        """Every text of a split, to train a tokenizer on."""
        for record in self.records(split):
            item = self._choice(record, -1)
            yield item.text
            yield from item.choices

    def questions(self, split: Split) -> list[Choice]:
        """The questions of a split.

        Raises:
          UserError: a question has no text or less than two choices, its label names none of them, a column is missing,
            or there is no question.
        """
        found = [self._choice(record, None) for record in self.records(split)]
        if not found:
            raise self.none_of(split)
        return some_of(found, self.max_examples if split == "train" else None, self.subset)

    def make(self, request: DataRequest) -> Batches:
        """Batches of one split, held in memory."""
        return Batches(
            ChoiceDataset(self.questions(request.split), request.tokenizer, self.seq_len),
            request.batch_size,
            request.seed,
            request.shuffle,
        )

    def predict_batches(self, records: Sequence[dict[str, Any]], batch_size: int, tokenizer: Tokenizer) -> Batches:
        """Batches of new questions, in order, without labels."""
        named = [record_of(record, "record", number) for number, record in enumerate(records, start=1)]
        questions = [self._choice(record, -1) for record in named]
        return Batches(ChoiceDataset(questions, tokenizer, self.seq_len), batch_size, 0, shuffle=False)

    def describe(self, rows: "ChoiceDataset", outputs: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        """What `predict` prints for each question: the likeliest choice, its number, and the probability of each."""
        for item, row in zip(rows.questions, outputs["probabilities"], strict=True):
            every = [round(float(p), 4) for p in row[: len(item.answers)]]
            best = int(np.argmax(every))
            yield {"choice": item.answers[best], "number": best, "probability": every[best], "probabilities": every}

    def evaluate(self, split: Split, rows: "ChoiceDataset", outputs: dict[str, np.ndarray]) -> EvalResult:
        """Accuracy, that of guessing, and a table by the place of the right choice, for models that favour a place."""
        del split
        known = np.array([item.label >= 0 for item in rows.questions])
        label = np.array([item.label for item in rows.questions])[known]
        picked = outputs["probabilities"].argmax(axis=1)[known]
        chance = np.mean([1.0 / len(item.answers) for item in rows.questions])
        lines = [
            [f"{place + 1}", f"{np.mean(picked[label == place] == place):.3f}", f"{np.sum(label == place):,}"]
            + [f"{np.sum(picked == place):,}"]
            for place in np.unique(label)
        ]
        table = Table("choices", ("place", "accuracy", "right", "chosen"), lines)
        most = int(max(label.max(), picked.max())) + 1
        counts = np.zeros((most, most), np.int64)
        np.add.at(counts, (label, picked), 1)
        confusion = Confusion(tuple(f"choice {place + 1}" for place in range(most)), counts)
        accuracy = Metric("accuracy", float(np.mean(picked == label)), True)
        return EvalResult((accuracy, Metric("chance", float(chance))), (table,), (confusion,))

    def _choice(self, record: Record, label: int | None) -> Choice:
        """The question of a record; its label is read where it is None."""
        question = clean(filled(record, self.question_field), self.strip_html)
        where = f"{record.file}:{record.line}"
        if self.choice_fields:
            choices = [field(record, name) for name in self.choice_fields]
        elif self.choices_field in record.lists:
            choices = record.lists[self.choices_field]
        else:
            found = field(record, self.choices_field)
            raise UserError(f"{where}: {self.choices_field!r} is {found!r}, not a list of choices")
        if len(choices) < 2:
            raise UserError(f"{where}: {self.choices_field!r} has {len(choices)} of the two or more choices it needs")
        if not all(isinstance(choice, str) and choice.strip() for choice in choices):
            raise UserError(f"{where}: a choice is empty")
        answers = tuple(clean(choice, self.strip_html) for choice in choices)
        number = self._label(record, answers, choices) if label is None else label
        if self.context_field is None:
            return Choice(question, answers, answers, number)
        lines = texts_of(record, self.context_field)
        context = clean("\n".join(lines), self.strip_html)
        if not context:
            raise UserError(f"{where}: {self.context_field!r} is empty")
        return Choice(context, tuple(f"{question} {answer}" for answer in answers), answers, number)

    def _label(self, record: Record, answers: tuple[str, ...], choices: Sequence[str]) -> int:
        value = field(record, self.label_field)
        if self.label_as == "text":
            names: Sequence[str] = answers
            value = clean(value, self.strip_html)
        else:
            names = (self.label_names or [str(i) for i in range(len(choices))])[: len(choices)]
        if value not in names:
            known = ", ".join(map(repr, names))
            raise UserError(f"{record.file}:{record.line}: {self.label_field!r} is {value!r}, none of {known}")
        return list(names).index(value)


class ChoiceDataset:
    """[CLS] text [SEP] choice [SEP] for each choice: arrays [B, N, S], N the most choices that a question has.

    Of a pair that is too long, the longer side loses its end.
    """

    def __init__(self, questions: Sequence[Choice], tokenizer: Tokenizer, seq_len: int):
        self.questions = list(questions)
        pairs = [(item.text, choice) for item in questions for choice in item.choices]
        encoded = encode_texts(tokenizer, *map(list, zip(*pairs, strict=True)), seq_len)
        self.rows = TextDataset(encoded, seq_len, {})
        self.count = np.array([len(item.choices) for item in questions], np.int64)
        self.first = np.cumsum(self.count) - self.count
        self.extra = {"label": np.array([item.label for item in questions], np.int32)}
        size = len(questions) * int(self.count.max()) * seq_len
        self.padding = 1.0 - float(self.rows.lengths.sum()) / size
        self.notes = cut_note(encoded.cut, len(pairs), "pairs of text and choice", seq_len)
        empty = size // seq_len - len(pairs)
        fewest, most = int(self.count.min()), int(self.count.max())
        self.notes += noted((empty, f"rows are empty, for questions have {fewest} to {most} choices"))

    def __len__(self) -> int:
        return len(self.questions)

    def gather(self, rows: Int[np.ndarray, " B"]) -> Batch:
        place = np.arange(int(self.count.max()))
        there = place < self.count[rows, None]
        batch = self.rows.gather(np.where(there, self.first[rows, None] + place, 0).ravel())
        shaped = {name: array.reshape(*there.shape, -1) for name, array in batch.items()}
        return {name: array * there[..., None] for name, array in shaped.items()} | {"label": self.extra["label"][rows]}


def read_dream(path: str) -> Iterator[Record]:
    """The questions of a file of DREAM, [[turns, [{"question", "choice", "answer"}, …], id], …].

    Records have `context` (the turns), `question`, `choices`, `answer` (the text of the right choice) and `id`; their
    `line` is the number of the question.

    Raises:
      UserError: the file has another form.
    """
    content, number = read_json(path), 0
    for place, item in enumerate(content if isinstance(content, list) else [None], start=1):
        try:
            turns, questions, name = item
            for values in questions:
                number += 1
                fields = {"question": values["question"], "answer": values["answer"], "id": name}
                lists = {"context": list(turns), "choices": list(values["choice"])}
                texts = [*fields.values(), *lists["context"], *lists["choices"]]
                if not all(isinstance(text, str) for text in texts):
                    raise TypeError
                yield Record(fields, path, number, dict.fromkeys(lists, "of type list"), lists)
        except (TypeError, ValueError, KeyError):
            form = '[turns, [{"question", "choice", "answer"}, ...], id]'
            raise UserError(f"{path}: item {place} is not of DREAM's form {form}") from None


@dataclasses.dataclass(frozen=True)
class LongestChoice:
    """The choice with most characters."""

    name: str = "longest choice"
    """name in tables"""

    def score(self, data: Any, train: Any, split: Split, prepared: Any) -> dict[str, float]:
        """Accuracy on a split."""
        del train, prepared
        return accuracy_of(data.questions(split), lambda item: [len(answer) for answer in item.answers])


@dataclasses.dataclass(frozen=True)
class OverlapChoice:
    """The choice of whose words the largest share stands in the text."""

    name: str = "choice with most words of the text"
    """name in tables"""

    def score(self, data: Any, train: Any, split: Split, prepared: Any) -> dict[str, float]:
        """Accuracy on a split."""
        del train, prepared

        def shares(item: Choice) -> list[float]:
            text = words_of(item.text)
            return [len(words & text) / max(len(words), 1) for words in map(words_of, item.answers)]

        return accuracy_of(data.questions(split), shares)


def accuracy_of(questions: Sequence[Choice], rate: Any) -> dict[str, float]:
    """Accuracy of the choice that is rated highest; of several, each counts as picked in part."""
    hits = []
    for item in questions:
        rates = np.array(rate(item))
        best = rates == rates.max()
        hits.append(best[item.label] / best.sum())
    return {"accuracy": float(np.mean(hits))}
