"""Zero-shot and few-shot classification by prompts (Brown et al. 2020).

A prompt is a template with a slot for the label, such as “{text} It was {label}.” Each label is expressed by a word
(its verbaliser, Schick & Schütze 2021), and the model scores the words in the slot:

  GPT   log p(word | text before it), so the template must end with the label.
  T5    log p(word, end token | text) if the template ends with the label; otherwise the slot is the first sentinel, as
        in pretraining by span corruption, and the decoder fills it.
  BERT  log p(word | text with one [MASK] per token of the word), all tokens at once given only the masks. This favours
        words of a single token; the most-confident-first decoding of Schick & Schütze is not implemented.
"""

import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import softmax

from bertgpt.data.sources.records import as_text
from bertgpt.data.sources.text import CJK
from bertgpt.inference.decoding import Decoding
from bertgpt.inference.encode import check_mlm, is_encoder
from bertgpt.inference.generate import check_writes, continue_ids
from bertgpt.inference.model import Model
from bertgpt.inference.predict import known
from bertgpt.inference.scoring import Question, log_likelihoods
from bertgpt.ranges import check_fields
from bertgpt.tasks.classification import describe_classes
from bertgpt.types import JsonObject, UserError

log = logging.getLogger(__name__)

CONTENT_FREE = ("N/A", "", "[MASK]")  # Zhao et al. 2021 §5
_FIELD = re.compile(r"\{(\w+)\}")
# Characters that continue a word. Chinese and Japanese write words without spaces.
_SPACED = rf"[^\W{CJK}]"
_WORD_END = rf"(?:(?<!{_SPACED})|(?!{_SPACED}))"

Record = Mapping[str, object]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A template, the labels, and the words that express them."""

    template: str
    """text with fields of a record in braces, and {label} in place of the label's word"""
    labels: tuple[str, ...]
    """the labels"""
    words: tuple[str, ...] = ()
    """the word or words that express each label; (): the labels themselves"""
    separator: str = "\n\n"
    """text between examples"""

    def __post_init__(self):
        check_fields(self)
        if len(set(self.labels)) < max(2, len(self.labels)):
            raise UserError(f"Prompt: labels={self.labels} must be two or more different ones")
        words = self.verbalised
        if not len(set(words)) == len(words) == len(self.labels) or not all(word.strip() for word in words):
            raise UserError(
                f"Prompt: words={self.words} must be a different text for each of {len(self.labels)} labels"
            )
        if self.template.count("{label}") != 1:
            raise UserError(f"Prompt: template {self.template!r} must have {{label}} in it once")

    @property
    def verbalised(self) -> tuple[str, ...]:
        """The words that express the labels."""
        return self.words or self.labels

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a record that the template uses."""
        return tuple(name for name in _FIELD.findall(self.template) if name != "label")

    def around(self, record: Record, examples: Sequence[tuple[Record, str]] = ()) -> tuple[str, str]:
        """(text before the label, text after it), with (record, label) examples in front.

        Raises:
          UserError: a record lacks a field.
        """
        words = dict(zip(self.labels, self.verbalised, strict=True))
        shown = [fill(self.template, example, words[label]) + self.separator for example, label in examples]
        before, after = (fill(part, record, "") for part in self.template.split("{label}"))
        return "".join(shown) + before, after


def fill(template: str, record: Record, word: str) -> str:
    """The template with the fields of the record, and the word in place of {label}."""

    def value(match: re.Match) -> str:
        if match[1] == "label":
            return word
        if match[1] not in record:
            raise UserError(f"the template names the field {match[1]!r}; the record has {', '.join(map(repr, record))}")
        if not isinstance(record[match[1]], str | int | float):
            raise UserError(f"{match[1]!r} is of type {type(record[match[1]]).__name__}, not text")
        return as_text(record[match[1]])

    return _FIELD.sub(value, template)


# -- questions ---------------------------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """The questions for one record, one per label."""

    questions: list[Question]
    examples: tuple[int, ...]
    """indices of the examples in the prompt; the first ones are dropped if the prompt would be too long"""
    truncated: bool
    """whether the record's longest field was truncated because it does not fit even without examples"""


def ask(
    model: Model, prompt: Prompt, record: Record, examples: Sequence[tuple[Record, str]] = (), spare: int = 0
) -> Asked:
    """The questions that compare the labels of a record.

    Args:
      model: from `bertgpt.load`.
      prompt: the template and the labels.
      record: a mapping with the fields of the template.
      examples: (record, label) pairs to put before it.
      spare: how many tokens shorter than the model's longest sequence the questions must be.

    Raises:
      UserError: the template alone is too long, a word has no tokens, or the model cannot be prompted.
    """
    limit = model.config.max_len

    def attempt(record: Record, shown: int) -> tuple[list[Question], int]:
        """(questions with the last `shown` examples, number of tokens in excess)."""
        before, after = prompt.around(record, examples[len(examples) - shown :])
        # In byte BPE the space before a word belongs to its first token.
        bare = before.rstrip()
        questions = [question(model, bare, before[len(bare) :] + word, after) for word in prompt.verbalised]
        longest = max(max(len(q.ids), len(q.source)) for q in questions)
        return questions, longest + spare - limit

    for shown in range(len(examples), -1, -1):
        questions, excess = attempt(record, shown)
        if excess <= 0:
            return Asked(questions, tuple(range(len(examples) - shown, len(examples))), truncated=False)
    while excess > 0:
        name = max(prompt.fields, key=lambda name: len(as_text(record[name])), default=None)
        characters = "" if name is None else as_text(record[name])
        if not characters:
            raise UserError(f"the template exceeds the model's {limit} tokens even around empty texts")
        # A token has at least one character, so this removes too little rather than too much.
        record = {**record, name: characters[: max(len(characters) - excess, 0)]}
        questions, excess = attempt(record, 0)
    return Asked(questions, (), truncated=True)


def question(model: Model, before: str, word: str, after: str) -> Question:
    """The question for a word between two texts, in the form that suits the model's architecture.

    Raises:
      UserError: the word has no tokens, the label is in the wrong place, or the model cannot be prompted.
    """
    tokenizer, vocab = model.tokenizer, model.tokenizer.vocab
    start, end = tokenizer.template
    left, answer, right = tokenizer.encode([before, word, after])
    if not answer or vocab.unk in answer:
        raise UserError(f"the word {word.strip()!r} cannot be written with the model's tokens; give another")
    if is_encoder(model):
        check_mlm(model, "a prompt")
        begin = len(start) + len(left)
        ids = (*start, *left, *[vocab.mask] * len(answer), *right, *end)
        return Question(ids, tuple(range(begin, begin + len(answer))), tuple(answer))
    if model.config.architecture == "encoder":
        name = type(model.config).__name__.removesuffix("Config")
        raise UserError(f"{model.path}: {name} neither fills masks nor writes text, so it answers no prompts")
    if model.config.architecture == "decoder":
        if after.strip():
            raise UserError("a decoder reads only the text before the label: end the template with {label}")
        context = [*start, *left] or [i for i in (vocab.bos, vocab.eos, vocab.sep) if i is not None][:1]
        if not context:
            raise UserError("the template has no text before {label}, which a decoder needs")
        positions = range(len(context) - 1, len(context) + len(answer) - 1)
        return Question((*context, *answer[:-1]), tuple(positions), tuple(answer))
    if not after.strip():
        target = (*answer, *end)
        ids = (model.config.start_id, *target[:-1])
        return Question(ids, tuple(range(len(target))), target, source=(*start, *left, *end))
    if len(vocab.sentinels) < 2:
        raise UserError(f"{model.path}: its tokenizer has no sentinels, so the template must end with {{label}}")
    first, second = vocab.sentinels[:2]
    ids = (model.config.start_id, first, *answer)
    source = (*start, *left, first, *right, *end)
    return Question(ids, tuple(range(1, len(ids))), (*answer, second), source)


def ask_all(
    model: Model, prompt: Prompt, records: Sequence[Record], examples: Sequence[tuple[Record, str]], spare: int = 0
) -> list[Asked]:
    """`ask` for each record. Examples that give the same text in the template as the record are left out.

    Raises:
      UserError: as for `ask`, with the number of the record or example.
    """
    texts, asked, repeated, fewer = [], [], 0, 0
    for number, (example, _) in enumerate(examples, start=1):
        try:
            texts.append(fill(prompt.template, example, ""))
        except UserError as error:
            raise UserError(f"example {number}: {error}") from None
    for number, record in enumerate(records, start=1):
        try:
            own = fill(prompt.template, record, "")
            others = [i for i, text in enumerate(texts) if text != own]
            item = ask(model, prompt, record, [examples[i] for i in others], spare)
        except UserError as error:
            raise UserError(f"record {number}: {error}") from None
        repeated += len(others) < len(examples)
        fewer += len(item.examples) < len(others)
        asked.append(item._replace(examples=tuple(others[i] for i in item.examples)))
    if repeated:
        log.warning("%d of %d records are among the examples, and get only the others", repeated, len(asked))
    truncated = sum(item.truncated for item in asked)
    for count, what in ((fewer, f"have fewer than {len(examples)} examples"), (truncated, "are truncated")):
        if count:
            log.warning(
                "%d of %d prompts %s to fit the model's %d tokens", count, len(asked), what, model.config.max_len
            )
    return asked


def score_labels(
    model: Model,
    prompt: Prompt,
    records: Sequence[Record],
    examples: Sequence[tuple[Record, str]] = (),
    *,
    average: bool = False,
    calibrate: bool = False,
    batch_size: int = 16,
) -> Float[np.ndarray, "N C"]:
    """log p of each label for each record, up to a constant per record.

    Args:
      model: from `bertgpt.load`.
      prompt: the template and the labels.
      records: mappings with the fields of the template.
      examples: (record, label) pairs to put before each record, in this order; not before the same record.
      average: average over the tokens of a word instead of summing, for words of different lengths.
      calibrate: divide by the probabilities of the labels for content-free texts, averaged over CONTENT_FREE (Zhao et
        al. 2021), to correct the model's bias towards some labels.
      batch_size: sequences per batch.

    Raises:
      UserError: as for `ask`, with the number of the record.
    """
    asked = ask_all(model, prompt, records, examples)

    def scores_of(asked: Sequence[Asked]) -> Float[np.ndarray, "N C"]:
        questions = [question for item in asked for question in item.questions]
        sums = [(np.mean if average else np.sum)(values) for values in log_likelihoods(model, questions, batch_size)]
        return np.array(sums).reshape(-1, len(prompt.labels))

    scores = scores_of(asked)
    for shown in dict.fromkeys(item.examples for item in asked) if calibrate else ():
        rows = [item.examples == shown for item in asked]
        some = [examples[i] for i in shown]
        empty = [ask(model, prompt, dict.fromkeys(prompt.fields, text), some) for text in CONTENT_FREE]
        scores[rows] -= np.log(np.mean(softmax(scores_of(empty), axis=1), axis=0))
    return scores


def label(
    model: Model,
    prompt: Prompt,
    records: Sequence[Record],
    examples: Sequence[tuple[Record, str]] = (),
    *,
    by: Literal["likelihood", "generation"] = "likelihood",
    average: bool = False,
    calibrate: bool = False,
    batch_size: int = 16,
) -> Iterator[JsonObject]:
    """Labels records with a prompt.

    Args:
      model: from `bertgpt.load`.
      prompt: the template and the labels.
      records: mappings with the fields of the template.
      examples: see `score_labels`.
      by: "likelihood" compares the words of all labels; "generation" lets the model write one.
      average: see `score_labels`; by likelihood only.
      calibrate: see `score_labels`; by likelihood only.
      batch_size: sequences per batch.

    Yields:
      By likelihood, the most probable label and the probability of each; by generation, the label and the text, with
      the label None if the text does not begin with the word of any label.

    Raises:
      UserError: the model cannot be prompted, or as for `ask`.

    Examples:
      >>> prompt = Prompt("{text} It was {label}.", ("good", "bad"))
      >>> next(label(bertgpt.load("runs/bert"), prompt, [{"text": "A fine film."}]))["label"]  # doctest: +SKIP
      'good'
    """
    if model.tokenizer is None:
        raise UserError(f"{model.path}: has no tokenizer")
    if by == "likelihood":
        scores = score_labels(
            model, prompt, records, examples, average=average, calibrate=calibrate, batch_size=batch_size
        )
        yield from known(describe_classes(softmax(scores, axis=1), prompt.labels))
        return
    check_writes(model)
    if prompt.template.partition("{label}")[2].strip():
        raise UserError("to generate the label, end the template with {label}")
    # A decoder reads all but the last token of a word, and may write that one and another, which ends the word.
    asked = ask_all(model, prompt, records, examples, spare=2)
    longest = max((len(q.tokens) for item in asked for q in item.questions), default=0)
    # The text before the word is the same for each label.
    prompts = [q.source or q.ids[: q.positions[0] + 1] for q in (item.questions[0] for item in asked)]
    decoding = Decoding(max_new_tokens=longest + 1)
    for row in continue_ids(model, prompts, decoding, stop=("\n",), batch_size=batch_size):
        yield {"label": named_in(row[0].text, prompt), "text": row[0].text.strip()}


def named_in(text: str, prompt: Prompt) -> str | None:
    """The label whose whole word the text begins with, ignoring case; of several, the one with the longest word."""
    start = text.strip().casefold()
    pairs = zip(prompt.labels, prompt.verbalised, strict=True)
    fitting = [
        (len(word), name) for name, word in pairs if re.match(re.escape(word.strip().casefold()) + _WORD_END, start)
    ]
    return max(fitting)[1] if fitting else None


def pick_examples(
    records: Sequence[Record], labels: Sequence[str], label_field: str, count: int, seed: int = 0
) -> list[tuple[Record, str]]:
    """`count` random records with their labels, with the labels as balanced as the records allow.

    Args:
      records: records with labels.
      labels: the labels.
      label_field: field of the label.
      count: number of examples.
      seed: seed of the choice.

    Raises:
      UserError: there are too few records, or a record has an unknown label.
    """
    by_label: dict[str, list[tuple[Record, str]]] = {name: [] for name in labels}
    for number, record in enumerate(records, start=1):
        name = as_text(record.get(label_field))
        if name not in by_label:
            known = ", ".join(map(repr, labels))
            raise UserError(f"example {number}: {label_field!r} is {name!r}; labels are {known}")
        by_label[name].append((record, name))
    if len(records) < count:
        raise UserError(f"there are {len(records)} examples, not {count}")
    rng = np.random.default_rng(seed)
    order = {name: [found[i] for i in rng.permutation(len(found))] for name, found in by_label.items()}
    # Each round takes one record of every label that has one left, in random order, because the last may be cut short.
    rounds = ((i, labels[j]) for i in range(count) for j in rng.permutation(len(labels)))
    picked = [order[name][i] for i, name in rounds if i < len(order[name])][:count]
    return [picked[i] for i in rng.permutation(len(picked))]
