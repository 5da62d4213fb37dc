"""Dialogue: turns of alternating speakers, of which a decoder learns the replies."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bertgpt.data.loader import Batches
from bertgpt.data.packing import template_of
from bertgpt.data.sequences import SequenceDataset, Side
from bertgpt.data.sources.text import Record, Split, clean, record_of, texts_of
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.tasks.generation import bleu
from bertgpt.tasks.source import TaskFiles, noted, some_of
from bertgpt.types import DataRequest, EvalResult, Metric, UserError

Turn = tuple[list[int], list[int]]  # ids, and 1 where a word is asked for


@dataclasses.dataclass(frozen=True)
class Dialogue(TaskFiles):
    """Dialogues of two speakers in turn, for ConditionalLM; each turn is its speaker's mark, its text, an end mark.

        A: Hello !</s>B: Hi , how are you ?</s>

    Words of replies are asked for, with their end marks: generation ends where a reply does. Marks are given.
    """

    turns_field: str = "turns"
    """column that holds the turns: a list in a .jsonl file, or text with one in each line"""
    speakers: tuple[str, ...] = ("A: ", "B: ")
    """marks of the speakers, plain text or special tokens of the tokenizer; (): none, as in DialoGPT"""
    replies: tuple[str, ...] = ()
    """learn only the replies of these speakers, such as ("B: ",); (): every turn but the first"""
    packed: bool = False
    """several dialogues in a row where they fit, with the same loss; `batch_size` counts rows"""

    def __post_init__(self):
        super().__post_init__()
        if unknown := [mark for mark in self.replies if mark not in self.speakers]:
            raise UserError(f"Dialogue: replies names {unknown[0]!r}, which is not among speakers={self.speakers}")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Fields of a record that is to be predicted."""
        return (self.turns_field,)

    @property
    def answer_len(self) -> int:
        """Tokens of a reply at most, unless an evaluation says how to decode: the half of a row that prompts leave."""
        return self.seq_len // 2

    @property
    def key_fields(self) -> tuple[str, ...]:
        return (self.turns_field,)

    def examples(self, split: Split) -> list[list[str]]:
        """The turns of each dialogue of a split, cleaned.

        Raises:
          UserError: a missing column, an empty turn, a dialogue without a reply, or no dialogue at all.
        """
        found = [self._turns(texts_of(record, self.turns_field), record) for record in self.records(split)]
        if not found:
            raise self.none_of(split)
        return some_of(found, self.max_examples, self.subset) if split == "train" else found

    def _turns(self, texts: Sequence[str], record: Record) -> list[str]:
        turns = self._clean(texts)
        place = f"{record.file}:{record.line}"
        if len(turns) < 2:
            raise UserError(f"{place}: {self.turns_field!r} has {len(turns)} turns; a dialogue has two or more")
        if "" in turns:
            raise UserError(f"{place}: turn {turns.index('') + 1} of {self.turns_field!r} is empty")
        return turns

    def _clean(self, texts: Sequence[str]) -> list[str]:
        lines = texts[0].strip().split("\n") if len(texts) == 1 else texts
        return [clean(text, self.strip_html) for text in lines]

    def texts(self, split: Split) -> Iterator[str]:
        """Every turn with its speaker's mark, to train a tokenizer on."""
        for turns in self.examples(split):
            for number, turn in enumerate(turns):
                yield self._mark(number) + turn

    def _mark(self, number: int) -> str:
        return self.speakers[number % len(self.speakers)] if self.speakers else ""

    def make(self, request: DataRequest) -> Batches:
        """Batches of one split. A dialogue that is too long goes on in another row; see `into_rows`."""
        template = template_of(request.tokenizer.vocab)
        dialogues = self.examples(request.split)
        sequences, cut, split_up, silent = [], 0, 0, 0
        for turns in self._encoded(dialogues, request.tokenizer):
            rows, shortened = into_rows(turns, self.seq_len - len(template.start))
            cut, split_up, silent = cut + shortened, split_up + (len(rows) > 1), silent + (not rows)
            sequences += [([*template.start, *ids], [0] * len(template.start) + asked) for ids, asked in rows]
        why = f"for rows have {self.seq_len} tokens"
        notes = noted(
            (cut, f"turns are cut, {why}"),
            (split_up, f"of {len(dialogues):,} dialogues are split into several rows, {why}"),
            (silent, "dialogues have no reply to learn and are left out"),
        )
        rows = SequenceDataset(
            Side([ids for ids, _ in sequences], self.seq_len, template.pad),
            mask=[asked for _, asked in sequences],
            vocab_size=request.tokenizer.vocab.size,
            packed=self.packed,
            notes=notes,
        )
        return Batches(rows, request.batch_size, request.seed, request.shuffle)

    def _encoded(self, dialogues: Sequence[Sequence[str]], tokenizer: Tokenizer) -> Iterator[list[Turn]]:
        end, marks = template_of(tokenizer.vocab).end, self._marks(tokenizer)
        texts = iter(tokenizer.encode([turn for turns in dialogues for turn in turns]))
        for turns in dialogues:
            found = []
            for number in range(len(turns)):
                mark, text = marks[number % len(marks)], [*next(texts), end]
                wanted = number > 0 and (not self.replies or self._mark(number) in self.replies)
                found.append(([*mark, *text], [0] * len(mark) + [int(wanted)] * len(text)))
            yield found

    def _marks(self, tokenizer: Tokenizer) -> list[list[int]]:
        """Ids of the speakers' marks."""
        return tokenizer.encode(list(self.speakers), parse_special=True) if self.speakers else [[]]

    def prompts(self, split: Split, tokenizer: Tokenizer) -> list[list[int]]:
        """Each dialogue of a split up to its last turn, whose speaker's mark ends the prompt."""
        return self._prompts([turns[:-1] for turns in self.examples(split)], tokenizer)

    def prompts_of(self, records: Sequence[dict[str, Any]], tokenizer: Tokenizer) -> list[list[int]]:
        """New dialogues, to be continued by one turn."""
        named = [record_of(record, "record", number) for number, record in enumerate(records, start=1)]
        return self._prompts([self._clean(texts_of(record, self.turns_field)) for record in named], tokenizer)

    def _prompts(self, dialogues: Sequence[Sequence[str]], tokenizer: Tokenizer) -> list[list[int]]:
        """The last turns that fit into half a row: the other half is for the reply."""
        start, marks, found = list(template_of(tokenizer.vocab).start), self._marks(tokenizer), []
        for turns in self._encoded(dialogues, tokenizer):
            mark = marks[len(turns) % len(marks)]
            room, ids = self.seq_len // 2 - len(start) - len(mark), []
            for turn, _ in reversed(turns):
                if ids and len(turn) + len(ids) > room:
                    break
                ids = [*turn[-room:], *ids]
            found.append([*start, *ids, *mark])
        return found

    def evaluate(self, split: Split, rows: SequenceDataset, outputs: dict[str, np.ndarray]) -> EvalResult:
        """Perplexity of the words of replies."""
        del split, rows
        words = float(np.sum(outputs["weights"], dtype=np.float64))
        perplexity = float(np.exp(np.sum(outputs["nll"], dtype=np.float64) / words))
        return EvalResult((Metric("perplexity", perplexity, False),))

    def evaluate_texts(self, split: Split, texts: Sequence[str]) -> EvalResult:
        """BLEU and chrF of generated last turns, and how varied they are.

        distinct_n: different n-grams of words over all n-grams of all texts (Li et al. 2016 §5.3).
        """
        references = [(turns[-1],) for turns in self.examples(split)][: len(texts)]
        scores = bleu(texts, references)
        for n in (1, 2):
            grams = [gram for text in texts for gram in zip(*(text.split()[i:] for i in range(n)), strict=False)]
            scores[f"distinct_{n}"] = len(set(grams)) / max(len(grams), 1)
        return EvalResult(tuple(Metric(name, value, True) for name, value in scores.items()))


def into_rows(turns: Sequence[Turn], room: int) -> tuple[list[Turn], int]:
    """(the turns as rows of at most `room` tokens, how many turns had to be cut).

    A row that goes on begins with the last turn of the row before, of which no word is asked for again. A row of which
    none is asked for is left out.
    """
    rows: list[Turn] = []
    ids: list[int] = []
    asked: list[int] = []
    before: list[int] = []
    cut = 0
    for turn, wanted in turns:
        if ids and len(ids) + len(turn) > room:
            rows.append((ids, asked))
            # What was said before takes half a row at most, and no place that the turn itself needs.
            context = min(len(before), room // 2, max(room - len(turn), 0))
            ids, asked = before[len(before) - context :], [0] * context
        keep = room - len(ids)
        cut += len(turn) > keep
        ids, asked, before = [*ids, *turn[:keep]], [*asked, *wanted[:keep]], turn
    rows.append((ids, asked))
    return [row for row in rows if any(row[1])], cut
