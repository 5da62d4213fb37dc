"""Labels for texts without training: by prompts, with no example or a few (Brown et al. 2020), and by entailment.

A prompt is a template with a place for the label, “{text} It was {label}.” Each label has a word for it (a verbaliser,
Schick & Schütze 2021), and a model says how likely the words are there:

  GPT   log p(word | what stands before it); so the template ends with the label.
  T5    log p(word, end | the text) if the template ends with the label; else the label's place is the first sentinel,
        as in pretraining by span corruption, and the decoder fills it in.
  BERT  log p(word | the text with a [MASK] for each of its pieces), all pieces at once given only the masks. That
        favours words of a single piece; Schick & Schütze's order of most confident first is left out.
"""

import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import softmax

from bertgpt.data.sources.text import CJK
from bertgpt.inference.decoding import Decoding
from bertgpt.inference.generate import check_writes, continue_ids
from bertgpt.inference.model import Model
from bertgpt.inference.predict import outputs_for
from bertgpt.inference.scoring import Question, log_likelihoods
from bertgpt.tasks.classification import describe_classes
from bertgpt.types import UserError

log = logging.getLogger(__name__)

CONTENT_FREE = ("N/A", "", "[MASK]")  # Zhao et al. 2021 §5
_FIELD = re.compile(r"\{(\w+)\}")
# Whether a word goes on; in Chinese and Japanese words stand side by side.
_SPACED = rf"[^\W{CJK}]"
_WORD_END = rf"(?:(?<!{_SPACED})|(?!{_SPACED}))"

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What a model is asked, and what its answers mean."""

    template: str
    """text with fields of a record in braces, and {label} where the label's word stands"""
    labels: tuple[str, ...]
    """the labels"""
    words: tuple[str, ...] = ()
    """the word or words for each of them; (): the labels themselves"""
    separator: str = "\n\n"
    """what stands between examples"""

    def __post_init__(self):
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
        """The words that stand for the labels."""
        return self.words or self.labels

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of a record that the template names."""
        return tuple(name for name in _FIELD.findall(self.template) if name != "label")

    def around(self, record: Record, examples: Sequence[tuple[Record, str]] = ()) -> tuple[str, str]:
        """The text before the label and after it; examples, records with their labels, come first.

        Raises:
          UserError: a field is missing.
        """
        words = dict(zip(self.labels, self.verbalised, strict=True))
        shown = [fill(self.template, example, words[label]) + self.separator for example, label in examples]
        before, after = (fill(part, record, "") for part in self.template.split("{label}"))
        return "".join(shown) + before, after


def fill(template: str, record: Record, word: str) -> str:
    """The template with fields of the record, and the word in place of {label}."""

    def value(match: re.Match) -> str:
        if match[1] == "label":
            return word
        if match[1] not in record:
            raise UserError(f"the template names the field {match[1]!r}; the record has {', '.join(map(repr, record))}")
        return str(record[match[1]])

    return _FIELD.sub(value, template)


# -- questions ---------------------------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """A record as questions, one for each label."""

    questions: list[Question]
    examples: tuple[int, ...]
    """numbers of the examples that were shown: the first ones are left out where all would be too long"""
    cut: bool
    """whether the record's longest field had to be cut at its end, so that even without examples it fits"""


def ask(
    model: Model, prompt: Prompt, record: Record, examples: Sequence[tuple[Record, str]] = (), spare: int = 0
) -> Asked:
    """The questions that compare the labels of a record, `spare` tokens shorter than the model can read.

    Raises:
      UserError: the template alone is too long, a word has no token, or the model answers no prompts.
    """
    limit = model.config.max_len

    def attempt(record: Record, shown: int) -> tuple[list[Question], int]:
        """(questions, by how many tokens they are too long)."""
        before, after = prompt.around(record, examples[len(examples) - shown :])
        # The space before a word is part of its first piece to byte BPE.
        bare = before.rstrip()
        questions = [question(model, bare, before[len(bare) :] + word, after) for word in prompt.verbalised]
        longest = max(max(len(q.ids), len(q.source)) for q in questions)
        return questions, longest + spare - limit

    for shown in range(len(examples), -1, -1):
        questions, excess = attempt(record, shown)
        if excess <= 0:
            return Asked(questions, tuple(range(len(examples) - shown, len(examples))), False)
    while excess > 0:
        name = max(prompt.fields, key=lambda name: len(str(record[name])), default=None)
        characters = "" if name is None else str(record[name])
        if not characters:
            raise UserError(f"the template exceeds the model's {limit} tokens even around empty texts")
        # A token has a character at least, so this cuts too little rather than too much.
        record = {**record, name: characters[: max(len(characters) - excess, 0)]}
        questions, excess = attempt(record, 0)
    return Asked(questions, (), True)


def question(model: Model, before: str, word: str, after: str) -> Question:
    """How to ask this model for a word between two texts."""
    tokenizer, vocab = model.tokenizer, model.tokenizer.vocab
    start, end = tokenizer.template
    left, answer, right = tokenizer.encode([before, word, after])
    if not answer or vocab.unk in answer:
        raise UserError(f"the word {word.strip()!r} cannot be written with the model's tokens; give another")
    if model.config.architecture == "encoder" and "pool" in model.config.outputs:
        check_masks(model)
        begin = len(start) + len(left)
        ids = (*start, *left, *[vocab.mask] * len(answer), *right, *end)
        return Question(ids, tuple(range(begin, begin + len(answer))), tuple(answer))
    if model.config.architecture == "encoder":
        name = type(model.config).__name__.removesuffix("Config")
        raise UserError(f"{model.path}: {name} neither fills masks nor writes text, so it answers no prompts")
    if model.config.start_id is None:
        if after.strip():
            raise UserError("a decoder sees only what stands before the label: end the template with {label}")
        context = [*start, *left] or [i for i in (vocab.bos, vocab.eos, vocab.sep) if i is not None][:1]
        if not context:
            raise UserError("the template has no text before {label}, which a decoder needs")
        places = range(len(context) - 1, len(context) + len(answer) - 1)
        return Question((*context, *answer[:-1]), tuple(places), tuple(answer))
    if not after.strip():
        words = (*answer, *end)
        return Question((model.config.start_id, *words[:-1]), tuple(range(len(words))), words, (*start, *left, *end))
    if len(vocab.sentinels) < 2:
        raise UserError(f"{model.path}: its tokenizer has no sentinels, so the template must end with {{label}}")
    first, second = vocab.sentinels[:2]
    words = (*answer, second)
    ids = (model.config.start_id, first, *answer)
    return Question(ids, tuple(range(1, len(ids))), words, (*start, *left, first, *right, *end))


def check_masks(model: Model) -> None:
    """Raises UserError if the model cannot fill masks."""
    model.tokenizer.vocab.require("a cloze", "mask")
    if "mlm_head" not in model.params and model.config.mlm_head == "transform":
        raise UserError(f"{model.path}: has no masked-LM head, so it cannot fill in a cloze")


def ask_all(
    model: Model, prompt: Prompt, records: Sequence[Record], examples: Sequence[tuple[Record, str]], spare: int = 0
) -> list[Asked]:
    """`ask` for each record. Examples that are the record itself, by the texts in the template, are not shown to it.

    Raises:
      UserError: as `ask`, with the number of the record or example.
    """
    texts, asked, itself, fewer = [], [], 0, 0
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
        itself += len(others) < len(examples)
        fewer += len(item.examples) < len(others)
        asked.append(item._replace(examples=tuple(others[i] for i in item.examples)))
    if itself:
        log.warning("%d of %d records are among the examples, and shown only the others", itself, len(asked))
    cut = sum(item.cut for item in asked)
    for count, what in ((fewer, f"have fewer than {len(examples)} examples"), (cut, "are cut")):
        if count:
            log.warning(
                "%d of %d prompts %s, to fit the model's %d tokens", count, len(asked), what, model.config.max_len
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
    """log p of each label of each record, up to a number for each record that is the same for its labels.

    Args:
      model: from `bertgpt.load`.
      prompt: the template and the labels.
      records: mappings with the fields of the template.
      examples: (record, label) pairs to show before each, in this order; none to a record that is the same.
      average: the mean over the pieces of a label's word in place of the sum, for words of different lengths.
      calibrate: divide by the probabilities of the labels given texts without content, the mean over CONTENT_FREE
        (Zhao et al. 2021): what the model says whatever the text.
      batch_size: sequences at once.

    Raises:
      UserError: as `ask`, with the number of the record.
    """
    asked = ask_all(model, prompt, records, examples)

    def scores_of(asked: Sequence[Asked]) -> Float[np.ndarray, "N C"]:
        questions = [question for item in asked for question in item.questions]
        sums = [(np.mean if average else np.sum)(values) for values in log_likelihoods(model, questions, batch_size)]
        return np.array(sums).reshape(-1, len(prompt.labels))

    scores = scores_of(asked)
    for shown in {item.examples for item in asked} if calibrate else ():
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
) -> Iterator[dict[str, Any]]:
    """For each record the likeliest label and the probability of each; or the label that the model writes.

    Arguments and errors as for `score_labels`. By generation an answer that begins with no label's word has the label
    None; it comes with its text.
    """
    if model.tokenizer is None:
        raise UserError(f"{model.path}: has no tokenizer")
    if by == "likelihood":
        options = dict(average=average, calibrate=calibrate, batch_size=batch_size)
        scores = score_labels(model, prompt, records, examples, **options)
        yield from describe_classes(softmax(scores, axis=1), prompt.labels)
        return
    check_writes(model)
    if prompt.template.partition("{label}")[2].strip():
        raise UserError("to have the label written, end the template with {label}")
    # A decoder reads all but the last token of a word. It may write that one too, and one that shows where it ends.
    asked = ask_all(model, prompt, records, examples, spare=2)
    longest = max((len(q.words) for item in asked for q in item.questions), default=0)
    # What stands before the word is the same for each label.
    prompts = [q.source or q.ids[: q.places[0] + 1] for q in (item.questions[0] for item in asked)]
    decoding = Decoding(max_new_tokens=longest + 1)
    for row in continue_ids(model, prompts, decoding, stop=("\n",), batch_size=batch_size):
        yield {"label": named_in(row[0].text, prompt), "text": row[0].text.strip()}


def named_in(text: str, prompt: Prompt) -> str | None:
    """The label whose word, as a whole, the text begins with, the longest such; letters' case does not count."""
    start = text.strip().casefold()
    pairs = zip(prompt.labels, prompt.verbalised, strict=True)
    fitting = [
        (len(word), name) for name, word in pairs if re.match(re.escape(word.strip().casefold()) + _WORD_END, start)
    ]
    return max(fitting)[1] if fitting else None


def pick_examples(
    records: Sequence[Record], labels: Sequence[str], label_field: str, count: int, seed: int = 0
) -> list[tuple[Record, str]]:
    """`count` random records with their labels, each label as often as any other as far as there are enough.

    Raises:
      UserError: too few records, or a record without a known label.
    """
    piles: dict[str, list[tuple[Record, str]]] = {name: [] for name in labels}
    for number, record in enumerate(records, start=1):
        name = str(record.get(label_field))
        if name not in piles:
            known = ", ".join(map(repr, labels))
            raise UserError(f"example {number}: {label_field!r} is {name!r}; labels are {known}")
        piles[name].append((record, name))
    if len(records) < count:
        raise UserError(f"there are {len(records)} examples, not {count}")
    rng = np.random.default_rng(seed)
    order = {name: [pile[i] for i in rng.permutation(len(pile))] for name, pile in piles.items()}
    # In each round a label has one turn, while it has any; the last round may end early, so that chance orders each.
    rounds = ((i, labels[j]) for i in range(count) for j in rng.permutation(len(labels)))
    turns = [order[name][i] for i, name in rounds if i < len(order[name])][:count]
    return [turns[i] for i in rng.permutation(len(turns))]


def entail(
    model: Model,
    records: Sequence[Record],
    labels: Sequence[str],
    hypothesis: str = "This text is about {label}.",
    entailment: str = "entailment",
    batch_size: int = 32,
) -> Iterator[dict[str, Any]]:
    """Zero-shot labels by a model of textual entailment (Yin et al. 2019).

    The premise is the text, the hypothesis says that a label holds; the probabilities of entailment, one for each
    label, are divided by their sum.

    Args:
      model: a run, from `bertgpt.load`, trained on pairs of texts with `Classify`.
      records: mappings with the field of the run's first texts.
      labels: words for the label in the hypothesis.
      hypothesis: template with {label}.
      entailment: the run's label for “follows from it”.
      batch_size: pairs at once.

    Raises:
      UserError: the run has no such label or is of another task, or a record lacks its text.
    """
    data, prompt = model.run.data, Prompt(hypothesis, tuple(labels))
    names = data.label_set.shown
    if len(data.inputs) != 2 or entailment not in names:
        raise UserError(
            f"{model.name}: entailment needs a run on pairs of texts with the label {entailment!r};"
            f" this one reads {', '.join(data.inputs)} and has {', '.join(names) or 'no labels'}"
        )
    first, second = data.inputs
    pairs = []
    for number, record in enumerate(records, start=1):
        if first not in record:
            raise UserError(f"record {number}: has no field {first!r}")
        pairs += [{first: record[first], second: fill(hypothesis, record, word)} for word in prompt.labels]
    rows, outputs = outputs_for(model, pairs, batch_size)
    follows = np.asarray(rows.by_text(outputs["probabilities"]), np.float64)[:, names.index(entailment)]
    table = follows.reshape(-1, len(labels))
    yield from describe_classes(table / np.maximum(table.sum(axis=1, keepdims=True), 1e-30), prompt.labels)
