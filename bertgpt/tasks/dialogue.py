"""Dialogue: turns of alternating speakers, of which a decoder learns the replies."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from bertgpt.data.examples import SequenceDataset, Side
from bertgpt.data.loader import Batches
from bertgpt.data.packing import template_of
from bertgpt.data.sources.text import Record, texts_of
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.tasks.generation import bleu
from bertgpt.tasks.source import Loaded, TaskFiles, log_warnings, numbered, warnings_of
from bertgpt.types import DataRequest, DataWarning, EvalResult, GenerationTask, JsonObject, Metric, Split, UserError

Turn = tuple[list[int], list[int]]  # token ids, and 1 for tokens to predict


@dataclasses.dataclass(frozen=True)
class Dialogue(TaskFiles, GenerationTask):
    """Dialogues of alternating speakers, for ConditionalLM; each turn is its speaker's prefix, its text, an end token.

        A: Hello !</s>B: Hi , how are you ?</s>

    The tokens of replies are predicted, end tokens included, so that generation stops where a reply ends. Prefixes are
    not predicted.
    """

    turns_field: str = "turns"
    """column that holds the turns: a list in a .jsonl file, or text with one turn a line"""
    speakers: tuple[str, ...] = ("A: ", "B: ")
    """prefixes of the speakers, plain text or special tokens of the tokenizer; (): none, as in DialoGPT"""
    replies: tuple[str, ...] = ()
    """learn only the replies of these speakers, such as ("B: ",); (): every turn except the first"""
    packed: bool = False
    """pack several dialogues into a sequence where they fit, with the same loss; `batch_size` counts sequences"""

    def __post_init__(self):
        super().__post_init__()
        if unknown := [prefix for prefix in self.replies if prefix not in self.speakers]:
            raise UserError(f"Dialogue: replies names {unknown[0]!r}, which is not among speakers={self.speakers}")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Fields of a record that is to be predicted."""
        return (self.turns_field,)

    @property
    def answer_len(self) -> int:
        """Most tokens of a reply, unless an evaluation says how to decode: the half of seq_len that prompts leave."""
        return self.seq_len // 2

    @property
    def key_fields(self) -> tuple[str, ...]:
        return (self.turns_field,)

    def load(self, split: Split) -> Loaded:
        """The turns of each dialogue of a split.

        Raises:
          UserError: a missing column, an empty turn, a dialogue without a reply, or no dialogue at all.
        """
        found = [self._turns(texts_of(record, self.turns_field), record) for record in self.records(split)]
        return Loaded(self.selected(found, split))

    def _turns(self, texts: Sequence[str], record: Record) -> list[str]:
        turns = self._some_lines(texts, record)
        if len(turns) < 2:
            place = f"{record.file}:{record.line}"
            raise UserError(f"{place}: {self.turns_field!r} has {len(turns)} turns; a dialogue has two or more")
        return turns

    def _some_lines(self, texts: Sequence[str], record: Record) -> list[str]:
        """The turns, none of them empty."""
        turns, place = self._lines(texts), f"{record.file}:{record.line}"
        if not turns:
            raise UserError(f"{place}: {self.turns_field!r} is empty")
        for number, turn in enumerate(turns, start=1):
            if not turn.strip():
                raise UserError(f"{place}: turn {number} of {self.turns_field!r} is empty")
        return turns

    def _lines(self, texts: Sequence[str]) -> list[str]:
        """The turns; a single text has one in each line."""
        lines = texts[0].strip("\r\n").replace("\r\n", "\n").split("\n") if len(texts) == 1 else texts
        return [self.plain(text) for text in lines]

    def texts(self, split: Split = "train") -> Iterator[str]:
        """Every turn with its speaker's prefix, to train a tokenizer on."""
        for turns in self.examples(split):
            for number, turn in enumerate(turns):
                yield self._prefix(number) + turn

    def _prefix(self, number: int) -> str:
        return self.speakers[number % len(self.speakers)] if self.speakers else ""

    def make(self, request: DataRequest) -> Batches:
        """Batches of one split. A dialogue that is too long continues in another sequence; see `split_turns`."""
        template = template_of(request.tokenizer.vocab)
        dialogues = self.examples(request.split)
        sequences, cut, divided, silent = [], 0, 0, 0
        for turns in self._encoded(dialogues, request.tokenizer):
            parts, shortened = split_turns(turns, self.seq_len - len(template.start))
            cut, divided, silent = cut + shortened, divided + (len(parts) > 1), silent + (not parts)
            sequences += [([*template.start, *ids], [0] * len(template.start) + mask) for ids, mask in parts]
        split_up = f"of {len(dialogues):,} dialogues are split into several sequences of {self.seq_len} tokens"
        dataset = SequenceDataset(
            Side([ids for ids, _ in sequences], self.seq_len, template.pad),
            mask=[mask for _, mask in sequences],
            vocab_size=request.tokenizer.vocab.size,
            packed=self.packed,
            warnings=warnings_of(
                DataWarning("truncated", cut, f"turns are truncated to {self.seq_len} tokens"),
                DataWarning("truncated", divided, split_up),
                DataWarning("skipped", silent, "dialogues have no reply to learn and are skipped"),
            ),
        )
        return Batches(dataset, request.batch_size, request.seed, request.shuffle)

    def _encoded(self, dialogues: Sequence[Sequence[str]], tokenizer: Tokenizer) -> Iterator[list[Turn]]:
        end, prefixes = template_of(tokenizer.vocab).end, self._prefixes(tokenizer)
        texts = iter(tokenizer.encode([turn for turns in dialogues for turn in turns]))
        for turns in dialogues:
            found = []
            for number in range(len(turns)):
                prefix, text = prefixes[number % len(prefixes)], [*next(texts), end]
                wanted = number > 0 and (not self.replies or self._prefix(number) in self.replies)
                found.append(([*prefix, *text], [0] * len(prefix) + [int(wanted)] * len(text)))
            yield found

    def _prefixes(self, tokenizer: Tokenizer) -> list[list[int]]:
        """Token ids of the speakers' prefixes."""
        return tokenizer.encode(list(self.speakers), parse_special=True) if self.speakers else [[]]

    def prompts(self, split: Split, tokenizer: Tokenizer) -> list[list[int]]:
        """Each dialogue of a split up to its last turn; the prefix of that turn's speaker ends the prompt."""
        return self._prompts([turns[:-1] for turns in self.examples(split)], tokenizer)

    def prompts_of(self, records: Sequence[JsonObject], tokenizer: Tokenizer) -> list[list[int]]:
        """New dialogues, to be continued by one turn."""
        dialogues = [self._some_lines(texts_of(record, self.turns_field), record) for record in numbered(records)]
        return self._prompts(dialogues, tokenizer)

    def _prompts(self, dialogues: Sequence[Sequence[str]], tokenizer: Tokenizer) -> list[list[int]]:
        """The last turns that fit into half of seq_len: the other half is for the reply."""
        start, prefixes, found = list(template_of(tokenizer.vocab).start), self._prefixes(tokenizer), []
        dropped = cut = 0
        for turns in self._encoded(dialogues, tokenizer):
            prefix = prefixes[len(turns) % len(prefixes)]
            room, ids = self.seq_len // 2 - len(start) - len(prefix), []
            for number, (turn, _) in enumerate(reversed(turns)):
                if ids and len(turn) + len(ids) > room:
                    dropped += len(turns) - number
                    break
                cut += len(turn) > room
                ids = [*turn[-room:], *ids]
            found.append([*start, *ids, *prefix])
        log_warnings(
            DataWarning(
                "truncated", dropped, "earlier turns are left out of the prompts, which leave half to the reply"
            ),
            DataWarning(
                "truncated", cut, f"last turns are truncated to {self.seq_len // 2} tokens with their prefixes"
            ),
        )
        return found

    def evaluate(self, dataset: SequenceDataset, outputs: dict[str, np.ndarray]) -> EvalResult:
        """Perplexity of the tokens of replies."""
        del dataset
        tokens = float(np.sum(outputs["weights"], dtype=np.float64))
        perplexity = float(np.exp(np.sum(outputs["nll"], dtype=np.float64) / tokens))
        return EvalResult((Metric("perplexity", perplexity, False),))

    def evaluate_texts(self, split: Split, texts: Sequence[str]) -> EvalResult:
        """BLEU and chrF of generated last turns, and their diversity.

        distinct_n: the number of different n-grams of words over that of all n-grams (Li et al. 2016 §5.3).
        """
        references = [(turns[-1],) for turns in self.examples(split)][: len(texts)]
        metrics = list(bleu(texts, references))
        for n in (1, 2):
            grams = [gram for text in texts for gram in zip(*(text.split()[i:] for i in range(n)), strict=False)]
            metrics.append(Metric(f"distinct_{n}", len(set(grams)) / max(len(grams), 1), True))
        return EvalResult(tuple(metrics))


def split_turns(turns: Sequence[Turn], room: int) -> tuple[list[Turn], int]:
    """Splits a dialogue into sequences.

    A sequence that continues a dialogue begins with the last turn of the sequence before, whose tokens are not
    predicted again. A sequence without tokens to predict is skipped.

    Args:
      turns: the turns of the dialogue.
      room: most tokens of a sequence.

    Returns:
      (the sequences, how many turns were truncated)
    """
    sequences: list[Turn] = []
    ids: list[int] = []
    mask: list[int] = []
    before: list[int] = []
    cut = 0
    for turn, wanted in turns:
        if ids and len(ids) + len(turn) > room:
            sequences.append((ids, mask))
            # The context takes at most half of the sequence, and no room that the turn itself needs.
            context = min(len(before), room // 2, max(room - len(turn), 0))
            ids, mask = before[len(before) - context :], [0] * context
        keep = room - len(ids)
        cut += len(turn) > keep
        ids, mask, before = [*ids, *turn[:keep]], [*mask, *wanted[:keep]], turn
    sequences.append((ids, mask))
    return [sequence for sequence in sequences if any(sequence[1])], cut
