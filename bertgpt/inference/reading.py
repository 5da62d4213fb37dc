"""One text as a model reads it: tokens with their characters, and inputs of one sequence."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from bertgpt.data.examples import lengths_that_fit
from bertgpt.data.offsets import locate_tokens
from bertgpt.data.packing import template_of
from bertgpt.data.tokenizer_codec import check_text
from bertgpt.inference.encode import padded_length
from bertgpt.inference.model import Model
from bertgpt.io.files import library_errors
from bertgpt.types import Inputs, UserError


class Token(NamedTuple):
    """A token of a text."""

    token: str
    """as the vocabulary writes it"""
    id: int
    start: int
    """its first character in the text (of a pair, in its own text)"""
    end: int
    """one past its last character; 0, as `start` is, for tokens that the model adds, such as [CLS]"""


class Read(NamedTuple):
    """A text as the model reads it."""

    tokens: tuple[Token, ...]
    inputs: Inputs
    """one sequence, padded to one of few lengths, so that few programs are compiled"""


def read_text(model: Model, text: str, pair: str | None, *, as_task: bool = False) -> Read:
    """The tokens of a text or pair, truncated to the model's longest sequence.

    Args:
      model: from `bertgpt.load`.
      text: the text.
      pair: the second text of a pair.
      as_task: as the data of a run's task has it: special tokens in a text are plain text, and decoders get an end
        token. Otherwise they are special, and a decoder's text is not ended.
    """
    if model.tokenizer is None:
        raise UserError(f"{model.path}: has no tokenizer")
    config, tokenizer = model.config, model.tokenizer
    before, after = tokenizer.template
    limit = config.max_len
    if as_task and model.experiment is not None:
        template = template_of(tokenizer.vocab)
        before, after, limit = list(template.start), [template.end], min(limit, model.experiment.data.seq_len)
    elif not as_task and config.architecture == "decoder":
        after = []
    texts = [text] if pair is None else [text, pair]
    for each in texts:
        check_text(each)
    with library_errors("the tokenizer cannot encode a text"):
        located = locate_tokens(tokenizer, texts, parse_special=not as_task)
    between = tokenizer.separator if pair is not None else []
    room = max(limit - len(before) - len(between) - len(after), 0)
    lengths = lengths_that_fit(len(located[0].ids), len(located[-1].ids) if pair is not None else 0, room)
    tokens, types = _added(tokenizer.tokens(before), before), [0] * len(before)
    for number, (found, length) in enumerate(zip(located, lengths, strict=False)):
        words, bounds = tokenizer.tokens(found.ids[:length]), found.bounds[:length].tolist()
        tokens += [Token(w, i, a, b) for w, i, (a, b) in zip(words, found.ids[:length], bounds, strict=True)]
        end = between if number + 1 < len(texts) else after
        tokens += _added(tokenizer.tokens(end), end)
        types += [number] * (length + len(end))
    if not tokens:
        raise UserError("the text is empty")
    return Read(tuple(tokens), _inputs(tokens, types if pair is not None and config.num_types > 1 else None, limit))


def _added(words: Sequence[str], ids: Sequence[int]) -> list[Token]:
    """Tokens that are not in a text."""
    return [Token(word, i, 0, 0) for word, i in zip(words, ids, strict=True)]


def _inputs(tokens: Sequence[Token], types: Sequence[int] | None, limit: int) -> Inputs:
    width = max(min(padded_length(len(tokens)), limit), len(tokens))

    def padded(values: Sequence[int]) -> Int[np.ndarray, "1 S"]:
        return np.array([[*values, *[0] * (width - len(tokens))]], np.int32)

    return Inputs(
        padded([token.id for token in tokens]),
        padded([1] * len(tokens)),
        type_ids=None if types is None else padded(types),
    )


def read_both(model: Model, text: str, pair: str | None, target: str | None) -> tuple[Read, Read | None]:
    """What the model reads and, of an encoder–decoder with a target, what its decoder reads."""
    read = read_text(model, text, pair)
    if model.config.architecture != "encoder_decoder":
        if target is not None:
            raise UserError(f"{model.path}: a target is for encoder–decoders; this model reads one text")
        return read, None
    if target is None:
        return read, None
    tokenizer, start = model.tokenizer, model.config.start_id
    with library_errors("the tokenizer cannot encode a text"):
        check_text(target)
        (found,) = locate_tokens(tokenizer, [target], parse_special=True)
    words = tokenizer.tokens(found.ids)
    tokens = _added(tokenizer.tokens([start]), [start])
    tokens += [Token(w, i, a, b) for w, i, (a, b) in zip(words, found.ids, found.bounds.tolist(), strict=True)]
    decoder = Read(tuple(tokens[: model.config.max_len]), Inputs())
    decoder = decoder._replace(inputs=_inputs(decoder.tokens, None, model.config.max_len))
    return read._replace(inputs=read.inputs._replace(decoder=decoder.inputs)), decoder
